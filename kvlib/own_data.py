"""A task of one's own, from a file of labelled texts: what it is, and whether it can be learned from."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk
from sklearn.model_selection import StratifiedGroupKFold
from transformers import PreTrainedTokenizerBase

from kvlib.data import Task
from kvlib.files import READERS, place, read_table, require_columns, require_texts
from kvlib.glue import to_split

Source = str | Path | Sequence[str | Path] | pd.DataFrame | Dataset | DatasetDict
# more whole numbers than this may be classes or a quantity: whoever has them must say it
_MOST_NUMBERED_CLASSES = 20
# a class with fewer rows is hardly learned, and its score means little
_RARE = 10
_HELD_OUT_PARTS = 5


def load_task(
    data: Source,
    text: str,
    label: str,
    text_pair: str | None = None,
    validation: Source | None = None,
    regression: bool | None = None,
    name: str | None = None,
    seed: int = 0,
) -> tuple[Task, DatasetDict]:
    """Make a task of labelled texts, and its splits.

    Parameters
    ----------
    data : str, pathlib.Path, sequence of these, pandas.DataFrame, datasets.Dataset or datasets.DatasetDict
        One file or several, as `read_table` reads them; a folder saved by ``datasets``; the name of a data set on
        the hub; or the rows themselves. Of several splits ``train`` and ``validation`` are taken.
    text, text_pair, label : str
        Columns. In the splits they are called ``text``, ``text_pair`` and ``label``.
    validation : optional
        As `data`. Without it a fifth of the rows is held out: seeded, stratified, equal texts on one side.
    regression : bool, optional
        Whether the label is a number to predict. By default fractions are, and up to 20 different whole numbers or
        any words are classes.
    name : str, optional
        The task's; by default that of the file.
    seed : int
        Seed for the rows that are held out.

    Returns
    -------
    Task, datasets.DatasetDict
        To be passed on together, for example as ``distil(task, data)``. Classes are ordered by name, or by number.
        The first metric is macro F1, since accuracy hardly sees a rare class; for regression Pearson's
        correlation.

    Raises
    ------
    ValueError
        If a column, a text or a label is missing (with the lines), there are no two classes, a class is missing
        from a split, or it cannot be told whether numbers are classes.
    FileNotFoundError
        If there is no such file, and the hub has no data set of that name or cannot be reached.

    Warns
    -----
    UserWarning
        If a class has fewer than 10 training rows, or a validation text stands among the training texts.
    """
    splits, where = _read(data, label), {"train": _named(data), "validation": _named(data)}
    if validation is not None:
        splits["validation"], where["validation"] = (
            pd.concat(_read(validation, label).values()),
            _named(validation),
        )
    frames = {
        split: _checked(splits[split], where[split], text, label, text_pair)
        for split in ("train", "validation")
        if split in splits
    }
    if "train" not in frames:
        raise ValueError(f"the data has no split 'train', only {', '.join(splits)}")
    names = _class_names(frames, label, regression)
    texts = ("text", "text_pair") if text_pair else ("text",)
    metrics = ("macro_f1", "accuracy", "mcc") if names else ("pearson", "spearman")
    task = Task(_task_name(name, data), texts, names, metrics)
    if "validation" not in frames:
        frames["train"], frames["validation"] = _hold_out(frames["train"], task, seed)
    _check_classes(frames, task, label)
    return task, DatasetDict({split: _to_split(frame, task) for split, frame in frames.items()})


def _named(data: Source) -> str:
    if isinstance(data, str | Path):
        return str(data)
    return ", ".join(map(str, data)) if isinstance(data, list | tuple) else "the data"


def _task_name(name: str | None, data: Source) -> str:
    first = data if isinstance(data, str | Path) else data[0] if isinstance(data, list | tuple) else "task"
    return re.sub("[^a-z0-9]+", "-", (name or Path(str(first)).stem).lower()).strip("-") or "task"


def _read(data: Source, label: str) -> dict[str, pd.DataFrame]:
    """Read whatever holds the rows: by split a frame, in which each row knows where it stands."""
    if isinstance(data, pd.DataFrame):
        return {"train": data.rename_axis("row")}
    if isinstance(data, Dataset):
        return {"train": _frame_of(data, label)}
    if isinstance(data, DatasetDict):
        return {split: _frame_of(rows, label) for split, rows in data.items()}
    if not isinstance(data, str | Path):
        return {"train": pd.concat([_with_file(read_table(path), path) for path in data])}
    path = Path(data)
    if path.is_dir():
        try:
            return _read(load_from_disk(str(path)), label)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} is a folder, but none that datasets' save_to_disk wrote") from error
    if path.suffix in READERS or path.exists():
        return {"train": read_table(path)}
    try:
        return _read(load_dataset(str(data)), label)
    # the errors of the hub's client and of what it reads with share no base class
    except Exception as error:
        raise FileNotFoundError(
            f"there is no file {data}, and the hub gives no data set of that name: {type(error).__name__}: {error}"
        ) from error


def _with_file(frame: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    return frame.set_axis(pd.Index([f"{number} of {path}" for number in frame.index], name=frame.index.name))


def _frame_of(rows: Dataset, label: str) -> pd.DataFrame:
    frame = rows.to_pandas().rename_axis("row")
    if isinstance(rows.features.get(label), ClassLabel):
        names = rows.features[label].names
        frame[label] = pd.Categorical.from_codes(frame[label], names)
    return frame


def _checked(frame: pd.DataFrame, where: str, text: str, label: str, text_pair: str | None) -> pd.DataFrame:
    wanted = [column for column in (text, text_pair, label) if column]
    found = list(map(str, frame.columns))
    if len(found) == 1 and "separator" in frame.attrs:
        where = f"{where}, whose header was separated at {frame.attrs['separator']!r},"
    require_columns(where, found, wanted)
    require_texts(where, frame, [column for column in (text, text_pair) if column])
    missing = frame[label].isna() | frame[label].astype(str).str.strip().eq("")
    if missing.any():
        raise ValueError(
            f"{where}: {int(missing.sum())} rows have no {label!r}, the first in {place(frame, missing)}"
        )
    columns = {"text": frame[text], "label": frame[label]}
    return pd.DataFrame(columns | ({"text_pair": frame[text_pair]} if text_pair else {}))


def _class_names(frames: dict[str, pd.DataFrame], label: str, regression: bool | None) -> tuple[str, ...]:
    """Tell classes from numbers and write labels as names (as floats for regression) into the frames."""
    declared = frames["train"]["label"].dtype
    if isinstance(declared, pd.CategoricalDtype):
        for frame in frames.values():
            frame["label"] = frame["label"].astype(str)
        return tuple(map(str, declared.categories))
    labels = pd.concat([frame["label"].astype(object) for frame in frames.values()])
    # True and False are words here
    numbers = pd.to_numeric(labels.astype(str).str.strip(), errors="coerce")
    numeric = bool(np.isfinite(numbers).all())
    if regression and not numeric:
        wrong = ~np.isfinite(numbers)
        raise ValueError(f"{place(labels, wrong)} has {label!r} {labels[wrong].iloc[0]!r}, expected a number")
    whole = numeric and bool((numbers % 1 == 0).all())
    if regression is None:
        if whole and numbers.nunique() > _MOST_NUMBERED_CLASSES:
            raise ValueError(
                f"{label!r} holds {numbers.nunique()} different whole numbers: say whether they are a quantity to "
                "predict (--regression, regression=True) or classes (--no-regression, regression=False)"
            )
        regression = numeric and not whole
    for frame in frames.values():
        if regression:
            frame["label"] = pd.to_numeric(frame["label"]).astype(float)
        elif whole:
            frame["label"] = pd.to_numeric(frame["label"]).astype(int).astype(str)
        else:
            frame["label"] = frame["label"].astype(str).str.strip()
    if regression:
        return ()
    names = sorted(set().union(*(frame["label"] for frame in frames.values())), key=int if whole else None)
    if len(names) < 2:
        raise ValueError(f"{label!r} is {names[0]!r} in every row: expected two classes or more")
    if len(names) > len(labels) / 2:
        raise ValueError(
            f"{label!r} has {len(names)} different values in {len(labels)} rows: these are no classes"
        )
    return tuple(names)


def _hold_out(frame: pd.DataFrame, task: Task, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    if len(frame) < _HELD_OUT_PARTS:
        raise ValueError(f"the data has {len(frame)} rows: expected some dozens at least")
    groups = _keys(frame, task).factorize()[0]
    strata = frame["label"] if task.label_names else pd.qcut(frame["label"].rank(method="first"), 4, labels=False)
    folds = StratifiedGroupKFold(_HELD_OUT_PARTS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # of a class with few rows, about which more is said below
        warnings.simplefilter("ignore", UserWarning)
        try:
            train, held_out = next(folds.split(frame, strata.astype(str), groups))
        except ValueError as error:
            raise ValueError(f"the data cannot be parted into training and validation rows: {error}") from error
    return frame.iloc[train], frame.iloc[held_out]


def _check_classes(frames: dict[str, pd.DataFrame], task: Task, label: str) -> None:
    both = set(_keys(frames["train"], task)) & set(_keys(frames["validation"], task))
    if both:
        warnings.warn(
            f"{len(both)} validation texts stand among the training texts: scores will flatter", stacklevel=3
        )
    for split, frame in frames.items():
        missing = [name for name in task.label_names if name not in set(frame["label"])]
        if missing:
            raise ValueError(
                f"no {split} row has {label!r} {', '.join(map(repr, missing))}: add rows, join classes, or leave "
                "the rows of these classes out"
            )
    counts = frames["train"]["label"].value_counts()
    rare = [f"{name!r} ({counts[name]})" for name in task.label_names if counts[name] < _RARE]
    if rare:
        warnings.warn(f"rare classes, with fewer than {_RARE} training rows: {', '.join(rare)}", stacklevel=3)


def _keys(frame: pd.DataFrame, task: Task) -> pd.Series:
    return frame[list(task.text_columns)].agg("\n".join, axis=1).str.lower()


def _to_split(frame: pd.DataFrame, task: Task) -> Dataset:
    frame = frame.assign(idx=range(len(frame)))
    if task.label_names:
        frame["label"] = frame["label"].map({name: n for n, name in enumerate(task.label_names)})
    return to_split(frame, task.name, task)


def describe_data(task: Task, data: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int = 128) -> str:
    """Say what a task's training and validation splits hold, for whoever is about to train on them.

    Rows and labels, lengths and how many texts will be cut, equal texts within and across splits, three rows.
    """
    splits = {"train": data["train"], **{name: data[name] for name in task.validation if name in data}}
    frames = {name: split.to_pandas() for name, split in splits.items()}
    texts = "single texts" if len(task.text_columns) == 1 else "pairs of texts"
    kind = f"{task.num_labels} classes" if task.label_names else "a number to predict"
    lines = [f"{task.name}: {texts}, {kind}", _label_table(task, frames)]
    for name, frame in frames.items():
        texts = [frame[column].tolist() for column in task.text_columns]
        lengths = np.array([len(ids) for ids in tokenizer(*texts)["input_ids"]])
        lines.append(
            f"{name}: tokens a row: median {np.median(lengths):.0f}, longest {lengths.max()}; "
            f"{int((lengths > max_length).sum())} rows are cut at {max_length}"
        )
    keys = {name: _keys(frame, task) for name, frame in frames.items()}
    equal = [f"{int(rows.duplicated().sum())} within {name}" for name, rows in keys.items()]
    equal += [
        f"{int(rows.isin(keys['train']).sum())} of {name} in train"
        for name, rows in keys.items()
        if name != "train"
    ]
    lines += [f"equal texts: {', '.join(equal)}", "the first rows:"]
    for row in data["train"].select(range(min(3, len(data["train"])))):
        shown = task.label_names[row["label"]] if task.label_names else f"{row['label']:g}"
        lines.append(f"  {shown}: " + " / ".join(_shortened(row[column]) for column in task.text_columns))
    return "\n".join(lines)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:79]}…"


def _label_table(task: Task, frames: dict[str, pd.DataFrame]) -> str:
    if task.is_regression:
        table = pd.DataFrame(
            {name: frame["label"].describe()[["count", "min", "mean", "max"]] for name, frame in frames.items()}
        )
        return table.to_string(float_format="{:.6g}".format)
    columns = {}
    for name, frame in frames.items():
        counts = (
            frame["label"].value_counts().reindex(range(task.num_labels), fill_value=0).set_axis(task.label_names)
        )
        columns[name] = counts
        columns[f"share of {name}"] = (counts / counts.sum()).map("{:.1%}".format)
    table = pd.DataFrame(columns)
    return f"{table.to_string()}\nrows: " + ", ".join(f"{len(frame)} {name}" for name, frame in frames.items())
