import gc
import json
import shutil
import sys
import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from shared_stages import finished_stages, shared_recipe, tiny_profile
from small_data import easy_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from kvlib import (
    TASKS,
    BERTbase,
    BERTwithBottleNeck,
    DistilBERTwithBottleNeck,
    Experiment,
    compute_metrics,
    distil,
    load_glue,
    predict_logits,
)
from kvlib.cache import fingerprint
from kvlib.evaluation import key_agreement
from kvlib.recipe import (
    BASELINES,
    COMPARED,
    PROFILES,
    STAGES,
    SYSTEMS,
    WeakTeacherError,
    needed_stages,
    systems_of,
)
from kvlib.recipe.command_line import main
from kvlib.recipe.stages import STAGE_FORMAT, UNTRAINED

DEFAULT = ["majority", "tfidf", "linear-probe", "undistilled", "fine-tuned", "teacher", "distilbert", "bottleneck"]
DEFAULT_STAGES = {name for system in DEFAULT for name in needed_stages(system)}


def write_rows(folder, task, rows, **columns):
    """Write the first rows of each split of mini GLUE as a folder of one's own."""
    (folder / task).mkdir(parents=True)
    for name, split in load_glue(task).items():
        frame = split.select(range(min(rows, len(split)))).to_pandas().assign(**columns)
        frame.to_csv(folder / task / f"{name}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return shared_recipe(tmp_path_factory)


@pytest.fixture(scope="module")
def everything(recipe, tmp_path_factory):
    """All systems: the folder that they were written to, and what `distil` returned."""
    output = tmp_path_factory.mktemp("everything")
    return output, distil("sst2", recipe.source, recipe.profile, output=output, runs=recipe.runs, system="all")


@pytest.fixture(scope="module")
def from_shell(recipe, tmp_path_factory):
    """The default system, distilled from a shell: the folder that it was written to, and what was printed."""
    output = tmp_path_factory.mktemp("shell")
    return output, recipe.shell("distil", "--task", "sst2", "--output", output)


def test_shell_prints_the_table_and_writes_metrics(from_shell, recipe):
    output, (code, printed, errors) = from_shell
    assert (code, errors) == (0, "")
    assert all((name in printed) == (system in DEFAULT) for system, name in SYSTEMS.items())
    metrics = json.loads((output / "metrics.json").read_text())
    assert (metrics["task"], metrics["profile"], metrics["seed"]) == ("sst2", "tiny", 0)
    assert metrics["system"] == "bottleneck"
    assert metrics["source"] == str(recipe.source)
    assert metrics["rows"] == {"train": 128, "validation": 64}
    assert list(metrics["scores"]) == DEFAULT
    for scores in metrics["scores"].values():
        assert set(scores) == {"accuracy", "f1", "mcc"}
        assert 0 <= scores["accuracy"] <= 1
    assert set(metrics["seconds"]) == DEFAULT_STAGES
    assert all(seconds > 0 for seconds in metrics["seconds"].values())
    assert metrics["peak_memory_mb"] > 100


def test_saved_student_gives_the_written_score(from_shell, recipe):
    output, _ = from_shell
    written = json.loads((output / "metrics.json").read_text())["scores"]["bottleneck"]
    student = DistilBERTwithBottleNeck.from_pretrained(output / "student")
    dataset = recipe.experiment().validation["validation"]
    found = compute_metrics("sst2", predict_logits(student, dataset).numpy(), np.array(dataset.labels))
    # another process with the same weights: one row may sit on a rounding error
    assert found["accuracy"] == pytest.approx(written["accuracy"], abs=1.01 / 64)


def written_at(runs):
    return {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}


def test_finished_stages_are_read_not_trained_again(everything, from_shell, recipe):
    _, result = everything
    before = written_at(recipe.runs)
    again = distil("sst2", recipe.source, recipe.profile, runs=recipe.runs)
    assert written_at(recipe.runs) == before
    expected = {stage: seconds for stage, seconds in result.metrics["seconds"].items() if stage in DEFAULT_STAGES}
    assert again.metrics["seconds"] == expected
    assert json.loads((from_shell[0] / "metrics.json").read_text())["seconds"] == expected
    assert not [path.name for path in recipe.runs.iterdir() if path.name.endswith((".training", ".temporary"))]


class TrainedError(Exception):
    pass


@pytest.fixture
def no_training(monkeypatch):
    """Training raises `TrainedError`, with the folder of its checkpoints."""

    def refuse(model, train, held_out, output_dir, **_):
        raise TrainedError(output_dir)

    monkeypatch.setattr("kvlib.recipe.experiment.fine_tune", refuse)


def test_a_stage_made_from_something_else_ends_with_one_line_and_code_1(recipe, no_training, tmp_path, capsys):
    command = ["distil", "--task", "sst2", "--source", recipe.source, "--runs", tmp_path]
    with pytest.raises(TrainedError) as begun:
        main([str(word) for word in command])
    # where the teacher of these rows will lie
    folder = begun.value.args[0].parent.with_suffix("")
    folder.mkdir()
    (folder / "record.json").write_text('{"made_from": {}}')
    capsys.readouterr()
    assert main([str(word) for word in command]) == 1
    printed, errors = capsys.readouterr()
    assert printed.startswith("sst2: single texts, 2 classes")
    assert errors.splitlines() == [
        f"kvlib: {folder} is damaged (its record does not match its name): delete it and start the same "
        "command again"
    ]


def test_a_stage_is_named_by_the_weights_of_its_checkpoint_and_not_by_their_path(
    everything, recipe, no_training, tmp_path
):
    moved = shutil.copytree(recipe.checkpoint, tmp_path / "moved")
    profile = replace(recipe.profile, teacher_checkpoint=str(moved))
    read = recipe.experiment(profile=profile).model("teacher")
    assert fingerprint(read) == fingerprint(everything[1].models["teacher"])
    weights = load_file(moved / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    for name in ("teacher", "fine-tuned"):
        with pytest.raises(TrainedError):
            recipe.experiment(profile=profile).model(name)


def test_stages_of_another_format_are_trained_anew_and_one_line_says_so(
    everything, recipe, no_training, monkeypatch, capsys
):
    monkeypatch.setattr("kvlib.machine.HF_HUB_DISABLE_PROGRESS_BARS", None)
    recipe.experiment().model("teacher")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("kvlib.recipe.experiment.STAGE_FORMAT", STAGE_FORMAT + 1)
    with pytest.raises(TrainedError):
        recipe.experiment().model("teacher")
    assert capsys.readouterr().err.splitlines() == [
        f"kvlib: {recipe.runs} has sst2-teacher of format {STAGE_FORMAT}, this is format {STAGE_FORMAT + 1}: "
        "trained anew"
    ]


def test_a_teacher_no_better_than_the_majority_is_refused(recipe, tmp_path, monkeypatch, capsys):
    source, profile = write_rows(tmp_path / "glue", "sst2", 40, sentence="a film"), tiny_profile(recipe.checkpoint)
    monkeypatch.setitem(PROFILES, "tiny", profile)
    command = ["distil", "--task", "sst2", "--profile", "tiny", "--source", source, "--runs", tmp_path / "runs"]
    assert main([str(word) for word in command]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a student would learn noise" in line
    # read from disk, it is refused again
    experiment = Experiment("sst2", source, profile, runs=tmp_path / "runs")
    for _ in range(2):
        with pytest.raises(WeakTeacherError, match=r"is 0\.\d+, the majority class's 0\."):
            experiment.model("teacher")
    # no student, with or without a teacher, was begun
    assert {path.name.split("-")[1] for path in (tmp_path / "runs").iterdir()} == {"teacher"}


@pytest.mark.parametrize("task", ["stsb", "mnli"])
def test_regression_and_two_validation_splits_run_through(task, recipe, tmp_path):
    # three words that tell the three classes: 64 rows teach the teacher enough
    words = {0: "yes", 1: "maybe", 2: "no", -1: "maybe"}
    telling = {"hypothesis": lambda frame: frame["label"].map(words)} if task == "mnli" else {}
    source = write_rows(tmp_path / "glue", task, 64, **telling)
    profile = tiny_profile(recipe.checkpoint, teacher_epochs=2)
    scores = Experiment(task, source, profile, runs=tmp_path / "runs").scores("carried-keys")
    assert list(scores) == systems_of("carried-keys")
    expected = {"pearson", "spearman"} if task == "stsb" else {"accuracy", "f1", "mcc"}
    if task == "mnli":
        expected |= {f"{name}_mismatched" for name in expected}
    assert all(set(found) == expected for found in scores.values())


def test_the_real_profiles_bf16_trains_and_scores_under_autocast(recipe, tmp_path, monkeypatch):
    assert PROFILES["real"].bf16
    seen, searched = Counter(), Counter()

    def note(module, _, output):
        if isinstance(module, torch.nn.Linear):
            seen[module.training, output.dtype] += 1

    def search(vectors, keys):
        searched[vectors.dtype, keys.dtype] += 1
        return nearest_keys(vectors, keys)

    nearest_keys = sys.modules["kvlib.bottleneck"].nearest_keys
    monkeypatch.setattr("kvlib.bottleneck.nearest_keys", search)
    profile = tiny_profile(recipe.checkpoint, bf16=True, max_length=16)
    experiment = Experiment("sst2", easy_rows(tmp_path / "glue", 64, 16), profile, runs=tmp_path / "runs")
    handle = torch.nn.modules.module.register_module_forward_hook(note)
    try:
        student, _ = experiment.model("bottleneck"), experiment.model("aligned")
        trained = dict(seen)
        seen.clear()
        score, _ = experiment.score("bottleneck"), experiment.score("linear-probe")
    finally:
        handle.remove()
    assert {kind for is_training, kind in trained if is_training} == {torch.bfloat16}
    assert set(seen) == {(False, torch.bfloat16)}
    assert set(searched) == {(torch.float32, torch.float32)}
    assert {tensor.dtype for tensor in student.parameters()} == {torch.float32}
    assert score["accuracy"] > 0.8


def test_under_bf16_a_stage_that_is_only_scored_is_trained_as_any_other(recipe, tmp_path):
    source = easy_rows(tmp_path / "glue", 64, 16)
    profile = tiny_profile(recipe.checkpoint, bf16=True, max_length=16)
    experiments = [Experiment("sst2", source, profile, runs=tmp_path / name) for name in ("scored", "trained")]
    experiments[0].score("fine-tuned")
    found, expected = (fingerprint(experiment.model("fine-tuned")) for experiment in experiments)
    assert found == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "arguments are required: COMMAND"),
        (("distil",), "expected --task with the name of a GLUE task, or --data"),
        (("distil", "--task", "nonsense"), "unknown task 'nonsense': choose one of " + ", ".join(TASKS)),
        (("distil", "--task", "sst2", "--source", "nowhere"), "no folder nowhere/sst2"),
        (("distil", "--task", "sst2", "--profile", "huge"), "unknown profile 'huge': choose one of quick, real"),
        (
            ("distil", "--task", "sst2", "--system", "distilled"),
            "unknown system 'distilled': choose one of distilbert, bottleneck, new-keys, carried-keys, labels-",
        ),
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


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        main(["distil", "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for option in ("--task", "--system", *COMPARED, "--source", "--profile", "--seed", "--output", "--runs"):
        assert option in printed


def test_bottleneck_learns_from_integers_alone(everything, recipe):
    experiment = recipe.experiment()
    start, trained = experiment.start("bottleneck"), experiment.model("bottleneck")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, start.state_dict()[name]) == (name != "bottleneck.values"), name


def test_a_model_is_the_same_while_it_is_held_and_no_longer_in_memory(everything, recipe):
    experiment = recipe.experiment()
    held = experiment.model("carried-keys")
    assert experiment.model("carried-keys") is held
    aligned = experiment.model("aligned")
    before, reference = fingerprint(aligned), weakref.ref(aligned)
    del aligned
    gc.collect()
    assert reference() is None
    aligned = experiment.model("aligned")
    assert fingerprint(aligned) == before


def test_what_is_made_from_a_model_changed_in_place_has_another_name(everything, recipe):
    experiment = recipe.experiment()
    teacher = experiment.model("teacher")
    before = experiment._made_from(STAGES["layers"])["parents"]
    with torch.no_grad():
        teacher.classifier.bias += 1
    assert experiment._made_from(STAGES["layers"])["parents"] != before
    del teacher
    gc.collect()
    # read again, it is what it was
    assert experiment._made_from(STAGES["layers"])["parents"] == before


@pytest.mark.parametrize("system", [*COMPARED, "retrained-head", "all"])
def test_systems_are_scored_beside_all_baselines_and_what_they_are_made_from(system):
    found = systems_of(system)
    expected = {
        "distilbert": {"teacher", "distilbert"},
        "retrained-head": {"teacher", "distilbert", "retrained-head"},
        "bottleneck": {"teacher", "distilbert", "bottleneck"},
        "new-keys": {"teacher", "teacher-bottleneck", "new-keys"},
        "carried-keys": {"teacher", "teacher-bottleneck", "carried-keys"},
        "all": set(SYSTEMS) - set(BASELINES),
    }[system]
    assert set(found) == expected | set(BASELINES)
    assert found == sorted(found, key=list(SYSTEMS).index)


def test_unknown_systems_are_refused_before_any_work(tmp_path):
    message = (
        "unknown system 'distilled': choose one of distilbert, bottleneck, new-keys, carried-keys, labels-only"
    )
    with pytest.raises(ValueError, match=message):
        systems_of("distilled")
    with pytest.raises(ValueError, match=message):
        distil("sst2", runs=tmp_path, system="distilled")
    assert not list(tmp_path.iterdir())


def test_all_systems_are_trained_scored_and_timed(everything):
    output, result = everything
    metrics = result.metrics
    assert metrics == json.loads((output / "metrics.json").read_text())
    assert metrics["system"] == "all"
    assert list(metrics["scores"]) == list(SYSTEMS)
    assert list(result.table.index) == list(SYSTEMS.values())
    assert set(metrics["seconds"]) == set(STAGES)
    assert list(result.models) == [name for name in SYSTEMS if name not in UNTRAINED]
    types = {"teacher": BERTbase, "teacher-bottleneck": BERTwithBottleNeck}
    for name, model in result.models.items():
        assert type(model) is types.get(name, DistilBERTwithBottleNeck), name
        if name not in types:
            assert model.has_bottleneck == (STAGES[name].trains_on == "key indices"), name
    # one word tells all: who reads it is right on nearly all of the 64 rows, the majority on about half
    assert metrics["scores"]["majority"]["accuracy"] < 0.65
    for name in ("tfidf", "linear-probe", "fine-tuned", "teacher", *COMPARED):
        assert metrics["scores"][name]["accuracy"] > 0.8, name


def test_all_systems_lie_in_a_folder_each_and_give_their_scores(everything, recipe):
    output, result = everything
    assert {path.name for path in output.iterdir()} == {"metrics.json", *COMPARED}
    dataset = recipe.experiment().validation["validation"]
    for name in COMPARED:
        loaded = AutoModelForSequenceClassification.from_pretrained(output / name)
        assert fingerprint(loaded) == fingerprint(result.models[name])
        found = compute_metrics("sst2", predict_logits(loaded, dataset).numpy(), np.array(dataset.labels))
        assert found == result.metrics["scores"][name]
        tokenizer = AutoTokenizer.from_pretrained(output / name)
        # whoever uses the student reads as many tokens as in training
        assert tokenizer.model_max_length == recipe.profile.max_length


def test_systems_share_their_teachers(everything, recipe):
    assert set(finished_stages(recipe.runs)) == set(STAGES)
    kept = [path.name.split("-")[1] for path in recipe.runs.glob("*.safetensors")]
    assert kept.count("logits") == 2  # of the teacher and of the one with a bottleneck
    # the two have the same encoder, whose states the alignment looks at again and again
    assert kept.count("states") == 1


@pytest.mark.parametrize("system", ["distilbert", "carried-keys"])
def test_one_system_after_all_is_read_and_not_trained_again(everything, recipe, system, tmp_path):
    _, result = everything
    before = written_at(recipe.runs)
    again = distil("sst2", recipe.source, recipe.profile, output=tmp_path, runs=recipe.runs, system=system)
    assert written_at(recipe.runs) == before
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "report.md", "report.png", "student"}
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    assert fingerprint(student) == fingerprint(result.models[system])
    assert again.metrics["scores"] == {name: result.metrics["scores"][name] for name in systems_of(system)}
    needed = {stage for name in systems_of(system) for stage in needed_stages(name)}
    assert again.metrics["seconds"] == {stage: result.metrics["seconds"][stage] for stage in needed}


def test_the_carried_student_fires_the_teachers_keys_behind_an_aligned_encoder(everything, recipe):
    _, result = everything
    experiment = recipe.experiment()
    teacher, student = result.models["teacher-bottleneck"], result.models["carried-keys"]
    assert fingerprint(teacher.bert) == fingerprint(result.models["teacher"].bert)
    for name, buffer in teacher.bottleneck.named_buffers():
        assert torch.equal(buffer, student.bottleneck.get_buffer(name)), name
    assert student.bottleneck.values.any()
    assert fingerprint(student.distilbert) == fingerprint(experiment.model("aligned").distilbert)
    dataset = experiment.validation["validation"]
    agreement = {
        name: key_agreement(teacher, model, dataset)[0].mean()
        for name, model in (
            ("aligned", student),
            ("distilled", experiment.model("distilbert").carry_keys(teacher)),
            ("new keys", result.models["new-keys"]),
        )
    }
    print(agreement)
    # 81 % beside 54 % and 12 % (chance is one in 8 keys): half of the smaller difference is asked for
    assert agreement["aligned"] > max(agreement["distilled"], agreement["new keys"]) + 0.13
