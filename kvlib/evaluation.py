"""Score models and baselines, with what a reader needs to judge the numbers."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import bootstrap
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel

from kvlib.data import MODEL_INPUTS, CustomDataset, Task, get_task
from kvlib.metrics import compute_metrics
from kvlib.student import DistilBERTwithBottleNeck, EncoderWithBottleNeck
from kvlib.teacher import predict_logits, predict_states


def evaluate(model: PreTrainedModel, dataset: CustomDataset) -> dict[str, float]:
    """Score `model` on `dataset` with `compute_metrics`."""
    return compute_metrics(dataset.task, predict_logits(model, dataset).numpy(), np.asarray(dataset.labels))


def majority_predictions(train_labels: Sequence[float], task: str | Task, rows: int) -> np.ndarray:
    """Predict the most frequent training class for every row, or for STS-B the mean score: ``(rows,)``."""
    if get_task(task).is_regression:
        return np.full(rows, np.mean(train_labels))
    return np.full(rows, np.bincount(np.asarray(train_labels)).argmax())


def joined_texts(split: Dataset, task: Task) -> list[str]:
    """Join the text columns of each row with a space."""
    return [" ".join(texts) for texts in zip(*(split[column][:] for column in task.text_columns), strict=True)]


def _linear_model(task: Task) -> LogisticRegression | Ridge:
    return Ridge() if task.is_regression else LogisticRegression(max_iter=1000)


def tfidf_predictions(train: Dataset, split: Dataset, task: str | Task) -> np.ndarray:
    """Predict `split` from TF-IDF of 1- and 2-grams of the joined text: class numbers or scores, ``(N,)``.

    Logistic regression, or ridge for STS-B: it knows words but neither order beyond a neighbour nor meaning.
    """
    task = get_task(task)
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), _linear_model(task))
    model.fit(joined_texts(train, task), train["label"][:])
    return model.predict(joined_texts(split, task))


def probe_predictions(student: DistilBERTwithBottleNeck, train: CustomDataset, split: CustomDataset) -> np.ndarray:
    """Predict `split` from a linear model on a student's mean hidden states: class numbers or scores, ``(N,)``.

    Logistic regression, or ridge for STS-B, on standardised features, scikit-learn's defaults.
    """
    probe = make_pipeline(StandardScaler(), _linear_model(train.task))
    probe.fit(_sentence_vectors(student, train), train.labels)
    return probe.predict(_sentence_vectors(student, split))


def _sentence_vectors(student: DistilBERTwithBottleNeck, dataset: CustomDataset) -> np.ndarray:
    """Take the mean hidden state of each row: ``(len(dataset), dim)``."""
    states = predict_states(student, dataset).float().split(dataset.lengths.tolist())
    return torch.stack([row.mean(0) for row in states]).numpy()


def key_agreement(
    teacher: EncoderWithBottleNeck, student: EncoderWithBottleNeck, dataset: CustomDataset
) -> tuple[np.ndarray, np.ndarray]:
    """Measure how often a student fires the key that its teacher fires.

    Means something only where both have the same keys (`DistilBERTwithBottleNeck.carry_keys`); else it is chance.

    Returns
    -------
    agreement, error : numpy.ndarray
        ``(C,)`` each: the share of tokens with the same key index, and the student's quantisation error (mean
        squared distance to the key over the variance of its vectors).
    """
    states = torch.cat(list(student.hidden_states(dataset)))
    fired = student.bottleneck.quantize(states)
    same = fired == torch.cat([teacher.bottleneck.quantize(batch) for batch in teacher.hidden_states(dataset)])
    error = student.bottleneck.usage(fired, states)["quantization_error"]
    return same.double().mean(0).cpu().numpy(), error.to_numpy()


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    predictions: np.ndarray,
    labels: np.ndarray,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Measure how far a score could lie elsewhere had other validation rows been drawn.

    Percentile bootstrap over rows (Efron 1979). It does not cover the spread over training seeds.

    Parameters
    ----------
    metric : callable
        Takes predictions and labels, returns one number.
    predictions, labels : numpy.ndarray
        ``(N, ...)`` and ``(N,)``; for a difference of two systems on the same rows, predictions of both.
    level : float
        Share of the resamples inside the interval.
    resamples, seed : int
        Number of resamples and the seed for them.

    Returns
    -------
    tuple of float
        Lower and upper end.
    """
    # rows are what is drawn; a batch of one resample keeps memory at that of one
    found = bootstrap(
        (np.arange(len(labels)),),
        lambda rows: metric(predictions[rows], labels[rows]),
        n_resamples=resamples,
        batch=1,
        vectorized=False,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def model_size(model: PreTrainedModel) -> dict[str, float]:
    """Count a model's parameters and trainable parameters (millions) and its megabytes, buffers included."""
    return {
        "parameters_m": model.num_parameters() / 1e6,
        "trainable_m": model.num_parameters(only_trainable=True) / 1e6,
        "megabytes": model.get_memory_footprint() / 1e6,
    }


@torch.no_grad()
def latency(model: PreTrainedModel, dataset: CustomDataset, rows: int = 32, seconds: float = 0.5) -> float:
    """Measure the median seconds that `model` takes for a batch of the first `rows` rows; a GPU is waited for."""
    batch = dataset.collate([dataset[row] for row in range(min(rows, len(dataset)))])
    inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS}
    # the Timer would otherwise use one thread
    timer = Timer(
        "model(**inputs)", globals={"model": model.eval(), "inputs": inputs}, num_threads=torch.get_num_threads()
    )
    return timer.blocked_autorange(min_run_time=seconds).median
