import numpy as np
import torch

from wrong_answers import wrong


def best_of(accuracies):
    """The best accuracy of each task but the last, from its turn until before the last task."""
    return np.array([accuracies[task:-1, task].max() for task in range(len(accuracies) - 1)])


@wrong("8.1", "one number a task", "gives one number", "return the mean of these numbers")
def loss_of_each(accuracies):
    return best_of(accuracies) - accuracies[-1, :-1]


@wrong("8.1", "the best alone", "is 0 where nothing changes", "subtract the final one")
def best_alone(accuracies):
    return best_of(accuracies).mean()


@wrong("8.1", "compares tasks with each other", "is 0 where nothing changes", "of one column")
def along_the_row(accuracies):
    return np.mean([row.max() - row[-1] for row in accuracies[:-1]])


@wrong("8.1", "backward transfer", "is positive where accuracy falls", "the best accuracy minus the final one")
def negative(accuracies):
    return (accuracies[-1, :-1] - best_of(accuracies)).mean()


@wrong("8.1", "divides by T", "is a mean over all tasks but the last", "divide by how many")
def over_all_tasks(accuracies):
    return (best_of(accuracies) - accuracies[-1, :-1]).sum() / len(accuracies)


@wrong("8.1", "a sum", "is a mean over all tasks but the last", "divide by how many")
def summed(accuracies):
    return (best_of(accuracies) - accuracies[-1, :-1]).sum()


@wrong("8.1", "counts the last task", "is a mean over all tasks but the last", "no time to be forgotten")
def with_the_last(accuracies):
    best = [accuracies[task:, task].max() for task in range(len(accuracies))]
    return (best - accuracies[-1]).mean()


@wrong("8.1", "the diagonal", "takes the best, not the first", "not the diagonal alone")
def from_diagonal(accuracies):
    return (accuracies.diagonal() - accuracies[-1])[:-1].mean()


@wrong(
    "8.1",
    "the maximum of the whole column",
    "does not count what was known before the task was learnt",
    "task j's maximum begins in row j",
)
def whole_column(accuracies):
    return (accuracies[:-1, :-1].max(0) - accuracies[-1, :-1]).mean()


@wrong(
    "8.1",
    "the last row in the maximum",
    "does not take the last row into the maximum",
    "has forgotten less than nothing",
)
def with_the_last_row(accuracies):
    return (np.tril(accuracies).max(0) - accuracies[-1])[:-1].mean()


@wrong("8.1", "cuts off at zero", "does not take the last row into the maximum", "gets better at the end")
def never_negative(accuracies):
    return np.maximum(best_of(accuracies) - accuracies[-1, :-1], 0).mean()


def adam(values, gradients, learning_rate, moves=None, eps=1e-8, inside=0.0, corrected=True):
    """Adam, of which `moves` says where values move, ``(rows, 1)`` or ``(rows, L)``, by the step's gradient."""
    m, v = torch.zeros_like(values), torch.zeros_like(values)
    for step, gradient in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        one, other = (1 - 0.9**step, 1 - 0.999**step) if corrected else (1, 1)
        moved = values - learning_rate * (m / one) / ((v / other + inside).sqrt() + eps)
        values = moved if moves is None else torch.where(moves(gradient), moved, values)
    return values


def whole_rows(gradient):
    return (gradient != 0).any(-1, keepdim=True)


@wrong("8.2", "the values of all steps", "gives new values of the same shape", "return the values alone")
def all_steps(values, gradients, learning_rate):
    steps = range(1, len(gradients) + 1)
    return torch.stack([adam(values, gradients[:step], learning_rate, whole_rows) for step in steps])


@wrong("8.2", "AdamW", "leaves a row that is never selected as it is", "nothing decays")
def decayed(values, gradients, learning_rate):
    parameter = torch.nn.Parameter(values.clone())
    optimizer = torch.optim.AdamW([parameter], lr=learning_rate)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@wrong("8.2", "zero by zero, times zero", "leaves a row that is never selected as it is", "0 / 0 is NaN")
def masked_by_product(values, gradients, learning_rate):
    for step in range(1, len(gradients) + 1):
        update = adam(torch.zeros_like(values), gradients[:step], learning_rate, eps=0.0)
        values = values + whole_rows(gradients[step - 1]) * update
    return values


@wrong(
    "8.2",
    "Adam",
    "leaves a row selected in step 1 alone where step 1 put it",
    "its momentum is not zero yet, and Adam would go on",
)
def eager(values, gradients, learning_rate):
    return adam(values, gradients, learning_rate)


@wrong(
    "8.2",
    "rows that were ever selected",
    "leaves a row selected in step 1 alone where step 1 put it",
    "decide anew in each step",
)
def ever_selected(values, gradients, learning_rate):
    ever = (gradients != 0).any(0).any(-1, keepdim=True)
    return adam(values, gradients, learning_rate, lambda _: ever)


@wrong("8.2", "no bias correction", "is Adam where every row has a gradient", "divide m by 1 - 0.9**t")
def uncorrected(values, gradients, learning_rate):
    return adam(values, gradients, learning_rate, whole_rows, corrected=False)


@wrong("8.2", "eps under the root", "is Adam where every row has a gradient", "add 1e-8 after the root")
def eps_under_root(values, gradients, learning_rate):
    return adam(values, gradients, learning_rate, whole_rows, eps=0.0, inside=1e-8)


@wrong("8.2", "gradient descent", "is Adam where every row has a gradient", "divide m by 1 - 0.9**t")
def descent(values, gradients, learning_rate):
    return values - learning_rate * gradients.sum(0)


@wrong(
    "8.2",
    "entry by entry",
    "moves a whole row, entries without gradient too",
    "(gradient != 0).any(-1, keepdim=True)",
)
def by_entry(values, gradients, learning_rate):
    return adam(values, gradients, learning_rate, lambda gradient: gradient != 0)


@wrong(
    "8.2",
    "only rows without a zero",
    "moves a whole row, entries without gradient too",
    "a row is selected as a whole",
)
def without_a_zero(values, gradients, learning_rate):
    return adam(values, gradients, learning_rate, lambda gradient: (gradient != 0).all(-1, keepdim=True))


@wrong("8.2", "asks for the sum", "moves a row whose gradient sums to zero", "an entry that is not zero")
def by_sum(values, gradients, learning_rate):
    return adam(values, gradients, learning_rate, lambda gradient: gradient.sum(-1, keepdim=True) != 0)


def row_by_row(values, gradients, learning_rate, own_count):
    """Adam for each row alone, as if steps that do not select it did not take place."""
    new = values.clone()
    for row in range(len(values)):
        m = v = torch.zeros_like(values[row])
        count = 0
        for step, gradient in enumerate(gradients[:, row], start=1):
            if gradient.any():
                count += 1
                m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
                t = count if own_count else step
                new[row] -= learning_rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return new


@wrong(
    "8.2",
    "counts the steps of a row",
    "corrects by the number of the step",
    "t counts all steps, whether a row moved",
)
def own_clock(values, gradients, learning_rate):
    return row_by_row(values, gradients, learning_rate, own_count=True)


@wrong(
    "8.2",
    "moments of a row stand still",
    "lets moments fade while a row stays",
    "update m and v of all rows in each",
)
def still_moments(values, gradients, learning_rate):
    return row_by_row(values, gradients, learning_rate, own_count=False)


def pairs_of(key_indices):
    """All pairs that fire, each as often as it does."""
    rows = key_indices[key_indices[..., 0] >= 0].tolist()
    return [(codebook, key) for row in rows for codebook, key in enumerate(row)]


@wrong("8.3", "a share a codebook", "gives one number", "all codebooks together")
def share_a_codebook(first, second):
    one, other = set(pairs_of(first)), set(pairs_of(second))
    codebooks = range(first.shape[-1])
    return torch.tensor([len({p for p in one & other if p[0] == c}) / len(other) for c in codebooks])


@wrong("8.3", "divides by all keys", "is 1 for a task and itself", "not by all keys")
def of_all_keys(first, second):
    size = max(first.max(), second.max()) + 1
    return len(set(pairs_of(first)) & set(pairs_of(second))) / (first.shape[-1] * size)


@wrong("8.3", "how many, not which share", "is 1 for a task and itself", "divide by the pairs")
def how_many(first, second):
    return float(len(set(pairs_of(first)) & set(pairs_of(second))))


@wrong("8.3", "place by place", "does not ask where a pair fires", "neither the place of a token")
def by_place(first, second):
    rows, tokens = min(len(first), len(second)), min(first.shape[1], second.shape[1])
    return (first[:rows, :tokens] == second[:rows, :tokens]).double().mean()


@wrong("8.3", "whole tokens", "does not ask where a pair fires", "nor what other codebooks fire there")
def whole_tokens(first, second):
    one, other = ({tuple(token) for token in keys.flatten(0, 1).tolist()} for keys in (first, second))
    return len(one & other) / len(other)


@wrong("8.3", "keys of any codebook", "tells codebooks apart", "are two pairs")
def any_codebook(first, second):
    one, other = ({key for _, key in pairs_of(keys)} for keys in (first, second))
    return len(one & other) / len(other)


@wrong(
    "8.3", "divides by the first task's", "divides by the second task's pairs", "of what the second task selects"
)
def of_the_first(first, second):
    one, other = set(pairs_of(first)), set(pairs_of(second))
    return len(one & other) / len(one)


@wrong("8.3", "Jaccard", "divides by the second task's pairs", "nor those of both")
def jaccard(first, second):
    one, other = set(pairs_of(first)), set(pairs_of(second))
    return len(one & other) / len(one | other)


@wrong("8.3", "weighs pairs by their hits", "counts each pair once", "is one pair")
def weighted_by_hits(first, second):
    one, fired = set(pairs_of(first)), pairs_of(second)
    return sum(pair in one for pair in fired) / len(fired)


@wrong("8.3", "a mean over codebooks", "weighs pairs alike, not codebooks", "not a mean of C shares")
def mean_of_shares(first, second):
    one, other = set(pairs_of(first)), set(pairs_of(second))
    shares = []
    for codebook in range(first.shape[-1]):
        own = {pair for pair in other if pair[0] == codebook}
        shares.append(len(own & one) / len(own))
    return np.mean(shares)


def all_tokens(key_indices):
    """The pairs of all tokens, padded ones included."""
    return {(codebook, key) for row in key_indices.flatten(0, 1).tolist() for codebook, key in enumerate(row)}


@wrong("8.3", "padding is a key", "leaves padding out", "-1 is no key")
def padding_too(first, second):
    one, other = all_tokens(first), all_tokens(second)
    return len(one & other) / len(other)


@wrong("8.3", "padding is key 0", "leaves padding out", "neither key 0")
def padding_clamped(first, second):
    one, other = all_tokens(first.clamp_min(0)), all_tokens(second.clamp_min(0))
    return len(one & other) / len(other)


@wrong("8.3", "bincount of padding", "leaves padding out", "keep the tokens whose index is not -1")
def counted_padding(first, second):
    size = int(max(first.max(), second.max())) + 1
    counts = [
        torch.stack([column.bincount(minlength=size) for column in keys.flatten(0, 1).T])
        for keys in (first, second)
    ]
    return ((counts[0] > 0) & (counts[1] > 0)).sum() / (counts[1] > 0).sum()


def uses(values, rows):
    """How often the real tokens of rows select each pair, ``(C, K)``."""
    used = torch.zeros(values.shape[:2])
    for token in rows[rows[..., 0] >= 0]:
        used[torch.arange(len(values)), token] += 1
    return used


def given(values, rows, wanted, zeros_count=False):
    """Which rows are given a class, ``(n,)``."""
    real = rows[..., 0] >= 0
    found = values[torch.arange(len(values)), rows.clamp_min(0)].sum(2)  # (n, S, L)
    logits = (found * real.unsqueeze(-1)).sum(1)
    return (logits.argmax(1) == wanted) & ((logits != 0).any(1) | zeros_count)


def first_that_is_enough(values, rows, used, wanted, is_given=given, numbers=None):
    """Mark the most used pairs, as few of `numbers` as leave no row that `is_given` the class."""
    order, mask = used.flatten().argsort(descending=True), torch.zeros(used.shape, dtype=torch.bool)
    for number in numbers or range(1, int((used > 0).sum()) + 1):
        mask = torch.zeros(used.numel(), dtype=torch.bool).index_fill_(0, order[:number], True).view(used.shape)
        if not is_given(values.masked_fill(mask.unsqueeze(-1), 0.0), rows, wanted).any():
            break
    return mask


def right(values, key_indices, labels, wanted, **options):
    own = key_indices[labels == wanted]
    return first_that_is_enough(values, own, uses(values, own), wanted, **options)


@wrong("8.4", "numbers of pairs", "gives a mask of the pairs", "torch.bool, shape values.shape[:2]")
def numbers_of_pairs(values, key_indices, labels, wanted):
    return right(values, key_indices, labels, wanted).nonzero()


@wrong("8.4", "zeros and ones", "gives a mask of the pairs", "True or False")
def zeros_and_ones(values, key_indices, labels, wanted):
    return right(values, key_indices, labels, wanted).float()


@wrong("8.4", "counts all rows", "marks only pairs that the class selects", "of this class alone")
def of_all_rows(values, key_indices, labels, wanted):
    own = key_indices[labels == wanted]
    return first_that_is_enough(values, own, uses(values, key_indices), wanted)


@wrong("8.4", "the largest values of the class", "marks only pairs that the class selects", "labels == wanted")
def by_value(values, key_indices, labels, wanted):
    own = key_indices[labels == wanted]
    scores = values[..., wanted] - values[..., wanted].min() + 1
    return first_that_is_enough(values, own, scores, wanted)


@wrong(
    "8.4",
    "the strongest of the class's pairs first",
    "takes the most used first",
    "by how many tokens select each",
)
def strongest_first(values, key_indices, labels, wanted):
    own = key_indices[labels == wanted]
    strength = values[..., wanted] - values[..., wanted].min() + 1
    return first_that_is_enough(values, own, strength * (uses(values, own) > 0), wanted)


@wrong("8.4", "counts rows, not tokens", "takes the most used first", "two tokens of a row are two uses")
def rows_not_tokens(values, key_indices, labels, wanted):
    own = key_indices[labels == wanted]
    used = sum((uses(values, row.unsqueeze(0)) > 0).float() for row in own)
    return first_that_is_enough(values, own, used, wanted)


@wrong("8.4", "the same number in each codebook", "takes the most used first", "of all codebooks together")
def in_each_codebook(values, key_indices, labels, wanted):
    own = key_indices[labels == wanted]
    used = uses(values, own)
    for number in range(1, used.shape[1] + 1):
        mask = torch.zeros_like(used, dtype=torch.bool).scatter(1, used.topk(number).indices, True) & (used > 0)
        if not given(values.masked_fill(mask.unsqueeze(-1), 0.0), own, wanted).any():
            break
    return mask


@wrong("8.4", "one row is enough", "silences the class", "until none of the class's rows is given it")
def one_row_silenced(values, key_indices, labels, wanted):
    return right(values, key_indices, labels, wanted, is_given=lambda *of: given(*of).all().unsqueeze(0))


@wrong("8.4", "half of the rows are enough", "silences the class", "until none of the class's rows is given it")
def half_silenced(values, key_indices, labels, wanted):
    return right(values, key_indices, labels, wanted, is_given=lambda *of: given(*of).float().mean(0, True) > 0.5)


@wrong("8.4", "zeroes the class's own number", "silences the class", "all L numbers of a value")
def own_number(values, key_indices, labels, wanted):
    own = key_indices[labels == wanted]
    used, mask = uses(values, own), torch.zeros(values.shape[:2], dtype=torch.bool)
    for pair in used.flatten().argsort(descending=True)[: (used > 0).sum()]:
        mask.view(-1)[pair] = True
        left = values.clone()
        left[..., wanted] = left[..., wanted].masked_fill(mask, 0.0)
        if not given(left, own, wanted).any():
            break
    return mask


@wrong("8.4", "all pairs of the class", "marks not one more than needed", "stop at the first that is enough")
def all_of_them(values, key_indices, labels, wanted):
    return uses(values, key_indices[labels == wanted]) > 0


@wrong("8.4", "doubles", "marks not one more than needed", "try N = 1, 2, 3")
def doubling(values, key_indices, labels, wanted):
    return right(values, key_indices, labels, wanted, numbers=(1, 2, 4, 7))


@wrong("8.4", "doubles, then halves the gap", "marks not one more than needed", "try N = 1, 2, 3")
def halving(values, key_indices, labels, wanted):
    own = key_indices[labels == wanted]
    used = uses(values, own)

    def is_enough(number):
        mask = first_that_is_enough(values, own, used, wanted, numbers=(number,))
        return not given(values.masked_fill(mask.unsqueeze(-1), 0.0), own, wanted).any()

    low, high = next((number // 2, min(number, 7)) for number in (1, 2, 4, 8) if is_enough(number))
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return first_that_is_enough(values, own, used, wanted, numbers=(high,))


@wrong("8.4", "comes down from all of them", "marks not one more than needed", "try N = 1, 2, 3")
def downwards(values, key_indices, labels, wanted):
    own = key_indices[labels == wanted]
    used, mask = uses(values, own), uses(values, own) > 0
    for pair in used.flatten().argsort():
        without = mask.clone()
        without.view(-1)[pair] = False
        if given(values.masked_fill(without.unsqueeze(-1), 0.0), own, wanted).any():
            break
        mask = without
    return mask


@wrong("8.4", "nobody may get the class", "marks not one more than needed", "only rows of the class")
def nobody(values, key_indices, labels, wanted):
    return right(
        values, key_indices, labels, wanted, is_given=lambda left, _, number: given(left, key_indices, number)
    )


@wrong("8.4", "zeros are class 0", "counts a row of zeros as silenced", "argmax of equal numbers gives class 0")
def zeros_are_class_0(values, key_indices, labels, wanted):
    return right(values, key_indices, labels, wanted, is_given=lambda *of: given(*of, zeros_count=True))


@wrong("8.4", "padding uses key 0", "counts tokens, not padding", "clamped to 0 it looks like key 0")
def padding_uses_key_0(values, key_indices, labels, wanted):
    own = key_indices[labels == wanted]
    return first_that_is_enough(values, own, uses(values, own.clamp_min(0)), wanted)


@wrong("8.4", "padding in the mean", "counts tokens, not padding", "as an index it takes the last one")
def padding_in_the_mean(values, key_indices, labels, wanted):
    last = values.shape[1] - 1

    def with_padding(left, rows, number):
        return given(left, rows.where(rows >= 0, last), number)

    return right(values, key_indices, labels, wanted, is_given=with_padding)


@wrong("8.4", "bincount of padding", "counts tokens, not padding", "leave such tokens out of the counts")
def bincount_of_padding(values, key_indices, labels, wanted):
    own = key_indices[labels == wanted]
    columns = own.flatten(0, 1).T
    used = torch.stack([column.bincount(minlength=values.shape[1]) for column in columns]).float()
    return first_that_is_enough(values, own, used, wanted)
