"""The eight GLUE tasks: their columns and labels, loading them, and turning a split into model inputs."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from kvlib.pretrained import REVISIONS

MINI_GLUE = Path(str(resources.files("kvlib.mini_glue")))
HUB_NAME = "nyu-mll/glue"
# what a model is given of a batch
MODEL_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


@dataclass(frozen=True)
class Task:
    """What one GLUE task looks like and how it is scored.

    Parameters
    ----------
    name : str
        The hub's configuration name, for example ``"sst2"``.
    text_columns : tuple of str
        One or two columns that hold the sentences.
    label_names : tuple of str
        Class names in the order of the label numbers; empty for regression.
    metrics : tuple of str
        The official GLUE metrics; the first one selects the best epoch.
    validation, test : tuple of str
        Names of the splits, more than one only for MNLI; labels of test splits are hidden (-1).
    """

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metrics: tuple[str, ...]
    validation: tuple[str, ...] = ("validation",)
    test: tuple[str, ...] = ("test",)

    @property
    def is_regression(self) -> bool:
        """True for STS-B, whose label is a similarity from 0 to 5."""
        return not self.label_names

    @property
    def num_labels(self) -> int:
        """Number of logits: one for regression, else the number of classes."""
        return max(1, len(self.label_names))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns every split has, in the hub's order."""
        return (*self.text_columns, "label", "idx")


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            ("validation_matched", "validation_mismatched"),
            ("test_matched", "test_mismatched"),
        ),
        Task("rte", _PAIR, _ENTAILMENT, ("accuracy",)),
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("mcc",)),
        Task("mrpc", _PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        Task("qnli", ("question", "sentence"), _ENTAILMENT, ("accuracy",)),
        Task("sst2", ("sentence",), ("negative", "positive"), ("accuracy",)),
        Task("stsb", _PAIR, (), ("pearson", "spearman")),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    )
}


def get_task(task: str | Task) -> Task:
    """Return the task of a name, or the task itself; raise ValueError, with the eight names, if there is none."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: choose one of {', '.join(TASKS)}")
    return TASKS[task]


def load_glue(task: str | Task, source: str | Path | None = None) -> DatasetDict:
    """Load one GLUE task with the hub's columns and label numbers.

    Parameters
    ----------
    task : str or Task
        One of the eight in `TASKS`.
    source : str or pathlib.Path, optional
        ``"mini"`` (the default) for the data that ships with the course, ``"hub"`` for ``nyu-mll/glue``, or
        a folder that holds ``<task>/<split>.tsv`` (tab-separated, a header line, *no quoting*), ``.csv``
        (with quoting), ``.jsonl`` or ``.parquet``. There ``idx`` may be missing (rows are numbered), and test
        labels, test splits and MNLI's mismatched validation split.

    Returns
    -------
    datasets.DatasetDict
        Splits by name. Text columns are strings, ``label`` a ``ClassLabel`` (float32 for STS-B; -1 where
        hidden), ``idx`` an int32 that is unique in its split.

    Raises
    ------
    ValueError
        For an unknown task, a missing column, a label outside the task's, an empty text, a file that is not
        UTF-8 or whose rows do not have as many fields as its header.
    FileNotFoundError
        For a missing folder or split, or if the hub cannot be reached.
    """
    task = get_task(task)
    if source == "hub":
        return _load_hub(task)
    folder = (MINI_GLUE if source in (None, "mini") else Path(source)) / task.name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: source={str(source)!r} must be 'mini', 'hub', or a folder that holds "
            f"{task.name}/train.tsv and {task.name}/{task.validation[0]}.tsv (.csv, .jsonl or .parquet)"
        )
    paths = {name: _find_split(folder, name) for name in ("train", *task.validation, *task.test)}
    for name in ("train", task.validation[0]):
        if paths[name] is None:
            present = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise FileNotFoundError(
                f"{folder} has no split {name!r}: expected {name}.tsv, .csv, .jsonl or .parquet, found {present}"
            )
    return DatasetDict({name: _read_split(path, task) for name, path in paths.items() if path})


def _load_hub(task: Task) -> DatasetDict:
    try:
        data = load_dataset(HUB_NAME, task.name, revision=REVISIONS[HUB_NAME])
    # the errors of the hub's client and of what it reads with share no base class
    except Exception as error:
        raise FileNotFoundError(
            f"cannot load {HUB_NAME} ({task.name}) from the hub: {type(error).__name__}: {error}. "
            "Use source='mini' for the data that ships with the course, or source=FOLDER for your own files"
        ) from error
    # texts are not checked here: two official QQP rows are blank (github.com/huggingface/datasets/issues/277)
    for name, split in data.items():
        _check_columns(f"{HUB_NAME} ({task.name}/{name})", split.column_names, task.columns)
    return data


def _find_split(folder: Path, name: str) -> Path | None:
    found = [path for suffix in _READERS if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {name!r} more than once: {', '.join(p.name for p in found)}; keep one")
    return found[0] if found else None


def _read_split(path: Path, task: Task) -> Dataset:
    try:
        frame = _READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}): "
            "save it as UTF-8, for example with iconv -f LATIN1 -t UTF-8"
        ) from error
    except OSError as error:
        raise FileNotFoundError(f"cannot read {path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    is_test = path.stem in task.test
    if "idx" not in frame:
        frame["idx"] = range(len(frame))
    if is_test and "label" not in frame:
        frame["label"] = -1
    _check_columns(str(path), list(frame.columns), task.columns)
    if frame.empty:
        raise ValueError(f"{path} has a header but no rows")
    for column in task.text_columns:
        blank = ~frame[column].map(lambda text: isinstance(text, str) and bool(text.strip())).to_numpy(bool)
        if blank.any():
            row = int(blank.argmax())
            raise ValueError(
                f"{path}: row {row + 1} has no text in column {column!r} ({frame[column].iloc[row]!r}); "
                "fill or remove the row"
            )
    columns = {column: frame[column].tolist() for column in task.text_columns}
    columns["label"] = _parse_labels(frame["label"], path, task, is_test)
    columns["idx"] = _parse_idx(frame["idx"], path)
    label = Value("float32") if task.is_regression else ClassLabel(names=list(task.label_names))
    features = dict.fromkeys(task.text_columns, Value("string")) | {"label": label, "idx": Value("int32")}
    return Dataset.from_dict(columns, features=Features(features))


def _check_columns(where: str, found: list[str], expected: Sequence[str]) -> None:
    missing = [column for column in expected if column not in found]
    if missing:
        raise ValueError(
            f"{where} has no column {', '.join(map(repr, missing))}: expected {', '.join(expected)}, "
            f"found {', '.join(map(str, found))}"
        )


def _parse_labels(raw: pd.Series, path: Path, task: Task, is_test: bool) -> list[float] | list[int]:
    numbers = pd.to_numeric(raw, errors="coerce")
    if task.is_regression:
        allowed, good = "a number from 0 to 5", numbers.between(0, 5)
    else:
        allowed = "one of " + ", ".join(f"{i} ({name})" for i, name in enumerate(task.label_names))
        good = numbers.isin(range(task.num_labels))
    if is_test:
        allowed, good = f"{allowed} or -1 (hidden)", good | (numbers == -1)
    if not good.all():
        row = int((~good).to_numpy().argmax())
        raise ValueError(f"{path}: row {row + 1} has label {raw.iloc[row]!r}, expected {allowed}")
    return numbers.astype(float if task.is_regression else int).tolist()


def _parse_idx(raw: pd.Series, path: Path) -> list[int]:
    numbers = pd.to_numeric(raw, errors="coerce")
    # NaN % 1 is NaN, and so no whole number either
    wrong = (numbers % 1 != 0) | numbers.duplicated()
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise ValueError(f"{path}: row {row + 1} has idx {raw.iloc[row]!r}, expected whole numbers, each once")
    return numbers.astype(int).tolist()


def _read_tsv(path: Path) -> pd.DataFrame:
    """Read GLUE's own format: a quotation mark is a character like any other, so no CSV reader fits."""
    header, *lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n").split("\n")
    columns = header.split("\t")
    rows = [line.split("\t") for line in lines]
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise ValueError(f"line {number} has {len(row)} fields, the header has {len(columns)}")
    return pd.DataFrame(rows, columns=columns, dtype=object)


def _read_csv(path: Path) -> pd.DataFrame:
    # keep_default_na: "NA" and "None" are words of a sentence here, not missing values
    return pd.read_csv(path, dtype=object, keep_default_na=False, encoding="utf-8-sig")


def _read_jsonl(path: Path) -> pd.DataFrame:
    rows = []
    # not splitlines(), which also splits at characters that may stand inside a sentence: U+2028, U+0085
    lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
    return pd.DataFrame(rows, dtype=object)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": pd.read_parquet,
}


def hold_out(split: Dataset, fraction: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Part a training split into rows to train on and a `fraction` to choose the best epoch by, stratified.

    The validation splits that are reported must not choose anything, hence this held-out part.
    """
    stratify = "label" if isinstance(split.features["label"], ClassLabel) else None
    parts = split.train_test_split(fraction, seed=seed, stratify_by_column=stratify)
    return parts["train"], parts["test"]


class CustomDataset(torch.utils.data.Dataset):
    """One tokenised GLUE split: variable length, padded per batch by `collate`.

    Everything is tokenised once, in one call. Pairs that are too long lose tokens from their longer part.

    Parameters
    ----------
    split : datasets.Dataset
        A split of `load_glue`: text columns, ``label`` and ``idx``.
    tokenizer : transformers.PreTrainedTokenizerBase
        BERT's tokenizer; teacher and student share it.
    task : str or Task
        One of the eight GLUE tasks.
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
        If a column is missing, `teacher_logits` or `teacher_states` has another shape, or logits are not finite.
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
        _check_columns(f"the {self.task.name} split", split.column_names, self.task.columns)
        texts = [split[column][:] for column in self.task.text_columns]
        encoded = tokenizer(*texts, truncation="longest_first", max_length=max_length)
        self.inputs = {name: encoded[name] for name in tokenizer.model_input_names}
        self.labels = split["label"][:]
        self.idx = split["idx"][:]
        self.tokenizer = tokenizer
        self.max_length = max_length
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
