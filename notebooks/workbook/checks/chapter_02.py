"""Exercises of chapter 02: the teacher."""

from collections.abc import Callable
from typing import Any

import torch

from workbook.checking import Answer, Exercise, expect, expect_close, expect_number, expect_tensor, show

POOL = Exercise("2.1", "One vector for each text of a pair", difficulty=2, minutes=10)


def _pairs(seed: int, lengths: list[tuple[int, int]], padding: int = 0, dim: int = 3) -> tuple[torch.Tensor, ...]:
    """Return float64 hidden states, mask and segments of pairs with so many tokens in each text."""
    longest = max(map(sum, lengths)) + padding
    generator = torch.Generator().manual_seed(seed)
    hidden_states = 1 + torch.randn(len(lengths), longest, dim, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1] * (a + b) + [0] * (longest - a - b) for a, b in lengths])
    segments = torch.tensor([[0] * a + [1] * b + [0] * (longest - a - b) for a, b in lengths])
    return hidden_states, mask, segments


def _means(hidden_states: torch.Tensor, lengths: list[tuple[int, int]]) -> torch.Tensor:
    rows = zip(hidden_states, lengths, strict=True)
    return torch.stack([torch.stack([row[:a].mean(0), row[a : a + b].mean(0)]) for row, (a, b) in rows])


@POOL.probe(
    "gives two vectors per row",
    hint="stack the two texts' vectors along a new dimension: torch.stack([first, second], dim=1)",
)
def two_vectors(answer: Answer) -> None:
    expect_tensor(answer(*_pairs(1, [(3, 4), (4, 2), (2, 2), (3, 3)])), (4, 2, 3))


@POOL.probe(
    "puts the first text first",
    hint="segment 0 is the first text: its mean belongs to [:, 0], that of segment 1 to [:, 1]",
)
def first_first(answer: Answer) -> None:
    hidden_states, mask, segments = _pairs(2, [(3, 3)])
    hidden_states = segments.unsqueeze(-1).expand(1, 6, 3).double()  # tokens of the first text 0, others 1
    pooled = expect_tensor(answer(hidden_states, mask, segments), (1, 2, 3))
    first, second = pooled[0, :, 0].tolist()
    saw = f"{show(first)} and {show(second)} where all vectors of the first text are 0, of the second 1"
    expect(first < second, saw)


@POOL.probe(
    "keeps the two texts apart",
    hint="a token counts for its own text only: choose by token_type_ids as well as by the mask",
)
def apart(answer: Answer) -> None:
    lengths = [(3, 4)]
    hidden_states, mask, segments = _pairs(3, lengths)
    moved = hidden_states + segments.unsqueeze(-1)
    before, after = (expect_tensor(answer(states, mask, segments), (1, 2, 3)) for states in (hidden_states, moved))
    difference = (after - before)[0, 0].abs().max().item()
    expect(
        difference < 1e-6, f"the first vector changes by {difference:.3g} when the second text's states rise by 1"
    )


@POOL.probe(
    "divides by the text's own tokens",
    hint="mean(1) divides by T, the mask's sum by the tokens of both texts: divide each sum by its own count",
)
def own_count(answer: Answer) -> None:
    lengths = [(3, 4)]
    hidden_states, mask, segments = _pairs(4, lengths)
    pooled = expect_tensor(answer(hidden_states, mask, segments), (1, 2, 3))
    shares = (pooled / _means(hidden_states, lengths))[0, :, 0].tolist()
    saw = f"{shares[0]:.3g} and {shares[1]:.3g} times the means of texts of 3 and 4 tokens (T = 7)"
    expect(max(abs(share - 1) for share in shares) < 1e-3, saw)


@POOL.probe(
    "leaves padding out",
    hint="padding has segment 0, like the first text: a token counts if its segment fits *and* its mask is 1",
)
def no_padding(answer: Answer) -> None:
    lengths = [(3, 4), (2, 2)]
    hidden_states, mask, segments = _pairs(5, lengths, padding=3)
    pooled = expect_tensor(answer(hidden_states, mask, segments), (2, 2, 3))
    difference = (pooled - _means(hidden_states, lengths)).abs().amax(-1).amax(0).tolist()
    saw = f"first texts are off by up to {difference[0]:.3g}, second by {difference[1]:.3g}"
    expect(max(difference) < 1e-4, saw)


@POOL.probe(
    "gives zeros to a text that is not there",
    hint="0 / 0 is NaN, and 1e-9 is 0 in float16: divide by count.clamp(min=1)",
)
def missing_text(answer: Answer) -> None:
    hidden_states, mask, segments = _pairs(6, [(5, 0), (2, 3)])
    for dtype in (torch.float32, torch.float16):
        second = answer(hidden_states.to(dtype), mask, segments)[0, 1]
        expect((second == 0).all(), f"{show(second)} for a second text of no tokens ({dtype})")


@POOL.probe(
    "keeps the hidden states' type",
    hint="a float32 mask times bfloat16 states is float32: turn the mask into hidden_states.dtype",
)
def same_type(answer: Answer) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        hidden_states, mask, segments = _pairs(7, [(3, 4), (2, 2)])
        pooled = answer(hidden_states.to(dtype), mask, segments)
        expect(pooled.dtype == dtype, f"{pooled.dtype} for hidden states in {dtype}")


@POOL.probe(
    "survives sums beyond float16",
    hint="divide the mask before it meets the states, so that each text's weights sum to 1; or add up in float32",
)
def no_overflow(answer: Answer) -> None:
    lengths = [(40, 100)]
    hidden_states, mask, segments = _pairs(8, lengths)
    hidden_states = (1000 + hidden_states).half()
    pooled = expect_tensor(answer(hidden_states, mask, segments), (1, 2, 3))
    expect(pooled.isfinite().all(), f"{show(pooled[0, 1])} for the mean of 100 vectors near 1000, in float16")
    expect_close(pooled, _means(hidden_states.double(), lengths), tolerance=2e-3)


TEMPERATURE = Exercise("2.2", "A temperature for a wanted confidence", difficulty=2, minutes=10)


def _logits(seed: int, rows: int = 20, labels: int = 3, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, labels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _confidence(logits: torch.Tensor, temperature: float) -> float:
    return (logits.double() / temperature).softmax(-1).amax(-1).mean().item()


def _expect_reached(answer: Answer, logits: torch.Tensor, wanted: float, tolerance: float = 0.01) -> None:
    temperature = expect_number(answer(logits, wanted))
    expect(temperature > 0, f"T = {temperature:.4g}")
    found = _confidence(logits, temperature)
    saw = f"T = {temperature:.5g}: the mean largest probability is {found:.5f} instead of {wanted}"
    expect(abs(found - wanted) <= tolerance, saw)


@TEMPERATURE.probe(
    "gives one positive number",
    hint="all rows share one temperature: take the mean of their largest probabilities first",
)
def one_temperature(answer: Answer) -> None:
    temperature = expect_number(answer(_logits(1), 0.7))
    expect(temperature > 0, f"T = {temperature:.4g}")


@TEMPERATURE.probe(
    "is right for a single row",
    hint="probabilities are softmax(logits / T), more alike the larger T is: too sure means T is too low",
)
def single_row(answer: Answer) -> None:
    _expect_reached(answer, torch.tensor([[6.0, 3.0, -1.0]], dtype=torch.float64), 0.7)


@TEMPERATURE.probe(
    "takes each row's largest probability",
    hint="the sure class differs from row to row: amax over the classes, dim=-1, not one column",
)
def any_class(answer: Answer) -> None:
    for row in ([3.0, 6.0, -1.0], [-1.0, 3.0, 6.0]):
        _expect_reached(answer, torch.tensor([row, row], dtype=torch.float64), 0.7)


@TEMPERATURE.probe(
    "takes the mean of probabilities",
    hint="soften each row, take its largest probability, then the mean; a mean of logits or of T differs",
)
def mean_of_probabilities(answer: Answer) -> None:
    logits = torch.tensor([[8.0, 0.0], [0.0, 4.0], [0.5, 0.0], [0.0, 1.0]], dtype=torch.float64)
    _expect_reached(answer, logits, 0.8)


@TEMPERATURE.probe(
    "depends on the differences of logits alone",
    hint="a number added to all logits of a row changes no probability, but exp overflows: take torch.softmax",
)
def shifted(answer: Answer) -> None:
    _expect_reached(answer, 5000 + _logits(10), 0.7)


@TEMPERATURE.probe("goes below 1 to sharpen", hint="begin the interval near zero, for example at 1e-4, not at 1")
def below_one(answer: Answer) -> None:
    _expect_reached(answer, _logits(5, scale=0.6), 0.9)


@TEMPERATURE.probe(
    "goes as high as large logits need",
    hint="end the interval far up, for example at 1e6, or double its end until it holds the wanted T",
)
def far_above(answer: Answer) -> None:
    _expect_reached(answer, _logits(6, scale=4000.0), 0.6)


@TEMPERATURE.probe(
    "meets the confidence to 0.0001", hint="a grid is too coarse: halve the interval, some 60 times, between ends"
)
def exact(answer: Answer) -> None:
    for seed, wanted in ((7, 0.55), (8, 0.73), (9, 0.91)):
        _expect_reached(answer, _logits(seed), wanted, tolerance=1e-4)


DIAGNOSE = Exercise("2.3", "What is wrong with these logits?", difficulty=3, minutes=20)
WORDS = ("not finite", "constant", "saturated", "fine", "renamed", "shuffled", "weak")


def _labels(seed: int, shares: tuple[float, ...], rows: int = 400) -> torch.Tensor:
    """Return labels of exactly these shares, mixed."""
    counts = torch.tensor([round(share * rows) for share in shares])
    labels = torch.repeat_interleave(torch.arange(len(shares)), counts)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def _teacher(seed: int, labels: torch.Tensor, margin: float = 3.0, right: float = 0.9) -> torch.Tensor:
    """Return logits that favour the right label in this share of rows, by about `margin`, else the next."""
    classes = int(labels.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(labels), generator=generator)[round(right * len(labels)) :]
    said = labels.clone()
    said[wrong] = (said[wrong] + 1) % classes
    noise = torch.rand(len(labels), classes, generator=generator)
    return margin * (torch.nn.functional.one_hot(said, classes) + 0.5 * noise)


def _expect_word(
    answer: Callable[..., Any], logits: torch.Tensor, labels: torch.Tensor, word: str, what: str
) -> None:
    found = answer(logits, labels)
    expect(isinstance(found, str) and found == word, f'"{show(found)}" instead of "{word}" for {what}')


def _numbers(logits: torch.Tensor, labels: torch.Tensor) -> str:
    """Describe logits by the numbers that the definitions use."""
    accuracy = (logits.argmax(-1) == labels).double().mean().item()
    floor = labels.bincount().max().item() / len(labels)
    return (
        f"accuracy {accuracy:.2f}, floor {floor:.2f}, "
        f"confidence {_confidence(logits, 1):.2f} at T = 1, {_confidence(logits, 4):.2f} at T = 4"
    )


@DIAGNOSE.probe("answers with one of the seven words", hint=f"return one string: {', '.join(WORDS)}")
def one_word(answer: Answer) -> None:
    labels = _labels(1, (0.5, 0.5))
    found: Any = answer(_teacher(1, labels), labels)
    expect(isinstance(found, str) and found in WORDS, f"{type(found).__name__} {show(found)}")


@DIAGNOSE.probe(
    "calls a good teacher fine",
    hint="compare argmax(-1), one class per row, with the labels; good is floor + (1 - floor) / 5 or more",
)
def good(answer: Answer) -> None:
    for seed, shares in ((2, (0.5, 0.5)), (3, (0.2, 0.3, 0.5)), (4, (0.1, 0.9))):
        labels = _labels(seed, shares)
        logits = _teacher(seed, labels, right=0.93)
        _expect_word(answer, logits, labels, "fine", _numbers(logits, labels))


@DIAGNOSE.probe(
    "sees NaN and both infinities",
    hint="isnan misses infinity, and a comparison with NaN is always false: not logits.isfinite().all()",
)
def not_finite(answer: Answer) -> None:
    labels = _labels(5, (0.5, 0.5))
    for value in (torch.nan, torch.inf, -torch.inf):
        logits = _teacher(5, labels)
        logits[7, 0] = value
        _expect_word(answer, logits, labels, "not finite", f"logits of which one is {value}")


@DIAGNOSE.probe(
    "finds a constant answer behind logits that vary",
    hint="a number added to all logits of a row changes no probability: look at the softmax, not at the logits",
)
def constant(answer: Answer) -> None:
    labels = _labels(6, (0.4, 0.3, 0.3))
    generator = torch.Generator().manual_seed(6)
    logits = torch.tensor([0.3, 0.1, -0.2]) + 0.02 * torch.randn(400, 3, generator=generator)
    _expect_word(answer, logits, labels, "constant", "rows that hardly differ")
    logits = logits + 5 * torch.randn(400, 1, generator=generator)
    _expect_word(answer, logits, labels, "constant", "the same rows, with another number added to each")


@DIAGNOSE.probe(
    "does not take one verdict for a constant answer",
    hint="rows with the same argmax can still differ in how sure they are: look at the probabilities' spread",
)
def same_verdict(answer: Answer) -> None:
    labels = _labels(7, (0.45, 0.55))
    second = 0.2 + torch.rand(400, generator=torch.Generator().manual_seed(7))
    logits = torch.stack([torch.zeros(400), second], dim=1)
    what = f"rows that all favour class 1, with probabilities from 0.55 to 0.77 ({_numbers(logits, labels)})"
    _expect_word(answer, logits, labels, "weak", what)


@DIAGNOSE.probe(
    "measures saturation at T = 4",
    hint="a good teacher is sure at T = 1; saturated means a confidence above 0.99 at T = 4",
)
def saturated(answer: Answer) -> None:
    labels = _labels(8, (0.3, 0.3, 0.4))
    for margin, word in ((20.0, "fine"), (100.0, "saturated")):
        logits = _teacher(8, labels, margin, right=0.95)
        _expect_word(answer, logits, labels, word, _numbers(logits, labels))


@DIAGNOSE.probe(
    "measures goodness from the floor",
    hint="a constant reaches the most frequent label's share: good starts a fifth of the way from there to 1",
)
def from_the_floor(answer: Answer) -> None:
    labels = _labels(9, (0.1, 0.9))
    logits = _teacher(9, labels, margin=4.0, right=0.85)
    _expect_word(answer, logits, labels, "weak", _numbers(logits, labels))


@DIAGNOSE.probe(
    "finds renamed classes",
    hint="try every order of the classes, itertools.permutations(range(K)), not only the reverse or a rotation",
)
def renamed(answer: Answer) -> None:
    for seed, shares, order in (
        (10, (0.5, 0.5), [1, 0]),
        (11, (0.3, 0.3, 0.4), [1, 2, 0]),
        (12, (0.2, 0.2, 0.2, 0.2, 0.2), [0, 2, 4, 1, 3]),  # no rotation brings two columns home
    ):
        labels = _labels(seed, shares)
        logits = _teacher(seed, labels)[:, order]
        _expect_word(answer, logits, labels, "renamed", f"columns in the order {order}")


@DIAGNOSE.probe(
    "renames one to one",
    hint="two classes cannot get the same new name: each column of a renaming stands for another label",
)
def one_to_one(answer: Answer) -> None:
    labels = _labels(13, (0.68, 0.3, 0.02))
    said = torch.tensor([0, 2, 0])[labels]
    said[torch.where(labels == 0)[0][::2]] = 1  # columns 0 and 1 share the rows of class 0, column 2 has class 1
    noise = torch.rand(400, 3, generator=torch.Generator().manual_seed(13))
    logits = 0.5 * torch.nn.functional.one_hot(said, 3) + 0.1 * noise
    what = "column 2 for class 1, columns 0 and 1 both for class 0"
    _expect_word(answer, logits, labels, "weak", f"{what} ({_numbers(logits, labels)})")


@DIAGNOSE.probe(
    "finds rows out of order",
    hint="where confidence exceeds accuracy by 0.2, on rows of its training, it answers other rows",
)
def out_of_order(answer: Answer) -> None:
    for seed, shares in ((14, (0.5, 0.5)), (15, (0.2, 0.3, 0.5))):
        labels = _labels(seed, shares)
        mixed = torch.randperm(400, generator=torch.Generator().manual_seed(seed + 100))
        logits = _teacher(seed, labels, margin=6.0)[mixed]
        _expect_word(answer, logits, labels, "shuffled", _numbers(logits, labels))


@DIAGNOSE.probe(
    "tells a weak teacher from shuffled rows",
    hint="a teacher that has learnt little is not sure either: compare its confidence with its accuracy",
)
def weak(answer: Answer) -> None:
    for seed, shares in ((16, (0.5, 0.5)), (17, (0.3, 0.3, 0.4))):
        labels = _labels(seed, shares)
        mixed = torch.randperm(400, generator=torch.Generator().manual_seed(seed + 100))
        logits = _teacher(seed, labels, margin=0.6)[mixed]
        _expect_word(answer, logits, labels, "weak", _numbers(logits, labels))
