"""The grid of real results: every system on every task with every seed, one record a run, resumable at each."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock

from kvlib.data import TASKS
from kvlib.evaluation import key_agreement, model_size, teacher_agreement
from kvlib.machine import describe
from kvlib.recipe.distillation import write_json
from kvlib.recipe.experiment import Experiment, WeakTeacherError
from kvlib.recipe.profiles import Profile, get_profile
from kvlib.recipe.stages import SYSTEMS, needed_stages, systems_of


def gather_evidence(
    output: str | Path,
    tasks: Sequence[str],
    systems: Sequence[str] = ("all",),
    seeds: Sequence[int] = (0, 1, 2),
    source: str | Path | None = None,
    profile: str | Profile | None = None,
    max_rows: int | None = None,
    runs: str | Path | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda record: None,
) -> None:
    """Score systems on tasks with seeds and write one record a run to `output`, each as soon as it is known.

    Runs that stand in `output` are left out, so a grid that was stopped goes on where it was, and several
    processes may share one file and divide the tasks.

    Parameters
    ----------
    output : str or pathlib.Path
        A JSON file with ``settings`` and ``runs``.
    tasks : sequence of str
        GLUE names.
    systems : sequence of str
        As in `systems_of`; their teachers and all baselines come along.
    seeds : sequence of int
        Seeds for everything random.
    source, profile, max_rows, runs
        As in `Experiment`.
    tell : callable
        Called with each new record.

    Raises
    ------
    ValueError
        As `read_grid`, or if a name is unknown.
    """
    output, profile = Path(output), profile if isinstance(profile, Profile) else get_profile(profile)
    wanted = {name for system in systems for name in systems_of(system)}
    names = [name for name in SYSTEMS if name in wanted]
    settings = grid_settings(profile, source, max_rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    _add(output, settings)
    for seed in seeds:
        for task in tasks:
            runs_so_far = read_grid(output, settings)["runs"]
            done = {run["system"] for run in runs_so_far if (run["task"], run["seed"]) == (task, seed)}
            missing = [name for name in names if name not in done]
            if not missing:
                continue
            experiment = Experiment(task, source, profile, seed, runs, max_rows)
            for name in missing:
                record = run_once(experiment, name)
                _add(output, settings, record)
                tell(record)


def run_once(experiment: Experiment, system: str) -> dict[str, Any]:
    """Train what `system` needs, score it on the validation split, and say what it took.

    Returns
    -------
    dict
        ``metrics`` is None, and ``refused`` says why, where the teacher is too weak to distil.
    """
    task = experiment.task.name
    rows = experiment.rows_used()
    record: dict[str, Any] = {
        "task": task,
        "system": system,
        "seed": experiment.seed,
        "rows": rows,
        "subset": rows["train"] < experiment.task.official_rows[0],
    }
    try:
        record["metrics"] = experiment.score(system)
    except WeakTeacherError as error:
        return record | {"metrics": None, "refused": str(error)} | describe()
    stages = {name: experiment.records[name] for name in needed_stages(system)}
    record["stages"] = stages
    record["seconds"] = sum(stage["seconds"] for stage in stages.values())
    record["peak_memory_mb"] = max((stage["peak_memory_mb"] for stage in stages.values()), default=None)
    if stages:
        model = experiment.model(system)
        # in training mode the encoder behind a bottleneck is frozen: count what stage 3 trains
        record["size"] = model_size(model.train())
        model.eval()
        record["agreement"] = _agreement(experiment, system)
    if system in ("new-keys", "carried-keys"):
        record["keys"] = _keys_beside_the_teachers(experiment, system)
    return record | describe()


def _agreement(experiment: Experiment, system: str) -> dict[str, float] | None:
    split = experiment.task.validation[0]
    try:
        theirs = experiment.predictions("teacher", split)
    except WeakTeacherError:
        return None
    return teacher_agreement(theirs, experiment.predictions(system, split))


def _keys_beside_the_teachers(experiment: Experiment, system: str) -> dict[str, Any]:
    """Compare a student's keys with its teacher's on held-out rows; the agreement of new keys is chance."""
    teacher, student = experiment.model("teacher-bottleneck"), experiment.model(system)
    with experiment.precision():
        agreement, error = key_agreement(teacher, student, experiment.held_out)
    return {
        "agreement": float(agreement.mean()),
        "agreement_by_codebook": np.round(agreement, 4).tolist(),
        "quantization_error": float(error.mean()),
    }


def grid_settings(profile: Profile, source: str | Path | None, max_rows: int | None) -> dict[str, Any]:
    """Return what all records of one file have in common, as JSON gives it back."""
    settings = {"profile": asdict(profile), "source": str(source or profile.source), "max_rows": max_rows}
    return json.loads(json.dumps(settings))


def read_grid(output: str | Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Read the file of a grid, or start one; raise ValueError if it is none, or was made with other settings."""
    output = Path(output)
    if not output.exists():
        return {"settings": settings, "runs": []}
    try:
        content = json.loads(output.read_text(encoding="utf-8"))
        found, _ = content["settings"], content["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{output} is no file of results ({error}): name another one, or delete it") from error
    if found != settings:
        differing = [name for name, value in settings.items() if found.get(name) != value]
        raise ValueError(
            f"{output} holds runs made with another {' and '.join(differing)}: name another file, or delete it"
        )
    return content


def _add(output: Path, settings: dict[str, Any], record: dict[str, Any] | None = None) -> None:
    """Add a record, or only check the settings; other processes wait meanwhile."""
    with FileLock(output.with_name(f".{output.name}.lock")):
        content = read_grid(output, settings)
        if record is not None:
            content["runs"].append(record)
        systems = list(SYSTEMS)
        content["runs"].sort(
            key=lambda run: (list(TASKS).index(run["task"]), run["seed"], systems.index(run["system"]))
        )
        write_json(output, content)


def read_evidence(path: str | Path) -> pd.DataFrame:
    """Read a results file: one row a run: ``task``, ``system``, ``seed``, and ``score``, the first metric.

    Runs whose teacher was refused have NaN.
    """
    runs = json.loads(Path(path).read_text(encoding="utf-8"))["runs"]
    scores = [run["metrics"][TASKS[run["task"]].metrics[0]] if run["metrics"] else np.nan for run in runs]
    return pd.DataFrame(
        {name: [run[name] for run in runs] for name in ("task", "system", "seed")} | {"score": scores}
    )


def evidence_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Turn `read_evidence` into mean ± standard deviation over seeds, × 100: systems by tasks."""
    groups = 100 * runs.pivot_table("score", ["system", "seed"], "task").groupby("system").agg(["mean", "std"])
    tasks = [task for task in TASKS if task in groups.columns.get_level_values(0)]
    table = pd.DataFrame(
        {
            f"{task} ({TASKS[task].metrics[0]})": [
                mean_and_spread(mean, std)
                for mean, std in zip(groups[task, "mean"], groups[task, "std"], strict=True)
            ]
            for task in tasks
        },
        index=groups.index,
    )
    ordered = [system for system in SYSTEMS if system in table.index]
    return table.loc[ordered].rename(index=SYSTEMS)


def mean_and_spread(mean: float, std: float, digits: int = 1) -> str:
    """Write mean ± standard deviation, the mean alone where there is no spread, a dash where there is neither."""
    if np.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" if np.isnan(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"


def kept_share(runs: pd.DataFrame, system: str, of: str = "teacher") -> pd.Series:
    """Say what share of another's score a system keeps: the ratio of means over tasks, one number a seed.

    Seeds that lack a run of either system are left out; so are tasks whose teacher was refused.
    """
    names = list(dict.fromkeys((system, of)))
    scores = runs.pivot(index=["seed", "task"], columns="system", values="score")[names]
    found = runs[runs["system"].isin(names)].groupby("seed").size()
    means = scores.dropna().groupby("seed").mean()
    share = means[system] / means[of]
    return share[found.loc[share.index] == len(names) * runs["task"].nunique()]


def kept_above(runs: pd.DataFrame, system: str, floor: str = "majority", of: str = "teacher") -> pd.Series:
    """Say what share of the distance from a floor to another's score a system keeps, one number a seed.

    Of means over tasks: ``(system - floor) / (of - floor)``. Seeds and tasks are left out as in `kept_share`.
    """
    share, start = kept_share(runs, system, of), kept_share(runs, floor, of)
    return ((share - start) / (1 - start)).dropna()
