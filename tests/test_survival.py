"""Runs that are killed, or run out of disk or memory, or of finite numbers: real processes, signals and limits."""

import copy
import json
import math
import os
import shutil
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import finish, linux_only
from shared_stages import small_minilm, tiny_profile
from small_data import easy_rows
from transformers import TrainerCallback

from kvlib import (
    PROFILES,
    BERTbase,
    CustomDataset,
    DistilBERTwithBottleNeck,
    DistillationTrainer,
    FineTuningTrainer,
    KeyIndexDataset,
    fine_tune,
    load_glue,
)
from kvlib.cache import cached_tensors
from kvlib.checkpoints import last_complete
from kvlib.data import get_task
from kvlib.recipe.command_line import main
from kvlib.teacher import BERTbaseConfig, label_config

SHORT_RUN = Path(__file__).with_name("short_run.py")
# 32 rows, 4 steps an epoch, 8 with fresh text; each moment goes on from what the one before has left: where its
# trainings begin
KILLED = {
    "teacher step 6": [["teacher", 0]],
    "layers step 11": [["teacher", 4], ["layers", 0]],
    "logits cache": [["layers", 8]],
    "distilbert step 6": [["distilbert", 0]],
    # half an optimizer.pt
    "distilbert checkpoint 8": [["distilbert", 4]],
    # everything is there but the mark that it is complete
    "distilbert unmarked 12": [["distilbert", 4]],
    # half a finished stage
    "distilbert finish": [["distilbert", 8]],
    "key cache": [["distilbert", 12]],
    "bottleneck step 9": [["bottleneck", 0]],
    # the stage is finished, but its checkpoints are still there
    "bottleneck cleanup": [["bottleneck", 8]],
}
# files of so many megabytes are too small for the weights (Rust writes them), then for the optimiser's state (C++)
LIMITED = ["distilbert limit10 6", "distilbert limit30 6"]
FULL = ["distilbert full 6"]


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    """Rows that a word tells apart, and the pretrained model of a teacher that learns them."""
    folder = tmp_path_factory.mktemp("easy")
    return easy_rows(folder / "glue", train=36, validation=20), small_minilm(folder / "checkpoint", layers=2)


@pytest.fixture(scope="module")
def endings(easy, tmp_path_factory):
    """How the processes of all plans ended: one process starts them all, for its imports take longer than they."""
    folder = tmp_path_factory.mktemp("runs")
    plans = {
        "left alone": {"last": "bottleneck"},
        "killed": {"last": "bottleneck", "moments": list(KILLED)},
        "met": {"last": "teacher", "at_once": True},
        "limited": {"last": "distilbert", "after": str(folder / "left alone"), "moments": LIMITED},
        "full": {"last": "distilbert", "after": str(folder / "left alone"), "moments": FULL},
        "out of memory": {},
    }
    plans = {name: {"runs": str(folder / name)} | plan for name, plan in plans.items()}
    (folder / "full").mkdir()
    mount = 'mount -t tmpfs -o size=300m none "$0" && exec "$@"'
    under = ["unshare", "-rm", "sh", "-c", mount, folder / "full"]
    if shutil.which("unshare") is None or finish([*under, "true"])[0]:
        under = []
        del plans["full"]
    code, out, err = finish([*under, sys.executable, SHORT_RUN, *easy, json.dumps(plans)])
    assert code == 0, err
    return folder, json.loads(out.splitlines()[-1])


def what_was_trained(endings):
    return {stage: weights for ending in endings for stage, weights in ending["trained"]}


@linux_only
def test_killed_and_resumed_equals_never_killed(endings):
    folder, plans = endings
    *killed, last = plans["killed"]
    (alone,) = plans["left alone"]
    for ending, (moment, began) in zip(killed, KILLED.items(), strict=True):
        assert ending["killed"], ending
        assert (ending["moment"], ending["began"]) == (moment, began)
    assert "error" not in last and last["began"] == []
    assert last["found"]["resumed"] == dict.fromkeys(("teacher", "layers", "distilbert", "bottleneck"), True)
    for same in ("fingerprints", "histories", "logits"):
        assert last["found"][same] == alone["found"][same]
    # the last epoch too, if the best was an earlier one
    assert what_was_trained(killed) == what_was_trained([alone])
    assert not list((folder / "killed").glob("*.training"))


@linux_only
def test_two_runs_that_meet_at_one_stage_train_it_once(endings):
    folder, plans = endings
    first, second = plans["met"]
    (alone,) = plans["left alone"]
    assert first["began"] == [["teacher", 0]]
    assert second["began"] == second["trained"] == first["announced"] == []
    (stage,) = (path for path in (folder / "met").glob("sst2-teacher-*") if path.is_dir())
    assert second["announced"] == [f"another run is training {stage}: waiting until it has finished"]
    for ending in (first, second):
        assert ending["found"]["fingerprints"]["teacher"] == alone["found"]["fingerprints"]["teacher"]


def broken_optimizer(checkpoint):
    file = checkpoint / "optimizer.pt"
    os.truncate(file, file.stat().st_size // 2)


def broken_mark(checkpoint):
    (checkpoint / "complete.json").write_text("")


@pytest.mark.parametrize("damage", [broken_optimizer, broken_mark])
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path, small):
    model = tiny()
    options = {"epochs": 3, "learning_rate": 1e-3, "batch_size": 16, "trainer": FineTuningTrainer}
    train_tiny(model, small, tmp_path, **options, save_total_limit=None)
    steps = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert steps == [3, 6, 9]
    assert last_complete(tmp_path) == tmp_path / "checkpoint-9"
    damage(tmp_path / "checkpoint-9")
    assert last_complete(tmp_path) == tmp_path / "checkpoint-6"
    # a checkpoint whose best epoch so far is damaged would end with that
    state = tmp_path / "checkpoint-6" / "trainer_state.json"
    content = json.loads(state.read_text())
    state.write_text(
        json.dumps(content | {"best_global_step": 3}).ljust(state.stat().st_size)[: state.stat().st_size]
    )
    damage(tmp_path / "checkpoint-3")
    assert last_complete(tmp_path) is None


def assert_stopped_and_resumed(endings, alone, moments):
    """Check that each moment ended with a clear error, and the last run as if nothing had been."""
    *stopped, last = endings
    for ending, moment in zip(stopped, moments, strict=True):
        assert not ending["killed"]
        kind, message = ending["error"]
        assert (ending["moment"], kind) == (moment, "OSError")
        assert "\n" not in message
        assert "cannot write" in message and "checkpoint-8: " in message
        assert "Make room and start the same command again; it goes on from " in message
        assert message.endswith("checkpoint-4")
    assert last["began"] == [["distilbert", 4]]
    assert last["found"]["fingerprints"]["distilbert"] == alone["found"]["fingerprints"]["distilbert"]
    assert last["found"]["histories"]["distilbert"] == alone["found"]["histories"]["distilbert"]
    assert what_was_trained([last])["distilbert"] == what_was_trained([alone])["distilbert"]


@linux_only
def test_files_that_cannot_grow_end_with_a_clear_error_and_the_last_checkpoint(endings):
    _, plans = endings
    assert_stopped_and_resumed(plans["limited"], *plans["left alone"], LIMITED)


@linux_only
def test_a_full_disk_ends_with_a_clear_error_and_the_last_checkpoint(endings):
    _, plans = endings
    if "full" not in plans:
        pytest.skip("no file system can be mounted here: that takes unshare and user namespaces")
    assert_stopped_and_resumed(plans["full"], *plans["left alone"], FULL)


@contextmanager
def files_of_at_most(size):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@linux_only
def test_a_failed_cache_leaves_no_file(tmp_path):
    tensors = {"x": torch.zeros(2**20)}
    with (
        pytest.raises(OSError, match=r"cannot write .*logits\.safetensors: .*Make room") as caught,
        files_of_at_most(2**20),
    ):
        cached_tensors(tmp_path / "logits.safetensors", {"rows": "1"}, lambda: tensors)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@linux_only
def test_command_line_ends_with_one_line(easy, tmp_path, monkeypatch, capsys):
    source, checkpoint = easy
    monkeypatch.setitem(PROFILES, "tiny", tiny_profile(checkpoint, max_length=16))
    with files_of_at_most(10 * 2**20):
        command = ["distil", "--task", "sst2", "--profile", "tiny", "--source", source, "--runs", tmp_path]
        assert main([str(word) for word in command]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"kvlib: cannot write {tmp_path}/sst2-teacher-")
    assert "Make room" in line


class GoBad(TrainerCallback):
    """Let something happen to the data once the first epoch is over."""

    def __init__(self, action):
        self.action = action

    def on_epoch_end(self, args, state, control, **kwargs):
        self.action()


def finite(model):
    return all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def expect_stop(model, train, held_out, folder, trainer, row, learning_rate, **options):
    with pytest.raises(FloatingPointError, match=r"^the loss is nan in step \d+, at learning rate \d") as caught:
        fine_tune(
            model, train, held_out, folder,
            epochs=2, learning_rate=learning_rate, batch_size=8, trainer=trainer, **options,
        )  # fmt: skip
    message = str(caught.value)
    named = json.loads(message[message.index("[") : message.index("]") + 1])
    assert len(named) == 8 and (row is None or train.idx[row] in named)
    assert finite(model)
    return message


@pytest.fixture(scope="module")
def scores(tokenizer):
    """24 rows of STS-B to train on, 8 held out."""
    rows = load_glue("stsb")["train"]
    return [CustomDataset(rows.select(part), tokenizer, "stsb") for part in (range(24), range(24, 32))]


def spoil(numbers, row):
    numbers[row] = math.nan


def test_nan_loss_stops_stage_one(scores, tmp_path):
    train, held_out = copy.deepcopy(scores)
    trainer = partial(FineTuningTrainer, callbacks=[GoBad(lambda: spoil(train.labels, 5))])
    message = expect_stop(tiny("stsb"), train, held_out, tmp_path, trainer, 5, 1e-3)
    kept = last_complete(tmp_path)
    assert kept.name == "checkpoint-3"
    assert finite(BERTbase.from_pretrained(kept))
    assert "The last checkpoint was written before it" in message


def test_nan_loss_stops_stages_two_and_three(tokenizer, tmp_path):
    rows = load_glue("stsb")["train"]
    train = CustomDataset(rows.select(range(24)), tokenizer, "stsb", teacher_logits=torch.zeros(24, 1))
    held_out = CustomDataset(rows.select(range(24, 32)), tokenizer, "stsb")
    student = DistilBERTwithBottleNeck.from_teacher(tiny("stsb"))
    discretized = student.discretize(train, num_codebooks=4, codebook_size=4)
    indexed = KeyIndexDataset(discretized, train), KeyIndexDataset(discretized, held_out)
    for model, splits, folder in ((student, (train, held_out), "two"), (discretized, indexed, "three")):
        splits[0].teacher_logits = torch.zeros(24, 1)
        spoiled = GoBad(partial(spoil, splits[0].teacher_logits, 7))
        trainer = partial(DistillationTrainer, callbacks=[spoiled])
        order = {"train_sampling_strategy": "random"} if folder == "three" else {}
        expect_stop(model, *splits, tmp_path / folder, trainer, 7, 1e-3, **order)
        kept = last_complete(tmp_path / folder)
        assert kept.name == "checkpoint-3"
        assert finite(DistilBERTwithBottleNeck.from_pretrained(kept))


def test_far_too_large_a_learning_rate_stops(scores, tmp_path):
    message = expect_stop(tiny("stsb"), *scores, tmp_path, FineTuningTrainer, None, 1e30)
    assert "in step 3, at learning rate " in message and "e+29" in message


def test_weights_broken_by_the_last_step_reach_no_checkpoint(scores, tmp_path):
    with pytest.raises(FloatingPointError, match="loss is nan on held-out rows after step 2, at learning rate"):
        # warm-up makes the first step harmless; the second is not, but its own loss is that from before it
        fine_tune(
            tiny("stsb"), *scores, tmp_path,
            epochs=1, learning_rate=1e30, batch_size=12, warmup_steps=1,
        )  # fmt: skip
    assert not list(tmp_path.glob("checkpoint-*"))


@linux_only
def test_out_of_memory_says_what_to_lower(endings):
    kind, message = endings[1]["out of memory"]["error"]
    assert kind == "MemoryError"
    assert "out of memory in step 1, in a batch of 256 rows of " in message
    assert "lower batch_size (256 a process)" in message
    assert "gradient_accumulation_steps" in message and "max_length" in message


def tiny(task="mrpc"):
    """A BERT of random weights, small enough for one step to take a moment."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BERTbaseConfig(**shape, vocab_size=30522, pooling="mean", **label_config(get_task(task)))
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return BERTbase(config)


def train_tiny(model, splits, folder, trainer=FineTuningTrainer, **options):
    settings = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 16}
    return fine_tune(model, *splits, folder, trainer=trainer, **(settings | options))


def first_gradients(model, splits, folder, trainer=FineTuningTrainer, **options):
    """Take one step through `fine_tune` and return the gradients it was taken with."""
    seen = {}

    class Grab(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            seen.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    one_step = {"max_steps": 1, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential"}
    one_step |= {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    train_tiny(model, splits, folder, partial(trainer, callbacks=[Grab()]), **(one_step | options))
    return seen


def assert_same(found, expected, atol, rtol):
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}")


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("student", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(student, small, tmp_path):
    model, trainer = tiny(), FineTuningTrainer
    if student:
        model = without_dropout(DistilBERTwithBottleNeck.from_teacher(model))
        trainer = partial(DistillationTrainer, alpha=0.0)
    plain = first_gradients(copy.deepcopy(model), small, tmp_path, trainer)
    found = first_gradients(copy.deepcopy(model), small, tmp_path, trainer, gradient_checkpointing=True)
    assert_same(found, plain, atol=0, rtol=0)


def test_bf16_takes_a_step_near_that_of_float32(small, tmp_path):
    model = tiny()
    plain = first_gradients(copy.deepcopy(model), small, tmp_path)
    found = first_gradients(model, small, tmp_path, bf16=True)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not all(torch.equal(found[name], plain[name]) for name in plain)
    # bfloat16 keeps 8 bits
    largest = max(float(gradient.abs().max()) for gradient in plain.values())
    assert_same(found, plain, atol=0.05 * largest, rtol=0)


def test_compiled_model_takes_the_same_step(small, tmp_path):
    model = tiny()
    plain = first_gradients(copy.deepcopy(model), small, tmp_path)
    # the graphs are traced and run as they are: the default backend's C++ compiler took half a minute
    found = first_gradients(model, small, tmp_path, torch_compile=True, torch_compile_backend="aot_eager")
    torch._dynamo.reset()
    # float32 sums in another order
    assert_same(found, plain, atol=1e-6, rtol=1e-3)
    assert not any("_orig_mod" in name for name in model.state_dict())
