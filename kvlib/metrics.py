"""The metrics that GLUE officially asks for, and those of tasks of one's own, in one function."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from kvlib.data import Task, get_task


def compute_metrics(task: str | Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score predictions, those of GLUE's tasks as GLUE does.

    Parameters
    ----------
    task : str or Task
        A GLUE task's name, or a task.
    predictions : numpy.ndarray
        Logits ``(N, num_labels)``, or class numbers ``(N,)``; for regression scores ``(N,)`` or ``(N, 1)``.
    labels : numpy.ndarray
        Class numbers ``(N,)``, or scores ``(N,)`` for regression.

    Returns
    -------
    dict of str to float
        Classification: ``accuracy``, ``f1`` (of class 1, as MRPC and QQP ask; the unweighted mean over the
        three classes for MNLI) and ``mcc`` (Matthews correlation, -1 to 1, as CoLA asks); ``macro_f1``, the
        unweighted mean over the classes, in place of ``f1`` if `Task.metrics` names it. Regression: ``pearson``
        and ``spearman`` (-1 to 1; 0 where predictions are constant and the correlation is undefined).
        `Task.metrics` names the official ones. Score MNLI's two validation splits by two calls.

    Raises
    ------
    ValueError
        If shapes disagree, there are no rows, predictions are not finite, or a label is hidden (-1).
    """
    task = get_task(task)
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if len(labels) == 0 or labels.ndim != 1 or len(predictions) != len(labels):
        raise ValueError(
            f"predictions {predictions.shape} and labels {labels.shape} must have as many rows, at least one"
        )
    if not np.isfinite(predictions).all():
        raise ValueError("predictions hold NaN or infinity: look at the training loss")
    # a regression without a range may have it as a score
    if (labels == -1).any() and not (task.is_regression and task.score_range is None):
        raise ValueError("labels hold -1: this split's labels are hidden; score a validation split instead")
    if task.is_regression:
        if predictions.size != len(labels):
            raise ValueError(f"{task.name} needs one score a row, got predictions of shape {predictions.shape}")
        predictions = predictions.reshape(-1)
    elif predictions.ndim == 2:
        if predictions.shape[1] != task.num_labels:
            raise ValueError(
                f"{task.name} needs {task.num_labels} logits a row ({', '.join(task.label_names)}), "
                f"got predictions of shape {predictions.shape}"
            )
        predictions = predictions.argmax(axis=1)
    return {name: metric(predictions, labels) for name, metric in metric_functions(task).items()}


def metric_functions(task: Task) -> dict[str, Callable[[np.ndarray, np.ndarray], float]]:
    """Return the metrics of a task by name: functions of predicted and true classes or scores, ``(N,)`` each."""
    if task.is_regression:
        return {"pearson": partial(_correlation, pearsonr), "spearman": partial(_correlation, spearmanr)}
    macro = "macro_f1" in task.metrics
    average = "binary" if task.num_labels == 2 and not macro else "macro"
    return {
        "accuracy": lambda predictions, labels: float(accuracy_score(labels, predictions)),
        "macro_f1" if macro else "f1": lambda predictions, labels: float(
            f1_score(labels, predictions, average=average, zero_division=0)
        ),
        "mcc": lambda predictions, labels: float(matthews_corrcoef(labels, predictions)),
    }


def _correlation(measure: Callable[..., Any], predictions: np.ndarray, labels: np.ndarray) -> float:
    with warnings.catch_warnings():
        # a constant predictor (the baseline) has no correlation: scipy warns and gives NaN, GLUE counts 0
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(np.nan_to_num(measure(predictions, labels).statistic))
