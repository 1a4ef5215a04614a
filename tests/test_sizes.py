"""The measured sizes of a bottleneck, what chapter 05 says of them, and the bench over them."""

import itertools
import json
import re
from pathlib import Path

import ipywidgets
import nbformat
import numpy as np
import pandas as pd
import pytest
from test_exercises import cells_of, solution_of

from kvlib import get_profile
from kvlib.continual.grid import continual_summary
from workbook.size_bench import SizeBench, describe_size, read_sizes

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "data" / "results" / "sizes.json"


@pytest.fixture(scope="module")
def found():
    return json.loads(PATH.read_text())


@pytest.fixture(scope="module")
def sizes():
    return read_sizes(PATH)


def test_the_file_is_whole(found):
    settings = found["settings"]
    runs = [(run["seed"], run["num_codebooks"], run["codebook_size"]) for run in found["runs"]]
    assert runs == list(
        itertools.product(*(settings[name] for name in ("seeds", "num_codebooks", "codebook_size")))
    )
    assert len(settings["seeds"]) >= 3
    assert {"command", "machine", "versions", "rows", "tokens", "accuracy"} <= found.keys()
    assert (ROOT / found["command"].split()[-1]).is_file()
    quick = get_profile("quick")
    assert quick.num_codebooks in settings["num_codebooks"] and quick.codebook_size in settings["codebook_size"]


def test_each_run_agrees_with_its_shape(found):
    dim, labels = found["settings"]["dim"], found["settings"]["num_labels"]
    for run in found["runs"]:
        codebooks, size = run["num_codebooks"], run["codebook_size"]
        assert dim % codebooks == 0
        assert run["megabytes"] == pytest.approx(4 * size * (dim + codebooks * labels) / 1e6)
        assert run["bits_a_token"] == pytest.approx(codebooks * (size - 1).bit_length())
        assert 1 <= run["perplexity"] <= size and 0 <= run["dead_keys"] < size
        assert 0 <= run["quantization_error"] <= 1 and 0 <= run["unseen_share"] <= 1
        # a share of the held-out rows
        right = run["accuracy"] * found["rows"]["held_out"]
        assert right == pytest.approx(round(right))


def test_means_are_over_seeds(tmp_path):
    run = {"num_codebooks": 2, "codebook_size": 4, "megabytes": 1.0, "seconds": 1.0, "unseen_share": 0.0}
    runs = [run | {"seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate((0.7, 0.8, 0.9))]
    content = {"runs": runs, "rows": {"held_out": 100}, "accuracy": {"majority class": 0.5}}
    (tmp_path / "sizes.json").write_text(json.dumps(content))
    sizes, references, noise = read_sizes(tmp_path / "sizes.json")
    assert sizes[["num_codebooks", "codebook_size"]].to_numpy().tolist() == [[2, 4]]
    assert sizes.loc[0, "accuracy"] == pytest.approx(0.8) and sizes.loc[0, "accuracy_std"] == pytest.approx(0.1)
    assert references == {"majority class": 0.5} and noise == pytest.approx(0.04)


def test_a_size_is_described_in_words(sizes):
    table, _, noise = sizes
    best = table.loc[table["accuracy"].idxmax()]
    chosen = (int(best["num_codebooks"]), int(best["codebook_size"]))
    described = describe_size(table, noise, [chosen, (32, 256)])
    assert list(described) == ["measure", f"C = {chosen[0]}, K = {chosen[1]:,}", "C = 32, K = 256"]
    rows = described.set_index("measure").iloc[:, 0]
    assert rows["standard errors behind the best"] == "0.0"
    assert rows["held-out accuracy, mean ± std"].startswith(f"{best['accuracy']:.3f} ±")


def test_the_bench_follows_its_menus(sizes):
    bench = SizeBench(*sizes)
    assert bench.frame.columns.tolist() == ["measure", "C = 32, K = 256"]
    before = bench._picture.value
    bench.num_codebooks.value, bench.codebook_size.value = 8, 16
    assert bench.frame.columns.tolist() == ["measure", "C = 8, K = 16", "C = 32, K = 256"]
    pd.testing.assert_frame_equal(bench.frame, describe_size(sizes[0], sizes[2], [(8, 16), (32, 256)]))
    assert "C = 8, K = 16, beside" in bench._table.value and 'role="status"' in bench._table.value
    assert bench._picture.value != before
    # each ring lies around a point that is drawn
    places = [
        re.findall(f'<{tag} [^>]*x="([0-9.]+)" c?y="([0-9.]+)"', bench._picture.value) for tag in ("circle", "use")
    ]
    rings, points = (np.array(found, dtype=float) for found in places)
    assert len(rings) == 2 and (np.abs(rings[:, None] - points).max(-1).min(1) < 0.2).all()
    # no black, which a dark theme would swallow, and no white card
    assert not re.search("#000000|#ffffff", bench._picture.value)
    assert 'role="img" aria-label="' in bench._picture.value and "currentcolor" in bench._picture.value


def test_every_control_has_a_label_and_the_text_is_the_same_every_time(sizes):
    bench = SizeBench(*sizes)
    controls = [widget for widget in bench.view.children if not isinstance(widget, ipywidgets.HTML)]
    assert [control.description for control in controls] == ["Codebooks C", "Keys K"]
    texts = {SizeBench(*sizes)._repr_mimebundle_()["text/plain"] for _ in range(2)}
    assert texts == {repr(bench)} and not re.search(r"\d", repr(bench))


def test_the_sentences_of_chapter_05_are_those_of_the_file(found, sizes):
    cells = nbformat.read(ROOT / "notebooks" / "05_training.ipynb", as_version=4).cells
    text = {cell.id: " ".join(cell.source.split()) for cell in cells}
    table, _, noise = sizes
    by_size = table.set_index(["num_codebooks", "codebook_size"])
    smallest, largest = by_size.loc[(1, 2)], by_size.loc[(128, 1024)]
    assert (smallest["megabytes"], largest["megabytes"]) == (table["megabytes"].min(), table["megabytes"].max())
    assert f"ran stage 3 with {len(table)} sizes, three seeds each" in text["sizes-text"]
    assert (largest["bits_a_token"], smallest["bits_a_token"]) == (1280, 1) and "1,280 bits" in text["sizes-text"]
    ahead = smallest["accuracy"] - largest["accuracy"]
    said = f"the smallest is {100 * ahead:.1f} points *ahead*, within one standard error ({100 * noise:.1f})"
    assert said in text["sizes-answer"] and ahead < noise
    errors = f"from {smallest['quantization_error']:.2f} to {largest['quantization_error']:.2f}"
    assert f"the error falls {errors}" in text["sizes-answer"]
    topics = continual_summary(ROOT / "data" / "results" / "continual.json", "topics")["final accuracy"]
    ends = [round(float(topics[f"bottleneck, C = {c}, K = {k}"].split()[0])) for c, k in ((1, 16), (128, 256))]
    said = "one codebook of 16 keys ends at {} %, 128 of 256 keys at {} %".format(*ends)
    assert said in text["sizes-answer"]


def test_the_conclusion_of_exercise_5_4_is_that_of_the_file(found, sizes):
    answers = cells_of("5.4")[3].source
    space = {}
    exec(solution_of("5.4"), space)
    table, _, noise = sizes
    rows = found["rows"]["held_out"]
    codebooks, size = space["choose_size"](table, 0.2, rows)
    by_size = table.set_index(["num_codebooks", "codebook_size"])
    chosen, other = by_size.loc[(codebooks, size)], by_size.loc[(128, 64)]
    assert other["quantization_error"] == table.loc[table["megabytes"] <= 0.2, "quantization_error"].min()
    assert f"C = {codebooks}, K = {size}, of {chosen['megabytes']:.3f} MB" in answers
    assert f"standard error of {100 * noise:.1f} points" in answers and f"{rows} rows of one task" in answers
    errors = (chosen["quantization_error"], other["quantization_error"])
    assert "error of {:.2f}, where C = 128, K = 64 has {:.2f}".format(*errors) in answers
