"""Stages 2 and 3: train a student on its teacher's logits, first through the encoder, then on key indices."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer

from kvlib.data import CustomDataset
from kvlib.loss import distillation_loss
from kvlib.student import DistilBERTwithBottleNeck
from kvlib.teacher import MODEL_INPUTS

STUDENT_INPUTS = (*MODEL_INPUTS, "key_indices")


class DistillationTrainer(Trainer):
    """`transformers.Trainer` with `distillation_loss`.

    Batches carry ``labels`` and, in training, ``teacher_logits``, as `CustomDataset` gives them; the teacher
    itself is not needed. Where there are no teacher logits (evaluation), the loss is that on the labels.

    Parameters
    ----------
    temperature, alpha : float
        As in `distillation_loss`; ``alpha=0`` is fine-tuning without a teacher.
    *args, **kwargs
        As for `transformers.Trainer`.

    Raises
    ------
    ValueError
        If `alpha` is positive and the training data has no teacher logits.
    """

    # the loss is a mean over the batch: without this, accumulating gradients would add instead of averaging
    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, temperature: float = 2.0, alpha: float = 0.9, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.temperature = temperature
        self.alpha = alpha
        # by default columns that forward does not name are dropped before the loss sees them: teacher_logits
        self.args.remove_unused_columns = False
        self.label_names = ["labels"]
        train = self.train_dataset
        if alpha > 0 and train is not None and getattr(train, "teacher_logits", None) is None:
            raise ValueError(
                f"alpha is {alpha} but the training data has no teacher logits: attach them, or use alpha=0"
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
        return (loss, {"logits": outputs.logits}) if return_outputs else loss

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Leave values out of weight decay, which would shrink those that no input selected."""
        return [
            name for name in super().get_decay_parameter_names(model) if not name.endswith("bottleneck.values")
        ]


class KeyIndexDataset(torch.utils.data.Dataset):
    """A split as the bottleneck sees it: key indices in place of tokens.

    With encoder and keys frozen the key indices of a split are constant. They are computed here once, so
    that stage 3 trains on integers.

    Parameters
    ----------
    student : DistilBERTwithBottleNeck
        With a bottleneck.
    dataset : CustomDataset
        Its labels, idx, teacher logits and order are kept.
    batch_size : int
        Rows a batch while computing.
    """

    def __init__(self, student: DistilBERTwithBottleNeck, dataset: CustomDataset, batch_size: int = 64) -> None:
        self.task = dataset.task
        self.labels, self.idx = dataset.labels, dataset.idx
        self.teacher_logits = dataset.teacher_logits
        found = torch.cat(
            [student.bottleneck.quantize(s).cpu() for s in student.hidden_states(dataset, batch_size)]
        )
        one_state = len(found) == len(dataset)
        sizes = [1] * len(dataset) if one_state else dataset.lengths.tolist()
        smallest = np.min_scalar_type(student.bottleneck.codebook_size - 1)
        self.key_indices = [part.numpy().astype(smallest) for part in found.split(sizes)]

    def __len__(self) -> int:
        return len(self.idx)

    def __getitem__(self, row: int) -> dict:
        example = {"key_indices": torch.from_numpy(self.key_indices[row].astype(np.int64))}
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
