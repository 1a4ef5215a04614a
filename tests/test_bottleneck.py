import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from kvlib import DiscreteKeyValueBottleneck, nearest_keys
from kvlib.reservoir import read_stream


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


def test_a_stationary_stream_ends_at_a_fixed_point_of_k_means():
    points = blobs(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), spread=0.5)
    bottleneck = DiscreteKeyValueBottleneck(4, 1, 12, standardize=False)
    # every step sees all points; the last vectors change cells after some hundred steps
    bottleneck.init_keys([points], passes=1000, batch_size=len(points), decay=0.9)
    again = KMeans(12, init=bottleneck.keys[0].numpy(), n_init=1).fit(points.numpy())
    assert again.n_iter_ <= 2
    np.testing.assert_allclose(again.cluster_centers_, bottleneck.keys[0], atol=1e-4)


def test_k_means_plus_plus_starts_in_every_cluster_and_respects_weights():
    centres = 100 * torch.eye(8)
    points = torch.cat([blobs(centres[:1], per_centre=2000), blobs(centres[1:], per_centre=10)])
    keys = {}
    for start in ("sample", "k-means++"):
        bottleneck = DiscreteKeyValueBottleneck(8, 1, 8, standardize=False)
        bottleneck.init_keys([points], passes=0, start=start)
        keys[start] = bottleneck.keys[0]
    # a uniform start takes nearly all keys from the cluster with 97 % of the points
    assert len(nearest_keys(keys["sample"].unsqueeze(1), centres.unsqueeze(0)).unique()) < 4
    assert len(nearest_keys(keys["k-means++"].unsqueeze(1), centres.unsqueeze(0)).unique()) == 8
    assert (keys["k-means++"].unsqueeze(1) == points).all(-1).any(1).all()
    weights = (points[:, 7] < 50).float()
    bottleneck.init_keys([(points, weights)], passes=0, start="k-means++")
    assert not (bottleneck.keys[0, :, 7] > 50).any()
    with pytest.raises(ValueError, match="start is 'uniform', expected 'sample' or 'k-means"):
        bottleneck.init_keys([points], start="uniform")


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


def test_moments_are_those_of_all_batches_and_a_generator_will_do():
    torch.manual_seed(0)
    hidden_states = torch.randn(500, 12) * torch.linspace(0.2, 5, 12) + 3
    bottleneck = DiscreteKeyValueBottleneck(12, 3, 8)
    bottleneck.init_keys(part for part in hidden_states.split(37))
    torch.testing.assert_close(bottleneck.mean, hidden_states.mean(0))
    torch.testing.assert_close(bottleneck.std, hidden_states.std(0, correction=0))


def test_neither_order_nor_batching_nor_padding_changes_the_keys(fitted):
    bottleneck, hidden_states = fitted
    shuffled = hidden_states[torch.randperm(500, generator=torch.Generator().manual_seed(3))]
    mask = torch.ones(5, 100)
    padded = torch.nn.functional.pad(hidden_states.view(5, 100, 12), (0, 0, 0, 7), value=1e3)
    streams = {
        "batches": hidden_states.split(37),
        "order": [shuffled],
        "padding": [(padded, torch.nn.functional.pad(mask, (0, 7)))],
        "mask as booleans": [(padded, torch.nn.functional.pad(mask, (0, 7)).bool())],
    }
    for name, batches in streams.items():
        other = DiscreteKeyValueBottleneck(12, num_codebooks=3, codebook_size=8, dim_value=2)
        other.init_keys(batches)
        for buffer, expected in bottleneck.named_buffers():
            assert torch.equal(getattr(other, buffer), expected), (name, buffer)


def test_a_vector_of_weight_two_counts_like_two():
    generator = torch.Generator().manual_seed(0)
    vectors, weights = torch.randn(40, 2, 3, generator=generator), torch.randint(0, 4, (40,), generator=generator)
    one, other = (DiscreteKeyValueBottleneck(6, 2, 4) for _ in range(2))
    for bottleneck in (one, other):
        bottleneck.keys.copy_(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1)))
        bottleneck.counts.fill_(2.0)
    found = one.update_keys(vectors, 0.9, torch.Generator(), weights)
    expected = other.update_keys(vectors.repeat_interleave(weights, 0), 0.9, torch.Generator())
    torch.testing.assert_close(one.keys, other.keys)
    torch.testing.assert_close(one.counts, other.counts)
    assert found == pytest.approx(expected)
    hidden_states = vectors.flatten(1)
    one.init_keys([(hidden_states, weights)], passes=0)
    expected = hidden_states.repeat_interleave(weights, 0)
    torch.testing.assert_close(one.mean, expected.mean(0))
    torch.testing.assert_close(one.std, expected.std(0, correction=0))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(3, 5), r"batch 1 has shape \(3, 5\) and weights \(3,\), expected \(\.\.\., 12\)"),
        ((torch.zeros(3, 12), torch.ones(2)), r"batch 1 has shape \(3, 12\) and weights \(2,\)"),
        ((torch.zeros(3, 12), torch.tensor([1.0, -1.0, 1.0])), "batch 1 has a weight that is negative"),
        (torch.full((3, 12), torch.inf), r"batch 1 holds inf at position \[0, 0\]"),
    ],
)
def test_bad_batches_are_refused_before_anything_changes(fitted, batch, message):
    bottleneck, hidden_states = copy.deepcopy(fitted)
    before = copy.deepcopy(bottleneck.state_dict())
    with pytest.raises(ValueError, match=message):
        bottleneck.init_keys([hidden_states, batch])
    assert all(torch.equal(tensor, before[name]) for name, tensor in bottleneck.state_dict().items())


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


def test_the_sample_is_uniform_over_the_stream():
    numbers = torch.arange(1000.0).view(1000, 1)
    found = torch.zeros(1000)
    for seed in range(200):
        sample = read_stream(numbers.split(170), 1, 100, seed, torch.device("cpu"))
        assert sample.first.all()
        found[sample.vectors.long().squeeze(1)] += 1
        # the order says nothing either: the start of the sample is no closer to the start of the stream
        found[sample.vectors[:10].long().squeeze(1)] += 1
    # 200 draws of 0.1, and 0.01 beside: 22 expected each, standard deviation about 5; 6 of them for 1,000 numbers
    assert found.sum() == 200 * 110
    assert 0 < found.min() < found.max() < 52
    # ten blocks of 100 numbers: 2,200 each, standard deviation about 50
    assert (found.view(10, 100).sum(1) - 2200).abs().max() < 250


def test_equal_vectors_stand_side_by_side_in_the_sample():
    vectors = torch.tensor([[1.0, 2.0], [0.0, 3.0], [1.0, 2.0], [-0.0, 3.0], [5.0, 5.0]])
    sample = read_stream([vectors], 2, 10, 0, torch.device("cpu"))
    assert sample.first.sum() == 3
    starts = sample.first.cumsum(0)
    for group in range(1, 4):
        assert (sample.vectors[starts == group] == sample.vectors[starts == group][0]).all()


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
    with pytest.raises(RuntimeError, match="no keys yet"):
        DiscreteKeyValueBottleneck(12, 3, 8).freeze_keys()


@pytest.mark.parametrize("projection", ["chunk", "random"])
def test_frozen_is_frozen(fitted, projection, tmp_path):
    _, hidden_states = fitted
    bottleneck = DiscreteKeyValueBottleneck(12, 3, 8, dim_value=2, projection=projection)
    bottleneck.init_keys([hidden_states])
    bottleneck.freeze_keys()
    before = {name: buffer.clone() for name, buffer in bottleneck.named_buffers()}
    assert {"keys", "counts", "mean", "std", "frozen"} <= set(before)
    optimizer = torch.optim.AdamW(bottleneck.parameters(), lr=0.1)
    bottleneck.train()
    for _ in range(3):
        values, _ = bottleneck(hidden_states)
        (values - 1).square().mean().backward()
        optimizer.step()
    assert bottleneck.values.abs().max() > 0
    for refused in (lambda: bottleneck.init_keys([hidden_states]), lambda: update(bottleneck, hidden_states)):
        with pytest.raises(RuntimeError, match="the keys are frozen"):
            refused()
    bottleneck.half().eval().train().bfloat16()
    torch.save(bottleneck.state_dict(), tmp_path / "weights")
    loaded = DiscreteKeyValueBottleneck(12, 3, 8, dim_value=2, projection=projection)
    loaded.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    for one in (bottleneck, loaded):
        assert all(torch.equal(buffer, before[name]) for name, buffer in one.named_buffers())
    with pytest.raises(RuntimeError, match="the keys are frozen"):
        update(loaded, hidden_states)


def update(bottleneck, hidden_states):
    return bottleneck.update_keys(bottleneck.split(hidden_states), 0.9, torch.Generator())


def test_casting_a_model_to_half_precision_leaves_its_bottleneck_in_float32(fitted):
    bottleneck, hidden_states = copy.deepcopy(fitted)
    model = torch.nn.Sequential(torch.nn.Linear(12, 12), bottleneck).to(torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16
    assert {tensor.dtype for name, tensor in bottleneck.state_dict().items() if name != "frozen"} == {
        torch.float32
    }
    half = hidden_states.bfloat16()
    assert torch.equal(bottleneck.quantize(half), bottleneck.quantize(half.float()))
    wide = copy.deepcopy(bottleneck).double()
    assert wide.quantize(hidden_states).shape == (500, 3)
    assert wide.keys.dtype == wide.values.dtype == torch.float64
    assert torch.equal(wide.float().keys, bottleneck.keys)


def trained(bottleneck, hidden_states, optimizer, steps=5):
    """Pull the values handed out towards 1; return which values were selected, (C, K)."""
    for _ in range(steps):
        optimizer.zero_grad()
        values, key_indices = bottleneck(hidden_states)
        (values - 1).square().mean().backward()
        optimizer.step()
    return bottleneck.hits(key_indices) > 0


@pytest.fixture
def filled(fitted):
    """Two batches that select different values, which are not zero."""
    _, hidden_states = fitted
    bottleneck = DiscreteKeyValueBottleneck(12, num_codebooks=3, codebook_size=64, dim_value=2)
    bottleneck.init_keys([hidden_states])
    bottleneck.freeze_keys()
    torch.nn.init.normal_(bottleneck.values, generator=torch.Generator().manual_seed(0))
    return bottleneck.train(), hidden_states[:6], hidden_states[6:12]


@pytest.mark.parametrize(("weight_decay", "local"), [(0.0, True), (0.01, False)])
def test_adamw_leaves_values_that_were_never_selected_alone_unless_it_decays_weights(filled, weight_decay, local):
    bottleneck, states, _ = filled
    before = bottleneck.values.detach().clone()
    selected = trained(bottleneck, states, torch.optim.AdamW([bottleneck.values], 0.1, weight_decay=weight_decay))
    moved = (bottleneck.values != before).any(-1)
    assert 0 < selected.sum() < 0.2 * selected.numel()
    assert moved[selected].all()
    assert moved[~selected].any() != local


@pytest.mark.parametrize(("kind", "local"), [(torch.optim.SGD, True), (torch.optim.Adam, False)])
def test_only_sgd_leaves_values_of_an_earlier_task_alone(filled, kind, local):
    bottleneck, first, second = filled
    optimizer = kind([bottleneck.values], lr=0.1)
    earlier = trained(bottleneck, first, optimizer)
    before = bottleneck.values.detach().clone()
    later = trained(bottleneck, second, optimizer)
    moved = (bottleneck.values != before).any(-1)
    assert moved[later].all()
    assert moved[earlier & ~later].any() != local  # Adam's momentum still carries them on


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


def test_outputs_and_gradients_are_those_of_the_plain_gather(filled):
    bottleneck, states, _ = filled
    found, key_indices = bottleneck(states)
    plain = bottleneck.values.detach().clone().requires_grad_()
    expected = plain[torch.arange(3), key_indices]
    assert torch.equal(found, expected)
    arriving = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    found.backward(arriving)
    expected.backward(arriving)
    torch.testing.assert_close(bottleneck.values.grad, plain.grad)


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


def test_usage_tells_quantisation_error_and_unseen_keys(fitted):
    bottleneck, hidden_states = fitted
    found = bottleneck.quantize(hidden_states)
    assert bottleneck.usage(found)[["quantization_error", "unseen_share"]].isna().all(axis=None)
    usage = bottleneck.usage(found, hidden_states, training=found[:20])
    vectors = ((hidden_states - bottleneck.mean) / bottleneck.std).view(500, 3, 4)
    for codebook in range(3):
        distances = torch.cdist(vectors[:, codebook], bottleneck.keys[codebook]).square().min(1).values
        expected = distances.mean() / vectors[:, codebook].var(0, correction=0).sum()
        assert usage["quantization_error"][codebook] == pytest.approx(expected.item(), rel=1e-4)
        seen = found[:20, codebook].unique()
        expected = 1 - torch.isin(found[:, codebook], seen).double().mean()
        assert usage["unseen_share"][codebook] == pytest.approx(expected.item())
    assert (bottleneck.usage(found, training=found)["unseen_share"] == 0).all()
    with pytest.raises(ValueError, match="500 rows of key_indices are no padding, but hidden_states has 499"):
        bottleneck.usage(found, hidden_states[1:])


def test_usage_does_not_depend_on_padding_order_or_batches(fitted):
    bottleneck, hidden_states = fitted
    found = bottleneck.quantize(hidden_states)
    expected = bottleneck.usage(found, hidden_states)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(found.view(5, 100, 3), (0, 0, 0, 9), value=-1)
    in_parts = torch.cat([bottleneck.quantize(part) for part in hidden_states.split(77)])
    for other, states in (
        (found[order], hidden_states[order]),
        (padded, hidden_states),
        (in_parts, hidden_states),
    ):
        # sums over 500 vectors in another order
        torch.testing.assert_close(
            torch.from_numpy(bottleneck.usage(other, states).drop(columns="unseen_share").to_numpy()),
            torch.from_numpy(expected.drop(columns="unseen_share").to_numpy()),
            rtol=1e-6,
            atol=0,
        )


def test_random_projection_has_its_own_key_size_and_is_not_trained():
    bottleneck = DiscreteKeyValueBottleneck(12, 5, 8, projection="random", dim_key=7)
    hidden_states = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    bottleneck.init_keys([hidden_states])
    assert bottleneck.keys.shape == (5, 8, 7)
    assert bottleneck.quantize(hidden_states).shape == (300, 5)
    assert [name for name, _ in bottleneck.named_parameters()] == ["values"]


def test_a_dimension_that_the_encoder_has_switched_off_does_not_decide():
    torch.manual_seed(0)
    states = torch.randn(500, 4) * torch.tensor([1.0, 2.0, 0.5, 6e-9])
    layer = DiscreteKeyValueBottleneck(4, num_codebooks=2, codebook_size=8)
    layer.init_keys([states])
    assert layer.std[3] == 1
    torch.testing.assert_close(layer.std[:3], states.std(0, correction=0)[:3])
    # another encoder, with that dimension on, is measured on its own scale
    assert layer.split(states + torch.tensor([0.0, 0.0, 0.0, 1.0])).abs().max() < 10
