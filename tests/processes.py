"""Processes that tests start."""

import os
import signal
import subprocess
import sys
import traceback

import pytest

# one thread: sums in the same order, bit for bit
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="forks, signals, limits or /proc as Linux has them"
)


def finish(command, environment=None, **options):
    """Run a command in a group of its own, of which nothing is left afterwards: exit code, output and errors."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT | (environment or {}),
        start_new_session=True, **options,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=1200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, out, err


def fork(function, *arguments):
    """Call a function in a forked process, which need not import everything again; return the process's id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return child


def exit_code(child):
    """Wait for a forked process: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
