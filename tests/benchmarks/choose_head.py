"""At which learning rate is the distilled student's head retrained? Scores on held-out training rows of real GLUE.

``OMP_NUM_THREADS=1 python tests/benchmarks/choose_head.py --tasks cola rte --seeds 0`` adds one line a rate to
``data/results/head_choices.jsonl`` and leaves out those that stand there. Students come from, and go to,
``--runs``; validation rows are not read.
"""

import tempfile
from functools import partial

from trials import add_trial, experiments, frozen_encoder, parse

from kvlib import DistillationTrainer, Experiment, fine_tune

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
    arguments = parse(__doc__, ["cola", "rte", "qnli"], [0, 1], "head_choices.jsonl")
    for experiment in experiments(arguments):
        experiment.model("distilbert")
        with frozen_encoder():
            for rate in LEARNING_RATES:
                key = {"learning_rate": rate, "task": experiment.task.name, "seed": experiment.seed}
                add_trial(arguments.output, key, partial(trial, experiment, rate))


if __name__ == "__main__":
    main()
