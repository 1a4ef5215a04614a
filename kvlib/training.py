"""Stages 2 and 3: train a student on its teacher's logits, first through the encoder, then on key indices."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kvlib.bottleneck import DiscreteKeyValueBottleneck
from kvlib.data import CustomDataset
from kvlib.discretized import DiscretizedModel
from kvlib.loss import alignment_loss, distillation_loss, hidden_state_loss
from kvlib.teacher import MODEL_INPUTS, GuardedTrainer, cached_tensors, fingerprint

STUDENT_INPUTS = (*MODEL_INPUTS, "key_indices")


class DistillationTrainer(GuardedTrainer):
    """`GuardedTrainer` with `distillation_loss`.

    Batches carry ``labels`` and, in training, ``teacher_logits``, as `CustomDataset` gives them; the teacher
    itself is not needed. Where there are no teacher logits (evaluation), the loss is that on the labels.

    Parameters
    ----------
    temperature, alpha : float
        As in `distillation_loss`; ``alpha=0`` is fine-tuning without a teacher.
    hidden_weight : float
        Weight of a loss on last hidden states, added to the others: `hidden_state_loss`, or `alignment_loss` if
        there is a `bottleneck`. It is a mean over a batch's tokens, so that accumulated gradients, and those of
        several processes, are those of one large batch only up to the batches' unequal numbers of tokens.
    bottleneck : DiscreteKeyValueBottleneck, optional
        The teacher's, to whose keys the student is aligned before it carries them.
    key_weight : float
        As in `alignment_loss`.
    *args, **kwargs
        As for `transformers.Trainer`.

    Raises
    ------
    ValueError
        If `alpha` is positive and the training data has no teacher logits, or `hidden_weight` is and it has no
        teacher states.
    """

    def __init__(
        self,
        *args: Any,
        temperature: float = 2.0,
        alpha: float = 0.9,
        hidden_weight: float = 0.0,
        bottleneck: DiscreteKeyValueBottleneck | None = None,
        key_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.temperature, self.alpha = temperature, alpha
        self.hidden_weight, self.key_weight = hidden_weight, key_weight
        self.bottleneck = bottleneck.to(self.args.device) if bottleneck is not None else None
        train = self.train_dataset
        if alpha > 0 and train is not None and getattr(train, "teacher_logits", None) is None:
            raise ValueError(
                f"alpha is {alpha} but the training data has no teacher logits: attach them, or use alpha=0"
            )
        if hidden_weight > 0 and train is not None and getattr(train, "teacher_states", None) is None:
            raise ValueError(
                f"hidden_weight is {hidden_weight} but the training data has no teacher states: attach them, "
                "or use hidden_weight=0"
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch; `Trainer` calls this in training and in evaluation."""
        outputs = model(**{name: inputs[name] for name in STUDENT_INPUTS if name in inputs})
        teacher_logits = inputs.get("teacher_logits")
        alpha = self.alpha if teacher_logits is not None else 0.0
        loss = distillation_loss(outputs.logits, teacher_logits, inputs["labels"], self.temperature, alpha)
        if self.hidden_weight > 0 and "teacher_states" in inputs:
            loss = loss + self.hidden_weight * self._hidden_loss(outputs.hidden_states, inputs["teacher_states"])
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    def _hidden_loss(self, student_states: Tensor, teacher_states: Tensor) -> Tensor:
        if self.bottleneck is None:
            return hidden_state_loss(student_states, teacher_states)
        return alignment_loss(self.bottleneck, student_states.float(), teacher_states.float(), self.key_weight)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Leave values out of weight decay, which would shrink those that no input selected."""
        return [
            name for name in super().get_decay_parameter_names(model) if not name.endswith("bottleneck.values")
        ]


class KeyIndexDataset(torch.utils.data.Dataset):
    """A split as the bottleneck sees it: key indices in place of tokens.

    With encoder and keys frozen the key indices of a split are constant. They are computed once, so that stage 3
    trains on integers. The model gives the same logits for them as for the tokens, bit for bit;
    only where two keys are equally near to within the rounding of the encoder's float32, another batch may find
    the other.

    Parameters
    ----------
    student : DistilBERTwithBottleNeck or BERTwithBottleNeck
        With a bottleneck.
    dataset : CustomDataset
        Its labels, idx, teacher logits and order are kept.
    folder : str or pathlib.Path, optional
        Keep the key indices here, in a file named by what they were made from, and read them from there through
        a memory map; by default they stay in memory.
    batch_size : int
        Rows a batch while computing.

    Attributes
    ----------
    key_indices : torch.Tensor
        ``(N, C)``, one row a real token (or an example, if hidden states are pooled first), in the smallest
        integer type that holds K.

    Raises
    ------
    RuntimeError
        If the keys are not frozen.
    ValueError
        If the file in `folder` was made from something else than its name says.
    """

    def __init__(
        self,
        student: DiscretizedModel,
        dataset: CustomDataset,
        folder: str | Path | None = None,
        batch_size: int = 64,
    ) -> None:
        if not student.bottleneck.frozen:
            raise RuntimeError(
                "the keys are not frozen, so key indices can still change: call freeze_keys() first"
            )
        self.task = dataset.task
        self.labels, self.idx = dataset.labels, dataset.idx
        self.teacher_logits = dataset.teacher_logits
        if folder is None:
            self.key_indices = _key_indices(student, dataset, batch_size)
        else:
            made_from = _origin(student, dataset)
            name = hashlib.sha256(" ".join(made_from.values()).encode()).hexdigest()[:12]
            self.key_indices = cached_tensors(
                Path(folder) / f"{dataset.task.name}-key-indices-{name}.safetensors",
                made_from,
                lambda: {"key_indices": _key_indices(student, dataset, batch_size)},
            )["key_indices"]
        one_state = len(self.key_indices) == len(dataset)
        sizes = [1] * len(dataset) if one_state else dataset.lengths
        self._ends = np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return len(self.idx)

    def __getitem__(self, row: int) -> dict:
        example = {"key_indices": self.key_indices[self._ends[row] : self._ends[row + 1]].long()}
        example |= {"labels": self.labels[row], "idx": self.idx[row]}
        if self.teacher_logits is not None:
            example["teacher_logits"] = self.teacher_logits[row]
        return example

    def collate(self, examples: list[dict]) -> dict[str, Tensor]:
        """Stack `examples`: ``key_indices`` (B, T, C) int64 with -1 at padding; the rest as `CustomDataset`."""
        batch = {
            "key_indices": pad_sequence([e["key_indices"] for e in examples], batch_first=True, padding_value=-1),
            "labels": torch.tensor([e["labels"] for e in examples]),
            "idx": torch.tensor([e["idx"] for e in examples]),
        }
        if "teacher_logits" in examples[0]:
            batch["teacher_logits"] = torch.stack([e["teacher_logits"] for e in examples])
        return batch


def _key_indices(student: DiscretizedModel, dataset: CustomDataset, batch_size: int) -> Tensor:
    """Find the key indices of all real tokens, in order: ``(N, C)``."""
    largest = student.bottleneck.codebook_size - 1
    smallest = next(kind for kind in (torch.uint8, torch.uint16, torch.uint32) if largest <= torch.iinfo(kind).max)
    # like lengths together, to save padding
    order = np.argsort(dataset.lengths, kind="stable")
    states = student.hidden_states(dataset, batch_size, order)
    found = torch.cat([student.bottleneck.quantize(batch).to(smallest).cpu() for batch in states])
    one_state = len(found) == len(dataset)
    sizes = torch.ones(len(dataset), dtype=torch.int64) if one_state else torch.from_numpy(dataset.lengths)
    # token t of a row was found at the row's place in `order`, and t further
    starts = torch.empty(len(dataset), dtype=torch.int64)
    starts[order] = sizes[order].cumsum(0) - sizes[order]
    within = torch.arange(len(found)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return found[starts.repeat_interleave(sizes) + within]


def _origin(student: DiscretizedModel, dataset: CustomDataset) -> dict[str, str]:
    """Fingerprint all that key indices depend on."""
    options = ("pooling", "pool", "projection", "standardize")
    return {
        "encoder": fingerprint(student.base_model),
        "bottleneck": fingerprint(dict(student.bottleneck.named_buffers())),
        "options": " ".join(str(getattr(student.config, option)) for option in options),
        "rows": dataset.fingerprint,
    }
