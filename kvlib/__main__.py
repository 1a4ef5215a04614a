"""``python -m kvlib distil``: the recipe from a shell."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from transformers.utils import logging

from kvlib.data import get_task, load_glue
from kvlib.profiles import get_profile
from kvlib.recipe import WeakTeacherError, distil


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"kvlib: {message} (see python -m kvlib distil --help)\n")


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
    arguments = parser.parse_args(argv)
    if arguments.output and Path(arguments.output).is_file():
        parser.error(f"--output {arguments.output} is a file, expected a folder")
    try:
        get_task(arguments.task)
        # bad data must not cost a training run first
        load_glue(arguments.task, arguments.source or get_profile(arguments.profile).source)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    return arguments


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
    arguments = _arguments(argv)
    logging.set_verbosity_error()
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
