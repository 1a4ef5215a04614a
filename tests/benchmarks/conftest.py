"""One table at the end of a run of the benchmarks, in place of pytest-benchmark's own.

The unit tests load this file too: it must import nothing that they do not have, and change nothing for them.
"""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import pytest
import torch

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
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(": ")[1] for line in lines if line.startswith("model name")), processor)
    devices = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    versions = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
    hardware = [*devices, f"{processor}, {os.cpu_count()} cores, torch threads: {torch.get_num_threads()}"]
    return "; ".join([*hardware, ", ".join(versions)])


def work_of_others():
    """Count the seconds that processors have worked, up to now, but for this process; nan where unknown."""
    if not Path("/proc/stat").exists():
        return float("nan")
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split()[1:9])
    # counts the processes that it started and that have ended, too
    own = sum(os.times()[:4])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - own
