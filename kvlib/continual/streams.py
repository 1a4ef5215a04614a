"""Streams of classes that come two by two, and what learns them: all behind the same frozen encoder."""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from kvlib.continual.learners import (
    LEARNING_RATES,
    ClassMeans,
    Examples,
    GradientLearner,
    Learner,
    RandomRidge,
    SharedCovariance,
    Stream,
    bottleneck_learner,
    choose_learning_rate,
    fitted_bottleneck,
    overlap,
    run_stream,
    selected_pairs,
)
from kvlib.continual.measures import final_accuracy
from kvlib.data import CustomDataset, Task
from kvlib.pretrained import load_tokenizer
from kvlib.sources.glue import load_glue
from kvlib.sources.own_data import load_task
from kvlib.teacher import BERTbase, predict_states

# eight classes, two a task, at the places of the ICML paper's figure 2
_TOY_CENTRES = {
    0: (0.25, 0.25), 4: (0.75, 0.5), 1: (0.75, 0.25), 5: (0.5, 0.75),
    2: (0.75, 0.75), 6: (0.25, 0.5), 3: (0.25, 0.75), 7: (0.5, 0.25),
}  # fmt: skip
_TOY_TASKS = ((0, 4), (1, 5), (2, 6), (3, 7))
# C and K of the bottleneck, by stream; every other learner sees the same vectors
SHAPES = {"toy": (1, 400), "digits": (16, 64), "topics": (32, 256)}
EPOCHS = {"toy": 100, "digits": 5, "topics": 5}


@dataclass(frozen=True, eq=False)
class Setting:
    """A stream, what keys can be fitted on, and the pretrained encoder behind its vectors if there is one.

    `key_states` are ``(N, dim)`` by name: ``oracle`` those of all tasks, ``first task`` and ``other data``.
    """

    stream: Stream
    key_states: dict[str, Tensor]
    encoder: nn.Module | None = None


def toy(seed: int = 0) -> Setting:
    """Return eight Gaussian classes in the plane, two a task, 50 rows a class: the ICML paper's figure 2.

    Standard deviation 0.035, float64. As there, keys are fitted on uniform points of the unit square.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([_TOY_CENTRES[label] for label in range(8)], dtype=torch.float64)

    def draw(rows: int) -> Examples:
        labels = torch.arange(8).repeat_interleave(rows)
        noise = torch.randn(len(labels), 2, generator=generator, dtype=torch.float64)
        return Examples(labels, centres[labels] + 0.035 * noise)

    stream = Stream(draw(50), draw(100), _TOY_TASKS)
    return Setting(stream, {"other data": torch.rand(4000, 2, generator=generator, dtype=torch.float64)})


def digits(seed: int = 0) -> Setting:
    """Return scikit-learn's digits, 8 × 8 pixels from 0 to 1, five tasks of two classes in an order drawn by seed.

    *Other data* are the training images with each pixel's values shuffled over images.
    """
    found = load_digits()
    pixels, labels = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.3, random_state=seed, stratify=labels)
    tasks = _class_order(10, seed)
    first = pixels[train][torch.isin(labels[train], torch.tensor(tasks[0]))]
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([c[torch.randperm(len(c), generator=generator)] for c in pixels[train].T], dim=1)
    stream = Stream(Examples(labels[train], pixels[train]), Examples(labels[test], pixels[test]), tasks)
    return Setting(stream, {"oracle": pixels[train], "first task": first, "other data": shuffled})


def _class_order(classes: int, seed: int) -> tuple[tuple[int, ...], ...]:
    order = np.random.default_rng(seed).permutation(classes).tolist()
    return tuple(tuple(order[first : first + 2]) for first in range(0, classes, 2))


def topics(seed: int = 0, task: Task | None = None, data: DatasetDict | None = None) -> Setting:
    """Return texts of many classes, two a task in an order drawn by seed, behind the pretrained MiniLM, frozen.

    Without `task` and `data`, which are as `load_task` returns them, the mini topics. A text's vector is the mean
    of its hidden states, scaled to length √dim. *Other data* are texts of mini SST-2 and MRPC.
    """
    if task is None or data is None:
        folder = Path(str(resources.files("kvlib.mini_topics")))
        task, data = load_task(folder / "train.tsv", "sentence", "label", validation=folder / "validation.tsv")
    tokenizer = load_tokenizer()
    encoder = BERTbase.for_task(task, seed=seed)
    parts = [_examples(CustomDataset(data[name], tokenizer, task), encoder) for name in ("train", "validation")]
    tasks = _class_order(task.num_labels, seed)
    of_first = torch.isin(parts[0].labels, torch.tensor(tasks[0])).nonzero().flatten()
    others = [CustomDataset(load_glue(name, "mini")["train"], tokenizer, name) for name in ("sst2", "mrpc")]
    states = {
        "oracle": parts[0].packed()[0],
        "first task": torch.cat([parts[0].states[int(row)] for row in of_first]),
        "other data": torch.cat([predict_states(encoder, part).float() for part in others]),
    }
    return Setting(Stream(*parts, tasks), states, encoder)


def _examples(dataset: CustomDataset, encoder: BERTbase) -> Examples:
    states = predict_states(encoder, dataset).float().split(dataset.lengths.tolist())
    vectors = torch.stack([rows.mean(0) for rows in states])
    vectors = nn.functional.normalize(vectors) * vectors.shape[1] ** 0.5
    ids = [torch.tensor(ids) for ids in dataset.inputs["input_ids"]]
    tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return Examples(torch.tensor(dataset.labels), vectors, states, tokens)


class Encoder(nn.Module):
    """A text classifier as a model of token ids ``(n, S)``, 0 at padding; no dropout, embeddings stay fixed."""

    def __init__(self, model: BERTbase) -> None:
        super().__init__()
        self.model = model.eval()
        model.bert.embeddings.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify, without the columns that are padding only."""
        tokens = tokens[:, : int((tokens != 0).sum(1).max())]
        return self.model(tokens, (tokens != 0).long()).logits


Make = Callable[[float], Learner]


def learners(name: str, setting: Setting, seed: int) -> dict[str, tuple[Make, Make | None]]:
    """Return the learners of a stream by name: how each is made, and with what its learning rate is chosen."""
    stream, shape, epochs = setting.stream, SHAPES.get(name, SHAPES["topics"]), EPOCHS.get(name, EPOCHS["topics"])
    classes, dim = stream.num_classes, stream.train.vectors.shape[1]
    common = {"epochs": epochs, "seed": seed}

    def probe(rate: float, **options: Any) -> GradientLearner:
        torch.manual_seed(seed)
        model = nn.Linear(dim, classes, dtype=stream.train.vectors.dtype)
        return GradientLearner(model, lambda examples: examples.vectors, rate, **common, **options)

    def mlp(rate: float) -> GradientLearner:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(dim, 32), nn.ReLU(), nn.Linear(32, classes))
        return GradientLearner(
            model.to(stream.train.vectors.dtype), lambda examples: examples.vectors, rate, **common
        )

    def fine_tuned(rate: float, **options: Any) -> GradientLearner:
        model = Encoder(copy.deepcopy(setting.encoder))
        return GradientLearner(model, lambda examples: examples.tokens, rate, **common, **options)

    found: dict[str, tuple[Make, Make | None]] = {
        "nearest class mean": (lambda _: ClassMeans(classes), None),
        "shared-covariance LDA": (lambda _: SharedCovariance(classes), None),
        "kernel LDA": (lambda _: SharedCovariance(classes, features=1000, seed=seed), None),
        "random features + ridge": (lambda _: RandomRidge(classes, seed=seed), None),
        "linear probe": (probe, probe),
    }
    for options, replay in (("replay of 200", 200), ("joint", -1)):
        make = partial(probe, replay=replay)
        found[f"linear probe, {options}"] = (make, make)
    if name == "toy":
        found["MLP"] = (mlp, mlp)
    for source, states in setting.key_states.items():
        bottleneck = fitted_bottleneck(states, classes, *shape, seed=seed)
        make = partial(bottleneck_learner, bottleneck, **common)
        found[f"bottleneck, keys of {source}"] = (make, make)
    penalised, of = (fine_tuned, "fine-tuned encoder") if setting.encoder else (probe, "linear probe")
    if setting.encoder:
        found[of] = (fine_tuned, fine_tuned)
    for penalty in (1e3, 1e5, 1e7) if setting.encoder else (1.0, 1e2, 1e4):
        found[f"{of}, EWC λ = {penalty:g}"] = (partial(penalised, penalty=penalty), penalised)
    return found


def shapes_of_the_bottleneck(name: str, setting: Setting, seed: int) -> dict[str, tuple[Make, Make | None]]:
    """Return bottlenecks of other C and K, keys of the first task."""
    states, classes = setting.key_states["first task"], setting.stream.num_classes
    found: dict[str, tuple[Make, Make | None]] = {}
    for codebooks in (1, 4, 16, 64) if name == "digits" else (1, 8, 32, 128):
        for size in (16, 64, 256):
            bottleneck = fitted_bottleneck(states, classes, codebooks, size, seed=seed)
            make = partial(bottleneck_learner, bottleneck, epochs=EPOCHS[name], seed=seed)
            found[f"bottleneck, C = {codebooks}, K = {size}"] = (make, make)
    return found


# learners with a penalty share the rate of the one without
_chosen_rate = functools.cache(choose_learning_rate)


def run_learner(make: Make, chooser: Make | None, stream: Stream, in_hindsight: bool = True) -> dict[str, Any]:
    """Choose a learning rate if there is one, run the stream, and say what came of it and what it took.

    With `in_hindsight` learners that train no encoder also run with every rate.
    """
    rate = _chosen_rate(chooser, stream) if chooser else 0.0
    learner = make(rate)
    accuracies, seconds = run_stream(learner, stream)
    by_rate = {}
    if in_hindsight and chooser and not isinstance(learner.model, Encoder):
        by_rate = {other: round(final_accuracy(run_stream(make(other), stream)[0]), 6) for other in LEARNING_RATES}
    record: dict[str, Any] = {
        "tasks": [list(task) for task in stream.tasks],
        "matrix": accuracies.round(6).tolist(),
        "learning_rate": rate if chooser else None,
        "final_accuracy_by_rate": by_rate,
        "seconds": seconds,
        "kept_mb": _bytes_kept(learner) / 1e6,
    }
    bottleneck = getattr(getattr(learner, "model", None), "bottleneck", None)
    if bottleneck is not None:
        keys, labels = learner.prepare(stream.train), stream.train.labels
        by_task = [keys[torch.isin(labels, torch.tensor(task))] for task in stream.tasks]
        counts = [selected_pairs(part, bottleneck.codebook_size) for part in by_task]
        record["pairs_selected"] = [int((count > 0).sum()) for count in counts]
        record["overlap"] = [[round(overlap(first, second), 4) for second in counts] for first in counts]
    return record


def _bytes_kept(learner: Learner) -> int:
    """Count the bytes of the tensors that a learner keeps, not those of a sampler that its seed makes again."""

    def tensors(thing: Any) -> Iterator[Tensor]:
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, nn.Module):
            yield from thing.state_dict().values()
        elif isinstance(thing, (list, tuple)):
            for part in thing:
                yield from tensors(part)

    return sum(
        t.numel() * t.element_size()
        for name, part in vars(learner).items()
        if name != "start"
        for t in tensors(part)
    )
