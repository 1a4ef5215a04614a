"""Forgetting a class on purpose: switch off the key-value pairs that it selects.

The encoder still knows the class, so this is *class suppression*, not unlearning (Shah et al., arXiv 2311.15268).
Shape comments: n examples, S tokens of the longest, C codebooks, K keys a codebook.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from kvlib.continual.learners import Values, selected_pairs
from kvlib.training import LazyAdam


def switched_off(values: Values, key_indices: Tensor, off: Tensor) -> Tensor:
    """Predict with some pairs switched off, `off` ``(C, K)`` bool: they hand out nothing.

    Returns class numbers ``(n,)``, -1 for an example of which no pair is left.
    """
    model = copy.deepcopy(values)
    with torch.no_grad():
        model.bottleneck.values[off] = 0.0
        codebooks = torch.arange(off.shape[0])
        left = (~off[codebooks, key_indices.clamp_min(0)] & (key_indices >= 0)).flatten(1).any(1)  # (n,)
        return torch.where(left, model(key_indices).argmax(1), -1)


def most_used(counts: Tensor, number: int) -> Tensor:
    """Mark the `number` pairs with the most hits, of counts ``(C, K)``; pairs without a hit are never marked."""
    chosen = counts.flatten().topk(min(number, int((counts > 0).sum()))).indices
    return torch.zeros(counts.numel(), dtype=torch.bool).index_fill_(0, chosen, True).view(counts.shape)


def pairs_to_suppress(values: Values, key_indices: Tensor, labels: Tensor, wanted: int) -> Tensor:
    """Find a small set of pairs without which no *training* row of a class is recognised: ``(C, K)`` bool.

    The class's most used pairs, as many as it takes (Shah et al., arXiv 2311.15268, by activations): found by
    doubling their number, then halving the step, as if more pairs never recognised more. Test rows are not
    looked at.
    """
    own = key_indices[labels == wanted]
    counts = selected_pairs(own, values.bottleneck.codebook_size)

    def is_suppressed(number: int) -> bool:
        return not (switched_off(values, own, most_used(counts, number)) == wanted).any()

    high, pairs = 1, int((counts > 0).sum())
    while high < pairs and not is_suppressed(high):
        high *= 2
    low, high = high // 2, min(high, pairs)
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_suppressed(middle) else (middle, high)
    return most_used(counts, high)


def ascend(
    values: Values, key_indices: Tensor, labels: Tensor, wanted: int, learning_rate: float, most: int = 1000
) -> tuple[Values, int]:
    """Climb the loss on a class's training rows until none is recognised: gradient ascent on the same values.

    Returns a changed copy and the steps of one batch of all rows each that it took, at most `most`.
    """
    model, own = copy.deepcopy(values), labels == wanted
    optimizer = LazyAdam(model.parameters(), lr=learning_rate)
    for step in range(most):
        logits = model(key_indices[own])
        if not (logits.argmax(1) == wanted).any():
            return model, step
        optimizer.zero_grad()
        (-F.cross_entropy(logits, labels[own])).backward()
        optimizer.step()
    return model, most


def steps_to_relearn(
    values: Values, key_indices: Tensor, labels: Tensor, wanted: int, learning_rate: float, share: float = 0.9
) -> int:
    """Count the steps, each with all training rows of a class, until `share` of them are recognised again."""
    model, own = copy.deepcopy(values), labels == wanted
    optimizer, step = LazyAdam(model.parameters(), lr=learning_rate), 0
    while True:
        logits = model(key_indices[own])
        # logits that are all zero are no answer, not class 0
        if ((logits.argmax(1) == wanted) & logits.any(1)).double().mean() >= share:
            return step
        optimizer.zero_grad()
        F.cross_entropy(logits, labels[own]).backward()
        optimizer.step()
        step += 1
