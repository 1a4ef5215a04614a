"""The base profile, its models and its data, through the real client libraries against a hub of our own."""

import json
import os
import shutil
import sys
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
import torch
from hub_server import BERT, DISTILBERT, GLUE, PICKLED, ROWS, Hub, build
from processes import finish
from safetensors.torch import load_file

from kvlib import TASKS, BERTbase, DistilBERTwithBottleNeck, load_glue, load_tokenizer
from kvlib.pretrained import REVISIONS
from kvlib.recipe import PROFILES, SYSTEMS

# nothing listens on the discard port
DOWN = "http://127.0.0.1:9"
SENTENCES = ("The wagon was repaired.", "Un café, naïvely!")

# learning rates under which random weights learn, and keys for few rows
LOAD_ALL = f"""
import json, sys, time
from dataclasses import replace
from pathlib import Path
from safetensors.torch import save_file
import shared_stages  # few resamples
from kvlib import PROFILES, BERTbase, DistilBERTwithBottleNeck, get_profile, load_glue, load_tokenizer
from kvlib.pretrained import resolve_checkpoint
from kvlib.recipe.command_line import main

PROFILES["base"] = profile = replace(
    get_profile(), teacher_learning_rate=2e-3, teacher_epochs=5, student_learning_rate=2e-3, batch_size=16,
    bottleneck_epochs=3, codebook_size=16,
)
folder = Path(sys.argv[1])
folder.mkdir()
data = load_glue("mnli", profile.source)
teacher = BERTbase.for_task("mnli", profile.teacher_checkpoint, profile.teacher_pooling)
student = DistilBERTwithBottleNeck.for_task("mnli", profile.student_checkpoint)
save_file(teacher.state_dict(), folder / "teacher.safetensors")
save_file(student.state_dict(), folder / "student.safetensors")
try:
    resolve_checkpoint({PICKLED!r})
except FileNotFoundError as error:
    refused = str(error)
found = {{
    "rows": {{name: split.to_dict() for name, split in data.items()}},
    "types": {{name: str(kind) for name, kind in data["train"].features.items()}},
    "tokens": load_tokenizer(profile.teacher_checkpoint)({list(SENTENCES)!r})["input_ids"],
    "refused": refused,
}}
(folder / "found.json").write_text(json.dumps(found))
"""

DISTIL = """
sys.exit(main(["distil", "--task", "rte", "--runs", str(folder / "runs"), "--output", str(folder / "out")]))
"""

# the client waits 23 s between its attempts
WITHOUT_WAITING = """
import time
time.sleep = lambda seconds: None
"""

# the command line twice, with nothing left of the cache that the process began with
WITHOUT_CACHE = """
import os, shutil
shutil.rmtree(os.environ["HF_HOME"])
resolve_checkpoint.cache_clear()
print("without cache:", file=sys.stderr)
for arguments in (["--source", "hub"], ["--source", "mini"]):
    try:
        main(["distil", "--task", "rte", *arguments])
    except SystemExit as end:
        print(end.code)
"""


def load_all(folder, script, endpoint, home):
    """Run a script in a process of its own: the clients read their settings when they are imported."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "KVLIB_PROFILE": "base"}
    settings["PYTHONPATH"] = os.pathsep.join(sys.path)
    code, out, errors = finish([sys.executable, "-c", script, folder], settings)
    assert code == 0, errors
    return json.loads((folder / "found.json").read_text()), out, errors


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(build(tmp_path_factory.mktemp("hub"))).running() as hub:
        yield hub


@pytest.fixture(scope="module")
def loaded(hub, tmp_path_factory):
    """What a process with the base profile loaded from the hub, and its requests; its cache is in `home`."""
    folder = tmp_path_factory.mktemp("loaded")
    before = len(hub.requests)
    found, _, _ = load_all(folder / "found", LOAD_ALL + DISTIL, hub.url, folder / "home")
    return folder, found, hub.requests[before:]


@pytest.fixture(scope="module")
def down(loaded):
    """The same with the filled cache, and then without it, while nothing answers at the hub's address."""
    folder, *_ = loaded
    home = shutil.copytree(folder / "home", folder / "filled", symlinks=True)
    return load_all(folder / "again", WITHOUT_WAITING + LOAD_ALL + WITHOUT_CACHE, DOWN, home)


def test_profile_loads_what_is_pinned():
    base = PROFILES["base"]
    assert (base.teacher_checkpoint, base.student_checkpoint) == (BERT, DISTILBERT)
    assert list(REVISIONS) == [
        "google-bert/bert-base-uncased",
        "distilbert/distilbert-base-uncased",
        "nyu-mll/glue",
    ]
    assert all(len(commit) == 40 and int(commit, 16) for commit in REVISIONS.values())


@pytest.mark.parametrize("path", [f"{BERT}/resolve/main/config.json", f"api/datasets/{GLUE}/revision/main"])
def test_this_hub_knows_only_pinned_commits(hub, path):
    with pytest.raises(HTTPError) as answer:
        urlopen(f"{hub.url}/{path}")
    assert (answer.value.code, answer.value.headers["X-Error-Code"]) == (404, "RevisionNotFound")


def test_teacher_has_the_hubs_weights(hub, loaded):
    stored = load_file(hub.root / "models" / BERT / "model.safetensors")
    found = load_file(loaded[0] / "found" / "teacher.safetensors")
    encoder = {name for name in stored if name.startswith("bert.")}
    assert encoder == {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for name in found
        if not name.startswith("classifier.")
    }
    assert {"bert.pooler.dense.weight", "bert.encoder.layer.1.output.LayerNorm.gamma"} <= encoder
    for name in encoder:
        ours = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        assert torch.equal(found[ours], stored[name]), name
    assert found["classifier.weight"].shape == (3, 64)


def test_student_has_the_hubs_weights(hub, loaded):
    stored = load_file(hub.root / "models" / DISTILBERT / "model.safetensors")
    found = load_file(loaded[0] / "found" / "student.safetensors")
    encoder = {name for name in stored if name.startswith("distilbert.")}
    assert encoder == {name for name in found if not name.startswith("classifier.")}
    for name in encoder:
        assert torch.equal(found[name], stored[name]), name
    assert found["classifier.weight"].shape == (3, 64)


def test_tokenizer_is_the_hubs(loaded):
    assert loaded[1]["tokens"] == load_tokenizer()(list(SENTENCES))["input_ids"]


def test_mnli_comes_with_both_validation_splits(loaded):
    rows, expected = loaded[1]["rows"], load_glue("mnli")
    assert list(rows) == [
        "train",
        "validation_matched",
        "validation_mismatched",
        "test_matched",
        "test_mismatched",
    ]
    for name, split in expected.items():
        columns = split.select(range(ROWS)).to_dict()
        if name in TASKS["mnli"].test:
            columns["label"] = [-1] * ROWS
        assert rows[name] == columns, name
    assert loaded[1]["types"] == {name: str(kind) for name, kind in expected["train"].features.items()}


def test_only_pinned_files_that_hold_no_code_are_downloaded(hub, loaded):
    asked = [(path, status) for _, path, status in loaded[2] if any(name in path for name in REVISIONS)]
    for path, _ in asked:
        (name,) = [name for name in REVISIONS if name in path]
        assert REVISIONS[name] in path
    # what was not there is not counted: datasets looks for a glue.py, to refuse repositories that have one
    given = {path.split("?")[0] for path, status in asked if status < 300}
    files = {path.partition("/resolve/")[2].partition("/")[2] for path in given if "/resolve/" in path}
    tasks = {"mnli": loaded[1]["rows"], "rte": ("train", "validation", "test")}
    parquet = {f"{task}/{split}-00000-of-00001.parquet" for task, splits in tasks.items() for split in splits}
    models = {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert files == {"README.md"} | parquet | models
    # they were there to be had
    assert {"pytorch_model.bin", "modeling_tiny.py"} <= {
        path.name for path in (hub.root / "models" / BERT).iterdir()
    }


def test_pickled_weights_are_refused(hub, loaded, pretrained, tmp_path):
    assert f"{PICKLED} on the hub lacks model.safetensors, expected" in loaded[1]["refused"]
    assert "model.safetensors (pickled weights may run code and are never loaded)" in loaded[1]["refused"]
    assert not [path for _, path, _ in hub.requests if path.endswith(".bin")]
    # a folder of one's own
    pretrained.config.save_pretrained(tmp_path)
    torch.save(pretrained.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        BERTbase.for_task("mrpc", str(tmp_path))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        DistilBERTwithBottleNeck.for_task("mrpc", str(tmp_path))


def test_a_name_that_is_neither_folder_nor_model_is_refused():
    with pytest.raises(
        FileNotFoundError, match="'no/such/folder' is no folder, and cannot be loaded from the hub"
    ):
        load_tokenizer("no/such/folder")


def test_filled_cache_serves_when_the_hub_is_down(loaded, down):
    folder, found, _ = loaded
    assert down[0] == found
    for name in ("teacher", "student"):
        first, second = (load_file(folder / run / f"{name}.safetensors") for run in ("found", "again"))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_hub_down_ends_with_one_line_the_ways_out_and_code_2(down):
    _, codes, errors = down
    assert codes.split() == ["2", "2"], errors
    data, models = errors.partition("without cache:\n")[2].splitlines()
    assert "cannot load nyu-mll/glue (rte) from the hub" in data
    assert "source='mini'" in data and "source=FOLDER" in data
    assert f"{BERT!r} is no folder, and cannot be loaded from the hub" in models
    assert "set HF_HOME to that cache, or use KVLIB_PROFILE=quick" in models


def test_whole_recipe_from_the_hub(loaded):
    folder = loaded[0] / "found"
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    assert (metrics["profile"], metrics["source"]) == ("base", "hub")
    assert metrics["rows"] == {"train": ROWS, "validation": ROWS}
    assert {"majority", "teacher", "bottleneck"} <= set(metrics["scores"]) <= set(SYSTEMS)
    assert metrics["scores"]["teacher"]["accuracy"] > 0.9
    student = DistilBERTwithBottleNeck.from_pretrained(folder / "out" / "student")
    assert (student.config.num_codebooks, student.config.dim) == (64, 64)
