import copy
import html
import re
from collections import Counter

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from kvlib import CustomDataset, DistilBERTwithBottleNeck, KeyIndexDataset, predict_logits
from kvlib.explore import (
    compare_logits,
    edit,
    explain,
    longest_input,
    loudest_keys,
    push_by_token,
    push_columns,
    similar_by_key,
)
from workbook import Explorer
from workbook.bench import html_table
from workbook.keys import align_keys, align_tokens, keys_by_lead, strongest_keys, switch_off, training_pushes

FIRST = "The young nurse thanked the old teacher on Monday."
SECOND = "On Monday, the old teacher was thanked by the young nurse."
OPTIONS = [{}, {"pool": "before"}]


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda options: "-".join(options.values()) or "default")
def student(request, pretrained, small):
    torch.manual_seed(0)
    plain = DistilBERTwithBottleNeck.from_teacher(pretrained)
    found = plain.discretize(small[0], num_codebooks=16, codebook_size=8, **request.param)
    torch.nn.init.normal_(found.bottleneck.values, generator=torch.Generator().manual_seed(0))
    return found


@pytest.fixture(scope="module")
def default(pretrained, small):
    torch.manual_seed(0)
    found = DistilBERTwithBottleNeck.from_teacher(pretrained).discretize(
        small[0], num_codebooks=16, codebook_size=8
    )
    torch.nn.init.normal_(found.bottleneck.values, generator=torch.Generator().manual_seed(0))
    return found


@pytest.fixture(scope="module")
def fired(default, small):
    return KeyIndexDataset(default, small[0])


@pytest.fixture
def explorer(default, tokenizer, small, fired):
    return Explorer(default, tokenizer, small[0], fired)


@pytest.fixture(scope="module")
def short(tokenizer, tmp_path_factory):
    """The tokenizer as it is saved with a model that was trained on 24 tokens, loaded again."""
    saved = copy.deepcopy(tokenizer)
    saved.model_max_length = 24
    folder = tmp_path_factory.mktemp("short")
    saved.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def logits_of(model, tokenizer, *texts):
    with torch.inference_mode():
        return model(**tokenizer(*texts, return_tensors="pt")).logits[0]


def as_model(frame):
    """The sums of the pushes, as a tensor like logits."""
    return torch.from_numpy(frame[push_columns(frame)].sum().to_numpy(np.float32).copy())


# explain: as many tokens as in training


def test_a_long_pair_is_explained_as_it_was_read_in_training(student, short, mrpc):
    long = (
        mrpc["train"]
        .select([0])
        .map(lambda row: {name: 4 * f"{row[name]} " for name in ("sentence1", "sentence2")})
    )
    rows = CustomDataset(long, short, "mrpc", max_length=24)
    frame = explain(student, short, *(long[0][name] for name in ("sentence1", "sentence2")))
    torch.testing.assert_close(as_model(frame), predict_logits(student, rows)[0], atol=1e-5, rtol=1e-5)
    if student.config.pool == "after":
        tokens = frame.loc[frame["codebook"] == 0, "token"]
        assert tokens.tolist() == short.convert_ids_to_tokens(rows[0]["input_ids"])
        assert len(tokens) == 24


def test_no_more_tokens_are_read_than_the_model_has_positions_for(default, tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.model_max_length = 10**30
    assert longest_input(default, endless) == default.config.max_position_embeddings == 512


# edit: the logits of a model whose value was really changed


@pytest.mark.parametrize(("strength", "value_of"), [(0.0, None), (0.5, None), (1.0, 3), (1.7, 5)])
def test_edit_gives_the_logits_of_a_model_with_that_value(student, tokenizer, strength, value_of):
    frame = explain(student, tokenizer, FIRST, SECOND)
    row = frame.iloc[len(frame) // 3]
    codebook, key = row["codebook"], row["key"]
    before = student.bottleneck.values.detach().clone()
    edited = edit(student, frame, codebook, key, strength, value_of)
    assert torch.equal(student.bottleneck.values, before)
    changed = copy.deepcopy(student)
    with torch.no_grad():
        source = key if value_of is None else value_of
        changed.bottleneck.values[codebook, key] = strength * before[codebook, source]
    torch.testing.assert_close(
        as_model(edited), logits_of(changed, tokenizer, FIRST, SECOND), atol=1e-5, rtol=1e-5
    )
    other = (frame["codebook"] != codebook) | (frame["key"] != key)
    pd.testing.assert_frame_equal(edited[other], frame[other])
    described = [column for column in frame if not column.startswith("push_")]
    pd.testing.assert_frame_equal(edited[described], frame[described])


def test_switching_a_key_off_takes_away_its_pushes_and_no_more(default, tokenizer):
    frame = explain(default, tokenizer, FIRST, SECOND)
    codebook, key = frame.groupby(["codebook", "key"]).size().idxmax()
    rows = (frame["codebook"] == codebook) & (frame["key"] == key)
    assert rows.sum() > 1  # several tokens fire it, and all of them are affected
    logits = compare_logits(frame, edit(default, frame, codebook, key, strength=0.0))
    pushes = frame.loc[rows, push_columns(frame)].sum().to_numpy()
    assert logits["change"].to_numpy() == pytest.approx(-pushes, abs=1e-6)


def test_an_unchanged_value_changes_nothing(student, tokenizer):
    frame = explain(student, tokenizer, FIRST)
    key = frame["key"].iloc[0]
    for edited in (edit(student, frame, 0, key), edit(student, frame, 0, key, value_of=key)):
        assert compare_logits(frame, edited)["change"].abs().max() < 1e-6


def test_edit_refuses_a_key_that_is_not_there(default, tokenizer):
    frame = explain(default, tokenizer, FIRST)
    silent = next(key for key in range(8) if key not in set(frame.loc[frame["codebook"] == 2, "key"]))
    with pytest.raises(ValueError, match=f"no token fires key {silent} of codebook 2"):
        edit(default, frame, 2, silent)
    for wrong in (-1, 8):
        with pytest.raises(ValueError, match=f"value_of is {wrong}, expected a key index from 0 to 7"):
            edit(default, frame, 0, frame["key"].iloc[0], value_of=wrong)


# the other views


def test_compared_logits_are_the_models_with_their_probabilities(student, tokenizer):
    frame = explain(student, tokenizer, FIRST, SECOND)
    logits = logits_of(student, tokenizer, FIRST, SECOND).double()
    found = compare_logits(frame, frame)
    assert found["label"].tolist() == ["not_equivalent", "equivalent"]
    assert found["before"].tolist() == found["after"].tolist() == pytest.approx(logits.tolist(), abs=1e-5)
    assert found["probability_after"].tolist() == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
    one = frame.drop(columns="push_equivalent")
    assert list(compare_logits(one, one)) == ["label", "before", "after", "change"]  # a regression has no classes


def test_pushes_by_token_sum_to_the_logits_in_the_order_of_the_text(student, tokenizer):
    frame = explain(student, tokenizer, FIRST)
    found = push_by_token(frame)
    torch.testing.assert_close(as_model(found), logits_of(student, tokenizer, FIRST), atol=1e-5, rtol=1e-5)
    assert found["position"].tolist() == list(range(len(found)))
    if student.config.pool == "after":
        assert found["token"].tolist()[: len(tokenizer.tokenize(FIRST)) + 2] == [
            "[CLS]",
            *tokenizer.tokenize(FIRST),
            "[SEP]",
        ]


def test_the_strongest_key_of_a_label_is_no_weaker_than_any(student, tokenizer):
    frame = explain(student, tokenizer, FIRST)
    fired, codebook = frame.iloc[5][["key", "codebook"]]
    tokens = frame["position"].max() + 1
    for label, key, push in strongest_keys(student, codebook).itertuples(index=False):
        pushes = []
        for other in range(8):
            edited = edit(student, frame, codebook, fired, value_of=other)
            here = edited[(edited["codebook"] == codebook) & (edited["key"] == fired)]
            pushes.append(here[f"push_{label}"].iloc[0] * tokens)
        assert key == np.argmax(pushes) and push == pytest.approx(max(pushes), rel=1e-4)


def test_similar_sentences_are_those_that_fire_the_key_most_first(default, small, fired):
    training = small[0]
    codebook, key = 3, int(fired[0]["key_indices"][1, 3])
    times = {row: int((fired[row]["key_indices"][:, codebook] == key).sum()) for row in range(len(training))}
    expected = sorted((row for row in times if times[row]), key=lambda row: -times[row])
    found = similar_by_key(training, fired, codebook, key, limit=1000)
    assert found["row"].tolist() == expected and found["times"].tolist() == [times[row] for row in expected]
    assert len(similar_by_key(training, fired, codebook, key, limit=2)) == 2
    first = found.iloc[0]
    ids = training.inputs["input_ids"][first["row"]]
    here = (fired[first["row"]]["key_indices"][:, codebook] == key).nonzero().flatten()
    tokens = training.tokenizer.convert_ids_to_tokens([ids[place] for place in here])
    assert first["tokens"].split() == list(dict.fromkeys(tokens))
    assert " / " in first["text"] and "[SEP]" not in first["text"] and "[CLS]" not in first["text"]


def test_similar_sentences_where_one_set_of_keys_stands_for_a_sentence(pretrained, small):
    torch.manual_seed(0)
    model = DistilBERTwithBottleNeck.from_teacher(pretrained)
    model = model.discretize(small[0], num_codebooks=16, codebook_size=4, pool="before")
    fired = KeyIndexDataset(model, small[0])
    key = int(fired[5]["key_indices"][0, 7])
    found = similar_by_key(small[0], fired, 7, key, limit=1000)
    assert found["row"].tolist() == (fired.key_indices[:, 7] == key).nonzero().flatten().tolist()
    assert set(found["tokens"]) == {"[sentence]"} and set(found["times"]) == {1}


def test_similar_sentences_of_a_silent_key_and_of_another_split(small, fired, tokenizer, mrpc):
    assert similar_by_key(small[0], fired, 0, 10_000).empty
    with pytest.raises(ValueError, match="made from another split"):
        similar_by_key(small[1], fired, 0, 0)
    shorter = CustomDataset(mrpc["train"].select(range(48)), tokenizer, "mrpc", max_length=12)
    with pytest.raises(ValueError, match="made from another split"):
        similar_by_key(shorter, fired, 0, 0)


def test_loudest_keys_are_counted_with_their_tokens_and_their_labels(default, small, fired):
    training, key_indices = small[0], fired.key_indices.long()
    found = loudest_keys(default, training, fired, limit=4)
    assert found["label"].tolist() == ["not_equivalent"] * 4 + ["equivalent"] * 4
    ids = np.concatenate([np.asarray(row) for row in training.inputs["input_ids"]])
    tokens = np.array(training.tokenizer.convert_ids_to_tokens(ids.tolist()))
    labels = np.repeat(np.asarray(training.labels), fired.lengths)
    values = default.bottleneck.values.detach().numpy()  # (C, K, 2)
    for number, name in enumerate(("not_equivalent", "equivalent")):
        above = (values[..., number] - values.mean(-1)) / 16
        above[default.bottleneck.hits(fired.key_indices).numpy() < 3] = -np.inf
        strongest = np.sort(above.ravel())[::-1][:4]
        of_label = found[found["label"] == name]
        np.testing.assert_allclose(of_label["push"], strongest, rtol=1e-5)
        for one in of_label.itertuples():
            assert above[one.codebook, one.key] == pytest.approx(one.push)
            here = (key_indices[:, one.codebook] == one.key).numpy()
            assert one.times == here.sum() and one.share == pytest.approx((labels[here] == number).mean())
            counts = Counter(tokens[here].tolist()).most_common(3)
            assert one.tokens == ", ".join(f"{token} {count}" for token, count in counts)


def test_pushes_of_training_tokens_are_those_of_their_sentences(student, small):
    training = small[0]
    found = training_pushes(student, training, KeyIndexDataset(student, training))
    labels = [found.columns[-2].removeprefix("push_"), found.columns[-1].removeprefix("push_")]
    for row, tokens in list(found.groupby("row"))[:5]:
        assert set(tokens["label"]) == {labels[training.labels[row]]}
        here = training.inputs["input_ids"][row]
        whole = training.tokenizer.convert_ids_to_tokens(here) if len(tokens) > 1 else ["[sentence]"]
        assert tokens["token"].tolist() == whole
        # a text's pushes are the mean of those of its tokens
        inputs = training.collate([training[row]])
        with torch.inference_mode():
            logits = student.eval()(inputs["input_ids"], inputs["attention_mask"]).logits[0]
        pushes = torch.from_numpy(tokens[push_columns(found)].to_numpy().mean(0))
        torch.testing.assert_close(pushes, logits, atol=1e-4, rtol=1e-4)


# two sentences side by side, and many keys at once


def test_tokens_line_up_like_the_lines_of_a_diff(default, tokenizer):
    longer = explain(default, tokenizer, "the old nurse was helped")
    shorter = explain(default, tokenizer, "the nurse helped her")
    rows = align_tokens(longer, shorter).to_numpy().tolist()
    assert rows == [
        ["[CLS]", 0, 0],
        ["the", 1, 1],
        ["old", 2, -1],
        ["nurse", 3, 2],
        ["was", 4, -1],
        ["helped", 5, 3],
        ["her", -1, 4],
        ["[SEP]", 6, 5],
    ]


def test_keys_stand_beside_those_of_the_same_token(student, tokenizer):
    first, second = (
        explain(student, tokenizer, text) for text in ("the old nurse was helped", "the nurse helped")
    )
    found = align_keys(first, second)
    tokens = align_tokens(first, second)
    books = student.config.num_codebooks
    assert len(found) == books * ((tokens["position"] >= 0) & (tokens["position_other"] >= 0)).sum() > 0
    for frame, ending in ((first, ""), (second, "_other")):
        at = frame.set_index(["position", "codebook"])
        places = list(zip(found[f"position{ending}"], found["codebook"], strict=True))
        for column in ("token", "key", *push_columns(frame)):
            there = found["token" if column == "token" else f"{column}{ending}"]
            assert there.tolist() == at.loc[places, column].tolist()
    assert found["differs"].tolist() == (found["key"] != found["key_other"]).tolist()
    assert not align_keys(first, first)["differs"].any()


def test_keys_are_ranked_by_how_far_they_push_the_answer_ahead(student, tokenizer):
    frame = explain(student, tokenizer, FIRST, SECOND)
    logits = logits_of(student, tokenizer, FIRST, SECOND)
    answer, runner_up = logits.sort(descending=True).indices[:2].tolist()
    ranked = keys_by_lead(frame)
    assert ranked["tokens"].sum() == len(frame) and ranked["lead"].is_monotonic_decreasing
    assert not ranked.duplicated(["codebook", "key"]).any()
    pushes = push_columns(frame)
    for row in ranked.iloc[[0, -1]].itertuples():
        here = frame[(frame["codebook"] == row.codebook) & (frame["key"] == row.key)]
        assert row.tokens == len(here)
        assert row.lead == pytest.approx((here[pushes[answer]] - here[pushes[runner_up]]).sum(), abs=1e-6)


def test_many_keys_are_switched_off_as_one_after_another(student, tokenizer):
    frame = explain(student, tokenizer, FIRST, SECOND)
    keys = keys_by_lead(frame)
    one_by_one = frame
    for codebook, key in keys[["codebook", "key"]].head(7).to_numpy():
        one_by_one = edit(student, one_by_one, codebook, key, strength=0.0)
    pd.testing.assert_frame_equal(switch_off(frame, keys.head(7)), one_by_one)
    pd.testing.assert_frame_equal(switch_off(frame, keys.head(0)), frame)
    left = switch_off(frame, keys)
    assert left[push_columns(frame)].abs().to_numpy().max() == 0


# the widget, without a browser


def shown(explorer):
    """All that a reader sees beside the controls, without tags."""
    return html.unescape(re.sub(r"<[^>]*>", " ", " ".join(view.value for view in explorer._views)))


def signed(number):
    return f"{number:+.4f}".replace("-", "−")


def test_it_starts_with_the_courses_pair_and_opens_another(explorer, tokenizer, default, monkeypatch):
    assert (explorer.text.value, explorer.text_pair.value) == (FIRST, SECOND)
    pd.testing.assert_frame_equal(explorer.frame, explain(default, tokenizer, FIRST, SECOND))
    read = []
    monkeypatch.setattr("workbook.explorer.explain", lambda *given: read.append(given[2:]) or explain(*given))
    explorer.open(SECOND, FIRST)
    explorer.open(SECOND)
    assert read == [(SECOND, FIRST), (SECOND, None)]  # each once, not once a text
    assert (explorer.text.value, explorer.text_pair.value) == (SECOND, "")
    pd.testing.assert_frame_equal(explorer.frame, explain(default, tokenizer, SECOND))


def test_a_sentence_gives_an_answer_that_sums_up(explorer, tokenizer, default):
    explorer.open("nurse")
    explorer.text.value = FIRST
    explorer.text_pair.value = SECOND
    pd.testing.assert_frame_equal(explorer.frame, explain(default, tokenizer, FIRST, SECOND))
    assert "Checked: the pushes sum to the model's logits" in shown(explorer)
    for logit in logits_of(default, tokenizer, FIRST, SECOND).tolist():
        assert signed(logit) in shown(explorer)
    assert not any(control.disabled for control in explorer._controls)
    # the strongest push is chosen first
    strongest = explorer.frame[push_columns(explorer.frame)].abs().max(axis=1).idxmax()
    assert explorer.frame.loc[strongest, ["position", "codebook"]].tolist() == [
        explorer.token.value,
        explorer.codebook.value,
    ]


def test_keys_alone_start_with_a_pair_and_show_no_pushes(default, tokenizer, small, fired):
    explorer = Explorer(default, tokenizer, small[0], fired, keys_only=True)
    expected = explain(default, tokenizer, FIRST, SECOND)
    pd.testing.assert_frame_equal(explorer.frame, expected)
    assert "push" not in shown(explorer) and "logit" not in shown(explorer).lower()
    nurse = expected[(expected["token"] == "nurse") & (expected["codebook"] == 5)].iloc[0]
    explorer.token.value, explorer.codebook.value = nurse["position"], 5
    assert "Keys that nurse fired" in shown(explorer)
    assert f"Training sentences that fire key {nurse['key']} of codebook 5" in shown(explorer)
    explorer.text.value = ""
    assert "the text is empty" in shown(explorer)


def test_the_check_is_a_real_one(explorer, monkeypatch):
    def wrong(*arguments):
        frame = explain(*arguments)
        frame["push_equivalent"] += 0.01
        return frame

    monkeypatch.setattr("workbook.explorer.explain", wrong)
    explorer.open(FIRST)
    assert "DO NOT SUM" in shown(explorer)


def test_slider_and_menu_move_the_logits_and_a_new_choice_starts_afresh(explorer, default):
    explorer.open(FIRST)
    codebook, key = explorer.codebook.value, explorer._key
    explorer.strength.value = 0.0
    frame, off = explorer.frame, explorer.edited
    pd.testing.assert_frame_equal(off, edit(default, frame, codebook, key, 0.0))
    assert "switched off" in shown(explorer)
    after = compare_logits(frame, off)["after"]
    assert all(signed(logit) in shown(explorer) for logit in after)
    explorer.strength.value = 1.0
    explorer.value.value = -1
    pd.testing.assert_frame_equal(explorer.edited, off)
    assert explorer.strength.disabled
    other = next(value for _, value in explorer.value.options if value not in (-1, key))
    explorer.value.value = other
    pd.testing.assert_frame_equal(explorer.edited, edit(default, frame, codebook, key, value_of=other))
    assert f"replaced by that of key {other}" in shown(explorer) and not explorer.strength.disabled
    token = 2 if explorer.token.value != 2 else 3
    explorer.token.value = token
    here = frame[(frame["position"] == token) & (frame["codebook"] == codebook)].iloc[0]
    assert explorer.codebook.value == codebook and explorer._key == here["key"] == explorer.value.value
    assert compare_logits(frame, explorer.edited)["change"].abs().max() < 1e-6
    explorer.codebook.value = 7
    assert "of codebook 7 as it is" in shown(explorer) and explorer.strength.value == 1.0


def test_the_menu_offers_own_none_those_that_fire_and_the_strongest(explorer, default):
    explorer.text.value = FIRST
    fired = explorer.frame[explorer.frame["codebook"] == explorer.codebook.value]
    values = [value for _, value in explorer.value.options]
    assert values[:2] == [explorer._key, -1] and len(set(values)) == len(values)
    strongest = set(strongest_keys(default, explorer.codebook.value)["key"])
    assert set(values) == set(fired["key"]) | {-1} | strongest


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_text_is_a_message_not_a_traceback(explorer, text):
    explorer.text.value = FIRST
    explorer.text.value = text
    assert 'role="alert"' in explorer._says.value
    assert shown(explorer).strip() == "the text is empty: type a sentence"
    assert explorer.frame is None and all(control.disabled for control in explorer._controls)
    explorer.text.value = FIRST
    assert "Checked" in shown(explorer)


def test_a_long_text_is_cut_and_says_so(default, short, small, fired):
    explorer = Explorer(default, short, small[0], fired)
    explorer.open("nurse " * 60)
    assert "The text has 62 tokens; the model reads 24" in shown(explorer)
    assert len(explorer.token.options) == 24
    # the key that most of the same words fire
    codebook, key = explorer.frame.groupby(["codebook", "key"]).size().idxmax()
    fired_here = explorer.frame[(explorer.frame["codebook"] == codebook) & (explorer.frame["key"] == key)]
    explorer.token.value, explorer.codebook.value = fired_here["position"].iloc[1], codebook
    assert re.search(rf"\(fired by tokens( \d+ \S+,?){{8}} and {len(fired_here) - 8} more\)", shown(explorer))
    explorer.text.value = "nurse"
    assert "cut off" not in shown(explorer)


def test_what_was_typed_cannot_become_html(explorer):
    explorer.text.value = '<b>bold</b> <script>alert(1)</script> & "quoted" <img src=x onerror=alert(1)>'
    drawn = "".join(view.value for view in explorer._views)
    assert "&lt;" in drawn
    assert not re.search(r"<(?!/?(div|table|caption|thead|tbody|tfoot|tr|th|td|span|i|p|br)\b)", drawn)
    assert "<script>" in html_table(pd.DataFrame({"a": [1]}), "x").replace("x", "<script>")  # the test can fail
    table = html_table(pd.DataFrame({"<i>": ["<u>"], "push_<a>": [1.0]}), "<b>", bars=["push_<a>"], sums=True)
    assert not re.search(r"<(b|u|a)>|<i>", table)


def test_a_table_is_read_without_colour_or_eyes():
    frame = pd.DataFrame({"token": ["a", "b"], "distance": [1.5, np.nan], "push_yes": [0.25, -0.5]})
    table = html_table(frame, "what it shows", bars=["push_yes"], chosen=[False, True], sums=True)
    assert ">what it shows</caption>" in table
    assert table.count('scope="col"') == 3 and table.count('scope="row"') == 3  # two tokens and the sum
    assert "+0.2500" in table and "−0.5000" in table and "−0.2500" in table  # signs, and the sum
    bars = re.findall(r'class="(kv-\w+)" style="width: ([\d.]+)%', table)
    assert bars == [("kv-plus", "25.0"), ("kv-minus", "50.0"), ("kv-minus", "0.0")]  # no bar for the sum
    assert "none" in table and table.count('aria-current="true"') == 1
    zeros = html_table(frame.assign(push_yes=-0.0), "x", bars=["push_yes"])
    assert "width: 0.0%" in zeros and "nan" not in zeros and not re.search(r"[+−]0\.0000", zeros)


def test_every_control_has_a_label(explorer):
    controls, queue = [], [explorer.view]
    while queue:
        widget = queue.pop()
        queue += getattr(widget, "children", ())
        assert not isinstance(widget, ipywidgets.Output)
        if not isinstance(widget, (ipywidgets.Box, ipywidgets.HTML)):
            controls.append(widget)
    assert len(controls) == 6 and len({control.description for control in controls}) == 6
    assert all(control.description for control in controls)


def test_without_training_sentences_and_with_other_shapes(student, tokenizer):
    explorer = Explorer(student, tokenizer)
    explorer.text.value = FIRST
    assert "Checked: the pushes sum" in shown(explorer) and explorer._similar.value == ""
    explorer.value.value = -1
    assert "switched off" in shown(explorer)


def test_untrained_values_show_keys_and_push_nothing(default, tokenizer):
    untrained = copy.deepcopy(default)
    untrained.bottleneck.values.data.zero_()
    explorer = Explorer(untrained, tokenizer)
    explorer.text.value = FIRST
    explorer.strength.value = 2.0
    assert (explorer.edited[push_columns(explorer.edited)] == 0).all(axis=None)
    assert "nan" not in shown(explorer)


def test_a_model_without_bottleneck_is_refused(pretrained, tokenizer):
    for model in (pretrained, DistilBERTwithBottleNeck.from_teacher(pretrained)):
        with pytest.raises(ValueError, match="no bottleneck"):
            Explorer(model, tokenizer)


def test_its_text_for_notebooks_is_the_same_every_time(default, tokenizer, explorer):
    explorer.open(FIRST)
    bundles = [found._repr_mimebundle_() for found in (explorer, Explorer(default, tokenizer))]
    texts = {bundle["text/plain"] for bundle in bundles}
    assert texts == {repr(explorer)} and not re.search(r"\d", repr(explorer))
    assert all("application/vnd.jupyter.widget-view+json" in bundle for bundle in bundles)
