"""One student, distilled from the teachers of several tasks: one after another, or all at once."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kvlib.continual.learners import Examples, Values, fired_keys, fitted_bottleneck
from kvlib.data import CustomDataset
from kvlib.loss import distillation_loss
from kvlib.recipe.experiment import Experiment
from kvlib.student import DistilBERTwithBottleNeck, pool_real_tokens
from kvlib.training import LazyAdam

# from a data set and its row numbers to logits for the labels of all tasks
Answer = Callable[[CustomDataset, Tensor], Tensor]


def distil_in_turn(experiments: Sequence[Experiment], seed: int) -> dict[str, dict[str, Any]]:
    """Distil the teachers of several tasks into one student: one after another, or all at once.

    Returns a record for each of four students. Two train the encoder, under one linear head with logits for each
    task. Two leave it frozen and train values for each task, behind keys fitted on the first one's texts: the
    pretrained encoder, and that of the student after the first task. R is the accuracy on validation rows with the
    task's own logits.
    """
    tasks = _Tasks(experiments, seed)
    torch.manual_seed(seed)
    encoder = DistilBERTwithBottleNeck.from_teacher(experiments[0].start("teacher")).cpu().eval()
    student = _Student(encoder, tasks.num_labels)
    found = {"values, pretrained encoder": _values_in_turn(tasks, encoder, seed)}
    at_once, rows = copy.deepcopy(student), []
    for name in tasks.names:
        _train_encoder(tasks, student, [name])
        rows.append([tasks.accuracy(task, student) for task in tasks.names])
        if len(rows) == 1:
            found["values, first encoder"] = _values_in_turn(tasks, copy.deepcopy(student.encoder), seed)
    found["encoder, task after task"] = rows
    _train_encoder(tasks, at_once, tasks.names)
    # nothing comes after it: every row of R is the last one
    found["encoder, all tasks at once"] = [[tasks.accuracy(task, at_once) for task in tasks.names]] * len(rows)
    teachers = {name: tasks.by_name[name].score("teacher")["accuracy"] for name in tasks.names}
    return {
        name: {"tasks": tasks.names, "matrix": np.array(matrix).round(6).tolist(), "teachers": teachers}
        for name, matrix in found.items()
    }


class _Tasks:
    """Tasks in their order, the logits that are each one's own, and batches drawn by one generator."""

    def __init__(self, experiments: Sequence[Experiment], seed: int) -> None:
        self.by_name = {experiment.task.name: experiment for experiment in experiments}
        self.names, self.profile = list(self.by_name), experiments[0].profile
        self.generator = torch.Generator().manual_seed(seed)
        self.num_labels, self.own_logits = 0, {}
        for name, experiment in self.by_name.items():
            labels = experiment.task.num_labels
            self.own_logits[name] = slice(self.num_labels, self.num_labels + labels)
            self.num_labels += labels

    def distil(self, answer: Answer, optimizer: torch.optim.Optimizer, names: Sequence[str], epochs: int) -> None:
        """Train with batches of some tasks, mixed, each towards its own teacher."""
        for _ in range(epochs):
            batches = [
                (name, rows)
                for name in names
                for rows in self._shuffled(len(self.by_name[name].train)).split(self.profile.batch_size)
            ]
            for place in self._shuffled(len(batches)).tolist():
                name, rows = batches[place]
                train, taught = self.by_name[name].train, self.by_name[name].teacher_logits
                optimizer.zero_grad()
                logits, labels = answer(train, rows)[:, self.own_logits[name]], torch.tensor(train.labels)
                settings = self.profile.temperature, self.profile.alpha
                distillation_loss(logits, taught[rows], labels[rows], *settings).backward()
                optimizer.step()

    def _shuffled(self, number: int) -> Tensor:
        return torch.randperm(number, generator=self.generator)

    @torch.no_grad()
    def accuracy(self, name: str, answer: Answer) -> float:
        """Return the share of a task's validation rows that its own logits answer as the label says."""
        experiment = self.by_name[name]
        split = experiment.validation[experiment.task.validation[0]]
        logits = torch.cat([answer(split, rows) for rows in torch.arange(len(split)).split(64)])
        answers = logits[:, self.own_logits[name]].argmax(1)
        return float((answers == torch.tensor(split.labels)).double().mean())


class _Student(nn.Module):
    """A pretrained student's encoder and one linear head for the labels of all tasks."""

    def __init__(self, encoder: DistilBERTwithBottleNeck, num_labels: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.dim, num_labels)

    def forward(self, dataset: CustomDataset, rows: Tensor) -> Tensor:
        batch = dataset.collate([dataset[int(row)] for row in rows])
        states, mask, _ = self.encoder.encode(batch["input_ids"], batch["attention_mask"])
        return self.head(pool_real_tokens(states, mask))


def _train_encoder(tasks: _Tasks, model: _Student, names: Sequence[str]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=tasks.profile.student_learning_rate)
    tasks.distil(model, optimizer, names, tasks.profile.student_epochs)


def _values_in_turn(tasks: _Tasks, encoder: DistilBERTwithBottleNeck, seed: int) -> list[list[float]]:
    """Train values for each task in turn behind a frozen encoder, the keys fitted on the first one's texts."""
    profile, first = tasks.profile, tasks.by_name[tasks.names[0]].train
    shape = tasks.num_labels, profile.num_codebooks, profile.codebook_size
    bottleneck = fitted_bottleneck(encoder.sample_states(first), *shape, seed)
    values, keys = Values(bottleneck), {}

    def answer(split: CustomDataset, rows: Tensor) -> Tensor:
        if id(split) not in keys:
            with torch.no_grad():
                states = torch.cat(list(encoder.hidden_states(split))).split(split.lengths.tolist())
                keys[id(split)] = fired_keys(bottleneck, Examples(torch.tensor(split.labels), states[0], states))
        return values(keys[id(split)][rows])

    matrix = []
    for name in tasks.names:
        optimizer = LazyAdam(values.parameters(), lr=profile.bottleneck_learning_rate)
        tasks.distil(answer, optimizer, [name], profile.bottleneck_epochs)
        matrix.append([tasks.accuracy(task, answer) for task in tasks.names])
    return matrix
