"""Exercises of chapter 01: the data."""

from collections import Counter
from typing import Any

import numpy as np
import torch

from workbook.checking import Answer, Exercise, expect, expect_number, show

FLOOR = Exercise("1.1", "The floor on new rows", difficulty=1, minutes=5)


@FLOOR.probe("gives a share from 0 to 1", hint="divide the number of right answers by the number of new rows")
def share(answer: Answer) -> None:
    floor = expect_number(answer(np.repeat([0, 1], [35, 15]), np.repeat([0, 1], [4, 6])))
    expect(0 <= floor <= 1, show(floor))


@FLOOR.probe(
    "chooses the class by the training labels",
    hint="a model knows no new label when it answers: count `train_labels` to find the constant answer",
)
def chosen_in_training(answer: Answer) -> None:
    floor = expect_number(answer(np.repeat([0, 1], [35, 15]), np.repeat([0, 1], [4, 6])))
    expect(abs(floor - 0.6) > 1e-9, "0.6 instead of 0.4: the class most frequent among the new rows")


@FLOOR.probe(
    "is measured on the new labels",
    hint="the training rows only choose the answer; count how many of `labels` are equal to it",
)
def measured_on_new(answer: Answer) -> None:
    floor = expect_number(answer(np.repeat([0, 1], [35, 15]), np.repeat([0, 1], [4, 6])))
    expect(abs(floor - 0.7) > 1e-9, "0.7 instead of 0.4: the share of the class among the training rows")


@FLOOR.probe(
    "is right for three classes",
    hint="a mean of class numbers is no class: count how often each number occurs, as np.bincount does",
)
def three_classes(answer: Answer) -> None:
    train_labels, labels = np.repeat([0, 1, 2], [40, 5, 35]), np.repeat([0, 1, 2], [3, 5, 2])
    for renamed in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        number = np.array(renamed)
        floor = expect_number(answer(number[train_labels], number[labels]))
        expect(abs(floor - 0.3) < 1e-6, f"{show(floor)} instead of 0.3, with class {renamed[0]} the most frequent")


@FLOOR.probe(
    "gives a tie to the smallest number",
    hint="Counter.most_common takes the class that came first; argmax over the counts takes the smallest number",
)
def tie(answer: Answer) -> None:
    floor = expect_number(answer(np.array([2, 2, 0, 0, 1]), np.array([0, 2, 2, 1])))
    expect(abs(floor - 0.25) < 1e-6, f"{show(floor)} instead of 0.25, with classes 0 and 2 in equal numbers")


HOLD_OUT = Exercise("1.2", "A split that keeps duplicates together", difficulty=3, minutes=20)


def _sentences(seed: int, count: int) -> list[str]:
    """Return `count` sentences, all different."""
    generator = np.random.default_rng(seed)
    nouns = ("baker", "nurse", "pilot", "teacher", "vet")
    verbs = ("drew", "found", "lost", "praised", "sold")
    numbers = generator.permutation(1000)[:count]
    return [f"The {nouns[n % 5]} {verbs[n // 5 % 5]} {n} maps." for n in numbers]


def _pairs(seed: int, rows: int = 400) -> tuple[list[str], np.ndarray]:
    """Return texts that all stand there twice, mixed, and their labels: 15 % are of class 1."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(rows)
    texts, labels = np.repeat(_sentences(seed, rows // 2), 2), np.repeat([0, 1], [rows * 17 // 20, rows * 3 // 20])
    return texts[order].tolist(), labels[order]


def _parts(returned: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the two arrays of row numbers, or raise `Mistake`."""
    expect(isinstance(returned, (tuple, list)), f"{type(returned).__name__} instead of two arrays")
    expect(len(returned) == 2, f"{len(returned)} parts instead of two")
    for part in returned:
        array = np.asarray(part)
        expect(array.ndim == 1, f"shape {array.shape} instead of one dimension")
        expect(array.dtype.kind in "iu" or not array.size, f"{array.dtype} instead of integers")
    train_rows, held_out_rows = (np.asarray(part).astype(int) for part in returned)
    return train_rows, held_out_rows


def _expect_apart(parts: tuple[np.ndarray, np.ndarray], texts: list[str]) -> None:
    left, right = ({texts[row].strip().lower(): row for row in part} for part in parts)
    both = sorted(left.keys() & right.keys())
    if both:
        one, other = texts[left[both[0]]], texts[right[both[0]]]
        expect(False, f"{len(both)} texts on both sides, such as {one!r} and {other!r}")


def _expect_shares(
    held_out_rows: np.ndarray, labels: np.ndarray, fraction: float, seed: int, tolerance: float
) -> None:
    for label in (0, 1):
        found = np.sum(labels[held_out_rows] == label) / np.sum(labels == label)
        saw = f"{found:.3f} of class {label}'s rows held out instead of {fraction} (seed {seed})"
        expect(abs(found - fraction) <= tolerance, saw)


@HOLD_OUT.probe(
    "gives two arrays of row numbers",
    hint="return the positions of the rows as integers, not the rows themselves and not a mask of booleans",
)
def two_arrays(answer: Answer) -> None:
    train_rows, held_out_rows = _parts(answer(*_pairs(1, 80), 0.25, 0))
    for part in (train_rows, held_out_rows):
        expect(part.size > 0, "an empty part")
        expect(part.min() >= 0 and part.max() < 80, f"rows {part.min()} to {part.max()} of 80")


@HOLD_OUT.probe(
    "puts every row into one part",
    hint="a duplicate is still a row: map each text to the list of all its rows, and hold out whole lists",
)
def every_row_once(answer: Answer) -> None:
    counts = np.bincount(np.concatenate(_parts(answer(*_pairs(2), 0.25, 0))), minlength=400)
    saw = f"of 400 rows {np.sum(counts == 0)} in no part, {np.sum(counts > 1)} more than once"
    expect((counts == 1).all(), saw)


@HOLD_OUT.probe(
    "keeps equal texts on one side",
    hint="a split of rows separates duplicates: group the rows by their text first, then hold out groups",
)
def duplicates_together(answer: Answer) -> None:
    texts, labels = _pairs(3)
    _expect_apart(_parts(answer(texts, labels, 0.25, 0)), texts)


@HOLD_OUT.probe(
    "takes texts for equal whatever their case and outer spaces",
    hint="group by text.strip().lower(): the tokenizer makes the same ids of both",
)
def normalised(answer: Answer) -> None:
    texts, labels = _pairs(4)
    changed = [(text, text.upper(), f" {text}")[row % 3] for row, text in enumerate(texts)]
    _expect_apart(_parts(answer(changed, labels, 0.25, 0)), changed)


@HOLD_OUT.probe(
    "keeps a text together whose rows disagree in their label",
    hint="form the groups over all rows, not class by class: annotators disagree, and the text is still the same",
)
def contradictory(answer: Answer) -> None:
    texts, labels = _pairs(5)
    labels = np.random.default_rng(5).permutation(labels)
    _expect_apart(_parts(answer(texts, labels, 0.25, 0)), texts)


@HOLD_OUT.probe(
    "holds out the fraction of every class",
    hint="chance alone gives a rare class too much or too little: count for each class how many rows may still go",
)
def stratified(answer: Answer) -> None:
    texts, labels = _pairs(6)
    for seed in range(6):
        _, held_out_rows = _parts(answer(texts, labels, 0.25, seed))
        _expect_shares(held_out_rows, labels, 0.25, seed, 0.03)


@HOLD_OUT.probe(
    "holds out a fraction of the rows, not of the texts",
    hint="one text may stand there a hundred times: count its rows, and pass it over where they are too many",
)
def rows_not_texts(answer: Answer) -> None:
    generator = np.random.default_rng(7)
    single = _sentences(7, 220)
    texts = single + ["No comment."] * 80
    labels = np.repeat([0, 1, 0], [120, 100, 80])
    order = generator.permutation(300)
    texts, labels = [texts[row] for row in order], labels[order]
    for seed in range(3):
        _, held_out_rows = _parts(answer(texts, labels, 0.2, seed))
        _expect_shares(held_out_rows, labels, 0.2, seed, 0.03)


@HOLD_OUT.probe(
    "repeats itself for the same seed",
    hint="draw everything from np.random.default_rng(seed); a global generator goes on where it stopped",
)
def repeats(answer: Answer) -> None:
    first, second = (_parts(answer(*_pairs(8), 0.25, 3))[1] for _ in range(2))
    new = len(set(second) - set(first))
    expect(new == 0, f"the second call holds out {new} rows that the first did not")


@HOLD_OUT.probe(
    "holds out other rows for another seed",
    hint="go through the groups in an order that `seed` draws, not in that of the table",
)
def seeded(answer: Answer) -> None:
    first, second = (_parts(answer(*_pairs(9), 0.25, seed))[1] for seed in (0, 1))
    new = len(set(second) - set(first))
    expect(new > 20, f"of {len(second)} rows held out with seed 1, {new} are not held out with seed 0")


COLLATE = Exercise("1.3", "A batch no wider than it must be", difficulty=2, minutes=10)


def _token_rows(seed: int, lengths: list[int]) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(100, 30_000, length).tolist() for length in lengths]


def _batch(answer: Answer, rows: list[list[int]], pad_id: int, multiple: int = 1) -> list[torch.Tensor]:
    """Return ids and mask, both (B, T) and wide enough for the longest row, or raise `Mistake`."""
    batch = answer(rows, pad_id, multiple)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    longest = max(map(len, rows))
    for name, tensor in batch.items():
        shape = tuple(tensor.shape)
        good = len(shape) == 2 and shape[0] == len(rows) and shape[1] >= longest
        expect(good, f"{name} has shape {shape} for {len(rows)} rows, the longest of {longest} tokens")
    expect(ids.shape == mask.shape, f"input_ids {tuple(ids.shape)}, attention_mask {tuple(mask.shape)}")
    return [ids, mask]


@COLLATE.probe(
    "gives input_ids and attention_mask",
    hint='return a dict of two tensors: {"input_ids": ..., "attention_mask": ...}',
)
def two_tensors(answer: Answer) -> None:
    batch = answer(_token_rows(1, [4, 6]), 0, 1)
    expect(isinstance(batch, dict), f"{type(batch).__name__} instead of a dict")
    expect(set(batch) == {"input_ids", "attention_mask"}, f"keys {', '.join(map(str, batch)) or 'none'}")
    for name, value in batch.items():
        expect(isinstance(value, torch.Tensor), f"{name} is {type(value).__name__} instead of a tensor")


@COLLATE.probe(
    "holds 64-bit integers",
    hint="torch.zeros gives float32 and a comparison booleans: pass dtype=torch.long, or convert with .long()",
)
def integers(answer: Answer) -> None:
    for name, tensor in answer(_token_rows(2, [4, 6]), 0, 1).items():
        expect(tensor.dtype == torch.int64, f"{name} is {tensor.dtype}")


@COLLATE.probe("cuts no token", hint="T is the length of the longest row of the batch, wherever that row stands")
def cuts_nothing(answer: Answer) -> None:
    _batch(answer, _token_rows(3, [5, 9, 3]), 0)


@COLLATE.probe(
    "is no wider than its longest row",
    hint="a width fixed in advance makes most positions padding: take the maximum over this batch",
)
def no_wider(answer: Answer) -> None:
    ids, _ = _batch(answer, _token_rows(4, [5, 11, 7]), 0)
    expect(ids.shape[1] == 11, f"T = {ids.shape[1]}, the longest row has 11 tokens, multiple is 1")


@COLLATE.probe(
    "rounds T up to a multiple",
    hint="-(-longest // multiple) * multiple rounds up, and leaves a length alone that is a multiple already",
)
def multiples(answer: Answer) -> None:
    for longest, expected in ((13, 16), (16, 16)):
        ids, _ = _batch(answer, _token_rows(5, [4, longest]), 0, 8)
        saw = f"T = {ids.shape[1]} instead of {expected}: the longest row has {longest} tokens, multiple is 8"
        expect(ids.shape[1] == expected, saw)


@COLLATE.probe("puts the tokens first", hint="padding goes to the right: row + [pad_id] * (T - len(row))")
def tokens_first(answer: Answer) -> None:
    rows = _token_rows(6, [3, 6])
    ids, _ = _batch(answer, rows, 0)
    for row, tensor in zip(rows, ids.tolist(), strict=True):
        expect(tensor[: len(row)] == row, f"{show(tensor)} for the tokens {show(row)}")


@COLLATE.probe("fills up with pad_id", hint="not every tokenizer pads with 0: fill with the number you were given")
def filling(answer: Answer) -> None:
    rows = _token_rows(7, [3, 6])
    ids, _ = _batch(answer, rows, 77)
    expect((ids[0, 3:] == 77).all(), f"{show(ids[0, 3:])} after the last token, pad_id is 77")


@COLLATE.probe("marks tokens with 1 and padding with 0", hint="[1] * len(row) + [0] * (T - len(row))")
def marks(answer: Answer) -> None:
    _, mask = _batch(answer, _token_rows(8, [3, 6]), 0)
    expected = [1, 1, 1, 0, 0, 0]
    expect(mask[0].tolist() == expected, f"{show(mask[0])} instead of {expected} for a row of 3 tokens")
    expect(mask[1].tolist() == [1] * 6, f"{show(mask[1])} for the longest row")


@COLLATE.probe(
    "tells a token from padding even where the ids are equal",
    hint="ids != pad_id drops real tokens of that id, and some tokenizers pad with one: go by the row's length",
)
def by_position(answer: Answer) -> None:
    _, mask = _batch(answer, [[5, 9, 5], [8, 9, 4, 5]], 5)
    expect(mask[0].tolist() == [1, 1, 1, 0], f"{show(mask[0])} for the tokens [5, 9, 5], pad_id is 5")
    expect(mask[1].tolist() == [1, 1, 1, 1], f"{show(mask[1])} for the tokens [8, 9, 4, 5], pad_id is 5")


BATCHES = Exercise("1.4", "Similar lengths, different batches each epoch", difficulty=2, minutes=15)


def _lengths(seed: int, rows: int) -> np.ndarray:
    """Return lengths as GLUE has them: most rows short, a few long."""
    return 4 + np.random.default_rng(seed).gamma(2.0, 8.0, rows).astype(int)


def _batches(answer: Answer, lengths: np.ndarray, batch_size: int, seed: int) -> list[list[int]]:
    """Return the batches as lists of row numbers, or raise `Mistake`."""
    batches = answer(lengths, batch_size, seed)
    expect(isinstance(batches, (list, tuple)), f"{type(batches).__name__} instead of a list of batches")
    expect(len(batches) > 0, "an empty list")
    for batch in batches:
        array = np.asarray(batch)
        expect(array.ndim == 1, f"{show(batch)} instead of a list of row numbers")
        expect(array.dtype.kind in "iu", f"{show(batch)}: {array.dtype} instead of integers")
        good = array.min(initial=0) >= 0 and array.max(initial=0) < len(lengths)
        expect(good, f"{show(batch)} as numbers of {len(lengths)} rows")
    return [np.asarray(batch).tolist() for batch in batches]


def _padding(lengths: np.ndarray, batches: list[list[int]]) -> int:
    return sum(len(batch) * lengths[batch].max() - lengths[batch].sum() for batch in batches if batch)


@BATCHES.probe(
    "gives a list of batches of row numbers", hint="return row numbers, not lengths: [[12, 7, 40], ...]"
)
def lists_of_rows(answer: Answer) -> None:
    _batches(answer, 1000 + _lengths(1, 800), 8, 0)  # longer than there are rows, so that no length is a row


@BATCHES.probe(
    "uses every row once", hint="the rows after the last full batch are rows too: make a smaller batch of them"
)
def covers(answer: Answer) -> None:
    batches = _batches(answer, _lengths(2, 803), 8, 0)
    counts = np.bincount([row for batch in batches for row in batch], minlength=803)
    saw = f"of 803 rows {np.sum(counts == 0)} in no batch, {np.sum(counts > 1)} in more than one"
    expect((counts == 1).all(), saw)


@BATCHES.probe(
    "fills all batches but one",
    hint="cut after every batch_size rows; a window or bucket that is cut by itself leaves a rest of its own",
)
def full(answer: Answer) -> None:
    sizes = Counter(len(batch) for batch in _batches(answer, _lengths(3, 1003), 8, 0))
    odd = sorted(size for size, times in sizes.items() for _ in range(times) if size != 8)
    expect(len(odd) <= 1 and max(sizes) == 8, f"{len(odd)} batches of other sizes than 8: {show(odd)}")


@BATCHES.probe(
    "pads at most a third of what random batches pad",
    hint="rows of like length belong together: sort by length before you cut, at least within long windows",
)
def little_padding(answer: Answer) -> None:
    for rows, batch_size in ((1040, 8), (800, 16)):
        lengths = _lengths(rows, rows)
        found = _padding(lengths, _batches(answer, lengths, batch_size, 0))
        order = np.random.default_rng(0).permutation(rows).tolist()
        chance = _padding(lengths, [order[start : start + batch_size] for start in range(0, rows, batch_size)])
        saw = f"{found} positions of padding, {chance} in random batches ({rows} rows in batches of {batch_size})"
        expect(found <= chance / 3, saw)


@BATCHES.probe(
    "repeats itself for the same seed",
    hint="draw everything from np.random.default_rng(seed); a global generator goes on where it stopped",
)
def batches_repeat(answer: Answer) -> None:
    first, second = (_batches(answer, _lengths(5, 800), 8, 3) for _ in range(2))
    differing = sum(one != other for one, other in zip(first, second, strict=True))
    expect(differing == 0, f"{differing} of {len(first)} batches differ between two calls")


@BATCHES.probe(
    "brings other rows together for another seed",
    hint="after one sort of all rows the neighbours are always the same: shuffle, then sort within windows "
    "much shorter than the table",
)
def other_companions(answer: Answer) -> None:
    lengths = 5 + np.random.default_rng(6).permutation(1040)
    first, second = (_batches(answer, lengths, 8, seed) for seed in (0, 1))
    place = {row: number for number, batch in enumerate(second) for row in batch}
    together = [place[one] == place[other] for batch in first for one in batch for other in batch if one < other]
    saw = f"{np.mean(together):.0%} of the pairs that share a batch with seed 0 share one with seed 1, too"
    expect(np.mean(together) < 0.75, saw)


@BATCHES.probe(
    "lets short and long batches follow in no order",
    hint="shuffle the list of batches at the end, or the learning rate meets all short rows first",
)
def no_order(answer: Answer) -> None:
    lengths = _lengths(7, 1040)
    means = np.array([lengths[batch].mean() for batch in _batches(answer, lengths, 8, 0)])
    step, chance = np.abs(np.diff(means)).mean(), np.abs(means[:, None] - means).mean()
    saw = f"mean length changes by {step:.3g} from batch to batch, by {chance:.3g} between any two"
    expect(step > 0.6 * chance, saw)
