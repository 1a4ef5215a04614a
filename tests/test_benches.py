"""The token strip and the error browser, without a browser; their tables of keys in test_explore."""

import copy
import re

import ipywidgets
import numpy as np
import pytest
import torch

from kvlib import DistilBERTwithBottleNeck, predict_logits
from kvlib.explore import explain, push_columns
from workbook import Explorer
from workbook.error_browser import ErrorBrowser, rows_of_cell
from workbook.keys import align_keys, keys_by_lead, switch_off
from workbook.token_strip import TokenStrip

FIRST = "The young nurse thanked the old teacher on Monday."
SECOND = "On Monday, the old teacher was thanked by the young nurse."
NEAR_MISS = "On Monday, the old teacher thanked the young nurse."


@pytest.fixture(scope="module")
def student(pretrained, small):
    torch.manual_seed(0)
    plain = DistilBERTwithBottleNeck.from_teacher(pretrained)
    found = plain.discretize(small[0], num_codebooks=16, codebook_size=8)
    torch.nn.init.normal_(found.bottleneck.values, generator=torch.Generator().manual_seed(0))
    return found


@pytest.fixture
def strip(student, tokenizer):
    return TokenStrip(student, tokenizer, FIRST, SECOND, NEAR_MISS)


@pytest.fixture
def browser(student, tokenizer, small, mrpc):
    validation = mrpc["validation"].select(range(len(small[1])))
    texts = list(zip(validation["sentence1"], validation["sentence2"], strict=True))
    logits = predict_logits(student, small[1]).numpy()
    return ErrorBrowser(texts, np.asarray(small[1].labels), logits, Explorer(student, tokenizer))


def drawn(bench):
    return "".join(view.value for view in bench.view.children if isinstance(view, ipywidgets.HTML))


def lead_of(frame, strip):
    answer, other = strip._labels
    return frame[answer].sum() - frame[other].sum()


def test_the_slider_switches_off_the_strongest_keys_of_each_input(strip, student, tokenizer):
    frames = [explain(student, tokenizer, FIRST, second) for second in (SECOND, NEAR_MISS)]
    for off in (0, 5, strip.off.max):
        strip.off.value = off
        left = [switch_off(frame, keys_by_lead(frame).head(off)) for frame in frames]
        assert strip.answers["lead"].tolist() == pytest.approx([lead_of(frame, strip) for frame in left], abs=1e-5)
        sums = torch.tensor(np.stack([frame[push_columns(frame)].sum() for frame in left]))
        probabilities = strip.answers.filter(like="probability").to_numpy()
        np.testing.assert_allclose(probabilities, sums.softmax(-1).numpy(), atol=1e-5)
        assert strip.tokens["lead"].sum() == pytest.approx(strip.answers["lead"][0], abs=1e-5)
    assert strip.answers["lead"].abs().max() < 1e-6  # nothing is left
    assert "nan" not in drawn(strip)


def test_tokens_stand_over_their_own_and_say_how_many_keys_differ(strip, student, tokenizer):
    aligned = align_keys(*(explain(student, tokenizer, FIRST, second) for second in (SECOND, NEAR_MISS)))
    assert strip.tokens["differing"].sum() == aligned["differs"].sum() > 0
    assert strip.tokens.loc[strip.tokens["position_other"] < 0, "token"].tolist() == ["was", "by"]
    assert len(strip.token.options) == len(strip.tokens) - 2
    for _, position in strip.token.options:
        strip.token.value = position
        differing = aligned[aligned["differs"] & (aligned["position"] == position)]
        assert strip._keys.value.count("<tr>") == len(differing) + bool(len(differing))  # and a heading
    assert drawn(strip).count("kv-differs") > 2


def test_untrained_values_are_drawn_without_shades(student, tokenizer):
    untrained = copy.deepcopy(student)
    untrained.bottleneck.values.data.zero_()
    strip = TokenStrip(untrained, tokenizer, FIRST, SECOND, NEAR_MISS)
    assert "nan" not in drawn(strip) and ", 0.00)" in drawn(strip)


def test_a_cell_lists_its_rows_by_margin():
    labels = np.array([0, 1, 0, 0, 1])
    logits = np.array([[0.0, 1.0, 0.5], [0.0, 3.0, 1.0], [0.0, 2.0, -1.0], [4.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = rows_of_cell(labels, logits, label=0, answer=1)
    assert found["row"].tolist() == [2, 0] and found["margin"].tolist() == [2.0, 0.5]
    assert rows_of_cell(labels, logits, 1, 2).empty


def test_mistakes_come_first_and_every_row_once(browser):
    cells = [cell for _, cell in browser.cell.options]
    mistaken = [label != answer for label, answer in cells]
    assert mistaken == sorted(mistaken, reverse=True) and any(mistaken)
    seen = []
    for label, answer in cells:
        browser.cell.value = (label, answer)
        assert browser.confusions.iloc[label, answer] == len(browser.rows) == len(browser.row.options)
        assert browser.row.value is None
        seen += browser.rows["row"].tolist()
    assert sorted(seen) == list(range(browser.confusions.to_numpy().sum()))


def test_a_chosen_row_opens_in_the_explorer_and_a_chosen_cell_does_not(browser):
    assert browser._explorer.text.value == FIRST and "Choose a row" in browser._says.value
    cells = [cell for _, cell in browser.cell.options]
    row = int(browser.rows["row"].iloc[-1])
    browser.row.value = row
    assert (browser._explorer.text.value, browser._explorer.text_pair.value) == browser._texts[row]
    assert f"row {row}, labelled" in browser._says.value
    browser.cell.value = cells[1]
    assert browser._explorer.text.value == browser._texts[row][0] and "Choose a row" in browser._says.value


def test_their_texts_for_notebooks_hold_no_number(strip, browser):
    for bench in (strip, browser):
        bundle = bench._repr_mimebundle_()
        assert bundle["text/plain"] == repr(bench) and not re.search(r"\d", repr(bench))
        assert "application/vnd.jupyter.widget-view+json" in bundle


def test_every_control_has_a_label(strip, browser):
    for bench, count in ((strip, 2), (browser, 2)):
        controls = [child for child in bench.view.children if not isinstance(child, ipywidgets.HTML)]
        assert len(controls) == count and all(control.description for control in controls)
