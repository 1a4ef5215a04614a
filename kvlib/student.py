"""The student: a DistilBERT encoder, then either a plain head or a discrete key-value bottleneck.

Shape comments: B examples, T tokens, N real tokens of a batch, C codebooks.
"""

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    DistilBertPreTrainedModel,
)

from kvlib.data import CustomDataset, get_task
from kvlib.discretized import (
    BERTwithBottleNeck,
    BottleneckConfig,
    BottleneckOutput,
    DiscretizedModel,
    pool_real_tokens,
)
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


class DistilBERTwithBottleNeckConfig(BottleneckConfig, DistilBertConfig):
    """DistilBERT's config and the shape of the bottleneck, see `BottleneckConfig`.

    Parameters
    ----------
    has_bottleneck : bool
        False for the plain student of stage 2, True for the discretised one of stage 3.
    """

    model_type = "distilbert-with-bottleneck"

    has_bottleneck: bool = False


class DistilBERTwithBottleNeck(DiscretizedModel, DistilBertPreTrainedModel):
    """DistilBERT that ends in a plain head (stage 2) or in a discrete key-value bottleneck (stage 3).

    Start it with `from_teacher` or `for_task`, train it, then turn it into its discretised self with
    `discretize`. Saving, loading, `AutoModelForSequenceClassification` and ``pipeline("text-classification")``
    work as for any transformers model once ``kvlib`` is imported.
    """

    config_class = DistilBERTwithBottleNeckConfig

    def __init__(self, config: DistilBERTwithBottleNeckConfig) -> None:
        super().__init__(config)
        self._check_options()
        self.has_bottleneck = config.has_bottleneck
        self.distilbert = DistilBertModel(config)
        self.dropout = nn.Dropout(config.seq_classif_dropout)
        if self.has_bottleneck:
            self._add_bottleneck()
        else:
            self.classifier = nn.Linear(config.dim, config.num_labels)
        self.post_init()

    def _run_encoder(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None) -> Tensor:
        return self.distilbert(input_ids, attention_mask).last_hidden_state

    @classmethod
    def for_task(cls, task: str, checkpoint: str, **options: object) -> "DistilBERTwithBottleNeck":
        """Start a plain student from a pretrained DistilBERT, a folder or hub name."""
        return cls.from_pretrained(
            resolve_checkpoint(checkpoint),
            dtype=torch.float32,
            use_safetensors=True,
            **label_config(get_task(task)),
            **options,
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
        return self._around(self.distilbert, config, seed)._fit_keys(dataset, seed)

    def carry_keys(self, teacher: BERTwithBottleNeck) -> "DistilBERTwithBottleNeck":
        """Return a new student: this one's encoder, frozen, behind the teacher's own keys.

        Standardisation, projection and keys are the teacher's, bit for bit; values start at zero. The keys mean
        something to this encoder only if its hidden states were aligned to the teacher's before: see
        `DistillationTrainer`.

        Parameters
        ----------
        teacher : BERTwithBottleNeck
            Its hidden states must be as wide as the student's.

        Raises
        ------
        ValueError
            If the widths differ.
        """
        source = teacher.config
        if source.hidden_size != self.config.dim:
            raise ValueError(
                f"the teacher's hidden states have {source.hidden_size} dimensions, the student's "
                f"{self.config.dim}: keys can be carried only between equal widths"
            )
        carried = {name: getattr(source, name) for name in BottleneckConfig.__annotations__}
        config = self.config_class.from_dict(self.config.to_dict() | carried | {"has_bottleneck": True})
        student = self._around(self.distilbert, config, seed=0)
        own = dict(student.bottleneck.named_buffers())
        for name, buffer in teacher.bottleneck.named_buffers():
            own[name].copy_(buffer)
        return student

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        key_indices: Tensor | None = None,
    ) -> BottleneckOutput:
        """Classify; as `DiscretizedModel.forward`, and without a bottleneck through the plain head."""
        if self.has_bottleneck:
            return super().forward(input_ids, attention_mask, token_type_ids, key_indices)
        states, mask = self.encode(input_ids, attention_mask)
        logits = self.classifier(self.dropout(pool_real_tokens(states, mask)))
        return BottleneckOutput(logits=logits, hidden_states=states)


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
