"""What do the bottleneck's own choices do? One student a task and seed, and many bottlenecks behind it.

``OMP_NUM_THREADS=1 python tests/benchmarks/choose_bottleneck.py --tasks cola rte --seeds 0 1`` adds one line a
bottleneck to ``data/results/bottleneck_choices.jsonl`` and leaves out those that stand there; several
processes may share the file. Students come from, and go to, ``--runs``. Of two learning rates each bottleneck
gets the one that is better on held-out training rows; validation rows are reported and choose nothing.
"""

import math
import tempfile
import time
from functools import partial

from datasets import Dataset, concatenate_datasets
from trials import add_trial, experiments, frozen_encoder, parse

from kvlib import CustomDataset, DistillationTrainer, Experiment, KeyIndexDataset, fine_tune
from kvlib.evaluation import evaluate

# what differs from the profile's bottleneck: the mean of values, chunks, 32 codebooks of 256 keys
CHOICES = {
    "profile": {},
    "pool before": {"pool": "before"},
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
            texts = other.train_split[column][:]
            columns = {"sentence": texts, "label": [0] * len(texts), "idx": list(range(len(texts)))}
            parts.append(Dataset.from_dict(columns))
    return CustomDataset(concatenate_datasets(parts), experiment.tokenizer, "cola", experiment.profile.max_length)


def trial(
    experiment: Experiment, options: dict[str, object], tasks: list[str], scores: dict[str, float]
) -> dict[str, object]:
    """Fit keys, train values, and score, beside the `scores` of teacher and distilled student."""
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
    return (
        scores
        | max(found, key=lambda run: run["held_out"])
        | {
            "perplexity": float(usage["perplexity"].mean()),
            "used_fraction": float((model.bottleneck.hits(train.key_indices.long()) > 0).double().mean()),
            "bits_a_token": codebooks * math.log2(size),
            "megabytes": sum(t.numel() * t.element_size() for t in model.bottleneck.state_dict().values()) / 1e6,
            "seconds": time.perf_counter() - begun,
        }
    )


def main() -> None:
    """Run the trials that are not yet in the file."""
    tasks = ["cola", "rte", "qnli", "mnli", "sst2"]
    arguments = parse(__doc__, tasks, [0, 1, 2, 3, 4], "bottleneck_choices.jsonl")
    for experiment in experiments(arguments):
        metric = experiment.task.metrics[0]
        scores = {name: experiment.score(name)[metric] for name in ("teacher", "distilbert")}
        with frozen_encoder():
            for name, options in CHOICES.items():
                key = {"choice": name, "task": experiment.task.name, "seed": experiment.seed}
                add_trial(arguments.output, key, partial(trial, experiment, options, tasks, scores))


if __name__ == "__main__":
    main()
