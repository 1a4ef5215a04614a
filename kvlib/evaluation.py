"""Score models and baselines, with what a reader needs to judge the numbers."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from scipy.sparse import spmatrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel

from kvlib.data import CustomDataset, Task, get_task
from kvlib.discretized import DiscretizedModel
from kvlib.metrics import compute_metrics
from kvlib.student import DistilBERTwithBottleNeck
from kvlib.teacher import predict_logits, predict_states


def evaluate(model: PreTrainedModel, dataset: CustomDataset) -> dict[str, float]:
    """Score `model` on `dataset` with `compute_metrics`."""
    return compute_metrics(dataset.task.name, predict_logits(model, dataset).numpy(), np.asarray(dataset.labels))


def majority_predictions(train_labels: Sequence[float], task: str, rows: int) -> np.ndarray:
    """Predict the most frequent training class for every row, or the mean training score for STS-B.

    Returns
    -------
    numpy.ndarray
        Shape ``(rows,)``.
    """
    if get_task(task).is_regression:
        return np.full(rows, np.mean(train_labels))
    return np.full(rows, np.bincount(np.asarray(train_labels)).argmax())


def joined_texts(split: Dataset, task: Task) -> list[str]:
    """Join the text columns of each row with a space."""
    return [" ".join(texts) for texts in zip(*(split[column][:] for column in task.text_columns), strict=True)]


def tfidf_predictions(train: Dataset, split: Dataset, task: str) -> np.ndarray:
    """Predict `split` from TF-IDF of 1- and 2-grams of the joined text.

    Logistic regression for classification, ridge for STS-B, scikit-learn's defaults: a baseline that knows
    words but neither order beyond a neighbour nor meaning.

    Returns
    -------
    numpy.ndarray
        Shape ``(len(split),)``: class numbers or scores.
    """
    spec = get_task(task)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    features: spmatrix = vectorizer.fit_transform(joined_texts(train, spec))
    model = Ridge() if spec.is_regression else LogisticRegression(max_iter=1000)
    model.fit(features, train["label"][:])
    return model.predict(vectorizer.transform(joined_texts(split, spec)))


def probe_predictions(student: DistilBERTwithBottleNeck, train: CustomDataset, split: CustomDataset) -> np.ndarray:
    """Predict `split` from a linear model on a frozen encoder's mean hidden states: a linear probe.

    Logistic regression for classification, ridge for STS-B, on standardised features, scikit-learn's defaults.

    Parameters
    ----------
    student : DistilBERTwithBottleNeck
        Without a bottleneck; only its encoder is used.
    train, split : CustomDataset
        Rows to fit on and rows to predict.

    Returns
    -------
    numpy.ndarray
        Shape ``(len(split),)``: class numbers or scores.
    """
    model = Ridge() if train.task.is_regression else LogisticRegression(max_iter=1000)
    probe = make_pipeline(StandardScaler(), model)
    probe.fit(_sentence_vectors(student, train), train.labels)
    return probe.predict(_sentence_vectors(student, split))


def _sentence_vectors(student: DistilBERTwithBottleNeck, dataset: CustomDataset) -> np.ndarray:
    """Take the mean hidden state of each row: ``(len(dataset), dim)``."""
    states = predict_states(student, dataset).float().split(dataset.lengths.tolist())
    return torch.stack([row.mean(0) for row in states]).numpy()


def key_agreement(
    teacher: DiscretizedModel, student: DiscretizedModel, dataset: CustomDataset
) -> tuple[np.ndarray, np.ndarray]:
    """Say how often a student fires the key that its teacher fires.

    Means something only where both have the same keys (`DistilBERTwithBottleNeck.carry_keys`); else it is chance.

    Parameters
    ----------
    teacher, student : BERTwithBottleNeck, DistilBERTwithBottleNeck
        With as many codebooks, both pooling after the search.
    dataset : CustomDataset
        The rows on whose tokens they are compared.

    Returns
    -------
    agreement, error : numpy.ndarray
        Shape ``(C,)`` each: the share of tokens with the same key index, and the student's quantisation error
        (mean squared distance to the key over the variance of its vectors).
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
    """Say how far a score could lie elsewhere had other validation rows been drawn.

    Percentile bootstrap over rows (Efron 1979). It does not cover the spread over training seeds.

    Parameters
    ----------
    metric : callable
        Takes predictions and labels, returns one number.
    predictions : numpy.ndarray
        ``(N, ...)``.
    labels : numpy.ndarray
        ``(N,)``.
    level : float
        Share of the resamples inside the interval.
    resamples, seed : int
        Number of resamples and their seed.

    Returns
    -------
    tuple of float
        Lower and upper end.
    """
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(labels), size=(resamples, len(labels)))
    scores = [metric(predictions[row], labels[row]) for row in rows]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def model_size(model: PreTrainedModel) -> dict[str, float]:
    """Count a model's parameters and trainable parameters (millions) and its megabytes, buffers included."""
    parameters = list(model.parameters())
    tensors = parameters + list(model.buffers())
    return {
        "parameters_m": sum(p.numel() for p in parameters) / 1e6,
        "trainable_m": sum(p.numel() for p in parameters if p.requires_grad) / 1e6,
        "megabytes": sum(t.numel() * t.element_size() for t in tensors) / 1e6,
    }


@torch.inference_mode()
def latency(model: PreTrainedModel, dataset: CustomDataset, rows: int = 32, repeats: int = 10) -> float:
    """Measure the median seconds that `model` takes for one batch of the first `rows` rows."""
    batch = dataset.collate([dataset[row] for row in range(min(rows, len(dataset)))])
    inputs = {name: batch[name].to(model.device) for name in ("input_ids", "token_type_ids", "attention_mask")}
    model.eval()
    model(**inputs)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        model(**inputs)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
