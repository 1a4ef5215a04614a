"""The whole recipe on one task, in one call."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pandas as pd
from datasets import DatasetDict
from transformers import PreTrainedModel

from kvlib.cache import disk_errors, write_aside
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
        """Scores by system: the first metric, its 95 % bootstrap interval, and the other metrics."""
        table = pd.DataFrame(self.metrics["scores"]).T
        ends = pd.DataFrame(self.metrics["intervals"], index=["95 % from", "to"]).T
        metric = self.metrics["metric"]
        return pd.concat([table[[metric]], ends, table.drop(columns=metric)], axis=1).rename(index=SYSTEMS)


def check_output(output: str | Path) -> None:
    """Refuse a folder that results cannot be written into, before anything is computed.

    Raises
    ------
    ValueError, OSError
        If a file stands where a folder is needed; if the folder cannot be written.
    """
    output = Path(output)
    for folder in (output, output / "student", *(output / system for system in COMPARED)):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file, expected a folder: choose another output")
    there = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
    with disk_errors(output, "Choose another output"), TemporaryFile(dir=there):
        pass


def distil(
    task: str | Task,
    source: str | Path | DatasetDict | None = None,
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
        Folder for ``metrics.json``, ``report.md`` and, under ``student``, the system's student with its tokenizer
        and its card for the hub; with ``system="all"`` one folder a system, with the report in it.
    system : str
        What to train, as in `systems_of`; ``"all"`` trains all on shared teachers.

    Raises
    ------
    WeakTeacherError
        If the teacher does not beat the majority class on held-out rows.
    ValueError, FileNotFoundError, OSError
        As `load_glue`, `get_profile`, `check_models`, `systems_of` and `check_output`.
    """
    systems_of(system)
    if output is not None:
        check_output(output)
    return run_recipe(Experiment(task, source, profile, seed, runs), system, output)


def run_recipe(experiment: Experiment, system: str = "bottleneck", output: str | Path | None = None) -> Distilled:
    """Train and score what `distil` does, of an experiment at hand; parameters and errors as there."""
    names = systems_of(system)
    experiment.model("teacher")  # first of all: a weak one ends the run here
    scores = experiment.scores(system)
    metrics = {
        "task": experiment.task.name,
        "system": system,
        "profile": experiment.profile.name,
        "source": experiment.source,
        "seed": experiment.seed,
        "rows": experiment.rows_used(),
        "metric": experiment.task.metrics[0],
        "scores": scores,
        "intervals": {name: list(experiment.interval(name)) for name in scores},
        "seconds": {stage: record["seconds"] for stage, record in experiment.records.items()},
        "peak_memory_mb": max(record["peak_memory_mb"] for record in experiment.records.values()),
        **describe(),
    }
    models = {name: experiment.model(name) for name in names if name not in UNTRAINED}
    result = Distilled(models, metrics)
    if output is not None and process_state().is_main_process:
        # not above: it imports matplotlib, for which every start of the library would wait
        from kvlib.recipe.report import model_card, write_report

        folders = dict(zip(COMPARED, COMPARED, strict=True)) if system == "all" else {"student": system}
        for folder, student in folders.items():
            with write_aside(Path(output) / folder) as aside:
                models[student].save_pretrained(aside)
                experiment.tokenizer.save_pretrained(aside)
                model_card(experiment, student, models[student], scores[student]).save(aside / "README.md")
            report = Path(output) / folder if system == "all" else Path(output)
            write_report(experiment, student, result.table, report)
        write_json(Path(output) / "metrics.json", metrics)
    return result


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is complete, or the old one."""
    with write_aside(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
