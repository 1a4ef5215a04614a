"""The table of the recipe: what each stage starts from, who teaches it, and on what it trains."""

from dataclasses import dataclass
from typing import Literal

# Raise it when what a stage computes changes: finished stages of another format are then trained anew.
STAGE_FORMAT = 4

# scored, but not trained
UNTRAINED = {
    "majority": "majority class",
    "tfidf": "TF-IDF + linear model",
    "linear-probe": "linear probe on the pretrained student",
}


@dataclass(frozen=True)
class Stage:
    """One training run.

    Parameters
    ----------
    name : str
        In files, tables of numbers and on the command line.
    title : str
        In tables to read; empty for a stage that is only on the way to another and not scored.
    start : str
        How the model is made, one of `kvlib.recipe.experiment.STARTS`.
    source : str, optional
        The stage whose model it starts from; by default pretrained weights.
    teacher : str, optional
        The stage whose logits or hidden states it learns from; by default it learns from the labels alone.
    trains_on : {"tokens", "fresh text", "key indices"}
        Tokens, through the encoder; with fresh text among them, on the teacher's hidden states; or the key
        indices of a frozen encoder.
    schedule : {"teacher", "layer", "student", "bottleneck"}
        Which epochs and learning rate of the profile it takes.
    learning_rate, alpha : float, optional
        In place of the profile's.
    aligns : bool
        Align the hidden states to the teacher's keys, beside learning its logits.
    role : {"baseline", "control", "compared", "teacher"}
        Baselines stand beside every system; the compared ones are what the recipe is for, and controls say what
        of it does what.
    """

    name: str
    title: str
    start: str
    source: str | None = None
    teacher: str | None = None
    trains_on: Literal["tokens", "fresh text", "key indices"] = "tokens"
    schedule: Literal["teacher", "layer", "student", "bottleneck"] = "student"
    learning_rate: float | None = None
    alpha: float | None = None
    aligns: bool = False
    role: Literal["baseline", "control", "compared", "teacher"] = "compared"


_ON_KEYS = {"trains_on": "key indices", "schedule": "bottleneck"}
_ON_STATES = {"trains_on": "fresh text", "schedule": "layer"}
# in the order of the tables
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "undistilled", "bottleneck on the pretrained student", "discretised pretrained student",
            teacher="teacher", role="baseline", **_ON_KEYS,
        ),
        Stage("fine-tuned", "student without teacher", "pretrained student", role="baseline"),
        Stage(
            "labels-only", "teacher's layers, labels only", "teacher's layers", source="teacher", role="control",
        ),
        Stage(
            "logits-only", "teacher's layers, logits only", "teacher's layers",
            source="teacher", teacher="teacher", alpha=1.0, role="control",
        ),
        Stage(
            "logits-and-labels", "teacher's layers, logits and labels", "teacher's layers",
            source="teacher", teacher="teacher", role="control",
        ),
        Stage("teacher", "teacher", "pretrained teacher", schedule="teacher", role="teacher"),
        Stage("layers", "", "teacher's layers", source="teacher", teacher="teacher", **_ON_STATES),
        Stage("distilbert", "distilled student", "copy", source="layers", teacher="teacher"),
        Stage(
            "retrained-head", "distilled student, head retrained", "new head",
            source="distilbert", teacher="teacher", schedule="bottleneck", learning_rate=1e-2, role="control",
        ),
        Stage(
            "bottleneck", "distilled student with bottleneck", "discretised",
            source="distilbert", teacher="teacher", **_ON_KEYS,
        ),
        Stage("more-layers", "", "more layers", source="teacher", teacher="teacher", **_ON_STATES),
        Stage(
            "deeper", "distilled student of two thirds of the layers", "copy",
            source="more-layers", teacher="teacher", role="control",
        ),
        Stage(
            "teacher-bottleneck", "teacher with bottleneck", "discretised teacher",
            source="teacher", role="teacher", **_ON_KEYS,
        ),
        Stage("taught-by-bottleneck", "", "copy", source="layers", teacher="teacher-bottleneck"),
        Stage(
            "new-keys", "its student with bottleneck, new keys", "discretised",
            source="taught-by-bottleneck", teacher="teacher-bottleneck", **_ON_KEYS,
        ),
        Stage("aligned", "", "copy", source="layers", teacher="teacher-bottleneck", aligns=True),
        Stage(
            "carried-keys", "its student with bottleneck, carried keys", "carried keys",
            source="aligned", teacher="teacher-bottleneck", **_ON_KEYS,
        ),
    )
}  # fmt: skip
# what is scored, by name its title in tables, in their order
SYSTEMS = UNTRAINED | {stage.name: stage.title for stage in STAGES.values() if stage.title}
BASELINES = (*UNTRAINED, *(stage.name for stage in STAGES.values() if stage.role == "baseline"))
CONTROLS = tuple(stage.name for stage in STAGES.values() if stage.role == "control")
COMPARED = tuple(stage.name for stage in STAGES.values() if stage.role == "compared" and stage.title)


def needed_stages(system: str) -> list[str]:
    """Return the stages that one of `SYSTEMS` needs, itself last; none for what is not trained."""
    if system in UNTRAINED:
        return []
    stage = STAGES[system]
    before = [name for parent in (stage.source, stage.teacher) if parent for name in needed_stages(parent)]
    return [*dict.fromkeys(before), system]


def systems_of(system: str) -> list[str]:
    """Return what is scored for a compared system or a control; for ``"all"`` everything.

    Raises ValueError for any other name.
    """
    if system == "all":
        return list(SYSTEMS)
    if system not in (*COMPARED, *CONTROLS):
        raise ValueError(f"unknown system {system!r}: choose one of {', '.join((*COMPARED, *CONTROLS))}, all")
    wanted = {*BASELINES, *needed_stages(system)}
    return [name for name in SYSTEMS if name in wanted]
