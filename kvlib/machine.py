"""The machine at hand: its device, the processes that a launcher started, memory and processor."""

import os
import sys
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from typing import Any

import cpuinfo
import psutil
import torch
from accelerate import PartialState
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS

PACKAGES = ("kvlib", "torch", "transformers", "datasets")


def process_state() -> PartialState:
    """Join the processes that a launcher started, once; later calls only look them up."""
    # without cpu=True several processes without an accelerator would each think they are alone; and while the
    # first computes a cache, the others may wait for longer than the usual half hour
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=2))


def device() -> torch.device:
    """Return the device of this process: where every model of the library is put, in training and outside it."""
    return process_state().device


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in megabytes (10^6 bytes)."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return psutil.Process().memory_info().peak_wset / 1e6
    # kilobytes, but bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


@cache
def processor() -> str:
    """Return the name of the first GPU, or of the processor and how many cores it has."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpuinfo.get_cpu_info().get('brand_raw', 'unknown processor')}, {os.cpu_count()} cores"


def describe() -> dict[str, Any]:
    """Name what a result depends on beside the code: package versions, processor, threads, processes."""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "machine": f"{processor()}, {torch.get_num_threads()} threads, {process_state().num_processes} processes",
    }


def announce(message: str) -> None:
    """Write a line for whoever watches; as a progress bar, only if ``HF_HUB_DISABLE_PROGRESS_BARS`` is not set."""
    if not HF_HUB_DISABLE_PROGRESS_BARS:
        print(f"kvlib: {message}", file=sys.stderr, flush=True)
