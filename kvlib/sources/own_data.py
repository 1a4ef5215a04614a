"""A task of one's own, from a file of labelled texts: what it is, and whether it can be learned from."""

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset, DatasetDict, load_dataset, load_from_disk
from sklearn.model_selection import train_test_split
from transformers import PreTrainedTokenizerBase

from kvlib.data import Task
from kvlib.sources.files import READERS, place, read_table, require_columns, require_texts
from kvlib.sources.glue import to_split

Source = str | Path | Sequence[str | Path] | pd.DataFrame | Dataset | DatasetDict
# more whole numbers than this may be classes or a quantity: whoever has them must say it
_MOST_NUMBERED_CLASSES = 20
# a class with fewer rows is hardly learned, and its score means little
_RARE = 10
_NUMBER = r"-?(0|[1-9]\d{0,14})(\.\d+)?"
_DECIMAL_COMMA = r"-?(0|[1-9]\d*)(,\d+)?"


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
        As `data`. Without it a fifth of the different texts is held out: seeded, stratified, equal ones (but for
        case and spaces) on one side. A text that stands more than three times, and in more than a fiftieth of the
        rows, stays in training.
    regression : bool, optional
        Whether the label is a number to predict. By default fractions are, and up to 20 different whole numbers or
        any words are classes; codes such as 01067 are words.
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
    columns = {"text": text, "label": label} | ({"text_pair": text_pair} if text_pair else {})
    if len(set(columns.values())) < len(columns):
        raise ValueError(
            f"text, text_pair and label are {', '.join(columns.values())}: expected different columns"
        )
    splits = _read(data)
    if "train" not in splits:
        raise ValueError(f"the data has no split 'train', only {', '.join(splits)}")
    if validation is not None:
        others = _read(validation)
        if len(others) > 1 and "validation" not in others:
            raise ValueError(f"the validation data has the splits {', '.join(others)}: pass one of them")
        splits["validation"] = others.get("validation", next(iter(others.values())))
    splits = {name: splits[name] for name in ("train", "validation") if name in splits}
    frames = {name: _checked(frame, where, columns) for name, (frame, where) in splits.items()}
    names = _class_names(frames, {name: where for name, (_, where) in splits.items()}, label, regression)
    texts = ("text", "text_pair") if text_pair else ("text",)
    metrics = ("macro_f1", "accuracy", "mcc") if names else ("pearson", "spearman")
    task = Task(_task_name(name, data), texts, names, metrics)
    if "validation" not in frames:
        frames["train"], frames["validation"] = _hold_out(frames["train"], task, seed)
    _check_classes(frames, task, label)
    return task, DatasetDict(
        {split: to_split(frame.assign(idx=range(len(frame))), task.name, task) for split, frame in frames.items()}
    )


def _task_name(name: str | None, data: Source) -> str:
    first = data if isinstance(data, str | Path) else data[0] if isinstance(data, list | tuple) else "task"
    return re.sub("[^a-z0-9]+", "-", (name or Path(str(first)).stem).lower()).strip("-") or "task"


def _read(data: Source) -> dict[str, tuple[pd.DataFrame, str]]:
    """Read whatever holds the rows: by split a frame, in which each row knows where it stands, and its name."""
    if isinstance(data, pd.DataFrame):
        return {"train": (data.set_axis(pd.RangeIndex(len(data), name="row")), "the data")}
    if isinstance(data, Dataset):
        return {"train": (_frame_of(data), "the data")}
    if isinstance(data, DatasetDict):
        # hidden labels of a test split need not be readable
        return {
            split: (_frame_of(rows), f"the {split} split") for split, rows in data.items() if split != "test"
        } or {"test": (pd.DataFrame(), "the test split")}
    if not isinstance(data, str | Path):
        frames = {str(path): read_table(path) for path in data}
        first, *_ = frames.values()
        for path, frame in frames.items():
            require_columns(path, list(frame.columns), list(first.columns))
        named = [frame.rename(index=lambda row, path=path: f"{row} of {path}") for path, frame in frames.items()]
        return {"train": (pd.concat(named), ", ".join(frames))}
    path = Path(data)
    if path.is_dir():
        return _loaded(load_from_disk, path, f"{path} is a folder, but none that datasets' save_to_disk wrote")
    if path.suffix.lower() in READERS or path.exists():
        return {"train": (read_table(path), str(path))}
    return _loaded(load_dataset, data, f"there is no file {data}, and the hub gives no data set of that name")


def _loaded(
    load: Callable[[str], Dataset | DatasetDict], name: str | Path, otherwise: str
) -> dict[str, tuple[pd.DataFrame, str]]:
    try:
        rows = load(str(name))
    # the errors of the hub's client and of what it reads with share no base class
    except Exception as error:
        raise FileNotFoundError(f"{otherwise}: {type(error).__name__}: {error}") from error
    return {split: (frame, f"{name} ({split})") for split, (frame, _) in _read(rows).items()}


def _frame_of(rows: Dataset) -> pd.DataFrame:
    frame = rows.to_pandas().rename_axis("row")
    for column, feature in rows.features.items():
        if isinstance(feature, ClassLabel):
            names = dict(enumerate(feature.names))
            frame[column] = pd.Categorical(frame[column].map(names), feature.names)
    return frame


def _checked(frame: pd.DataFrame, where: str, columns: dict[str, str]) -> pd.DataFrame:
    found = list(map(str, frame.columns))
    if len(found) == 1 and "separator" in frame.attrs:
        where = f"{where}, whose header was separated at {frame.attrs['separator']!r},"
    require_columns(where, found, list(columns.values()))
    frame = frame.set_axis(found, axis=1)
    if frame.empty:
        raise ValueError(f"{where} has no rows")
    if any(found.count(column) > 1 for column in columns.values()):
        raise ValueError(f"{where} has a column twice: expected {', '.join(columns.values())} once each")
    texts = [column for name, column in columns.items() if name != "label"]
    require_texts(where, frame, texts)
    labels = frame[columns["label"]]
    missing = labels.isna() | labels.astype(str).str.strip().eq("")
    if missing.any():
        raise ValueError(
            f"{where}: {int(missing.sum())} rows have no {columns['label']!r}, the first in "
            f"{place(frame, missing)}"
        )
    return pd.DataFrame({name: frame[column] for name, column in columns.items()})


def _class_names(
    frames: dict[str, pd.DataFrame], where: dict[str, str], label: str, regression: bool | None
) -> tuple[str, ...]:
    """Tell classes from numbers and write labels as names (as floats for regression) into the frames."""
    declared = frames["train"]["label"].dtype
    if isinstance(declared, pd.CategoricalDtype):
        if regression:
            raise ValueError(f"{where['train']}: {label!r} holds declared classes, not numbers to predict")
        _replace_labels(frames, lambda labels: labels.astype(str))
        used = set().union(*(frame["label"] for frame in frames.values()))
        unknown = used - set(map(str, declared.categories))
        return (*(name for name in map(str, declared.categories) if name in used), *sorted(unknown))
    words = pd.concat([frame["label"].astype(str).str.strip() for frame in frames.values()])
    # a decimal comma is one where no label is a word
    if words.str.fullmatch(_DECIMAL_COMMA).all() and words.str.contains(",").any():
        _replace_labels(frames, lambda labels: labels.str.replace(",", "."))
    wrong = {split: ~frame["label"].map(_is_number).astype(bool) for split, frame in frames.items()}
    numeric = not any(found.any() for found in wrong.values())
    if regression and not numeric:
        split = next(split for split, found in wrong.items() if found.any())
        value = str(frames[split]["label"][wrong[split]].iloc[0])
        at = place(frames[split], wrong[split])
        raise ValueError(f"{where[split]}: {at} has {label!r} {value!r}, expected a number")
    numbers = pd.concat([frame["label"].astype(float) for frame in frames.values()]) if numeric else None
    whole = numeric and bool((numbers % 1 == 0).all())
    if regression is None and whole and numbers.nunique() > _MOST_NUMBERED_CLASSES:
        raise ValueError(
            f"{label!r} holds {numbers.nunique()} different whole numbers: say whether they are a quantity to "
            "predict (--regression, regression=True) or classes (--no-regression, regression=False)"
        )
    if regression or (regression is None and numeric and not whole):
        if numbers.nunique() < 2:
            raise ValueError(f"{label!r} is {numbers.iloc[0]:g} in every row: there is nothing to predict")
        _replace_labels(frames, lambda labels: labels.astype(float))
        return ()
    # 1 and 1.0 are one class
    _replace_labels(
        frames, lambda labels: labels.map(lambda one: f"{float(one):.15g}" if numeric else str(one).strip())
    )
    names = sorted(set().union(*(frame["label"] for frame in frames.values())), key=float if numeric else None)
    if len(names) < 2:
        raise ValueError(f"{label!r} is {names[0]!r} in every row: expected two classes or more")
    if len(names) > len(words) / 2:
        raise ValueError(f"{label!r} has {len(names)} different values in {len(words)} rows: these are no classes")
    return tuple(names)


def _is_number(label: object) -> bool:
    """Tell a number from a word, such as True, and from a code, such as 01067, 1E2 or one of twenty digits."""
    if isinstance(label, str):
        return re.fullmatch(_NUMBER, label.strip()) is not None
    is_number = isinstance(label, int | float | np.number) and not isinstance(label, bool | np.bool_)
    return is_number and abs(label) < 10**15


def _replace_labels(frames: dict[str, pd.DataFrame], change: Callable[[pd.Series], pd.Series]) -> None:
    for frame in frames.values():
        frame["label"] = change(frame["label"])


def _hold_out(frame: pd.DataFrame, task: Task, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw a fifth of the distinct texts, stratified; what stands very often stays in training."""
    keys = _normalised_texts(frame, task)
    often = keys.map(keys.value_counts()) > max(3, len(frame) // 50)
    distinct = frame[~(often | keys.duplicated())]
    strata = distinct["label"]
    if task.is_regression and len(distinct) >= 8:
        strata = pd.qcut(strata.rank(method="first"), 4, labels=False)
    counts = strata.value_counts()
    fewest = max(2, task.num_labels)
    if len(distinct) < 5 * fewest or counts.min() < 2:
        raise ValueError(
            f"the data has {len(distinct)} different texts"
            + (f", of {counts.idxmin()!r} {counts.min()}" if len(counts) and task.label_names else "")
            + f": expected {5 * fewest} or more, and two of each class, to hold a fifth out; add rows, or name a "
            "validation file"
        )
    _, chosen = train_test_split(keys[distinct.index], test_size=0.2, random_state=seed, stratify=strata)
    held_out = keys.isin(set(chosen))
    return frame[~held_out], frame[held_out]


def _check_classes(frames: dict[str, pd.DataFrame], task: Task, label: str) -> None:
    both = set(_normalised_texts(frames["train"], task)) & set(_normalised_texts(frames["validation"], task))
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


def _normalised_texts(frame: pd.DataFrame, task: Task) -> pd.Series:
    """Return each row's texts in lower case and with single spaces: what the tokenizer cannot tell apart."""
    rows = zip(*(frame[column] for column in task.text_columns), strict=True)
    return pd.Series(["\n".join(" ".join(text.lower().split()) for text in row) for row in rows], frame.index)


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
    keys = {name: _normalised_texts(frame, task) for name, frame in frames.items()}
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
