"""At which learning rate is the distilled student's head retrained? Scores on held-out training rows of real GLUE.

``OMP_NUM_THREADS=1 python tests/benchmarks/choose_head.py --tasks cola rte --seeds 0`` adds one line a rate to
``data/results/head_choices.jsonl`` and leaves out those that stand there. Students come from, and go to,
``--runs``; validation rows are not read.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from datasets import disable_progress_bars
from filelock import FileLock
from transformers.utils import logging

from kvlib import DistillationTrainer, Experiment, fine_tune, get_profile

ROOT = Path(__file__).resolve().parents[2]
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def trial(experiment: Experiment, rate: float) -> dict[str, float]:
    """Retrain the head as the stage does, for the epochs of the values."""
    p, metric = experiment.profile, experiment.task.metrics[0]
    taught = experiment.tokenize(experiment.train_split, teacher_logits=experiment.teacher_logits)
    with tempfile.TemporaryDirectory() as folder:
        history = fine_tune(
            experiment.start("retrained-head"), taught, experiment.held_out, folder, epochs=p.bottleneck_epochs,
            learning_rate=rate, batch_size=p.batch_size, seed=experiment.seed, bf16=p.bf16,
            trainer=partial(DistillationTrainer, temperature=p.temperature, alpha=p.alpha),
        )  # fmt: skip
    return {"held_out": history[metric].max(), "epoch": float(history["epoch"][history[metric].idxmax()])}


def main() -> None:
    """Run the trials that are not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="../shared/glue")
    parser.add_argument("--tasks", nargs="+", default=["cola", "rte", "qnli"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--runs", type=Path, help="folder of finished stages (default: data/runs)")
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "results" / "head_choices.jsonl")
    arguments = parser.parse_args()
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for seed in arguments.seeds:
        for task in arguments.tasks:
            experiment = Experiment(
                task, arguments.source, get_profile("real"), seed, arguments.runs, max_rows=10_000
            )
            for rate in LEARNING_RATES:
                done = arguments.output.read_text().splitlines() if arguments.output.exists() else []
                key = {"learning_rate": rate, "task": task, "seed": seed}
                if any(key.items() <= json.loads(line).items() for line in done):
                    continue
                line = json.dumps(key | trial(experiment, rate))
                with FileLock(f"{arguments.output}.lock"), arguments.output.open("a") as output:
                    output.write(line + "\n")
                print(line, flush=True)


if __name__ == "__main__":
    main()
