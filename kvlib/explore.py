"""Look inside a model with a bottleneck: which keys fired, and what their values did to the logits."""

from difflib import SequenceMatcher

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

    The decoder is linear in the values, so every fired key adds its own push to each logit (its *logit
    contribution*), and the pushes sum to the logits exactly (up to rounding).

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
    require_bottleneck(model)
    if not text.strip():
        raise ValueError("the text is empty: type a sentence")
    longest = longest_input(model, tokenizer)
    encoded = tokenizer(text, text_pair, truncation=True, max_length=longest, return_tensors="pt")
    states, mask = model.encode(**encoded.to(model.device))
    bottleneck = model.bottleneck
    keys = bottleneck.quantize(states)  # (N, C)
    vectors = bottleneck.split(states).transpose(0, 1)  # (C, N, d)
    distances = torch.cdist(vectors, bottleneck.keys, compute_mode="donot_use_mm_for_euclid_dist").square()
    distances = distances.transpose(0, 1)  # (N, C, K)
    nearest = distances.gather(-1, keys.unsqueeze(-1)).squeeze(-1)  # (N, C)
    gaps = distances.scatter(-1, keys.unsqueeze(-1), torch.inf).amin(-1) - nearest
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
            "key": keys.flatten().cpu().numpy(),
            "distance": nearest.flatten().cpu().numpy(),
            "runner_up_gap": gaps.flatten().nan_to_num(posinf=torch.nan).cpu().numpy(),
        }
    )
    frame[labels] = pushes.flatten(0, 1).cpu().numpy()
    if model.config.decoder == "linear":
        bias = dict(zip(labels, model.decoder.bias.tolist(), strict=True))
        frame.loc[len(frame)] = {"position": -1, "token": "[bias]", "codebook": -1, "key": -1, **bias}
    return frame


def longest_input(model: EncoderWithBottleNeck, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens are read of a text: as many as in training, which the tokenizer was saved with."""
    return min(tokenizer.model_max_length, model.config.max_position_embeddings)


def _pushes(model: EncoderWithBottleNeck, keys: torch.Tensor) -> torch.Tensor:
    """Part each logit among tokens and codebooks: key indices ``(N, C)`` to ``(N, C, num_labels)``."""
    tokens, codebooks = keys.shape
    values = model.bottleneck.lookup(keys)  # (N, C, dim_value)
    if model.config.decoder == "mean":
        return values / (tokens * codebooks)
    weights = model.decoder.weight.unflatten(1, (codebooks, -1))  # (num_labels, C, dim_value)
    return torch.einsum("ncv,lcv->ncl", values, weights) / tokens


def shared_keys(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Compare which keys the tokens of two explained examples fire.

    Rows are tokens of `first`, columns tokens of `second`, entries the share of codebooks in which both fire the
    same key, 0 to 1.
    """
    left, right = (
        frame[frame["codebook"] >= 0].pivot(index=["position", "token"], columns="codebook", values="key")
        for frame in (first, second)
    )
    same = (left.to_numpy()[:, None] == right.to_numpy()[None]).mean(-1)
    rows, columns = (table.index.get_level_values("token").tolist() for table in (left, right))
    return pd.DataFrame(same, index=rows, columns=columns)


def align_tokens(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Line up the tokens of two explained examples, in their order, like the lines of a diff.

    One row a token: ``token``, and its ``position`` in `first` and ``position_other`` in `second`, -1 where it has
    no partner there.
    """
    tokens, positions = [], []
    for frame in (first, second):
        fired = frame[frame["codebook"] >= 0].drop_duplicates("position")
        tokens.append(fired["token"].tolist())
        positions.append(fired["position"].tolist())
    rows = []
    for kind, start, end, other_start, other_end in SequenceMatcher(None, *tokens, autojunk=False).get_opcodes():
        here, there = range(start, end), range(other_start, other_end)
        if kind == "equal":
            rows += [(tokens[0][i], positions[0][i], positions[1][j]) for i, j in zip(here, there, strict=True)]
        else:
            rows += [(tokens[0][i], positions[0][i], -1) for i in here]
            rows += [(tokens[1][j], -1, positions[1][j]) for j in there]
    return pd.DataFrame(rows, columns=["token", "position", "position_other"])


def align_keys(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Put the keys of two explained examples side by side: those of the tokens that `align_tokens` finds in both.

    One row a token and codebook: the columns of `first`, those of `second` with the ending ``_other``, and
    ``differs``, whether the two keys are different ones.
    """
    partners = align_tokens(first, second).drop(columns="token")
    other = second.drop(columns="token").rename(columns=lambda name: f"{name}_other")
    found = first.merge(partners[partners["position"] >= 0], on="position")
    found = found.merge(
        other, left_on=["position_other", "codebook"], right_on=["position_other", "codebook_other"]
    )
    found["differs"] = found["key"] != found["key_other"]
    return found.drop(columns="codebook_other")


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
    if value_of is None:
        edited.loc[rows, labels] *= strength
        return edited
    keys = torch.zeros(1, model.bottleneck.num_codebooks, dtype=torch.int64, device=model.device)
    keys[0, codebook] = value_of
    with torch.inference_mode():
        push = _pushes(model, keys)[0, codebook] / (frame["position"].max() + 1)
    edited.loc[rows, labels] = strength * push.cpu().numpy()
    return edited


def keys_by_lead(frame: pd.DataFrame) -> pd.DataFrame:
    """Rank the keys that an explained example fires by how far they push its answer ahead, strongest first.

    The answer is the label with the highest logit. One row a key: ``codebook``, ``key``, ``tokens`` (how many fire
    it) and ``lead``, the sum of their pushes on the answer minus those on the runner-up.
    """
    answer, runner_up = frame[push_columns(frame)].sum().sort_values(ascending=False).index[:2]
    fired = frame[frame["codebook"] >= 0]
    leads = fired.assign(lead=fired[answer] - fired[runner_up]).groupby(["codebook", "key"])["lead"]
    found = leads.agg(tokens="size", lead="sum").reset_index()
    return found.sort_values("lead", ascending=False, kind="stable", ignore_index=True)


def switch_off(frame: pd.DataFrame, keys: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` without the pushes of all `keys`, as `edit` of strength 0 does for one.

    `keys` has columns ``codebook`` and ``key``, for example the first rows of `keys_by_lead`.
    """
    pairs, off = (pd.MultiIndex.from_frame(table[["codebook", "key"]]) for table in (frame, keys))
    edited = frame.copy()
    edited.loc[pairs.isin(off), push_columns(frame)] = 0.0
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
    """List the training tokens that fire a key, in their order, as `_tokens_at` does."""
    places = (fired.key_indices[:, codebook].long() == key).nonzero().flatten().numpy()
    return _tokens_at(training, fired, places)


def _tokens_at(training: CustomDataset, fired: KeyIndexDataset, places: np.ndarray) -> pd.DataFrame:
    """Look up rows of ``fired.key_indices``: the ``row`` of `training` that each stands in, and its ``token``."""
    sizes = fired.lengths
    one_state = bool((sizes == 1).all())
    if list(fired.idx) != list(training.idx) or not (one_state or (sizes == training.lengths).all()):
        raise ValueError("fired was made from another split than training: make it with KeyIndexDataset again")
    starts = np.cumsum(sizes) - sizes
    rows = np.searchsorted(starts, places, side="right") - 1
    if one_state:
        return pd.DataFrame({"row": rows, "token": "[sentence]"})
    ids = [training.inputs["input_ids"][row][place - starts[row]] for row, place in zip(rows, places, strict=True)]
    return pd.DataFrame({"row": rows, "token": training.tokenizer.convert_ids_to_tokens(ids)})


@torch.inference_mode()
def training_pushes(model: EncoderWithBottleNeck, training: CustomDataset, fired: KeyIndexDataset) -> pd.DataFrame:
    """Sum the pushes of each training token over its codebooks, as in a text of this one token.

    Returns one row a token: ``row`` (in `training`), ``token``, ``label`` (of its row: a name, or a score) and one
    column ``push_<label>`` a logit. Raises ValueError if `fired` was made from other sentences.
    """
    frame = _tokens_at(training, fired, np.arange(len(fired.key_indices)))
    names = [name for _, name in sorted(model.config.id2label.items())]
    labels = np.asarray(training.labels)[frame["row"]]
    frame["label"] = labels if training.task.is_regression else np.take(names, labels)
    keys = fired.key_indices.long().to(model.device)
    pushes = len(keys) * _pushes(model, keys).sum(1)  # (N, num_labels)
    frame[[f"push_{name}" for name in names]] = pushes.cpu().numpy()
    return frame


@torch.inference_mode()
def strongest_keys(model: EncoderWithBottleNeck, codebook: int) -> pd.DataFrame:
    """Find the key of a codebook whose value pushes each logit furthest up.

    One row a ``label``: ``key`` and ``push``, in a text of one token (divide by T for T tokens).
    """
    size, books = model.bottleneck.codebook_size, model.bottleneck.num_codebooks
    keys = torch.arange(size, device=model.device).unsqueeze(1).expand(-1, books)  # (K, C)
    push, key = (size * _pushes(model, keys)[:, codebook]).max(0)
    labels = [name for _, name in sorted(model.config.id2label.items())]
    return pd.DataFrame({"label": labels, "key": key.cpu().numpy(), "push": push.cpu().numpy()})


@torch.inference_mode()
def loudest_keys(
    model: EncoderWithBottleNeck, training: CustomDataset, fired: KeyIndexDataset, limit: int = 5
) -> pd.DataFrame:
    """Find the keys whose values speak loudest for each label, of those that three training tokens fire.

    Parameters
    ----------
    model, training, fired
        The model, the rows it was trained on, and their key indices.
    limit : int
        How many keys a label.

    Returns
    -------
    pandas.DataFrame
        One row a key: ``label``, ``codebook``, ``key``, ``push`` (above the mean over the labels, in a text of one
        token), ``times`` (training tokens that fire it), ``share`` (of those, in rows of this label; NaN in a
        regression) and ``tokens`` (the three that fire it most, with their numbers).
    """
    size, books = model.bottleneck.codebook_size, model.bottleneck.num_codebooks
    keys = torch.arange(size, device=model.device).unsqueeze(1).expand(-1, books)  # (K, C)
    pushes = size * _pushes(model, keys).cpu()  # (K, C, num_labels)
    if len(model.config.id2label) > 1:
        pushes = pushes - pushes.mean(-1, keepdim=True)
    hits = model.bottleneck.hits(fired.key_indices)  # (C, K)
    pushes[hits.T < 3] = -torch.inf
    rows, labels = [], np.asarray(training.labels)
    for number, label in sorted(model.config.id2label.items()):
        best = pushes[..., number].flatten().topk(min(limit, size * books))
        for push, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            key, book = divmod(place, books)
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
