import copy
import warnings

import pytest
import torch

from kvlib import DiscreteKeyValueBottleneck, nearest_keys


def blobs(centres, per_centre=200, spread=0.05, seed=0):
    """Vectors around known centres, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    points = centres.repeat_interleave(per_centre, 0)
    points = points + spread * torch.randn(points.shape, generator=generator)
    return points[torch.randperm(len(points), generator=generator)]


@pytest.fixture
def fitted():
    generator = torch.Generator().manual_seed(0)
    hidden_states = torch.randn(500, 12, generator=generator) * torch.linspace(0.1, 50, 12) + 3
    bottleneck = DiscreteKeyValueBottleneck(12, num_codebooks=3, codebook_size=8, dim_value=2)
    bottleneck.init_keys([hidden_states])
    return bottleneck, hidden_states


def test_default_shape_is_the_full_size_one():
    bottleneck = DiscreteKeyValueBottleneck(768)
    assert bottleneck.keys.shape == bottleneck.values.shape == (64, 4096, 12)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (7, 3, 5, 2), (3000, 4, 2000, 3), (0, 2, 4, 3)])
def test_nearest_keys_are_those_of_brute_force(sizes):
    rows, codebooks, size, dim = sizes
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(rows, codebooks, dim, generator=generator, dtype=torch.float64)
    keys = torch.randn(codebooks, size, dim, generator=generator, dtype=torch.float64)
    expected = torch.empty(rows, codebooks, dtype=torch.int64)
    for codebook in range(codebooks):
        distances = (vectors[:, codebook, None] - keys[codebook]).square().sum(-1)
        expected[:, codebook] = distances.argmin(-1)
    assert torch.equal(nearest_keys(vectors, keys), expected)


def test_quantize_keeps_leading_dimensions_and_ignores_autocast(fitted):
    bottleneck, hidden_states = fitted
    expected = bottleneck.quantize(hidden_states)
    assert expected.shape == (500, 3)
    assert torch.equal(bottleneck.quantize(hidden_states.view(5, 100, 12)), expected.view(5, 100, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bottleneck.quantize(hidden_states), expected)


def test_bad_hidden_states_are_refused(fitted):
    bottleneck, hidden_states = fitted
    with pytest.raises(ValueError, match=r"shape \(2, 11\), expected \(\.\.\., 12\)"):
        bottleneck.quantize(torch.zeros(2, 11))
    spoilt = hidden_states.clone()
    spoilt[41, 3] = torch.nan
    with pytest.raises(ValueError, match=r"hidden_states holds nan at position \[41, 3\]"):
        bottleneck.quantize(spoilt)
    with pytest.raises(RuntimeError, match="no keys yet"):
        DiscreteKeyValueBottleneck(12, 3, 8).quantize(hidden_states)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 12, "num_codebooks": 5}, "choose a divisor"),
        ({"dim": 12, "num_codebooks": 4, "dim_key": 2}, "leave dim_key alone"),
        ({"dim": 12, "num_codebooks": 4, "codebook_size": 0}, "must be positive"),
        ({"dim": 12, "num_codebooks": 4, "projection": "pca"}, "expected 'chunk' or 'random'"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiscreteKeyValueBottleneck(**arguments)


def test_update_is_the_running_mean_computed_by_hand():
    bottleneck = DiscreteKeyValueBottleneck(1, 1, 2)
    bottleneck.keys.copy_(torch.tensor([[[0.0], [10.0]]]))
    bottleneck.counts.copy_(torch.tensor([[4.0, 2.0]]))
    vectors = torch.tensor([1.0, 2.0, 9.0]).view(3, 1, 1)
    frame = bottleneck.update_keys(vectors, 0.9, torch.Generator())
    counts = [0.9 * 4 + 0.1 * 2, 0.9 * 2 + 0.1 * 1]
    keys = [(0.9 * 4 * 0 + 0.1 * (1 + 2)) / counts[0], (0.9 * 2 * 10 + 0.1 * 9) / counts[1]]
    torch.testing.assert_close(bottleneck.counts, torch.tensor([counts]))
    torch.testing.assert_close(bottleneck.keys, torch.tensor(keys).view(1, 2, 1))
    assert frame["used_fraction"] == 1.0


def test_keys_find_the_centres_of_clusters():
    # apart by 40 times the spread
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0], [4.0, 1.0]])
    bottleneck = DiscreteKeyValueBottleneck(2, 1, 20, standardize=False)
    points = blobs(centres)
    history = bottleneck.init_keys([points], passes=20)
    nearest = torch.cdist(centres, bottleneck.keys[0]).min(1).values
    # 20 keys on 5 blobs: each blob of radius 0.05 has at least one key inside
    assert (nearest < 0.1).all()
    assert history["quantization_error"].iloc[-1] < 0.01
    assert history["quantization_error"].iloc[-1] <= history["quantization_error"].iloc[0]


def test_a_dead_key_is_replaced_with_its_count_and_survives_an_idle_step():
    bottleneck = DiscreteKeyValueBottleneck(1, 1, 3, standardize=False)
    bottleneck.keys.copy_(torch.tensor([[[0.0], [1.0], [1000.0]]]))
    bottleneck.counts.copy_(torch.tensor([[5.0, 5.0, 0.01]]))
    near = torch.tensor([0.1, 0.9, 0.4, 0.6]).view(4, 1, 1)
    bottleneck.update_keys(near, 0.95, torch.Generator().manual_seed(0))
    revived = bottleneck.keys[0, 2].clone()
    assert revived in near
    assert bottleneck.counts[0, 2] == pytest.approx(4 / 3)
    bottleneck.update_keys(torch.full((4, 1, 1), -5.0), 0.95, torch.Generator().manual_seed(1))
    torch.testing.assert_close(bottleneck.keys[0, 2], revived)


def test_moments_are_those_of_all_batches_and_a_generator_will_do(fitted):
    _, hidden_states = fitted
    bottleneck = DiscreteKeyValueBottleneck(12, 3, 8)
    bottleneck.init_keys(part for part in hidden_states.split(37))
    torch.testing.assert_close(bottleneck.mean, hidden_states.mean(0))
    torch.testing.assert_close(bottleneck.std, hidden_states.std(0, correction=0))


def test_same_seed_gives_the_same_keys(fitted):
    bottleneck, hidden_states = fitted
    again, other = (DiscreteKeyValueBottleneck(12, 3, 8) for _ in range(2))
    again.init_keys([hidden_states])
    other.init_keys([hidden_states], seed=1)
    assert torch.equal(bottleneck.keys, again.keys)
    assert not torch.equal(bottleneck.keys, other.keys)


def test_the_sample_is_bounded(fitted):
    _, hidden_states = fitted
    bottleneck = DiscreteKeyValueBottleneck(12, 3, 8)
    history = bottleneck.init_keys(hidden_states.split(50), passes=1, batch_size=16, max_vectors=64)
    assert len(history) == 4


def test_standardising_frees_small_dimensions_from_large_ones():
    generator = torch.Generator().manual_seed(0)
    hidden_states = torch.randn(400, 2, generator=generator) * torch.tensor([100.0, 1.0])
    distinct = {}
    for standardize in (True, False):
        bottleneck = DiscreteKeyValueBottleneck(2, 1, 16, standardize=standardize)
        bottleneck.init_keys([hidden_states])
        # flip the small dimension: does any key index notice?
        flipped = hidden_states * torch.tensor([1.0, -1.0])
        moved = bottleneck.quantize(hidden_states) != bottleneck.quantize(flipped)
        distinct[standardize] = moved.float().mean().item()
    assert distinct[True] > 0.4 > 0.1 > distinct[False]


def test_too_many_keys_for_the_data_warns():
    bottleneck = DiscreteKeyValueBottleneck(2, 1, 8)
    with pytest.warns(UserWarning, match="8 keys a codebook are many for 3 distinct vectors"):
        bottleneck.init_keys([torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]]).repeat(5, 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DiscreteKeyValueBottleneck(2, 1, 8).init_keys([torch.randn(32, 2)])
    with pytest.raises(ValueError, match="no vectors"):
        DiscreteKeyValueBottleneck(2, 1, 8).init_keys([])


def test_values_need_frozen_keys_to_train(fitted):
    bottleneck, hidden_states = fitted
    bottleneck = copy.deepcopy(bottleneck).train()
    with pytest.raises(RuntimeError, match="not frozen"):
        bottleneck(hidden_states)
    with pytest.raises(RuntimeError, match="no keys to freeze"):
        DiscreteKeyValueBottleneck(12, 3, 8).freeze_keys()


def test_frozen_is_frozen(fitted):
    bottleneck, hidden_states = copy.deepcopy(fitted)
    bottleneck.freeze_keys()
    before = {name: buffer.clone() for name, buffer in bottleneck.named_buffers()}
    optimizer = torch.optim.AdamW(bottleneck.parameters(), lr=0.1)
    bottleneck.train()
    for _ in range(3):
        values, _ = bottleneck(hidden_states)
        (values - 1).square().mean().backward()
        optimizer.step()
    assert bottleneck.values.abs().max() > 0
    assert all(torch.equal(buffer, before[name]) for name, buffer in bottleneck.named_buffers())
    with pytest.raises(RuntimeError, match="frozen"):
        bottleneck.init_keys([hidden_states])


def test_gradient_reaches_selected_values_only_and_never_the_input(fitted):
    bottleneck, hidden_states = copy.deepcopy(fitted)
    bottleneck.freeze_keys()
    states = hidden_states[:4].clone().requires_grad_()
    values, key_indices = bottleneck(states)
    values.sum().backward()
    assert states.grad is None
    expected = torch.zeros_like(bottleneck.values)
    for row in key_indices:
        for codebook, key in enumerate(row):
            expected[codebook, key] += 1
    assert torch.equal(bottleneck.values.grad, expected)


def test_values_pass_gradcheck():
    bottleneck = DiscreteKeyValueBottleneck(4, 2, 3).double()
    indices = torch.tensor([[0, 2], [1, 2]])

    def look_up(values):
        return torch.func.functional_call(bottleneck, {"values": values}, (indices,), strict=False)

    bottleneck.forward = bottleneck.lookup
    assert torch.autograd.gradcheck(look_up, torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True))


def test_usage_of_a_hand_made_split():
    bottleneck = DiscreteKeyValueBottleneck(2, 2, 4)
    key_indices = torch.tensor([[[0, 1], [0, 1], [1, 1]], [[1, 1], [-1, -1], [-1, -1]]])
    usage = bottleneck.usage(key_indices)
    assert usage["codebook"].tolist() == [0, 1]
    assert usage["used_fraction"].tolist() == [0.5, 0.25]
    assert usage["dead_keys"].tolist() == [2, 3]
    assert usage["perplexity"].tolist() == pytest.approx([2.0, 1.0])
    assert usage["top1_share"].tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match="empty"):
        bottleneck.usage(torch.empty(0, 2, dtype=torch.int64))


def test_random_projection_has_its_own_key_size_and_is_not_trained():
    bottleneck = DiscreteKeyValueBottleneck(12, 5, 8, projection="random", dim_key=7)
    hidden_states = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    bottleneck.init_keys([hidden_states])
    assert bottleneck.keys.shape == (5, 8, 7)
    assert bottleneck.quantize(hidden_states).shape == (300, 5)
    assert [name for name, _ in bottleneck.named_parameters()] == ["values"]
