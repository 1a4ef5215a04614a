"""What only the course needs: the exercises' checks, progress, plots, the explorer, the environment report."""

from importlib import import_module
from typing import Any

_MODULES = {"check": "workbook.checks", "progress": "workbook.checks", "Explorer": "workbook.explorer"}


def __getattr__(name: str) -> Any:
    # on demand: `workbook.environment` must run where torch is missing, to say so
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
