"""What every encoder with a bottleneck shares, and the teacher that has one.

Shape comments: B examples, T tokens, N real tokens of a batch, C codebooks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from kvlib.bottleneck import DiscreteKeyValueBottleneck
from kvlib.data import CustomDataset
from kvlib.reservoir import processes, rank
from kvlib.teacher import MODEL_INPUTS, BERTbase


class BottleneckConfig(PreTrainedConfig):
    """The shape of a bottleneck behind an encoder.

    Parameters
    ----------
    pooling : {"mean", "cls"}
        What stands for the sentence: the mean over its real tokens or its [CLS] token.
    pool : {"before", "after"}
        Whether hidden states are pooled before the search (one set of keys fires a sentence) or the values
        after it (one set a token).
    decoder : {"mean", "linear"}
        ``"mean"`` takes the mean of the values over the codebooks as logits (no weights at all); ``"linear"``
        is dropout and a linear layer on the concatenated values.
    num_codebooks, codebook_size, projection, dim_key, standardize
        As in `DiscreteKeyValueBottleneck`.
    """

    pooling: str = "mean"
    pool: str = "after"
    decoder: str = "mean"
    num_codebooks: int = 64
    codebook_size: int = 4096
    projection: str = "chunk"
    dim_key: int | None = None
    standardize: bool = True


@dataclass
class BottleneckOutput(ModelOutput):
    """What a model with a bottleneck returns.

    Parameters
    ----------
    logits : torch.Tensor
        Shape ``(B, num_labels)``.
    key_indices : torch.Tensor, optional
        Keys that fired, int64, -1 at padding: ``(B, T, C)`` when values are pooled after the bottleneck,
        ``(B, 1, C)`` when hidden states are pooled before it. None without a bottleneck.
    hidden_states : torch.Tensor, optional
        Without a bottleneck: what would enter one, ``(N, dim)``, one row a real token, in order.
    """

    logits: Tensor | None = None
    key_indices: Tensor | None = None
    hidden_states: Tensor | None = None


def pool_real_tokens(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Take the mean of each example's real tokens.

    Parameters
    ----------
    states : torch.Tensor
        Shape ``(N, ...)``: one row for each real token of the batch, in order.
    attention_mask : torch.Tensor
        Shape ``(B, T)`` with N ones.

    Returns
    -------
    torch.Tensor
        Shape ``(B, ...)``.
    """
    real = attention_mask.bool()
    rows = real.nonzero()[:, 0]  # (N,) the example of each real token
    sums = states.new_zeros(len(real), *states.shape[1:]).index_add(0, rows, states)
    return sums / real.sum(1).view(-1, *[1] * (states.dim() - 1))


class DiscretizedModel(PreTrainedModel):
    """An encoder, a discrete key-value bottleneck and a decoder: what teacher and student have in common."""

    # key search in half precision picks other keys
    _keep_in_fp32_modules_strict = ["bottleneck"]  # noqa: RUF012 (transformers' own declaration)

    has_bottleneck = True

    def _run_encoder(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Return the last hidden states, ``(B, T, dim)``."""
        raise NotImplementedError

    def _check_options(self) -> None:
        for name, allowed in (
            ("pooling", ("mean", "cls")),
            ("pool", ("before", "after")),
            ("decoder", ("mean", "linear")),
        ):
            if getattr(self.config, name) not in allowed:
                found = getattr(self.config, name)
                raise ValueError(f"{name} is {found!r}, expected one of {', '.join(allowed)}")

    def _add_bottleneck(self) -> None:
        config = self.config
        self.bottleneck = DiscreteKeyValueBottleneck(
            config.hidden_size,
            config.num_codebooks,
            config.codebook_size,
            config.num_labels if config.decoder == "mean" else None,
            config.projection,
            config.dim_key,
            config.standardize,
        )
        if config.decoder == "linear":
            self.decoder = nn.Linear(self.bottleneck.values[:, 0].numel(), config.num_labels)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DiscreteKeyValueBottleneck):
            module.reset_parameters()

    @classmethod
    def _around(cls, encoder: nn.Module, config: PreTrainedConfig, seed: int) -> Self:
        """Build a model with a bottleneck around a copy of a trained encoder."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
        model.base_model.load_state_dict(encoder.state_dict())
        return model.to(encoder.device).eval()

    def _fit_keys(self, dataset: CustomDataset, seed: int) -> Self:
        """Fit keys on `dataset`, of which each of several processes encodes its share, and freeze them."""
        # like lengths together, to save padding: the keys do not depend on the order
        share = np.argsort(dataset.lengths, kind="stable")[rank() :: processes()]
        self.bottleneck.init_keys(self.hidden_states(dataset, rows=share), seed=seed)
        self.bottleneck.freeze_keys()
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training mode; the encoder behind a bottleneck stays frozen and in evaluation mode (no dropout)."""
        super().train(mode)
        if self.has_bottleneck:
            self.base_model.eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def hidden_states(
        self, dataset: CustomDataset, batch_size: int = 64, rows: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """Yield what the bottleneck sees of `dataset`, batch by batch, each ``(N, dim)``.

        Parameters
        ----------
        dataset : CustomDataset
            Rows to encode.
        batch_size : int
            Rows a batch.
        rows : sequence of int, optional
            Which rows, in which order; by default all as they stand.
        """
        rows = range(len(dataset)) if rows is None else rows
        for first in range(0, len(rows), batch_size):
            batch = dataset.collate([dataset[int(row)] for row in rows[first : first + batch_size]])
            yield self.encode(**{name: batch[name].to(self.device) for name in MODEL_INPUTS if name in batch})[0]

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the encoder and leave padding behind.

        Returns
        -------
        states : torch.Tensor
            ``(N, dim)``, one row a real token; ``(B, dim)`` if pooled before the bottleneck or if it is [CLS].
        attention_mask : torch.Tensor
            ``(B, T)`` with N ones; ``(B, 1)`` where there is one state an example.

        Raises
        ------
        ValueError
            If a row has no real token.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        empty = attention_mask.sum(1) == 0
        if empty.any():
            raise ValueError(f"row {int(empty.nonzero()[0])} of the batch has no real token: check attention_mask")
        states = self._run_encoder(input_ids, attention_mask, token_type_ids)  # (B, T, dim)
        if self.config.pooling == "cls":
            # the first real token, wherever the padding is
            first = attention_mask.long().argmax(1)
            return states[torch.arange(len(states), device=states.device), first], attention_mask.new_ones(
                len(states), 1
            )
        states = states[attention_mask.bool()]  # (N, dim)
        if self.config.pool == "before":
            return pool_real_tokens(states, attention_mask), attention_mask.new_ones(len(attention_mask), 1)
        return states, attention_mask

    def decode(self, key_indices: Tensor) -> Tensor:
        """Turn key indices ``(B, T, C)``, -1 at padding, into logits ``(B, num_labels)``."""
        real = key_indices[..., 0] >= 0  # (B, T)
        values = self.bottleneck.lookup(key_indices[real])  # (N, C, dim_value)
        pooled = pool_real_tokens(values, real)  # (B, C, dim_value)
        if self.config.decoder == "mean":
            return pooled.mean(1)
        # values stay in float32 where the rest of the model is in half precision
        return self.decoder(self.dropout(pooled.flatten(1)).to(self.decoder.weight.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        key_indices: Tensor | None = None,
    ) -> BottleneckOutput:
        """Classify.

        Parameters
        ----------
        input_ids : torch.Tensor
            ``(B, T)`` int64.
        attention_mask : torch.Tensor, optional
            ``(B, T)``, 1 for real tokens; all real by default.
        token_type_ids : torch.Tensor, optional
            ``(B, T)`` segments, as BERT's tokenizer gives them; DistilBERT has none and ignores them.
        key_indices : torch.Tensor, optional
            Instead of all others: what an earlier call returned, or rows of it. Skips encoder and search,
            whose result is constant once both are frozen.

        Returns
        -------
        BottleneckOutput
        """
        self.bottleneck.require_frozen()
        if key_indices is None:
            with torch.no_grad():
                states, mask = self.encode(input_ids, attention_mask, token_type_ids)
            found = self.bottleneck.quantize(states)  # (N, C)
            key_indices = found.new_full((*mask.shape, found.shape[-1]), -1)
            key_indices[mask.bool()] = found
        return BottleneckOutput(logits=self.decode(key_indices), key_indices=key_indices)


class BERTwithBottleNeckConfig(BottleneckConfig, BertConfig):
    """BERT's config and the shape of the bottleneck, see `BottleneckConfig`."""

    model_type = "bert-with-bottleneck"


class BERTwithBottleNeck(DiscretizedModel, BertPreTrainedModel):
    """A fine-tuned BERT, frozen and discretised: a teacher whose keys a student can take over.

    Build it with `from_teacher`; train its values on the labels.
    """

    config_class = BERTwithBottleNeckConfig

    def __init__(self, config: BERTwithBottleNeckConfig) -> None:
        super().__init__(config)
        self._check_options()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self._add_bottleneck()
        self.post_init()

    def _run_encoder(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        return self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state

    @classmethod
    def from_teacher(
        cls,
        teacher: BERTbase,
        dataset: CustomDataset,
        *,
        num_codebooks: int = 64,
        codebook_size: int = 4096,
        seed: int = 0,
        **options: object,
    ) -> "BERTwithBottleNeck":
        """Freeze a fine-tuned teacher's encoder and put a bottleneck with frozen keys behind it.

        Parameters
        ----------
        teacher : BERTbase
            Fine-tuned; its head and pooler are left behind.
        dataset : CustomDataset
            The keys are fitted on the hidden states of its real tokens; its labels are not looked at.
        num_codebooks, codebook_size, seed, **options
            As in `DistilBERTwithBottleNeck.discretize`.

        Returns
        -------
        BERTwithBottleNeck
            With values at zero, so that all logits are equal until they are trained.
        """
        shape = {"pooling": "mean", "num_codebooks": num_codebooks, "codebook_size": codebook_size}
        config = cls.config_class.from_dict(teacher.config.to_dict() | shape | options)
        encoder = BertModel(config, add_pooling_layer=False)
        encoder.load_state_dict(
            {name: weight for name, weight in teacher.bert.state_dict().items() if not name.startswith("pooler.")}
        )
        return cls._around(encoder.to(teacher.device), config, seed)._fit_keys(dataset, seed)


AutoConfig.register(BERTwithBottleNeckConfig.model_type, BERTwithBottleNeckConfig)
AutoModelForSequenceClassification.register(BERTwithBottleNeckConfig, BERTwithBottleNeck)
