import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from kvlib import DiscreteKeyValueBottleneck
from kvlib.bottleneck import draw_positions


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


def test_quantize_keeps_leading_dimensions(fitted):
    bottleneck, hidden_states = fitted
    expected = bottleneck.quantize(hidden_states)
    assert expected.shape == (500, 3)
    assert torch.equal(bottleneck.quantize(hidden_states.view(5, 100, 12)), expected.view(5, 100, 3))


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


def test_one_dead_key_more_does_not_change_what_replaces_the_others():
    def replaced(dead):
        bottleneck = DiscreteKeyValueBottleneck(2, 2, 6, standardize=False)
        # one key amid the vectors, five far away that are never hit
        bottleneck.keys[:, 1:] = 100.0 + torch.arange(10.0).view(2, 5, 1)
        bottleneck.counts.fill_(5.0)
        for codebook, key in dead:
            bottleneck.counts[codebook, key] = 0.0
        vectors = torch.randn(50, 2, 1, generator=torch.Generator().manual_seed(0))
        bottleneck.update_keys(vectors, 0.9, torch.Generator().manual_seed(1))
        return bottleneck.keys

    few, many = replaced([(0, 2), (0, 5), (1, 4)]), replaced([(0, 2), (0, 3), (0, 5), (1, 4)])
    assert few[0, 3] > 100 and many[0, 3] < 10
    assert all(few[place] < 10 for place in ((0, 2), (0, 5), (1, 4)))
    few[0, 3] = many[0, 3]
    assert torch.equal(few, many)


# the sample


def sample_of(batches, total, max_vectors, seed=0):
    """Return the vectors that keys start from: with as many keys as vectors in the sample, all of it in order."""
    bottleneck = DiscreteKeyValueBottleneck(1, 1, min(total, max_vectors), standardize=False)
    with pytest.warns(UserWarning, match="keys a codebook are many"):
        bottleneck.init_keys(batches, passes=0, max_vectors=max_vectors, seed=seed)
    return bottleneck.keys[0, :, 0]


@pytest.mark.parametrize(("total", "max_vectors"), [(1000, 100), (1000, 600), (90, 100)])
def test_the_sample_depends_on_positions_and_seed_alone(total, max_vectors):
    # each vector is its own position
    numbers = torch.arange(float(total)).view(total, 1)
    padded = torch.nn.functional.pad(numbers.view(-1, 10, 1), (0, 0, 2, 3), value=torch.nan)
    mask = torch.nn.functional.pad(torch.ones(total // 10, 10), (2, 3))
    for seed in range(3):
        expected = torch.from_numpy(draw_positions(total, max_vectors, seed)).float()
        streams = {
            "one batch": [numbers],
            "one vector a batch": numbers.split(1),
            "a generator": (part for part in numbers.split(37)),
            "batches of rows": numbers.view(-1, 10, 1).split(3),
            "padding": zip(padded.split(3), mask.split(3), strict=True),
            "a mask of booleans": zip(padded.split(7), mask.bool().split(7), strict=True),
            "empty batches": [numbers[:0], numbers, (padded, torch.zeros_like(mask))],
        }
        for name, batches in streams.items():
            assert torch.equal(sample_of(batches, total, max_vectors, seed), expected), (name, seed)
    other = sample_of([numbers], total, max_vectors, seed=3)
    assert not torch.equal(other, expected)


def test_the_sample_is_uniform_over_the_stream():
    found = np.zeros(1000)
    for seed in range(200):
        positions = draw_positions(1000, 100, seed)
        assert len(set(positions)) == 100
        found[positions] += 1
        # the order says nothing either: the start of the sample is no closer to the start of the stream
        found[positions[:10]] += 1
    # 200 draws of 0.1, and 0.01 beside: 22 expected each, standard deviation about 5; 6 of them for 1,000 numbers
    assert 0 < found.min() < found.max() < 52
    # ten blocks of 100 numbers: 2,200 each, standard deviation about 50
    assert np.abs(found.reshape(10, 100).sum(1) - 2200).max() < 250


def test_the_sample_is_bounded(fitted):
    _, hidden_states = fitted
    bottleneck = DiscreteKeyValueBottleneck(12, 3, 8)
    history = bottleneck.init_keys(hidden_states.split(50), passes=1, batch_size=16, max_vectors=64)
    assert len(history) == 4


def test_the_first_keys_are_distinct_vectors():
    vectors = torch.tensor([[1.0, 2.0], [0.0, 3.0], [-0.0, 3.0], [5.0, 5.0]]).repeat(50, 1)
    for seed in range(20):
        bottleneck = DiscreteKeyValueBottleneck(2, 1, 3, standardize=False)
        with pytest.warns(UserWarning, match="3 keys a codebook are many for 3 distinct vectors"):
            bottleneck.init_keys([vectors], passes=0, seed=seed)
        assert len(bottleneck.keys[0].unique(dim=0)) == 3


def test_mean_and_std_are_those_of_the_sample():
    torch.manual_seed(0)
    hidden_states = torch.randn(500, 12) * torch.linspace(0.2, 5, 12) + 3
    for max_vectors in (500, 100):
        bottleneck = DiscreteKeyValueBottleneck(12, 3, 8)
        bottleneck.init_keys(hidden_states.split(37), max_vectors=max_vectors)
        sample = hidden_states[draw_positions(500, max_vectors, 0)]
        torch.testing.assert_close(bottleneck.mean, sample.mean(0))
        torch.testing.assert_close(bottleneck.std, sample.std(0, correction=0))


def test_neither_batching_nor_padding_changes_the_keys(fitted):
    bottleneck, hidden_states = fitted
    mask = torch.nn.functional.pad(torch.ones(5, 100), (0, 7))
    padded = torch.nn.functional.pad(hidden_states.view(5, 100, 12), (0, 0, 0, 7), value=torch.nan)
    for batches in (hidden_states.split(37), [(padded, mask)]):
        other = DiscreteKeyValueBottleneck(12, num_codebooks=3, codebook_size=8, dim_value=2)
        other.init_keys(batches)
        for buffer, expected in bottleneck.named_buffers():
            assert torch.equal(getattr(other, buffer), expected), buffer


def test_rounding_does_not_act_like_another_seed():
    """Vectors moved by a unit in the last place: the same are drawn, and keys stay where they were."""
    hidden_states = torch.randn(2000, 12, generator=torch.Generator().manual_seed(0))
    moved = hidden_states.nextafter(hidden_states + 1)
    keys = {}
    for name, states, seed in (("one", hidden_states, 0), ("moved", moved, 0), ("other seed", hidden_states, 1)):
        bottleneck = DiscreteKeyValueBottleneck(12, 3, 64)
        bottleneck.init_keys([states], max_vectors=1000, seed=seed)
        keys[name] = bottleneck.keys
    # 7e-7 and 1.1 were found
    assert (keys["moved"] - keys["one"]).abs().max() < 1e-5
    assert (keys["other seed"] - keys["one"]).abs().mean() > 0.5


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            torch.zeros(3, 5),
            r"batch 1 has shape \(3, 5\) and a mask \(3,\), expected \(\.\.\., 12\) and \(\.\.\.\)",
        ),
        ((torch.zeros(3, 12), torch.ones(2)), r"batch 1 has shape \(3, 12\) and a mask \(2,\)"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 2.0}, r"decay is 2.0, expected a number from 0 to below 1"),
        ({"decay": -1}, r"decay is -1"),
        ({"max_vectors": -1}, r"max_vectors is -1, expected a positive number"),
        ({"batch_size": 0}, r"batch_size is 0"),
    ],
)
def test_settings_of_the_keys_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiscreteKeyValueBottleneck(8, 2, 4).init_keys([torch.randn(64, 8)], **options)


def test_one_tensor_is_a_stream_of_one_batch():
    states = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    one, several = DiscreteKeyValueBottleneck(8, 2, 4), DiscreteKeyValueBottleneck(8, 2, 4)
    one.init_keys(states)
    several.init_keys([states])
    assert torch.equal(one.keys, several.keys)


def test_half_precision_far_from_zero_is_told():
    states = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    for shift, told in ((0.0, False), (1000.0, True)):
        bottleneck = DiscreteKeyValueBottleneck(8, 2, 16)
        bottleneck.init_keys([states + shift])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bottleneck.quantize((states + shift).bfloat16())
            bottleneck.quantize(states + shift)
        assert [str(w.message).startswith("hidden_states are torch.bfloat16 and so far") for w in caught] == [
            True
        ] * told
