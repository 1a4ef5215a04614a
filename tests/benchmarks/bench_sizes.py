"""What do C and K do? Behind one distilled student a bottleneck of each size: keys, error, score, megabytes.

``OMP_NUM_THREADS=1 python tests/benchmarks/bench_sizes.py`` adds what is missing to ``data/results/sizes.json``,
which chapter 05 shows. The student is that of mini MRPC in the profile ``quick``; its stages come from, and go to,
``data/runs``. For each size and seed keys are fitted on the training rows and values trained as in stage 3. Usage
is that of the training tokens, on which values are trained; error and score are those of the rows held out of
training after the last epoch, so they choose nothing. Validation rows are not read.
"""

import argparse
import copy
import json
import math
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import disable_progress_bars
from torch import Tensor
from transformers.utils import logging

from kvlib import DistilBERTwithBottleNeck, DistillationTrainer, Experiment, KeyIndexDataset, fine_tune
from kvlib.evaluation import evaluate, majority_predictions
from kvlib.machine import describe
from kvlib.metrics import compute_metrics
from kvlib.recipe.distillation import write_json
from kvlib.recipe.profiles import get_profile
from kvlib.teacher import predict_packed

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "OMP_NUM_THREADS=1 python tests/benchmarks/bench_sizes.py"
CODEBOOKS, SIZES, SEEDS = (1, 8, 16, 32, 64, 128), (2, 16, 64, 256, 1024), (0, 1, 2)


class Sizes:
    """The student's hidden states, encoded once, and the trials behind them."""

    def __init__(self, experiment: Experiment) -> None:
        self.profile = experiment.profile
        self.student = experiment.model("distilbert")
        taught = experiment.tokenize(experiment.train_split, teacher_logits=experiment.teacher_logits)
        splits = (taught, experiment.held_out)
        # their rows, labels and lengths are those of any size; only the key indices are exchanged
        any_size = self.student.discretize(experiment.held_out, num_codebooks=8, codebook_size=16)
        self.rows = [KeyIndexDataset(any_size, split) for split in splits]
        self.states = [self._encode(split) for split in splits]

    def _encode(self, split: torch.utils.data.Dataset) -> Tensor:
        sizes = self.student.states_per_row(split)
        return predict_packed(self.student, split, lambda **inputs: self.student.encode(**inputs)[0], sizes)

    def trial(self, num_codebooks: int, codebook_size: int, seed: int) -> dict[str, float]:
        """Fit keys, train values, and measure."""
        begun, p = time.perf_counter(), self.profile
        shape = {"has_bottleneck": True, "num_codebooks": num_codebooks, "codebook_size": codebook_size}
        config = type(self.student.config).from_dict(self.student.config.to_dict() | shape)
        # its encoder stays untrained: from key indices on it plays no part
        model = DistilBERTwithBottleNeck(config)
        bottleneck = model.bottleneck
        bottleneck.init_keys([self.states[0]], seed=seed)
        bottleneck.freeze_keys()
        train, held_out = (copy.copy(rows) for rows in self.rows)
        for rows, states in zip((train, held_out), self.states, strict=True):
            rows.key_indices = bottleneck.quantize(states).to(torch.int16)
        with tempfile.TemporaryDirectory() as folder:
            history = fine_tune(
                model, train, held_out, folder, epochs=p.bottleneck_epochs, batch_size=p.batch_size,
                learning_rate=p.bottleneck_learning_rate, seed=seed, weight_decay=0.0, save_strategy="no",
                load_best_model_at_end=False, train_sampling_strategy="random", trainer=DistillationTrainer,
            )  # fmt: skip
        usage = bottleneck.usage(train.key_indices)
        error = bottleneck.usage(held_out.key_indices, self.states[1], train.key_indices)
        return {
            "num_codebooks": num_codebooks,
            "codebook_size": codebook_size,
            "seed": seed,
            "perplexity": float(usage["perplexity"].mean()),
            "dead_keys": float(usage["dead_keys"].mean()),
            "unseen_share": float(error["unseen_share"].mean()),
            "quantization_error": float(error["quantization_error"].mean()),
            "bits_a_token": num_codebooks * math.log2(codebook_size),
            "megabytes": sum(t.numel() * t.element_size() for t in (bottleneck.keys, bottleneck.values)) / 1e6,
            "accuracy": float(history["accuracy"].iloc[-1]),
            "seconds": time.perf_counter() - begun,
        }


def settings(experiment: Experiment) -> dict[str, Any]:
    """Say what the trials were made of and what their scores stand beside."""
    student, train, held_out = experiment.model("distilbert"), experiment.train, experiment.held_out
    majority = majority_predictions(train.labels, "mrpc", len(held_out))
    return {
        "settings": {
            "task": "mrpc",
            "profile": "quick",
            "dim": student.config.dim,
            "num_labels": student.config.num_labels,
            "num_codebooks": CODEBOOKS,
            "codebook_size": SIZES,
            "seeds": SEEDS,
        },
        "rows": {"train": len(train), "held_out": len(held_out)},
        "tokens": {"train": int(train.lengths.sum()), "held_out": int(held_out.lengths.sum())},
        "accuracy": {
            "distilled student": evaluate(student, held_out)["accuracy"],
            "majority class": compute_metrics("mrpc", majority, np.asarray(held_out.labels))["accuracy"],
        },
        "command": COMMAND,
        **describe(),
        "runs": [],
    }


def main() -> None:
    """Run the trials that are not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "results" / "sizes.json")
    arguments = parser.parse_args()
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    experiment = Experiment("mrpc", profile=get_profile("quick"))
    sizes, found = Sizes(experiment), settings(experiment)
    if arguments.output.exists():
        found["runs"] = json.loads(arguments.output.read_text(encoding="utf-8"))["runs"]
    for trial in product(SEEDS, CODEBOOKS, SIZES):
        seed, num_codebooks, codebook_size = trial
        if trial not in map(_place, found["runs"]):
            found["runs"].append(sizes.trial(num_codebooks, codebook_size, seed))
            found["runs"].sort(key=_place)
            write_json(arguments.output, found)
            print(trial, flush=True)


def _place(run: dict[str, float]) -> tuple[float, ...]:
    return run["seed"], run["num_codebooks"], run["codebook_size"]


if __name__ == "__main__":
    main()
