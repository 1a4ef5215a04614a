"""Exercises of chapter 06: evaluation."""

import numpy as np
import pandas as pd
from sklearn.metrics import matthews_corrcoef

from workbook.checking import Answer, Exercise, expect, expect_close, expect_number, show

MATTHEWS = Exercise("6.1", "MCC from four counts", difficulty=2, minutes=10)


def _counted(tp: int, fp: int, fn: int, tn: int) -> tuple[np.ndarray, np.ndarray]:
    """Give predictions and labels with these four counts, in random order."""
    counts = (tp, fp, fn, tn)
    order = np.random.default_rng(sum(counts)).permutation(sum(counts))
    return np.repeat([1, 1, 0, 0], counts)[order], np.repeat([1, 0, 1, 0], counts)[order]


@MATTHEWS.probe(
    "gives one number", hint="np.corrcoef gives a matrix of all pairs of columns; the four counts give one number"
)
def one_correlation(answer: Answer) -> None:
    expect_number(answer(*_counted(6, 2, 3, 7)))


@MATTHEWS.probe(
    "is 1 where all predictions are right",
    hint="below stands the square root of the product of the four sums, not the product",
)
def all_right(answer: Answer) -> None:
    expect_close(expect_number(answer(*_counted(8, 0, 0, 8))), 1.0)


@MATTHEWS.probe(
    "is -1 where all predictions are wrong",
    hint="the sign is that of tp · tn - fp · fn: a square, its root or abs() loses it",
)
def all_wrong(answer: Answer) -> None:
    expect_close(expect_number(answer(*_counted(0, 8, 8, 0))), -1.0)


@MATTHEWS.probe(
    "is 0 where one class never occurs",
    hint="a constant column correlates with nothing and leaves 0 / 0: return 0 where a sum under the root is 0",
)
def empty_margin(answer: Answer) -> None:
    for counts in ((14, 6, 0, 0), (0, 0, 14, 6), (9, 0, 5, 0), (0, 3, 0, 11)):
        value = expect_number(answer(*_counted(*counts)))
        expect(abs(value) < 1e-9, f"{value:.4g} for tp, fp, fn, tn = {counts}")


@MATTHEWS.probe(
    "is the same when both classes change their numbers",
    hint="four sums stand below: tp + fp and tp + fn of class 1, tn + fp and tn + fn of class 0",
)
def renamed(answer: Answer) -> None:
    predictions, labels = _counted(30, 4, 8, 10)
    value, other = (
        expect_number(answer(*pair)) for pair in ((predictions, labels), (1 - predictions, 1 - labels))
    )
    expect(abs(value - other) < 1e-9, f"{value:.4g}, and {other:.4g} with 0 and 1 exchanged")


@MATTHEWS.probe(
    "holds for 200,000 rows",
    hint="the product of four such sums outgrows numpy's 64 bits: turn the counts into float first",
)
def many_rows(answer: Answer) -> None:
    expect_close(expect_number(answer(*_counted(80_000, 20_000, 25_000, 75_000))), 0.5507, tolerance=1e-3)


@MATTHEWS.probe(
    "is the correlation of predictions and labels",
    hint="compare your four sums with the formula; Cohen's kappa has twice the same top, but another bottom",
)
def correlation(answer: Answer) -> None:
    predictions, labels = _counted(40, 25, 5, 12)
    expect_close(expect_number(answer(predictions, labels)), matthews_corrcoef(labels, predictions), 1e-9)


PAIRED = Exercise("6.2", "An interval for a difference", difficulty=2, minutes=10)
_SPREAD = (0.3 - 0.1**2) ** 0.5  # standard deviation of a row's difference in `_rivals`


def _rivals(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give two systems and labels; `rows` is a multiple of 10.

    Both are right on 60 % of the rows, the first alone on 20 %, the second alone on 10 %.
    """
    generator = np.random.default_rng(rows)
    labels = generator.integers(2, size=rows)
    order = generator.permutation(rows)
    first = np.tile([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], rows // 10)[order] == 1
    second = np.tile([1, 1, 1, 1, 1, 1, 0, 0, 1, 0], rows // 10)[order] == 1
    return np.where(first, labels, 1 - labels), np.where(second, labels, 1 - labels), labels


def _ends(value: object) -> tuple[float, float]:
    pair = isinstance(value, (tuple, list, np.ndarray)) and len(value) == 2
    expect(pair, f"{type(value).__name__} {show(value)} instead of two numbers")
    low, high = (expect_number(end) for end in value)
    expect(low <= high, f"({low:.4g}, {high:.4g})")
    return low, high


@PAIRED.probe(
    "gives two numbers, the lower first", hint="np.quantile(differences, [0.025, 0.975]) gives both ends in order"
)
def two_ends(answer: Answer) -> None:
    _ends(answer(*_rivals(200)))


@PAIRED.probe(
    "is positive where the first system is better", hint="subtract the second system's accuracy from the first's"
)
def first_minus_second(answer: Answer) -> None:
    low, high = _ends(answer(*_rivals(1000)))
    expect(high > 0, f"{low:.3f} to {high:.3f}, where the first is better by 0.1")


@PAIRED.probe(
    "is 0 to 0 for two equal systems",
    hint="draw the rows once and score both systems on them: what both get right or wrong then cancels",
)
def cancels(answer: Answer) -> None:
    first, _, labels = _rivals(200)
    low, high = _ends(answer(first, first, labels))
    expect(max(abs(low), abs(high)) < 1e-9, f"{low:.3f} to {high:.3f}")


@PAIRED.probe(
    "is wider than a point",
    hint="draw with replacement: without it, every resample holds each row once and nothing differs",
)
def with_replacement(answer: Answer) -> None:
    low, high = _ends(answer(*_rivals(200)))
    expect(high - low > 1e-9, f"{low:.3f} to {high:.3f}")


@PAIRED.probe(
    "is settled by its seed",
    hint="draw from generator = np.random.default_rng(seed), made once inside the function",
)
def seeded(answer: Answer) -> None:
    rivals = _rivals(1000)
    once, again = (_ends(answer(*rivals, seed=5)) for _ in range(2))
    expect(once == again, f"{show(list(once))} and {show(list(again))} for one seed")
    several = {_ends(answer(*rivals, seed=seed)) for seed in range(6)}
    expect(len(several) > 1, f"{show(list(once))} for each of six seeds")


@PAIRED.probe(
    "draws as many resamples as asked",
    hint="`resamples` is the number of draws; of one draw, both ends are the same",
)
def one_resample(answer: Answer) -> None:
    low, high = _ends(answer(*_rivals(200), resamples=1))
    expect(high - low < 1e-9, f"{low:.3f} to {high:.3f} with one resample")


@PAIRED.probe(
    "is half as wide on four times the rows",
    hint="each resample holds as many rows as the data, len(labels), not a fixed number",
)
def narrows(answer: Answer) -> None:
    few, many = (_ends(answer(*_rivals(rows), resamples=2000)) for rows in (400, 1600))
    ratio = (many[1] - many[0]) / (few[1] - few[0])
    expect(0.38 < ratio < 0.65, f"width {few[1] - few[0]:.3f} on 400 rows, {many[1] - many[0]:.3f} on 1600")


@PAIRED.probe(
    "holds the middle 95 %",
    hint="cut 2.5 % at each end of the resampled differences; and draw all len(labels) rows each time",
)
def middle(answer: Answer) -> None:
    low, high = _ends(answer(*_rivals(1000), resamples=2000))
    expected = 2 * 1.96 * _SPREAD / 1000**0.5
    expect(abs((high - low) / expected - 1) < 0.12, f"width {high - low:.4f}, expected about {expected:.4f}")


PUSHES = Exercise("6.3", "How many pushes carry the verdict?", difficulty=2, minutes=10)


def _explained(leads: np.ndarray, common: np.ndarray | float = 0.0) -> pd.DataFrame:
    """Make a frame like `explain`'s with four codebooks: `leads` of the class yes over no, key by key."""
    generator = np.random.default_rng(len(leads))
    return pd.DataFrame(
        {
            "position": np.arange(len(leads)) // 4,
            "token": [f"word{number // 4}" for number in range(len(leads))],
            "codebook": np.arange(len(leads)) % 4,
            "key": generator.integers(64, size=len(leads)),
            "distance": generator.random(len(leads)),
            "push_no": common - leads / 2,
            "push_yes": common + leads / 2,
        }
    )


def _leads(seed: int, foes: float = 0.5) -> np.ndarray:
    """Draw the leads of 20 rows, in random order: 14 of 1 to 2 for, 6 of `foes` to twice that against."""
    generator = np.random.default_rng(seed)
    leads = np.concatenate([1 + generator.random(14), -foes * (1 + generator.random(6))])
    return generator.permutation(leads)


def _fewest(frame: pd.DataFrame) -> int:
    lead = (frame["push_yes"] - frame["push_no"]).to_numpy()
    lead = lead * np.sign(lead.sum())
    taken = np.cumsum(np.sort(lead)[::-1])
    # the sum in this order: another would differ by its rounding
    return int((taken >= taken[-1]).argmax()) + 1


def _expect_count(answer: Answer, frame: pd.DataFrame, where: str) -> None:
    found, expected = answer(frame), _fewest(frame)
    expect(expect_number(found) == expected, f"{show(found)} instead of {expected} {where}")


@PUSHES.probe("gives a whole number of rows", hint="return how many rows, not which, and not a share")
def whole_number(answer: Answer) -> None:
    value = expect_number(answer(_explained(_leads(1))))
    expect(value == int(value) and 1 <= value <= 20, f"{value:.4g} for 20 rows")


@PUSHES.probe(
    "begins with the rows that push hardest", hint="sort the leads from high to low before you add them up"
)
def strongest_first(answer: Answer) -> None:
    _expect_count(answer, _explained(np.sort(_leads(2))), "where the weakest rows stand first")


@PUSHES.probe(
    "weighs a row by both of its pushes",
    hint="a row that goes takes its pushes on both classes away: its lead is their difference",
)
def both_pushes(answer: Answer) -> None:
    common = np.linspace(-6.0, 6.0, 20)  # moves both classes alike and decides nothing
    _expect_count(answer, _explained(_leads(3), common), "where rows push both classes up, or both down")


@PUSHES.probe(
    "leaves the rows that push the other way",
    hint="sort by the lead with its sign: abs() takes away what pushes for the other class too",
)
def signed(answer: Answer) -> None:
    _expect_count(answer, _explained(_leads(4, foes=2.0)), "where six rows push hard for the other class")


@PUSHES.probe(
    "takes all rows where all push for the verdict",
    hint="compare with the last of the running sums: sum() adds in another order and may round above all of them",
)
def all_of_them(answer: Answer) -> None:
    leads = 1 + np.random.default_rng(6).random(120)
    for rows in range(100, 120):
        _expect_count(answer, _explained(leads[:rows]), f"where all {rows} push for the second class")


@PUSHES.probe("works for either verdict", hint="the verdict is the class with the higher sum: it may be the first")
def either_class(answer: Answer) -> None:
    _expect_count(answer, _explained(-_leads(5)), "where the first class wins")


MISTAKES = Exercise("6.4", "Three kinds of mistakes", difficulty=3, minutes=20)
_Found = dict[str, tuple[list[int], list[tuple[int, int]]]]


def _fired(*rows: tuple[int, int, float, float]) -> pd.DataFrame:
    """Make a frame like `explain`'s from codebook, key and the pushes on the classes no (0) and yes (1)."""
    frame = pd.DataFrame(rows, columns=["codebook", "key", "push_no", "push_yes"])
    frame.insert(0, "position", np.arange(len(frame)) // 2)
    frame.insert(1, "token", [f"word{position}" for position in frame["position"]])
    frame["distance"] = 0.5
    return frame


# two mistakes of each class and one right answer
_LABELS = np.array([0, 0, 1, 1, 1])
_FRAMES = {
    0: _fired((0, 5, 0.0, 3.0), (1, 8, 0.5, 1.0), (0, 6, 1.0, 0.0)),
    1: _fired((0, 5, 0.0, 1.0), (1, 9, 0.0, 2.5), (1, 7, 1.0, 0.0)),
    2: _fired((0, 2, 4.0, 0.0), (1, 3, 2.0, 0.5), (0, 5, 0.0, 3.0)),
    3: _fired((0, 4, 2.0, 0.0), (1, 3, 3.0, 0.0), (0, 5, 0.0, 1.0)),
    4: _fired((0, 5, 0.0, 9.0), (1, 1, 0.5, 0.0)),
}


def _mistakes(answer: Answer, kinds: dict[str, list[int]], **inputs: object) -> _Found:
    """Call the answer, by default on `_LABELS` and `_FRAMES`, and read what it returns."""
    value = answer(kinds, inputs.pop("labels", _LABELS), inputs.pop("frames", _FRAMES), **inputs)
    expect(isinstance(value, dict), f"{type(value).__name__} instead of a dictionary")
    expect(list(value) == list(kinds), f"the kinds {show(list(value))} instead of {show(list(kinds))}")
    found: _Found = {}
    for kind, parts in value.items():
        two = isinstance(parts, (tuple, list)) and len(parts) == 2
        expect(two and all(isinstance(part, list) for part in parts), f"{show(parts)} for {kind}, not two lists")
        pairs = [tuple(pair) if isinstance(pair, (tuple, list)) else (pair,) for pair in parts[1]]
        expect(all(len(pair) == 2 for pair in pairs), f"{show(parts[1])} instead of pairs (codebook, key)")
        rows = [int(expect_number(row)) for row in parts[0]]
        found[kind] = rows, [(int(expect_number(one)), int(expect_number(two))) for one, two in pairs]
    return found


def _expect_pairs(found: _Found, kind: str, expected: list[tuple[int, int]], why: str) -> None:
    pairs = found[kind][1]
    expect(pairs == expected, f"{show(pairs)} instead of {show(expected)}: {why}")


@MISTAKES.probe(
    "gives rows and pairs for each kind",
    hint="return a dictionary {kind: (rows, pairs)} with two lists each; a pair is (codebook, key)",
)
def rows_and_pairs(answer: Answer) -> None:
    _mistakes(answer, {"one": [0], "other": [2]})


@MISTAKES.probe(
    "leaves out rows that the student gets right",
    hint="the answer is the class whose pushes have the higher sum; keep the row only if it is not labels[row]",
)
def only_mistakes(answer: Answer) -> None:
    rows, _ = _mistakes(answer, {"mixed": [4, 2, 0]})["mixed"]
    expect(rows == [2, 0], f"{show(rows)} instead of [2, 0]: row 4 is answered yes, and labelled yes")


@MISTAKES.probe(
    "asks each row for its own wrong class",
    hint="the wrong class is the answer of that row: 1 where the label is 0, and 0 where it is 1",
)
def own_wrong_class(answer: Answer) -> None:
    found = _mistakes(answer, {"missed": [2]}, limit=1)
    _expect_pairs(found, "missed", [(0, 2)], "row 2 is a yes that was answered no")


@MISTAKES.probe(
    "weighs a pair by both of its pushes",
    hint="a pair that pushes both classes alike decides nothing: push on the answer minus push on the label",
)
def against_the_label(answer: Answer) -> None:
    frames = {0: _fired((0, 1, 5.0, 5.5), (0, 2, 0.0, 2.0))}
    found = _mistakes(answer, {"one": [0]}, frames=frames, limit=1)
    _expect_pairs(found, "one", [(0, 2)], "it pushes 2 ahead, (0, 1) only 0.5")


@MISTAKES.probe(
    "adds up all tokens that fire a pair",
    hint="one key is fired by several tokens of a frame: group by codebook and key, then sum",
)
def all_tokens(answer: Answer) -> None:
    frames = {0: _fired((0, 1, 0.0, 2.0), (0, 2, 0.0, 1.5), (0, 2, 0.0, 1.5))}
    found = _mistakes(answer, {"one": [0]}, frames=frames, limit=1)
    _expect_pairs(found, "one", [(0, 2)], "two tokens fire it, with 1.5 each")


@MISTAKES.probe(
    "adds up all mistakes of a kind",
    hint="collect the leads of all rows of the kind first, and rank the pairs once",
)
def all_rows(answer: Answer) -> None:
    found = _mistakes(answer, {"missed": [2, 3], "again": [3, 2]}, limit=1)
    for kind in found:
        _expect_pairs(found, kind, [(1, 3)], "1.5 in row 2 and 3 in row 3; (0, 2) has 4 in row 2 alone")


@MISTAKES.probe(
    "knows a key by its codebook, too",
    hint="key 7 of codebook 0 and key 7 of codebook 1 are two keys: group by both columns",
)
def by_codebook(answer: Answer) -> None:
    frames = {0: _fired((0, 7, 0.0, 1.0), (1, 7, 0.0, 1.2), (0, 3, 0.0, 2.0))}
    found = _mistakes(answer, {"one": [0]}, frames=frames, limit=1)
    _expect_pairs(found, "one", [(0, 3)], "2.0 against 1.0 and 1.2")


@MISTAKES.probe("gives `limit` pairs, the strongest first", hint="Series.nlargest(limit) sorts and cuts")
def strongest_first_pairs(answer: Answer) -> None:
    expected = [(1, 3), (0, 2), (0, 4), (0, 5)]
    for limit in (2, 4):
        found = _mistakes(answer, {"missed": [2, 3]}, limit=limit)
        _expect_pairs(found, "missed", expected[:limit], f"limit={limit}")


@MISTAKES.probe(
    "gives two empty lists for a kind without a mistake",
    hint="pd.concat of an empty list raises: return ([], []) before it",
)
def no_mistake(answer: Answer) -> None:
    found = _mistakes(answer, {"right": [4], "missed": [2]})
    expect(found["right"] == ([], []), f"{show(found['right'])} instead of ([], [])")
