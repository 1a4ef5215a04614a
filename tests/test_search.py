"""The nearest key: the contract of `nearest_keys`, and of `quantize` which is built on it.

The contract: of equal keys the lowest index wins, always. Otherwise, over offsets to 1e4 (in units of the spread)
and scales from 1e-3 to 1e2, the squared distance to the key that is found exceeds the smallest by no more than a
relative 1e-4 and 8 machine epsilons of the squared lengths of vector and key, both with the mean of the keys taken
off.

The second part is the rounding of a product of centred vectors. It decides only where a distance is far smaller
than the lengths it is the difference of: where a vector is nearly a copy of a key, or a key far from all others
drags the mean along. Largest found in float32, over 3 million searches in 1 to 384 dimensions: 1.0 epsilon without
such a key, 5.1 with one; in float64 no excess above a relative 3e-11.

tests/conftest.py hides GPUs from the suite; to run the CUDA variants here too:
``pytest --noconftest tests/test_search.py``.
"""

import itertools
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

# of the contract
RELATIVE, ROUNDINGS = 1e-4, 8
DEFAULT_SCORES = search.SCORES
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device to see")),
]
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "_cdist_forward"}

repeatable = settings(
    derandomize=True, deadline=None, database=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
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
    # the search works in blocks of 32 keys: often not full, sometimes just full
    size=st.integers(1, 300) | st.sampled_from([1, 2, 31, 32, 33, 64, 128, 192]),
    dim=st.integers(1, 20) | st.sampled_from([64, 384]),
    exponent=st.integers(-3, 2),
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
    eps = torch.finfo(keys.dtype).eps
    for book in range(C):
        x, k, chosen = vectors[:, book].double(), keys[book].double(), found[:, book]
        distances = torch.cdist(x, k, compute_mode="donot_use_mm_for_euclid_dist").square()  # (N, K)
        lengths = (x - k.mean(0)).square().sum(-1, keepdim=True) + (k - k.mean(0)).square().sum(-1)
        near = distances <= distances.amin(-1, keepdim=True) * (1 + RELATIVE) + ROUNDINGS * eps * lengths
        assert near.gather(-1, chosen.unsqueeze(-1)).all(), "a chosen key is farther than the nearest"
        # the lowest index that holds the same key
        lowest = (torch.cdist(k, k, compute_mode="donot_use_mm_for_euclid_dist") == 0).byte().argmax(-1)
        assert torch.equal(lowest[chosen], chosen), "an equal key has a lower index"
        # if all keys that are near enough are one and the same, its lowest index is the answer
        first = torch.where(near, lowest, K).amin(-1)
        clear = first == torch.where(near, lowest, -1).amax(-1)
        assert torch.equal(chosen[clear], first[clear]), "the nearest key is clear, and not the chosen one"


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
@example(recipe=Recipe(size=1, copies=0.3, exponent=2))
@example(recipe=Recipe(codebooks=1))
@example(recipe=Recipe(rows=120, size=300, dim=12, offset=1e4, duplicates=0.1, copies=0.3, midway=0.3))
@example(recipe=Recipe(offset=1e4, exponent=2, duplicates=0.9, midway=0.3))
@example(recipe=Recipe(offset=1e4, exponent=-3, duplicates=0.9, midway=0.3))
@example(recipe=Recipe(rows=100, size=200, offset=1.0, duplicates=0.1, midway=0.3, scores=512))
@repeatable
def test_the_chosen_key_is_the_nearest(device, recipe):
    vectors, keys = (tensor.to(device) for tensor in cook(recipe))
    before = vectors.clone(), keys.clone()
    with one_thread():
        with mock.patch.multiple(search, SCORES=recipe.scores, ROWS=1):
            found = nearest_keys(vectors, keys)
        check(vectors, keys, found)
    assert torch.equal(vectors, before[0])
    assert torch.equal(keys, before[1])


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_around_1e4_with_unit_spread_keep_their_nearest_keys(device):
    vectors, keys = (tensor.to(device) for tensor in cook(Recipe(500, 3, 512, 12, offset=1e4)))
    naive = keys.square().sum(-1) - 2 * torch.einsum("ncd,ckd->nck", vectors, keys)
    found = nearest_keys(vectors, keys)
    check(vectors, keys, found)
    # what squaring before centring would give: rounding to 128 at 1e9 hides all distances of 10
    assert (naive.argmin(-1) != found).float().mean() > 0.5


LAYOUTS = {
    "contiguous": lambda keys: keys,
    "transposed": lambda keys: keys.mT.contiguous().mT,
    "codebooks last": lambda keys: keys.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "every other number": lambda keys: torch.stack([keys, keys + 1], dim=-1)[..., 0],
    "every other key": lambda keys: torch.stack([keys, keys + 1], dim=2).flatten(1, 2)[:, ::2],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_equal_keys_the_lowest_index_is_taken(layout, dtype, device):
    """A product may round equal rows apart: its kernels take edges, and few columns, in another order."""
    generator = torch.Generator().manual_seed(0)
    # rows a part: all, and as few as single ones
    shapes = itertools.product([2, 31, 33, 64, 300], [1, 5, 12, 17, 96], [DEFAULT_SCORES, 9 * 64, 1])
    for size, dim, scores in shapes:
        # some keys, each at many places of the codebook; what is looked for lies near them
        distinct = torch.randn(5, dim, generator=generator, dtype=torch.float64) + 1
        places = torch.randint(5, (size,), generator=generator)
        keys = distinct[places].to(device, dtype).unsqueeze(0).repeat(2, 1, 1)
        near = distinct[torch.randint(5, (25, 2), generator=generator)]
        near = near + 0.1 * torch.randn(near.shape, generator=generator, dtype=torch.float64)
        lowest = (places.unsqueeze(0) == places.unsqueeze(1)).byte().argmax(-1)
        with mock.patch.multiple(search, SCORES=scores, ROWS=1), one_thread():
            found = nearest_keys(near.to(device, dtype), LAYOUTS[layout](keys)).cpu()
        assert torch.equal(lowest[found], found), (size, dim, scores)


def test_zero_and_minus_zero_are_equal():
    keys = torch.tensor([[[0.0, -0.0], [-0.0, 0.0]]])
    vectors = torch.tensor([[[-0.0, 0.0]], [[0.0, -0.0]], [[1.0, 1.0]]])
    assert nearest_keys(vectors, keys).tolist() == [[0], [0], [0]]


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


def test_quantize_in_several_parts_finds_the_nearest_keys():
    made, hidden_states = make_bottleneck("chunk")
    # 512 / 48 = 10 rows a part
    with mock.patch.object(bottleneck, "SCORES", 512), mock.patch.multiple(search, SCORES=512, ROWS=1):
        found = made.quantize(hidden_states)
    check(made.split(hidden_states.flatten(0, 1)), made.keys, found.flatten(0, 1))


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
