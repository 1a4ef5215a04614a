"""The student: a DistilBERT encoder, then either a plain head or a discrete key-value bottleneck.

Shape comments: B examples, T tokens, N real tokens of a batch, C codebooks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    DistilBertPreTrainedModel,
)
from transformers.utils import ModelOutput

from kvlib.bottleneck import DiscreteKeyValueBottleneck
from kvlib.data import CustomDataset, get_task
from kvlib.teacher import BERTbase, label_config, resolve_checkpoint

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


class DistilBERTwithBottleNeckConfig(DistilBertConfig):
    """DistilBERT's config and the shape of the bottleneck.

    Parameters
    ----------
    has_bottleneck : bool
        False for the plain student of stage 2, True for the discretised one of stage 3.
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

    model_type = "distilbert-with-bottleneck"

    has_bottleneck: bool = False
    pooling: str = "mean"
    pool: str = "after"
    decoder: str = "mean"
    num_codebooks: int = 64
    codebook_size: int = 4096
    projection: str = "chunk"
    dim_key: int | None = None
    standardize: bool = True


@dataclass
class StudentOutput(ModelOutput):
    """What the student returns.

    Parameters
    ----------
    logits : torch.Tensor
        Shape ``(B, num_labels)``.
    key_indices : torch.Tensor, optional
        Keys that fired, int64, -1 at padding: ``(B, T, C)`` when values are pooled after the bottleneck,
        ``(B, 1, C)`` when hidden states are pooled before it. None for the plain student.
    """

    logits: Tensor | None = None
    key_indices: Tensor | None = None


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


class DistilBERTwithBottleNeck(DistilBertPreTrainedModel):
    """DistilBERT that ends in a plain head (stage 2) or in a discrete key-value bottleneck (stage 3).

    Start it with `from_teacher` or `for_task`, train it, then turn it into its discretised self with
    `discretize`. Saving, loading, `AutoModelForSequenceClassification` and ``pipeline("text-classification")``
    work as for any transformers model once ``kvlib`` is imported.
    """

    config_class = DistilBERTwithBottleNeckConfig
    # key search in half precision picks other keys
    _keep_in_fp32_modules_strict = ["bottleneck"]  # noqa: RUF012 (transformers' own declaration)

    def __init__(self, config: DistilBERTwithBottleNeckConfig) -> None:
        super().__init__(config)
        for name, allowed in (
            ("pooling", ("mean", "cls")),
            ("pool", ("before", "after")),
            ("decoder", ("mean", "linear")),
        ):
            if getattr(config, name) not in allowed:
                raise ValueError(f"{name} is {getattr(config, name)!r}, expected one of {', '.join(allowed)}")
        self.distilbert = DistilBertModel(config)
        self.dropout = nn.Dropout(config.seq_classif_dropout)
        if config.has_bottleneck:
            self.bottleneck = DiscreteKeyValueBottleneck(
                config.dim,
                config.num_codebooks,
                config.codebook_size,
                config.num_labels if config.decoder == "mean" else None,
                config.projection,
                config.dim_key,
                config.standardize,
            )
            if config.decoder == "linear":
                self.decoder = nn.Linear(self.bottleneck.values[:, 0].numel(), config.num_labels)
        else:
            self.classifier = nn.Linear(config.dim, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DiscreteKeyValueBottleneck):
            module.reset_parameters()

    @classmethod
    def for_task(cls, task: str, checkpoint: str, **options: object) -> "DistilBERTwithBottleNeck":
        """Start a plain student from a pretrained DistilBERT, a folder or hub name."""
        return cls.from_pretrained(
            resolve_checkpoint(checkpoint), dtype=torch.float32, **label_config(get_task(task)), **options
        )

    @classmethod
    def from_teacher(
        cls, teacher: BERTbase, num_layers: int | None = None, **options: object
    ) -> "DistilBERTwithBottleNeck":
        """Start a plain student from every other layer of a BERT teacher.

        DistilBERT has no segments: the embedding of segment 0, which BERT adds to every token of a first
        sentence, is folded into the position embeddings (Sanh et al. 2019 drop it).

        Parameters
        ----------
        teacher : BERTbase
            Fine-tuned or not; only its encoder is copied, its head is not.
        num_layers : int, optional
            Layers kept, evenly spaced from the first; half of the teacher's by default.
        **options
            Further fields of the config, for example ``pooling="cls"``.

        Raises
        ------
        ValueError
            If `num_layers` is not between 1 and the teacher's number of layers.
        """
        source = teacher.config
        num_layers = num_layers or source.num_hidden_layers // 2
        if not 1 <= num_layers <= source.num_hidden_layers:
            raise ValueError(f"num_layers is {num_layers}, expected 1 to {source.num_hidden_layers}")
        config = cls.config_class(
            vocab_size=source.vocab_size,
            max_position_embeddings=source.max_position_embeddings,
            n_layers=num_layers,
            n_heads=source.num_attention_heads,
            dim=source.hidden_size,
            hidden_dim=source.intermediate_size,
            dropout=source.hidden_dropout_prob,
            attention_dropout=source.attention_probs_dropout_prob,
            activation=source.hidden_act,
            pad_token_id=source.pad_token_id,
            id2label=source.id2label,
            label2id=source.label2id,
            problem_type=source.problem_type,
            **options,
        )
        student = cls(config)
        student.distilbert.load_state_dict(_teacher_weights(teacher, num_layers))
        return student

    def discretize(
        self,
        dataset: CustomDataset,
        *,
        num_codebooks: int = 64,
        codebook_size: int = 4096,
        seed: int = 0,
        **options: object,
    ) -> "DistilBERTwithBottleNeck":
        """Return a new student: this one's encoder, frozen, and a bottleneck with frozen keys.

        Parameters
        ----------
        dataset : CustomDataset
            The keys are fitted on the hidden states of its real tokens; its labels are not looked at.
        num_codebooks, codebook_size : int
            C and K.
        seed : int
            Of the keys and of a linear decoder's weights.
        **options
            Further fields of the config: ``pooling``, ``pool``, ``decoder``, ``projection``, ``dim_key``,
            ``standardize``.

        Returns
        -------
        DistilBERTwithBottleNeck
            With values at zero, so that all logits are equal until stage 3 has trained them.
        """
        shape = {"num_codebooks": num_codebooks, "codebook_size": codebook_size, "has_bottleneck": True}
        config = self.config_class.from_dict(self.config.to_dict() | shape | options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            student = type(self)(config)
        student.distilbert.load_state_dict(self.distilbert.state_dict())
        student.to(self.device)
        student.eval()
        student.bottleneck.init_keys(student.hidden_states(dataset), seed=seed)
        student.bottleneck.freeze_keys()
        return student

    def train(self, mode: bool = True) -> "DistilBERTwithBottleNeck":
        """Set training mode; the encoder behind a bottleneck stays frozen and in evaluation mode (no dropout)."""
        super().train(mode)
        if self.config.has_bottleneck:
            self.distilbert.eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def hidden_states(self, dataset: CustomDataset, batch_size: int = 64) -> Iterator[Tensor]:
        """Yield what the bottleneck sees of `dataset`, batch by batch and in order, shape ``(N, dim)``."""
        for start in range(0, len(dataset), batch_size):
            rows = range(start, min(start + batch_size, len(dataset)))
            batch = dataset.collate([dataset[row] for row in rows])
            inputs = {name: batch[name].to(self.device) for name in ("input_ids", "attention_mask")}
            yield self.encode(**inputs)[0]

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
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
        states = self.distilbert(input_ids, attention_mask).last_hidden_state  # (B, T, dim)
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
    ) -> StudentOutput:
        """Classify.

        Parameters
        ----------
        input_ids : torch.Tensor
            ``(B, T)`` int64.
        attention_mask : torch.Tensor, optional
            ``(B, T)``, 1 for real tokens; all real by default.
        token_type_ids : torch.Tensor, optional
            Ignored: DistilBERT has no segments, but BERT's tokenizer gives them.
        key_indices : torch.Tensor, optional
            Instead of all others: what an earlier call returned, or rows of it. Skips encoder and search,
            whose result is constant once both are frozen.

        Returns
        -------
        StudentOutput
        """
        if not self.config.has_bottleneck:
            states, mask = self.encode(input_ids, attention_mask)
            return StudentOutput(logits=self.classifier(self.dropout(pool_real_tokens(states, mask))))
        self.bottleneck.require_frozen()
        if key_indices is None:
            with torch.no_grad():
                states, mask = self.encode(input_ids, attention_mask)
            found = self.bottleneck.quantize(states)  # (N, C)
            key_indices = found.new_full((*mask.shape, found.shape[-1]), -1)
            key_indices[mask.bool()] = found
        return StudentOutput(logits=self.decode(key_indices), key_indices=key_indices)


def _teacher_weights(teacher: BERTbase, num_layers: int) -> dict[str, Tensor]:
    """Rename the teacher's encoder weights to DistilBERT's names, keeping every other layer."""
    weights = teacher.bert.state_dict()
    positions = weights["embeddings.position_embeddings.weight"]
    renamed = {
        "embeddings.word_embeddings.weight": weights["embeddings.word_embeddings.weight"],
        "embeddings.position_embeddings.weight": positions + weights["embeddings.token_type_embeddings.weight"][0],
        "embeddings.LayerNorm.weight": weights["embeddings.LayerNorm.weight"],
        "embeddings.LayerNorm.bias": weights["embeddings.LayerNorm.bias"],
    }
    for layer in range(num_layers):
        taken = layer * teacher.config.num_hidden_layers // num_layers
        for old, new in _LAYER_NAMES.items():
            for kind in ("weight", "bias"):
                renamed[f"transformer.layer.{layer}.{new}.{kind}"] = weights[f"encoder.layer.{taken}.{old}.{kind}"]
    return renamed


AutoConfig.register(DistilBERTwithBottleNeckConfig.model_type, DistilBERTwithBottleNeckConfig)
AutoModelForSequenceClassification.register(DistilBERTwithBottleNeckConfig, DistilBERTwithBottleNeck)
