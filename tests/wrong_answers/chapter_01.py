from collections import Counter

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from wrong_answers import wrong

# 1.1 the floor


@wrong("1.1", "counts right answers", "gives a share from 0 to 1", "divide the number of right answers")
def right_answers(train_labels, labels):
    return np.sum(labels == np.bincount(train_labels).argmax())


@wrong("1.1", "looks at the new labels", "chooses the class by the training labels", "count `train_labels`")
def oracle(train_labels, labels):
    return np.bincount(labels).max() / len(labels)


@wrong("1.1", "scores the training rows", "is measured on the new labels", "how many of `labels`")
def training_share(train_labels, labels):
    return np.bincount(train_labels).max() / len(train_labels)


@wrong("1.1", "rounds the mean", "is right for three classes", "a mean of class numbers is no class")
def rounded_mean(train_labels, labels):
    return np.mean(labels == round(train_labels.mean()))


@wrong("1.1", "first of a tie", "gives a tie to the smallest number", "argmax over the counts")
def most_common(train_labels, labels):
    return np.mean(labels == Counter(train_labels.tolist()).most_common(1)[0][0])


# 1.2 the hold-out


def by_groups(keys, labels, fraction, seed, shuffled=True, stratified=True):
    groups = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    groups = list(groups.values())
    if not stratified:
        labels = np.zeros_like(labels)
    room = {label: round(fraction * np.sum(labels == label)) for label in np.unique(labels).tolist()}
    order = np.random.default_rng(seed).permutation(len(groups)) if shuffled else range(len(groups))
    held_out = []
    for number in order:
        taken = Counter(labels[groups[number]].tolist())
        if all(taken[label] <= room[label] for label in taken):
            held_out += groups[number]
            for label in taken:
                room[label] -= taken[label]
    return np.setdiff1d(np.arange(len(labels)), held_out), np.array(held_out)


def normal(texts):
    return [text.strip().lower() for text in texts]


@wrong("1.2", "returns masks", "gives two arrays of row numbers", "not a mask of booleans")
def masks(texts, labels, fraction, seed):
    _, held_out = by_groups(normal(texts), labels, fraction, seed)
    mask = np.isin(np.arange(len(labels)), held_out)
    return ~mask, mask


@wrong("1.2", "drops duplicates", "puts every row into one part", "whole lists")
def dropped(texts, labels, fraction, seed):
    first = [row for row, text in enumerate(normal(texts)) if text not in normal(texts)[:row]]
    return train_test_split(first, test_size=fraction, random_state=seed, stratify=labels[first])


@wrong("1.2", "splits rows", "keeps equal texts on one side", "group the rows by their text")
def rows_split(texts, labels, fraction, seed):
    return train_test_split(np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=labels)


@wrong(
    "1.2",
    "compares texts as they are",
    "takes texts for equal whatever their case and outer spaces",
    "text.strip().lower()",
)
def as_they_are(texts, labels, fraction, seed):
    return by_groups(texts, labels, fraction, seed)


@wrong(
    "1.2",
    "groups class by class",
    "keeps a text together whose rows disagree in their label",
    "over all rows, not class by class",
)
def class_by_class(texts, labels, fraction, seed):
    return by_groups(list(zip(normal(texts), labels.tolist(), strict=True)), labels, fraction, seed)


@wrong("1.2", "forgets the classes", "holds out the fraction of every class", "for each class how many rows")
def not_stratified(texts, labels, fraction, seed):
    return by_groups(normal(texts), labels, fraction, seed, stratified=False)


@wrong("1.2", "counts texts", "holds out a fraction of the rows, not of the texts", "count its rows")
def texts_counted(texts, labels, fraction, seed):
    texts = normal(texts)
    distinct = list(dict.fromkeys(texts))
    classes = [labels[texts.index(text)] for text in distinct]
    try:
        _, chosen = train_test_split(distinct, test_size=fraction, random_state=seed, stratify=classes)
    except ValueError:
        _, chosen = train_test_split(distinct, test_size=fraction, random_state=seed)
    mask = np.isin(texts, chosen)
    return np.flatnonzero(~mask), np.flatnonzero(mask)


@wrong("1.2", "uses the global generator", "repeats itself for the same seed", "np.random.default_rng(seed)")
def unseeded(texts, labels, fraction, seed):
    return by_groups(normal(texts), labels, fraction, np.random.randint(1_000_000))


@wrong("1.2", "takes the first groups", "holds out other rows for another seed", "not in that of the table")
def in_order(texts, labels, fraction, seed):
    return by_groups(normal(texts), labels, fraction, seed, shuffled=False)


# 1.3 the batch


def padded(rows, pad_id, width, mask=None):
    ids = torch.tensor([(row + [pad_id] * width)[:width] for row in rows])
    if mask is None:
        mask = torch.tensor([([1] * len(row) + [0] * width)[:width] for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def up(rows, multiple):
    return -(-max(map(len, rows)) // multiple) * multiple


@wrong("1.3", "returns a pair", "gives input_ids and attention_mask", "a dict of two tensors")
def pair(rows, pad_id, multiple=1):
    return tuple(padded(rows, pad_id, up(rows, multiple)).values())


@wrong("1.3", "float mask", "holds 64-bit integers", "dtype=torch.long")
def float_mask(rows, pad_id, multiple=1):
    mask = torch.zeros(len(rows), up(rows, multiple))
    for number, row in enumerate(rows):
        mask[number, : len(row)] = 1
    return padded(rows, pad_id, up(rows, multiple), mask)


@wrong("1.3", "boolean mask", "holds 64-bit integers", "dtype=torch.long")
def boolean_mask(rows, pad_id, multiple=1):
    width = up(rows, multiple)
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows]).unsqueeze(1)
    return padded(rows, pad_id, width, mask)


@wrong("1.3", "as long as the first row", "cuts no token", "wherever that row stands")
def first_row(rows, pad_id, multiple=1):
    return padded(rows, pad_id, up(rows[:1], multiple))


@wrong("1.3", "always 128 wide", "is no wider than its longest row", "a width fixed in advance")
def fixed_width(rows, pad_id, multiple=1):
    return padded(rows, pad_id, 128)


@wrong("1.3", "ignores the multiple", "rounds T up to a multiple", "rounds up")
def no_multiple(rows, pad_id, multiple=1):
    return padded(rows, pad_id, up(rows, 1))


@wrong("1.3", "always one multiple more", "rounds T up to a multiple", "a multiple already")
def one_more(rows, pad_id, multiple=1):
    longest = max(map(len, rows))
    return padded(rows, pad_id, longest if multiple == 1 else (longest // multiple + 1) * multiple)


@wrong("1.3", "pads on the left", "puts the tokens first", "padding goes to the right")
def on_the_left(rows, pad_id, multiple=1):
    width = up(rows, multiple)
    ids = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@wrong("1.3", "fills with 0", "fills up with pad_id", "the number you were given")
def zeros(rows, pad_id, multiple=1):
    return padded(rows, 0, up(rows, multiple))


@wrong("1.3", "marks the padding", "marks tokens with 1 and padding with 0", "[1] * len(row)")
def inverted(rows, pad_id, multiple=1):
    batch = padded(rows, pad_id, up(rows, multiple))
    return batch | {"attention_mask": 1 - batch["attention_mask"]}


@wrong("1.3", "marks by id", "tells a token from padding even where the ids are equal", "go by the row's length")
def by_id(rows, pad_id, multiple=1):
    batch = padded(rows, pad_id, up(rows, multiple))
    return batch | {"attention_mask": (batch["input_ids"] != pad_id).long()}


@wrong("1.3", "lengthens the caller's lists", "leaves its inputs as they were", "change the caller's data")
def lengthened(rows, pad_id, multiple=1):
    mask = [[1] * len(row) + [0] * (up(rows, multiple) - len(row)) for row in rows]
    for row, ones in zip(rows, mask, strict=True):
        row += [pad_id] * (len(ones) - len(row))
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


# 1.4 batches of like length


def windows_of(lengths, batch_size, seed, window):
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lengths))
    order = np.concatenate(
        [
            part[np.argsort(lengths[part], kind="stable")]
            for part in np.split(order, range(window, len(order), window))
        ]
    )
    return generator, [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]


@wrong("1.4", "returns lengths", "gives a list of batches of row numbers", "return row numbers")
def lengths_themselves(lengths, batch_size, seed):
    _, batches = windows_of(lengths, batch_size, seed, 20 * batch_size)
    return [lengths[batch].tolist() for batch in batches]


@wrong("1.4", "drops the rest", "uses every row once", "make a smaller batch")
def rest_dropped(lengths, batch_size, seed):
    _, batches = windows_of(lengths, batch_size, seed, 20 * batch_size)
    return [batch for batch in batches if len(batch) == batch_size]


@wrong("1.4", "cuts buckets one by one", "fills all batches but one", "leaves a rest")
def buckets(lengths, batch_size, seed):
    order = np.random.default_rng(seed).permutation(len(lengths))
    parts = [order[lengths[order] // 8 == bucket] for bucket in range(lengths.max() // 8 + 1)]
    return [part[at : at + batch_size].tolist() for part in parts for at in range(0, len(part), batch_size)]


@wrong("1.4", "splits evenly", "fills all batches but one", "after every batch_size rows")
def evenly(lengths, batch_size, seed):
    return [part.tolist() for part in np.array_split(np.argsort(lengths), len(lengths) // batch_size + 1)]


@wrong("1.4", "only shuffles", "pads at most a third of what random batches pad", "sort by length before you cut")
def shuffled_only(lengths, batch_size, seed):
    return windows_of(lengths, batch_size, seed, 1)[1]


@wrong("1.4", "uses the global generator", "repeats itself for the same seed", "np.random.default_rng(seed)")
def global_state(lengths, batch_size, seed):
    generator, batches = windows_of(lengths, batch_size, np.random.randint(1_000_000), 20 * batch_size)
    generator.shuffle(batches)
    return batches


@wrong("1.4", "sorts all rows", "brings other rows together for another seed", "sort within windows")
def sorted_once(lengths, batch_size, seed):
    generator, batches = windows_of(lengths, batch_size, seed, len(lengths))
    generator.shuffle(batches)
    return batches


@wrong("1.4", "one window for all", "brings other rows together for another seed", "much shorter than the table")
def window_too_long(lengths, batch_size, seed):
    generator, batches = windows_of(lengths, batch_size, seed, 1000 * batch_size)
    generator.shuffle(batches)
    return batches


@wrong(
    "1.4", "from short to long", "lets short and long batches follow in no order", "shuffle the list of batches"
)
def ascending(lengths, batch_size, seed):
    return windows_of(lengths, batch_size, seed, 20 * batch_size)[1]
