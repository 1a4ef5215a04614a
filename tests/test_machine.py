"""Devices, and machines other than this one."""

import os
import sys
import types
from pathlib import Path

import psutil
import pytest
import torch
from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
from processes import finish, linux_only
from shared_stages import shared_recipe, small_minilm
from small_data import easy_rows
from torch.overrides import TorchFunctionMode
from transformers import BertModel, DistilBertModel, PreTrainedModel, TrainingArguments

from kvlib import BERTbase, BERTwithBottleNeck, DistilBERTwithBottleNeck, DistillationTrainer
from kvlib.machine import announce, describe, device, peak_memory_mb
from kvlib.recipe import COMPARED, STAGES
from kvlib.recipe.submission import write_submission

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class OnTheProcessor(TorchFunctionMode):
    """Whatever is asked to be on the GPU that is not there stays where it is."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        args = [CPU if isinstance(one, torch.device) and one == GPU else one for one in args]
        kwargs = kwargs or {}
        return function(*args, **(kwargs | {"device": CPU} if kwargs.get("device") == GPU else kwargs))


@pytest.fixture
def gpu(monkeypatch):
    """Tell the recipe that there is a GPU, and models that were moved to it that they are there."""
    moved, original = {}, PreTrainedModel.to

    def to(model, *args, **kwargs):
        if GPU in args:
            moved.update((id(part), part) for part in model.modules())
        return original(model, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "to", to)
    monkeypatch.setattr(PreTrainedModel, "device", property(lambda model: GPU if id(model) in moved else CPU))
    for module in ("experiment", "submission"):
        monkeypatch.setattr(f"kvlib.recipe.{module}.device", lambda: GPU)
    with OnTheProcessor():
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    recipe = shared_recipe(tmp_path_factory)
    experiment = recipe.experiment()
    for stage in STAGES:
        experiment.model(stage)
    return recipe


@pytest.fixture
def called(monkeypatch):
    """The devices of the models that are called, by the model's class."""
    devices, original = {}, PreTrainedModel.__call__

    def call(model, *args, **kwargs):
        devices.setdefault(type(model), set()).add(model.device)
        return original(model, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "__call__", call)
    return devices


def test_stages_are_read_started_and_scored_on_the_device(recipe, gpu, called):
    experiment = recipe.experiment()
    for stage in STAGES:
        assert experiment.model(stage).device == GPU, stage
        assert experiment.start(stage).device == GPU, stage
    # keys were fitted, and the teacher was compared with the majority class
    assert called == {encoder: {GPU} for encoder in (BertModel, DistilBertModel, BERTbase)}
    called.clear()
    experiment.scores("all")
    models = (BertModel, DistilBertModel, BERTbase, BERTwithBottleNeck, DistilBERTwithBottleNeck)
    assert called == {model: {GPU} for model in models}


def test_a_submission_is_predicted_on_the_device(recipe, gpu, called, tmp_path):
    experiment = recipe.experiment()
    experiment.model("bottleneck").save_pretrained(tmp_path / "student")
    experiment.tokenizer.save_pretrained(tmp_path / "student")
    called.clear()
    write_submission(tmp_path / "student", experiment.data, "sst2", tmp_path / "out")
    assert called == {model: {GPU} for model in (DistilBertModel, DistilBERTwithBottleNeck)}


def test_training_takes_a_copy_of_the_teachers_keys_to_the_device(recipe, tmp_path):
    elsewhere = torch.device("meta")

    class Elsewhere(TrainingArguments):
        @property
        def device(self):
            # the processes are set up on the way
            return elsewhere if super().device else None

    experiment = recipe.experiment()
    teacher, student = experiment.model("teacher-bottleneck"), experiment.start("aligned")
    settings = Elsewhere(str(tmp_path), report_to="none", use_cpu=True)
    trainer = DistillationTrainer(student, settings, alpha=0.0, bottleneck=teacher.bottleneck)
    assert student.device == trainer.bottleneck.keys.device == elsewhere
    # the next stage carries them from here
    assert {tensor.device for tensor in teacher.state_dict().values()} == {CPU}


def test_autocast_is_that_of_the_device(recipe, gpu):
    assert recipe.experiment().precision().device == "cuda"


def test_the_device_is_this_process_own():
    assert device() == CPU


NO_UNIX = """
import builtins, importlib, io, pkgutil, sys

# on Windows it imports another module of its own here
import psutil

sys.modules["resource"] = sys.modules["fcntl"] = None
original = io.open


def without_proc(file, *args, **kwargs):
    if str(file).startswith("/proc"):
        raise FileNotFoundError(file)
    return original(file, *args, **kwargs)


builtins.open = io.open = without_proc
import kvlib, workbook

for package in (kvlib, workbook):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        print(importlib.import_module(module.name).__name__)

from pathlib import Path
from filelock import FileLock

folder = Path(sys.argv[1])
with FileLock(folder / "lock"):
    print(len(kvlib.load_glue("rte")["train"]))
"""


def test_everything_is_imported_without_what_windows_lacks(tmp_path):
    code, out, err = finish([sys.executable, "-c", NO_UNIX, tmp_path])
    assert code == 0, err
    assert {
        "kvlib.recipe.command_line",
        "kvlib.machine",
        "workbook.explorer",
        "workbook.checks.chapter_09",
    } <= set(out.split())


def test_peak_memory_where_there_is_no_resource_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    memory = types.SimpleNamespace(peak_wset=123_000_000)
    monkeypatch.setattr(psutil, "Process", lambda: types.SimpleNamespace(memory_info=lambda: memory))
    assert peak_memory_mb() == 123


@linux_only
def test_peak_memory_is_that_of_the_kernel(monkeypatch):
    with open("/proc/self/status") as status:
        kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    found = peak_memory_mb()
    assert found == pytest.approx(kilobytes * 1024 / 1e6, rel=0.01)
    # macOS counts bytes
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_mb() == pytest.approx(found / 1024, rel=0.01)


def test_description_names_versions_processor_threads_and_processes():
    found = describe()
    assert set(found["versions"]) == {"kvlib", "torch", "transformers", "datasets"}
    assert found["versions"]["torch"] == torch.__version__
    processor, cores, threads, processes = found["machine"].rsplit(", ", 3)
    assert processor
    assert cores == f"{os.cpu_count()} cores"
    assert threads == f"{torch.get_num_threads()} threads"
    assert processes == "1 processes"


@pytest.mark.parametrize(("disabled", "said"), [(True, ""), (False, "kvlib: a word\n"), (None, "kvlib: a word\n")])
def test_announcements_are_silent_with_the_progress_bars(disabled, said, monkeypatch, capsys):
    assert HF_HUB_DISABLE_PROGRESS_BARS is True  # in tests
    monkeypatch.setattr("kvlib.machine.HF_HUB_DISABLE_PROGRESS_BARS", disabled)
    announce("a word")
    assert capsys.readouterr() == ("", said)


def test_whole_recipe_on_a_gpu(tmp_path):
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("no NVIDIA GPU here")
    source = easy_rows(tmp_path / "glue", train=128, validation=64)
    environment = {
        "TINY_CHECKPOINT": str(small_minilm(tmp_path / "checkpoint", layers=4)),
        "KVLIB_PROFILE": "tiny",
    }
    # other tests see no GPU
    environment["CUDA_VISIBLE_DEVICES"] = "0"
    command = [sys.executable, Path(__file__).with_name("shared_stages.py"), "distil", "--task", "sst2"]
    command += ["--system", "all", "--source", source, "--runs", tmp_path / "runs", "--output", tmp_path / "out"]
    code, out, err = finish(command, environment)
    assert code == 0, err
    assert "cores" not in out.splitlines()[-1], "the machine's last line names a processor, not the GPU"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"metrics.json", *COMPARED}
