"""Look inside a model with a bottleneck: which keys fired, and what their values did to the logits."""

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from kvlib.discretized import DiscretizedModel


@torch.inference_mode()
def explain(
    model: DiscretizedModel, tokenizer: PreTrainedTokenizerBase, text: str, text_pair: str | None = None
) -> pd.DataFrame:
    """Take the logits of one example apart, token by token and codebook by codebook.

    The decoder is linear in the values, so every fired key adds its own push to each logit, and the pushes
    sum to the logits exactly (up to rounding).

    Parameters
    ----------
    model : BERTwithBottleNeck or DistilBERTwithBottleNeck
        With a bottleneck.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    text, text_pair : str
        One sentence or a pair.

    Returns
    -------
    pandas.DataFrame
        One row a token and codebook: ``position``, ``token`` (``[mean]`` if hidden states are pooled before
        the bottleneck), ``codebook``, ``key`` (its index), ``distance`` (to that key, squared, of standardised
        vectors), ``runner_up_gap`` (how much further the second nearest key is, same unit; NaN with one key)
        and one column ``push_<label>`` a logit. A linear decoder's bias stands in a last row with token
        ``[bias]``.

    Raises
    ------
    ValueError
        If the model has no bottleneck, or the text is empty.
    """
    if not model.has_bottleneck:
        raise ValueError("this model has no bottleneck: explain the one that discretize returned")
    if not text.strip():
        raise ValueError("the text is empty: type a sentence")
    limit = model.config.max_position_embeddings
    encoded = tokenizer(text, text_pair, truncation=True, max_length=limit, return_tensors="pt")
    states, mask = model.encode(**encoded)
    bottleneck = model.bottleneck
    keys = bottleneck.quantize(states)  # (N, C)
    vectors = bottleneck.split(states).transpose(0, 1)  # (C, N, d)
    distances = torch.cdist(vectors, bottleneck.keys, compute_mode="donot_use_mm_for_euclid_dist").square()
    nearest = distances.transpose(0, 1).gather(-1, keys.unsqueeze(-1)).squeeze(-1)  # (N, C)
    others = distances.transpose(0, 1).scatter(-1, keys.unsqueeze(-1), torch.inf).amin(-1)
    pushes = _pushes(model, keys)  # (N, C, num_labels)

    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())
    if mask.shape[1] == 1:
        names = ["[mean]" if model.config.pooling == "mean" else "[CLS]"]
    tokens, codebooks = keys.shape
    labels = [f"push_{name}" for _, name in sorted(model.config.id2label.items())]
    frame = pd.DataFrame(
        {
            "position": torch.arange(tokens).repeat_interleave(codebooks).numpy(),
            "token": [name for name in names for _ in range(codebooks)],
            "codebook": torch.arange(codebooks).repeat(tokens).numpy(),
            "key": keys.flatten().numpy(),
            "distance": nearest.flatten().numpy(),
            "runner_up_gap": (others - nearest).flatten().nan_to_num(posinf=torch.nan).numpy(),
        }
    )
    frame[labels] = pushes.flatten(0, 1).numpy()
    if model.config.decoder == "linear":
        bias = dict(zip(labels, model.decoder.bias.tolist(), strict=True))
        frame.loc[len(frame)] = {"position": -1, "token": "[bias]", "codebook": -1, "key": -1, **bias}
    return frame


def _pushes(model: DiscretizedModel, keys: torch.Tensor) -> torch.Tensor:
    """Part each logit among tokens and codebooks: key indices ``(N, C)`` to ``(N, C, num_labels)``."""
    tokens, codebooks = keys.shape
    values = model.bottleneck.lookup(keys)  # (N, C, dim_value)
    if model.config.decoder == "mean":
        return values / (tokens * codebooks)
    weights = model.decoder.weight.unflatten(1, (codebooks, -1))  # (num_labels, C, dim_value)
    return torch.einsum("ncv,lcv->ncl", values, weights) / tokens


def shared_keys(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Compare which keys the tokens of two explained examples fire.

    Parameters
    ----------
    first, second : pandas.DataFrame
        Two results of `explain` from the same student.

    Returns
    -------
    pandas.DataFrame
        Rows: tokens of `first`; columns: tokens of `second`; entries: share of codebooks in which both fire
        the same key, 0 to 1.
    """
    left, right = (
        frame[frame["codebook"] >= 0].pivot(index="position", columns="codebook", values="key")
        for frame in (first, second)
    )
    same = (left.to_numpy()[:, None] == right.to_numpy()[None]).mean(-1)
    names = [
        frame[frame["codebook"] == 0].set_index("position")["token"].loc[table.index].tolist()
        for frame, table in ((first, left), (second, right))
    ]
    return pd.DataFrame(same, index=names[0], columns=names[1])
