"""Tasks, what they look like and how they are scored, and turning a split into model inputs."""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from kvlib.sources.files import require_columns

# what a model is given of a batch
MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


@dataclass(frozen=True)
class Task:
    """What a task looks like and how it is scored.

    Parameters
    ----------
    name : str
        In messages and names of files; of a GLUE task the hub's configuration name, for example ``"sst2"``.
    text_columns : tuple of str
        One or two columns that hold the texts.
    label_names : tuple of str
        Class names in the order of the label numbers; empty for regression.
    metrics : tuple of str
        What is reported, of those that `compute_metrics` gives; the first one selects the best epoch.
    validation, test : tuple of str
        Names of the splits, more than one only for MNLI; labels of test splits are hidden (-1).
    score_range : tuple of float, optional
        Lowest and highest score of a regression.
    official_rows : tuple of int
        Rows of GLUE's own training, validation and test splits, in this order.
    """

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    validation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)
    score_range: tuple[float, float] | None = None
    official_rows: tuple[int, ...] = ()

    @property
    def is_regression(self) -> bool:
        """True where the label is a number, as STS-B's similarity from 0 to 5."""
        return not self.label_names

    @property
    def num_labels(self) -> int:
        """Number of logits: one for regression, else the number of classes."""
        return max(1, len(self.label_names))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns every split has, in the hub's order."""
        return (*self.text_columns, "label", "idx")

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of all splits, training first, then validation and test."""
        return ("train", *self.validation, *self.test)


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",),
            ("validation_matched", "validation_mismatched"), ("test_matched", "test_mismatched"),
            official_rows=(392702, 9815, 9832, 9796, 9847),
        ),
        Task("rte", _PAIR, _ENTAILMENT, ("accuracy",), official_rows=(2490, 277, 3000)),
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("mcc",), official_rows=(8551, 1043, 1063)),
        Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1"), official_rows=(3668, 408, 1725)),
        Task("qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",), official_rows=(104743, 5463, 5463)),
        Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), official_rows=(67349, 872, 1821)),
        Task("stsb", _PAIR, (), ("pearson", "spearman"), score_range=(0, 5), official_rows=(5749, 1500, 1379)),
        Task(
            "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"),
            official_rows=(363846, 40430, 390965),
        ),
    )
}  # fmt: skip


def get_task(task: str | Task) -> Task:
    """Return the GLUE task of a name, or the task itself; raise ValueError, with the names, if there is none."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    return TASKS[task]


def hold_out(split: Dataset, fraction: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Part a training split into rows to train on and a `fraction` to choose the best epoch by, stratified.

    The validation splits that are reported must not choose anything, hence this held-out part.

    Raises
    ------
    ValueError
        If all rows are of one class, a class has a single row, or the part is too small to hold a row of each
        class; of a regression, if there are fewer than ten rows.
    """
    if not isinstance(split.features["label"], ClassLabel):
        if len(split) < 10:
            raise ValueError(f"cannot hold out a part of {len(split)} training rows: use some dozens")
        parts = split.train_test_split(fraction, seed=seed)
        return parts["train"], parts["test"]
    counts, names = Counter(split["label"][:]), split.features["label"].names
    if len(counts) < 2:
        raise ValueError(
            f"the training rows hold one class, {', '.join(names[n] for n in counts)}: expected two or more"
        )
    single = [names[number] for number, count in counts.items() if count == 1]
    if single or len(split) * min(fraction, 1 - fraction) < len(counts):
        raise ValueError(
            f"cannot hold out {fraction:.0%} of {len(split)} training rows with a row of each of {len(counts)} "
            "classes" + (f", and {', '.join(single)} has one row only" if single else "") + ": use more rows"
        )
    parts = split.train_test_split(fraction, seed=seed, stratify_by_column="label")
    return parts["train"], parts["test"]


class CustomDataset(torch.utils.data.Dataset):
    """One tokenised split: variable length, padded per batch by `collate`.

    Everything is tokenised once, in one call. Pairs that are too long lose tokens from their longer part.

    Parameters
    ----------
    split : datasets.Dataset
        As `load_glue` and `load_task` give it: text columns, ``label`` and ``idx``.
    tokenizer : transformers.PreTrainedTokenizerBase
        BERT's tokenizer; teacher and student share it.
    task : str or Task
        A GLUE task's name, or a task.
    max_length : int
        Longest sequence kept, in tokens, special tokens included.
    teacher_logits : torch.Tensor, optional
        Shape ``(len(split), num_labels)``, row by row in the order of `split`.
    teacher_states : torch.Tensor, optional
        The teacher's last hidden states of all real tokens, row after row, ``(sum(lengths), dim)``, as
        `kvlib.teacher.predict_states` gives them.

    Attributes
    ----------
    labels, idx : list
        Of each row.
    lengths : numpy.ndarray
        Real tokens of each row, shape ``(len(self),)``, int64.

    Raises
    ------
    ValueError
        If a column is missing, `max_length` leaves no room for a text, `teacher_logits` or `teacher_states` has
        another shape, or logits are not finite.
    """

    def __init__(
        self,
        split: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        task: str | Task,
        max_length: int = 128,
        teacher_logits: torch.Tensor | None = None,
        teacher_states: torch.Tensor | None = None,
    ) -> None:
        self.task = get_task(task)
        require_columns(f"the {self.task.name} split", split.column_names, self.task.columns)
        special = tokenizer.num_special_tokens_to_add(pair=len(self.task.text_columns) == 2)
        if max_length < special + len(self.task.text_columns):
            raise ValueError(
                f"max_length is {max_length}, expected at least {special + len(self.task.text_columns)}: "
                f"{special} special tokens and a word of each text"
            )
        texts = [split[column][:] for column in self.task.text_columns]
        encoded = tokenizer(*texts, truncation="longest_first", max_length=max_length)
        self.inputs = {name: encoded[name] for name in tokenizer.model_input_names}
        self.labels = split["label"][:]
        self.idx = split["idx"][:]
        self.tokenizer = tokenizer
        self.lengths = np.array([len(ids) for ids in self.inputs["input_ids"]], dtype=np.int64)
        self._ends = self.lengths.cumsum()
        self.teacher_logits = None if teacher_logits is None else self._checked_logits(teacher_logits)
        if teacher_states is not None and len(teacher_states) != self.lengths.sum():
            raise ValueError(
                f"teacher_states has {len(teacher_states)} rows, expected one for each of the "
                f"{self.lengths.sum()} real tokens; compute them again"
            )
        self.teacher_states = teacher_states

    def _checked_logits(self, teacher_logits: torch.Tensor) -> torch.Tensor:
        expected = (len(self), self.task.num_labels)
        if tuple(teacher_logits.shape) != expected:
            raise ValueError(
                f"teacher_logits has shape {tuple(teacher_logits.shape)}, expected {expected}: one row of "
                f"{self.task.num_labels} logit(s) for each of the {len(self)} examples; compute them again"
            )
        if not torch.isfinite(teacher_logits).all():
            raise ValueError("teacher_logits holds NaN or infinity; compute them again")
        return teacher_logits.float().cpu()

    def __len__(self) -> int:
        return len(self.idx)

    def __getitem__(self, row: int) -> dict:
        example = {name: column[row] for name, column in self.inputs.items()}
        example |= {"labels": self.labels[row], "idx": self.idx[row]}
        if self.teacher_logits is not None:
            example["teacher_logits"] = self.teacher_logits[row].tolist()
        if self.teacher_states is not None:
            end = self._ends[row]
            example["teacher_states"] = self.teacher_states[end - self.lengths[row] : end]
        return example

    def collate(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Pad `examples` to the longest of them.

        Returns ``input_ids``, ``token_type_ids``, ``attention_mask`` (B, T) int64, ``labels`` (B,) int64, or
        float32 for regression, ``idx`` (B,) int64; if there are any, ``teacher_logits`` (B, num_labels) float32
        and ``teacher_states`` (N, dim), row after row and without padding.
        """
        states = [example.pop("teacher_states") for example in examples if "teacher_states" in example]
        batch = dict(DataCollatorWithPadding(self.tokenizer)(examples))
        return batch | {"teacher_states": torch.cat(states)} if states else batch

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokens, segments, labels and idx in order: what caches of this split are keyed by."""
        digest = hashlib.sha256(self.lengths.tobytes())
        for column in (*self.inputs.values(), [self.labels], [self.idx]):
            digest.update(np.concatenate([np.asarray(row, dtype=np.float64) for row in column]).tobytes())
        return digest.hexdigest()
