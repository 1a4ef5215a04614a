"""The tables of the README and the data card are those of the committed results."""

import json
from pathlib import Path

import pytest

from kvlib import TASKS
from kvlib.recipe import SYSTEMS

ROOT = Path(__file__).resolve().parents[1]


def read(name):
    return json.loads((ROOT / "data" / "results" / name / "metrics.json").read_text())


def headline(task, suffix=""):
    """The metric a table shows: the task's first official one, on the split the suffix names."""
    return f"{TASKS[task].metrics[0]}{suffix}"


def results_table():
    rows = [
        "| task | metric | " + " | ".join(SYSTEMS.values()) + " | seconds |",
        "|---|---|" + "---|" * (len(SYSTEMS) + 1),
    ]
    for task in TASKS:
        result = read(task)
        seconds = f"{sum(result['seconds'].values()):.0f}"
        for suffix in ("", "_mismatched") if task == "mnli" else ("",):
            metric = headline(task, suffix)
            scores = " | ".join(f"{100 * result['scores'][system][metric]:.1f}" for system in SYSTEMS)
            name = f"{task} mismatched" if suffix else task
            rows.append(f"| {name} | {metric.removesuffix(suffix)} | {scores} | {seconds} |")
    return "\n".join(rows)


def difficulty_table():
    rows = ["| task | metric | majority class | TF-IDF | teacher |", "|---|---|---|---|---|"]
    for task, spec in TASKS.items():
        for suffix in ("", "_mismatched") if task == "mnli" else ("",):
            metric = "pearson" if spec.is_regression else "accuracy"
            scores = read(task)["scores"]
            cells = [f"{100 * scores[s][f'{metric}{suffix}']:.1f}" for s in ("majority", "tfidf", "teacher")]
            rows.append(f"| {f'{task} mismatched' if suffix else task} | {metric} | {' | '.join(cells)} |")
    return "\n".join(rows)


def cola_table():
    scores = read("glue-cola")["scores"]
    rows = ["| system | MCC | accuracy |", "|---|---|---|"]
    rows += [
        f"| {name} | {100 * scores[s]['mcc']:.1f} | {100 * scores[s]['accuracy']:.1f} |"
        for s, name in SYSTEMS.items()
    ]
    return "\n".join(rows)


@pytest.mark.parametrize(
    ("page", "table"),
    [("README.md", results_table), ("README.md", cola_table), ("data/README.md", difficulty_table)],
)
def test_tables_are_those_of_the_results(page, table):
    assert table() in (ROOT / page).read_text(encoding="utf-8")


def test_the_bottleneck_keeps_95_percent_of_the_distilled_students_mcc_on_real_cola():
    result = read("glue-cola")
    assert result["rows"] == {"train": 8551, "validation": 1043}
    scores = result["scores"]
    assert scores["distilled"]["mcc"] > 0.1
    assert scores["bottleneck"]["mcc"] >= 0.95 * scores["distilled"]["mcc"]
