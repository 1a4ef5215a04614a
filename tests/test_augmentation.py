from collections import Counter

import numpy as np
import pytest

from kvlib import load_glue
from kvlib.augmentation import FreshTextDataset, changed_copy


@pytest.fixture(scope="module")
def rows(mrpc):
    return mrpc["train"].select(range(300))


def test_a_seventh_of_the_words_is_exchanged_for_one_of_the_splits(rows):
    copy = changed_copy(rows, "mrpc")
    # first sentences stay where they are, only their words change
    before, after = ([text.split() for text in split["sentence1"][:]] for split in (rows, copy))
    assert [len(text) for text in after] == [len(text) for text in before]
    pairs = [pair for texts in zip(before, after, strict=True) for pair in zip(*texts, strict=True)]
    changed = np.mean([old != new for old, new in pairs])
    # some words are exchanged for the same one; three standard deviations of a share of 1 / 7
    assert 1 / 7 - 0.03 - 3 * (1 / 7 / len(pairs)) ** 0.5 < changed < 1 / 7 + 3 * (1 / 7 / len(pairs)) ** 0.5
    known = Counter(" ".join(rows["sentence1"][:] + rows["sentence2"][:]).split())
    assert {new for _, new in pairs} <= known.keys()
    assert copy.features == rows.features
    assert set(copy["label"][:]) == {-1}
    assert copy["idx"][:] == rows["idx"][:]


def test_half_of_the_pairs_are_paired_anew_and_no_text_is_lost(rows):
    before, after = (
        [len(text.split()) for text in split["sentence2"][:]] for split in (rows, changed_copy(rows, "mrpc"))
    )
    assert sorted(before) == sorted(after)
    # of the half that moves, some get a sentence as long
    assert 0.3 < np.mean(np.array(before) != np.array(after)) < 0.55


def test_single_texts_are_never_paired(mrpc):
    rows = load_glue("sst2")["train"].select(range(50))
    lengths = [
        [len(text.split()) for text in split["sentence"][:]] for split in (rows, changed_copy(rows, "sst2"))
    ]
    assert lengths[0] == lengths[1]


def test_each_epoch_has_the_rows_and_another_copy_of_them(rows, tokenizer):
    train = FreshTextDataset(rows, tokenizer, "mrpc", seed=3)
    first = train.inputs["input_ids"]
    assert len(train) == len(train.lengths) == 600
    assert set(train.labels) == {-1}
    train.set_epoch(1)
    second = train.inputs["input_ids"]
    assert (
        first[:300]
        == second[:300]
        == [list(ids) for ids in tokenizer(rows["sentence1"][:], rows["sentence2"][:])["input_ids"]]
    )
    assert np.mean([one != other for one, other in zip(first[300:], second[300:], strict=True)]) > 0.95
    train.set_epoch(0)
    assert train.inputs["input_ids"] == first
    # another seed's first epoch, and not this one's second
    other = FreshTextDataset(rows, tokenizer, "mrpc", seed=4).inputs["input_ids"]
    assert other[300:] not in (first[300:], second[300:])


def test_a_regression_hides_its_scores_too(tokenizer):
    rows = load_glue("stsb")["train"].select(range(20))
    assert set(FreshTextDataset(rows, tokenizer, "stsb").labels) == {-1.0}
