"""The metrics that GLUE officially asks for, one function for all eight tasks."""

import warnings

import numpy as np
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from kvlib.data import Task, get_task


def compute_metrics(task: str | Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Score predictions as GLUE does.

    Parameters
    ----------
    task : str or Task
        One of the eight GLUE tasks.
    predictions : numpy.ndarray
        Logits ``(N, num_labels)``, or class numbers ``(N,)``; for STS-B scores ``(N,)`` or ``(N, 1)``.
    labels : numpy.ndarray
        Class numbers ``(N,)``, or similarities ``(N,)`` for STS-B.

    Returns
    -------
    dict of str to float
        Classification: ``accuracy``, ``f1`` (of class 1, as MRPC and QQP ask; the unweighted mean over the
        three classes for MNLI) and ``mcc`` (Matthews correlation, -1 to 1, as CoLA asks). STS-B: ``pearson``
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
    if (labels == -1).any():
        raise ValueError("labels hold -1: this split's labels are hidden; score a validation split instead")
    if task.is_regression:
        if predictions.size != len(labels):
            raise ValueError(f"{task.name} needs one score a row, got predictions of shape {predictions.shape}")
        return _correlations(predictions.reshape(-1), labels)
    if predictions.ndim == 2:
        if predictions.shape[1] != task.num_labels:
            raise ValueError(
                f"{task.name} needs {task.num_labels} logits a row ({', '.join(task.label_names)}), "
                f"got predictions of shape {predictions.shape}"
            )
        predictions = predictions.argmax(axis=1)
    average = "binary" if task.num_labels == 2 else "macro"
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "f1": float(f1_score(labels, predictions, average=average, zero_division=0)),
        "mcc": float(matthews_corrcoef(labels, predictions)),
    }


def _correlations(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    with warnings.catch_warnings():
        # a constant predictor (the baseline) has no correlation: scipy warns and gives NaN, GLUE counts 0
        warnings.simplefilter("ignore", ConstantInputWarning)
        pearson = pearsonr(predictions, labels).statistic
        spearman = spearmanr(predictions, labels).statistic
    return {"pearson": float(np.nan_to_num(pearson)), "spearman": float(np.nan_to_num(spearman))}
