"""Training checkpoints that are known to be complete; a process can be killed while it writes one."""

import json
import os
from pathlib import Path

_MARK = "complete.json"


def mark_complete(checkpoint: Path) -> None:
    """Write the size of each file of a checkpoint into it, after the last one has reached the disk."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path in files:
        _flush(path)
    temporary = checkpoint / f"{_MARK}.temporary"
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    temporary.write_text(json.dumps(sizes), encoding="utf-8")
    _flush(temporary)
    temporary.replace(checkpoint / _MARK)


def _flush(path: Path) -> None:
    # for writing: Windows flushes no other
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())


def step_of(checkpoint: Path) -> int:
    """Return the training step at which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def last_complete(folder: str | Path) -> Path | None:
    """Return the last complete checkpoint in a folder, None if there is none.

    Training that resumes may end with the weights of the best checkpoint so far, so that one must be complete too.
    """
    for path in sorted(Path(folder).glob("checkpoint-*"), key=step_of, reverse=True):
        if _is_complete(path):
            best = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["best_global_step"]
            if best is None or _is_complete(path.with_name(f"checkpoint-{best}")):
                return path
    return None


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / _MARK).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
