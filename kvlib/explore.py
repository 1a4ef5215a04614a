"""Look inside a model with a bottleneck: which keys fired, and what their values did to the logits."""

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from kvlib.data import CustomDataset
from kvlib.student import EncoderWithBottleNeck
from kvlib.training import KeyIndexDataset


def require_bottleneck(model: EncoderWithBottleNeck) -> None:
    """Raise ValueError if `model` has no keys to look at."""
    if not getattr(model, "has_bottleneck", False):
        raise ValueError("this model has no bottleneck: explain the one that discretize returned")


@torch.inference_mode()
def explain(
    model: EncoderWithBottleNeck, tokenizer: PreTrainedTokenizerBase, text: str, text_pair: str | None = None
) -> pd.DataFrame:
    """Take the logits of one example apart, token by token and codebook by codebook.

    Logits are a mean of values, so every fired key adds its own push to each logit (its *logit contribution*), and
    the pushes sum to the logits exactly (up to rounding).

    Returns
    -------
    pandas.DataFrame
        One row a token and codebook: ``position``, ``token`` (``[mean]`` if hidden states are pooled before
        the bottleneck), ``codebook``, ``key`` (its index), ``distance`` (to that key, squared, of standardised
        vectors), ``runner_up_gap`` (how much further the second nearest key is, same unit; NaN with one key)
        and one column ``push_<label>`` a logit.

    Raises
    ------
    ValueError
        If the model has no bottleneck, or the text is empty.
    """
    require_bottleneck(model)
    if not text.strip():
        raise ValueError("the text is empty: type a sentence")
    longest = longest_input(model, tokenizer)
    encoded = tokenizer(text, text_pair, truncation=True, max_length=longest, return_tensors="pt")
    states, mask, _ = model.encode(**encoded.to(model.device))
    bottleneck = model.bottleneck
    keys = bottleneck.quantize(states)  # (N, C)
    vectors = bottleneck.split(states).transpose(0, 1)  # (C, N, d)
    distances = torch.cdist(vectors, bottleneck.keys, compute_mode="donot_use_mm_for_euclid_dist").square()
    distances = distances.transpose(0, 1)  # (N, C, K)
    nearest = distances.gather(-1, keys.unsqueeze(-1)).squeeze(-1)  # (N, C)
    gaps = distances.scatter(-1, keys.unsqueeze(-1), torch.inf).amin(-1) - nearest
    pushes = bottleneck.lookup(keys) / keys.numel()  # (N, C, num_labels)

    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0].tolist())
    if mask.shape[1] == 1:
        names = ["[mean]"]
    tokens, codebooks = keys.shape
    labels = [f"push_{name}" for _, name in sorted(model.config.id2label.items())]
    frame = pd.DataFrame(
        {
            "position": torch.arange(tokens).repeat_interleave(codebooks).numpy(),
            "token": [name for name in names for _ in range(codebooks)],
            "codebook": torch.arange(codebooks).repeat(tokens).numpy(),
            "key": keys.flatten().cpu().numpy(),
            "distance": nearest.flatten().cpu().numpy(),
            "runner_up_gap": gaps.flatten().nan_to_num(posinf=torch.nan).cpu().numpy(),
        }
    )
    frame[labels] = pushes.flatten(0, 1).cpu().numpy()
    return frame


def longest_input(model: EncoderWithBottleNeck, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens are read of a text: as many as in training, which the tokenizer was saved with."""
    return min(tokenizer.model_max_length, model.config.max_position_embeddings)


def shared_keys(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Compare which keys the tokens of two explained examples fire.

    Rows are tokens of `first`, columns tokens of `second`, entries the share of codebooks in which both fire the
    same key, 0 to 1.
    """
    left, right = (
        frame.pivot(index=["position", "token"], columns="codebook", values="key") for frame in (first, second)
    )
    same = (left.to_numpy()[:, None] == right.to_numpy()[None]).mean(-1)
    rows, columns = (table.index.get_level_values("token").tolist() for table in (left, right))
    return pd.DataFrame(same, index=rows, columns=columns)


@torch.inference_mode()
def edit(
    model: EncoderWithBottleNeck,
    frame: pd.DataFrame,
    codebook: int,
    key: int,
    strength: float = 1.0,
    value_of: int | None = None,
) -> pd.DataFrame:
    """Return `frame`, as `explain` gives it, with another value under one key: weaker, stronger, or another key's.

    Every token that fires the key gets another push, as in a model whose value was changed; the model stays as it
    is. `strength` is a factor on the value (0 switches the key off), `value_of` a key of the same codebook whose
    value is handed out instead. Raises ValueError if no token fires the key, or there is no key `value_of`.
    """
    rows = (frame["codebook"] == codebook) & (frame["key"] == key)
    if not rows.any():
        raise ValueError(f"no token fires key {key} of codebook {codebook}: choose one from the frame")
    size = model.bottleneck.codebook_size
    if value_of is not None and not 0 <= value_of < size:
        raise ValueError(f"value_of is {value_of}, expected a key index from 0 to {size - 1}")
    edited, labels = frame.copy(), push_columns(frame)
    if value_of is not None:
        # as many terms as rows
        edited.loc[rows, labels] = (model.bottleneck.values[codebook, value_of] / len(frame)).cpu().numpy()
    edited.loc[rows, labels] *= strength
    return edited


def compare_logits(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Sum the pushes of an explained example before and after `edit`.

    One row a ``label``: ``before``, ``after`` and ``change`` (logits); with two labels or more also
    ``probability_before`` and ``probability_after`` (their softmax).
    """
    labels = push_columns(before)
    sums = torch.tensor(np.stack([frame[labels].to_numpy(np.float64).sum(0) for frame in (before, after)]))
    frame = pd.DataFrame({"label": [label.removeprefix("push_") for label in labels]})
    frame["before"], frame["after"] = sums.numpy()
    frame["change"] = frame["after"] - frame["before"]
    if len(labels) > 1:
        frame["probability_before"], frame["probability_after"] = sums.softmax(-1).numpy()
    return frame


def push_by_token(frame: pd.DataFrame) -> pd.DataFrame:
    """Sum each token's pushes over its codebooks: ``position``, ``token`` and one ``push_<label>`` a logit."""
    return frame.groupby(["position", "token"], sort=False)[push_columns(frame)].sum().reset_index()


def similar_by_key(
    training: CustomDataset, fired: KeyIndexDataset, codebook: int, key: int, limit: int = 5
) -> pd.DataFrame:
    """List at most `limit` training sentences that fire a key, those with the most tokens that do first.

    One row a sentence (or pair), ties in the order of `training`: ``row`` (in it), ``times`` (tokens that fire the
    key), ``tokens`` (which, each once) and ``text`` (as the model reads it; " / " between a pair). Raises
    ValueError if `fired` was made from other sentences.
    """
    found = []
    groups = _firing_tokens(training, fired, codebook, key).groupby("row")["token"]
    for row, names in sorted(groups, key=lambda group: -len(group[1]))[:limit]:
        tokenizer, ids = training.tokenizer, training.inputs["input_ids"][row]
        parts = tokenizer.decode(ids).removeprefix(tokenizer.cls_token).split(tokenizer.sep_token)
        text = " / ".join(part.strip() for part in parts if part.strip())
        found.append({"row": row, "times": len(names), "tokens": " ".join(names.unique()), "text": text})
    return pd.DataFrame(found, columns=["row", "times", "tokens", "text"])


def _firing_tokens(training: CustomDataset, fired: KeyIndexDataset, codebook: int, key: int) -> pd.DataFrame:
    """List the training tokens that fire a key, in their order, as `tokens_at` does."""
    return tokens_at(training, fired, np.flatnonzero(fired.key_indices[:, codebook].long() == key))


def tokens_at(training: CustomDataset, fired: KeyIndexDataset, places: np.ndarray) -> pd.DataFrame:
    """Look up rows of ``fired.key_indices``: the ``row`` of `training` that each stands in, and its ``token``.

    Raises ValueError if `fired` was made from other sentences.
    """
    sizes = fired.lengths
    one_state = bool((sizes == 1).all())
    if list(fired.idx) != list(training.idx) or not (one_state or (sizes == training.lengths).all()):
        raise ValueError("fired was made from another split than training: make it with KeyIndexDataset again")
    ends = sizes.cumsum()
    rows = ends.searchsorted(places, side="right")
    if one_state:
        return pd.DataFrame({"row": rows, "token": "[sentence]"})
    # from the end of its row backwards
    ids = [training.inputs["input_ids"][row][place] for row, place in zip(rows, places - ends[rows], strict=True)]
    return pd.DataFrame({"row": rows, "token": training.tokenizer.convert_ids_to_tokens(ids)})


@torch.inference_mode()
def loudest_keys(
    model: EncoderWithBottleNeck, training: CustomDataset, fired: KeyIndexDataset, limit: int = 5
) -> pd.DataFrame:
    """Find the `limit` keys whose values speak loudest for each label, of those that three training tokens fire.

    One row a key: ``label``, ``codebook``, ``key``, ``push`` (above the mean over the labels, in a text of one
    token), ``times`` (training tokens that fire it), ``share`` (of those, in rows of this label; NaN in a
    regression) and ``tokens`` (the three that fire it most, with their numbers). Raises ValueError if `fired` was
    made from other sentences.
    """
    pushes = model.bottleneck.values.transpose(0, 1).cpu() / model.bottleneck.num_codebooks  # (K, C, num_labels)
    if len(model.config.id2label) > 1:
        pushes = pushes - pushes.mean(-1, keepdim=True)
    hits = model.bottleneck.hits(fired.key_indices)  # (C, K)
    pushes[hits.T < 3] = -torch.inf
    rows, labels = [], np.asarray(training.labels)
    for number, label in sorted(model.config.id2label.items()):
        best = pushes[..., number].flatten().topk(min(limit, hits.numel()))
        for push, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            key, book = divmod(place, len(hits))
            if np.isfinite(push):
                here = _firing_tokens(training, fired, book, key)
                share = np.nan if training.task.is_regression else (labels[here["row"]] == number).mean()
                # ties in the order of the rows
                counts = here.groupby("token", sort=False).size().sort_values(ascending=False, kind="stable")[:3]
                tokens = ", ".join(f"{token} {count}" for token, count in counts.items())
                rows.append([label, book, key, push, int(hits[book, key]), share, tokens])
    return pd.DataFrame(rows, columns=["label", "codebook", "key", "push", "times", "share", "tokens"])


def push_columns(frame: pd.DataFrame) -> list[str]:
    """Name the columns that hold the pushes, one a logit."""
    return [column for column in frame if column.startswith("push_")]
