"""Is everything there that the course needs? Uses the standard library alone, so that it can say what is not."""

import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
RUNS = Path(os.environ.get("KVLIB_RUNS") or PROJECT / "data" / "runs")
PROFILES = ("quick", "real", "base")
GIGABYTE = 1024**3
INSTALL = f'"{sys.executable}" -m pip install -r requirements.txt'


def problems(requirements: Path = PROJECT / "requirements.txt", runs: Path = RUNS) -> list[str]:
    """Return a line for everything that is wrong, each with how to mend it.

    Parameters
    ----------
    requirements : pathlib.Path
        The pins to compare the installed packages with.
    runs : pathlib.Path
        The folder in which the course keeps what it trains.
    """
    found = []
    if sys.version_info < (3, 11):  # noqa: UP036 - pip was not asked if the kernel is another Python
        found.append(
            f"Python is {sys.version.split()[0]}, the course needs 3.11 or newer: make the environment with that"
        )
    for line in requirements.read_text().splitlines():
        package, _, pinned = line.partition("==")
        if pinned:
            found += _package(package, pinned)
    found += _library()
    profile = os.environ.get("KVLIB_PROFILE", "quick")
    if profile not in PROFILES:
        found.append(f"KVLIB_PROFILE is {profile!r}: set it to one of {', '.join(PROFILES)}, or unset it")
    return found + _room(runs)


def _package(package: str, pinned: str) -> list[str]:
    try:
        installed = version(package).split("+")[0]  # 2.13.0+cpu is a build of 2.13.0
    except PackageNotFoundError:
        return [f"{package} is not installed: run {INSTALL} in the project's folder"]
    if installed != pinned:
        return [f"{package} is {installed}, the stored outputs were made with {pinned}: run {INSTALL}"]
    return []


def _library() -> list[str]:
    try:
        distribution("kvlib")
    except PackageNotFoundError:
        return [f"kvlib is not installed: run {INSTALL} in the project's folder, whose last line installs it"]
    return []


def _room(runs: Path) -> list[str]:
    existing = next(folder for folder in (runs, *runs.parents) if folder.exists())
    found = []
    if not os.access(existing, os.W_OK):
        found.append(f"{existing} cannot be written to: move the project to a folder of your own")
    free = shutil.disk_usage(existing).free / GIGABYTE
    if free < 2:
        found.append(f"{free:.1f} GB are free on the disk of {existing}, the notebooks keep about 2: make room")
    if hasattr(os, "sysconf"):  # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIGABYTE
        if memory < 3:
            found.append(
                f"this machine has {memory:.1f} GB of memory, the notebooks take up to 2: close what you can"
            )
    return found


def report() -> None:
    """Print that all is well, or what is not and how to mend it."""
    found = problems()
    for line in found:
        print("✗", line)
    print("environment:", f"{len(found)} to mend, see above" if found else "all as it should be")
