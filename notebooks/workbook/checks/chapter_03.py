"""Exercises of chapter 03: the bottleneck."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from workbook.checking import Answer, Exercise, Mistake, expect, expect_close, expect_number, expect_tensor, show

BLOCKS = Exercise("3.1", "Nearest keys, a block of keys at a time", difficulty=2, minutes=15)
STRAIGHT = Exercise("3.2", "A gradient past the argmin", difficulty=2, minutes=10)
REVIVAL = Exercise("3.3", "A moving average that revives dead keys", difficulty=3, minutes=20)
SHAPE = Exercise("3.4", "Which C and K fit into memory?", difficulty=2, minutes=10)


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


_SHAPES = [  # dim, dim_value, budget, smallest_key
    (24, 2, 3000, 2),
    (24, 2, 600, 3),
    (60, 2, 2900, 3),
    (24, 3, 1200, 2),
    (36, 2, 20000, 6),
    (40, 1, 700, 4),
    (384, 2, 500_000, 12),
    (768, 3, 20_000_000, 12),
]


def _bytes(shape: tuple[int, int], dim: int, dim_value: int) -> int:
    C, K = shape
    return 4 * C * K * (dim // C + dim_value)


def _bits(shape: tuple[int, int]) -> float:
    C, K = shape
    return C * math.log2(K)


def _most_bits(dim: int, dim_value: int, budget: int, smallest_key: int) -> tuple[int, int]:
    shapes = [(C, 2**power) for C in range(1, dim // smallest_key + 1) for power in range(1, 30) if dim % C == 0]
    fits = [shape for shape in shapes if _bytes(shape, dim, dim_value) <= budget]
    return max(fits, key=lambda shape: (_bits(shape), -_bytes(shape, dim, dim_value)))


def _shape(answer: Answer, setting: tuple[int, int, int, int]) -> tuple[int, int]:
    returned = answer(*setting)
    whole = isinstance(returned, (tuple, list)) and len(returned) == 2 and all(x == int(x) >= 1 for x in returned)
    expect(whole, f"{show(returned)} instead of two positive whole numbers, for {_say(setting)}")
    return int(returned[0]), int(returned[1])


def _say(setting: tuple[int, int, int, int]) -> str:
    return "dim = {}, dim_value = {}, budget = {}, smallest_key = {}".format(*setting)


@SHAPE.probe(
    "gives two whole numbers", hint="return (C, K), two integers of at least 1, for a budget that suffices"
)
def two_numbers(answer: Answer) -> None:
    for setting in _SHAPES:
        _shape(answer, setting)


@SHAPE.probe("cuts the hidden state into equal chunks", hint="C must divide dim: try its divisors only")
def equal_chunks(answer: Answer) -> None:
    for setting in _SHAPES:
        C, _ = _shape(answer, setting)
        expect(setting[0] % C == 0, f"C = {C} chunks of {setting[0]} dimensions")


@SHAPE.probe("keeps keys wide enough", hint="a key has dim / C dimensions: C is at most dim // smallest_key")
def wide_keys(answer: Answer) -> None:
    for setting in _SHAPES:
        C, _ = _shape(answer, setting)
        expect(
            setting[0] / C >= setting[3], f"C = {C}: keys of {setting[0] / C:g} dimensions, for {_say(setting)}"
        )


@SHAPE.probe(
    "takes a power of two for K", hint="K is 2, 4, 8 …: take the largest of them that fits, not all that fits"
)
def power_of_two(answer: Answer) -> None:
    for setting in _SHAPES:
        _, K = _shape(answer, setting)
        expect(K >= 2 and K & (K - 1) == 0, f"K = {K}, for {_say(setting)}")


@SHAPE.probe(
    "stays within the budget",
    hint="a float32 takes 4 bytes; C · K · d numbers are keys, and C · K · dim_value numbers are values",
)
def within_budget(answer: Answer) -> None:
    for setting in _SHAPES:
        C, K = _shape(answer, setting)
        keys, values = 4 * K * setting[0], 4 * C * K * setting[1]
        saw = f"C = {C}, K = {K}: {keys} bytes of keys and {values} of values, for {_say(setting)}"
        expect(keys + values <= setting[2], saw)


@SHAPE.probe(
    "wastes no room for twice as many keys",
    hint="d = dim / C, so the keys of all codebooks are K · dim numbers; what fills the budget to the byte fits",
)
def full_budget(answer: Answer) -> None:
    exact = [(24, 2, _bytes((12, 16), 24, 2), 2), (60, 3, _bytes((15, 8), 60, 3), 4)]
    for setting in _SHAPES + exact:
        C, K = _shape(answer, setting)
        needed = _bytes((C, 2 * K), *setting[:2])
        saw = f"C = {C}, K = {K}, but K = {2 * K} takes {needed} bytes, for {_say(setting)}"
        expect(needed > setting[2], saw)


@SHAPE.probe(
    "addresses the most cells",
    hint="C codebooks address K^C cells, C · log2(K) bits: compare all divisors C by that, each with "
    "its largest K",
)
def most_cells(answer: Answer) -> None:
    for setting in _SHAPES:
        shape, best = _shape(answer, setting), _most_bits(*setting)
        saw = f"{_bits(shape):g} bits by C, K = {shape}, for {_say(setting)}; {_bits(best):g} are possible"
        expect(_bits(shape) == _bits(best), saw)


@SHAPE.probe(
    "takes the smaller of two equals",
    hint="where two shapes have as many bits, compare their bytes: sort by (bits, -bytes)",
)
def fewer_bytes(answer: Answer) -> None:
    for setting in ((16, 2, 400, 2), (24, 2, 1300, 2)):
        shape, best = _shape(answer, setting), _most_bits(*setting)
        sizes = [_bytes(pair, *setting[:2]) for pair in (shape, best)]
        saw = f"C, K = {shape} in {sizes[0]} bytes; {sizes[1]} will do for {_bits(best):g} bits, {_say(setting)}"
        expect(sizes[0] == sizes[1], saw)


@SHAPE.probe(
    "says None where nothing fits",
    hint="one key a codebook tells nothing apart, so K is at least 2: where no shape has room for it, return None",
)
def nothing_fits(answer: Answer) -> None:
    setting = (16, 2, 100, 2)
    try:
        returned = answer(*setting)
    except Mistake as mistake:
        raise Mistake(f"{mistake.saw}, for {_say(setting)}") from mistake
    expect(returned is None, f"{show(returned)} for {_say(setting)}")
