"""Exercises of chapter 03: the bottleneck."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from workbook.checking import Answer, Exercise, Mistake, expect, expect_close, expect_number, expect_tensor, show

BLOCKS = Exercise("3.1", "Nearest keys, a block of keys at a time", difficulty=2, minutes=15)
STRAIGHT = Exercise("3.2", "A gradient past the argmin", difficulty=2, minutes=10)
REVIVAL = Exercise("3.3", "A moving average that revives dead keys", difficulty=3, minutes=20)
READING = Exercise("3.4", "Read a broken usage plot", difficulty=2, minutes=10)


class _Largest(TorchDispatchMode):
    """Remember the bytes of the largest tensor that an operation makes; views own no memory of their own."""

    bytes = 0

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _distances(vectors: Tensor, keys: Tensor) -> Tensor:
    return (vectors.double().unsqueeze(2) - keys.double()).square().sum(-1)  # (N, C, K)


def _search(answer: Answer, vectors: Tensor, keys: Tensor, block: int) -> Tensor:
    return expect_tensor(answer(vectors, keys, block), tuple(vectors.shape[:2]), integers=True)


def _expect_nearest(found: Tensor, vectors: Tensor, keys: Tensor) -> None:
    wrong = (found != _distances(vectors, keys).argmin(-1)).sum()
    expect(wrong == 0, f"{wrong} of {found.numel()} indices are not those of the nearest key")


@BLOCKS.probe(
    "gives one index for each vector and codebook",
    hint="the result is (N, C), int64: take the smallest over the keys' dimension alone",
)
def index_shape(answer: Answer) -> None:
    found = _search(answer, _randn(0, 7, 3, 2), _randn(1, 3, 8, 2), 4)
    expect(found.dtype == torch.int64, f"{found.dtype} instead of torch.int64")


@BLOCKS.probe(
    "finds the nearest key where one block holds all",
    hint="the score is |k|²/2 - x·k and the smallest wins: the product alone favours long keys",
)
def one_block(answer: Answer) -> None:
    vectors, keys = _randn(2, 40, 2, 3), _randn(3, 2, 6, 3)
    _expect_nearest(_search(answer, vectors, keys, 6), vectors, keys)


@BLOCKS.probe(
    "numbers the keys across blocks",
    hint="an argmin within a block counts from that block's first key: add the place where the block begins",
)
def numbered(answer: Answer) -> None:
    vectors, keys = _randn(4, 40, 2, 3), _randn(5, 2, 12, 3)
    found = _search(answer, vectors, keys, 4)
    expect(found.max() > 3, f"no index above {found.max()}, with 12 keys in blocks of 4")


@BLOCKS.probe(
    "keeps the best of all blocks",
    hint="carry the smallest score beside its index, and replace both only where a block has a smaller one; "
    "scores of two blocks compare only if both leave out the same term",
)
def best_of_all(answer: Answer) -> None:
    vectors, keys = _randn(6, 40, 2, 3), _randn(7, 2, 12, 3)
    _expect_nearest(_search(answer, vectors, keys, 4), vectors, keys)


@BLOCKS.probe(
    "searches a last block that is shorter",
    hint="10 keys in blocks of 4 are three blocks: range(0, K, block) begins all three, and a slice ends with "
    "the keys",
)
def short_block(answer: Answer) -> None:
    vectors, keys = _randn(8, 40, 2, 3), _randn(9, 2, 10, 3)
    found, expected = _search(answer, vectors, keys, 4), _distances(vectors, keys).argmin(-1)
    saw = f"{int((found > 7).sum())} indices above 7 instead of {int((expected > 7).sum())}, with 10 keys"
    expect(torch.equal(found > 7, expected > 7), saw)


@BLOCKS.probe(
    "gives ties to the lowest index",
    hint="replace the best so far only where a later block is smaller (<), not where it is equal (<=)",
)
def ties(answer: Answer) -> None:
    corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]], dtype=torch.float64)
    found = _search(answer, torch.stack([corners, corners + 2]), corners.repeat(4, 2, 1), 4)
    expect(found.max() < 4, f"index {found.max()} where key {found.max() % 4} is the same")
    equidistant = torch.tensor([[[2.0, 0.0]], [[2.0, 2.0]], [[4.0, 2.0]]], dtype=torch.float64)
    found = _search(answer, equidistant, corners.unsqueeze(0), 1).flatten().tolist()
    expect(found == [0, 0, 1], f"indices {found} instead of [0, 0, 1] for three vectors between keys")


@BLOCKS.probe(
    "holds the scores of one block at a time",
    hint="make the scores of one block of keys for all vectors, use them, and drop them before the next; the "
    "product x·k needs no tensor of differences",
)
def bounded(answer: Answer) -> None:
    vectors, keys = _randn(10, 32, 2, 4), _randn(11, 2, 128, 4)  # inputs are no larger than a block's scores
    with _Largest() as largest:
        _search(answer, vectors, keys, 16)
    numbers, allowed = largest.bytes // 8, 32 * 2 * 16
    expect(numbers <= 1.5 * allowed, f"a tensor of {numbers} numbers, where N · C · block is {allowed}")


@BLOCKS.probe(
    "is right far from the origin",
    hint="far out the squares are large and their differences drown: subtract each codebook's mean key from its "
    "keys and vectors first",
)
def far_out(answer: Answer) -> None:
    vectors, keys = (4096 + (64 * _randn(seed, 40, 1, 2)).round() / 64 for seed in (12, 13))
    vectors, keys = vectors.float(), keys[:16].transpose(0, 1).float()
    two = _distances(vectors, keys).topk(2, largest=False).values
    clear = vectors[(two[..., 1] > two[..., 0])[:, 0]]  # without ties
    _expect_nearest(_search(answer, clear, keys, 4), clear, keys)


def _quantised(answer: Answer, seed: int) -> tuple[Tensor, Tensor, Tensor, tuple[Any, ...]]:
    """Call with fresh inputs; return quantised vectors, commitment, chosen keys, and what the answer was given."""
    vectors, keys = _randn(seed, 6, 3, 2).requires_grad_(), _randn(seed + 1, 3, 5, 2).requires_grad_()
    key_indices = torch.randint(5, (6, 3), generator=torch.Generator().manual_seed(seed))
    returned = answer(vectors, keys, key_indices)
    expect(isinstance(returned, (tuple, list)) and len(returned) == 2, f"{show(returned)} instead of two tensors")
    expect_tensor(returned[0], (6, 3, 2))
    expect_number(returned[1].detach() if isinstance(returned[1], Tensor) else returned[1])
    return *returned, keys.detach()[torch.arange(3), key_indices], answer.given


def _gradients(result: Tensor, inputs: tuple[Any, ...], arriving: Tensor | None = None) -> list[Tensor | None]:
    """Return the gradients of the vectors and of the keys, None where there is no path."""
    if not getattr(result, "requires_grad", False):
        return [None, None]
    return list(torch.autograd.grad(result, inputs[:2], arriving, allow_unused=True))


@STRAIGHT.probe(
    "gives quantised vectors and one number",
    hint="return the pair (quantised, commitment): one (N, C, d), the other a mean over everything",
)
def pair(answer: Answer) -> None:
    _quantised(answer, 0)


@STRAIGHT.probe(
    "hands out the chosen keys",
    hint="vector n of codebook c gets key key_indices[n, c] of codebook c: index with torch.arange(C) beside "
    "key_indices",
)
def chosen_keys(answer: Answer) -> None:
    quantised, _, chosen, _ = _quantised(answer, 2)
    wrong = int(((quantised - chosen).abs() > 1e-6).any(-1).sum())
    expect(wrong == 0, f"{wrong} of {chosen[..., 0].numel()} vectors are not the chosen key")


@STRAIGHT.probe(
    "passes its gradient to the vectors unchanged",
    hint="autograd has no path through an index: add to the chosen keys something that is zero and has gradient "
    "one in the vectors, such as vectors - vectors.detach()",
)
def unchanged(answer: Answer) -> None:
    quantised, _, chosen, given = _quantised(answer, 4)
    arriving = _randn(6, *chosen.shape)
    gradient, _ = _gradients(quantised, given, arriving)
    expect(gradient is not None, "the vectors get no gradient at all")
    ratio = (gradient.norm() / arriving.norm()).item()
    expect(
        (gradient - arriving).abs().max() < 1e-6, f"a gradient {ratio:.3g} times as long as the one that arrives"
    )


@STRAIGHT.probe("gives the keys no gradient", hint="detach the chosen keys: averages move keys, not the loss")
def no_key_gradient(answer: Answer) -> None:
    quantised, _, chosen, given = _quantised(answer, 8)
    _, gradient = _gradients(quantised, given, torch.ones_like(chosen))
    expect(gradient is None or not gradient.any(), "a gradient reaches the keys through the quantised vectors")


@STRAIGHT.probe(
    "measures the mean squared difference",
    hint="square the N × C × d differences between vectors and chosen keys, and take one mean over all",
)
def commitment_value(answer: Answer) -> None:
    _, commitment, chosen, given = _quantised(answer, 10)
    expect_close(commitment, (given[0] - chosen).square().mean())


@STRAIGHT.probe(
    "pulls the vectors towards their keys",
    hint="compare the vectors with the chosen keys: what you return moves along with the vectors, so nothing "
    "pulls; and detach the keys, not the vectors",
)
def pulls(answer: Answer) -> None:
    _, commitment, chosen, given = _quantised(answer, 12)
    gradient, _ = _gradients(commitment, given)
    expect(gradient is not None, "the commitment has no path to the vectors")
    expect(gradient.abs().max() > 1e-12, "the gradient of the commitment is zero everywhere")
    expect_close(gradient, 2 * (given[0].detach() - chosen) / chosen.numel())


@STRAIGHT.probe(
    "leaves the keys out of the commitment's gradient",
    hint="detach the chosen keys in the commitment as well: only the vectors shall commit",
)
def one_sided(answer: Answer) -> None:
    _, commitment, _, given = _quantised(answer, 14)
    _, gradient = _gradients(commitment, given)
    expect(gradient is None or not gradient.any(), "a gradient reaches the keys through the commitment")


def _step(answer: Answer, *inputs: Any) -> tuple[Tensor, Tensor]:
    returned = answer(*inputs)
    expect(isinstance(returned, (tuple, list)) and len(returned) == 2, f"{show(returned)} instead of two tensors")
    for tensor, given in zip(returned, inputs, strict=False):
        expect_tensor(tensor, tuple(given.shape))
    return returned[0].double(), returned[1].double()


def _inputs(
    seed: int, number: int = 20, codebooks: int = 3, size: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw keys, counts, vectors and indices that hit every key; codebook c's vectors lie around 100 c."""
    indices = torch.randint(size, (number, codebooks), generator=torch.Generator().manual_seed(seed))
    indices[:size] = torch.arange(size).unsqueeze(1)
    vectors = _randn(seed, number, codebooks, 2) + 100.0 * torch.arange(codebooks).unsqueeze(1)
    return _randn(seed + 1, codebooks, size, 2), 0.5 + _randn(seed + 2, codebooks, size).abs(), vectors, indices


def _moved(keys: Tensor, counts: Tensor, vectors: Tensor, indices: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Return keys and counts after one step, without revival; NaN keys where a count is zero."""
    chosen = torch.nn.functional.one_hot(indices, keys.shape[1]).to(keys.dtype)  # (N, C, K)
    sums = decay * counts.unsqueeze(-1) * keys + (1 - decay) * torch.einsum("nck,ncd->ckd", chosen, vectors)
    new_counts = decay * counts + (1 - decay) * chosen.sum(0)
    return sums / new_counts.unsqueeze(-1), new_counts


def _expect_all(found: Tensor, expected: Tensor, what: str) -> None:
    """Raise `Mistake` with the first key (of a codebook) whose entry differs."""
    apart = (found - expected).abs().flatten(2).amax(-1) if found.dim() == 3 else (found - expected).abs()
    wrong = (~(apart <= 1e-4)).nonzero()  # NaN is wrong, too
    if len(wrong):
        codebook, key = wrong[0].tolist()
        saw = f"{show(found[codebook, key])} instead of {show(expected[codebook, key])}"
        raise Mistake(f"{what} of key {key} in codebook {codebook}: {saw}; {len(wrong)} of {apart.numel()} differ")


@REVIVAL.probe(
    "gives new keys and new counts", hint="return the pair (keys, counts), of the shapes and kinds that came in"
)
def keys_and_counts(answer: Answer) -> None:
    _step(answer, *_inputs(0), 0.5, 0.0)


@REVIVAL.probe(
    "counts each codebook's hits apart",
    hint="key k of codebook c is place c · K + k of one long table: shift the indices before bincount and "
    "index_add, and reshape after",
)
def hits_apart(answer: Answer) -> None:
    inputs = _inputs(10)
    _, counts = _step(answer, *inputs, 0.0, 0.0)
    _expect_all(counts, _moved(*inputs, 0.0)[1], "at decay 0, count")


@REVIVAL.probe(
    "lets the counts decay", hint="a count is a moving average: decay · count + (1 - decay) · hits, both factors"
)
def counts_decay(answer: Answer) -> None:
    inputs = _inputs(20, codebooks=2, size=4)
    _, counts = _step(answer, *inputs, 0.8, 0.0)
    _expect_all(counts, _moved(*inputs, 0.8)[1], "new count")


@REVIVAL.probe(
    "moves a key to the mean of its vectors at decay 0",
    hint="divide the sum of a key's vectors by how many they are: neither the bare sum nor a mean over the batch",
)
def mean_not_sum(answer: Answer) -> None:
    keys, counts, indices = torch.zeros(1, 2, 1), torch.ones(1, 2), torch.tensor([[0], [0], [1], [0]])
    found, _ = _step(answer, keys, counts, torch.tensor([1.0, 3.0, 7.0, 8.0]).view(4, 1, 1), indices, 0.0, 0.0)
    expect_close(found.flatten(), torch.tensor([4.0, 7.0]))


@REVIVAL.probe(
    "weighs the old key by its old count",
    hint="the new sum is decay · old count · key + (1 - decay) · s, and the key that sum over the new count",
)
def old_count(answer: Answer) -> None:
    inputs = _inputs(30)
    keys, _ = _step(answer, *inputs, 0.5, 0.0)
    _expect_all(keys, _moved(*inputs, 0.5)[0], "place")


@REVIVAL.probe(
    "stays finite where a count is zero",
    hint="0 / 0 is NaN: where the new count is zero (and no key counts as dead), keep the old key",
)
def finite(answer: Answer) -> None:
    keys, counts, vectors, indices = _inputs(40)
    counts[1, 3], indices[indices == 3] = 0.0, 2
    found, _ = _step(answer, keys, counts, vectors, indices, 0.9, 0.0)
    expect_close(found[1, 3], keys[1, 3])


def _with_dead(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys 1 and 4 of codebook 1 and key 2 of codebook 2 are hardly ever hit, and not in this batch."""
    keys, counts, vectors, indices = _inputs(seed)
    for codebook, key in ((1, 1), (1, 4), (2, 2)):
        counts[codebook, key] = 0.01
        indices[:, codebook][indices[:, codebook] == key] = 0
    return keys, counts, vectors, indices


@REVIVAL.probe(
    "replaces a dead key by a vector of its own codebook",
    hint="where the new count is below dead_below, write vectors[row, codebook] of a random row of the batch",
)
def replaced(answer: Answer) -> None:
    keys, counts, vectors, indices = _with_dead(50)
    found, _ = _step(answer, keys, counts, vectors, indices, 0.9, 0.05)
    for codebook, key in ((1, 1), (1, 4), (2, 2)):
        gap = (vectors[:, codebook] - found[codebook, key]).abs().amax(-1)  # (N,)
        where = f"dead key {key} of codebook {codebook} becomes {show(found[codebook, key])}"
        saw = "as it was" if torch.allclose(found[codebook, key], keys[codebook, key]) else "none of its vectors"
        expect(gap.min() < 1e-6, f"{where}, {saw}")


@REVIVAL.probe(
    "judges a key by its new count", hint="update the counts first, then compare the new ones with dead_below"
)
def by_new_count(answer: Answer) -> None:
    keys, counts, vectors, indices = _inputs(60)
    indices[:, 0] = torch.tensor([0, 2, 3, 4]).repeat(5)
    counts[0, 1], counts[0, 2] = 0.52, 0.1  # 0.468 without a hit, and 0.59 with five
    found, _ = _step(answer, keys, counts, vectors, indices, 0.9, 0.5)
    saw = "a key stays whose count fell from 0.52 to 0.468, with dead_below = 0.5"
    expect(not torch.allclose(found[0, 1], keys[0, 1]), saw)
    moved = _moved(keys, counts, vectors, indices, 0.9)[0]
    saw = "a key is replaced whose count rose from 0.1 to 0.59, with dead_below = 0.5"
    expect(torch.allclose(found[0, 2], moved[0, 2]), saw)


@REVIVAL.probe(
    "revives no living key",
    hint="dead is a pair of codebook and key, (dead).nonzero(as_tuple=True): do not write to a whole codebook, "
    "or to a key number in all of them",
)
def living_keys(answer: Answer) -> None:
    inputs = _with_dead(70)
    found, _ = _step(answer, *inputs, 0.9, 0.05)
    moved, counts = _moved(*inputs, 0.9)
    wrong = ((found - moved).abs().amax(-1) > 1e-6) & (counts >= 0.05)
    expect(not wrong.any(), f"{int(wrong.sum())} of {int((counts >= 0.05).sum())} living keys were replaced")


@REVIVAL.probe(
    "spreads the dead keys over the batch",
    hint="draw one row for each dead key: equal keys tie, the lowest index wins, and the others die again",
)
def spread(answer: Answer) -> None:
    keys, counts, vectors, indices = _inputs(80, 300, codebooks=1, size=40)
    counts[0, 10:], indices[indices >= 10] = 0.0, 3
    found, _ = _step(answer, keys, counts, vectors, indices, 0.9, 0.05)
    different = len(found[0, 10:].unique(dim=0))
    expect(different > 15, f"{different} different vectors for 30 dead keys")


@REVIVAL.probe(
    "gives a revived key an average count",
    hint="with its old count the key may pass for dead again in the next step: set the count of revived keys, and "
    "of no others, to N / K",
)
def fresh_count(answer: Answer) -> None:
    inputs = _with_dead(90)
    _, found = _step(answer, *inputs, 0.9, 0.05)
    counts = _moved(*inputs, 0.9)[1]
    _expect_all(found, torch.where(counts < 0.05, 20 / 5, counts), "new count")


@REVIVAL.probe(
    "needs no one-hot tensor", hint="bincount counts hits and index_add sums vectors, both from N · C flat indices"
)
def no_one_hot(answer: Answer) -> None:
    inputs = _inputs(100, 64, codebooks=4, size=32)
    with _Largest() as largest:
        _step(answer, *inputs, 0.9, 0.05)
    numbers = largest.bytes // 8
    expect(numbers < 64 * 4 * 32 / 2, f"a tensor of {numbers} numbers, where N · C · K is {64 * 4 * 32}")


_REMEDIES = ("freeze", "revive", "refit")


def _falling(size: int, last: int) -> Tensor:
    """Make hits that fall by the same factor from key to key, from 60 to `last`."""
    return (60 * (last / 60) ** torch.linspace(0, 1, size, dtype=torch.float64)).round()


def _with_dead_keys(size: int, dead: int) -> Tensor:
    return torch.cat([_falling(size - dead, 15), torch.zeros(dead, dtype=torch.float64)])


def _collapsed(size: int, first: int, others: int) -> Tensor:
    return torch.tensor([first] + [others] * (size - 1), dtype=torch.float64)


def _remedies(answer: Answer, codebooks: list[Tensor]) -> list[str]:
    """Ask for the remedies of codebooks of one size, their keys shuffled."""
    order = torch.randperm(len(codebooks[0]), generator=torch.Generator().manual_seed(0))
    found = answer(torch.stack(codebooks)[:, order])
    listed = isinstance(found, (list, tuple)) and len(found) == len(codebooks)
    expect(listed, f"{show(found)} instead of a list of {len(codebooks)} remedies")
    for remedy in found:
        expect(isinstance(remedy, str) and remedy in _REMEDIES, f"{show(remedy)} in the list")
    return list(found)


def _expect_remedy(answer: Answer, hits: Tensor, expected: str) -> None:
    (found,) = _remedies(answer, [hits])
    silent, top = int((hits == 0).sum()), (hits.max() / hits.sum()).item()
    case = f"{len(hits)} keys, {silent} without a hit, and {top:.0%} of {hits.sum():.0f} hits on the first"
    expect(found == expected, f"{show(found)} instead of {expected} for {case}")


@READING.probe(
    "gives one remedy for each codebook", hint='return a list of C texts, each "freeze", "revive" or "refit"'
)
def one_each(answer: Answer) -> None:
    _remedies(answer, [_falling(8, 10), _with_dead_keys(8, 3), _collapsed(8, 93, 1)])


@READING.probe(
    "leaves a healthy codebook alone, however uneven",
    hint="that some keys fire several times as often as others is no fault: words do, too",
)
def uneven(answer: Answer) -> None:
    _expect_remedy(answer, _falling(8, 10), "freeze")
    _expect_remedy(answer, _falling(256, 6), "freeze")


@READING.probe(
    "forgives one silent key in a hundred",
    hint="a single key without hits is not worth a remedy: compare the share of such keys with a threshold",
)
def one_in_a_hundred(answer: Answer) -> None:
    hits = _falling(256, 6)
    hits[-2:] = 0
    _expect_remedy(answer, hits, "freeze")


@READING.probe(
    "revives dead keys where the others share the work",
    hint="count the keys without hits; perplexity falls for dead keys and for a collapse, so it alone cannot tell "
    "one from the other, and how low it may be depends on K",
)
def dead_keys(answer: Answer) -> None:
    for size, dead in ((8, 3), (256, 60), (256, 156)):
        _expect_remedy(answer, _with_dead_keys(size, dead), "revive")


@READING.probe(
    "sees a collapse in which every key is hit",
    hint="the share of used keys says nothing here: look at the share of the most used key, or at perplexity",
)
def collapse_without_dead_keys(answer: Answer) -> None:
    _expect_remedy(answer, _collapsed(8, 93, 1), "refit")
    _expect_remedy(answer, _collapsed(256, 9000, 1), "refit")


@READING.probe(
    "does not take a collapse for dead keys",
    hint="a collapsed codebook may have dead keys, too, and revival is not its remedy: ask for a collapse first",
)
def collapse_with_dead_keys(answer: Answer) -> None:
    _expect_remedy(answer, _collapsed(8, 500, 0), "refit")
    _expect_remedy(answer, _collapsed(256, 4000, 0), "refit")


@READING.probe(
    "does not depend on the number of tokens",
    hint="divide the hits by their sum: a threshold in hits means something else for every split",
)
def any_number_of_tokens(answer: Answer) -> None:
    _expect_remedy(answer, 1000 * _falling(8, 10), "freeze")
    _expect_remedy(answer, 1000 * _with_dead_keys(256, 60), "revive")


@READING.probe(
    "judges each codebook by itself",
    hint="sums and maxima go over the keys alone, dimension -1: hits.sum(-1, keepdim=True)",
)
def each_by_itself(answer: Answer) -> None:
    kinds = {"freeze": _falling(16, 10), "revive": _with_dead_keys(16, 6), "refit": _collapsed(16, 900, 2)}
    for order in (("refit", "freeze", "revive", "freeze"), ("freeze", "refit", "refit", "revive")):
        found = _remedies(answer, [kinds[kind] for kind in order])
        expect(found == list(order), f"{show(found)} instead of {show(list(order))}")
