"""The whole recipe on one task, in one call."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from kvlib.cache import write_aside
from kvlib.data import Task
from kvlib.machine import describe, process_state
from kvlib.recipe.experiment import Experiment
from kvlib.recipe.profiles import Profile
from kvlib.recipe.stages import COMPARED, SYSTEMS, UNTRAINED, systems_of


@dataclass(frozen=True)
class Distilled:
    """What `distil` returns.

    Parameters
    ----------
    models : dict of str to PreTrainedModel
        The trained models by system, as in `SYSTEMS`: teachers, students and baselines.
    metrics : dict
        What ``metrics.json`` holds.
    """

    models: dict[str, PreTrainedModel]
    metrics: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """Scores by system, one column a metric."""
        return pd.DataFrame(self.metrics["scores"]).T.rename(index=SYSTEMS)


def distil(
    task: str | Task,
    source: str | Path | None = None,
    profile: str | Profile | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    runs: str | Path | None = None,
    system: str = "bottleneck",
) -> Distilled:
    """Run the whole recipe on one task: teach, distil, discretise, score.

    Stages that an earlier call finished with the same data, settings and seed are read from `runs`; one that was
    killed goes on from its last checkpoint.

    Parameters
    ----------
    task, source, profile, seed, runs
        As in `Experiment`.
    output : str or pathlib.Path, optional
        Folder for ``metrics.json`` and, under ``student``, the system's student with its tokenizer; with
        ``system="all"`` one folder a system.
    system : {"distilbert", "bottleneck", "new-keys", "carried-keys", "all"}
        What to train; ``"all"`` trains the four on shared teachers.

    Raises
    ------
    WeakTeacherError
        If the teacher does not beat the majority class on held-out rows.
    ValueError, FileNotFoundError
        As `load_glue`, `get_profile` and `systems_of`.
    """
    names = systems_of(system)
    experiment = Experiment(task, source, profile, seed, runs)
    experiment.model("teacher")  # first of all: a weak one ends the run here
    scores = experiment.scores(system)
    metrics = {
        "task": experiment.task.name,
        "system": system,
        "profile": experiment.profile.name,
        "source": experiment.source,
        "seed": seed,
        "rows": experiment.rows_used(),
        "scores": scores,
        "seconds": {stage: record["seconds"] for stage, record in experiment.records.items()},
        "peak_memory_mb": max(record["peak_memory_mb"] for record in experiment.records.values()),
        **describe(),
    }
    models = {name: experiment.model(name) for name in names if name not in UNTRAINED}
    if output is not None and process_state().is_main_process:
        folders = dict(zip(COMPARED, COMPARED, strict=True)) if system == "all" else {"student": system}
        for folder, student in folders.items():
            models[student].save_pretrained(Path(output) / folder)
            experiment.tokenizer.save_pretrained(Path(output) / folder)
        write_json(Path(output) / "metrics.json", metrics)
    return Distilled(models, metrics)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is complete, or the old one."""
    with write_aside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
