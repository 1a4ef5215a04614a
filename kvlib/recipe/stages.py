"""The table of the recipe: what each stage starts from, who teaches it, and on what it trains."""

from dataclasses import dataclass
from typing import Literal

# Raise it when what a stage computes changes: finished stages of another format are then trained anew.
STAGE_FORMAT = 3

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
        The stage whose logits it learns from; by default it learns from the labels alone.
    trains_on : {"tokens", "key indices"}
        Tokens, through the encoder; or the key indices of a frozen encoder.
    schedule : {"teacher", "student", "bottleneck"}
        Which epochs and learning rate of the profile it takes.
    hidden_loss : {"cosine", "alignment"}, optional
        A loss on the hidden states of the teacher's encoder, beside that on its logits.
    role : {"baseline", "compared", "teacher"}
        Baselines stand beside every system; the compared ones are what the recipe is for.
    """

    name: str
    title: str
    start: str
    source: str | None = None
    teacher: str | None = None
    trains_on: Literal["tokens", "key indices"] = "tokens"
    schedule: Literal["teacher", "student", "bottleneck"] = "student"
    hidden_loss: Literal["cosine", "alignment"] | None = None
    role: Literal["baseline", "compared", "teacher"] = "compared"


_ON_KEYS = {"trains_on": "key indices", "schedule": "bottleneck"}
# in the order of the tables
STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "undistilled", "bottleneck on the pretrained student", "discretised pretrained student",
            teacher="teacher", role="baseline", **_ON_KEYS,
        ),
        Stage("fine-tuned", "student without teacher", "pretrained student", role="baseline"),
        Stage("teacher", "teacher", "pretrained teacher", schedule="teacher", role="teacher"),
        Stage(
            "distilbert", "distilled student", "teacher's layers",
            source="teacher", teacher="teacher", hidden_loss="cosine",
        ),
        Stage(
            "bottleneck", "distilled student with bottleneck", "discretised",
            source="distilbert", teacher="teacher", **_ON_KEYS,
        ),
        Stage(
            "teacher-bottleneck", "teacher with bottleneck", "discretised teacher",
            source="teacher", role="teacher", **_ON_KEYS,
        ),
        Stage(
            "taught-by-bottleneck", "", "teacher's layers",
            source="teacher", teacher="teacher-bottleneck", hidden_loss="cosine",
        ),
        Stage(
            "new-keys", "its student with bottleneck, new keys", "discretised",
            source="taught-by-bottleneck", teacher="teacher-bottleneck", **_ON_KEYS,
        ),
        Stage(
            "aligned", "", "teacher's layers and last layer norm",
            source="teacher", teacher="teacher-bottleneck", hidden_loss="alignment",
        ),
        Stage(
            "carried-keys", "its student with bottleneck, carried keys", "carried keys",
            source="aligned", teacher="teacher-bottleneck", **_ON_KEYS,
        ),
    )
}  # fmt: skip
# what is scored, by name its title in tables, in their order
SYSTEMS = UNTRAINED | {stage.name: stage.title for stage in STAGES.values() if stage.title}
BASELINES = (*UNTRAINED, *(stage.name for stage in STAGES.values() if stage.role == "baseline"))
COMPARED = tuple(stage.name for stage in STAGES.values() if stage.role == "compared" and stage.title)


def needed_stages(system: str) -> list[str]:
    """Return the stages that one of `SYSTEMS` needs, itself last; none for what is not trained."""
    if system in UNTRAINED:
        return []
    stage = STAGES[system]
    before = [name for parent in (stage.source, stage.teacher) if parent for name in needed_stages(parent)]
    return [*dict.fromkeys(before), system]


def systems_of(system: str) -> list[str]:
    """Return what is scored for a compared system, or for ``"all"``; raise ValueError for any other name."""
    if system not in ("all", *COMPARED):
        raise ValueError(f"unknown system {system!r}: choose one of {', '.join(COMPARED)}, all")
    chosen = COMPARED if system == "all" else (system,)
    wanted = {*BASELINES, *(name for one in chosen for name in needed_stages(one))}
    return [name for name in SYSTEMS if name in wanted]
