"""Encoders with a bottleneck: the student, and the teacher that has one.

Shape comments: B examples, T tokens, N real tokens of a batch, C codebooks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    DistilBertConfig,
    DistilBertModel,
    DistilBertPreTrainedModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from kvlib.bottleneck import DiscreteKeyValueBottleneck, draw_positions
from kvlib.data import CustomDataset, Task, get_task
from kvlib.machine import process_state
from kvlib.pretrained import resolve_checkpoint
from kvlib.teacher import BERTbase, given, label_config, model_outputs

# BERT's name of a weight inside a layer -> DistilBERT's
_LAYER_NAMES = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


class BottleneckConfig(PreTrainedConfig):
    """The shape of a bottleneck behind an encoder; fields without a comment as in `DiscreteKeyValueBottleneck`."""

    keys_to_ignore_at_inference = ["key_indices", "packed_states"]  # noqa: RUF012 (transformers' own declaration)

    # the mean over real tokens is taken of hidden states, "before" the search, or of values, "after" it
    pool: str = "after"
    num_codebooks: int = 64
    codebook_size: int = 4096
    projection: str = "chunk"
    dim_key: int | None = None
    standardize: bool = True
    # train the head alone, as behind a bottleneck
    freeze_encoder: bool = False


@dataclass
class BottleneckOutput(ModelOutput):
    """What a model with a bottleneck returns."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    # (B, T, C) or, with one state an example, (B, 1, C): the keys that fired (codes), int64, -1 at padding
    key_indices: Tensor | None = None
    # (N, dim), one a real token, or (B, dim) where they are pooled before: what entered bottleneck or head, in
    # order; None where key indices were given
    packed_states: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def pool_real_tokens(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Take the mean of each example's real tokens: ``(N, ...)``, packed in their order, to ``(B, ...)``."""
    real = attention_mask.bool()
    rows = real.nonzero()[:, 0]  # (N,) the example of each real token
    sums = states.new_zeros(len(real), *states.shape[1:]).index_add(0, rows, states)
    return sums / real.sum(1).view(-1, *[1] * (states.dim() - 1))


class EncoderWithBottleNeck(PreTrainedModel):
    """An encoder, a discrete key-value bottleneck and a decoder: what teacher and student have in common."""

    # key search in half precision picks other keys
    _keep_in_fp32_modules_strict = ["bottleneck"]  # noqa: RUF012 (transformers' own declaration)

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        # pooling and decoder were options once: a model saved with anything but the mean is refused
        choices = {"pool": ("before", "after"), "pooling": ("mean",), "decoder": ("mean",)}
        for name, allowed in choices.items():
            found = getattr(config, name, allowed[0])
            if found not in allowed:
                raise ValueError(f"{name} is {found!r}, expected one of {', '.join(allowed)}")
        self.loss_type = "ForSequenceClassification"
        # only a student's config has the choice
        self.has_bottleneck = getattr(config, "has_bottleneck", True)

    def _add_head(self) -> None:
        config = self.config
        if self.has_bottleneck:
            # a value is a vector of logits
            sizes = config.hidden_size, config.num_codebooks, config.codebook_size, config.num_labels
            self.bottleneck = DiscreteKeyValueBottleneck(
                *sizes, config.projection, config.dim_key, config.standardize
            )
        else:
            self.dropout = nn.Dropout(config.seq_classif_dropout)
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DiscreteKeyValueBottleneck):
            module.reset_parameters()

    @classmethod
    def _with_encoder(cls, plain: PreTrainedModel, fields: dict[str, Any], seed: int) -> Self:
        """Build a model with a bottleneck around a copy of a plain model's encoder; `fields` are of its config."""
        unknown = fields.keys() - BottleneckConfig.__annotations__.keys() - {"has_bottleneck"}
        if unknown:
            names = ", ".join(BottleneckConfig.__annotations__)
            raise TypeError(f"unknown option {', '.join(sorted(unknown))}, expected some of {names}")
        config = plain.config.to_dict()
        # a plain teacher's pooling belongs to its head, which is left behind
        config.pop("pooling", None)
        config = cls.config_class.from_dict(config | fields)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(config)
        weights = plain.base_model.state_dict().items()
        model.base_model.load_state_dict({n: w for n, w in weights if not n.startswith("pooler.")})
        return model.to(plain.device).eval()

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen encoder, as behind a bottleneck, stays in evaluation mode (no dropout)."""
        super().train(mode)
        if self.has_bottleneck or self.config.freeze_encoder:
            self.base_model.eval().requires_grad_(False)
        return self

    def states_per_row(self, dataset: CustomDataset) -> np.ndarray:
        """Count what enters the bottleneck for each row: its real tokens, or 1 where they are pooled before."""
        return np.ones_like(dataset.lengths) if self.config.pool == "before" else dataset.lengths

    @torch.no_grad()
    def hidden_states(self, dataset: CustomDataset, batch_size: int = 64) -> Iterator[Tensor]:
        """Yield what enters the bottleneck, ``(N, dim)`` a batch, in the order of the rows."""
        for _, (states, *_) in model_outputs(self, dataset, self.encode, batch_size, range(len(dataset))):
            yield states

    def sample_states(
        self, dataset: CustomDataset, max_vectors: int = 65536, seed: int = 0, batch_size: int = 64
    ) -> Tensor:
        """Encode a uniform sample of the states that enter the bottleneck, and no row without one of them.

        Returns ``(M, dim)`` float32, M at most `max_vectors`, in the order of their positions, on the model's
        device. Which ones depends on the lengths of the rows and the seed alone. Of several processes each encodes
        its share, and all get the whole sample.
        """
        state, sizes = process_state(), self.states_per_row(dataset)
        ends = sizes.cumsum()
        positions = np.sort(draw_positions(int(ends[-1]), max_vectors, seed))
        rows = np.unique(ends.searchsorted(positions, side="right"))
        # like lengths together, to save padding
        rows = rows[dataset.lengths[rows].argsort(kind="stable")][state.process_index :: state.num_processes]
        sample = torch.zeros(len(positions), self.config.hidden_size, device=self.device)
        for part, (states, *_) in model_outputs(self, dataset, self.encode, batch_size, rows):
            here = np.concatenate([np.arange(ends[row] - sizes[row], ends[row]) for row in part])
            place = positions.searchsorted(here).clip(max=len(positions) - 1)
            drawn = positions[place] == here
            sample[torch.from_numpy(place[drawn])] = states[torch.from_numpy(drawn)].float()
        if state.num_processes > 1:
            # a row that another process encodes is zero here: their sum gathers all
            dist.all_reduce(sample)
        return sample

    def _fit_keys(self, dataset: CustomDataset, seed: int) -> Self:
        """Fit keys on `dataset`, freeze them, and give those of the first process to all."""
        self.bottleneck.init_keys([self.sample_states(dataset, seed=seed)], seed=seed)
        self.bottleneck.freeze_keys()
        if process_state().num_processes > 1:
            for buffer in self.bottleneck.buffers():
                dist.broadcast(buffer, src=0)
        return self

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **options: bool,
    ) -> tuple[Tensor, Tensor, BaseModelOutput]:
        """Run the encoder and leave padding behind; raise ValueError if a row has no real token.

        Returns states ``(N, dim)``, one a real token, and the attention mask ``(B, T)`` with N ones; or ``(B,
        dim)`` and ``(B, 1)`` where they are pooled before the bottleneck. Third comes all that the encoder
        returned; `options` are further arguments of it.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        empty = attention_mask.sum(1) == 0
        if empty.any():
            raise ValueError(f"row {int(empty.nonzero()[0])} of the batch has no real token: check attention_mask")
        # DistilBERT has no segments
        segments = {"token_type_ids": token_type_ids} if isinstance(self.config, BertConfig) else {}
        encoded = self.base_model(input_ids, attention_mask, return_dict=True, **segments, **options)
        states = encoded.last_hidden_state[attention_mask.bool()]  # (N, dim)
        if self.config.pool == "before":
            return pool_real_tokens(states, attention_mask), torch.ones_like(attention_mask[:, :1]), encoded
        return states, attention_mask, encoded

    def decode(self, key_indices: Tensor) -> Tensor:
        """Turn key indices ``(B, T, C)``, -1 at padding, into logits ``(B, num_labels)``: a mean of values."""
        real = key_indices[..., 0] >= 0  # (B, T)
        values = self.bottleneck.lookup(key_indices[real])  # (N, C, num_labels)
        return pool_real_tokens(values, real).mean(1)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        key_indices: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BottleneckOutput:
        """Classify: ``(B, T)`` int64, as BERT's tokenizer gives them, to logits ``(B, num_labels)``.

        DistilBERT ignores segments. `key_indices` in place of tokens are what an earlier call returned, or rows of
        it: they skip encoder and search, whose result is constant once both are frozen. With `labels` ``(B,)``
        (int64 class numbers, or scores for regression) also a ``loss``.
        """
        options = given(output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        states, encoded = None, BaseModelOutput()
        if not self.has_bottleneck:
            states, mask, encoded = self.encode(input_ids, attention_mask, token_type_ids, **options)
            logits = self.classifier(self.dropout(pool_real_tokens(states, mask)))
        else:
            self.bottleneck.require_frozen()
            if key_indices is None:
                with torch.no_grad():
                    states, mask, encoded = self.encode(input_ids, attention_mask, token_type_ids, **options)
                found = self.bottleneck.quantize(states)  # (N, C)
                key_indices = found.new_full((*mask.shape, found.shape[-1]), -1)
                key_indices[mask.bool()] = found
            logits = self.decode(key_indices)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return BottleneckOutput(loss, logits, key_indices, states, encoded.hidden_states, encoded.attentions)


class BERTwithBottleNeckConfig(BottleneckConfig, BertConfig):
    """BERT's config and the shape of the bottleneck, see `BottleneckConfig`."""

    model_type = "bert-with-bottleneck"


class BERTwithBottleNeck(EncoderWithBottleNeck, BertPreTrainedModel):
    """A fine-tuned BERT, frozen and discretised: a teacher whose keys a student can take over.

    Build it with `from_teacher`; train its values on the labels.
    """

    config_class = BERTwithBottleNeckConfig

    def __init__(self, config: BERTwithBottleNeckConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self._add_head()

    @classmethod
    def from_teacher(cls, teacher: BERTbase, dataset: CustomDataset, seed: int = 0, **options: object) -> Self:
        """Freeze a fine-tuned teacher's encoder and put a bottleneck with frozen keys behind it.

        Parameters as in `DistilBERTwithBottleNeck.discretize`; the teacher's head and pooler are left behind.
        """
        return cls._with_encoder(teacher, options, seed)._fit_keys(dataset, seed)


class DistilBERTwithBottleNeckConfig(BottleneckConfig, DistilBertConfig):
    """DistilBERT's config and the shape of the bottleneck, which the student of stage 2 has not yet."""

    model_type = "distilbert-with-bottleneck"

    has_bottleneck: bool = False


class DistilBERTwithBottleNeck(EncoderWithBottleNeck, DistilBertPreTrainedModel):
    """DistilBERT that ends in a plain head (stage 2) or in a discrete key-value bottleneck (stage 3).

    Start it with `from_teacher` or `for_task`, train it, then turn it into its discretised self with `discretize`.
    Saving, loading, `AutoModelForSequenceClassification` and ``pipeline("text-classification")`` work as for any
    transformers model once ``kvlib`` is imported.
    """

    config_class = DistilBERTwithBottleNeckConfig

    def __init__(self, config: DistilBERTwithBottleNeckConfig) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        self._add_head()

    @classmethod
    def for_task(cls, task: str | Task, checkpoint: str, **options: object) -> Self:
        """Start a plain student from a pretrained DistilBERT, a folder or hub name."""
        options = {"dtype": torch.float32, "use_safetensors": True, **options}
        return cls.from_pretrained(resolve_checkpoint(checkpoint), **label_config(get_task(task)), **options)

    @classmethod
    def from_teacher(cls, teacher: BERTbase, num_layers: int | None = None, **options: object) -> Self:
        """Start a plain student from every other layer of a BERT teacher, whose head is left behind.

        `num_layers`, by default half of the teacher's, are kept, evenly spaced from the first; raises ValueError
        if there are not so many. DistilBERT has no segments: the embedding of segment 0, which BERT adds to every
        token of a first sentence, is folded into the position embeddings (Sanh et al. 2019 drop it). `options` are
        further fields of the config.
        """
        source = teacher.config
        num_layers = num_layers or source.num_hidden_layers // 2
        if not 1 <= num_layers <= source.num_hidden_layers:
            raise ValueError(f"num_layers is {num_layers}, expected 1 to {source.num_hidden_layers}")
        same = ("vocab_size", "max_position_embeddings", "pad_token_id", "id2label", "label2id", "problem_type")
        config = cls.config_class(
            n_layers=num_layers,
            n_heads=source.num_attention_heads,
            dim=source.hidden_size,
            hidden_dim=source.intermediate_size,
            dropout=source.hidden_dropout_prob,
            attention_dropout=source.attention_probs_dropout_prob,
            activation=source.hidden_act,
            **{name: getattr(source, name) for name in same},
            **options,
        )
        student = cls(config)
        student.distilbert.load_state_dict(_teacher_weights(teacher, num_layers))
        return student

    def discretize(self, dataset: CustomDataset, seed: int = 0, **options: object) -> Self:
        """Return a new student: this one's encoder, frozen, and a bottleneck with frozen keys and values at zero.

        The keys are fitted on the hidden states of the real tokens of `dataset`, whose labels are not looked at.
        `seed` is for the keys; `options` are fields of `BottleneckConfig`, such as ``num_codebooks``. Raises
        TypeError for any other.
        """
        return self._with_encoder(self, options | {"has_bottleneck": True}, seed)._fit_keys(dataset, seed)

    def with_new_head(self, seed: int = 0) -> Self:
        """Return a new student: this one's encoder, frozen, and a new plain head, for `discretize` to beat."""
        return self._with_encoder(self, {"freeze_encoder": True}, seed)

    def carry_keys(self, teacher: BERTwithBottleNeck) -> Self:
        """Return a new student: this one's encoder, frozen, behind the teacher's own keys, with values at zero.

        Standardisation, projection and keys are the teacher's, bit for bit. They mean something to this encoder
        only if its hidden states were aligned to the teacher's before: see `DistillationTrainer`. Raises
        ValueError if the hidden states of the two differ in width.
        """
        source = teacher.config
        if source.hidden_size != self.config.dim:
            raise ValueError(
                f"the teacher's hidden states have {source.hidden_size} dimensions, the student's "
                f"{self.config.dim}: keys can be carried only between equal widths"
            )
        carried = {name: getattr(source, name) for name in BottleneckConfig.__annotations__}
        student = self._with_encoder(self, carried | {"has_bottleneck": True}, seed=0)
        own = student.bottleneck
        own.load_state_dict(own.state_dict() | dict(teacher.bottleneck.named_buffers()))
        return student


def _teacher_weights(teacher: BERTbase, num_layers: int) -> dict[str, Tensor]:
    """Rename the teacher's encoder weights to DistilBERT's names, keeping `num_layers`, evenly spaced."""
    weights = teacher.bert.state_dict()
    renamed = {name: weight for name, weight in weights.items() if name.startswith("embeddings.")}
    segments = renamed.pop("embeddings.token_type_embeddings.weight")
    positions = "embeddings.position_embeddings.weight"
    renamed[positions] = weights[positions] + segments[0]
    for layer in range(num_layers):
        taken = layer * teacher.config.num_hidden_layers // num_layers
        for old, new in _LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                renamed[f"transformer.layer.{layer}.{new}.{kind}"] = weights[f"encoder.layer.{taken}.{old}.{kind}"]
    return renamed


AutoConfig.register(BERTwithBottleNeckConfig.model_type, BERTwithBottleNeckConfig)
AutoModelForSequenceClassification.register(BERTwithBottleNeckConfig, BERTwithBottleNeck)
AutoConfig.register(DistilBERTwithBottleNeckConfig.model_type, DistilBERTwithBottleNeckConfig)
AutoModelForSequenceClassification.register(DistilBERTwithBottleNeckConfig, DistilBERTwithBottleNeck)
