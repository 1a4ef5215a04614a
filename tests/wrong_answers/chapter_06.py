import numpy as np
import pandas as pd

from wrong_answers import wrong


def counts_of(predictions, labels):
    pairs = [(1, 1), (1, 0), (0, 1), (0, 0)]
    return (float(((predictions == p) & (labels == y)).sum()) for p, y in pairs)


@wrong("6.1", "returns numpy's matrix", "gives one number", "np.corrcoef gives a matrix")
def matrix(predictions, labels):
    return np.corrcoef(predictions, labels)


@wrong("6.1", "forgets the root", "is 1 where all predictions are right", "square root of the product")
def no_root(predictions, labels):
    tp, fp, fn, tn = counts_of(predictions, labels)
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / below if below else 0.0


@wrong("6.1", "root of chi²", "is -1 where all predictions are wrong", "the sign is that of")
def from_chi_square(predictions, labels):
    tp, fp, fn, tn = counts_of(predictions, labels)
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return ((tp * tn - fp * fn) ** 2 / below) ** 0.5 if below else 0.0


@wrong("6.1", "0 / 0", "is 0 where one class never occurs", "leaves 0 / 0")
def not_a_number(predictions, labels):
    tp, fp, fn, tn = (np.float64(count) for count in counts_of(predictions, labels))
    return (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


@wrong("6.1", "accuracy from -1 to 1", "is 0 where one class never occurs", "correlates with nothing")
def rescaled_accuracy(predictions, labels):
    return 2 * (predictions == labels).mean() - 1


@wrong(
    "6.1", "margins of class 1 only", "is the same when both classes change their numbers", "tn + fp and tn + fn"
)
def two_margins(predictions, labels):
    tp, fp, fn, tn = counts_of(predictions, labels)
    if not (tp + fp and tp + fn and tn + fp and tn + fn):
        return 0.0
    return (tp * tn - fp * fn) / ((tp + fp) * (tp + fn))


@wrong("6.1", "multiplies whole numbers", "holds for 200,000 rows", "turn the counts into float")
def overflow(predictions, labels):
    tp, tn = (((predictions == c) & (labels == c)).sum() for c in (1, 0))
    fp, fn = (((predictions == c) & (labels != c)).sum() for c in (1, 0))
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / np.sqrt(below) if below else 0.0


@wrong("6.1", "Cohen's kappa", "is the correlation of predictions and labels", "Cohen's kappa")
def kappa(predictions, labels):
    tp, fp, fn, tn = counts_of(predictions, labels)
    below = (tp + fp) * (fp + tn) + (tp + fn) * (fn + tn)
    return 2 * (tp * tn - fp * fn) / below if below else 0.0


def interval(differences, cut=0.025):
    low, high = np.quantile(differences, [cut, 1 - cut])
    return float(low), float(high)


def rows_of(labels, resamples, seed, rows=None, replace=True):
    generator = np.random.default_rng(seed)
    return [generator.choice(len(labels), rows or len(labels), replace) for _ in range(resamples)]


def gained(first, second, labels):
    return (first == labels).astype(float) - (second == labels)


@wrong("6.2", "returns the resamples", "gives two numbers, the lower first", "np.quantile(differences")
def all_resamples(first, second, labels, resamples=1000, seed=0):
    gain = gained(first, second, labels)
    return [gain[row].mean() for row in rows_of(labels, resamples, seed)]


@wrong("6.2", "second minus first", "is positive where the first system is better", "from the first's")
def swapped(first, second, labels, resamples=1000, seed=0):
    gain = gained(second, first, labels)
    return interval([gain[row].mean() for row in rows_of(labels, resamples, seed)])


@wrong("6.2", "draws rows for each system", "is 0 to 0 for two equal systems", "draw the rows once")
def unpaired(first, second, labels, resamples=1000, seed=0):
    generator = np.random.default_rng(seed)
    scores = []
    for system in (first, second):
        rows = generator.integers(len(labels), size=(resamples, len(labels)))
        scores.append((system == labels)[rows].mean(axis=1))
    return interval(scores[0] - scores[1])


@wrong("6.2", "shuffles", "is wider than a point", "with replacement")
def without_replacement(first, second, labels, resamples=1000, seed=0):
    gain = gained(first, second, labels)
    return interval([gain[row].mean() for row in rows_of(labels, resamples, seed, replace=False)])


@wrong("6.2", "no seed", "is settled by its seed", "np.random.default_rng(seed)")
def unseeded(first, second, labels, resamples=1000, seed=0):
    gain = gained(first, second, labels)
    return interval([gain[row].mean() for row in rows_of(labels, resamples, None)])


@wrong("6.2", "always seed 0", "is settled by its seed", "np.random.default_rng(seed)")
def one_seed(first, second, labels, resamples=1000, seed=0):
    gain = gained(first, second, labels)
    return interval([gain[row].mean() for row in rows_of(labels, resamples, 0)])


@wrong("6.2", "always a thousand", "draws as many resamples as asked", "of one draw")
def thousand(first, second, labels, resamples=1000, seed=0):
    gain = gained(first, second, labels)
    return interval([gain[row].mean() for row in rows_of(labels, 1000, seed)])


@wrong("6.2", "a hundred rows a draw", "is half as wide on four times the rows", "len(labels)")
def hundred_rows(first, second, labels, resamples=1000, seed=0):
    gain = gained(first, second, labels)
    return interval([gain[row].mean() for row in rows_of(labels, resamples, seed, rows=100)])


@wrong("6.2", "cuts 5 % at each end", "holds the middle 95 %", "2.5 % at each end")
def ninety(first, second, labels, resamples=1000, seed=0):
    gain = gained(first, second, labels)
    return interval([gain[row].mean() for row in rows_of(labels, resamples, seed)], cut=0.05)


@wrong("6.2", "lowest and highest", "holds the middle 95 %", "2.5 % at each end")
def whole_range(first, second, labels, resamples=1000, seed=0):
    gain = gained(first, second, labels)
    return interval([gain[row].mean() for row in rows_of(labels, resamples, seed)], cut=0.0)


@wrong("6.2", "half the rows a draw", "holds the middle 95 %", "draw all len(labels) rows")
def half_the_rows(first, second, labels, resamples=1000, seed=0):
    gain = gained(first, second, labels)
    return interval([gain[row].mean() for row in rows_of(labels, resamples, seed, rows=len(labels) // 2)])


def leads_of(frame):
    no, yes = (frame[name].to_numpy() for name in frame.columns if name.startswith("push_"))
    return (yes - no) * np.sign((yes - no).sum())


def count(total, leads):
    return int((np.cumsum(leads) >= total).argmax()) + 1


@wrong("6.3", "returns a share", "gives a whole number of rows", "not a share")
def share_of_rows(frame):
    leads = leads_of(frame)
    return count(leads.sum(), np.sort(leads)[::-1]) / len(frame)


@wrong("6.3", "from the first row on", "begins with the rows that push hardest", "from high to low")
def first_rows(frame):
    leads = leads_of(frame)
    return count(leads.sum(), leads)


@wrong("6.3", "winner's push only", "weighs a row by both of its pushes", "its lead is their difference")
def winner_only(frame):
    pushes = frame[[name for name in frame.columns if name.startswith("push_")]]
    winner = pushes[pushes.sum().idxmax()].to_numpy()
    return count(winner.sum(), np.sort(winner)[::-1])


@wrong("6.3", "sorts by size", "leaves the rows that push the other way", "with its sign")
def by_size(frame):
    leads = leads_of(frame)
    return count(leads.sum(), sorted(leads, key=abs, reverse=True))


@wrong("6.3", "compares with another sum", "takes all rows where all push for the verdict", "in another order")
def other_sum(frame):
    leads = leads_of(frame)
    return count(leads.sum(), np.sort(leads)[::-1])


@wrong("6.3", "second class wins", "works for either verdict", "it may be the first")
def second_class(frame):
    no, yes = (frame[name].to_numpy() for name in frame.columns if name.startswith("push_"))
    strongest = np.sort(yes - no)[::-1]
    return count(strongest.cumsum()[-1], strongest)


def lead_of(frame, label, answer=None):
    """The lead of a row's wrong class; None where the answer is right."""
    pushes = frame.filter(regex="^push_")
    answer = int(pushes.sum().to_numpy().argmax()) if answer is None else answer
    return None if answer == label else pushes.iloc[:, answer] - pushes.iloc[:, label]


def by_pair(frame, lead):
    return lead.groupby([frame["codebook"], frame["key"]]).sum()


def ranked(totals, limit):
    total = pd.concat(totals).groupby(level=[0, 1]).sum() if totals else pd.Series(dtype=float)
    return [(int(codebook), int(key)) for codebook, key in total.nlargest(limit).index]


def kinds_with(kinds, labels, frames, limit, lead=lead_of, total=by_pair):
    """The right answer, with parts to exchange."""
    found = {}
    for kind, rows in kinds.items():
        mistakes = [row for row in rows if lead_of(frames[row], labels[row]) is not None]
        totals = [total(frames[row], lead(frames[row], labels[row])) for row in mistakes]
        found[kind] = mistakes, ranked(totals, limit)
    return found


@wrong("6.4", "returns the pairs only", "gives rows and pairs for each kind", "two lists each")
def pairs_only(kinds, labels, frames, limit=3):
    return {kind: pairs for kind, (_, pairs) in kinds_with(kinds, labels, frames, limit).items()}


@wrong("6.4", "returns keys without codebooks", "gives rows and pairs for each kind", "(codebook, key)")
def bare_keys(kinds, labels, frames, limit=3):
    found = kinds_with(kinds, labels, frames, limit)
    return {kind: (rows, [key for _, key in pairs]) for kind, (rows, pairs) in found.items()}


@wrong("6.4", "keeps all rows", "leaves out rows that the student gets right", "higher sum")
def every_row(kinds, labels, frames, limit=3):
    found = kinds_with(kinds, labels, frames, limit)
    return {kind: (kinds[kind], pairs) for kind, (_, pairs) in found.items()}


@wrong("6.4", "always asks class 1", "asks each row for its own wrong class", "0 where it is 1")
def class_one(kinds, labels, frames, limit=3):
    def lead(frame, label):
        return frame["push_yes"] - frame["push_no"]

    return kinds_with(kinds, labels, frames, limit, lead=lead)


@wrong("6.4", "reads the answer's push alone", "weighs a pair by both of its pushes", "minus push on the label")
def answer_alone(kinds, labels, frames, limit=3):
    def lead(frame, label):
        return frame.filter(regex="^push_").iloc[:, 1 - label]

    return kinds_with(kinds, labels, frames, limit, lead=lead)


@wrong("6.4", "takes the strongest token", "adds up all tokens that fire a pair", "then sum")
def strongest_token(kinds, labels, frames, limit=3):
    def total(frame, lead):
        return lead.groupby([frame["codebook"], frame["key"]]).max()

    return kinds_with(kinds, labels, frames, limit, total=total)


@wrong("6.4", "ranks the last row", "adds up all mistakes of a kind", "rank the pairs once")
def last_mistake(kinds, labels, frames, limit=3):
    found = {}
    for kind, (rows, _) in kinds_with(kinds, labels, frames, limit).items():
        totals = [by_pair(frames[row], lead_of(frames[row], labels[row])) for row in rows[-1:]]
        found[kind] = rows, ranked(totals, limit)
    return found


@wrong("6.4", "groups by key alone", "knows a key by its codebook, too", "group by both columns")
def key_alone(kinds, labels, frames, limit=3):
    def total(frame, lead):
        first = frame.groupby("key")["codebook"].transform("first")
        return lead.groupby([first, frame["key"]]).sum()

    return kinds_with(kinds, labels, frames, limit, total=total)


@wrong("6.4", "weakest first", "gives `limit` pairs, the strongest first", "nlargest(limit)")
def weakest_first(kinds, labels, frames, limit=3):
    found = kinds_with(kinds, labels, frames, limit)
    return {kind: (rows, pairs[::-1]) for kind, (rows, pairs) in found.items()}


@wrong("6.4", "never more than three", "gives `limit` pairs, the strongest first", "sorts and cuts")
def never_more_than_three(kinds, labels, frames, limit=3):
    return kinds_with(kinds, labels, frames, min(limit, 3))


@wrong("6.4", "leaves the kind out", "gives two empty lists for a kind without a mistake", "return ([], [])")
def kind_left_out(kinds, labels, frames, limit=3):
    found = kinds_with(kinds, labels, frames, limit)
    return {kind: parts for kind, parts in found.items() if parts[0]}
