"""Exercises of chapter 02: the teacher."""

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


RELIABILITY = Exercise("2.3", "As right as it is sure?", difficulty=2, minutes=20)


def _rows(*probabilities: tuple[float, ...]) -> torch.Tensor:
    """Return logits with these probabilities at T = 1."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def _occupied(answer: Answer, row: tuple[float, ...], label: int, temperature: float = 1.0) -> tuple[float, float]:
    """Return confidence and share right of the one bin that a single row falls into."""
    table = expect_tensor(answer(_rows(row), torch.tensor([label]), temperature, 4), (4, 3))
    (place,) = torch.where(table[:, 0] == 1)[0].tolist()
    return table[place, 1].item(), table[place, 2].item()


@RELIABILITY.probe(
    "gives three numbers for each bin",
    hint="a tensor (bins, 3): stack rows, confidence and share right with dim=1",
)
def three_numbers(answer: Answer) -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    expect_tensor(answer(_logits(21, rows=6), labels, 1.0, 5), (5, 3))


@RELIABILITY.probe(
    "counts every row once",
    hint="the ends belong to the bins: a sure row (confidence 1) to the last, one that knows nothing (1/L) to the "
    "first, also where rounding puts it a little beyond",
)
def every_row_once(answer: Answer) -> None:
    ends = torch.tensor([[0.0, 0.0, 0.0], [900.0, 0.0, 0.0]])
    logits = torch.cat([_logits(22, rows=30).float(), ends])
    counts = answer(logits, torch.zeros(32, dtype=torch.long), 1.0, 4)[:, 0]
    saw = f"{show(counts)}, in all {show(counts.sum())} of 32 rows"
    expect(counts.sum() == 32, saw)


@RELIABILITY.probe(
    "cuts from 1/L to 1", hint="the largest of L probabilities is never below 1/L: the bins begin there, not at 0"
)
def from_one_in_k(answer: Answer) -> None:
    logits = _rows((0.6, 0.4), (0.3, 0.7), (0.1, 0.9))
    counts = answer(logits, torch.tensor([0, 0, 1]), 1.0, 2)[:, 0].tolist()
    expect(counts == [2, 1], f"{show(counts)} rows instead of [2, 1] for confidences 0.6, 0.7 and 0.9, K = 2")


@RELIABILITY.probe(
    "takes the largest probability",
    hint="confidence is the probability of the class that is answered, not of the label, and not the bin's middle",
)
def largest_probability(answer: Answer) -> None:
    for label in (1, 0):
        confidence, _ = _occupied(answer, (0.15, 0.79, 0.06), label)
        saw = f"a confidence of {confidence:.4g} for probabilities 0.15, 0.79, 0.06 with label {label}"
        expect(abs(confidence - 0.79) < 1e-6, saw)


@RELIABILITY.probe(
    "softens by T", hint="divide the logits by T before the softmax: a larger T, a lower confidence"
)
def softened(answer: Answer) -> None:
    confidence, _ = _occupied(answer, (0.1, 0.8, 0.1), 1, temperature=3.0)
    expect_close(confidence, 0.5)  # 8 ** (1/3) : 1 : 1


@RELIABILITY.probe(
    "compares the answered class with the label", hint="right means argmax == label, however sure the row is"
)
def compares_class(answer: Answer) -> None:
    rows = ((0.4, 0.35, 0.25), 0, 1.0), ((0.1, 0.8, 0.1), 0, 0.0), ((0.2, 0.2, 0.6), 2, 1.0)
    for row, label, expected in rows:
        _, right = _occupied(answer, row, label)
        expect(right == expected, f"{right:.3g} instead of {expected:.0f} for probabilities {row}, label {label}")


@RELIABILITY.probe(
    "takes means over the rows of the bin", hint="divide each bin's sum by the bin's own number of rows, not by N"
)
def means_of_bin(answer: Answer) -> None:
    table = answer(_rows((0.6, 0.4), (0.3, 0.7), (0.1, 0.9)), torch.tensor([0, 0, 1]), 1.0, 2)
    expect_close(table, torch.tensor([[2, 0.65, 0.5], [1, 0.9, 1.0]]))


@RELIABILITY.probe("gives zeros to an empty bin", hint="0 / 0 is NaN: divide by rows.clamp(min=1)")
def empty_bin(answer: Answer) -> None:
    table = answer(_rows((0.95, 0.05), (0.99, 0.01)), torch.tensor([0, 0]), 1.0, 3)
    expect((table[:2] == 0).all(), f"{show(table[0])} for a bin without rows")
