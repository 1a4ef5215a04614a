"""The sizes of the course: ``quick`` for a laptop, ``real`` for real GLUE, ``base`` for BERT-base."""

import os
import warnings
from dataclasses import dataclass, replace

from kvlib.pretrained import check_checkpoint


@dataclass(frozen=True)
class Profile:
    """The models, data and hyper-parameters that go together.

    Parameters
    ----------
    name : str
        ``"quick"``, ``"real"`` or ``"base"``.
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
    teacher_epochs, layer_epochs, student_epochs, bottleneck_epochs : int
        Epochs of stages 1, 2 (on hidden states, over the texts and as many fresh ones; then on logits) and 3.
    teacher_learning_rate, layer_learning_rate, student_learning_rate, bottleneck_learning_rate : float
        Peak learning rates of AdamW in them.
    temperature, alpha : float
        Temperature of the distillation loss, and the weight of the teacher's part in it.
    num_codebooks, codebook_size : int
        Shape of the bottleneck, C and K.
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
    layer_epochs: int
    student_epochs: int
    bottleneck_epochs: int
    teacher_learning_rate: float
    layer_learning_rate: float
    student_learning_rate: float
    bottleneck_learning_rate: float
    temperature: float
    alpha: float
    num_codebooks: int
    codebook_size: int
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
    layer_epochs=2,
    student_epochs=2,
    bottleneck_epochs=10,
    teacher_learning_rate=1e-4,
    layer_learning_rate=5e-4,
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
        # quick's models, trained for thousands of real sentences on a processor
        replace(_QUICK, name="real", batch_size=32, layer_epochs=5, student_epochs=3, bf16=True),
        replace(
            _QUICK,
            name="base",
            source="hub",
            teacher_checkpoint="google-bert/bert-base-uncased",
            student_checkpoint="distilbert/distilbert-base-uncased",
            teacher_pooling="cls",
            batch_size=32,
            layer_epochs=5,
            student_epochs=3,
            teacher_learning_rate=2e-5,
            student_learning_rate=5e-5,
            bottleneck_learning_rate=1e-2,
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
        If there is no such profile; the message lists them.
    """
    name = name or os.environ.get("KVLIB_PROFILE", "quick")
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)} (KVLIB_PROFILE)")
    return PROFILES[name]


def check_models(profile: Profile) -> Profile:
    """Refuse checkpoints that cannot be used; return `profile` with a length that they can read.

    Raises
    ------
    ValueError, FileNotFoundError
        As `check_checkpoint`; if the student is wider, narrower or deeper than the teacher, or is to start from
        half of a single layer.

    Warns
    -----
    UserWarning
        If a checkpoint has fewer positions than the profile's ``max_length``, which is then lowered to them.
    """
    configs = [check_checkpoint(profile.teacher_checkpoint, with_pooler=profile.teacher_pooling == "cls")]
    if profile.student_checkpoint:
        configs.append(check_checkpoint(profile.student_checkpoint, "distilbert"))
        teacher, student = ((config.num_hidden_layers, config.hidden_size) for config in configs)
        if student[0] > teacher[0] or student[1] != teacher[1]:
            raise ValueError(
                f"{profile.student_checkpoint} has {student[0]} layers of {student[1]} dimensions, "
                f"{profile.teacher_checkpoint} {teacher[0]} of {teacher[1]}: a student learns layer by layer only "
                "what is as wide, and no shallower"
            )
    elif configs[0].num_hidden_layers < 2:
        raise ValueError(
            f"the checkpoint {profile.teacher_checkpoint} has one layer, of which a student cannot take half: "
            "choose one with two or more"
        )
    positions = min(config.max_position_embeddings for config in configs)
    if positions < profile.max_length:
        warnings.warn(
            f"texts are read as far as {positions} tokens, not {profile.max_length}: the checkpoint has no more "
            "positions",
            stacklevel=3,
        )
    return replace(profile, max_length=min(positions, profile.max_length))
