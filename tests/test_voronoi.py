"""The Voronoi bench, without a browser: its functions, its controls, and the cells that it draws."""

import base64
import re
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.path import Path

from kvlib import nearest_keys
from workbook import plots
from workbook.voronoi import DECAY, VoronoiBench, measure, place, random_codebook, revive, say, update


@pytest.fixture(scope="module")
def points():
    """Four clusters."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-2.0, -2.0], [2.0, -2.0], [-2.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    return centres.repeat(50, 1) + 0.5 * torch.randn(200, 2, generator=generator, dtype=torch.float64)


def with_dead_key(size=6):
    codebook = random_codebook(size, seed=0)
    place(codebook, 2, 4.5, 0.0)
    codebook.keys[0, 3] = torch.tensor([2.0, 0.1])  # nearer to all that key 2 could have
    return codebook


def test_a_seed_is_a_start_within_the_square():
    first, again, other = (random_codebook(10, seed) for seed in (1, 1, 2))
    assert torch.equal(first.keys, again.keys) and not torch.equal(first.keys, other.keys)
    assert first.keys.abs().max() <= 4.5 and first.keys.dtype == torch.float64
    assert (first.counts == 1).all() and not first.standardize


def test_totals_and_hits_are_those_of_a_search_by_hand(points):
    codebook = random_codebook(6, seed=3)
    keys, totals = measure(codebook, points)
    distances = torch.cdist(points, codebook.keys[0]).square()
    hits = distances.argmin(1).bincount(minlength=6)
    assert keys["hits"].tolist() == hits.tolist() and keys["count"].tolist() == [1.0] * 6
    share = hits[hits > 0] / len(points)
    assert totals["dead"] == int((hits == 0).sum())
    assert totals["perplexity"] == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-5)
    assert totals["squared_distance"] == pytest.approx(float(distances.min(1).values.mean()))
    variance = float(points.var(0, correction=0).sum())
    assert totals["quantization_error"] == pytest.approx(totals["squared_distance"] / variance)
    assert say(totals, 6).startswith(f"{totals['dead']} of 6 keys dead, perplexity {totals['perplexity']:.1f}")


def test_a_step_moves_hit_keys_by_the_moving_average_and_no_dead_one(points):
    codebook = with_dead_key()
    before, dead = codebook.keys.clone(), measure(codebook, points)[0]["hits"].to_numpy() == 0
    assert dead[2]
    update(codebook, points, torch.Generator().manual_seed(0))
    owners = nearest_keys(points.unsqueeze(1), before)[:, 0]
    for key in range(6):
        own = points[owners == key]
        total = DECAY * before[0, key] + (1 - DECAY) * own.sum(0)
        count = DECAY + (1 - DECAY) * len(own)
        torch.testing.assert_close(codebook.keys[0, key], total / count)
        assert float(codebook.counts[0, key]) == pytest.approx(count)


def test_revival_moves_dead_keys_onto_points_and_leaves_the_others(points):
    codebook = with_dead_key()
    before = codebook.keys.clone()
    dead = torch.tensor(measure(codebook, points)[0]["hits"].to_numpy() == 0)
    revive(codebook, points, torch.Generator().manual_seed(0))
    torch.testing.assert_close(codebook.keys[0, ~dead], before[0, ~dead])
    assert (codebook.keys[0, dead].unsqueeze(1) == points).all(-1).any(1).all()
    assert (codebook.counts[0, dead] == len(points) / 6).all()
    assert codebook.counts[0, ~dead].numpy() == pytest.approx(1.0)
    assert measure(codebook, points)[1]["dead"] < int(dead.sum())


def test_controls_do_what_the_functions_do(points):
    bench = VoronoiBench(points, 6, seed=4)
    expected, generator = random_codebook(6, seed=4), torch.Generator().manual_seed(4)
    bench.key.value = 3
    x, y = (round(one, 1) for one in expected.keys[0, 3].tolist())
    assert [bench.x.value, bench.y.value] == [x, y]
    bench.x.value = x + 1e-9  # what a browser may send back
    assert torch.equal(bench.codebook.keys, expected.keys)
    bench.x.value = 4.5
    place(expected, 3, 4.5, y)
    torch.testing.assert_close(bench.codebook.keys, expected.keys)
    bench.step.click()
    update(expected, points, generator)
    torch.testing.assert_close(bench.codebook.keys, expected.keys)
    bench.revive.click()
    revive(expected, points, generator)
    torch.testing.assert_close(bench.codebook.keys, expected.keys)
    keys, totals = measure(expected, points)
    assert say(totals, 6) in bench._says.value and f"<td>{keys['hits'][3]}</td>" in bench._table.value
    assert bench.x.value == round(float(expected.keys[0, 3, 0]), 1)
    bench.restart.click()
    assert torch.equal(bench.codebook.keys, random_codebook(6, seed=5).keys)


def test_the_picture_has_a_text_and_the_output_no_numbers(points):
    bench = VoronoiBench(points, 6, seed=4)
    alt, picture = re.fullmatch(
        r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)">', bench._picture.value
    ).groups()
    assert "keys dead" in alt and base64.b64decode(picture).startswith(b"\x89PNG")
    text = bench._repr_mimebundle_()["text/plain"]
    assert text.startswith("VoronoiBench: run this cell") and not re.search(r"\d", text)


def test_keys_at_one_place_are_drawn_and_counted_as_one(points):
    bench = VoronoiBench(points, 4, seed=4)
    place(bench.codebook, 0, 1.0, 1.0)
    place(bench.codebook, 3, 1.0, 1.0)
    bench.key.value = 3
    hits = measure(bench.codebook, points)[0]["hits"]
    assert hits[0] > 0 and hits[3] == 0


def test_a_move_is_answered_at_once(points):
    bench = VoronoiBench(points, 10, seed=4)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        bench.step.click()
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5  # on a busy machine; 0.1 s on an idle one


def test_drawn_cells_are_where_each_key_is_nearest():
    generator = np.random.default_rng(0)
    points, keys = generator.uniform(-3, 3, (400, 2)), generator.uniform(-3, 3, (12, 2))
    ax = plots.plot_cells(points, keys, "")
    owners = nearest_keys(torch.tensor(points).unsqueeze(1), torch.tensor(keys).unsqueeze(0))[:, 0].numpy()
    cells = [path.vertices for path in ax.collections[0].get_paths()]
    order = np.unique(keys, axis=0, return_index=True)[1]
    for corners, owner in zip(cells, order, strict=True):
        assert np.array_equal(Path(corners).contains_points(points), owners == owner)
    plt.close(ax.figure)


def test_keys_without_hits_are_hollow_and_every_key_has_its_number():
    keys = np.array([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]])
    ax = plots.plot_cells(keys[:2], keys, "", hits=np.array([1, 1, 0]))
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["vectors", "keys", "keys without hits"]
    plt.close(ax.figure)
