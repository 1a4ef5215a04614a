import csv
import io
import math

import numpy as np
import pandas as pd

from wrong_answers import wrong


def plain(sentence):
    return " ".join(sentence.lower().split())


def read(
    text,
    names,
    number=None,
    lines=None,
    unknown=True,
    tabs=True,
    empty=True,
    repeated="once",
    key=plain,
    blank=True,
):
    """The right answer to 9.1, unless an option leaves something out."""
    number = number or names.index
    labels, rows = {}, []
    for place, line in enumerate(lines or text.split("\n"), start=1):
        if not line.strip() and blank:
            continue
        fields = line.split("\t")
        if tabs and len(fields) != 2:
            raise ValueError(f"line {place} has {len(fields) - 1} tabs, expected one")
        label, sentence = fields[0].strip(), fields[-1].strip() if len(fields) == 1 else fields[1].strip()
        if label not in names:
            if unknown:
                raise ValueError(f"line {place}: {label!r} is none of {names}")
            continue
        if empty and not sentence:
            raise ValueError(f"line {place} has no sentence")
        same = key(sentence)
        if repeated != "kept" and same in labels:
            if repeated == "once" and labels[same] != label:
                raise ValueError(f"line {place}: {labels[same]} before, now {label}")
            continue
        labels[same] = label
        rows.append((sentence, number(label)))
    return pd.DataFrame(rows, columns=["sentence", "label"])


@wrong("9.1", "takes the first line for a header", "gives one row for each line", "header=None")
def with_header(text, names):
    frame = pd.read_csv(io.StringIO(text), sep="\t")
    frame.columns = ["label", "sentence"]
    return frame.assign(label=[names.index(label) for label in frame["label"]])


@wrong("9.1", "numbers by the alphabet", "numbers the classes by `names`", "neither the alphabet")
def by_alphabet(text, names):
    return read(text, names, number=sorted(names).index)


@wrong("9.1", "numbers by first appearance", "numbers the classes by `names`", "nor the order of the lines")
def by_appearance(text, names):
    frame = read(text, names)
    return frame.assign(label=pd.factorize(frame["label"])[0])


@wrong("9.1", "reads as CSV", "takes a quotation mark as a character", "split each line at its tab")
def as_csv(text, names):
    frame = pd.read_csv(io.StringIO(text), sep="\t", header=None, names=["label", "sentence"])
    return frame.assign(label=[names.index(label) for label in frame["label"]])


@wrong("9.1", "skips unknown labels", "names the line of an unknown label", "compare each label with names")
def skips_unknown(text, names):
    return read(text, names, unknown=False)


@wrong("9.1", "index alone", "names the line of an unknown label", "line {number}")
def index_alone(text, names):
    fields = [line.split("\t") for line in text.strip().split("\n")]
    return pd.DataFrame(
        [(sentence, names.index(label)) for label, sentence in fields], columns=["sentence", "label"]
    )


@wrong("9.1", "takes the first two fields", "names the line that has not exactly one tab", "must give two fields")
def first_two(text, names):
    return read(text, names, tabs=False)


@wrong("9.1", "lets spaces pass", "names the line of an empty sentence", "strip() first")
def spaces(text, names):
    return read(text, names, empty=False)


@wrong("9.1", "keeps copies", "keeps a repeated sentence once", "both sides of a split")
def copies(text, names):
    return read(text, names, repeated="kept")


@wrong(
    "9.1", "compares letter by letter", "takes sentences for one that differ in case and spaces only", "lower()"
)
def letter_by_letter(text, names):
    return read(text, names, key=str)


@wrong(
    "9.1", "keeps the last spelling", "takes sentences for one that differ in case and spaces only", "the first"
)
def last_spelling(text, names):
    found = {}
    for sentence, label in read(text, names, repeated="kept").itertuples(index=False):
        if found.get(plain(sentence), (sentence, label))[1] != label:
            return read(text, names)  # names the line
        found[plain(sentence)] = (sentence, label)
    return pd.DataFrame(found.values(), columns=["sentence", "label"])


@wrong("9.1", "first label wins", "names the line where a sentence changes its label", "remember the label")
def first_wins(text, names):
    return read(text, names, repeated="first")


@wrong("9.1", "numbers what is left", "skips blank lines and counts them", "enumerate all lines")
def without_blank(text, names):
    return read(text, names, lines=[line for line in text.split("\n") if line.strip()])


@wrong("9.1", "blank lines are errors", "skips blank lines and counts them", "skip the blank ones")
def blank_is_wrong(text, names):
    return read(text.rstrip("\n"), names, blank=False)


def split(table, share, seed):
    """The right draw: the places of the validation rows."""
    generator = np.random.default_rng(seed)
    places = [np.flatnonzero(table["label"] == label) for label in sorted(set(table["label"]))]
    return np.concatenate([generator.permutation(part)[: round(share * len(part))] for part in places])


def write(table, folder, places, train=None):
    folder.mkdir(parents=True, exist_ok=True)
    left = table.drop(index=table.index[places]) if train is None else train
    for name, part in (("train", left), ("validation", table.iloc[places])):
        rows = zip(part["sentence"], part["label"], strict=True)
        lines = ["sentence\tlabel", *("\t".join(map(str, row)) for row in rows)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@wrong("9.2", "another name", "can be loaded", "folder/validation.tsv")
def another_name(table, folder, share=0.25, seed=0):
    write(table, folder, split(table, share, seed))
    (folder / "validation.tsv").rename(folder / "dev.tsv")


@wrong("9.2", "no header", "can be loaded", "a header line")
def without_header(table, folder, share=0.25, seed=0):
    write(table, folder, split(table, share, seed))
    for path in folder.iterdir():
        path.write_text(path.read_text(encoding="utf-8").split("\n", 1)[1], encoding="utf-8")


@wrong("9.2", "to_csv with quoting", "keeps every character", "csv.QUOTE_NONE")
def quoted(table, folder, share=0.25, seed=0):
    folder.mkdir(parents=True)
    validation = table.iloc[split(table, share, seed)]
    for name, part in (("train", table.drop(validation.index)), ("validation", validation)):
        part.to_csv(folder / f"{name}.tsv", sep="\t", index=False, quoting=csv.QUOTE_MINIMAL)


@wrong("9.2", "trains on all rows", "puts each sentence on one side, and none on both", "leaves train")
def all_in_train(table, folder, share=0.25, seed=0):
    write(table, folder, split(table, share, seed), train=table)


@wrong("9.2", "shuffles a column", "keeps each sentence with its label", "shuffle rows, not a column")
def shuffled_column(table, folder, share=0.25, seed=0):
    order = np.random.default_rng(seed).permutation(len(table))
    table = table.assign(sentence=table["sentence"].to_numpy()[order])
    write(table, folder, split(table, share, seed))


@wrong("9.2", "knows two classes only", "takes the same share of each class", "in each class by itself")
def two_classes(table, folder, share=0.25, seed=0):
    write(table, folder, split(table[table["label"] < 2], share, seed))


@wrong("9.2", "draws from all rows", "takes the same share of each class", "stratified means")
def unstratified(table, folder, share=0.25, seed=0):
    order = np.random.default_rng(seed).permutation(len(table))
    write(table, folder, order[: round(share * len(table))])


@wrong("9.2", "cuts at the end of the file", "takes the same share of each class", "in each class by itself")
def end_of_file(table, folder, share=0.25, seed=0):
    write(table, folder, np.arange(len(table))[-round(share * len(table)) :])


@wrong("9.2", "first rows of each class", "draws the validation rows by chance", "shuffle each class")
def first_rows(table, folder, share=0.25, seed=0):
    places = [np.flatnonzero(table["label"] == label) for label in sorted(set(table["label"]))]
    write(table, folder, np.concatenate([part[: round(share * len(part))] for part in places]))


@wrong("9.2", "no seed", "is settled by its seed", "default_rng(seed)")
def unseeded(table, folder, share=0.25, seed=0):
    write(table, folder, split(table, share, None))


@wrong("9.2", "one seed for all", "is settled by its seed", "default_rng(seed)")
def one_seed(table, folder, share=0.25, seed=0):
    write(table, folder, split(table, share, 0))


def report(predicted, labels, reference, resamples=1000, seed=0, ends=(0.025, 0.975), verdict=None, paired=True):
    """The right answer to 9.3, unless an option changes it."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(labels), size=(resamples, len(labels)))
    base = predicted[reference] == labels
    table = {}
    for name, classes in predicted.items():
        right = classes == labels
        low, high = np.quantile(right[drawn].mean(axis=1), ends)
        other = drawn if paired else generator.integers(len(labels), size=drawn.shape)
        gap_low, gap_high = np.quantile(right[drawn].mean(axis=1) - base[other].mean(axis=1), [0.025, 0.975])
        row = {"accuracy": right.mean(), "low": low, "high": high, "gap": right.mean() - base.mean()}
        table[name] = row | {"gap_low": gap_low, "gap_high": gap_high}
    for row in table.values():
        row["verdict"] = (verdict or by_gap)(row, table[reference])
    return pd.DataFrame(table.values(), index=list(table))


def by_gap(row, _reference):
    return "better" if row["gap_low"] > 0 else "worse" if row["gap_high"] < 0 else "not shown"


@wrong("9.3", "sorts by score", "has a row for each system, in order, and all columns", "index=list(predicted)")
def sorted_rows(predicted, labels, reference, resamples=1000, seed=0):
    return report(predicted, labels, reference).sort_values("accuracy", ascending=False)


@wrong("9.3", "leaves out the verdict", "has a row for each system, in order, and all columns", "verdict")
def without_verdict(predicted, labels, reference, resamples=1000, seed=0):
    return report(predicted, labels, reference).drop(columns="verdict")


@wrong("9.3", "points of a hundred", "gives each system's accuracy", "from 0 to 1")
def hundred(predicted, labels, reference, resamples=1000, seed=0):
    frame = report(predicted, labels, reference)
    return frame.assign(accuracy=100 * frame["accuracy"])


@wrong("9.3", "one standard deviation", "gives the middle 95 % of each accuracy", "one standard deviation")
def one_deviation(predicted, labels, reference, resamples=1000, seed=0):
    return report(predicted, labels, reference, ends=(0.16, 0.84))


@wrong("9.3", "reference minus system", "subtracts the reference", "positive where better")
def reference_first(predicted, labels, reference, resamples=1000, seed=0):
    frame = report(predicted, labels, reference)
    return frame.assign(gap=-frame["gap"], gap_low=-frame["gap_high"], gap_high=-frame["gap_low"])


@wrong(
    "9.3", "subtracts ends", "takes the gap's interval on the same rows", "ends of two intervals do not subtract"
)
def ends_subtracted(predicted, labels, reference, resamples=1000, seed=0):
    frame = report(predicted, labels, reference)
    low, high = frame.loc[reference, ["low", "high"]]
    return frame.assign(gap_low=frame["low"] - high, gap_high=frame["high"] - low)


@wrong("9.3", "other rows for the reference", "takes the gap's interval on the same rows", "same drawn rows")
def unpaired(predicted, labels, reference, resamples=1000, seed=0):
    return report(predicted, labels, reference, paired=False)


@wrong("9.3", "judges by the gap", "calls a gap not shown whose interval holds 0", "of the interval")
def by_sign(predicted, labels, reference, resamples=1000, seed=0):
    signs = {1.0: "better", -1.0: "worse", 0.0: "not shown"}
    return report(predicted, labels, reference, verdict=lambda row, _: signs[float(np.sign(row["gap"]))])


@wrong("9.3", "judges by overlap", "calls better what is better on the same rows", "two intervals that overlap")
def by_overlap(predicted, labels, reference, resamples=1000, seed=0):
    def verdict(row, base):
        return "better" if row["low"] > base["high"] else "worse" if row["high"] < base["low"] else "not shown"

    return report(predicted, labels, reference, verdict=verdict)


@wrong("9.3", "knows no worse", "calls worse what is worse", "below 0")
def never_worse(predicted, labels, reference, resamples=1000, seed=0):
    return report(
        predicted, labels, reference, verdict=lambda row, _: "better" if row["gap_low"] > 0 else "not shown"
    )


@wrong("9.3", "no seed", "gives the same report twice", "default_rng(seed)")
def report_unseeded(predicted, labels, reference, resamples=1000, seed=0):
    return report(predicted, labels, reference, seed=None)


def wins(first, second, labels):
    right, other = first == labels, second == labels
    return int((right & ~other).sum()), int((other & ~right).sum())


def tail(least, n):
    return sum(math.comb(n, k) for k in range(least + 1)) / 2**n


@wrong("9.4", "returns the counts", "gives a probability", "not the two counts")
def counts(first, second, labels):
    return wins(first, second, labels)


@wrong("9.4", "one tail", "does not depend on who comes first", "in either direction")
def one_tail(first, second, labels):
    one, other = wins(first, second, labels)
    return tail(other, one + other)


@wrong("9.4", "all rows are throws", "ignores rows on which both are right, or both wrong", "exactly one is right")
def all_rows(first, second, labels):
    return min(1.0, 2 * tail(min(wins(first, second, labels)), len(labels)))


@wrong("9.4", "doubles the middle", "is 1 where both are alone right equally often", "take at most 1")
def above_one(first, second, labels):
    one, other = wins(first, second, labels)
    return 2 * tail(min(one, other), one + other)


@wrong("9.4", "chi²", "is exact for few rows", "chi² is for many rows")
def chi_square(first, second, labels):
    one, other = wins(first, second, labels)
    return math.erfc(((one - other) ** 2 / (one + other) / 2) ** 0.5) if one + other else 1.0
