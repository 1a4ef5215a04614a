"""Exercises of chapter 00: start here."""

import torch

from workbook.checking import Answer, Exercise, expect, expect_number

ACCURACY = Exercise("0.1", "A share of right answers", difficulty=1, minutes=3)


def _predictions(seed: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, (rows,), generator=generator), torch.randint(3, (rows,), generator=generator)


@ACCURACY.probe("gives one number", hint="compare the two tensors first, then take the mean of what is equal")
def one_number(answer: Answer) -> None:
    expect_number(answer(*_predictions(1, 8)))


@ACCURACY.probe("is a share, from 0 to 1", hint="divide the number of right answers by the number of rows")
def share(answer: Answer) -> None:
    predictions, labels = _predictions(2, 40)
    found = expect_number(answer(predictions, labels))
    right = int((predictions == labels).sum())
    expect(0 <= found <= 1, f"{found:.4g} where {right} of 40 rows are right")


@ACCURACY.probe("is 1 where all rows are right", hint="count the rows that are equal, not those that differ")
def all_right(answer: Answer) -> None:
    labels = torch.tensor([2, 0, 1, 1])
    found = expect_number(answer(labels, labels))
    expect(abs(found - 1) < 1e-6, f"{found:.4g}")


@ACCURACY.probe("counts every class", hint="a row is right if both numbers are equal, also if both are 0 or 2")
def every_class(answer: Answer) -> None:
    predictions, labels = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 0, 1, 2, 1, 0])
    found = expect_number(answer(predictions, labels))
    expect(abs(found - 4 / 6) < 1e-6, f"{found:.4g} where 4 of 6 rows are right")


BITS = Exercise("0.2", "How many bits a token costs", difficulty=1, minutes=5)


@BITS.probe(
    "gives a whole number", hint="bits are counted in whole numbers: return an int, not a float or a tensor"
)
def whole_number(answer: Answer) -> None:
    found = answer(32, 256)
    expect(type(found) is int, f"{type(found).__name__} {found}")


@BITS.probe(
    "adds up over codebooks", hint="each of the C codebooks writes down a key index of its own: multiply by C"
)
def per_codebook(answer: Answer) -> None:
    one, eight = answer(1, 256), answer(8, 256)
    expect(eight == 8 * one, f"{one} bits for 1 codebook of 256 keys, {eight} for 8")


@BITS.probe(
    "doubling the keys costs one bit", hint="b bits tell 2**b keys apart, so one of K keys takes log2 K bits"
)
def doubling(answer: Answer) -> None:
    fewer, more = answer(1, 256), answer(1, 512)
    expect(more == fewer + 1, f"{fewer} bits for 256 keys, {more} for 512")
    expect(fewer == 8, f"{fewer} bits for 256 keys")


@BITS.probe(
    "rounds up where K is no power of two", hint="2 bits tell only 4 keys apart: 5 keys need 3, so round up"
)
def rounds_up(answer: Answer) -> None:
    found = [answer(1, keys) for keys in (5, 8, 1000)]
    expect(found == [3, 3, 10], f"{found} bits for 5, 8 and 1000 keys")


@BITS.probe("a codebook of one key costs nothing", hint="with one key there is nothing to tell apart: log2 1 is 0")
def one_key(answer: Answer) -> None:
    found = answer(64, 1)
    expect(found == 0, f"{found} bits for 64 codebooks of one key")
