"""Exercises of chapter 09: the capstone."""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from kvlib.sources.files import read_table, require_columns
from workbook.checking import Answer, Exercise, Mistake, expect, expect_close, expect_number, show

READ = Exercise("9.1", "Read messages, and refuse bad ones", difficulty=2, minutes=15)

_NAMES = ("praise", "blame")  # neither in alphabetical order nor in that of the lines
_LINES = (
    "blame\tThe tea was cold.",
    "praise\tThe tea was hot, and so was the cake.",
    "blame\tNobody came to our table.",
    "praise\tSomebody came to our table at once.",
)


def _table(value: object) -> pd.DataFrame:
    expect(isinstance(value, pd.DataFrame), f"{type(value).__name__} instead of a data frame")
    missing = [column for column in ("sentence", "label") if column not in value]
    expect(not missing, f"columns {', '.join(map(str, value.columns))}, without {', '.join(missing)}")
    return value


def _read(answer: Answer, *lines: str) -> pd.DataFrame:
    return _table(answer("\n".join(lines) + "\n", _NAMES))


def _expect_refusal(answer: Answer, number: int, *lines: str) -> None:
    """Raise `Mistake` unless the answer raises a `ValueError` that names line `number`."""
    try:
        table = answer("\n".join(lines) + "\n", _NAMES)
    except Mistake as mistake:
        if not isinstance(mistake.__cause__, ValueError):
            raise Mistake(f"{mistake.saw}, not a ValueError") from mistake
        said = str(mistake.__cause__)
        expect(re.search(rf"\bline {number}\b", said), f"ValueError: {said}, without “line {number}”")
    else:
        raise Mistake(f"no error for line {number}, {lines[number - 1]!r}, but {len(_table(table))} rows")


@READ.probe(
    "gives one row for each line",
    hint="the file has no header: its first line is data (pandas.read_csv takes it for names without header=None)",
)
def row_for_each_line(answer: Answer) -> None:
    found = _read(answer, *_LINES)["sentence"].tolist()
    wanted = [line.split("\t")[1] for line in _LINES]
    expect(len(found) == len(wanted), f"{len(found)} rows for {len(wanted)} lines")
    expect(found == wanted, f"{found[0]!r} as the first sentence, expected {wanted[0]!r}")


@READ.probe(
    "numbers the classes by `names`",
    hint="a label's number is its place in names: neither the alphabet nor the order of the lines settles it",
)
def numbers(answer: Answer) -> None:
    found = _read(answer, *_LINES)["label"].tolist()
    expect(found == [1, 0, 1, 0], f"{found} for blame, praise, blame, praise and names {_NAMES}")


@READ.probe(
    "takes a quotation mark as a character",
    hint='split each line at its tab: a CSV reader takes " for the beginning of a quoted field',
)
def quotes(answer: Answer) -> None:
    sentence = '"Delicious" is what we said.'
    found = _read(answer, f"praise\t{sentence}", *_LINES)["sentence"].tolist()
    expect(found[0] == sentence, f"{found[0]} instead of {sentence}")


@READ.probe(
    "names the line of an unknown label",
    hint='compare each label with names and raise ValueError(f"line {number}: ..."); lines count from 1',
)
def unknown_label(answer: Answer) -> None:
    _expect_refusal(answer, 3, *_LINES[:2], "blam\tNobody came.", *_LINES[3:])


@READ.probe(
    "names the line that has not exactly one tab",
    hint='line.split("\\t") must give two fields: a tab too many cuts a sentence short without a word',
)
def one_tab(answer: Answer) -> None:
    _expect_refusal(answer, 2, _LINES[0], "praise\tThe tea was hot\tand so was the cake.", *_LINES[2:])
    _expect_refusal(answer, 4, *_LINES[:3], "praise Somebody came at once.")


@READ.probe(
    "names the line of an empty sentence", hint='spaces are no sentence: strip() first, then compare with ""'
)
def empty_sentence(answer: Answer) -> None:
    _expect_refusal(answer, 3, *_LINES[:2], "blame\t   ", *_LINES[3:])


@READ.probe(
    "keeps a repeated sentence once",
    hint="a sentence that comes again under the same label adds nothing, and could land on both sides of a split",
)
def repeated(answer: Answer) -> None:
    found = _read(answer, *_LINES, _LINES[1])
    expect(len(found) == 4, f"{len(found)} rows for four sentences, one of them twice")


@READ.probe(
    "takes sentences for one that differ in case and spaces only",
    hint='the tokenizer lower-cases: compare " ".join(sentence.lower().split()); keep the first as it is',
)
def same_but_for_case(answer: Answer) -> None:
    found = _read(answer, *_LINES, "blame\tthe tea  was cold.")
    expect(len(found) == 4, f"{len(found)} rows; “The tea was cold.” and “the tea  was cold.” are one sentence")
    expect(found["sentence"].iloc[0] == "The tea was cold.", f"{found['sentence'].iloc[0]!r}, changed")


@READ.probe(
    "names the line where a sentence changes its label",
    hint="remember the label of every sentence: one that comes again under another label is an error of its line",
)
def contradiction(answer: Answer) -> None:
    _expect_refusal(answer, 5, *_LINES, "praise\tThe tea was cold.")


@READ.probe(
    "skips blank lines and counts them",
    hint="enumerate all lines from 1 and skip the blank ones inside the loop: an editor counts them too",
)
def blank_lines(answer: Answer) -> None:
    try:
        found = _read(answer, _LINES[0], "", *_LINES[1:], "")
    except Mistake as mistake:
        raise Mistake(mistake.saw) from mistake
    expect(len(found) == 4, f"{len(found)} rows for four lines and two blank ones")
    _expect_refusal(answer, 5, _LINES[0], "", "", _LINES[1], "blam\tNobody came.")


WRITE = Exercise("9.2", "Write two files that load_task reads", difficulty=2, minutes=15)


def _messages(first: int = 40, second: int = 24) -> pd.DataFrame:
    """Make two classes, one after the other, whose sentences say their place."""
    sentences = [f"This is message number {number}." for number in range(first + second)]
    return pd.DataFrame({"sentence": sentences, "label": [0] * first + [1] * second})


@contextmanager
def _written(answer: Answer, table: pd.DataFrame, **options: float) -> Iterator[dict[str, pd.DataFrame]]:
    """Load what the answer writes; a folder's name is kept out of messages, for it is another each time."""
    with tempfile.TemporaryDirectory() as name:
        # a folder that is not there yet
        folder = Path(name) / "new"
        answer(table, folder, **options)
        try:
            data = {part: read_table(folder / f"{part}.tsv") for part in ("train", "validation")}
            for part, rows in data.items():
                require_columns(str(folder / f"{part}.tsv"), list(rows.columns), ("sentence", "label"))
                rows["label"] = rows["label"].astype(int)
        except (ValueError, FileNotFoundError) as error:
            raise Mistake(f"{type(error).__name__}: {error}".replace(str(folder), "folder")) from error
        yield data


def _sides(answer: Answer, table: pd.DataFrame, **options: float) -> tuple[list[str], list[str]]:
    with _written(answer, table, **options) as data:
        return data["train"]["sentence"].tolist(), data["validation"]["sentence"].tolist()


@WRITE.probe(
    "can be loaded",
    hint="folder/train.tsv and folder/validation.tsv: tabs, a header line sentence, label; "
    "mkdir(parents=True, exist_ok=True) makes the folder",
)
def can_be_loaded(answer: Answer) -> None:
    with _written(answer, _messages()) as data:
        expect(len(data["validation"]) > 0, "no row for validation")


@WRITE.probe(
    "keeps every character",
    hint='nobody undoes quoting, and to_csv doubles each ": pass quoting=csv.QUOTE_NONE, or join with tabs',
)
def every_character(answer: Answer) -> None:
    table = _messages()
    table["sentence"] = [f'“Ready”, she wrote, "at {number} o\'clock".' for number in range(len(table))]
    train, validation = _sides(answer, table)
    wanted = set(table["sentence"])
    odd = next((text for text in train + validation if text not in wanted), None)
    expect(odd is None, f"{odd} instead of {table['sentence'].iloc[0]}")


@WRITE.probe(
    "puts each sentence on one side, and none on both",
    hint="what goes to validation leaves train: a model knows its training rows, and a score on them says nothing",
)
def one_side(answer: Answer) -> None:
    table = _messages()
    train, validation = _sides(answer, table)
    both = len(set(train) & set(validation))
    counted = Counter(train + validation) == Counter(table["sentence"])
    expect(counted, f"{len(train)} + {len(validation)} sentences of {len(table)}, {both} of them on both sides")


@WRITE.probe(
    "keeps each sentence with its label",
    hint="shuffle rows, not a column: sentence and label must move together (pandas aligns by index)",
)
def own_label(answer: Answer) -> None:
    table = _messages()
    wanted = dict(zip(table["sentence"], table["label"], strict=True))
    with _written(answer, table) as data:
        pairs = [pair for split in data.values() for pair in zip(split["sentence"], split["label"], strict=True)]
    wrong = sum(wanted[sentence] != label for sentence, label in pairs)
    expect(wrong == 0, f"{wrong} of {len(pairs)} sentences under the other label")


@WRITE.probe(
    "takes the same share of each class",
    hint="draw round(share * rows) validation rows in each class by itself: that is what stratified means",
)
def stratified(answer: Answer) -> None:
    third = pd.DataFrame({"sentence": [f"This is note {number}." for number in range(8)], "label": 2})
    three = pd.concat([_messages(), third], ignore_index=True)
    for table, share, wanted in (
        (_messages(), 0.25, [10, 6]),
        (_messages(), 0.5, [20, 12]),
        (three, 0.5, [20, 12, 4]),
    ):
        with _written(answer, table, share=share) as data:
            found = np.bincount(data["validation"]["label"], minlength=len(wanted)).tolist()
        expect(found == wanted, f"{found} validation rows of the classes at share {share}, expected {wanted}")


@WRITE.probe(
    "draws the validation rows by chance",
    hint="who writes one message after another writes like ones in a row: shuffle each class before you cut it",
)
def by_chance(answer: Answer) -> None:
    _, validation = _sides(answer, _messages(), share=0.5)
    places = sorted(int(re.search(r"\d+", sentence)[0]) for sentence in validation)
    steps = set(np.diff(places).tolist())
    expect(len(steps) > 2, f"messages {show(places)} for validation")


@WRITE.probe(
    "is settled by its seed", hint="np.random.default_rng(seed), made once inside the function, for all draws"
)
def split_seed(answer: Answer) -> None:
    once, again, other = (sorted(_sides(answer, _messages(), seed=seed)[1]) for seed in (3, 3, 4))
    expect(once == again, "two splits for one seed")
    expect(once != other, "one split for the seeds 3 and 4")


REPORT = Exercise("9.3", "A report that knows its noise", difficulty=3, minutes=25)
_COLUMNS = ("accuracy", "low", "high", "gap", "gap_low", "gap_high", "verdict")


def _systems(rows: int, **right: list[tuple[int, int]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Make systems that are right on the given ranges of rows."""
    labels = np.random.default_rng(rows).integers(2, size=rows)
    order = np.random.default_rng(rows + 1).permutation(rows)
    predicted = {}
    for name, ranges in right.items():
        hit = np.zeros(rows, dtype=bool)
        for start, end in ranges:
            hit[start:end] = True
        predicted[name] = np.where(hit[order], labels, 1 - labels)
    return predicted, labels


def _report(answer: Answer, predicted: dict[str, np.ndarray], labels: np.ndarray, reference: str) -> pd.DataFrame:
    frame = answer(predicted, labels, reference)
    expect(isinstance(frame, pd.DataFrame), f"{type(frame).__name__} instead of a data frame")
    missing = [column for column in _COLUMNS if column not in frame]
    expect(not missing, f"no column {', '.join(missing)}")
    expect(
        list(frame.index) == list(predicted), f"rows {show(list(frame.index))}, expected {show(list(predicted))}"
    )
    return frame


# of 200 rows: 160 right; 172, of which 158 are the same; 100, of which 60; 164, of which 140
_FOUR = {"words": [(0, 160)], "student": [(2, 174)], "constant": [(100, 200)], "rival": [(20, 184)]}


@REPORT.probe(
    "has a row for each system, in order, and all columns",
    hint="pd.DataFrame(rows, index=list(predicted)), columns accuracy, low, high, gap, gap_low, gap_high, verdict",
)
def rows_and_columns(answer: Answer) -> None:
    _report(answer, *_systems(200, **_FOUR), "words")


@REPORT.probe(
    "gives each system's accuracy", hint="the share of rows where prediction and label agree, from 0 to 1"
)
def accuracies(answer: Answer) -> None:
    frame = _report(answer, *_systems(200, **_FOUR), "words")
    expect_close(frame["accuracy"].to_numpy(dtype=float), [0.8, 0.86, 0.5, 0.82])


@REPORT.probe(
    "gives the middle 95 % of each accuracy",
    hint="np.quantile(scores, [0.025, 0.975]) of resampled accuracies; one standard deviation each way is 68 %",
)
def own_interval(answer: Answer) -> None:
    frame = _report(answer, *_systems(200, **_FOUR), "words")
    for name, share in (("words", 0.8), ("constant", 0.5)):
        low, high = (expect_number(frame.loc[name, end]) for end in ("low", "high"))
        expect(low < share < high, f"{low:.3f} to {high:.3f} for {name}, whose accuracy is {share}")
        expected = 2 * 1.96 * (share * (1 - share) / 200) ** 0.5
        saw = f"width {high - low:.3f} for {name}, expected about {expected:.3f}"
        expect(abs((high - low) / expected - 1) < 0.2, saw)


@REPORT.probe("subtracts the reference", hint="gap = accuracy - the reference's accuracy: positive where better")
def gaps(answer: Answer) -> None:
    frame = _report(answer, *_systems(200, **_FOUR), "words")
    expect_close(frame["gap"].to_numpy(dtype=float), [0.0, 0.06, -0.3, 0.02])


@REPORT.probe(
    "takes the gap's interval on the same rows",
    hint="score system and reference on the same drawn rows and subtract: ends of two intervals do not subtract",
)
def same_rows(answer: Answer) -> None:
    frame = _report(answer, *_systems(200, **_FOUR), "words")
    low, high = (expect_number(frame.loc["student", end]) for end in ("gap_low", "gap_high"))
    expected = 2 * 1.96 * ((16 / 200 - 0.06**2) / 200) ** 0.5
    saw = (
        f"gap {low:+.3f} to {high:+.3f} for a system that differs on 16 of 200 rows, expected width {expected:.3f}"
    )
    expect(abs((high - low) / expected - 1) < 0.25, saw)


@REPORT.probe(
    "calls a gap not shown whose interval holds 0",
    hint='the verdict is of the interval: "not shown" unless gap_low > 0 or gap_high < 0',
)
def not_shown(answer: Answer) -> None:
    frame = _report(answer, *_systems(200, **_FOUR), "words")
    for name in ("rival", "words"):
        low, high = frame.loc[name, ["gap_low", "gap_high"]]
        verdict = frame.loc[name, "verdict"]
        expect(verdict == "not shown", f"{show(verdict)} for {name}, gap {low:+.3f} to {high:+.3f}")


@REPORT.probe(
    "calls better what is better on the same rows",
    hint="two intervals that overlap settle nothing: judge the interval of the gap",
)
def better(answer: Answer) -> None:
    frame = _report(answer, *_systems(200, **_FOUR), "words")
    low, high = frame.loc["student", ["gap_low", "gap_high"]]
    verdict = frame.loc["student", "verdict"]
    expect(verdict == "better", f"{show(verdict)} for a gap of {low:+.3f} to {high:+.3f}")


@REPORT.probe("calls worse what is worse", hint='a gap whose high end is below 0 is "worse"')
def worse(answer: Answer) -> None:
    verdict = _report(answer, *_systems(200, **_FOUR), "words").loc["constant", "verdict"]
    expect(verdict == "worse", f"{show(verdict)} for an accuracy of 0.5 beside one of 0.8")


@REPORT.probe("gives the same report twice", hint="np.random.default_rng(seed) inside the function, not np.random")
def twice(answer: Answer) -> None:
    once, again = (_report(answer, *_systems(200, **_FOUR), "words") for _ in range(2))
    expect(once.equals(again), f"low {show(once['low'].tolist())}, then {show(again['low'].tolist())}")


COIN = Exercise("9.4", "A coin for the rows that differ", difficulty=2, minutes=10)


def _duel(first: int, second: int, both: int = 6, neither: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make two systems that are alone right on `first` and `second` rows, and labels."""
    rows = first + second + both + neither
    predicted, labels = _systems(
        rows, one=[(0, first), (first + second, rows - neither)], other=[(first, rows - neither)]
    )
    return predicted["one"], predicted["other"], labels


@COIN.probe("gives a probability", hint="return one number from 0 to 1, not the two counts")
def probability(answer: Answer) -> None:
    value = expect_number(answer(*_duel(8, 3)))
    expect(0 <= value <= 1, f"{value:.4g}")


@COIN.probe(
    "does not depend on who comes first",
    hint="ask for a difference in either direction: double the smaller tail, min(first, second) wins or fewer",
)
def either_order(answer: Answer) -> None:
    one, other, labels = _duel(9, 2)
    values = [expect_number(answer(*pair, labels)) for pair in ((one, other), (other, one))]
    expect(abs(values[0] - values[1]) < 1e-9, f"{values[0]:.4g}, and {values[1]:.4g} the other way round")


@COIN.probe(
    "ignores rows on which both are right, or both wrong",
    hint="the coin is thrown once for each row where exactly one is right: that is n, not len(labels)",
)
def ties_left_out(answer: Answer) -> None:
    few, many = (expect_number(answer(*_duel(7, 2, both, neither))) for both, neither in ((5, 4), (150, 60)))
    expect(abs(few - many) < 1e-9, f"{few:.4g} with 9 such rows, {many:.4g} with 210")


@COIN.probe(
    "is 1 where both are alone right equally often",
    hint="doubling one tail counts the middle twice: take at most 1, and 1 where no row differs",
)
def tie(answer: Answer) -> None:
    for wins in (4, 1, 0):
        value = expect_number(answer(*_duel(wins, wins)))
        expect(abs(value - 1) < 1e-9, f"{value:.4g} where each is alone right on {wins} rows")


@COIN.probe(
    "is exact for few rows",
    hint="add math.comb(n, k) / 2**n for k from 0 to the smaller count, and double it; chi² is for many rows",
)
def exact(answer: Answer) -> None:
    for first, second in ((8, 1), (2, 6), (12, 5)):
        n = first + second
        tail = sum(math.comb(n, k) for k in range(min(first, second) + 1)) / 2**n
        expect_close(expect_number(answer(*_duel(first, second))), min(1.0, 2 * tail), tolerance=1e-6)
