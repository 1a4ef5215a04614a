import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from processes import ENVIRONMENT, linux_only
from shared_stages import finished_stages, shared_recipe
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from kvlib import PROFILES, Experiment, load_glue
from kvlib.cache import write_aside
from kvlib.explore import explain
from kvlib.recipe import command_line
from kvlib.recipe.command_line import main
from kvlib.recipe.distillation import check_output

GOOD = ["wonderful", "great", "superb", "splendid", "lovely"]
BAD = ["terrible", "awful", "dreadful", "dull", "horrid"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return shared_recipe(tmp_path_factory)


@pytest.fixture
def tiny(recipe, monkeypatch):
    """The small recipe's profile, by name."""
    monkeypatch.setitem(PROFILES, "tiny", recipe.profile)
    monkeypatch.setenv("KVLIB_PROFILE", "tiny")
    return recipe


def run(*words):
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def films(count, names):
    """Rows whose text tells their class, by number."""
    words = [GOOD, BAD, ["late", "slow"], ["short", "brief"], ["loud", "noisy"]][: len(names)]
    return pd.DataFrame(
        [{"review": f"{words[n % len(names)][n % 2]} {n}", "stars": names[n % len(names)]} for n in range(count)]
    )


@pytest.mark.parametrize(
    ("frame", "options", "labels"),
    [
        (films(160, ("good", "bad", "late", "short", "loud")), [], {"good", "bad", "late", "short", "loud"}),
        (films(120, (1, 0)).assign(other="a text"), ["--text-pair", "other"], {"0", "1"}),
        (films(120, (0.5, 2.75)), ["--system", "distilbert"], {"score"}),
    ],
    ids=["five classes", "pairs", "regression"],
)
def test_own_data_of_any_shape_becomes_a_student(tiny, frame, options, labels, tmp_path, capsys):
    path, output = tmp_path / "films.csv", tmp_path / "out"
    frame.to_csv(path, index=False)
    command = ["distil", "--data", path, "--text", "review", "--label", "stars", *options]
    assert run(*command, "--dry-run", "--runs", tmp_path / "none") == 0
    described = capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    assert run(*command, "--output", output, "--runs", tmp_path / "runs") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(described)
    assert "95 % from" in printed
    metrics = json.loads((output / "metrics.json").read_text())
    chosen = metrics["metric"]
    assert chosen == ("pearson" if labels == {"score"} else "macro_f1")
    student = output / "student"
    answer = pipeline("text-classification", model=str(student))("wonderful 3")[0]
    assert answer["label"] in labels
    report = (output / "report.md").read_text()
    assert "| teacher |" in report and "most certain mistakes" in report
    assert (output / "report.png").stat().st_size > 1000
    card = ModelCard.load(student / "README.md")
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    system = metrics["system"]
    assert scores == pytest.approx(metrics["scores"][system])
    card.validate  # noqa: B018 (it asks the hub)
    if system == "bottleneck":
        model = AutoModelForSequenceClassification.from_pretrained(student)
        frame = explain(model, AutoTokenizer.from_pretrained(student), "wonderful 3")
        assert {f"push_{label}" for label in labels} <= set(frame)
        assert "The keys that speak loudest" in report
    mode = {os.stat(file).st_mode & 0o777 for file in student.iterdir()}
    assert len(mode) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--text", "text"], r"films.csv has no column 'text': expected text, stars, found review, stars"),
        (["--label", "nothing"], r"films.csv has no column 'nothing'"),
        (["--validation", "nowhere.csv"], r"nowhere.csv"),
        (["--task", "cola"], r"expected --task .* or --data"),
        (["--source", "hub"], r"--source does nothing beside --data: leave it out"),
        (["--seed", "-1"], r"the seed is -1, expected a whole number from 0 to 4294967295"),
        (["--seed", str(2**32)], r"the seed is 4294967296"),
        (["--output", "/proc/kvlib"], r"cannot write /proc/kvlib"),
        (["--system", "none"], r"unknown system 'none'"),
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(tiny, change, message, tmp_path, capsys):
    films(60, ("good", "bad")).to_csv(tmp_path / "films.csv", index=False)
    command = ["distil", "--data", tmp_path / "films.csv", "--text", "review", "--label", "stars", *change]
    assert run(*command, "--runs", tmp_path / "runs") == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    assert line.startswith("kvlib: ")
    assert re.search(message, line)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [([1] * 40, "one class"), ([0] * 39 + [1], "positive has one row only"), ([0, 1] * 4, "of 8 training rows")],
)
def test_glue_rows_that_cannot_be_held_out_are_refused(tiny, labels, message, tmp_path, capsys):
    (tmp_path / "sst2").mkdir()
    for name in ("train", "validation"):
        rows = "".join(f"film {n}\t{label}\n" for n, label in enumerate(labels))
        (tmp_path / "sst2" / f"{name}.tsv").write_text(f"sentence\tlabel\n{rows}")
    assert run("distil", "--task", "sst2", "--source", tmp_path, "--runs", tmp_path / "runs") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("content", ["", "no JSON", "[]", '{"settings": {"profile": {}}, "runs": []}'])
def test_a_file_that_is_no_grid_of_these_settings_is_refused_at_once(tiny, content, tmp_path, capsys):
    (tmp_path / "grid.json").write_text(content)
    command = ["evidence", "--output", tmp_path / "grid.json", "--tasks", "sst2", "--source", tiny.source]
    assert run(*command, "--runs", tmp_path / "runs") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "grid.json" in line and "delete it" in line
    assert (tmp_path / "grid.json").read_text() == content


def test_a_part_of_the_rows_keeps_the_shares_of_a_sorted_file(recipe, tmp_path):
    (tmp_path / "sst2").mkdir()
    for name, split in load_glue("sst2").items():
        split.sort("label").to_pandas().to_csv(tmp_path / "sst2" / f"{name}.csv", index=False)
    parts = [Experiment("sst2", tmp_path, recipe.profile, seed, max_rows=100).data["train"] for seed in (0, 1)]
    whole = load_glue("sst2")["train"]["label"][:]
    assert sum(parts[0]["label"][:]) == round(100 * sum(whole) / len(whole))
    assert parts[0]["idx"][:] == parts[1]["idx"][:]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "record.json").write_text(""),
        lambda folder: (folder / "history.csv").write_text(""),
        lambda folder: (folder / "history.csv").unlink(),
        lambda folder: (folder / "model" / "config.json").unlink(),
        lambda folder: os.truncate(folder / "model" / "model.safetensors", 9000),
    ],
)
def test_a_damaged_stage_is_named(recipe, spoil, tmp_path):
    recipe.experiment().model("teacher")
    folder = finished_stages(recipe.runs)["teacher"]
    shutil.copytree(folder, tmp_path / folder.name)
    spoil(tmp_path / folder.name)
    with pytest.raises(
        ValueError, match=rf"{folder.name} is damaged .*: delete it and start the same command again"
    ):
        recipe.experiment(runs=tmp_path).model("teacher")


def test_a_finished_stage_needs_no_lock(recipe, monkeypatch):
    recipe.experiment().model("teacher")

    def refuse(*_, **__):
        raise OSError("read-only file system")

    monkeypatch.setattr("kvlib.recipe.experiment.FileLock.acquire", refuse)
    recipe.experiment().model("teacher")


def test_files_of_a_stage_have_the_rights_of_new_files(recipe, tmp_path):
    recipe.experiment().model("teacher")
    (tmp_path / "new").touch()
    files = [path for path in finished_stages(recipe.runs)["teacher"].rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {(tmp_path / "new").stat().st_mode}


def test_a_full_disk_leaves_the_old_student_whole(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "old").write_text("whole")
    with (
        pytest.raises(OSError, match=r"cannot write .*student: .*No space left"),
        write_aside(tmp_path / "student") as aside,
    ):
        aside.mkdir()
        (aside / "half").write_text("half")
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    assert (tmp_path / "student" / "old").read_text() == "whole"


def test_a_file_where_the_student_will_go_is_refused(tmp_path):
    (tmp_path / "student").write_text("")
    with pytest.raises(ValueError, match=r"student is a file, expected a folder"):
        check_output(tmp_path)


def test_the_table_prints_on_a_terminal_that_knows_no_plus_minus(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    command_line._show("teacher 27.7 ± 2.4, café – …")
    assert raw.getvalue() == b"teacher 27.7 +- 2.4, caf? - ...\n"


def test_ctrl_c_says_how_to_go_on_and_closes_the_bar(tiny, tmp_path, monkeypatch, capsys):
    def stop(*_):
        tqdm(total=10).update(3)
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "run_recipe", stop)
    assert run("distil", "--task", "sst2", "--source", tiny.source, "--runs", tmp_path) == 130
    errors = capsys.readouterr().err
    assert errors.endswith("\nkvlib: stopped; the same command goes on from the last finished epoch\n")


@linux_only
def test_ctrl_c_in_a_process_of_its_own(recipe, tmp_path):
    command = [
        sys.executable,
        "-m",
        "kvlib",
        "distil",
        "--task",
        "sst2",
        "--source",
        recipe.source,
        "--runs",
        tmp_path,
    ]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        # a test run in the background may have been told to ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 300
    # in the middle of the training: while modules are imported, Python may drop the signal inside a __del__
    trained = "*.training/checkpoints/*"
    while not list(tmp_path.glob(trained)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.endswith("kvlib: stopped; the same command goes on from the last finished epoch\n")
    assert "Traceback" not in errors
