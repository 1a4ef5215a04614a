"""Stage 1: fine-tune BERT on a task, then keep what it says of the training rows."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    PreTrainedModel,
    set_seed,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from kvlib.cache import cached_tensors, fingerprint, tokenizer_fingerprint
from kvlib.data import MODEL_INPUTS, CustomDataset, Task, get_task
from kvlib.pretrained import resolve_checkpoint


def label_config(task: Task) -> dict[str, Any]:
    """Return what a model's config says about the labels of `task`."""
    names = task.label_names or ("score",)
    return {
        "num_labels": task.num_labels,
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "regression" if task.is_regression else "single_label_classification",
    }


def given(**options: bool | None) -> dict[str, bool]:
    """Leave out options that are None, for the config to decide: handed on, None would mean no."""
    return {name: value for name, value in options.items() if value is not None}


class BERTbaseConfig(BertConfig):
    """BERT's config and its pooling."""

    model_type = "kvlib-bert"

    # BERT's own pretrained pooler on [CLS], or the "mean" over the real tokens, with which MiniLM was pretrained
    pooling: str = "cls"


class BERTbase(BertPreTrainedModel):
    """The teacher: a BERT encoder, pooling, dropout and a linear head.

    With ``pooling="cls"`` it computes what `transformers.BertForSequenceClassification` does.
    """

    config_class = BERTbaseConfig

    def __init__(self, config: BERTbaseConfig) -> None:
        super().__init__(config)
        if config.pooling not in ("cls", "mean"):
            raise ValueError(f"pooling is {config.pooling!r}, expected 'cls' or 'mean'")
        self.loss_type = "ForSequenceClassification"
        self.bert = BertModel(config, add_pooling_layer=config.pooling == "cls")
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def for_task(cls, task: str | Task, checkpoint: str = "minilm", pooling: str = "mean", seed: int = 0) -> Self:
        """Load a pretrained BERT, a folder or hub name, with a new head for a task.

        The head's weights come from `seed` (and PyTorch's generator goes on from there). Raises ValueError if the
        checkpoint names its labels otherwise than the task, or in another order.
        """
        task, path = get_task(task), resolve_checkpoint(checkpoint)
        pretrained = BertConfig.from_pretrained(path)
        named = tuple(pretrained.id2label[number].lower() for number in range(pretrained.num_labels))
        wanted = tuple(name.lower() for name in task.label_names)
        if not all(name.startswith("label_") for name in named) and named != wanted:
            raise ValueError(
                f"{checkpoint} numbers its labels {', '.join(named)}, but {task.name} numbers them "
                f"{', '.join(task.label_names) or 'not at all'}: start from a checkpoint without a head"
            )
        config = cls.config_class.from_dict(pretrained.to_dict() | label_config(task) | {"pooling": pooling})
        set_seed(seed)
        # dtype: transformers would otherwise keep the checkpoint's, and half precision does not train here
        return cls.from_pretrained(path, config=config, dtype=torch.float32, use_safetensors=True)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify: ``(B, T)`` int64, as BERT's tokenizer gives them, to logits ``(B, num_labels)``.

        With `labels` ``(B,)`` (int64 class numbers, or scores for regression) also a ``loss``, the mean
        cross-entropy or squared error.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        options = given(output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        encoded = self.bert(input_ids, attention_mask, token_type_ids, return_dict=True, **options)
        pooled = encoded.pooler_output
        if self.config.pooling == "mean":
            real = attention_mask.unsqueeze(-1).to(encoded.last_hidden_state.dtype)  # (B, T, 1)
            pooled = (encoded.last_hidden_state * real).sum(1) / real.sum(1)
        logits = self.classifier(self.dropout(pooled))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(loss, logits, encoded.hidden_states, encoded.attentions)


@torch.no_grad()
def model_outputs(
    model: PreTrainedModel,
    dataset: CustomDataset,
    call: Callable[..., Any],
    batch_size: int = 64,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Run a model over a data set, in evaluation mode and without a graph; its mode is put back afterwards.

    Yields the row numbers of each batch, in its order, and what `call` returned for its inputs, on the model's
    device. `rows` says which rows in which order; by default all, like lengths together to save padding.
    """
    order = dataset.lengths.argsort(kind="stable") if rows is None else np.asarray(rows, dtype=np.int64)
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(order), batch_size):
            part = order[first : first + batch_size]
            batch = dataset.collate([dataset[int(row)] for row in part])
            yield part, call(**{n: batch[n].to(model.device) for n in MODEL_INPUTS if n in batch})
    finally:
        model.train(was_training)


def predict_logits(model: PreTrainedModel, dataset: CustomDataset, batch_size: int = 64) -> Tensor:
    """Return the logits of all rows in their order, ``(len(dataset), num_labels)`` float32, on the CPU."""
    sizes = np.ones(len(dataset), dtype=np.int64)
    return predict_packed(model, dataset, lambda **inputs: model(**inputs).logits.float(), sizes, batch_size)


def predict_packed(
    model: PreTrainedModel,
    dataset: CustomDataset,
    call: Callable[..., Tensor],
    sizes: np.ndarray,
    batch_size: int = 64,
) -> Tensor:
    """Run `call` over a data set and return its results without padding, in the order of the rows, on the CPU.

    `call` returns as many rows as `sizes` ``(len(dataset),)`` says of the rows of its batch together.
    """
    ends, found, places = sizes.cumsum(), [], []
    for rows, output in model_outputs(model, dataset, call, batch_size):
        found.append(output.cpu())
        places += [np.arange(ends[row] - sizes[row], ends[row]) for row in rows]
    # autocast on a processor cannot join float16
    with torch.autocast("cpu", enabled=False):
        return torch.cat(found)[torch.from_numpy(np.concatenate(places).argsort())]


def predict_states(model: PreTrainedModel, dataset: CustomDataset, batch_size: int = 64) -> Tensor:
    """Return the last hidden states of real tokens, row after row: ``(sum(lengths), dim)`` float16, on the CPU."""

    # half the disk; a BERT's states are of the order of one
    def states(attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        encoded = model.base_model(attention_mask=attention_mask, **inputs)
        return encoded.last_hidden_state[attention_mask.bool()].half()

    return predict_packed(model, dataset, states, dataset.lengths, batch_size)


def cached_logits(teacher: PreTrainedModel, dataset: CustomDataset, path: str | Path) -> Tensor:
    """Return what `predict_logits` gives, computed only if there is no file `path`; raises as `cached_tensors`."""
    return _cached("logits", predict_logits, teacher, dataset, path)


def cached_states(teacher: PreTrainedModel, dataset: CustomDataset, path: str | Path) -> Tensor:
    """Return what `predict_states` gives, computed only if there is no file `path`; raises as `cached_tensors`."""
    return _cached("states", predict_states, teacher, dataset, path)


def _cached(
    name: str, predict: Callable[..., Tensor], teacher: PreTrainedModel, dataset: CustomDataset, path: str | Path
) -> Tensor:
    made_from = {
        "teacher": fingerprint(teacher),
        "tokenizer": tokenizer_fingerprint(dataset.tokenizer),
        "rows": dataset.fingerprint,
    }
    return cached_tensors(path, made_from, lambda: {name: predict(teacher, dataset)})[name]


AutoConfig.register(BERTbaseConfig.model_type, BERTbaseConfig)
AutoModelForSequenceClassification.register(BERTbaseConfig, BERTbase)
