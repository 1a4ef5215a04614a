"""What do the bottleneck's own choices do? One student a task and seed, and many bottlenecks behind it.

``OMP_NUM_THREADS=1 python tests/benchmarks/choose_bottleneck.py --tasks cola rte --seeds 0 1`` adds one line a
bottleneck to ``data/results/bottleneck_choices.jsonl`` and leaves out those that stand there; several
processes may share the file. Students come from, and go to, ``--runs``. Of two learning rates each bottleneck
gets the one that is better on held-out training rows; validation rows are reported and choose nothing.
"""

import argparse
import json
import math
import tempfile
import time
from functools import partial
from pathlib import Path

from datasets import concatenate_datasets, disable_progress_bars
from filelock import FileLock
from transformers.utils import logging

from kvlib import CustomDataset, DistillationTrainer, Experiment, KeyIndexDataset, fine_tune, get_profile
from kvlib.evaluation import evaluate

ROOT = Path(__file__).resolve().parents[2]
# what differs from the profile's bottleneck: values after the search, mean over tokens and codebooks, chunks
CHOICES = {
    "profile": {},
    "pool before": {"pool": "before"},
    "[CLS]": {"pooling": "cls"},
    "linear decoder": {"decoder": "linear"},
    "random projection": {"projection": "random"},
    "keys of other tasks": {"other_tasks": True},
    **{f"C = {size}": {"num_codebooks": size} for size in (8, 16, 64, 128)},
    **{f"K = {size}": {"codebook_size": size} for size in (64, 1024, 4096)},
    "C = 8, K = 64": {"num_codebooks": 8, "codebook_size": 64},
    "C = 64, K = 4096": {"num_codebooks": 64, "codebook_size": 4096},
}
LEARNING_RATES = (5e-2, 5e-3)


def other_texts(experiment: Experiment, tasks: list[str], rows: int = 2000) -> CustomDataset:
    """Return texts of the other tasks' training rows: the first of their columns."""
    parts = []
    for task in tasks:
        if task != experiment.task.name:
            other = Experiment(task, experiment.source, experiment.profile, experiment.seed, max_rows=rows)
            column = other.task.text_columns[0]
            split = other.train_split.select_columns([column, "idx"]).rename_column(column, "sentence")
            parts.append(split.add_column("label", [0] * len(split)))
    return CustomDataset(concatenate_datasets(parts), experiment.tokenizer, "cola", experiment.profile.max_length)


def trial(experiment: Experiment, options: dict[str, object], tasks: list[str]) -> dict[str, object]:
    """Fit keys, train values, and score."""
    p, begun, options = experiment.profile, time.perf_counter(), dict(options)
    texts = other_texts(experiment, tasks) if options.pop("other_tasks", False) else experiment.train
    metric, found = experiment.task.metrics[0], []
    with experiment.precision():
        model = experiment.model("distilbert").discretize(texts, **(experiment.key_options() | options))
        taught = experiment.tokenize(experiment.train_split, teacher_logits=experiment.teacher_logits)
        splits = (taught, experiment.held_out, experiment.validation[experiment.task.validation[0]])
        train, held_out, validation = (KeyIndexDataset(model, split) for split in splits)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for rate in LEARNING_RATES:
        model.load_state_dict(start)
        with tempfile.TemporaryDirectory() as folder:
            history = fine_tune(
                model, train, held_out, folder, epochs=p.bottleneck_epochs, learning_rate=rate,
                batch_size=p.batch_size, seed=experiment.seed, weight_decay=0.0, train_sampling_strategy="random",
                trainer=partial(DistillationTrainer, temperature=p.temperature, alpha=p.alpha),
            )  # fmt: skip
        with experiment.precision():
            score = evaluate(model, splits[2])[metric]
        found.append({"learning_rate": rate, "held_out": history[metric].max(), "validation": score})
    usage = model.bottleneck.usage(validation.key_indices.long())
    codebooks, size = model.config.num_codebooks, model.config.codebook_size
    return max(found, key=lambda run: run["held_out"]) | {
        "perplexity": float(usage["perplexity"].mean()),
        "used_fraction": float((model.bottleneck.hits(train.key_indices.long()) > 0).double().mean()),
        "bits_a_token": codebooks * math.log2(size),
        "megabytes": sum(t.numel() * t.element_size() for t in model.bottleneck.state_dict().values()) / 1e6,
        "seconds": time.perf_counter() - begun,
    }


def main() -> None:
    """Run the trials that are not yet in the file."""
    tasks = ["cola", "rte", "qnli", "mnli", "sst2"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="../shared/glue")
    parser.add_argument("--tasks", nargs="+", default=tasks)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, help="folder of finished stages (default: data/runs)")
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "results" / "bottleneck_choices.jsonl")
    arguments = parser.parse_args()
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for seed in arguments.seeds:
        for task in arguments.tasks:
            experiment = Experiment(
                task, arguments.source, get_profile("real"), seed, arguments.runs, max_rows=10_000
            )
            scores = {
                name: experiment.score(name)[experiment.task.metrics[0]] for name in ("teacher", "distilbert")
            }
            for name, options in CHOICES.items():
                done = arguments.output.read_text().splitlines() if arguments.output.exists() else []
                key = {"choice": name, "task": task, "seed": seed}
                if any(key.items() <= json.loads(line).items() for line in done):
                    continue
                line = json.dumps(key | scores | trial(experiment, options, tasks))
                with FileLock(f"{arguments.output}.lock"), arguments.output.open("a") as output:
                    output.write(line + "\n")
                print(line, flush=True)


if __name__ == "__main__":
    main()
