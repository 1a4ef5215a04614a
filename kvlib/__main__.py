"""``python -m kvlib distil`` and ``submit``: the recipe and GLUE's submission files from a shell."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from datasets import DatasetDict
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging

from kvlib.data import get_task, load_glue
from kvlib.profiles import get_profile, resolve_checkpoint
from kvlib.recipe import WeakTeacherError, distil
from kvlib.submission import FILES, NOT_MADE_HERE, OFFICIAL_ROWS, check_submission, write_submission


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"kvlib: {message} (see {self.prog} --help)\n")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m kvlib", description="Distil BERT into a DistilBERT with a bottleneck.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "distil",
        help="run the whole recipe on one GLUE task",
        description="Fine-tune a teacher, distil it, put in the bottleneck, and print every score on the "
        "validation split beside its baselines. Finished stages are kept and reused.",
    )
    option = command.add_argument
    option("--task", required=True, help="mnli, rte, cola, mrpc, qnli, sst2, stsb or qqp")
    option(
        "--source",
        metavar="DIR",
        help="'mini' (ships with the course), 'hub', or a folder with DIR/TASK/SPLIT.tsv, .csv, .jsonl or "
        ".parquet (default: the profile's, mini for quick and hub for base)",
    )
    option(
        "--profile",
        metavar="{quick,base}",
        help="models and sizes (default: the environment variable KVLIB_PROFILE, else quick)",
    )
    option("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: 0)")
    option("--output", metavar="DIR", help="folder for metrics.json and the student (default: print only)")
    option("--runs", metavar="DIR", help="folder of finished stages (default: data/runs of the project)")
    _add_submit(commands)
    arguments = parser.parse_args(argv)
    if arguments.output and Path(arguments.output).is_file():
        parser.error(f"--output {arguments.output} is a file, expected a folder")
    try:
        if arguments.command == "submit":
            arguments.ready = _check_submit(arguments)
            return arguments
        get_task(arguments.task)
        profile = get_profile(arguments.profile)
        # bad data, or a checkpoint that cannot be had, must not cost a training run first
        load_glue(arguments.task, arguments.source or profile.source)
        for checkpoint in filter(None, (profile.teacher_checkpoint, profile.student_checkpoint)):
            resolve_checkpoint(checkpoint)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    return arguments


def _add_submit(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = commands.add_parser(
        "submit",
        help="write GLUE's submission files",
        description="Predict the test splits of all tasks that have a student and write each as the TSV file that "
        f"gluebenchmark.com takes. {' and '.join(NOT_MADE_HERE)} are not made: take those of GLUE's sample "
        "submission.",
    )
    option = command.add_argument
    option("--students", required=True, metavar="DIR", help="folder with DIR/TASK/student, as distil writes it")
    option("--output", required=True, metavar="DIR", help="folder for the TSV files; those there are replaced")
    option("--source", metavar="DIR", help="test splits: 'hub', 'mini' or a folder, as for distil")
    option("--profile", metavar="{quick,base}", help="whose source and longest sequence, as for distil")


def _check_submit(arguments: argparse.Namespace) -> dict[str, DatasetDict]:
    return check_submission(arguments.students, arguments.source or get_profile(arguments.profile).source)


def run_submit(arguments: argparse.Namespace) -> int:
    """Write the submission files of the tasks in ``arguments.ready``, then say which the zip still lacks."""
    for task, data in arguments.ready.items():
        student = Path(arguments.students) / task / "student"
        max_length = get_profile(arguments.profile).max_length
        for file, rows in write_submission(student, data, task, arguments.output, max_length).items():
            official = OFFICIAL_ROWS[file]
            note = "" if rows == official else f", but the official test split has {official}: not for the server"
            print(f"{Path(arguments.output) / file}: {rows} rows{note}", flush=True)
    for task in FILES:
        if task not in arguments.ready:
            missing = " and ".join(FILES[task].values())
            print(f"missing {missing}: no student in {Path(arguments.students) / task / 'student'}")
    print(f"not made here: {' and '.join(NOT_MADE_HERE)}; take them from gluebenchmark.com/assets/CBOW.zip")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Arguments; those of the process by default.

    Returns
    -------
    int
        0 when done, 1 if the teacher is too weak to distil. Bad arguments exit with 2 and one line.
    """
    # a hub out of reach is said once, by its error, not at each of the client's attempts
    hub_logging.set_verbosity_error()
    arguments = _arguments(argv)
    logging.set_verbosity_error()
    if arguments.command == "submit":
        return run_submit(arguments)
    try:
        result = distil(
            arguments.task, arguments.source, arguments.profile, arguments.seed, arguments.output, arguments.runs
        )
    except WeakTeacherError as error:
        print(f"kvlib: {error}", file=sys.stderr)
        return 1
    metrics = result.metrics
    seconds = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in metrics["seconds"].items())
    print(f"\n{metrics['task']} from {metrics['source']}, seed {metrics['seed']}: {metrics['rows']}")
    print(result.table.to_string(float_format="{:.3f}".format))
    print(f"{seconds}; peak memory {metrics['peak_memory_mb']:.0f} MB; {metrics['machine']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
