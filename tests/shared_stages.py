"""A small recipe whose stages are trained once in a run of the tests: whoever needs one first trains it.

``python tests/shared_stages.py COMMAND ...`` is ``python -m kvlib COMMAND ...`` with one more profile: ``tiny``,
whose pretrained model is in the folder that the environment variable ``TINY_CHECKPOINT`` names.
"""

import gc
import json
import os
import re
import runpy
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from processes import finish
from small_data import easy_rows
from transformers import BertModel

import kvlib.recipe.experiment
from kvlib import PROFILES, Experiment, load_tokenizer
from kvlib.evaluation import bootstrap_interval
from kvlib.pretrained import minilm_path

# each training collects garbage: what the imports have made stays, and looking through it took half a second
gc.collect()
gc.freeze()


def few_resamples(*rows, resamples):
    """Take 20 resamples a system: the recipe's 400 took as long as its training; test_evaluation takes more."""
    return bootstrap_interval(*rows, resamples=20)


kvlib.recipe.experiment.bootstrap_interval = few_resamples

# of MiniLM's 30,522, by frequency; all letters are among them
WORDS = 7000


def small_minilm(folder, layers, dropout=0.1):
    """Write MiniLM's first layers and its most frequent words as a checkpoint: small, but real weights."""
    model = BertModel.from_pretrained(
        minilm_path(), num_hidden_layers=layers, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    model.resize_token_embeddings(WORDS)
    model.save_pretrained(folder)
    load_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] = {word: i for word, i in tokenizer["model"]["vocab"].items() if i < WORDS}
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def tiny_profile(checkpoint, **changes):
    """Return a profile whose stages take seconds on `easy_rows`."""
    settings = {
        "name": "tiny", "teacher_checkpoint": str(checkpoint), "max_length": 24, "batch_size": 8,
        "teacher_epochs": 1, "layer_epochs": 1, "student_epochs": 1, "bottleneck_epochs": 1,
        "teacher_learning_rate": 5e-4, "student_learning_rate": 5e-4, "num_codebooks": 16, "codebook_size": 8,
    }  # fmt: skip
    return replace(PROFILES["quick"], **(settings | changes))


def shell(checkpoint, *arguments, **options):
    """Run the command line in a process of its own, as a user does; the default profile is ``tiny``."""
    environment = {"TINY_CHECKPOINT": str(checkpoint), "KVLIB_PROFILE": "tiny"}
    return finish([sys.executable, __file__, *arguments], environment, **options)


@dataclass(frozen=True)
class SharedRecipe:
    """Rows of SST-2 with a telling word, a pretrained model of two layers, and the folder of finished stages."""

    folder: Path

    @property
    def source(self):
        return self.folder / "glue"

    @property
    def checkpoint(self):
        return self.folder / "checkpoint"

    @property
    def runs(self):
        return self.folder / "runs"

    @property
    def profile(self):
        return tiny_profile(self.checkpoint)

    def experiment(self, **changes):
        settings = {"source": self.source, "profile": self.profile, "runs": self.runs}
        return Experiment("sst2", **(settings | changes))

    def shell(self, command, *arguments):
        return shell(self.checkpoint, command, "--source", self.source, "--runs", self.runs, *arguments)


def shared_recipe(tmp_path_factory):
    """Return the recipe of this test run, the same in all worker processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    recipe = SharedRecipe(folder / "shared")
    with FileLock(folder / "shared.lock"):
        if not recipe.folder.exists():
            small_minilm(recipe.checkpoint, layers=2)
            easy_rows(recipe.source, train=128, validation=64)
    return recipe


def finished_stages(runs):
    """Return the folders of finished SST-2 stages by the stage's name; one each."""
    folders = {}
    for path in runs.iterdir():
        if match := re.fullmatch(r"sst2-(.+)-[0-9a-f]{12}", path.name):
            assert match[1] not in folders, f"{path} is a second {match[1]}"
            folders[match[1]] = path
    return folders


if __name__ == "__main__":
    PROFILES["tiny"] = tiny_profile(os.environ["TINY_CHECKPOINT"])
    if "TINY_WITHOUT_DROPOUT" in os.environ:
        torch.nn.Dropout.forward = lambda self, states: states
    runpy.run_module("kvlib", run_name="__main__", alter_sys=True)
