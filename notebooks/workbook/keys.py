"""Tables of keys for the widgets and chapter 06: inputs side by side, keys by what their values push."""

from difflib import SequenceMatcher

import numpy as np
import pandas as pd
import torch

from kvlib.data import CustomDataset
from kvlib.explore import push_columns, tokens_at
from kvlib.student import EncoderWithBottleNeck
from kvlib.training import KeyIndexDataset


def align_tokens(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Line up the tokens of two explained examples, in their order, like the lines of a diff.

    One row a token: ``token``, and its ``position`` in `first` and ``position_other`` in `second`, -1 where it has
    no partner there.
    """
    tokens, positions = [], []
    for frame in (first, second):
        once = frame.drop_duplicates("position")
        tokens.append(once["token"].tolist())
        positions.append(once["position"].tolist())
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


def keys_by_lead(frame: pd.DataFrame) -> pd.DataFrame:
    """Rank the keys that an explained example fires by how far they push its answer ahead, strongest first.

    The answer is the label with the highest logit. One row a key: ``codebook``, ``key``, ``tokens`` (how many fire
    it) and ``lead``, the sum of their pushes on the answer minus those on the runner-up.
    """
    answer, runner_up = frame[push_columns(frame)].sum().sort_values(ascending=False).index[:2]
    leads = frame.assign(lead=frame[answer] - frame[runner_up]).groupby(["codebook", "key"])["lead"]
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


@torch.inference_mode()
def training_pushes(model: EncoderWithBottleNeck, training: CustomDataset, fired: KeyIndexDataset) -> pd.DataFrame:
    """Sum the pushes of each training token over its codebooks, as in a text of this one token.

    Returns one row a token: ``row`` (in `training`), ``token``, ``label`` (of its row: a name, or a score) and one
    column ``push_<label>`` a logit. Raises ValueError if `fired` was made from other sentences.
    """
    frame = tokens_at(training, fired, np.arange(len(fired.key_indices)))
    names = [name for _, name in sorted(model.config.id2label.items())]
    labels = np.asarray(training.labels)[frame["row"]]
    frame["label"] = labels if training.task.is_regression else np.take(names, labels)
    keys = fired.key_indices.long().to(model.device)
    pushes = model.bottleneck.lookup(keys).mean(1)  # (N, num_labels)
    frame[[f"push_{name}" for name in names]] = pushes.cpu().numpy()
    return frame


@torch.inference_mode()
def strongest_keys(model: EncoderWithBottleNeck, codebook: int) -> pd.DataFrame:
    """Find the key of a codebook whose value pushes each logit furthest up.

    One row a ``label``: ``key`` and ``push``, in a text of one token (divide by T for T tokens).
    """
    push, key = (model.bottleneck.values[codebook] / model.bottleneck.num_codebooks).max(0)
    labels = [name for _, name in sorted(model.config.id2label.items())]
    return pd.DataFrame({"label": labels, "key": key.cpu().numpy(), "push": push.cpu().numpy()})
