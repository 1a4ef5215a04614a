"""Write the mini-GLUE data set: eight small tasks in the formats of GLUE, made by a grammar.

``python data/make_mini_glue.py`` writes ``data/mini_glue/<task>/<split>.tsv``, the same bytes every time;
with ``--stats`` it writes nothing and prints the size and the make-up of what is there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:  # so that the module can be loaded from a file by a test
    sys.path.insert(0, str(HERE))

from mini_glue_grammar import Picker  # noqa: E402
from mini_glue_inference import mnli, qnli, rte  # noqa: E402
from mini_glue_lexicon import held_out_forms, lexicon  # noqa: E402
from mini_glue_similar import mrpc, qqp, stsb  # noqa: E402
from mini_glue_single import cola, sst2  # noqa: E402

__all__ = ["TASKS", "held_out_forms", "lexicon", "main", "make_split", "write"]

SEED = "mini-glue 1"
VALIDATION_ROWS = TEST_ROWS = 300


@dataclass(frozen=True)
class Task:
    """One task: its columns, its maker of examples, its size and the shares of its labels."""

    columns: tuple[str, ...]
    make: Callable[..., tuple]
    train_rows: int
    shares: dict[int, float]
    validation_shares: dict[int, float] | None = None
    genres: bool = False
    graded: bool = False

    def splits(self) -> list[str]:
        """Name the splits."""
        if self.genres:
            kinds = ("matched", "mismatched")
            return ["train", *(f"validation_{k}" for k in kinds), *(f"test_{k}" for k in kinds)]
        return ["train", "validation", "test"]


HALVES = {0: 0.5, 1: 0.5}
TASKS: dict[str, Task] = {
    "cola": Task(("sentence",), cola, 1800, {0: 0.3, 1: 0.7}),
    "sst2": Task(("sentence",), sst2, 1300, {0: 0.45, 1: 0.55}, {0: 0.49, 1: 0.51}),
    "mrpc": Task(("sentence1", "sentence2"), mrpc, 1300, {0: 0.32, 1: 0.68}),
    "qqp": Task(("question1", "question2"), qqp, 1300, {0: 0.63, 1: 0.37}),
    "stsb": Task(("sentence1", "sentence2"), stsb, 1300, dict.fromkeys(range(5), 0.2), graded=True),
    "mnli": Task(("premise", "hypothesis"), mnli, 1500, dict.fromkeys(range(3), 1 / 3), genres=True),
    "qnli": Task(("question", "sentence"), qnli, 1300, HALVES),
    "rte": Task(("sentence1", "sentence2"), rte, 1300, HALVES),
}


def label_sequence(p: Picker, shares: dict[int, float], rows: int) -> list[int]:
    """Give the labels of a split in random order, as close to the shares as whole numbers allow."""
    ends, labels, total = [], [], 0.0
    for label, share in shares.items():
        total += share
        ends.append((label, round(total * rows)))
    for label, end in ends:
        labels += [label] * (end - len(labels))
    return p.shuffled(labels)


def make_split(name: str, split: str, taken: set[str]) -> list[tuple]:
    """Make the rows of one split.

    Parameters
    ----------
    name : str
        The task.
    split : str
        The split.
    taken : set of str
        The texts of the splits made before, none of which is used again; the new ones are added.

    Returns
    -------
    list of tuple
        Texts and true label of each row (for STS-B: the score).
    """
    task = TASKS[name]
    p = Picker(f"{SEED}/{name}/{split}", split.startswith("validation"))
    rows = task.train_rows if split == "train" else VALIDATION_ROWS
    shares = task.shares if split == "train" else task.validation_shares or task.shares
    extra = {"mismatched": split.endswith("mismatched")} if task.genres else {}
    result = []
    for label in label_sequence(p, shares, rows):
        texts, made = (), ()
        while len(set(texts)) < len(task.columns) or taken.intersection(texts):
            made = task.make(p, label, **extra)
            texts = made[: len(task.columns)]
        taken.update(texts)
        result.append((*texts, made[-1] if task.graded else label))
    return result


def write(directory: Path) -> None:
    """Write all tasks below a directory."""
    for name, task in TASKS.items():
        taken: set[str] = set()
        (directory / name).mkdir(parents=True, exist_ok=True)
        for split in task.splits():
            lines = ["\t".join((*task.columns, "label", "idx"))]
            for number, row in enumerate(make_split(name, split, taken)):
                *texts, label = row
                if split.startswith("test"):
                    label = -1.0 if task.graded else -1
                lines.append("\t".join((*texts, str(label), str(number))))
            text = "\n".join(lines) + "\n"
            (directory / name / f"{split}.tsv").write_text(text, encoding="utf-8", newline="\n")


def read(path: Path) -> list[list[str]]:
    """Read the rows of a split, without its header."""
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def statistics(directory: Path) -> list[str]:
    """Count rows, labels, words and distinct texts of each task, as the rows of a Markdown table."""
    table = [
        "| task | rows per split | labels in train | words per text | distinct texts |",
        "|---|---|---|---|---|",
    ]
    for name, task in TASKS.items():
        splits = {split: read(directory / name / f"{split}.tsv") for split in task.splits()}
        texts = [text for rows in splits.values() for row in rows for text in row[: len(task.columns)]]
        labels = [row[len(task.columns)] for row in splits["train"]]
        if task.graded:
            scores = [float(label) for label in labels]
            balance = f"mean {sum(scores) / len(scores):.2f}, from {min(scores)} to {max(scores)}"
        else:
            balance = ", ".join(f"{k}: {labels.count(k) / len(labels):.1%}" for k in sorted(set(labels)))
        sizes = " / ".join(str(len(rows)) for rows in splits.values())
        words = sum(len(text.split()) for text in texts) / len(texts)
        table.append(f"| {name} | {sizes} | {balance} | {words:.1f} | {len(set(texts)) / len(texts):.1%} |")
    for pos, records in lexicon().items():
        table.append(f"{pos}: {len(records)} lemmas, {sum(bool(r['held_out']) for r in records)} held out")
    return table


def main() -> None:
    """Write the data set next to this file, or describe the one that is there."""
    if "--stats" in sys.argv[1:]:
        print("\n".join(statistics(HERE / "mini_glue")))
    else:
        write(HERE / "mini_glue")


if __name__ == "__main__":
    main()
