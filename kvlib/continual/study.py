"""Every class suppressed in turn, beside its rivals, and the questions that a sceptic asks."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from kvlib.continual.learners import (
    GradientLearner,
    Stream,
    Values,
    bottleneck_learner,
    choose_learning_rate,
    fitted_bottleneck,
    run_stream,
    selected_pairs,
)
from kvlib.continual.streams import EPOCHS, SHAPES, Setting
from kvlib.continual.suppression import ascend, pairs_to_suppress, steps_to_relearn, switched_off


def suppress_each_class(setting: Setting, seed: int) -> dict[str, Any]:
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
    train, test = (_Rows(learner.prepare(part), part.labels) for part in (stream.train, stream.test))
    classes = [
        _suppress_one(learner.model, make(rate), train, test, wanted) for wanted in range(stream.num_classes)
    ]
    return {"learning_rate": rate, "classes": classes}


@dataclass(frozen=True, eq=False)
class _Rows:
    key_indices: Tensor  # (n, S, C), -1 at padding
    labels: Tensor  # (n,)

    def of(self, wanted: int) -> Tensor:
        return self.key_indices[self.labels == wanted]


def _suppress_one(
    values: Values, untrained: GradientLearner, train: _Rows, test: _Rows, wanted: int
) -> dict[str, Any]:
    x, labels, rate = train.key_indices, train.labels, untrained.learning_rate
    off, off_seconds = _timed(lambda: pairs_to_suppress(values, x, labels, wanted))
    by_examples, examples_seconds = _timed(lambda: _pairs_of_examples(values, train.of(wanted), wanted))
    (climbed, steps), ascent_seconds = _timed(lambda: ascend(values, x, labels, wanted, rate))
    _, without_seconds = _timed(lambda: untrained.learn(x[labels != wanted], labels[labels != wanted]))
    without, masked = untrained.model, values(test.key_indices).detach()
    masked[:, wanted] = -torch.inf
    answers = {
        "before": values(test.key_indices).argmax(1),
        "pairs": switched_off(values, test.key_indices, off),
        "pairs of examples": switched_off(values, test.key_indices, by_examples),
        "logit": masked.argmax(1),
        "ascent": climbed(test.key_indices).argmax(1),
        "without": without(test.key_indices).argmax(1),
    }
    used = selected_pairs(x, values.bottleneck.codebook_size) > 0
    moved = (climbed.bottleneck.values != values.bottleneck.values).any(-1)
    pairs = {"pairs": off, "pairs of examples": by_examples, "ascent": moved, "without": used}
    seconds = {
        "pairs": off_seconds,
        "pairs of examples": examples_seconds,
        "ascent": ascent_seconds,
        "without": without_seconds,
    }
    ways = {
        name: _accuracies(answer, test.labels, wanted)
        | {"pairs": int(pairs[name].sum()) if name in pairs else 0, "seconds": seconds.get(name, 0.0)}
        for name, answer in answers.items()
    }
    suppressed = copy.deepcopy(values)
    with torch.no_grad():
        suppressed.bottleneck.values[off] = 0.0
    models = {"before": values, "pairs": suppressed, "ascent": climbed, "without": without}
    found = {"class": wanted, "ways": ways, "ascent_steps": steps}
    return found | _questions(models, answers, off, train, test, wanted, rate)


def _questions(
    models: dict[str, Values],
    answers: dict[str, Tensor],
    off: Tensor,
    train: _Rows,
    test: _Rows,
    wanted: int,
    rate: float,
) -> dict[str, Any]:
    """Ask whether the class is gone, by what its rows are answered, a probe, membership and relearning."""
    of_class, size = test.labels == wanted, off.shape[1]
    others = [label for label in train.labels.unique().tolist() if label != wanted]
    nearest = max(others, key=lambda label: _similarity(train.of(wanted), train.of(label), size))
    of_nearest = test.labels == nearest
    return {
        # do the class's rows go where they go without the class?
        "same_answer_as_without": {
            name: float((answers[name] == answers["without"])[of_class].double().mean())
            for name in ("pairs", "logit")
        },
        "probe": {
            "all pairs": _probe(train, test, wanted, torch.zeros_like(off)),
            "pairs left": _probe(train, test, wanted, off),
        },
        "membership_auc": {
            name: _membership(models[name], train.of(wanted), test.of(wanted), wanted)
            for name in ("before", "pairs", "without")
        },
        "steps_to_relearn": {
            name: steps_to_relearn(models[name], train.key_indices, train.labels, wanted, rate)
            for name in ("pairs", "ascent", "without")
        },
        "nearest_class": nearest,
        "accuracy_of_nearest": {
            name: float((answers[name] == test.labels)[of_nearest].double().mean()) for name in ("before", "pairs")
        },
    }


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    return run(), time.perf_counter() - begun


def _accuracies(answers: Tensor, labels: Tensor, wanted: int) -> dict[str, float]:
    right, of_class = (answers == labels).double(), labels == wanted
    return {"forgotten": float(right[of_class].mean()), "others": float(right[~of_class].mean())}


def _pairs_of_examples(values: Values, own: Tensor, wanted: int) -> Tensor:
    size = values.bottleneck.codebook_size
    for number in range(1, len(own) + 1):
        off = selected_pairs(own[:number], size) > 0
        if not (switched_off(values, own, off) == wanted).any():
            break
    return off


def _similarity(first: Tensor, second: Tensor, size: int) -> float:
    """Compare two classes by the pairs that they select: the cosine of their counts."""
    a, b = (selected_pairs(part, size).double().flatten() for part in (first, second))
    return float(a @ b / (a.norm() * b.norm()))


def _probe(train: _Rows, test: _Rows, wanted: int, off: Tensor) -> float:
    """Ask a linear probe on the keys that still fire for the class: area under the ROC curve on test rows."""

    def bags(keys: Tensor) -> sparse.csr_matrix:
        codebooks = torch.arange(off.shape[0])
        here = (keys >= 0) & ~off[codebooks, keys.clamp_min(0)]
        row, _, codebook = here.nonzero(as_tuple=True)
        shape = (len(keys), off.numel())
        column = codebook * off.shape[1] + keys[here]
        return sparse.csr_matrix((np.ones(len(row)), (row.numpy(), column.numpy())), shape)

    probe = LogisticRegression(max_iter=1000, class_weight="balanced")
    probe.fit(bags(train.key_indices), train.labels == wanted)
    return float(roc_auc_score(test.labels == wanted, probe.decision_function(bags(test.key_indices))))


@torch.no_grad()
def _membership(model: nn.Module, members: Tensor, strangers: Tensor, wanted: int) -> float:
    """Tell training rows of a class from its test rows by their loss: area under the ROC curve, 0.5 is chance."""
    losses = [
        F.cross_entropy(model(part), torch.full((len(part),), wanted), reduction="none")
        for part in (members, strangers)
    ]
    known = [True] * len(members) + [False] * len(strangers)
    return float(roc_auc_score(known, -torch.cat(losses).numpy()))
