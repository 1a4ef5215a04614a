import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from kvlib import TASKS, DistilBERTwithBottleNeck, Experiment, compute_metrics, distil, load_glue, predict_logits
from kvlib.__main__ import main
from kvlib.profiles import PROFILES
from kvlib.recipe import SYSTEMS, WeakTeacherError


def kvlib(*arguments, **environment):
    """Run the command line in a process of its own, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "kvlib", *map(str, arguments)],
        capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip


def write_rows(folder, task, rows, **columns):
    """Write the first rows of each split of mini GLUE as a folder of one's own."""
    (folder / task).mkdir(parents=True)
    for name, split in load_glue(task).items():
        frame = split.select(range(min(rows, len(split)))).to_pandas().assign(**columns)
        frame.to_csv(folder / task / f"{name}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The whole recipe on 400 rows of SST-2, run from a shell."""
    folder = tmp_path_factory.mktemp("recipe")
    source = write_rows(folder / "glue", "sst2", 400)
    arguments = (
        "distil",
        "--task",
        "sst2",
        "--source",
        source,
        "--output",
        folder / "out",
        "--runs",
        folder / "runs",
    )
    return folder, arguments, kvlib(*arguments)


def test_shell_prints_the_table_and_writes_metrics(finished):
    folder, _, run = finished
    assert run.returncode == 0, run.stderr
    assert all(name in run.stdout for name in SYSTEMS.values())
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    assert (metrics["task"], metrics["profile"], metrics["seed"]) == ("sst2", "quick", 0)
    assert metrics["source"] == str(folder / "glue")
    assert metrics["rows"] == {"train": 400, "validation": 300}
    assert list(metrics["scores"]) == ["majority", "tfidf", "teacher", "fine_tuned", "distilled", "bottleneck"]
    for scores in metrics["scores"].values():
        assert set(scores) == {"accuracy", "f1", "mcc"}
        assert 0 <= scores["accuracy"] <= 1
    assert set(metrics["seconds"]) == {"teacher", "fine_tuned", "distilled", "bottleneck"}
    assert metrics["peak_memory_mb"] > 100


def test_saved_student_gives_the_written_score(finished, tokenizer):
    folder, _, _ = finished
    written = json.loads((folder / "out" / "metrics.json").read_text())["scores"]["bottleneck"]
    student = DistilBERTwithBottleNeck.from_pretrained(folder / "out" / "student")
    experiment = Experiment("sst2", folder / "glue", runs=folder / "runs")
    dataset = experiment.validation["validation"]
    found = compute_metrics("sst2", predict_logits(student, dataset).numpy(), np.array(dataset.labels))
    # another process with the same weights: one row may sit on a rounding error
    assert found["accuracy"] == pytest.approx(written["accuracy"], abs=1.01 / 300)


def test_finished_stages_are_read_not_trained_again(finished):
    folder, _, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("model.safetensors")}
    again = distil("sst2", folder / "glue", runs=folder / "runs")
    written = json.loads((folder / "out" / "metrics.json").read_text())
    assert again.metrics["seconds"] == written["seconds"]
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("model.safetensors")} == before
    assert len(before) == 4
    assert all("-" in path.name and "partial" not in path.name for path in (folder / "runs").iterdir())


def test_a_stage_under_the_wrong_name_is_refused(finished):
    folder, _, _ = finished
    record = next((folder / "runs").glob("sst2-teacher-*")) / "record.json"
    original = record.read_text()
    changed = json.loads(original)
    changed["made_from"]["seed"] = 7
    record.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="made from something else"):
        _ = Experiment("sst2", folder / "glue", runs=folder / "runs").teacher
    record.write_text(original)


def test_a_teacher_no_better_than_the_majority_is_refused(tmp_path):
    source = write_rows(tmp_path / "glue", "sst2", 40, label=1)
    run = kvlib("distil", "--task", "sst2", "--source", source, "--runs", tmp_path / "runs")
    assert run.returncode == 1
    assert "a student would learn noise" in run.stderr.splitlines()[-1]
    profile = replace(PROFILES["quick"], teacher_epochs=1)
    with pytest.raises(WeakTeacherError, match=r"is 1\.000, the majority class's 1\.000"):
        _ = Experiment("sst2", source, profile, runs=tmp_path / "runs").teacher
    assert not [path for path in (tmp_path / "runs").iterdir() if "distilled" in path.name]


@pytest.mark.parametrize("task", ["stsb", "mnli"])
def test_regression_and_two_validation_splits_run_through(task, tmp_path):
    # three words that tell the three classes: 96 rows teach the teacher enough
    words = {0: "yes", 1: "maybe", 2: "no", -1: "maybe"}
    telling = {"hypothesis": lambda frame: frame["label"].map(words)} if task == "mnli" else {}
    source = write_rows(tmp_path / "glue", task, 96, **telling)
    profile = replace(PROFILES["quick"], teacher_epochs=4, student_epochs=1, bottleneck_epochs=2, codebook_size=16)
    scores = Experiment(task, source, profile, runs=tmp_path / "runs").scores()
    expected = {"pearson", "spearman"} if task == "stsb" else {"accuracy", "f1", "mcc"}
    if task == "mnli":
        expected |= {f"{name}_mismatched" for name in expected}
    assert all(set(found) == expected for found in scores.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "arguments are required: COMMAND"),
        (("distil",), "arguments are required: --task"),
        (("distil", "--task", "nonsense"), "unknown task 'nonsense': choose one of " + ", ".join(TASKS)),
        (("distil", "--task", "sst2", "--source", "nowhere"), "no folder nowhere/sst2"),
        (("distil", "--task", "sst2", "--profile", "huge"), "unknown profile 'huge': choose one of quick, real, base"),
        (("distil", "--task", "sst2", "--seed", "one"), "invalid int value: 'one'"),
        (("distil", "--task", "sst2", "--output", __file__), "is a file, expected a folder"),
        (("distil", "--task", "sst2", "--source", "hub"), "cannot load nyu-mll/glue (sst2) from the hub"),
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert message in printed.err


def test_a_real_process_ends_the_same_way():
    run = kvlib("distil", "--task", "nonsense")
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert all(task in run.stderr for task in TASKS)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        main(["distil", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--task", "--source", "--profile", "--seed", "--output", "--runs"):
        assert option in printed


def test_bottleneck_learns_from_integers_alone(finished):
    folder, _, _ = finished
    experiment = Experiment("sst2", folder / "glue", runs=folder / "runs")
    start = experiment.discretized()
    trained = experiment.bottleneck
    for name, tensor in trained.state_dict().items():
        if name != "bottleneck.values":
            assert torch.equal(tensor, start.state_dict()[name]), name
