import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from kvlib import load_glue
from kvlib.recipe.command_line import main
from kvlib.recipe.evidence import evidence_table, kept_share, read_evidence
from kvlib.recipe import SYSTEMS, systems_of


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """SST-2 and CoLA of a few rows, in which one word tells the class so that a teacher learns it at once."""
    folder = tmp_path_factory.mktemp("glue")
    for task in ("sst2", "cola"):
        (folder / task).mkdir()
        for name, split in load_glue(task).items():
            frame = split.to_pandas().head(160 if name == "train" else 24)
            frame["label"] = np.arange(len(frame)) % 2
            frame["sentence"] = (
                frame["label"].map({0: "bad bad bad", 1: "good good good"}) + " " + frame["sentence"]
            )
            frame.to_csv(folder / task / f"{name}.csv", index=False)
    return folder


def command(source, output, *tasks, systems=("distilbert",), seeds=(0,)):
    return [
        sys.executable, "-m", "kvlib", "evidence", "--source", source, "--output", output, "--runs",
        output.parent / "runs", "--tasks", *tasks, "--systems", *systems, "--seeds", *map(str, seeds),
    ]  # fmt: skip


def run(*arguments, **options):
    return subprocess.run(command(*arguments, **options), capture_output=True, text=True, check=False)


def records(output):
    return json.loads(output.read_text())["runs"]


@pytest.fixture(scope="module")
def grid(source, tmp_path_factory):
    """A grid that was killed once it had some records, and then started again."""
    output = tmp_path_factory.mktemp("evidence") / "results.json"
    arguments = command(source, output, "sst2", systems=("all",))
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (output.exists() and len(records(output)) >= 5):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = records(output)
    return output, before, run(source, output, "sst2", systems=("all",))


def test_a_killed_grid_goes_on_where_it_was(grid):
    output, before, second = grid
    assert second.returncode == 0, second.stderr
    after = records(output)
    assert 5 <= len(before) < len(after) == len(SYSTEMS)
    # those of the killed run stand as they were, and none was made twice
    assert [record for record in after if record in before] == before
    assert [record["system"] for record in after] == list(SYSTEMS)
    assert all(f"sst2 {record['system']} seed 0" not in second.stdout for record in before)


def test_a_record_says_what_a_reader_asks(grid):
    by_system = {record["system"]: record for record in records(grid[0])}
    for system, record in by_system.items():
        assert record["rows"] == {"train": 160, "validation": 24}
        assert record["subset"] is True
        assert set(record["metrics"]) == {"accuracy", "f1", "mcc"}
        assert {"kvlib", "torch", "transformers", "datasets"} <= set(record["versions"])
        assert record["seconds"] == pytest.approx(sum(s["seconds"] for s in record["stages"].values()))
        assert "threads" in record["machine"], system
    carried = by_system["carried-keys"]
    assert list(carried["stages"]) == ["teacher", "teacher_bottleneck", "aligned", "carried_keys"]
    assert all(stage["epochs"] > 0 and stage["peak_memory_mb"] > 100 for stage in carried["stages"].values())
    assert 0 <= carried["keys"]["agreement"] <= 1
    assert len(carried["keys"]["agreement_by_codebook"]) == 32
    # new keys stand in an order of their own: they agree with the teacher's by chance
    assert carried["keys"]["agreement"] > 5 * by_system["new-keys"]["keys"]["agreement"]
    # behind a bottleneck only values are trained: 32 codebooks of 256 for two classes
    assert carried["size"]["trainable_m"] == pytest.approx(32 * 256 * 2 / 1e6)
    assert by_system["distilbert"]["size"]["trainable_m"] == by_system["distilbert"]["size"]["parameters_m"]
    assert by_system["majority"]["stages"] == {}


def test_two_processes_share_one_file(source, tmp_path):
    output = tmp_path / "results.json"
    # two processes of two threads each on two cores would wait for each other most of the time
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command(source, output, task), env=environment, **pipes) for task in ("sst2", "cola")]
    for process in both:
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
    found = [(record["task"], record["system"]) for record in records(output)]
    assert found == [(task, system) for task in ("cola", "sst2") for system in systems_of("distilbert")]


def test_other_settings_are_refused_before_work(grid, source):
    output = grid[0]
    changed = subprocess.run(
        [*command(source, output, "sst2"), "--max-rows", "100"], capture_output=True, text=True, check=False
    )
    assert changed.returncode == 1
    assert (
        "was made with another max_rows" in changed.stderr.splitlines()[-1] or "another max_rows" in changed.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "nonsense"), "unknown task 'nonsense'"),
        (("--tasks", "sst2", "--systems", "nonsense"), "unknown system 'nonsense': choose one of distilbert"),
        (("--tasks", "sst2", "--max-rows", "3"), "--max-rows is 3, expected 20 or more"),
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["evidence", "--output", str(tmp_path / "results.json"), *arguments])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_a_weak_teacher_is_a_record_too(source, tmp_path):
    folder = tmp_path / "glue" / "sst2"
    folder.mkdir(parents=True)
    for name in ("train", "validation"):
        # two zeros among forty rows: none is held out, where the majority class is then never wrong
        frame = pd.read_csv(source / "sst2" / f"{name}.csv").head(40).assign(label=1)
        frame.loc[:1, "label"] = 0
        frame.to_csv(folder / f"{name}.csv", index=False)
    finished = run(tmp_path / "glue", tmp_path / "results.json", "sst2")
    assert finished.returncode == 0, finished.stderr
    found = {record["system"]: record for record in records(tmp_path / "results.json")}
    assert found["majority"]["metrics"]["accuracy"] == pytest.approx(22 / 24)
    assert found["distilbert"]["metrics"] is None
    assert "a student would learn noise" in found["distilbert"]["refused"]


def test_table_and_kept_share_by_hand(tmp_path):
    by_hand = {
        ("rte", "teacher"): [0.6, 0.8],
        ("rte", "bottleneck"): [0.6, 0.7],
        ("cola", "teacher"): [0.2, 0.4],
        ("cola", "bottleneck"): [0.2, 0.2],
    }
    first_metric = {"rte": "accuracy", "cola": "mcc"}
    runs = [
        {"task": task, "system": system, "seed": seed, "metrics": {first_metric[task]: score}}
        for (task, system), scores in by_hand.items()
        for seed, score in enumerate(scores)
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"runs": runs}))
    table = evidence_table(read_evidence(path))
    assert list(table.columns) == ["rte (accuracy)", "cola (mcc)"]
    # the standard deviation of a sample: |0.6 - 0.8| / sqrt(2)
    assert table.loc["teacher"].tolist() == ["70.0 ± 14.1", "30.0 ± 14.1"]
    assert table.loc["distilled student with bottleneck"].tolist() == ["65.0 ± 7.1", "20.0 ± 0.0"]
    assert kept_share(read_evidence(path), "bottleneck").tolist() == pytest.approx([0.8 / 0.8, 0.9 / 1.2])
