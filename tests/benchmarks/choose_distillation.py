"""Which additions to stage 2 help? Scores on held-out training rows of real GLUE; validation splits are not read.

``OMP_NUM_THREADS=1 python tests/benchmarks/choose_distillation.py --tasks cola qnli --seeds 0 1`` adds one line a
trial to ``data/results/distillation_choices.jsonl`` and leaves out those that stand there. Teachers come from, and
go to, ``data/runs``; here the teacher runs in every step, since hidden states and relations of all trials would be
too much to keep.
"""

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from torch import Tensor, nn
from transformers import set_seed
from transformers.utils import logging

from kvlib import DistilBERTwithBottleNeck, DistillationTrainer, Experiment, fine_tune, get_profile
from kvlib.data import MODEL_INPUTS, Task
from kvlib.evaluation import evaluate
from kvlib.teacher import predict_logits

ROOT = Path(__file__).resolve().parents[2]
TRIALS = {
    "logits, 3 epochs": {"epochs": 3},
    "logits + cosine, 3 epochs": {"epochs": 3, "cosine": 1.0},
    "logits + relations, 3 epochs": {"epochs": 3, "relations": 1.0},
    "logits, 6 epochs": {"epochs": 6},
    "logits + as much new text, 3 epochs": {"epochs": 3, "copies": 1},
}


class LiveTrainer(DistillationTrainer):
    """Adds a cosine loss on last hidden states and MiniLM's relation loss, the teacher running in every step."""

    def __init__(
        self, *args: object, teacher: nn.Module, cosine: float, relations: float, **kwargs: object
    ) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self.cosine, self.relations = teacher.eval().requires_grad_(False), cosine, relations
        self.taken: dict[str, Tensor] = {}
        attention = teacher.bert.encoder.layer[-1].attention.self
        own = self.model.distilbert.transformer.layer[-1].attention
        for owner, layers in (
            ("teacher", (attention.query, attention.key, attention.value)),
            ("student", (own.q_lin, own.k_lin, own.v_lin)),
        ):
            for name, layer in zip("qkv", layers, strict=True):
                layer.register_forward_hook(partial(self._take, f"{owner} {name}"))
        teacher.bert.encoder.register_forward_hook(lambda *call: self._take("teacher h", *call[:2], call[2][0]))
        self.model.distilbert.transformer.register_forward_hook(
            lambda *call: self._take("student h", *call[:2], call[2][0])
        )

    def _take(self, name: str, layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.taken[name] = output

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: object, **kwargs: object) -> Tensor:
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if "teacher_logits" not in inputs or not (self.cosine or self.relations):
            return loss
        # no inference_mode: what it makes cannot stand in a graph
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
            self.teacher(**{name: inputs[name] for name in MODEL_INPUTS})
        real = inputs["attention_mask"].bool()
        if self.cosine:
            hidden = [self.taken[f"{owner} h"][real].float() for owner in ("student", "teacher")]
            loss = loss + self.cosine * (1 - F.cosine_similarity(*hidden, dim=-1)).mean()
        if self.relations:
            loss = loss + self.relations * self._relation_loss(real)
        return loss

    def _relation_loss(self, real: Tensor) -> Tensor:
        """KL between the relations of queries and keys and of values with values (Wang et al. 2020, MiniLM)."""
        loss = torch.zeros(())
        for left, right in ("qk", "vv"):
            relations = []
            for owner in ("student", "teacher"):
                first, second = (
                    self.taken[f"{owner} {n}"].float().unflatten(-1, (12, -1)).transpose(1, 2)
                    for n in (left, right)
                )  # (B, heads, T, d)
                scores = first @ second.mT / first.shape[-1] ** 0.5
                relations.append(F.log_softmax(scores.masked_fill(~real[:, None, None], -1e9), -1))
            divergence = F.kl_div(*relations, reduction="none", log_target=True).sum(-1)  # (B, heads, T)
            loss = loss + divergence.mean(1)[real].mean()
        return loss


def new_text(split: Dataset, task: Task, seed: int) -> Dataset:
    """Return as many rows again: every seventh word another of the split's; half of all pairs paired anew."""
    generator = np.random.default_rng(seed)
    columns = {}
    words = np.array(" ".join(" ".join(split[name][:]) for name in task.text_columns).split())
    for number, name in enumerate(task.text_columns):
        texts = [np.array(text.split(), dtype=object) for text in split[name][:]]
        for text in texts:
            changed = generator.random(len(text)) < 1 / 7
            text[changed] = generator.choice(words, changed.sum())
        if number:
            moved = generator.random(len(texts)) < 0.5
            order = np.arange(len(texts))
            order[moved] = generator.permutation(order[moved])
            texts = [texts[row] for row in order]
        columns[name] = [" ".join(text) for text in texts]
    return Dataset.from_dict(columns | {"label": split["label"][:], "idx": split["idx"][:]}, split.features)


def trial(experiment: Experiment, options: dict[str, float]) -> dict[str, float]:
    """Train one student and score it, and its teacher, on the held-out rows."""
    teacher, split, logits = experiment.model("teacher"), experiment.train_split, experiment.teacher_logits
    if options.get("copies"):
        more = new_text(split, experiment.task, experiment.seed)
        with experiment.precision():
            answers = predict_logits(teacher, experiment.tokenize(more))
        regression = experiment.task.is_regression
        labels = answers[:, 0].clamp(0, 5).tolist() if regression else answers.argmax(1).tolist()
        labelled = Dataset.from_dict(more.to_dict() | {"label": labels}, split.features)
        split, logits = concatenate_datasets([split, labelled]), torch.cat([logits, answers])
    train = experiment.tokenize(split, teacher_logits=logits)
    set_seed(experiment.seed)
    student = DistilBERTwithBottleNeck.from_teacher(teacher)
    trainer = partial(
        LiveTrainer, teacher=teacher, cosine=options.get("cosine", 0.0), relations=options.get("relations", 0.0),
        temperature=experiment.profile.temperature, alpha=experiment.profile.alpha,
    )  # fmt: skip
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        history = fine_tune(
            student, train, experiment.held_out, folder, epochs=options["epochs"], trainer=trainer,
            learning_rate=options.get("learning_rate", experiment.profile.student_learning_rate),
            batch_size=experiment.profile.batch_size, seed=experiment.seed, bf16=experiment.profile.bf16,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    metric = experiment.task.metrics[0]
    with experiment.precision():
        return {
            "student": evaluate(student, experiment.held_out)[metric],
            "teacher": evaluate(teacher, experiment.held_out)[metric],
            "rows": len(experiment.held_out),
            "last_loss": float(history["held_out_loss"].iloc[-1]),
            "seconds": seconds,
        }


def main() -> None:
    """Run the trials that are not yet in the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="../shared/glue")
    parser.add_argument("--tasks", nargs="+", default=["cola", "qnli"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--output", type=Path, default=ROOT / "data" / "results" / "distillation_choices.jsonl")
    arguments = parser.parse_args()
    disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for seed in arguments.seeds:
        for name, options in TRIALS.items():
            for task in arguments.tasks:
                done = arguments.output.read_text().splitlines() if arguments.output.exists() else []
                key = {"trial": name, "task": task, "seed": seed}
                if any(key.items() <= json.loads(line).items() for line in done):
                    continue
                experiment = Experiment(task, arguments.source, get_profile("real"), seed, max_rows=10_000)
                line = json.dumps(key | trial(experiment, options))
                with arguments.output.open("a") as output:
                    output.write(line + "\n")
                print(line, flush=True)


if __name__ == "__main__":
    main()
