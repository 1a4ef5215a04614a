import itertools

import torch

from wrong_answers import wrong

# 2.1 pooling


def weights_of(attention_mask, token_type_ids):
    """Mask of each text's own tokens, (B, 2, T)."""
    return torch.stack([(token_type_ids == text) & attention_mask.bool() for text in (0, 1)], dim=1)


def pooled(hidden_states, chosen):
    chosen = chosen.to(hidden_states.dtype)
    return (chosen / chosen.sum(-1, keepdim=True).clamp(min=1)) @ hidden_states


@wrong("2.1", "joins the vectors", "gives two vectors per row", "along a new dimension")
def joined(hidden_states, attention_mask, token_type_ids):
    return pooled(hidden_states, weights_of(attention_mask, token_type_ids)).flatten(1)


@wrong("2.1", "second text first", "puts the first text first", "segment 0 is the first text")
def turned(hidden_states, attention_mask, token_type_ids):
    return pooled(hidden_states, weights_of(attention_mask, token_type_ids)).flip(1)


@wrong("2.1", "first text over the whole pair", "keeps the two texts apart", "choose by token_type_ids")
def whole_pair_first(hidden_states, attention_mask, token_type_ids):
    chosen = weights_of(attention_mask, token_type_ids)
    chosen[:, 0] = attention_mask.bool()
    return pooled(hidden_states, chosen)


@wrong("2.1", "divides by T", "divides by the text's own tokens", "mean(1) divides by T")
def over_all_positions(hidden_states, attention_mask, token_type_ids):
    chosen = weights_of(attention_mask, token_type_ids).to(hidden_states.dtype)
    return torch.stack([(hidden_states * part.unsqueeze(-1)).mean(1) for part in chosen.unbind(1)], dim=1)


@wrong("2.1", "divides by both texts", "divides by the text's own tokens", "by its own count")
def over_both(hidden_states, attention_mask, token_type_ids):
    chosen = weights_of(attention_mask, token_type_ids).to(hidden_states.dtype)
    return chosen @ hidden_states / attention_mask.sum(1).to(hidden_states.dtype)[:, None, None]


@wrong("2.1", "goes by segments alone", "leaves padding out", "padding has segment 0")
def segments_alone(hidden_states, attention_mask, token_type_ids):
    return pooled(hidden_states, weights_of(torch.ones_like(attention_mask), token_type_ids))


@wrong("2.1", "divides zero by zero", "gives zeros to a text that is not there", "count.clamp(min=1)")
def no_clamp(hidden_states, attention_mask, token_type_ids):
    chosen = weights_of(attention_mask, token_type_ids).to(hidden_states.dtype)
    return (chosen / chosen.sum(-1, keepdim=True)) @ hidden_states


@wrong("2.1", "clamps to 1e-9", "gives zeros to a text that is not there", "1e-9 is 0 in float16")
def tiny_clamp(hidden_states, attention_mask, token_type_ids):
    chosen = weights_of(attention_mask, token_type_ids).to(hidden_states.dtype)
    return (chosen / chosen.sum(-1, keepdim=True).clamp(min=1e-9)) @ hidden_states


@wrong("2.1", "float32 mask", "keeps the hidden states' type", "hidden_states.dtype")
def always_float(hidden_states, attention_mask, token_type_ids):
    chosen = weights_of(attention_mask, token_type_ids).float().unsqueeze(-1)
    return (chosen * hidden_states.unsqueeze(1)).sum(2) / chosen.sum(2).clamp(min=1)


@wrong("2.1", "adds up in float16", "survives sums beyond float16", "divide the mask before")
def sum_first(hidden_states, attention_mask, token_type_ids):
    chosen = weights_of(attention_mask, token_type_ids).to(hidden_states.dtype)
    sums = torch.stack([(hidden_states * part.unsqueeze(-1)).sum(1) for part in chosen.unbind(1)], dim=1)
    return sums / chosen.sum(-1, keepdim=True).clamp(min=1)


# 2.2 temperature


def confidence_at(logits, temperature):
    return torch.softmax(logits / temperature, dim=-1).amax(-1).mean()


def halved(logits, confidence, measure=confidence_at, low=1e-4, high=1e6, steps=80):
    for _ in range(steps):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if measure(logits, middle) > confidence else (low, middle)
    return middle


@wrong("2.2", "one temperature a row", "gives one positive number", "all rows share one temperature")
def row_by_row(logits, confidence):
    return torch.tensor([halved(row.unsqueeze(0), confidence) for row in logits])


@wrong("2.2", "multiplies by T", "is right for a single row", "softmax(logits / T)")
def multiplied(logits, confidence):
    return 1 / halved(logits, confidence)


@wrong("2.2", "halves to the wrong side", "is right for a single row", "too sure means T is too low")
def wrong_side(logits, confidence):
    return halved(logits, -confidence, lambda *given: -confidence_at(*given))


@wrong("2.2", "looks at one column", "takes each row's largest probability", "not one column")
def first_column(logits, confidence):
    return halved(logits, confidence, lambda given, t: torch.softmax(given / t, dim=-1)[:, 0].mean())


@wrong("2.2", "mean of the logits", "takes the mean of probabilities", "a mean of logits")
def mean_logits(logits, confidence):
    return halved(logits.mean(0, keepdim=True), confidence)


@wrong("2.2", "mean of temperatures", "takes the mean of probabilities", "or of T differs")
def mean_temperature(logits, confidence):
    return sum(halved(row.unsqueeze(0), confidence) for row in logits) / len(logits)


@wrong("2.2", "begins at 1", "goes below 1 to sharpen", "begin the interval near zero")
def from_one(logits, confidence):
    return halved(logits, confidence, low=1.0)


@wrong("2.2", "ends at 100", "goes as high as large logits need", "end the interval far up")
def up_to_hundred(logits, confidence):
    return halved(logits, confidence, high=100.0)


@wrong("2.2", "exp overflows", "depends on the differences of logits alone", "torch.softmax")
def bare_exp(logits, confidence):
    def measure(given, temperature):
        exponents = torch.exp(given / temperature)
        return (exponents / exponents.sum(-1, keepdim=True)).amax(-1).mean()

    return halved(logits, confidence, measure)


@wrong("2.2", "searches a grid", "meets the confidence to 0.0001", "halve the interval")
def grid(logits, confidence):
    grid = torch.logspace(-4, 6, 1000).tolist()
    return min(grid, key=lambda temperature: abs(confidence_at(logits, temperature) - confidence))


# 2.3 diagnosis


def all_orders(classes):
    return itertools.permutations(range(classes))


def accuracy_of(logits, labels):
    return (logits.argmax(-1) == labels).double().mean().item()


def floor_of(logits, labels):
    return labels.bincount().max().item() / len(labels)


def is_finite(logits):
    return logits.isfinite().all()


def is_constant(logits, labels):
    return logits.softmax(-1).std(0).max() <= 0.02


def is_sure(logits):
    return confidence_at(logits, 4) > 0.99


def can_be_renamed(logits, labels, needed, orders=all_orders):
    return any(accuracy_of(logits[:, list(order)], labels) >= needed for order in orders(logits.shape[1]))


def surer_than_right(logits, labels):
    return confidence_at(logits, 1) - accuracy_of(logits, labels) >= 0.2


def tree(
    logits,
    labels,
    finite=is_finite,
    constant=is_constant,
    floor=floor_of,
    accuracy=accuracy_of,
    sure=is_sure,
    renamed=can_be_renamed,
    shuffled=surer_than_right,
):
    if not finite(logits):
        return "not finite"
    if constant(logits, labels):
        return "constant"
    needed = floor(logits, labels) + (1 - floor(logits, labels)) / 5
    if accuracy(logits, labels) >= needed:
        return "saturated" if sure(logits) else "fine"
    if renamed(logits, labels, needed):
        return "renamed"
    return "shuffled" if shuffled(logits, labels) else "weak"


@wrong("2.3", "returns a sentence", "answers with one of the seven words", "return one string")
def sentence(logits, labels):
    return f"the teacher is {tree(logits, labels)}"


@wrong("2.3", "argmax over the rows", "calls a good teacher fine", "one class per row")
def over_rows(logits, labels):
    return tree(logits, labels, accuracy=lambda *given: (logits.argmax(0)[0] == labels).double().mean())


@wrong("2.3", "looks for NaN alone", "sees NaN and both infinities", "isnan misses infinity")
def nan_alone(logits, labels):
    return tree(logits, labels, finite=lambda given: not given.isnan().any())


@wrong("2.3", "spread of the logits", "finds a constant answer behind logits that vary", "changes no probability")
def spread_of_logits(logits, labels):
    return tree(logits, labels, constant=lambda *_: logits.std(0).max() <= 0.1)


@wrong(
    "2.3",
    "one argmax is constant",
    "does not take one verdict for a constant answer",
    "differ in how sure they are",
)
def one_argmax(logits, labels):
    same = len(logits.argmax(-1).unique()) == 1
    return tree(logits, labels, constant=lambda *given: same or is_constant(*given))


@wrong("2.3", "measures at T = 1", "measures saturation at T = 4", "a good teacher is sure at T = 1")
def at_one(logits, labels):
    return tree(logits, labels, sure=lambda given: confidence_at(given, 1) > 0.99)


@wrong("2.3", "beats chance", "measures goodness from the floor", "the most frequent label's share")
def beats_chance(logits, labels):
    return tree(logits, labels, floor=lambda *_: 1 / logits.shape[1])


@wrong("2.3", "tries the reverse only", "finds renamed classes", "not only the reverse")
def reverse_only(logits, labels):
    def orders(classes):
        return [range(classes), reversed(range(classes))]

    return tree(logits, labels, renamed=lambda *given: can_be_renamed(*given, orders))


@wrong("2.3", "tries rotations only", "finds renamed classes", "a rotation")
def rotations_only(logits, labels):
    def orders(classes):
        return [[(number + shift) % classes for number in range(classes)] for shift in range(classes)]

    return tree(logits, labels, renamed=lambda *given: can_be_renamed(*given, orders))


@wrong("2.3", "gives two classes one name", "renames one to one", "two classes cannot get the same new name")
def many_to_one(logits, labels):
    def renamed(logits, labels, needed):
        said = logits.argmax(-1)
        return sum(labels[said == number].bincount().max() for number in said.unique()) / len(labels) >= needed

    return tree(logits, labels, renamed=renamed)


@wrong("2.3", "never suspects the order", "finds rows out of order", "exceeds accuracy by 0.2")
def trusts_order(logits, labels):
    return tree(logits, labels, shuffled=lambda *_: False)


@wrong("2.3", "compares class shares", "tells a weak teacher from shuffled rows", "is not sure either")
def class_shares(logits, labels):
    def shuffled(logits, labels):
        shares = [
            classes.bincount(minlength=logits.shape[1]) / len(labels) for classes in (logits.argmax(-1), labels)
        ]
        return (shares[0] - shares[1]).abs().max() < 0.1

    return tree(logits, labels, shuffled=shuffled)
