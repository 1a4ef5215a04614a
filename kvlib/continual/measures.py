"""How much is known after each task, and what was lost of it.

R ``(T, T)`` is the accuracy matrix that `run_stream` gives: ``R[i, j]`` on test rows of task j after task i.
"""

from collections.abc import Callable

import numpy as np


def final_accuracy(accuracies: np.ndarray) -> float:
    """Return the mean over tasks after the last one: ``1/T Σ_j R[T, j]``, of R as `run_stream` gives it."""
    return float(accuracies[-1].mean())


def incremental_accuracy(accuracies: np.ndarray) -> float:
    """Return the mean over time of the mean over the tasks so far: ``1/T Σ_i 1/i Σ_{j ≤ i} R[i, j]``."""
    return float(np.mean([row[: after + 1].mean() for after, row in enumerate(accuracies)]))


def backward_transfer(accuracies: np.ndarray) -> float:
    """Measure how later tasks changed earlier ones: ``1/(T−1) Σ_{j < T} (R[T, j] − R[j, j])``.

    Lopez-Paz & Ranzato 2017 (arXiv 1706.08840).
    """
    return float((accuracies[-1] - accuracies.diagonal())[:-1].mean())


def forgetting(accuracies: np.ndarray) -> float:
    """Measure what is lost of the best that was known: ``1/(T−1) Σ_{j < T} (max_{j ≤ l < T} R[l, j] − R[T, j])``.

    Chaudhry et al. 2018 (arXiv 1801.10112).
    """
    best = np.array([accuracies[task:-1, task].max() for task in range(len(accuracies) - 1)])
    return float((best - accuracies[-1, :-1]).mean())


def plasticity(accuracies: np.ndarray) -> float:
    """Measure how well each task was learnt when its turn came: ``1/T Σ_j R[j, j]``."""
    return float(accuracies.diagonal().mean())


MEASURES: dict[str, Callable[[np.ndarray], float]] = {
    "final accuracy": final_accuracy,
    "incremental accuracy": incremental_accuracy,
    "forgetting": forgetting,
    "backward transfer": backward_transfer,
    "plasticity": plasticity,
}
