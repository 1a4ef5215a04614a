"""Streams of tasks, and learners that meet their tasks one after another.

Shape comments: n examples, S tokens of the longest, C codebooks, K keys a codebook, L classes, T tasks.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.kernel_approximation import RBFSampler
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kvlib.bottleneck import DiscreteKeyValueBottleneck
from kvlib.training import LazyAdam

# from which every learner with gradients chooses, see `choose_learning_rate`
LEARNING_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples as every learner needs them: what a frozen encoder makes of them, and their tokens.

    Parameters
    ----------
    labels : torch.Tensor
        ``(n,)`` int64.
    vectors : torch.Tensor
        One vector an example, ``(n, dim)``: what learners without a bottleneck see.
    states : sequence of torch.Tensor, optional
        What enters the bottleneck, ``(tokens, dim)`` an example; by default its vector.
    tokens : torch.Tensor, optional
        Input ids ``(n, S)``, 0 at padding, for learners that train the encoder.
    """

    labels: Tensor
    vectors: Tensor
    states: Sequence[Tensor] | None = None
    tokens: Tensor | None = None

    def packed(self) -> tuple[Tensor, list[int]]:
        """Return all states one after another, ``(N, dim)``, and how many belong to each example."""
        if self.states is None:
            return self.vectors, [1] * len(self.vectors)
        return torch.cat(list(self.states)), [len(rows) for rows in self.states]


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks that come one after another, each a tuple of classes, and the examples of all of them."""

    train: Examples
    test: Examples
    tasks: tuple[tuple[int, ...], ...]

    @property
    def num_classes(self) -> int:
        """How many classes all tasks have together."""
        return sum(map(len, self.tasks))


class Learner(Protocol):
    """What `run_stream` asks of a learner; ``x`` is what `prepare` made of some examples."""

    def prepare(self, examples: Examples) -> Tensor:
        """Turn examples into this learner's inputs, ``(n, ...)``."""

    def learn(self, x: Tensor, labels: Tensor) -> None:
        """Learn one task; earlier ones are not shown again."""

    def predict(self, x: Tensor) -> Tensor:
        """Return class numbers ``(n,)``."""


def run_stream(learner: Learner, stream: Stream) -> tuple[np.ndarray, list[float]]:
    """Show a learner the tasks of a stream in turn.

    Returns R ``(T, T)``, where ``R[i, j]`` is the accuracy on test rows of task j after task i, among the classes
    of all tasks, and the seconds that each task took to learn.
    """
    train, test = (learner.prepare(part) for part in (stream.train, stream.test))
    accuracies, seconds = np.zeros((len(stream.tasks), len(stream.tasks))), []
    for after, classes in enumerate(stream.tasks):
        rows = torch.isin(stream.train.labels, torch.tensor(classes))
        begun = time.perf_counter()
        learner.learn(train[rows], stream.train.labels[rows])
        seconds.append(time.perf_counter() - begun)
        right = learner.predict(test) == stream.test.labels
        for task, wanted in enumerate(stream.tasks):
            of_task = torch.isin(stream.test.labels, torch.tensor(wanted))
            accuracies[after, task] = right[of_task].double().mean()
    return accuracies, seconds


class ClassMeans:
    """Nearest class mean: no gradient, one vector a class."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums, self.counts = None, None

    def prepare(self, examples: Examples) -> Tensor:
        """Take the vectors."""
        return examples.vectors.double()

    def learn(self, x: Tensor, labels: Tensor) -> None:
        """Add the vectors of each class."""
        if self.sums is None:
            self.sums, self.counts = x.new_zeros(self.num_classes, x.shape[1]), x.new_zeros(self.num_classes)
        self.sums.index_add_(0, labels, x)
        self.counts += labels.bincount(minlength=self.num_classes)

    @property
    def means(self) -> Tensor:
        """The mean of each class that was shown, ``(L, dim)``, and NaN for the others."""
        return self.sums / self.counts.unsqueeze(1)

    def predict(self, x: Tensor) -> Tensor:
        """Choose the nearest mean."""
        return torch.cdist(x, self.means).nan_to_num(nan=torch.inf).argmin(1)


class SharedCovariance(ClassMeans):
    """Linear discriminant analysis: class means and one covariance for all classes, summed up as they come.

    With random Fourier `features` of a Gaussian kernel it is KLDA (Momeni et al., arXiv 2412.15544); the kernel's
    width is the median distance of the first task's vectors. `shrinkage` is the share of a multiple of the
    identity in the covariance.
    """

    def __init__(self, num_classes: int, features: int = 0, shrinkage: float = 0.1, seed: int = 0) -> None:
        super().__init__(num_classes)
        self.features, self.shrinkage, self.seed = features, shrinkage, seed
        self.sampler, self.squares = None, 0.0

    def learn(self, x: Tensor, labels: Tensor) -> None:
        """Add the vectors of each class and their products."""
        if self.features and self.sampler is None:
            width = torch.pdist(x[:500]).median()
            sampler = RBFSampler(
                gamma=float(1 / (2 * width**2)), n_components=self.features, random_state=self.seed
            )
            self.sampler = sampler.fit(x[:1].numpy())
        x = self._features(x)
        super().learn(x, labels)
        self.squares = self.squares + x.T @ x

    def _features(self, x: Tensor) -> Tensor:
        return x if self.sampler is None else torch.from_numpy(self.sampler.transform(x.numpy()))

    def predict(self, x: Tensor) -> Tensor:
        """Choose the nearest mean by Mahalanobis distance."""
        seen = self.counts > 0
        means, counts = self.means[seen], self.counts[seen]
        covariance = (self.squares - (means.T * counts) @ means) / counts.sum()
        scale = covariance.diagonal().mean()
        covariance = (1 - self.shrinkage) * covariance + self.shrinkage * scale * torch.eye(
            len(covariance)
        ).double()
        directions = torch.linalg.solve(covariance, means.T)  # (dim, classes seen)
        scores = self._features(x) @ directions - (means * directions.T).sum(1) / 2
        return seen.nonzero().flatten()[scores.argmax(1)]


class RandomRidge:
    """Ridge regression on random features ``relu([x, 1] W)``: RanPAC (McDonnell et al., arXiv 2307.02251).

    Products are summed up as tasks come; the penalty is chosen on a fifth of the current one.
    """

    def __init__(self, num_classes: int, features: int = 1000, seed: int = 0) -> None:
        self.num_classes, self.features, self.seed = num_classes, features, seed
        self.weights, self.gram, self.targets, self.solution = None, 0.0, 0.0, None

    def prepare(self, examples: Examples) -> Tensor:
        """Take the vectors and a constant."""
        return F.pad(examples.vectors.double(), (0, 1), value=1.0)

    def learn(self, x: Tensor, labels: Tensor) -> None:
        """Add products of features, choose the penalty, and solve."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.weights is None:
            self.weights = torch.randn(x.shape[1], self.features, generator=generator).double()
        h, y = (x @ self.weights).relu(), F.one_hot(labels, self.num_classes).double()
        order = torch.randperm(len(x), generator=generator)
        held_out, kept = order[: len(x) // 5], order[len(x) // 5 :]
        gram, targets = self.gram + h[kept].T @ h[kept], self.targets + h[kept].T @ y[kept]
        penalties = [10.0**power for power in range(-8, 9)]
        errors = [(h[held_out] @ self._solve(gram, targets, p) - y[held_out]).square().mean() for p in penalties]
        self.gram, self.targets = self.gram + h.T @ h, self.targets + h.T @ y
        self.solution = self._solve(self.gram, self.targets, penalties[int(torch.stack(errors).argmin())])

    @staticmethod
    def _solve(gram: Tensor, targets: Tensor, penalty: float) -> Tensor:
        return torch.linalg.solve(gram + penalty * torch.eye(len(gram)).double(), targets)

    def predict(self, x: Tensor) -> Tensor:
        """Choose the largest output."""
        return ((x @ self.weights).relu() @ self.solution).argmax(1)


class GradientLearner:
    """A model that is trained on each task in turn by cross-entropy over all classes, with a fresh optimiser.

    Parameters
    ----------
    model : torch.nn.Module
        From what `prepare` returns to logits ``(n, L)``.
    prepare : callable
        From `Examples` to the model's inputs.
    learning_rate : float
        Of `optimizer`.
    epochs, batch_size, seed : int
        How often each example of a task is looked at, in batches of how many, in an order drawn from `seed`.
    optimizer : type
        Adam, or `LazyAdam` for values.
    replay : int
        How many examples of earlier tasks are kept, a random sample of all so far, and mixed into each task; with
        -1 all, and the model starts anew with each task: joint training.
    penalty : float
        Weight λ of elastic weight consolidation, ``λ/2 Σ F (θ − θ*)²`` a finished task (Kirkpatrick et al. 2017,
        arXiv 1612.00796), F the mean squared gradient of 100 of its examples.
    """

    def __init__(
        self,
        model: nn.Module,
        prepare: Callable[[Examples], Tensor],
        learning_rate: float,
        epochs: int = 5,
        batch_size: int = 32,
        seed: int = 0,
        optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
        replay: int = 0,
        penalty: float = 0.0,
    ) -> None:
        self.model, self.prepare, self.learning_rate = model, prepare, learning_rate
        self.epochs, self.batch_size, self.optimizer = epochs, batch_size, optimizer
        self.replay, self.penalty = replay, penalty
        self.generator = torch.Generator().manual_seed(seed)
        self.start = copy.deepcopy(model.state_dict()) if replay < 0 else None
        self.kept: tuple[Tensor, Tensor] | None = None
        self.shown = 0
        # of finished tasks: the sum of F, and the mean of θ* weighted by it
        self.fisher: list[Tensor] | None = None
        self.anchor: list[Tensor] | None = None

    def learn(self, x: Tensor, labels: Tensor) -> None:
        """Train on one task."""
        if self.start is not None:
            self.model.load_state_dict(self.start)
        own, own_labels = x, labels
        if self.kept is not None:
            x, labels = torch.cat([x, self.kept[0]]), torch.cat([labels, self.kept[1]])
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = self.optimizer(parameters, lr=self.learning_rate)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x), generator=self.generator).split(self.batch_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(self.model(x[rows]), labels[rows]) + self.consolidation()
                loss.backward()
                optimizer.step()
        if self.replay:
            self._keep(own, own_labels)
        if self.penalty:
            self._remember(parameters, self._mean_squared_gradient(own, own_labels))

    def _keep(self, x: Tensor, labels: Tensor) -> None:
        self.shown += len(x)
        kept, kept_labels = self.kept or (x[:0], labels[:0])
        if self.replay > 0:
            # each example so far is as likely to be kept
            share = round(self.replay * len(x) / self.shown) if self.shown > self.replay else len(x)
            chosen = torch.randperm(len(x), generator=self.generator)[:share]
            old = torch.randperm(len(kept), generator=self.generator)[: self.replay - len(chosen)]
            x, labels, kept, kept_labels = x[chosen], labels[chosen], kept[old], kept_labels[old]
        self.kept = torch.cat([kept, x]), torch.cat([kept_labels, labels])

    def consolidation(self) -> Tensor:
        """Return the penalty of elastic weight consolidation, but for a constant; 0 before the second task."""
        if self.fisher is None:
            return torch.zeros(())
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        terms = zip(parameters, self.anchor, self.fisher, strict=True)
        return self.penalty / 2 * torch.stack([(f * (p - a).square()).sum() for p, a, f in terms]).sum()

    def _remember(self, parameters: list[Tensor], fisher: list[Tensor]) -> None:
        # a sum of parabolas is one parabola and a constant: what it costs does not grow with the tasks
        if self.fisher is None:
            self.fisher, self.anchor = fisher, [p.detach().clone() for p in parameters]
            return
        for total, anchor, new, p in zip(self.fisher, self.anchor, fisher, parameters, strict=True):
            total += new
            anchor += new / total.clamp_min(torch.finfo(total.dtype).tiny) * (p.detach() - anchor)

    def _mean_squared_gradient(self, x: Tensor, labels: Tensor) -> list[Tensor]:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        sums, rows = (
            [torch.zeros_like(p) for p in parameters],
            torch.randperm(len(x), generator=self.generator)[:100],
        )
        for row in rows:
            loss = F.cross_entropy(self.model(x[row : row + 1]), labels[row : row + 1])
            for total, gradient in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                total += gradient.square()
        return [total / len(rows) for total in sums]

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return the model's logits, ``(n, L)``."""
        return torch.cat([self.model(part) for part in x.split(256)])

    def predict(self, x: Tensor) -> Tensor:
        """Choose the largest logit."""
        return self.logits(x).argmax(1)


def choose_learning_rate(
    make: Callable[[float], GradientLearner], stream: Stream, rates: Sequence[float] = LEARNING_RATES
) -> float:
    """Choose a rate on the first task's training rows alone: its classes are learnt in turn, in both orders.

    Returns the smallest rate whose final accuracy, on a fifth of the rows that are kept out of training, is within
    a standard error, and at least a row, of the best. The whole task at once would not show what a rate forgets,
    and one order would reward a rate that happens to favour its last class.
    """
    labels, classes = stream.train.labels, stream.tasks[0]
    rows = torch.isin(labels, torch.tensor(classes)).nonzero().flatten()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    held_out, kept = rows[: len(rows) // 5], rows[len(rows) // 5 :]
    accuracies = []
    for rate in rates:
        right = []
        for order in (classes, classes[::-1]):
            learner = make(rate)
            x = learner.prepare(stream.train)
            for label in order:
                of_class = kept[labels[kept] == label]
                learner.learn(x[of_class], labels[of_class])
            right.append(learner.predict(x[held_out]) == labels[held_out])
        accuracies.append(float(torch.cat(right).double().mean()))
    best = max(accuracies)
    error = max(1.0, (best * (1 - best) * len(held_out)) ** 0.5) / len(held_out)
    return next(rate for rate, found in zip(rates, accuracies, strict=True) if found >= best - error - 1e-9)


class Values(nn.Module):
    """A bottleneck's values as a model of its own: key indices ``(n, S, C)``, -1 at padding, to logits ``(n, L)``.

    As in a student (`EncoderWithBottleNeck.decode`), they are averaged over tokens and codebooks.
    """

    def __init__(self, bottleneck: DiscreteKeyValueBottleneck) -> None:
        super().__init__()
        self.bottleneck = bottleneck

    def forward(self, key_indices: Tensor) -> Tensor:
        """Average the values of the keys that fired."""
        real = key_indices[..., 0] >= 0  # (n, S)
        values = self.bottleneck.lookup(key_indices.clamp_min(0)).mean(2)  # (n, S, L)
        return (values * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)


def fitted_bottleneck(
    states: Tensor, num_classes: int, num_codebooks: int, codebook_size: int, seed: int = 0
) -> DiscreteKeyValueBottleneck:
    """Return a bottleneck with frozen keys fitted on `states` ``(N, dim)`` and values of L numbers, at zero."""
    torch.manual_seed(seed)
    bottleneck = DiscreteKeyValueBottleneck(states.shape[1], num_codebooks, codebook_size, num_classes)
    bottleneck.init_keys(states, seed=seed)
    bottleneck.freeze_keys()
    return bottleneck.to(states.dtype)


def fired_keys(bottleneck: DiscreteKeyValueBottleneck, examples: Examples) -> Tensor:
    """Find the keys that examples fire: ``(n, S, C)`` int64, -1 at padding."""
    states, lengths = examples.packed()
    return pad_sequence(bottleneck.quantize(states).split(lengths), batch_first=True, padding_value=-1)


def bottleneck_learner(
    bottleneck: DiscreteKeyValueBottleneck, learning_rate: float, **options: Any
) -> GradientLearner:
    """Train a copy of the values alone, and of them only those that a task selects (`LazyAdam`)."""
    model = Values(copy.deepcopy(bottleneck))
    return GradientLearner(
        model, lambda examples: fired_keys(bottleneck, examples), learning_rate, optimizer=LazyAdam, **options
    )


def selected_pairs(key_indices: Tensor, codebook_size: int) -> Tensor:
    """Count how often each key-value pair is selected: ``(C, K)`` int64 of key indices ``(n, S, C)``."""
    flat = key_indices[key_indices[..., 0] >= 0]  # (N, C)
    return torch.stack([column.bincount(minlength=codebook_size) for column in flat.T])


def overlap(first: Tensor, second: Tensor) -> float:
    """Return the share of the pairs that `second` selects which `first` selected, too; counts ``(C, K)``."""
    return float(((first > 0) & (second > 0)).sum() / (second > 0).sum())
