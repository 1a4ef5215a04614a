"""How should stage 2 distil? Scores on held-out training rows of real GLUE; validation splits are not read.

``OMP_NUM_THREADS=1 python tests/benchmarks/choose_distillation.py --tasks cola qnli --seeds 0 1`` adds one line a
trial to ``data/results/distillation_choices.jsonl`` and leaves out those that stand there. Teachers come from, and
go to, ``--runs``. A trial is a stage on hidden states, layer by layer on fresh text (or none), and then one on
logits.
"""

import copy
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import set_seed
from transformers.utils import ModelOutput
from trials import add_trial, experiments, parse

from kvlib import DistilBERTwithBottleNeck, DistillationTrainer, Experiment, fine_tune
from kvlib.augmentation import FreshTextDataset
from kvlib.data import MODEL_INPUTS
from kvlib.evaluation import evaluate
from kvlib.loss import distillation_loss, layer_loss
from kvlib.training import LayerTrainer


@dataclass(frozen=True)
class Layers:
    """The stage on hidden states: its passes over the texts and as many fresh ones, and what may be otherwise."""

    epochs: int
    learning_rate: float = 5e-4
    last_twice: bool = False
    dropout: bool = False
    embeddings: bool = False
    # the logits of the teacher in the same stage
    logits: bool = False
    # the teacher's own head and its last layer norm, to start with
    head: bool = False
    # the same texts in every epoch
    fresh: bool = True
    # the teacher's layers that the student starts from
    start: tuple[int, ...] = (0, 2, 4)


@dataclass(frozen=True)
class Logits:
    """The stage on logits."""

    epochs: int = 3
    alpha: float = 0.9
    learning_rate: float = 1e-4
    dropout: bool = True
    # fresh text, the teacher answering in the step
    fresh: bool = False


TRIALS: dict[str, tuple[Layers | None, Logits]] = {
    "labels, 3 epochs": (None, Logits(alpha=0.0)),
    "logits and labels, 3 epochs": (None, Logits()),
    "logits, 3 epochs": (None, Logits(alpha=1.0)),
    "3 passes of layers, then logits and labels": (Layers(3), Logits()),
    "3 passes of layers, then logits": (Layers(3), Logits(alpha=1.0)),
    "3 passes of layers, then logits and labels, lower rate": (Layers(3), Logits(learning_rate=3e-5)),
    "3 passes of layers, then logits of fresh text": (Layers(3), Logits(alpha=1.0, fresh=True)),
    "3 passes of layers, then logits and labels without dropout": (Layers(3), Logits(dropout=False)),
    "3 passes of layers and logits, then logits and labels": (Layers(3, logits=True), Logits()),
    "3 passes of layers, the last twice, then logits and labels": (Layers(3, last_twice=True), Logits()),
    "3 passes of layers with dropout, then logits and labels": (Layers(3, dropout=True), Logits()),
    "3 passes of layers at 1e-3, then logits and labels": (Layers(3, learning_rate=1e-3), Logits()),
    "3 passes of layers with the teacher's head, then logits and labels": (Layers(3, head=True), Logits()),
    "3 passes of layers on the same text, then logits and labels": (Layers(3, fresh=False), Logits()),
    "3 passes of layers from 0, 2, 5, then logits and labels": (Layers(3, start=(0, 2, 5)), Logits()),
    "3 passes of layers and of embeddings, then logits and labels": (Layers(3, embeddings=True), Logits()),
    "1 pass of layers, then logits and labels": (Layers(1), Logits()),
    "5 passes of layers, then logits and labels": (Layers(5), Logits()),
    "10 passes of layers, then logits and labels": (Layers(10), Logits()),
}


class TrialTrainer(LayerTrainer):
    """`LayerTrainer` with what may be otherwise."""

    def __init__(self, *args: object, options: Layers, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.options = options

    def train(self, *args: object, **kwargs: object) -> object:
        if not (self.options.dropout or self.options.embeddings):
            return super().train(*args, **kwargs)
        if self.options.embeddings:
            for module in self.model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        else:
            self.model.base_model.embeddings.requires_grad_(False)
        return super(LayerTrainer, self).train(*args, **kwargs)

    def _loss(self, outputs: ModelOutput, inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            named = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
            theirs = self.teacher(**named, output_hidden_states=True)
        own, states, mask = outputs.hidden_states[1:], theirs.hidden_states[1:], inputs["attention_mask"]
        loss = layer_loss(own, states, mask)
        if self.options.last_twice:
            loss = (len(own) * loss + layer_loss(own[-1:], states, mask)) / (len(own) + 1)
        if self.options.logits:
            loss = loss + distillation_loss(outputs.logits, theirs.logits)
        return loss


class FreshLogitsTrainer(DistillationTrainer):
    """`DistillationTrainer` with a teacher that answers in the step."""

    def __init__(self, *args: object, teacher: nn.Module, **kwargs: object) -> None:
        train = kwargs["train_dataset"]
        train.teacher_logits = torch.zeros(len(train), train.task.num_labels)
        super().__init__(*args, **kwargs)
        self.teacher = teacher

    def _loss(self, outputs: ModelOutput, inputs: dict[str, Tensor]) -> Tensor:
        if "teacher_logits" in inputs:
            with torch.no_grad():
                answers = self.teacher(**{name: inputs[name] for name in MODEL_INPUTS if name in inputs}).logits
            inputs = inputs | {"teacher_logits": answers}
        return super()._loss(outputs, inputs)


def start(experiment: Experiment, layers: tuple[int, ...]) -> nn.Module:
    """Make a student of the teacher's layers with these numbers."""
    teacher = copy.deepcopy(experiment.model("teacher"))
    own = teacher.bert.encoder.layer
    # `from_teacher` takes the first of every two
    teacher.bert.encoder.layer = nn.ModuleList(layer for number in layers for layer in (own[number], own[number]))
    set_seed(experiment.seed)
    return DistilBERTwithBottleNeck.from_teacher(teacher)


def layers_stage(experiment: Experiment, options: Layers, folder: str) -> nn.Module:
    """Train the layers of a student."""
    p, teacher = experiment.profile, experiment.model("teacher")
    student = start(experiment, options.start)
    if options.head:
        student.classifier.load_state_dict(teacher.classifier.state_dict())
        norm = teacher.bert.encoder.layer[-1].output.LayerNorm.state_dict()
        student.distilbert.transformer.layer[-1].output_layer_norm.load_state_dict(norm)
    rows = (experiment.train_split, experiment.tokenizer, experiment.task, p.max_length, experiment.seed)
    train = FreshTextDataset(*rows)
    if not options.fresh:
        train._epoch, train.set_epoch = 0, lambda epoch: None
    history = fine_tune(
        student, train, experiment.held_out, folder, epochs=options.epochs, learning_rate=options.learning_rate,
        batch_size=p.batch_size, seed=experiment.seed, bf16=p.bf16,
        trainer=partial(TrialTrainer, teacher=teacher, options=options),
    )  # fmt: skip
    student.layer_loss = float(history["held_out_loss"].iloc[-1])
    return student


def logits_stage(experiment: Experiment, student: nn.Module, options: Logits, folder: str) -> nn.Module:
    """Train a student on logits, labels or both."""
    p, teacher = experiment.profile, experiment.model("teacher")
    trainer = partial(DistillationTrainer, temperature=p.temperature, alpha=options.alpha)
    if options.fresh:
        rows = (experiment.train_split, experiment.tokenizer, experiment.task, p.max_length, experiment.seed)
        train = FreshTextDataset(*rows)
        trainer = partial(FreshLogitsTrainer, teacher=teacher, temperature=p.temperature, alpha=options.alpha)
    else:
        logits = experiment.teacher_logits if options.alpha else None
        train = experiment.tokenize(experiment.train_split, teacher_logits=logits)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1 if options.dropout else 0.0
    student.requires_grad_(True)
    fine_tune(
        student, train, experiment.held_out, folder, epochs=options.epochs, learning_rate=options.learning_rate,
        batch_size=p.batch_size, seed=experiment.seed, bf16=p.bf16, trainer=trainer,
    )  # fmt: skip
    return student


def trial(experiment: Experiment, name: str, aligned: dict[Layers, nn.Module]) -> dict[str, object]:
    """Train a student on hidden states (or take it from `aligned`), then on logits; score it on held-out rows."""
    experiment.teacher_logits  # noqa: B018 (outside the time)
    (layers, logits), begun = TRIALS[name], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if layers and layers not in aligned:
            aligned[layers] = layers_stage(experiment, layers, f"{folder}/layers")
        layers_seconds = time.perf_counter() - begun
        student = copy.deepcopy(aligned[layers]) if layers else start(experiment, (0, 2, 4))
        logits_stage(experiment, student, logits, f"{folder}/logits")
    with experiment.precision():
        scores = {
            who: evaluate(model, experiment.held_out)[experiment.task.metrics[0]]
            for who, model in (("student", student), ("teacher", experiment.model("teacher")))
        }
    return scores | {
        "rows": len(experiment.held_out),
        "layers": layers and asdict(layers), "logits": asdict(logits),
        "layer_loss": getattr(aligned.get(layers), "layer_loss", None),
        "layers_seconds": layers_seconds, "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def main() -> None:
    """Run the trials that are not yet in the file."""
    arguments = parse(__doc__, ["cola", "qnli", "mnli"], [0, 1], "distillation_choices.jsonl", list(TRIALS))
    for experiment in experiments(arguments):
        aligned: dict[Layers, nn.Module] = {}
        for name in arguments.trials:
            key = {"trial": name, "task": experiment.task.name, "seed": experiment.seed}
            add_trial(arguments.output, key, partial(trial, experiment, name, aligned))


if __name__ == "__main__":
    main()
