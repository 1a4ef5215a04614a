"""Exercises of chapter 06: evaluation."""

import numpy as np
import pandas as pd
from sklearn.metrics import matthews_corrcoef

from workbook.checking import Answer, Exercise, Mistake, expect, expect_close, expect_number, show

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


SMALLEST = Exercise("6.3", "The smallest student that keeps 95 %", difficulty=3, minutes=20)


def _candidates(*rows: tuple[str, float, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["system", "parameters_m", "score", "lost_low", "lost_high"])


def _chosen(value: object) -> tuple[str | None, str | None]:
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    expect(pair and all(name is None or isinstance(name, str) for name in value), f"{type(value).__name__}")
    return tuple(value)


# a teacher of 0.90 above a majority class of 0.50 may lose 0.02
_CLEAR = (
    ("six layers", 22.6, 0.898, 0.001, 0.006),
    ("four layers", 19.0, 0.892, 0.003, 0.012),
    ("two layers", 15.5, 0.860, 0.025, 0.055),
)


@SMALLEST.probe("gives two names", hint="return measured, shown: two texts of the column system, or None")
def two_names(answer: Answer) -> None:
    _chosen(answer(_candidates(*_CLEAR), 0.9, 0.5))


@SMALLEST.probe(
    "counts what is kept above the majority class",
    hint="compare score - floor with share · (teacher_score - floor): nobody learned the points of the floor",
)
def above_floor(answer: Answer) -> None:
    frame = _candidates(("large", 20.0, 0.895, 0.001, 0.009), ("small", 10.0, 0.870, 0.010, 0.050))
    measured, _ = _chosen(answer(frame, 0.9, 0.68))
    expect(measured == "large", f"{measured}; of 0.22 above the floor, small keeps 0.19, that is 86 %")


@SMALLEST.probe(
    "takes the smallest, not the best", hint="all that keep enough are good enough: choose by parameters_m"
)
def smallest(answer: Answer) -> None:
    measured, _ = _chosen(answer(_candidates(*_CLEAR), 0.9, 0.5))
    expect(measured == "four layers", f"{measured}; four layers keep 0.392 of 0.400")


@SMALLEST.probe(
    "does not depend on the order of the rows",
    hint="sort by parameters_m yourself; idxmin gives an index label, for .loc, where .iloc wants a place",
)
def any_order(answer: Answer) -> None:
    frame = _candidates(
        ("d", 19.0, 0.892, 0.003, 0.012),
        ("a", 11.0, 0.700, 0.150, 0.250),
        ("c", 16.0, 0.889, 0.004, 0.016),
        ("e", 22.6, 0.898, 0.001, 0.006),
    )
    frame.index = [3, 2, 1, 0]  # a frame that was sorted before does not count from 0
    for shuffled in (frame, frame.iloc[::-1], frame.iloc[[1, 3, 0, 2]]):
        measured, _ = _chosen(answer(shuffled, 0.9, 0.5))
        expect(measured == "c", f"{measured} in the order {', '.join(shuffled['system'])}")


@SMALLEST.probe(
    "takes the better of two of one size",
    hint='sort_values(["parameters_m", "score"], ascending=[True, False]) puts it first',
)
def ties(answer: Answer) -> None:
    frame = _candidates(("worse", 17.0, 0.885, 0.005, 0.018), ("better", 17.0, 0.895, 0.001, 0.009))
    for ordered in (frame, frame.iloc[::-1]):
        measured, _ = _chosen(answer(ordered, 0.9, 0.5))
        expect(measured == "better", f"{measured}, in the order {', '.join(ordered['system'])}")


@SMALLEST.probe("follows `share`", hint="the limit is (1 - share) of what the teacher has above the floor")
def other_share(answer: Answer) -> None:
    measured, _ = _chosen(answer(_candidates(*_CLEAR), 0.9, 0.5, share=0.8))
    expect(measured == "two layers", f"{measured} for share=0.8; two layers keep 90 %")


@SMALLEST.probe(
    "gives None where nobody keeps enough", hint="the best of those that lose too much still loses too much"
)
def nobody(answer: Answer) -> None:
    chosen = _chosen(answer(_candidates(*_CLEAR[2:], ("one layer", 13.7, 0.8, 0.06, 0.14)), 0.9, 0.5))
    expect(chosen == (None, None), f"{show(chosen)}, where the best keeps 90 %")


@SMALLEST.probe(
    "does not take “no difference shown” for “no loss”",
    hint="an interval that holds 0 may be a wide one: ask whether the loss at its high end is within the limit",
)
def not_insignificance(answer: Answer) -> None:
    frame = _candidates(("large", 20.0, 0.896, 0.001, 0.008), ("small", 10.0, 0.872, -0.010, 0.066))
    _, shown = _chosen(answer(frame, 0.9, 0.5))
    expect(shown == "large", f"{shown} as shown; small may lose 0.066, where 0.020 are allowed")


@SMALLEST.probe(
    "does not take a measured loss for a shown one",
    hint="for the second name, lost_high must be within the limit, not teacher_score - score",
)
def worst_case(answer: Answer) -> None:
    frame = _candidates(("large", 20.0, 0.896, 0.001, 0.008), ("small", 10.0, 0.890, 0.002, 0.031))
    chosen = _chosen(answer(frame, 0.9, 0.5))
    expect(chosen == ("small", "large"), f"{show(chosen)}; small may lose 0.031, where 0.020 are allowed")


@SMALLEST.probe(
    "refuses a teacher that has nothing above the floor",
    hint="a share of nothing means nothing: raise ValueError where teacher_score <= floor",
)
def weak_teacher(answer: Answer) -> None:
    for teacher_score in (0.5, 0.45):
        frame = _candidates(("large", 20.0, 0.52, -0.05, 0.01), ("small", 10.0, 0.40, 0.02, 0.18))
        try:
            chosen = answer(frame, teacher_score, 0.5)
        except Mistake as mistake:
            if not isinstance(mistake.__cause__, ValueError):
                raise Mistake(f"{mistake.saw}, not a ValueError") from mistake
        else:
            raise Mistake(f"{show(chosen)} for a teacher of {teacher_score} and a floor of 0.5")


PUSHES = Exercise("6.4", "How many pushes carry the verdict?", difficulty=2, minutes=10)


def _explained(
    leads: np.ndarray, common: np.ndarray | float = 0.0, bias: tuple[float, float] | None = None
) -> pd.DataFrame:
    """Make a frame like `explain`'s with four codebooks: `leads` of the class yes over no, key by key."""
    generator = np.random.default_rng(len(leads))
    frame = pd.DataFrame(
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
    if bias is not None:
        row = {"position": -1, "token": "[bias]", "codebook": -1, "key": -1, "distance": 0.0}
        frame.loc[len(frame)] = row | dict(zip(("push_no", "push_yes"), bias, strict=True))
    return frame


def _leads(seed: int, foes: float = 0.5) -> np.ndarray:
    """Draw the leads of 20 rows, in random order: 14 of 1 to 2 for, 6 of `foes` to twice that against."""
    generator = np.random.default_rng(seed)
    leads = np.concatenate([1 + generator.random(14), -foes * (1 + generator.random(6))])
    return generator.permutation(leads)


def _fewest(frame: pd.DataFrame) -> int | None:
    lead = (frame["push_yes"] - frame["push_no"]).to_numpy()
    lead = lead * np.sign(lead.sum())
    left = lead.sum() - np.cumsum(np.sort(lead[frame["codebook"].to_numpy() >= 0])[::-1])
    return int((left <= 0).argmax()) + 1 if (left <= 0).any() else None


def _expect_count(answer: Answer, frame: pd.DataFrame, where: str) -> None:
    found, expected = answer(frame), _fewest(frame)
    fits = found is None if expected is None else found is not None and expect_number(found) == expected
    expect(fits, f"{show(found)} instead of {expected} {where}")


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


@PUSHES.probe("works for either verdict", hint="the verdict is the class with the higher sum: it may be the first")
def either_class(answer: Answer) -> None:
    _expect_count(answer, _explained(-_leads(5)), "where the first class wins")


@PUSHES.probe(
    "counts a bias in the lead, and leaves it there",
    hint="the row of codebook -1 belongs to the logits, but no key fires there: it cannot be taken away",
)
def bias_stays(answer: Answer) -> None:
    _expect_count(answer, _explained(_leads(6), bias=(-1.0, 1.5)), "with a bias that leads by 2.5")
    _expect_count(answer, _explained(_leads(7), bias=(2.0, -2.5)), "with a bias that holds against by 4.5")


@PUSHES.probe(
    "gives None where no number turns the verdict",
    hint="argmax of a column that is False throughout is 0: ask any() first",
)
def never(answer: Answer) -> None:
    _expect_count(answer, _explained(_leads(8), bias=(0.0, 90.0)), "where the bias outweighs all other rows")
