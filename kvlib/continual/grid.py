"""The grid of continual learning: every stream, learner and class order, one record a run, resumable at each."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import DatasetDict
from filelock import FileLock

from kvlib.cache import write_aside
from kvlib.continual.in_turn import distil_in_turn
from kvlib.continual.measures import MEASURES
from kvlib.continual.streams import Setting, digits, learners, run_learner, shapes_of_the_bottleneck, topics, toy
from kvlib.continual.study import suppress_each_class
from kvlib.data import Task
from kvlib.machine import describe
from kvlib.recipe.evidence import mean_and_spread
from kvlib.recipe.experiment import Experiment

STREAMS: dict[str, Callable[[int], Setting]] = {"toy": toy, "digits": digits, "topics": topics}
# every classification task of mini GLUE
GLUE_TASKS = ("sst2", "cola", "mrpc", "qqp", "mnli", "qnli", "rte")
_GLUE_STUDENTS = (
    "encoder, task after task",
    "encoder, all tasks at once",
    "values, first encoder",
    "values, pretrained encoder",
)
Jobs = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def gather_continual(
    output: str | Path,
    streams: Sequence[str] = (*STREAMS, "glue"),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    runs: str | Path | None = None,
    own: tuple[Task, DatasetDict] | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda record: None,
) -> None:
    """Run learners on streams with seeds and write one record a run to `output`, each as soon as it is known.

    Runs that stand in `output` are left out; several processes may share one file and divide streams or seeds.

    Parameters
    ----------
    output : str or pathlib.Path
        A JSON file with ``runs``.
    streams : sequence of str
        Of `STREAMS`, and ``"glue"``; a name that is none of them is that of `own`.
    seeds : sequence of int
        Seeds for the order of the classes or tasks and all else that is random.
    runs : str or pathlib.Path, optional
        Folder of the teachers of ``"glue"``, as in `Experiment`.
    own : Task and datasets.DatasetDict, optional
        As `load_task` returns them.
    tell : callable
        Called with each new record.
    """
    output = Path(output)
    for seed in seeds:
        for stream in streams:
            jobs = _glue_jobs(seed, runs) if stream == "glue" else _class_jobs(stream, seed, own)
            for learner, run in jobs:
                key = {"stream": stream, "learner": learner, "seed": seed}
                if not any(key.items() <= record.items() for record in read_continual(output)):
                    record = key | run() | describe()
                    _add(output, record)
                    tell(record)


def _class_jobs(name: str, seed: int, own: tuple[Task, DatasetDict] | None) -> Jobs:
    setting = STREAMS[name](seed) if name in STREAMS else topics(seed, *own)
    for learner, (make, chooser) in learners(name, setting, seed).items():
        yield learner, partial(run_learner, make, chooser, setting.stream)
    if name in ("digits", "topics"):
        for learner, (make, chooser) in shapes_of_the_bottleneck(name, setting, seed).items():
            yield learner, partial(run_learner, make, chooser, setting.stream, in_hindsight=False)
    if name == "topics":
        yield "suppression", partial(suppress_each_class, setting, seed)


def _glue_jobs(seed: int, runs: str | Path | None) -> Jobs:
    order = [GLUE_TASKS[place] for place in np.random.default_rng(seed).permutation(len(GLUE_TASKS))]
    found: dict[str, dict[str, Any]] = {}

    def run(name: str) -> dict[str, Any]:
        if not found:
            found.update(distil_in_turn([Experiment(task, "mini", "quick", runs=runs) for task in order], seed))
        return found[name]

    for name in _GLUE_STUDENTS:
        yield name, partial(run, name)


def read_continual(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of a file, none if there is no file; raise ValueError if it is another kind of file."""
    if not Path(path).exists():
        return []
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of results ({error}): name another one, or delete it") from error


def _add(output: Path, record: dict[str, Any]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output.with_name(f".{output.name}.lock")):
        found = [*read_continual(output), record]
        found.sort(key=lambda run: (run["stream"], run["seed"]))
        with write_aside(output) as temporary:
            # a record a line
            lines = ",\n".join(json.dumps(record) for record in found)
            temporary.write_text(f'{{"runs": [\n{lines}\n]}}\n', encoding="utf-8")


def continual_table(path: str | Path, stream: str) -> pd.DataFrame:
    """Return mean and standard deviation over seeds of every measure, × 100: one row a learner of a stream.

    Columns are pairs of a name and ``mean`` or ``std``: the `MEASURES`; ``at the best rate``, the final accuracy
    with the one learning rate that is best in hindsight; ``seconds a task``; ``MB kept`` from task to task. Raises
    ValueError if the file has no such stream.
    """
    rows, by_rate = [], []
    for run in read_continual(path):
        if run["stream"] == stream and "matrix" in run:
            row = {"learner": run["learner"]}
            row |= {name: 100 * measure(np.array(run["matrix"])) for name, measure in MEASURES.items()}
            if "seconds" in run:
                row |= {"seconds a task": np.mean(run["seconds"]), "MB kept": run["kept_mb"]}
                by_rate += [(run["learner"], rate, 100 * a) for rate, a in run["final_accuracy_by_rate"].items()]
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no runs of the stream {stream}")
    table = pd.DataFrame(rows).groupby("learner", sort=False).agg(["mean", "std"])
    if by_rate:
        rates = pd.DataFrame(by_rate, columns=["learner", "rate", "accuracy"]).groupby(["learner", "rate"])
        rates = rates["accuracy"].agg(["mean", "std"])
        best = rates.loc[rates["mean"].groupby("learner").idxmax()].droplevel("rate")
        for part in ("mean", "std"):
            table["at the best rate", part] = best[part]
    return table


def continual_summary(path: str | Path, stream: str) -> pd.DataFrame:
    """Return `continual_table` to read: mean ± standard deviation, a dash where there is nothing to say."""
    table = continual_table(path, stream)
    names = ["final accuracy", "at the best rate", *list(MEASURES)[1:], "seconds a task", "MB kept"]
    shown = {}
    for name in names:
        if name in table.columns.get_level_values(0):
            digits = 2 if name in ("seconds a task", "MB kept") else 1
            spread = table[name, "std"] if digits == 1 else table[name, "std"] * np.nan
            shown[name] = [
                mean_and_spread(mean, std, digits) for mean, std in zip(table[name, "mean"], spread, strict=True)
            ]
    return pd.DataFrame(shown, index=table.index)


def suppression_summary(path: str | Path) -> pd.DataFrame:
    """Return what each way of suppressing a class does, mean ± standard deviation over all classes and seeds."""
    found = [one for run in read_continual(path) if run["learner"] == "suppression" for one in run["classes"]]
    rows = {}
    for way in found[0]["ways"]:
        frame = pd.DataFrame([one["ways"][way] for one in found])
        frame[["forgotten", "others"]] *= 100
        rows[way] = [
            *(mean_and_spread(frame[name].mean(), frame[name].std()) for name in ("forgotten", "others")),
            f"{frame['pairs'].mean():,.0f}",
            f"{frame['seconds'].mean():.2f}",
        ]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["forgotten class", "others", "pairs", "seconds"])
