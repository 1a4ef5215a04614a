"""``python -m kvlib distil``: the recipe from a shell."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from transformers.utils import logging

from kvlib.data import get_task, load_glue
from kvlib.profiles import get_profile
from kvlib.recipe import RUNS, WeakTeacherError, distil


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"kvlib: {message} (see python -m kvlib distil --help)\n")


def _checked(look_up: Callable[[str], Any]) -> Callable[[str], str]:
    """Make an argparse type of a function that raises ValueError for a name it does not know."""

    def check(name: str) -> str:
        try:
            look_up(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return name

    return check


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m kvlib", description="Distil BERT into a DistilBERT with a bottleneck.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "distil",
        help="run the whole recipe on one GLUE task",
        description="Fine-tune a teacher, distil it, put in the bottleneck, and print every score on the "
        "validation split beside its baselines. Finished stages are kept under data/runs and reused.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument(
        "--task",
        required=True,
        type=_checked(get_task),
        default=argparse.SUPPRESS,
        help="mnli, rte, cola, mrpc, qnli, sst2, stsb or qqp",
    )
    command.add_argument(
        "--source",
        default=None,
        metavar="DIR",
        help="'mini' (ships with the course), 'hub', or a folder with <task>/<split>.tsv, .csv, .jsonl or "
        ".parquet; by default the profile's",
    )
    command.add_argument(
        "--profile",
        default=None,
        type=_checked(get_profile),
        metavar="{quick,base}",
        help="models and sizes; by default the environment variable KVLIB_PROFILE, else quick",
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random")
    command.add_argument(
        "--output",
        default=None,
        metavar="DIR",
        help="folder for metrics.json and the student (none: print only)",
    )
    command.add_argument("--runs", default=str(RUNS), metavar="DIR", help="folder of finished stages")
    arguments = parser.parse_args(argv)
    if arguments.output and Path(arguments.output).is_file():
        parser.error(f"argument --output: {arguments.output} is a file, expected a folder")
    try:
        # bad data is an argument error and must not cost a training run
        load_glue(arguments.task, arguments.source or get_profile(arguments.profile).source)
    except (ValueError, OSError) as error:
        parser.error(f"argument --source: {error}")
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
            arguments.task,
            arguments.source,
            arguments.profile,
            arguments.seed,
            arguments.output,
            arguments.runs,
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
