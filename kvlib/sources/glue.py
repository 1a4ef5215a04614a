"""GLUE: the course's small tasks, the hub, the official download, or a folder in the hub's form."""

import os
import warnings
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset

from kvlib.data import Task, get_task
from kvlib.pretrained import REVISIONS
from kvlib.sources.files import READERS, place, read_lines, read_table, require_columns, require_texts

MINI_GLUE = Path(str(resources.files("kvlib.mini_glue")))
HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class _Layout:
    """Where a task stands in the official download: its folder and the columns of text and label."""

    folder: str
    texts: tuple[str, ...]
    label: str
    # of the files that have no header; test files do
    columns: tuple[str, ...] = ()


_PAIR = ("sentence1", "sentence2")
_OFFICIAL = {
    "mnli": _Layout("MNLI", _PAIR, "gold_label"),
    "rte": _Layout("RTE", _PAIR, "label"),
    "cola": _Layout("CoLA", ("sentence",), "label", ("source", "label", "mark", "sentence")),
    "mrpc": _Layout("MRPC", ("#1 String", "#2 String"), "Quality"),
    "qnli": _Layout("QNLI", ("question", "sentence"), "label"),
    "sst2": _Layout("SST-2", ("sentence",), "label"),
    "stsb": _Layout("STS-B", _PAIR, "score"),
    "qqp": _Layout("QQP", ("question1", "question2"), "is_duplicate"),
}


def load_glue(task: str | Task, source: str | Path | None = None) -> DatasetDict:
    """Load one GLUE task with the hub's columns and label numbers.

    Parameters
    ----------
    task : str or Task
        One of the eight in `TASKS`.
    source : str or pathlib.Path, optional
        ``"mini"`` (the default) for the data that ships with the course; ``"hub"`` for ``nyu-mll/glue``; the
        folder of the official download (with ``CoLA/train.tsv``, ``CoLA/dev.tsv`` …), of which the files that are
        there are loaded; or a folder that holds ``<task>/<split>.tsv``, ``.csv``, ``.jsonl`` or ``.parquet`` as
        `read_table` reads them. There ``idx`` may be missing (rows are numbered), and test labels, test splits and
        MNLI's mismatched validation split; labels are numbers or class names.

    Returns
    -------
    datasets.DatasetDict
        Splits by name. Text columns are strings, ``label`` a ``ClassLabel`` (float32 for STS-B; -1 where
        hidden), ``idx`` an int32 that is unique in its split.

    Raises
    ------
    ValueError
        For an unknown task, a missing column, a label outside the task's, an empty text, or what `read_table`
        raises; the message names file and line.
    FileNotFoundError
        For a missing folder or split, or if the hub cannot be reached.

    Warns
    -----
    UserWarning
        Of the official download: if rows are broken and left out, have no text, or are fewer than GLUE's.
    """
    task = get_task(task)
    if task.name not in _OFFICIAL:
        raise ValueError(f"task {task.name!r} is none of GLUE's: pass its data, too, as load_task gives them")
    if source == "hub":
        return _load_hub(task)
    source = MINI_GLUE if source in (None, "mini") else Path(source)
    # as they are spelled, which matters where a file system does not tell "cola" from "CoLA"
    there = os.listdir(source) if source.is_dir() else []
    if task.name not in there and _OFFICIAL[task.name].folder in there:
        return _load_official(source, task)
    folder = source / task.name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: source={str(source)!r} must be 'mini', 'hub', the official download (with "
            f"{_OFFICIAL[task.name].folder}/train.tsv), or a folder that holds {task.name}/train.tsv and "
            f"{task.name}/{task.validation[0]}.tsv (.csv, .jsonl or .parquet)"
        )
    paths = {name: _find_split(folder, name) for name in task.splits}
    for name in ("train", task.validation[0]):
        if paths[name] is None:
            hint = f" (GLUE's own download calls the folder {_OFFICIAL[task.name].folder})"
            raise FileNotFoundError(
                f"{folder} has no split {name!r}: expected {name}{', '.join(READERS)}, found {_present(folder)}"
                + (hint if (folder / "dev.tsv").is_file() else "")
            )
    return DatasetDict({name: _read_split(path, task) for name, path in paths.items() if path})


def _present(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"


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
        require_columns(f"{HUB_NAME} ({task.name}/{name})", split.column_names, task.columns)
    return data


def _load_official(source: Path, task: Task) -> DatasetDict:
    layout, data = _OFFICIAL[task.name], DatasetDict()
    for name, rows in zip(task.splits, task.official_rows, strict=True):
        path = source / layout.folder / f"{name.replace('validation', 'dev')}.tsv"
        if path.is_file():
            data[name] = _read_official(path, task, name)
            if len(data[name]) < rows:
                warnings.warn(f"{path} is a part: {len(data[name])} of GLUE's {rows} rows", stacklevel=3)
    if not data:
        raise FileNotFoundError(
            f"{source / layout.folder} has no train.tsv, {task.validation[0].replace('validation', 'dev')}.tsv …, "
            f"found {_present(source / layout.folder)}"
        )
    return data


def _read_official(path: Path, task: Task, name: str) -> Dataset:
    """Read a file of the official download; of QQP's and MNLI's, rows of another width are left out."""
    layout, is_test, first = _OFFICIAL[task.name], name in task.test, 2
    if task.name == "cola" and not is_test:
        frame, first = read_table(path, layout.columns), 1
    elif task.name in ("mnli", "qqp"):
        frame = _read_uneven(path)
    else:
        frame = read_table(path)
    found = list(frame.columns)
    # in test files the first column is the index that GLUE's server asks for
    expected = (found[0], *layout.texts) if is_test else (*layout.texts, layout.label)
    require_columns(str(path), found, expected)
    rows = pd.DataFrame(
        {ours: frame[theirs] for ours, theirs in zip(task.text_columns, layout.texts, strict=True)}
    )
    rows["label"] = -1 if is_test else frame[layout.label]
    rows["idx"] = frame[found[0]] if is_test else frame.index - first
    blank = sum(rows[column].str.strip().eq("") for column in task.text_columns).astype(bool)
    if blank.any():
        # GLUE has such rows, and its scores count them
        warnings.warn(
            f"{path}: {int(blank.sum())} rows lack a text, the first in {place(rows, blank)}", stacklevel=4
        )
    return to_split(rows, str(path), task, is_test)


def _read_uneven(path: Path) -> pd.DataFrame:
    header, *lines = read_lines(path)
    columns = header.split("\t")
    rows = {number: line.split("\t") for number, line in enumerate(lines, start=2)}
    whole = {number: row for number, row in rows.items() if len(row) == len(columns)}
    if broken := [number for number in rows if number not in whole]:
        shown = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        warnings.warn(
            f"{path}: {len(broken)} broken rows left out (line {shown}): not as many fields as columns",
            stacklevel=5,
        )
    if not whole:
        raise ValueError(f"{path} has no rows")
    return pd.DataFrame(list(whole.values()), pd.Index(whole, name="line"), columns, dtype=object)


def _find_split(folder: Path, name: str) -> Path | None:
    found = [path for suffix in READERS if (path := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {name!r} more than once: {', '.join(p.name for p in found)}; keep one")
    return found[0] if found else None


def _read_split(path: Path, task: Task) -> Dataset:
    frame, is_test = read_table(path), path.stem in task.test
    optional = {"idx", "label"} if is_test else {"idx"}
    required = [column for column in task.columns if column not in optional]
    require_columns(str(path), list(frame.columns), required)
    require_texts(str(path), frame, task.text_columns)
    if "idx" not in frame:
        frame["idx"] = range(len(frame))
    if "label" not in frame:
        frame["label"] = -1
    return to_split(frame, str(path), task, is_test)


def to_split(frame: pd.DataFrame, where: str, task: Task, is_test: bool = False) -> Dataset:
    """Make a split with the columns of `task` of a frame that has them; `where` is its file, for messages."""
    columns = {column: frame[column].tolist() for column in task.text_columns}
    columns["label"] = _parse_labels(frame, where, task, is_test)
    columns["idx"] = _parse_idx(frame, where)
    label = Value("float32") if task.is_regression else ClassLabel(names=list(task.label_names))
    features = dict.fromkeys(task.text_columns, Value("string")) | {"label": label, "idx": Value("int32")}
    return Dataset.from_dict(columns, features=Features(features))


def _parse_labels(frame: pd.DataFrame, where: str, task: Task, is_test: bool) -> list[float] | list[int]:
    raw = frame["label"]
    numbers = pd.to_numeric(raw, errors="coerce")
    if task.is_regression:
        low, high = task.score_range or (-float("inf"), float("inf"))
        allowed, good = f"a number from {low:g} to {high:g}", numbers.between(low, high)
    else:
        allowed = "one of " + ", ".join(f"{i} ({name})" for i, name in enumerate(task.label_names))
        names = {name: float(number) for number, name in enumerate(task.label_names)}
        numbers = pd.to_numeric(raw.map(lambda label: names.get(label, label)), errors="coerce")
        good = numbers.isin(range(task.num_labels))
    if is_test:
        allowed, good = f"{allowed} or -1 (hidden)", good | (numbers == -1)
    if not good.all():
        wrong = raw[~good].iloc[0]
        raise ValueError(f"{where}: {place(frame, ~good)} has label {wrong!r}, expected {allowed}")
    return numbers.astype(float if task.is_regression else int).tolist()


def _parse_idx(frame: pd.DataFrame, where: str) -> list[int]:
    numbers = pd.to_numeric(frame["idx"], errors="coerce")
    # NaN % 1 is NaN, and so no whole number either
    wrong = (numbers % 1 != 0) | numbers.duplicated()
    if wrong.any():
        value = frame["idx"][wrong].iloc[0]
        raise ValueError(f"{where}: {place(frame, wrong)} has idx {value!r}, expected whole numbers, each once")
    return numbers.astype(int).tolist()
