"""The settings under which notebooks are tested and refreshed: the same for both, or outputs would differ."""

import os
import tempfile
from pathlib import Path

ENVIRONMENT = {
    "KVLIB_PROFILE": "quick",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    # tests run in two processes, and two that share the cores with two threads each wait for one another
    "OMP_NUM_THREADS": "1",
    # never the learner's own: stored outputs show a beginner's progress
    "KVLIB_PROGRESS": str(Path(tempfile.gettempdir()) / f"kvlib-progress-{os.getpid()}"),
}


def apply() -> None:
    """Set the environment of this process and of the kernels it starts."""
    os.environ.update(ENVIRONMENT)
    # stages are kept in the checkout's data/runs, whatever a learner has set
    os.environ.pop("KVLIB_RUNS", None)
