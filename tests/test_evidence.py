import json
import os
import signal
from dataclasses import asdict

import pandas as pd
import pytest
from processes import exit_code, fork, linux_only
from shared_stages import shared_recipe

import kvlib.recipe.evidence
from kvlib import PROFILES, load_glue
from kvlib.recipe import SYSTEMS, needed_stages, systems_of
from kvlib.recipe.command_line import main
from kvlib.recipe.evidence import evidence_table, gather_evidence, kept_share, read_evidence


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return shared_recipe(tmp_path_factory)


@pytest.fixture
def evidence(recipe, monkeypatch, capsys):
    """Run the command in this process, the shared recipe's profile being the default."""
    monkeypatch.setitem(PROFILES, "tiny", recipe.profile)
    monkeypatch.setenv("KVLIB_PROFILE", "tiny")

    def run(output, *arguments, source=recipe.source, runs=recipe.runs):
        named = {"--source": source, "--output": output, "--runs": runs, "--seeds": 0}
        try:
            code = main(["evidence", *(str(word) for pair in named.items() for word in pair), *arguments])
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr()

    return run


def records(output):
    return json.loads(output.read_text())["runs"]


def be_killed(recipe, output):
    """Gather evidence, and be killed while the sixth record is written, the lock of the file in one's hands."""
    contents = []

    def write_half(path, content):
        contents.append(content)
        if len(contents) == 7:  # before the first record come the settings
            path.with_name(path.name + ".temporary").write_text("{")
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(path, content)

    write_json, kvlib.recipe.evidence.write_json = kvlib.recipe.evidence.write_json, write_half
    gather_evidence(output, ["sst2"], ("all",), (0,), recipe.source, recipe.profile, runs=recipe.runs)


def share(task, source, output):
    """Gather records that take no time to make: what is left is the file that two processes share."""
    kvlib.recipe.evidence.run_once = lambda experiment, system: {
        "task": experiment.task.name, "system": system, "seed": experiment.seed, "process": os.getpid()
    }  # fmt: skip
    gather_evidence(output, [task], ("all",), range(5), source)


@pytest.fixture(scope="module")
def left(recipe, tmp_path_factory):
    """What a killed grid and two that share a file leave, each in a process of its own."""
    folder = tmp_path_factory.mktemp("evidence")
    for task in ("sst2", "cola"):
        (folder / "glue" / task).mkdir(parents=True)
        for name, split in load_glue(task).items():
            split.select(range(20)).to_csv(folder / "glue" / task / f"{name}.csv")
    assert exit_code(fork(be_killed, recipe, folder / "killed.json")) == -signal.SIGKILL
    children = [fork(share, task, folder / "glue", folder / "shared.json") for task in ("sst2", "cola")]
    assert [exit_code(child) for child in children] == [0, 0]
    return folder


@linux_only
def test_a_killed_grid_goes_on_where_it_was(left, evidence):
    output = left / "killed.json"
    before = records(output)
    assert [record["system"] for record in before] == list(SYSTEMS)[:5]
    code, printed = evidence(output, "--tasks", "sst2")
    assert code == 0
    after = records(output)
    assert [record["system"] for record in after] == list(SYSTEMS)
    # those of the killed run stand as they were, and none was made twice
    assert after[:5] == before
    made = [line.split()[1] for line in printed.out.splitlines() if line.startswith("sst2 ")]
    assert made == list(SYSTEMS)[5:]


def test_a_record_says_what_a_reader_asks(evidence, tmp_path):
    output = tmp_path / "results.json"
    code, printed = evidence(output, "--tasks", "sst2")
    assert code == 0
    by_system = {record["system"]: record for record in records(output)}
    for system, record in by_system.items():
        assert record["rows"] == {"train": 128, "validation": 64}
        assert record["subset"] is True
        assert set(record["metrics"]) == {"accuracy", "f1", "mcc"}
        assert {"kvlib", "torch", "transformers", "datasets"} <= set(record["versions"])
        assert record["seconds"] == pytest.approx(sum(s["seconds"] for s in record["stages"].values()))
        assert "threads" in record["machine"], system
        assert list(record["stages"]) == needed_stages(system)
    assert by_system["teacher"]["agreement"] == {"same_answer": 1.0, "kl": 0.0}
    assert 0.8 < by_system["bottleneck"]["agreement"]["same_answer"] <= 1.0
    assert by_system["bottleneck"]["agreement"]["kl"] > 0
    carried = by_system["carried-keys"]
    assert list(carried["stages"]) == ["teacher", "layers", "teacher-bottleneck", "aligned", "carried-keys"]
    assert all(stage["epochs"] > 0 and stage["peak_memory_mb"] > 100 for stage in carried["stages"].values())
    assert 0 <= carried["keys"]["agreement"] <= 1
    assert len(carried["keys"]["agreement_by_codebook"]) == 16
    # new keys stand in an order of their own: they agree with the teacher's by chance
    assert carried["keys"]["agreement"] > by_system["new-keys"]["keys"]["agreement"]
    # behind a bottleneck only values are trained: 16 codebooks of 8 for two classes
    assert carried["size"]["trainable_m"] == pytest.approx(16 * 8 * 2 / 1e6)
    assert by_system["distilbert"]["size"]["trainable_m"] == by_system["distilbert"]["size"]["parameters_m"]
    assert by_system["majority"]["stages"] == {}
    # the table at the end has a line a system
    table = evidence_table(read_evidence(output))
    assert list(table.index) == list(SYSTEMS.values())
    assert printed.out.endswith(table.to_string() + "\n")


def test_other_settings_are_refused_before_work(recipe, evidence, tmp_path):
    output = tmp_path / "results.json"
    settings = {"profile": asdict(recipe.profile), "source": str(recipe.source), "max_rows": None}
    output.write_text(json.dumps({"settings": settings, "runs": []}))
    code, printed = evidence(output, "--tasks", "sst2", "--max-rows", "100")
    assert code == 2
    (line,) = printed.err.splitlines()
    assert line.startswith(
        f"kvlib: {output} holds runs made with another max_rows: name another file, or delete it"
    )
    assert records(output) == []


@linux_only
def test_two_processes_share_one_file(left):
    found = records(left / "shared.json")
    assert [(record["task"], record["seed"], record["system"]) for record in found] == [
        (task, seed, system) for task in ("cola", "sst2") for seed in range(5) for system in systems_of("all")
    ]
    assert len({(record["task"], record["process"]) for record in found}) == 2


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


def test_a_weak_teacher_is_a_record_too(evidence, recipe, tmp_path):
    folder = tmp_path / "glue" / "sst2"
    folder.mkdir(parents=True)
    for name in ("train", "validation"):
        # two zeros among forty rows: none is held out, where the majority class is then never wrong
        frame = pd.read_csv(recipe.source / "sst2" / f"{name}.csv").head(40 if name == "train" else 24)
        frame = frame.assign(label=1)
        frame.loc[:1, "label"] = 0
        frame.to_csv(folder / f"{name}.csv", index=False)
    output = tmp_path / "results.json"
    code, printed = evidence(
        output, "--tasks", "sst2", "--systems", "distilbert", source=tmp_path / "glue", runs=tmp_path / "runs"
    )
    assert code == 0
    assert "sst2 distilbert seed 0: refused nan" in printed.out
    found = {record["system"]: record for record in records(output)}
    assert list(found) == systems_of("distilbert")
    assert found["majority"]["metrics"]["accuracy"] == pytest.approx(22 / 24)
    for system in ("undistilled", "teacher", "distilbert"):
        assert found[system]["metrics"] is None
        assert "a student would learn noise" in found[system]["refused"]


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
