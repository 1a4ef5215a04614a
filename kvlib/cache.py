"""Files that are complete or not there, and tensors on disk that are keyed by what they were made from."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from kvlib.machine import process_state

# what the system gives a new file; it can be asked for only by setting it
_UMASK = os.umask(0o022)
os.umask(_UMASK)
_SHARED = 0o666 & ~_UMASK


@contextmanager
def disk_errors(path: Path, way_out: str = "Make room and start the same command again") -> Iterator[None]:
    """Turn the errors of a full disk, which differ by library and name no file, into one OSError that does."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch appends its C++ stack
        reason = str(error).strip().split("\n")[0]
        raise OSError(f"cannot write {path}: {reason}. {way_out}") from error


@contextmanager
def write_aside(path: str | Path) -> Iterator[Path]:
    """Give a path to write a file or a folder at; in the end it takes the place of `path`, or the old one stays.

    Whoever may read new files may read it: safetensors writes for the owner alone.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.temporary")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            share_files(temporary)
            if temporary.is_dir():
                # a folder takes no other's place while that has files
                shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)


def share_files(path: Path) -> None:
    """Give a file, or all files of a folder, the rights of new files."""
    for file in (path, *path.rglob("*")):
        if file.is_file():
            file.chmod(_SHARED)


def fingerprint(tensors: nn.Module | Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a model's weights and buffers, or of named tensors: it changes whenever they do."""
    digest = hashlib.sha256()
    named = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of a fast tokenizer's vocabulary and rules."""
    # truncation and padding are left over from the last call, not a property of the tokenizer
    fresh = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    fresh.no_truncation()
    fresh.no_padding()
    return hashlib.sha256(fresh.to_str().encode()).hexdigest()


def cached_tensors(
    path: str | Path, made_from: dict[str, str], compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the tensors that `compute` gives, by name, from the safetensors file `path` if it exists.

    Of several processes the first computes. The file is read through a memory map: a row comes from the disk when
    it is looked at. `made_from` names all that the tensors depend on, by fingerprints, and is kept in the file:
    ValueError says what differs from it. Raises OSError if the file cannot be written.
    """
    path = Path(path)
    with process_state().main_process_first():
        if not path.exists():
            tensors = compute()
            with write_aside(path) as temporary:
                save_file(tensors, temporary, metadata=made_from)
    with safe_open(path, framework="pt") as stored:
        found = stored.metadata() or {}
        differing = " and ".join(name for name, value in made_from.items() if found.get(name) != value)
        if differing:
            raise ValueError(f"{path} does not match the current {differing}: delete it, or choose another path")
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
