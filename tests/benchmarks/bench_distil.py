"""Minutes and peak memory of `python -m kvlib distil` on real GLUE, and how they grow with rows; see README.md.

Every run is a process of its own, on files of its own with the first rows of a seeded shuffle.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from math import log
from pathlib import Path
from statistics import linear_regression
from tempfile import TemporaryDirectory
from time import perf_counter

from conftest import machine, markdown, work_of_others

COLUMNS = ("task", "training rows", "minutes", "seconds of each stage, and of the rest", "peak MB", "others")
FORMATS = {"training rows": ",", "minutes": ".1f", "peak MB": ",.0f", "others": ".2f"}


def cut(source: Path, folder: Path, train: int, validation: int) -> int:
    """Write the first rows of each shuffled split of a task; return how many there are to train on."""
    folder.mkdir(parents=True)
    found = 0
    for path in source.glob("*.tsv"):
        # a line is a row: GLUE's own format has no quoting
        header, *rows = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        random.Random(0).shuffle(rows)
        rows = rows[: train if path.stem == "train" else validation]
        (folder / path.name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        found = len(rows) if path.stem == "train" else found
    return found


def distil(task: str, source: Path, train: int, validation: int, profile: str) -> dict[str, str | float]:
    """Run the recipe once; the numbers of one row of the table, or why there are none."""
    with TemporaryDirectory() as folder:
        data, output = Path(folder) / "glue", Path(folder) / "output"
        row: dict[str, str | float] = {"task": task}
        row["training rows"] = cut(source / task, data / task, train, validation)
        command = [sys.executable, "-m", "kvlib", "distil", "--profile", profile, "--task", task]
        command += ["--source", str(data), "--runs", str(Path(folder) / "runs"), "--output", str(output)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        start, work = perf_counter(), work_of_others()
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        wall = perf_counter() - start
        if ended.returncode:
            # the recipe refuses a teacher that learnt nothing from so few rows
            print(f"{task}, {row['training rows']} rows: {ended.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return row
        metrics = json.loads((output / "metrics.json").read_text())
    spent = metrics["seconds"] | {"rest": wall - sum(metrics["seconds"].values())}
    row["minutes"] = wall / 60
    row[COLUMNS[3]] = ", ".join(f"{stage} {time:.0f}" for stage, time in spent.items())
    return row | {"peak MB": metrics["peak_memory_mb"], "others": (work_of_others() - work) / wall}


def exponent(sizes: list[float], values: list[float]) -> float:
    """Fit that of a power law."""
    return linear_regression([log(size) for size in sizes], [log(value) for value in values]).slope


def growth(rows: list[dict]) -> str:
    """Say how minutes and memory grow with the training rows."""
    rows = [row for row in rows if "minutes" in row]
    sizes = [row["training rows"] for row in rows]
    if len(set(sizes)) < 2:
        return "too few sizes for an exponent"
    grown = []
    for name in ("minutes", "peak MB"):
        values = [row[name] for row in rows]
        last = exponent(sizes[-2:], values[-2:])
        grown.append(f"{name} ^{exponent(sizes, values):.2f} (last step ^{last:.2f})")
    return f"sst2, {sizes[0]:,} to {sizes[-1]:,} rows: {', '.join(grown)}"


def cells(row: dict) -> list[str]:
    """Format one row of the table."""
    return [format(row[name], FORMATS.get(name, "")) if name in row else "-" for name in COLUMNS]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default="../shared/glue", help="folder of real GLUE")
    parser.add_argument("--tasks", nargs="*", default=["cola", "rte", "qnli", "mnli"], help="run once each")
    parser.add_argument("--rows", type=int, default=10000, help="training rows of those, at most")
    parser.add_argument("--growth", type=int, nargs="*", default=[1000, 2000, 4000, 8000], help="rows of SST-2")
    parser.add_argument("--validation", type=int, default=300, help="rows of each validation split, at most")
    parser.add_argument("--profile", default="quick")
    options = parser.parse_args()
    sizes = [(task, options.rows) for task in options.tasks] + [("sst2", rows) for rows in options.growth]
    missing = sorted({task for task, _ in sizes if not (options.source / task).is_dir()})
    if missing:
        print(f"skipped: {options.source} has no {', '.join(missing)}; name a folder of real GLUE with --source")
        return
    table = []
    for task, rows in sizes:
        table.append(distil(task, options.source, rows, options.validation, options.profile))
        # runs take minutes: show each at once
        print(" | ".join(cells(table[-1])), file=sys.stderr)
    print(f"{machine(('torch', 'transformers'))}; profile {options.profile}\n")
    print("\n".join(markdown(COLUMNS, list(map(cells, table)))))
    if options.growth:
        print(f"\n{growth(table[len(options.tasks) :])}")


if __name__ == "__main__":
    main()
