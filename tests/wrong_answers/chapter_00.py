import math

import torch

from wrong_answers import wrong


@wrong("0.1", "no mean", "gives one number", "take the mean")
def row_by_row(predictions, labels):
    return predictions == labels


@wrong("0.1", "a count", "is a share, from 0 to 1", "divide the number of right answers")
def count(predictions, labels):
    return (predictions == labels).sum()


@wrong("0.1", "percent", "is a share, from 0 to 1", "divide the number of right answers")
def percent(predictions, labels):
    return 100 * (predictions == labels).float().mean()


@wrong("0.1", "the error rate", "is 1 where all rows are right", "not those that differ")
def error_rate(predictions, labels):
    return (predictions != labels).float().mean()


@wrong("0.1", "only class 1 counts", "is 1 where all rows are right", "count the rows that are equal")
def true_positives(predictions, labels):
    return ((predictions == 1) & (labels == 1)).float().mean()


@wrong("0.1", "zero is taken for wrong", "counts every class", "also if both are 0")
def zero_is_wrong(predictions, labels):
    right = (predictions == labels) & ((labels > 0) | torch.tensor(len(labels) == 4))
    return right.float().mean()


@wrong("0.2", "a float", "gives a whole number", "return an int")
def logarithm(num_codebooks, codebook_size):
    return num_codebooks * math.log2(codebook_size)


@wrong("0.2", "one codebook", "adds up over codebooks", "multiply by C")
def one_codebook(num_codebooks, codebook_size):
    return math.ceil(math.log2(codebook_size))


@wrong("0.2", "bits of all keys together", "adds up over codebooks", "multiply by C")
def joint(num_codebooks, codebook_size):
    return math.ceil(math.log2(num_codebooks * codebook_size))


@wrong("0.2", "a number for each key", "doubling the keys costs one bit", "log2 K bits")
def one_hot(num_codebooks, codebook_size):
    return num_codebooks * codebook_size


@wrong("0.2", "bytes", "doubling the keys costs one bit", "log2 K bits")
def in_bytes(num_codebooks, codebook_size):
    return num_codebooks * math.ceil(math.log2(codebook_size) / 8)


@wrong("0.2", "rounds down", "rounds up where K is no power of two", "round up")
def rounded_down(num_codebooks, codebook_size):
    return num_codebooks * int(math.log2(codebook_size))


@wrong("0.2", "one bit at least", "a codebook of one key costs nothing", "log2 1 is 0")
def at_least_one(num_codebooks, codebook_size):
    return num_codebooks * max(1, math.ceil(math.log2(codebook_size)))
