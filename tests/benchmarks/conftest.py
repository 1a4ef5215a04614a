"""One table at the end of a run of the benchmarks, in place of pytest-benchmark's own.

The unit tests load this file too: it must import nothing that they do not have, and change nothing for them.
"""

import os
import platform
from importlib.metadata import version
from time import perf_counter

import psutil
import pytest
import torch

from kvlib.machine import processor

COLUMNS = ("what", "size", "ours ms", "compared with", "its ms", "ratio", "target", "extra MiB", "its extra MiB")
PACKAGES = ("torch", "scikit-learn", "vector-quantize-pytorch", "discrete-key-value-bottleneck-pytorch")
ROWS = pytest.StashKey[list[dict[str, str]]]()
START = pytest.StashKey[tuple[float, float]]()


def pytest_configure(config):
    config.stash[ROWS] = []
    config.stash[START] = perf_counter(), work_of_others()
    config.option.benchmark_quiet = True


@pytest.fixture(scope="session")
def table(request):
    """The rows that are printed at the end, each the strings of some columns."""
    return request.config.stash[ROWS]


def pytest_terminal_summary(terminalreporter, config):
    rows = [[row.get(column, "-") for column in COLUMNS] for row in config.stash[ROWS]]
    if rows:
        terminalreporter.section("benchmarks")
        start, work = config.stash[START]
        others = (work_of_others() - work) / (perf_counter() - start)
        terminalreporter.write_line(f"{machine()}; other processes took {others:.2f} of a core meanwhile\n")
        for line in markdown(COLUMNS, rows):
            terminalreporter.write_line(line)


def markdown(columns, rows):
    """Yield the lines of a table of strings."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, ["-" * width for width in widths], *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"| {' | '.join(cells)} |"


def machine(packages=PACKAGES):
    """Say what the times were measured on."""
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    return f"{processor()}, torch threads: {torch.get_num_threads()}; {', '.join(versions)}"


def work_of_others():
    """Count the seconds that processors have worked, up to now, but for this process."""
    times = psutil.cpu_times()
    work = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
    # counts the processes that it started and that have ended, too
    return work - sum(os.times()[:4])
