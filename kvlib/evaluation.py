"""Score models and baselines, with what a reader needs to judge the numbers."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from scipy.special import rel_entr, softmax
from scipy.stats import bootstrap
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel

from kvlib.data import CustomDataset, Task, get_task
from kvlib.metrics import compute_metrics
from kvlib.student import DistilBERTwithBottleNeck, EncoderWithBottleNeck
from kvlib.teacher import predict_logits, predict_states


def evaluate(model: PreTrainedModel, dataset: CustomDataset) -> dict[str, float]:
    """Score `model` on `dataset` with `compute_metrics`."""
    return compute_metrics(dataset.task, predict_logits(model, dataset).numpy(), np.asarray(dataset.labels))


def teacher_agreement(teacher_logits: np.ndarray, student_logits: np.ndarray) -> dict[str, float]:
    """Measure how far a student behaves as its teacher does, whatever is right; logits are ``(N, num_labels)``.

    Returns ``same_answer``, the share of rows with the same class, and ``kl``, the mean KL divergence of the
    student's probabilities from the teacher's in nats; for regression ``squared_difference``, its mean over rows.
    """
    if teacher_logits.shape[1] == 1:
        return {"squared_difference": float(np.square(teacher_logits - student_logits).mean())}
    same = teacher_logits.argmax(1) == student_logits.argmax(1)
    divergence = rel_entr(softmax(teacher_logits, axis=1), softmax(student_logits, axis=1)).sum(1)
    return {"same_answer": float(same.mean()), "kl": float(divergence.mean())}


def majority_predictions(train_labels: Sequence[float], task: str | Task, rows: int) -> np.ndarray:
    """Predict the most frequent training class for every row, or for STS-B the mean score: ``(rows,)``."""
    if get_task(task).is_regression:
        return np.full(rows, np.mean(train_labels))
    return np.full(rows, np.bincount(np.asarray(train_labels)).argmax())


def joined_texts(split: Dataset, task: Task, separator: str = " ") -> list[str]:
    """Join the text columns of each row."""
    return [
        separator.join(texts) for texts in zip(*(split[column][:] for column in task.text_columns), strict=True)
    ]


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
    """Predict `split` with the same linear model, but from a student's mean hidden states, standardised."""
    probe = make_pipeline(StandardScaler(), _linear_model(train.task))
    probe.fit(sentence_vectors(student, train), train.labels)
    return probe.predict(sentence_vectors(student, split))


def sentence_vectors(model: PreTrainedModel, dataset: CustomDataset) -> np.ndarray:
    """Pool each row of a data set: the mean of its real tokens' last hidden states, ``(len(dataset), dim)``."""
    states = predict_states(model, dataset).float().split(dataset.lengths.tolist())
    return torch.stack([row.mean(0) for row in states]).numpy()


def key_agreement(
    teacher: EncoderWithBottleNeck, student: EncoderWithBottleNeck, dataset: CustomDataset
) -> tuple[np.ndarray, np.ndarray]:
    """Measure how often a student fires the key that its teacher fires, and its quantisation error.

    Returns two arrays ``(C,)``: the share of tokens with the same key index, which is chance unless both have the
    same keys (`DistilBERTwithBottleNeck.carry_keys`), and the mean squared distance of the student's vectors to
    the key over their variance.
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
    """Measure how far a score could lie elsewhere had other validation rows been drawn: lower and upper end.

    Percentile bootstrap over rows (Efron 1979). It does not cover the spread over training seeds. `metric` takes
    rows of `predictions` ``(N, ...)`` and of `labels` ``(N,)``; for a difference of two systems, predictions of
    both. `level` is the share of the resamples inside.
    """
    # rows are what is drawn; a batch of one resample keeps memory at that of one
    interval = bootstrap(
        (np.arange(len(labels)),),
        lambda rows: metric(predictions[rows], labels[rows]),
        n_resamples=resamples,
        batch=1,
        vectorized=False,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def model_size(model: PreTrainedModel) -> dict[str, float]:
    """Count a model's parameters and trainable parameters (millions) and its megabytes, buffers included."""
    return {
        "parameters_m": model.num_parameters() / 1e6,
        "trainable_m": model.num_parameters(only_trainable=True) / 1e6,
        "megabytes": model.get_memory_footprint() / 1e6,
    }
