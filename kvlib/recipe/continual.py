"""The grid of continual learning: every stream, learner and class order, one record a run, resumable at each."""

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from datasets import DatasetDict
from filelock import FileLock
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from kvlib.cache import write_aside
from kvlib.continual import (
    MEASURES,
    Examples,
    GradientLearner,
    Stream,
    Values,
    bottleneck_learner,
    choose_learning_rate,
    fired_keys,
    fitted_bottleneck,
    run_stream,
    selected_pairs,
)
from kvlib.data import CustomDataset, Task
from kvlib.loss import distillation_loss
from kvlib.machine import describe
from kvlib.recipe.experiment import Experiment
from kvlib.recipe.streams import (
    EPOCHS,
    SHAPES,
    Setting,
    digits,
    learners,
    run_learner,
    shapes_of_the_bottleneck,
    topics,
    toy,
)
from kvlib.student import DistilBERTwithBottleNeck, pool_real_tokens
from kvlib.suppression import ascend, pairs_to_suppress, steps_to_relearn, switched_off
from kvlib.training import LazyAdam

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
        yield "suppression", partial(suppression, setting, seed)


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
                _shown(mean, std, digits) for mean, std in zip(table[name, "mean"], spread, strict=True)
            ]
    return pd.DataFrame(shown, index=table.index)


def _shown(mean: float, std: float, digits: int) -> str:
    if np.isnan(mean):
        return "–"
    # one seed has no spread
    return f"{mean:.{digits}f}" if np.isnan(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"


def suppression_summary(path: str | Path) -> pd.DataFrame:
    """Return what each way of suppressing a class does, mean ± standard deviation over all classes and seeds."""
    found = [one for run in read_continual(path) if run["learner"] == "suppression" for one in run["classes"]]
    rows = {}
    for way in found[0]["ways"]:
        frame = pd.DataFrame([one["ways"][way] for one in found])
        frame[["forgotten", "others"]] *= 100
        rows[way] = [
            *(_shown(frame[name].mean(), frame[name].std(), 1) for name in ("forgotten", "others")),
            f"{frame['pairs'].mean():,.0f}",
            f"{frame['seconds'].mean():.2f}",
        ]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["forgotten class", "others", "pairs", "seconds"])


def suppression(setting: Setting, seed: int) -> dict[str, Any]:
    """Suppress each class in turn in a bottleneck that has learnt all of them, in four ways, and question it.

    Accuracies are those on test rows. Ways: ``pairs`` switches off the class's most used pairs and ``pairs of
    examples`` all pairs of as many of its training rows as it takes; ``logit`` masks the class's logit; ``ascent``
    climbs the loss. Beside them ``before``, and ``without``, the bottleneck trained without the class.
    """
    stream, shape = setting.stream, SHAPES["topics"]
    bottleneck = fitted_bottleneck(setting.key_states["oracle"], stream.num_classes, *shape, seed=seed)
    make = partial(bottleneck_learner, bottleneck, epochs=EPOCHS["topics"], seed=seed)
    at_once = Stream(stream.train, stream.test, (tuple(range(stream.num_classes)),))
    rate = choose_learning_rate(make, stream)
    learner = make(rate)
    run_stream(learner, at_once)
    x, test = learner.prepare(stream.train), learner.prepare(stream.test)
    classes = [
        _suppress_one(learner.model, make(rate), x, stream.train.labels, test, stream.test.labels, wanted, rate)
        for wanted in range(stream.num_classes)
    ]
    return {"learning_rate": rate, "classes": classes}


def _suppress_one(
    values: Values,
    untrained: GradientLearner,
    x: Tensor,
    labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    wanted: int,
    rate: float,
) -> dict[str, Any]:
    size, own, others = values.bottleneck.codebook_size, labels == wanted, labels != wanted
    counts = selected_pairs(x, size)
    found: dict[str, Any] = {"class": wanted, "ways": {}}

    def note(name: str, answers: Tensor, changed: int, seconds: float) -> None:
        right, of_class = (answers == test_labels).double(), test_labels == wanted
        found["ways"][name] = {
            "forgotten": float(right[of_class].mean()),
            "others": float(right[~of_class].mean()),
            "pairs": changed,
            "seconds": seconds,
        }

    def timed(run: Callable[[], Any]) -> tuple[Any, float]:
        begun = time.perf_counter()
        return run(), time.perf_counter() - begun

    note("before", values(test).argmax(1), 0, 0.0)
    off, seconds = timed(lambda: pairs_to_suppress(values, x, labels, wanted))
    note("pairs", switched_off(values, test, off), int(off.sum()), seconds)
    by_examples, seconds = timed(lambda: _pairs_of_examples(values, x[own], wanted))
    note("pairs of examples", switched_off(values, test, by_examples), int(by_examples.sum()), seconds)
    logits = values(test).detach()
    logits[:, wanted] = -torch.inf
    note("logit", logits.argmax(1), 0, 0.0)
    (climbed, steps), seconds = timed(lambda: ascend(values, x, labels, wanted, rate))
    moved = (climbed.bottleneck.values != values.bottleneck.values).any(-1)
    note("ascent", climbed(test).argmax(1), int(moved.sum()), seconds)
    _, seconds = timed(lambda: untrained.learn(x[others], labels[others]))
    without = untrained.model
    note("without", without(test).argmax(1), int((counts > 0).sum()), seconds)

    suppressed = copy.deepcopy(values)
    with torch.no_grad():
        suppressed.bottleneck.values[off] = 0.0
    nearest = max(
        range(int(labels.max()) + 1), key=lambda c: -1 if c == wanted else _similarity(x, labels, wanted, c, size)
    )
    answers = {"before": values(test).argmax(1), "pairs": switched_off(values, test, off)}
    of_nearest = test_labels == nearest
    found |= {
        "ascent_steps": steps,
        # do the class's rows go where they go without the class?
        "same_answer_as_without": {
            "pairs": float((answers["pairs"] == without(test).argmax(1))[test_labels == wanted].double().mean()),
            "logit": float((logits.argmax(1) == without(test).argmax(1))[test_labels == wanted].double().mean()),
        },
        "probe": {
            "all pairs": _probe(x, labels, test, test_labels, wanted, torch.zeros_like(off)),
            "pairs left": _probe(x, labels, test, test_labels, wanted, off),
        },
        "membership_auc": {
            name: _membership(model, x[own], test[test_labels == wanted], wanted)
            for name, model in (("before", values), ("pairs", suppressed), ("without", without))
        },
        "steps_to_relearn": {
            name: steps_to_relearn(model, x, labels, wanted, rate)
            for name, model in (("pairs", suppressed), ("ascent", climbed), ("without", without))
        },
        "nearest_class": nearest,
        "accuracy_of_nearest": {
            name: float((answer == test_labels)[of_nearest].double().mean()) for name, answer in answers.items()
        },
    }
    return found


def _pairs_of_examples(values: Values, own: Tensor, wanted: int) -> Tensor:
    size = values.bottleneck.codebook_size
    for number in range(1, len(own) + 1):
        off = selected_pairs(own[:number], size) > 0
        if not (switched_off(values, own, off) == wanted).any():
            break
    return off


def _similarity(x: Tensor, labels: Tensor, first: int, second: int, size: int) -> float:
    a, b = (selected_pairs(x[labels == label], size).double().flatten() for label in (first, second))
    return float(a @ b / (a.norm() * b.norm()))


def _probe(x: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, wanted: int, off: Tensor) -> float:
    """Ask a linear probe on the keys that still fire for the class: area under the ROC curve on test rows."""

    def bags(keys: Tensor) -> sparse.csr_matrix:
        codebooks = torch.arange(off.shape[0])
        here = (keys >= 0) & ~off[codebooks, keys.clamp_min(0)]
        row, _, codebook = here.nonzero(as_tuple=True)
        shape = (len(keys), off.numel())
        column = codebook * off.shape[1] + keys[here]
        return sparse.csr_matrix((np.ones(len(row)), (row.numpy(), column.numpy())), shape)

    probe = LogisticRegression(max_iter=1000, class_weight="balanced").fit(bags(x), labels == wanted)
    return float(roc_auc_score(test_labels == wanted, probe.decision_function(bags(test))))


@torch.no_grad()
def _membership(model: nn.Module, members: Tensor, strangers: Tensor, wanted: int) -> float:
    """Tell training rows of a class from its test rows by their loss: area under the ROC curve, 0.5 is chance."""
    losses = [
        F.cross_entropy(model(part), torch.full((len(part),), wanted), reduction="none")
        for part in (members, strangers)
    ]
    known = [True] * len(members) + [False] * len(strangers)
    return float(roc_auc_score(known, -torch.cat(losses).numpy()))


def _glue_jobs(seed: int, runs: str | Path | None) -> Jobs:
    order = [GLUE_TASKS[place] for place in np.random.default_rng(seed).permutation(len(GLUE_TASKS))]
    found: dict[str, dict[str, Any]] = {}

    def run(name: str) -> dict[str, Any]:
        if not found:
            found.update(distil_in_turn([Experiment(task, "mini", "quick", runs=runs) for task in order], seed))
        return found[name]

    for name in _GLUE_STUDENTS:
        yield name, partial(run, name)


class _Student(nn.Module):
    """A pretrained student's encoder and one linear head for the labels of all tasks."""

    def __init__(self, encoder: DistilBERTwithBottleNeck, num_labels: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.dim, num_labels)

    def forward(self, dataset: CustomDataset, rows: Sequence[int]) -> Tensor:
        batch = dataset.collate([dataset[int(row)] for row in rows])
        states, mask = self.encoder.encode(batch["input_ids"], batch["attention_mask"])
        return self.head(pool_real_tokens(states, mask))


def distil_in_turn(experiments: Sequence[Experiment], seed: int) -> dict[str, dict[str, Any]]:
    """Distil the teachers of several tasks into one student: one after another, or all at once.

    Returns a record for each of four students. Two train the encoder, under one linear head with logits for each
    task. Two leave it frozen and train values for each task, behind keys fitted on the first one's texts: the
    pretrained encoder, and that of the student after the first task. R is the accuracy on validation rows with the
    task's own logits.
    """
    tasks = {experiment.task.name: experiment for experiment in experiments}
    order, profile, total, blocks = list(tasks), experiments[0].profile, 0, {}
    for name in order:
        blocks[name] = slice(total, total + tasks[name].task.num_labels)
        total += tasks[name].task.num_labels
    torch.manual_seed(seed)
    encoder = DistilBERTwithBottleNeck.from_teacher(tasks[order[0]].start("teacher")).cpu().eval()
    student = _Student(encoder, total)
    generator = torch.Generator().manual_seed(seed)

    def distil(
        call: Callable[[str, Tensor], Tensor], optimizer: torch.optim.Optimizer, names: Sequence[str], epochs: int
    ) -> None:
        for _ in range(epochs):
            parts = [
                (name, rows)
                for name in names
                for rows in torch.randperm(len(tasks[name].train), generator=generator).split(profile.batch_size)
            ]
            for place in torch.randperm(len(parts), generator=generator).tolist():
                name, rows = parts[place]
                optimizer.zero_grad()
                logits = call(name, rows)[:, blocks[name]]
                labels = torch.tensor(tasks[name].train.labels)[rows]
                taught = tasks[name].teacher_logits[rows]
                distillation_loss(logits, taught, labels, profile.temperature, profile.alpha).backward()
                optimizer.step()

    @torch.no_grad()
    def accuracy(name: str, call: Callable[[CustomDataset, Tensor], Tensor]) -> float:
        split = tasks[name].validation[tasks[name].task.validation[0]]
        logits = torch.cat([call(split, rows) for rows in torch.arange(len(split)).split(64)])[:, blocks[name]]
        return float((logits.argmax(1) == torch.tensor(split.labels)).double().mean())

    def train_encoder(model: _Student, names: Sequence[str]) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=profile.student_learning_rate)
        distil(lambda name, rows: model(tasks[name].train, rows), optimizer, names, profile.student_epochs)

    def train_values(frozen: DistilBERTwithBottleNeck) -> np.ndarray:
        """Train values for each task in turn, the keys fitted on the first one's texts."""
        bottleneck = fitted_bottleneck(
            frozen.sample_states(tasks[order[0]].train), total, profile.num_codebooks, profile.codebook_size, seed
        )
        values, keys, matrix = Values(bottleneck), {}, np.zeros((len(order), len(order)))

        @torch.no_grad()
        def fired(split: CustomDataset) -> Tensor:
            if id(split) not in keys:
                states = torch.cat(list(frozen.hidden_states(split))).split(split.lengths.tolist())
                keys[id(split)] = fired_keys(bottleneck, Examples(torch.tensor(split.labels), states[0], states))
            return keys[id(split)]

        for after, name in enumerate(order):
            optimizer = LazyAdam(values.parameters(), lr=profile.bottleneck_learning_rate)
            distil(
                lambda task, rows: values(fired(tasks[task].train)[rows]),
                optimizer,
                [name],
                profile.bottleneck_epochs,
            )
            matrix[after] = [accuracy(task, lambda split, rows: values(fired(split)[rows])) for task in order]
        return matrix

    def record(matrix: np.ndarray) -> dict[str, Any]:
        teachers = {name: tasks[name].score("teacher")["accuracy"] for name in order}
        return {"tasks": order, "matrix": matrix.round(6).tolist(), "teachers": teachers}

    found = {"values, pretrained encoder": record(train_values(encoder))}
    at_once, matrix = copy.deepcopy(student), np.zeros((len(order), len(order)))
    for after, name in enumerate(order):
        train_encoder(student, [name])
        matrix[after] = [accuracy(task, student) for task in order]
        if not after:
            found["values, first encoder"] = record(train_values(copy.deepcopy(student.encoder)))
    found["encoder, task after task"] = record(matrix)
    train_encoder(at_once, order)
    found["encoder, all tasks at once"] = record(
        np.tile([accuracy(task, at_once) for task in order], (len(order), 1))
    )
    return found
