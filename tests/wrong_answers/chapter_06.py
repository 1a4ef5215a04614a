import numpy as np

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


def pick(candidates, keeps, by=("parameters_m", "score"), ascending=(True, False)):
    kept = candidates[keeps].sort_values(list(by), ascending=list(ascending))
    return kept["system"].iloc[0] if len(kept) else None


def keeping(candidates, teacher_score, floor, share=0.95):
    """The two columns of the right answer, and its complaint."""
    if teacher_score <= floor:
        raise ValueError("the teacher has nothing above the floor")
    limit = (1 - share) * (teacher_score - floor)
    return teacher_score - candidates["score"] <= limit, candidates["lost_high"] <= limit


@wrong("6.3", "returns the row", "gives two names", "return measured, shown")
def whole_row(candidates, teacher_score, floor, share=0.95):
    measured, _ = keeping(candidates, teacher_score, floor, share)
    return candidates[measured].sort_values("parameters_m").iloc[0]


@wrong("6.3", "share of the raw score", "counts what is kept above the majority class", "score - floor")
def raw_share(candidates, teacher_score, floor, share=0.95):
    _, shown = keeping(candidates, teacher_score, floor, share)
    return pick(candidates, candidates["score"] >= share * teacher_score), pick(candidates, shown)


@wrong("6.3", "takes the best", "takes the smallest, not the best", "choose by parameters_m")
def best(candidates, teacher_score, floor, share=0.95):
    found = keeping(candidates, teacher_score, floor, share)
    return tuple(pick(candidates, keeps, by=["score"], ascending=[False]) for keeps in found)


@wrong("6.3", "trusts the order", "does not depend on the order of the rows", "sort by parameters_m yourself")
def last_row(candidates, teacher_score, floor, share=0.95):
    found = (candidates[keeps] for keeps in keeping(candidates, teacher_score, floor, share))
    return tuple(kept["system"].iloc[-1] if len(kept) else None for kept in found)


@wrong("6.3", "place for label", "does not depend on the order of the rows", "for .loc, where .iloc wants a place")
def label_as_place(candidates, teacher_score, floor, share=0.95):
    names = []
    for keeps in keeping(candidates, teacher_score, floor, share):
        kept = candidates[keeps]
        names.append(candidates["system"].iloc[kept["parameters_m"].idxmin()] if len(kept) else None)
    return tuple(names)


@wrong("6.3", "sorts by size only", "takes the better of two of one size", 'sort_values(["parameters_m", "score"]')
def size_only(candidates, teacher_score, floor, share=0.95):
    found = (candidates[keeps] for keeps in keeping(candidates, teacher_score, floor, share))
    by_size = (kept.sort_values("parameters_m", kind="stable") for kept in found)
    return tuple(kept["system"].iloc[0] if len(kept) else None for kept in by_size)


@wrong("6.3", "always 95 %", "follows `share`", "(1 - share)")
def fixed_share(candidates, teacher_score, floor, share=0.95):
    return tuple(pick(candidates, keeps) for keeps in keeping(candidates, teacher_score, floor))


@wrong("6.3", "falls back on the best", "gives None where nobody keeps enough", "still loses too much")
def fall_back(candidates, teacher_score, floor, share=0.95):
    best = candidates["system"].loc[candidates["score"].idxmax()]
    return tuple(pick(candidates, keeps) or best for keeps in keeping(candidates, teacher_score, floor, share))


@wrong("6.3", "not significantly worse", "does not take “no difference shown” for “no loss”", "holds 0")
def not_significant(candidates, teacher_score, floor, share=0.95):
    measured, shown = keeping(candidates, teacher_score, floor, share)
    return pick(candidates, measured), pick(candidates, shown | (candidates["lost_low"] <= 0))


@wrong("6.3", "shows by the measured loss", "does not take a measured loss for a shown one", "lost_high")
def measured_twice(candidates, teacher_score, floor, share=0.95):
    measured, _ = keeping(candidates, teacher_score, floor, share)
    return pick(candidates, measured), pick(candidates, measured)


@wrong("6.3", "takes the low end", "does not take a measured loss for a shown one", "lost_high")
def low_end(candidates, teacher_score, floor, share=0.95):
    measured, _ = keeping(candidates, teacher_score, floor, share)
    safe = (candidates["lost_low"] <= (1 - share) * (teacher_score - floor)) & (candidates["lost_low"] > 0)
    return pick(candidates, measured), pick(candidates, safe & measured)


@wrong("6.3", "accepts any teacher", "refuses a teacher that has nothing above the floor", "raise ValueError")
def any_teacher(candidates, teacher_score, floor, share=0.95):
    limit = (1 - share) * (teacher_score - floor)
    measured, shown = teacher_score - candidates["score"] <= limit, candidates["lost_high"] <= limit
    return pick(candidates, measured), pick(candidates, shown)


def leads_of(frame):
    no, yes = (frame[name].to_numpy() for name in frame.columns if name.startswith("push_"))
    return (yes - no) * np.sign((yes - no).sum())


def count(total, leads):
    turned = total - np.cumsum(leads) <= 0
    return int(turned.argmax()) + 1 if turned.any() else None


def fired(frame):
    return frame["codebook"].to_numpy() >= 0


@wrong("6.4", "returns a share", "gives a whole number of rows", "not a share")
def share_of_rows(frame):
    leads = leads_of(frame)
    return count(leads.sum(), np.sort(leads[fired(frame)])[::-1]) / len(frame)


@wrong("6.4", "from the first row on", "begins with the rows that push hardest", "from high to low")
def first_rows(frame):
    leads = leads_of(frame)
    return count(leads.sum(), leads[fired(frame)])


@wrong("6.4", "winner's push only", "weighs a row by both of its pushes", "its lead is their difference")
def winner_only(frame):
    pushes = frame[[name for name in frame.columns if name.startswith("push_")]]
    winner = pushes[pushes.sum().idxmax()].to_numpy()
    return count(winner.sum(), np.sort(winner[fired(frame)])[::-1])


@wrong("6.4", "sorts by size", "leaves the rows that push the other way", "with its sign")
def by_size(frame):
    leads = leads_of(frame)
    return count(leads.sum(), sorted(leads[fired(frame)], key=abs, reverse=True))


@wrong("6.4", "second class wins", "works for either verdict", "it may be the first")
def second_class(frame):
    no, yes = (frame[name].to_numpy() for name in frame.columns if name.startswith("push_"))
    leads = yes - no
    return count(leads.sum(), np.sort(leads[fired(frame)])[::-1])


@wrong("6.4", "takes the bias away", "counts a bias in the lead, and leaves it there", "cannot be taken away")
def bias_too(frame):
    leads = leads_of(frame)
    return count(leads.sum(), np.sort(leads)[::-1])


@wrong("6.4", "drops the bias", "counts a bias in the lead, and leaves it there", "belongs to the logits")
def without_bias(frame):
    leads = leads_of(frame[fired(frame)])
    return count(leads.sum(), np.sort(leads)[::-1])


@wrong("6.4", "argmax of nothing", "gives None where no number turns the verdict", "ask any() first")
def argmax_alone(frame):
    leads = leads_of(frame)
    return int((leads.sum() - np.cumsum(np.sort(leads[fired(frame)])[::-1]) <= 0).argmax()) + 1
