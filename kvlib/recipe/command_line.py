"""``python -m kvlib``: the recipe, the grid of results and GLUE's submission files from a shell."""

import argparse
import sys
import warnings
from pathlib import Path
from typing import NoReturn

import numpy as np
from datasets import disable_progress_bars
from huggingface_hub.utils import disable_progress_bars as disable_hub_bars
from huggingface_hub.utils import logging as hub_logging
from tqdm.auto import tqdm
from transformers.utils import logging

from kvlib.continual.grid import STREAMS, continual_summary, gather_continual, read_continual
from kvlib.data import get_task
from kvlib.machine import process_state
from kvlib.recipe.distillation import check_output, run_recipe
from kvlib.recipe.evidence import evidence_table, gather_evidence, grid_settings, read_evidence, read_grid
from kvlib.recipe.experiment import Experiment, WeakTeacherError, check_seed
from kvlib.recipe.profiles import PROFILES, get_profile
from kvlib.recipe.stages import COMPARED, CONTROLS, systems_of
from kvlib.recipe.submission import FILES, NOT_MADE_HERE, OFFICIAL_ROWS, check_submission, write_submission
from kvlib.sources.own_data import describe_data, load_task


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"kvlib: {message} (see {self.prog} --help)\n")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m kvlib", description="Distil BERT into a DistilBERT with a bottleneck.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_distil(commands)
    _add_evidence(commands)
    _add_submit(commands)
    _add_continual(commands)
    arguments = parser.parse_args(argv)
    try:
        arguments.check(arguments)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        parser.exit(2, f"kvlib: {message} (see {parser.prog} {arguments.command} --help)\n")
    return arguments


def _add_runs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--runs",
        metavar="DIR",
        help="folder of finished stages (default: data/runs, or the environment variable KVLIB_RUNS)",
    )


def _add_sources(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--source",
        metavar="DIR",
        help="'mini' (ships with the course), 'hub', or a folder with DIR/TASK/SPLIT.tsv, .csv, .jsonl or "
        ".parquet (default: the profile's: hub for base, else mini)",
    )
    command.add_argument(
        "--profile",
        metavar=f"{{{','.join(PROFILES)}}}",
        help="models and sizes (default: the environment variable KVLIB_PROFILE, else quick)",
    )


def _add_distil(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = commands.add_parser(
        "distil",
        help="run the whole recipe on one task",
        description="Fine-tune a teacher, distil it, put in the bottleneck, and print every score on the "
        "validation split beside its baselines. Finished stages are kept and reused; one that was killed goes on "
        "from its last checkpoint.",
    )
    command.set_defaults(check=_check_distil, run=run_distil)
    option = command.add_argument
    option("--task", help="a GLUE task: mnli, rte, cola, mrpc, qnli, sst2, stsb or qqp")
    option(
        "--data",
        nargs="+",
        metavar="FILE",
        help="a task of your own in place of --task: .csv, .tsv, .jsonl or .parquet files, a folder saved by "
        "datasets, or the name of a data set on the hub",
    )
    option("--text", metavar="COLUMN", help="the column of --data with the text")
    option("--text-pair", metavar="COLUMN", help="the column with the second text of a pair")
    option("--label", metavar="COLUMN", help="the column with the class, or with the number to predict")
    option("--validation", nargs="+", metavar="FILE", help="as --data (default: a fifth of the rows is held out)")
    option(
        "--regression",
        action=argparse.BooleanOptionalAction,
        help="whether the label is a number to predict (default: told from the data)",
    )
    option("--dry-run", action="store_true", help="say what the data holds, and stop before any training")
    option(
        "--system", default="bottleneck", help=f"{', '.join((*COMPARED, *CONTROLS))} or all (default: bottleneck)"
    )
    _add_sources(command)
    option("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: 0)")
    option("--output", metavar="DIR", help="folder for metrics.json and the student (default: print only)")
    _add_runs(command)


def _add_evidence(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = commands.add_parser(
        "evidence",
        help="run a grid of tasks, systems and seeds",
        description="Train and score every system on every task with every seed, and write one record a run. Runs "
        "that stand in the file are left out; processes that divide the tasks may share it.",
    )
    command.set_defaults(check=_check_evidence, run=run_evidence)
    option = command.add_argument
    option("--output", required=True, metavar="FILE", help="JSON file of the records")
    option("--tasks", nargs="+", required=True, metavar="TASK", help="GLUE names")
    option(
        "--systems",
        nargs="+",
        default=["all"],
        metavar="SYSTEM",
        help=f"{', '.join((*COMPARED, *CONTROLS))} (default: all)",
    )
    option("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N", help="default: 0 1 2 3 4")
    _add_sources(command)
    option("--max-rows", type=int, metavar="N", help="a stratified part of N training rows (default: all)")
    _add_runs(command)


def _check_distil(arguments: argparse.Namespace) -> None:
    if bool(arguments.task) == bool(arguments.data):
        raise ValueError("expected --task with the name of a GLUE task, or --data with files of your own")
    other = ("source",) if arguments.data else ("text", "text_pair", "label", "validation", "regression")
    if idle := [name for name in other if getattr(arguments, name) is not None]:
        option = "--no-regression" if arguments.regression is False else f"--{idle[0].replace('_', '-')}"
        raise ValueError(f"{option} does nothing beside --{'data' if arguments.data else 'task'}: leave it out")
    if arguments.data and not (arguments.text and arguments.label):
        raise ValueError("--data needs --text and --label, the names of two columns")
    systems_of(arguments.system)
    check_seed(arguments.seed)
    if arguments.output and not arguments.dry_run:
        check_output(arguments.output)
    task, source = arguments.task, arguments.source
    if arguments.data:
        given = arguments.data, arguments.validation
        files, validation = (names[0] if names and len(names) == 1 else names for names in given)
        columns = {"text": arguments.text, "text_pair": arguments.text_pair, "label": arguments.label}
        task, source = load_task(
            files, **columns, validation=validation, regression=arguments.regression, seed=arguments.seed
        )
    arguments.experiment = Experiment(task, source, arguments.profile, arguments.seed, arguments.runs)


def _check_evidence(arguments: argparse.Namespace) -> None:
    for system in arguments.systems:
        systems_of(system)
    if arguments.max_rows is not None and arguments.max_rows < 20:
        raise ValueError(f"--max-rows is {arguments.max_rows}, expected 20 or more")
    profile = get_profile(arguments.profile)
    read_grid(arguments.output, grid_settings(profile, arguments.source, arguments.max_rows))
    for seed in arguments.seeds:
        check_seed(seed)
    for task in arguments.tasks:
        get_task(task)
    for task in arguments.tasks:
        Experiment(task, arguments.source, profile, arguments.seeds[0], arguments.runs, arguments.max_rows)


def _add_submit(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = commands.add_parser(
        "submit",
        help="write GLUE's submission files",
        description="Predict the test splits of all tasks that have a student and write each as the TSV file that "
        f"gluebenchmark.com takes. {' and '.join(NOT_MADE_HERE)} are not made: take those of GLUE's sample "
        "submission.",
    )
    command.set_defaults(check=_check_submit, run=run_submit)
    option = command.add_argument
    option("--students", required=True, metavar="DIR", help="folder with DIR/TASK/student, as distil writes it")
    option("--output", required=True, metavar="DIR", help="folder for the TSV files; those there are replaced")
    _add_sources(command)


def _check_submit(arguments: argparse.Namespace) -> None:
    check_output(arguments.output)
    source = arguments.source or get_profile(arguments.profile).source
    arguments.ready = check_submission(arguments.students, source)


def _add_continual(commands: "argparse._SubParsersAction[_Parser]") -> None:
    command = commands.add_parser(
        "continual",
        help="learn class after class, task after task",
        description="Show every learner streams of classes and of tasks, one after another, and write what each "
        "still knows. Runs that stand in the file are left out; processes that divide streams may share it.",
    )
    command.set_defaults(check=_check_continual, run=run_continual)
    option = command.add_argument
    option("--output", required=True, metavar="FILE", help="JSON file of the records")
    names = (*STREAMS, "glue")
    option("--streams", nargs="+", metavar="STREAM", help=f"{', '.join(names)} (default: all, or --data alone)")
    option("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="N", help="default: 0 1 2 3 4")
    option("--data", metavar="FILE", help="a stream of the classes of your own file, two by two")
    option("--text", metavar="COLUMN", help="the column of --data with the text")
    option("--label", metavar="COLUMN", help="the column with the class")
    option("--runs", metavar="DIR", help="folder of the teachers of GLUE's tasks (default: data/runs)")


def _check_continual(arguments: argparse.Namespace) -> None:
    for seed in arguments.seeds:
        check_seed(seed)
    if unknown := [name for name in arguments.streams or () if name not in (*STREAMS, "glue")]:
        raise ValueError(f"unknown stream {unknown[0]!r}: choose of {', '.join((*STREAMS, 'glue'))}")
    arguments.own = None
    if arguments.data:
        if not (arguments.text and arguments.label):
            raise ValueError("--data needs --text and --label, the names of two columns")
        arguments.own = load_task(arguments.data, arguments.text, arguments.label, regression=False)
        if arguments.own[0].num_labels < 4:
            raise ValueError(
                f"{arguments.data} has {arguments.own[0].num_labels} classes, expected at least 4: a stream shows "
                "two a task, and of one task nothing can be forgotten"
            )
        arguments.streams = [*(arguments.streams or ()), arguments.own[0].name]
    elif arguments.text or arguments.label:
        raise ValueError("--text and --label do nothing without --data")
    arguments.streams = arguments.streams or [*STREAMS, "glue"]
    read_continual(arguments.output)


def run_continual(arguments: argparse.Namespace) -> int:
    """Run the grid; print a line a run and, at the end, a table a stream."""
    disable_progress_bars()
    logging.disable_progress_bar()
    names = ("output", "streams", "seeds", "runs", "own")
    gather_continual(
        **{name: getattr(arguments, name) for name in names},
        tell=lambda record: print(f"{record['stream']} {record['learner']} seed {record['seed']}", flush=True),
    )
    for stream in arguments.streams:
        _show(f"\n{stream}\n{continual_summary(arguments.output, stream).to_string()}")
    return 0


def run_submit(arguments: argparse.Namespace) -> int:
    """Write the submission files of the tasks in ``arguments.ready``, then say which the zip still lacks."""
    for task, data in arguments.ready.items():
        student = Path(arguments.students) / task / "student"
        for file, rows in write_submission(student, data, task, arguments.output).items():
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
    """Run the command line with `argv`, by default the process's own, and return its exit code.

    It is 0 when done; 1 if a run ends early: the teacher is too weak, the loss is not finite, memory or disk is
    full, a stage on the disk is damaged; 130 if it is stopped by Ctrl-C. Bad arguments and data, which are found
    before any training, exit with 2. The last line says why.
    """
    # a hub out of reach is said once, by its error, not at each of the client's attempts
    hub_logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        arguments = _arguments(argv)
        logging.set_verbosity_error()
        try:
            return arguments.run(arguments)
        except (WeakTeacherError, ValueError, FloatingPointError, MemoryError, OSError) as error:
            _complain(" ".join(str(error).split()))
            return 1
        except KeyboardInterrupt:
            _complain("stopped; the same command goes on from the last finished epoch")
            return 130


def _complain(message: str) -> None:
    # a bar that is still open would stand before the message, and be drawn once more below it
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.leave = True
        bar.close()
    print(f"kvlib: {message}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"kvlib: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _show(text: str) -> None:
    """Print on whatever terminal there is: some know no ±, and it would be a pity after all the training."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = (
            text.replace("±", "+-")
            .replace("–", "-")
            .replace("…", "...")
            .encode(encoding, "replace")
            .decode(encoding)
        )
    print(text, flush=True)


def run_distil(arguments: argparse.Namespace) -> int:
    """Say what the data holds, run the recipe and print its table, in the main process."""
    experiment, is_main = arguments.experiment, process_state().is_main_process
    if is_main:
        _show(describe_data(experiment.task, experiment.data, experiment.tokenizer, experiment.profile.max_length))
    if arguments.dry_run:
        return 0
    result = run_recipe(experiment, arguments.system, arguments.output)
    if is_main:
        metrics = result.metrics
        seconds = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in metrics["seconds"].items())
        _show(f"\n{metrics['task']} from {metrics['source']}, seed {metrics['seed']}: {metrics['rows']}")
        _show(result.table.to_string(float_format="{:.3f}".format))
        _show(f"{seconds}; peak memory {metrics['peak_memory_mb']:.0f} MB; {metrics['machine']}")
    return 0


def run_evidence(arguments: argparse.Namespace) -> int:
    """Run the grid; print a line a run and, at the end, the table."""
    disable_progress_bars()
    disable_hub_bars()
    logging.disable_progress_bar()
    names = ("output", "tasks", "systems", "seeds", "source", "profile", "max_rows", "runs")
    gather_evidence(**{name: getattr(arguments, name) for name in names}, tell=_tell)
    _show(evidence_table(read_evidence(arguments.output)).to_string())
    return 0


def _tell(record: dict) -> None:
    scores = record["metrics"] or {"refused": np.nan}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    print(f"{record['task']} {record['system']} seed {record['seed']}: {shown}", flush=True)
