"""GLUE's submission files: what the students say about the test splits, in the server's format.

The server (gluebenchmark.com/submit) takes one zip of eleven files with fixed names, each a header
``index<TAB>prediction`` and one line a row of the test split, and refuses it if a file or an index is missing.
Nine of them are made here. The other two are not, because nothing here could fill them honestly: ``WNLI.tsv``
(WNLI is not among the eight tasks) and ``AX.tsv`` (an MNLI student could answer these diagnostics, but they are
not loaded here). Take both from GLUE's sample submission, ``gluebenchmark.com/assets/CBOW.zip``; the scores of
these two are then the sample's, not the students'.
"""

import json
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from kvlib.cache import write_aside
from kvlib.data import TASKS, CustomDataset, get_task
from kvlib.explore import longest_input
from kvlib.machine import device
from kvlib.sources.glue import load_glue
from kvlib.teacher import label_config, predict_logits

# task -> test split -> the file's name
FILES = {
    "mnli": {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
    "rte": {"test": "RTE.tsv"},
    "cola": {"test": "CoLA.tsv"},
    "mrpc": {"test": "MRPC.tsv"},
    "qnli": {"test": "QNLI.tsv"},
    "sst2": {"test": "SST-2.tsv"},
    "stsb": {"test": "STS-B.tsv"},
    "qqp": {"test": "QQP.tsv"},
}
OFFICIAL_ROWS = {
    file: rows
    for task, files in FILES.items()
    for file, rows in zip(files.values(), TASKS[task].official_rows[-len(files) :], strict=True)
}
NOT_MADE_HERE = ("WNLI.tsv", "AX.tsv")
# the server wants words for inference, class numbers for the rest
_IN_WORDS = ("mnli", "rte", "qnli")


def find_students(folder: str | Path) -> dict[str, Path]:
    """Find the students ``<task>/student`` in a folder, by task in the order of `kvlib.data.TASKS`.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    students = {task: path for task in TASKS if (path := Path(folder) / task / "student").is_dir()}
    if not students:
        raise FileNotFoundError(
            f"{folder} holds no student: expected {folder}/TASK/student for one of {', '.join(TASKS)}; "
            f"python -m kvlib distil --task TASK --output {folder}/TASK makes one"
        )
    return students


def check_student(student: str | Path, task: str) -> None:
    """Refuse a student, a folder as `distil` writes it, that cannot answer `task`, without loading its weights.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing; if its labels or their order are not the task's, or if a ``metrics.json`` beside it
        names another task (RTE and QNLI have the same labels).
    """
    student, spec = Path(student), get_task(task)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (student / name).is_file():
            raise FileNotFoundError(f"{student} has no {name}: {_again(task, student)}")
    try:
        with safe_open(student / "model.safetensors", framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"the weights in {student} are damaged ({error}): {_again(task, student)}") from error
    config, expected = AutoConfig.from_pretrained(student), label_config(spec)
    if config.id2label != expected["id2label"]:
        raise ValueError(
            f"the student in {student} numbers its labels {', '.join(config.id2label.values())}, but {task} "
            f"numbers them {', '.join(expected['id2label'].values())}: {_again(task, student)}"
        )
    metrics = student.parent / "metrics.json"
    distilled_on = json.loads(metrics.read_text(encoding="utf-8")).get("task", task) if metrics.is_file() else task
    if distilled_on != task:
        raise ValueError(f"{metrics} says that {student} was distilled on {distilled_on}: {_again(task, student)}")


def _again(task: str, student: Path) -> str:
    return f"make it with python -m kvlib distil --task {task} --output {student.parent}"


def check_test_splits(data: DatasetDict, task: str) -> DatasetDict:
    """Return the test splits of `task`, each in the order of its idx, which must be 0, 1, 2, … without a gap.

    Raises
    ------
    ValueError
        If a test split is missing, or an idx is missing or there twice.
    """
    missing = [name for name in get_task(task).test if name not in data]
    if missing:
        raise ValueError(
            f"the data of {task} has no split {' and '.join(map(repr, missing))}, only {', '.join(data)}: "
            f"add {task}/{missing[0]}.tsv to the folder, or take source 'hub'"
        )
    splits = {}
    for name in get_task(task).test:
        idx = np.array(data[name]["idx"][:])
        order = idx.argsort(kind="stable")
        wrong = next((place for place, found in enumerate(idx[order]) if place != found), None)
        if wrong is not None:
            raise ValueError(
                f"the {name} split of {task} has {len(idx)} rows, so its idx must be 0 to {len(idx) - 1}, each "
                f"once: found {idx[order][wrong]} where {wrong} was expected. The server asks for every row: put "
                "the official split back, or remove the column idx to number the rows in their order"
            )
        splits[name] = data[name].select(order)
    return DatasetDict(splits)


def check_submission(students: str | Path, source: str | Path | None = None) -> dict[str, DatasetDict]:
    """Check all that a submission needs, and return the test splits of every task with a student in `students`."""
    found = find_students(students)
    for task, student in found.items():
        check_student(student, task)
    return {task: check_test_splits(load_glue(task, source), task) for task in found}


def write_submission(student: str | Path, data: DatasetDict, task: str, folder: str | Path) -> dict[str, int]:
    """Predict the test split of one task and write its submission file; two files for MNLI.

    Texts are read as far as in training, which the student's tokenizer was saved with.

    Parameters
    ----------
    student : str or pathlib.Path
        As in `check_student`.
    data : datasets.DatasetDict
        As `load_glue` gives it; its test splits are predicted.
    task : str
        One of the eight GLUE names.
    folder : str or pathlib.Path
        Where the files go; one of the same name is replaced.

    Returns
    -------
    dict of str to int
        Name of each file to its number of rows.
    """
    check_student(student, task)
    splits = check_test_splits(data, task)
    model = AutoModelForSequenceClassification.from_pretrained(student, dtype=torch.float32)
    model.to(device())
    tokenizer = AutoTokenizer.from_pretrained(student)
    texts = {}
    for name, split in splits.items():
        logits = predict_logits(model, CustomDataset(split, tokenizer, task, longest_input(model, tokenizer)))
        lines = [f"{index}\t{prediction}\n" for index, prediction in enumerate(predictions(logits, task))]
        texts[FILES[task][name]] = "".join(["index\tprediction\n", *lines])
    for file, text in texts.items():
        with write_aside(Path(folder) / file) as temporary:
            # bytes: no platform may turn the newline into another
            temporary.write_bytes(text.encode())
    return {FILES[task][name]: len(split) for name, split in splits.items()}


def predictions(logits: torch.Tensor, task: str) -> list[str]:
    """Turn logits ``(N, num_labels)`` into N words that the server reads; raise ValueError for any other logits.

    Label names for MNLI, RTE and QNLI, class numbers for CoLA, MRPC, SST-2 and QQP, and for STS-B the score, cut
    off at 0 and 5 (the server takes no other), with three decimals.
    """
    spec = get_task(task)
    if logits.ndim != 2 or logits.shape[1] != spec.num_labels:
        raise ValueError(f"{task} needs logits of shape (N, {spec.num_labels}), got {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise ValueError(f"the student's logits on {task} hold NaN or infinity: distil it again")
    if spec.is_regression:
        return [f"{score:.3f}" for score in logits[:, 0].clamp(*spec.score_range).tolist()]
    names = spec.label_names if task in _IN_WORDS else [str(number) for number in range(spec.num_labels)]
    return [names[number] for number in logits.argmax(1).tolist()]
