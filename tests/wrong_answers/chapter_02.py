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


# 2.3 reliability


def cut_from(lowest):
    def place(confidence, bins):
        return ((confidence - lowest) / (1 - lowest) * bins).long().clamp(0, bins - 1)

    return place


def table_of(confidence, right, place, bins, least=1, divisor=None):
    chosen = torch.stack([place == number for number in range(bins)]).to(confidence.dtype)  # (bins, N)
    rows = chosen.sum(1)
    divisor = rows.clamp(min=least) if divisor is None else divisor
    return torch.stack([rows, chosen @ confidence / divisor, chosen @ right / divisor], dim=1)


def measured(logits, labels, temperature, bins, lowest=None, **options):
    probabilities = torch.softmax(logits / temperature, dim=-1)
    confidence, said = probabilities.max(-1)
    place = cut_from(1 / logits.shape[-1] if lowest is None else lowest)(confidence, bins)
    return table_of(confidence, (said == labels).to(confidence.dtype), place, bins, **options)


@wrong("2.3", "a column for each bin", "gives three numbers for each bin", "(bins, 3)")
def turned_table(logits, labels, temperature=1.0, bins=5):
    return measured(logits, labels, temperature, bins).T


def between_edges(logits, labels, temperature, bins, inside):
    confidence, said = torch.softmax(logits / temperature, dim=-1).max(-1)
    edges = torch.linspace(1 / logits.shape[-1], 1, bins + 1)
    place = torch.full(labels.shape, -1)
    for number in range(bins):
        place[inside(confidence, edges[number], edges[number + 1])] = number
    return table_of(confidence, (said == labels).to(confidence.dtype), place, bins)


@wrong("2.3", "leaves out confidence 1", "counts every row once", "a sure row")
def open_above(logits, labels, temperature=1.0, bins=5):
    return between_edges(
        logits, labels, temperature, bins, lambda given, low, high: (given >= low) & (given < high)
    )


@wrong("2.3", "leaves out confidence 1/L", "counts every row once", "one that knows nothing")
def open_below(logits, labels, temperature=1.0, bins=5):
    return between_edges(
        logits, labels, temperature, bins, lambda given, low, high: (given > low + 1e-6) & (given <= high)
    )


@wrong("2.3", "cuts from 0 to 1", "cuts from 1/L to 1", "never below 1/L")
def from_zero(logits, labels, temperature=1.0, bins=5):
    return measured(logits, labels, temperature, bins, lowest=0.0)


@wrong("2.3", "forgets T", "softens by T", "divide the logits by T")
def at_t_one(logits, labels, temperature=1.0, bins=5):
    return measured(logits, labels, 1.0, bins)


@wrong("2.3", "multiplies by T", "softens by T", "a larger T, a lower confidence")
def sharpened(logits, labels, temperature=1.0, bins=5):
    return measured(logits, labels, 1 / temperature, bins)


@wrong("2.3", "the label's probability", "takes the largest probability", "not of the label")
def of_the_label(logits, labels, temperature=1.0, bins=5):
    probabilities = torch.softmax(logits / temperature, dim=-1)
    confidence, said = probabilities.max(-1)
    place = cut_from(1 / logits.shape[-1])(confidence, bins)
    of_label = probabilities[torch.arange(len(labels)), labels]
    return table_of(of_label, (said == labels).to(confidence.dtype), place, bins)


@wrong("2.3", "the middle of the bin", "takes the largest probability", "not the bin's middle")
def middle_of_bin(logits, labels, temperature=1.0, bins=5):
    table, lowest = measured(logits, labels, temperature, bins), 1 / logits.shape[-1]
    middles = lowest + (torch.arange(bins, dtype=table.dtype) + 0.5) * (1 - lowest) / bins
    return torch.stack([table[:, 0], middles * (table[:, 0] > 0), table[:, 2]], dim=1)


@wrong("2.3", "right means above one half", "compares the answered class with the label", "argmax == label")
def above_half(logits, labels, temperature=1.0, bins=5):
    probabilities = torch.softmax(logits / temperature, dim=-1)
    confidence = probabilities.amax(-1)
    right = (probabilities[torch.arange(len(labels)), labels] > 0.5).to(confidence.dtype)
    return table_of(confidence, right, cut_from(1 / logits.shape[-1])(confidence, bins), bins)


@wrong("2.3", "divides by all rows", "takes means over the rows of the bin", "not by N")
def over_all_rows(logits, labels, temperature=1.0, bins=5):
    return measured(logits, labels, temperature, bins, divisor=len(labels))


@wrong("2.3", "divides zero by zero", "gives zeros to an empty bin", "rows.clamp(min=1)")
def zero_by_zero(logits, labels, temperature=1.0, bins=5):
    return measured(logits, labels, temperature, bins, least=0)
