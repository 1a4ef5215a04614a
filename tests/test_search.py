"""Exact search: the contract of `nearest_keys`, and of `quantize` which is built on it.

The contract: against a float64 brute force the chosen key's squared distance is never more than a relative 1e-5
worse, and the index is the same wherever the two best distances differ by more than that; among equal keys the
lowest index wins.

tests/conftest.py hides GPUs from the suite; to run the CUDA variants here too:
``pytest --noconftest tests/test_search.py``.
"""

import re
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kvlib import DiscreteKeyValueBottleneck, bottleneck, nearest_keys, search

# of the contract: how much worse than the best a squared distance may be
TOLERANCE = 1e-5
DEFAULT_SCORES = search.SCORES
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device to see")),
]
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "_cdist_forward"}

repeatable = settings(
    derandomize=True, deadline=None, database=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow]
)


@dataclass(frozen=True)
class Recipe:
    """What vectors and keys are made from: short enough to read when an example fails."""

    rows: int = 60
    codebooks: int = 2
    size: int = 100
    dim: int = 6
    exponent: int = 0
    offset: float = 0.0
    away: float = 0.0
    outlier: float = 1.0
    duplicates: float = 0.0
    copies: float = 0.0
    midway: float = 0.0
    strided: bool = False
    dtype: torch.dtype = torch.float32
    scores: int = DEFAULT_SCORES
    seed: int = 0


recipes = st.builds(
    Recipe,
    rows=st.integers(0, 120),
    codebooks=st.integers(1, 5),
    # the search works in blocks of 64 keys: often not full, sometimes just full
    size=st.integers(1, 300) | st.sampled_from([1, 2, 63, 64, 65, 128, 192]),
    dim=st.integers(1, 20),
    exponent=st.integers(-30, 30) | st.just(0),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    # vectors far from every key
    away=st.sampled_from([0.0, 0.0, 1.0, 1e4]),
    # one key far from all others
    outlier=st.sampled_from([1.0, 1.0, 1e2, 1e5]),
    duplicates=st.sampled_from([0.0, 0.1, 0.9]),
    copies=st.sampled_from([0.0, 0.3]),
    midway=st.sampled_from([0.0, 0.3]),
    strided=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64]),
    scores=st.sampled_from([DEFAULT_SCORES, 2**14, 512]),
    seed=st.integers(0, 2**16),
)


def cook(recipe):
    """Make vectors ``(N, C, d)`` and keys ``(C, K, d)``."""
    N, C, K, d = recipe.rows, recipe.codebooks, recipe.size, recipe.dim
    generator = torch.Generator().manual_seed(recipe.seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def choose(*shape):
        return torch.randint(K, shape, generator=generator)

    def share(*shape):
        return torch.rand(shape, generator=generator)

    scale = 10.0**recipe.exponent
    keys = normal(C, K, d)
    keys[:, 0] *= recipe.outlier
    keys = (scale * (keys + recipe.offset)).to(recipe.dtype)
    book = torch.arange(C)
    copied = torch.where(share(C, K) < recipe.duplicates, choose(C, K), torch.arange(K))
    keys = keys[book[:, None], copied]

    vectors = (scale * (normal(N, C, d) + recipe.offset + recipe.away)).to(recipe.dtype)
    here, there = keys[book, choose(N, C)], keys[book, choose(N, C)]
    kind = share(N, C, 1)
    vectors = torch.where(kind < recipe.copies, here, vectors)
    # an exact tie before rounding, and after it often still one
    between = ((here.double() + there.double()) / 2).to(recipe.dtype)
    vectors = torch.where(kind > 1 - recipe.midway, between, vectors)
    if recipe.strided:
        vectors = vectors.permute(2, 0, 1).contiguous().permute(1, 2, 0)
        keys = torch.stack([keys, torch.full_like(keys, torch.nan)], dim=-1)[..., 0]
    return vectors, keys


def check(vectors, keys, found):
    """Hold indices against brute force over float64 differences, in the contract's terms."""
    vectors, keys, found = vectors.cpu(), keys.cpu(), found.cpu()
    (N, C, _), K = vectors.shape, keys.shape[1]
    assert found.shape == (N, C)
    assert found.dtype == torch.int64
    assert ((found >= 0) & (found < K)).all()
    distances = (vectors.double().unsqueeze(2) - keys.double()).square().sum(-1)  # (N, C, K)
    best = distances.amin(-1)
    limit = best * (1 + TOLERANCE)
    chosen = distances.gather(-1, found.unsqueeze(-1)).squeeze(-1)
    assert (chosen <= limit).all(), "a chosen key is farther than the nearest"

    # the lowest index that holds the same key
    lowest = (keys.unsqueeze(1) == keys.unsqueeze(2)).all(-1).byte().argmax(-1)  # (C, K)
    assert torch.equal(lowest[torch.arange(C), found], found), "an equal key has a lower index"
    # keys within the tolerance of the best: if all are one and the same key, its lowest index is the answer
    near = distances <= limit.unsqueeze(-1)
    first = torch.where(near, lowest, K).amin(-1)
    clear = first == torch.where(near, lowest, -1).amax(-1)
    assert torch.equal(found[clear], first[clear]), "the nearest key is clear, and not the chosen one"


@pytest.fixture
def matmul_settings():
    """Give back the settings of float32 products."""
    matmuls = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [matmul.fp32_precision for matmul in matmuls]
    generic, word = torch.backends.fp32_precision, torch.get_float32_matmul_precision()
    yield
    torch.backends.fp32_precision = generic
    torch.set_float32_matmul_precision(word)
    for matmul, precision in zip(matmuls, before, strict=True):
        matmul.fp32_precision = precision


def current_settings():
    return (
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.is_autocast_enabled("cpu"),
    )


@contextmanager
def one_thread():
    """Hundreds of small searches: on a busy machine, threads would mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Products(TorchDispatchMode):
    """Notes what every matrix product below autocast runs under: settings, and types of its factors."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in PRODUCTS:
            precisions = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
            self.seen.append((*precisions, *(factor.dtype for factor in args if isinstance(factor, torch.Tensor))))
            if self.error:
                raise self.error
        return func(*args, **(kwargs or {}))


def make_bottleneck(projection="random", dim=48, codebooks=4, size=300, seed=0):
    """A bottleneck with random keys, mean and standard deviation, and hidden states ``(2, 50, dim)`` for it."""
    generator = torch.Generator().manual_seed(seed)
    made = DiscreteKeyValueBottleneck(dim, codebooks, size, projection=projection)
    if projection == "random":
        made.projections.copy_(torch.randn(made.projections.shape, generator=generator) / dim**0.5)
    made.keys.copy_(torch.randn(made.keys.shape, generator=generator))
    made.mean.copy_(torch.randn(dim, generator=generator))
    made.std.copy_(torch.rand(dim, generator=generator) + 0.5)
    made.counts.fill_(1.0)
    return made, torch.randn(2, 50, dim, generator=generator)


# exactness


@pytest.mark.parametrize("device", DEVICES)
@given(recipe=recipes)
@example(recipe=Recipe(rows=0))
@example(recipe=Recipe(rows=1, codebooks=1, size=1, dim=1))
@example(recipe=Recipe(size=1, copies=0.3, exponent=30))
@example(recipe=Recipe(codebooks=1))
@example(recipe=Recipe(rows=120, size=300, dim=12, offset=1e4, duplicates=0.1, copies=0.3, midway=0.3))
@example(recipe=Recipe(offset=1e4, exponent=30, duplicates=0.9, midway=0.3))
@example(recipe=Recipe(offset=1e4, exponent=-30, duplicates=0.9, midway=0.3))
@example(recipe=Recipe(rows=100, size=200, offset=1.0, duplicates=0.1, midway=0.3, scores=512))
@repeatable
def test_the_chosen_key_is_the_nearest(device, recipe):
    vectors, keys = (tensor.to(device) for tensor in cook(recipe))
    before = vectors.clone(), keys.clone()
    with one_thread():
        with mock.patch.object(search, "SCORES", recipe.scores):
            found = nearest_keys(vectors, keys)
        check(vectors, keys, found)
    assert torch.equal(vectors, before[0])
    assert torch.equal(keys, before[1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scores", [1, 512, 2**12, 2**15])
def test_smaller_chunks_change_nothing(scores, device):
    recipe = Recipe(rows=90, codebooks=5, size=130, dim=3, offset=1e4, duplicates=0.1, copies=0.3, midway=0.3)
    vectors, keys = (tensor.to(device) for tensor in cook(recipe))
    expected = nearest_keys(vectors, keys)
    with mock.patch.object(search, "SCORES", scores), one_thread():
        assert torch.equal(nearest_keys(vectors, keys), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_around_1e4_with_unit_spread_keep_their_nearest_keys(device):
    vectors, keys = (tensor.to(device) for tensor in cook(Recipe(500, 3, 512, 12, offset=1e4)))
    naive = keys.square().sum(-1) - 2 * torch.einsum("ncd,ckd->nck", vectors, keys)
    found = nearest_keys(vectors, keys)
    check(vectors, keys, found)
    # what squaring before centring would give: rounding to 128 at 1e9 hides all distances of 10
    assert (naive.argmin(-1) != found).float().mean() > 0.5


class Doubles(TorchDispatchMode):
    """Counts the float64 numbers that come out of subtractions."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("sub", "sub_") and result.dtype == torch.float64:
            self.count += result.numel()
        return result


def test_centring_leaves_few_keys_to_compare_in_float64():
    vectors, keys = cook(Recipe(500, 3, 512, 12, offset=1e4, midway=0.1))
    with Doubles() as doubles:
        nearest_keys(vectors, keys)
    # not centred, float32 would tell hardly any key from any other
    assert 0 < doubles.count < 0.01 * 500 * 3 * 512 * 12


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [3e38, 1e20, 1e-20, 1e-21, 1e-22, 1e-37, 1e-44])
def test_the_largest_and_smallest_floats_are_compared(size, device):
    generator = torch.Generator().manual_seed(0)
    vectors = (torch.rand(100, 2, 4, generator=generator) - 0.5) * 2 * size
    keys = (torch.rand(2, 150, 4, generator=generator) - 0.5) * 2 * size
    check(vectors, keys, nearest_keys(vectors.to(device), keys.to(device)))


@pytest.mark.parametrize("scores", [DEFAULT_SCORES, 2**12])
def test_of_equal_keys_the_first_is_taken_across_blocks_and_chunks(scores):
    keys = torch.full((3, 500, 5), 0.3)
    with mock.patch.object(search, "SCORES", scores):
        assert not nearest_keys(torch.randn(40, 3, 5), keys).any()
        assert not nearest_keys(keys[:, :40].transpose(0, 1), keys).any()
        # a nearer key in the last block, twice
        keys[:, 450] = keys[:, 499] = 0.0
        assert (nearest_keys(torch.zeros(40, 3, 5), keys) == 450).all()


def test_zero_and_minus_zero_are_equal():
    keys = torch.tensor([[[0.0, -0.0], [-0.0, 0.0]]])
    vectors = torch.tensor([[[-0.0, 0.0]], [[0.0, -0.0]], [[1.0, 1.0]]])
    assert nearest_keys(vectors, keys).tolist() == [[0], [0], [0]]


def test_an_exact_tie_goes_to_the_lowest_index():
    # powers of two: distances are exact, and equal
    keys = torch.tensor([[[4.0], [2.0], [-2.0], [-4.0]], [[-4.0], [-2.0], [2.0], [4.0]]])
    assert nearest_keys(torch.zeros(1, 2, 1), keys).tolist() == [[1, 1]]


# precision


def test_bf16_autocast_does_not_reach_the_search():
    vectors, keys = cook(Recipe(200, 3, 300, 12, offset=1.0))
    expected = nearest_keys(vectors, keys)
    rounded = nearest_keys(vectors.bfloat16().float(), keys.bfloat16().float())
    assert not torch.equal(rounded, expected), "bfloat16 would not show"
    with torch.autocast("cpu", dtype=torch.bfloat16), Products() as products:
        assert torch.equal(nearest_keys(vectors, keys), expected)
        assert torch.is_autocast_enabled("cpu")
    assert {dtype for _, _, *dtypes in products.seen for dtype in dtypes} == {torch.float32}


@pytest.mark.parametrize("projection", ["chunk", "random"])
def test_bf16_autocast_does_not_reach_quantize(projection):
    made, hidden_states = make_bottleneck(projection)
    expected = made.quantize(hidden_states)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made.quantize(hidden_states), expected)
        vectors = made.split(hidden_states.flatten(0, 1))
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, made.split(hidden_states.flatten(0, 1)))


def test_a_projection_in_bf16_would_show():
    made, hidden_states = make_bottleneck("random")
    standardised = (hidden_states.flatten(0, 1) - made.mean) / made.std
    with torch.autocast("cpu", dtype=torch.bfloat16):
        projected = (standardised @ made.projections).float()
    rounded = nearest_keys(projected.unflatten(-1, (4, -1)), made.keys)
    assert not torch.equal(rounded, made.quantize(hidden_states).flatten(0, 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_allowing_tf32_and_bf16_products_changes_nothing(precision, device, matmul_settings):
    vectors, keys = (tensor.to(device) for tensor in cook(Recipe(200, 3, 300, 12, offset=1.0, midway=0.3)))
    made, hidden_states = make_bottleneck()
    made, hidden_states = made.to(device), hidden_states.to(device)
    expected = nearest_keys(vectors, keys), made.quantize(hidden_states)
    torch.set_float32_matmul_precision(precision)
    before = current_settings()
    with Products() as products:
        assert torch.equal(nearest_keys(vectors, keys), expected[0])
        assert torch.equal(made.quantize(hidden_states), expected[1])
    check(vectors, keys, expected[0])
    # a product of the search, one of the projection and one of its search, at least
    assert len(products.seen) >= 3
    assert {entry[:2] for entry in products.seen} == {("ieee", "ieee")}
    assert current_settings() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device to see")
@given(recipe=recipes)
@settings(repeatable, max_examples=40)
def test_the_chosen_key_is_the_nearest_on_cuda_with_tf32_and_autocast(recipe):
    vectors, keys = (tensor.cuda() for tensor in cook(recipe))
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found = nearest_keys(vectors, keys)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    check(vectors, keys, found)


def test_settings_are_given_back_after_an_error(matmul_settings):
    vectors, keys = cook(Recipe())
    made, hidden_states = make_bottleneck()
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = current_settings()
        for call in (lambda: nearest_keys(vectors, keys), lambda: made.quantize(hidden_states)):
            with pytest.raises(MemoryError), Products(error=MemoryError()):
                call()
            assert current_settings() == before


@pytest.mark.parametrize("parent", [torch.backends, torch.backends.mkldnn], ids=["backends", "mkldnn"])
def test_a_setting_inherited_from_its_parent_is_still_inherited_after(parent, matmul_settings):
    own = parent.fp32_precision
    try:
        parent.fp32_precision = "tf32"
        assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"
        nearest_keys(*cook(Recipe()))
        parent.fp32_precision = "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    finally:
        parent.fp32_precision = own


# quantize


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("projection", ["chunk", "random"])
def test_quantize_finds_the_nearest_key_of_every_part_of_a_hidden_state(projection, device):
    made, hidden_states = make_bottleneck(projection)
    made, hidden_states = made.to(device), hidden_states.to(device)
    before = hidden_states.clone()
    key_indices = made.quantize(hidden_states)
    assert key_indices.shape == (2, 50, 4)
    assert torch.equal(hidden_states, before)
    check(made.split(hidden_states.flatten(0, 1)), made.keys, key_indices.flatten(0, 1))
    assert made.quantize(hidden_states[:0]).shape == (0, 50, 4)


def test_quantize_in_several_parts_changes_nothing():
    made, hidden_states = make_bottleneck("chunk")
    expected = made.quantize(hidden_states)
    # 2 · 512 / 48 = 21 rows a part
    with mock.patch.object(bottleneck, "SCORES", 512), mock.patch.object(search, "SCORES", 512):
        assert torch.equal(made.quantize(hidden_states), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_quantize_takes_hidden_states_of_any_type(dtype):
    made, hidden_states = make_bottleneck("chunk")
    hidden_states = hidden_states.to(dtype)
    assert torch.equal(made.quantize(hidden_states), made.quantize(hidden_states.float()))


# NaN and infinity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(data=st.data(), value=st.sampled_from([torch.nan, torch.inf, -torch.inf]))
@settings(repeatable, max_examples=30)
def test_a_number_that_is_not_finite_is_named_with_its_place(dtype, data, value):
    tensors = dict(zip(("vectors", "keys"), cook(Recipe(9, 3, 70, 5, dtype=dtype)), strict=True))
    name = data.draw(st.sampled_from(["vectors", "keys"]))
    first = data.draw(st.tuples(*(st.integers(0, size - 1) for size in tensors[name].shape)))
    tensors[name][first] = value
    # a later one is not the one to be named
    tensors[name][-1, -1, -1] = value
    message = f"{name} holds {value} at position {list(first)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        nearest_keys(**tensors)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("device", DEVICES)
def test_quantize_names_the_place_in_the_hidden_states(value, dtype, device):
    made, hidden_states = make_bottleneck()
    hidden_states = hidden_states.to(device, dtype)
    hidden_states[1, 33, 7] = hidden_states[1, 40, 2] = value
    with pytest.raises(ValueError, match=re.escape(f"hidden_states holds {value} at position [1, 33, 7]")):
        made.to(device).quantize(hidden_states)
