"""Exercises of chapter 08: continual learning."""

import numpy as np
import torch
from torch import Tensor

from kvlib.continual.learners import overlap, selected_pairs
from kvlib.continual.measures import forgetting
from kvlib.training import LazyAdam
from workbook.checking import Answer, Exercise, Mistake, expect, expect_close, expect_number, expect_tensor, show

FORGETTING = Exercise("8.1", "Forgetting, from a matrix", difficulty=1, minutes=8)
LAZY = Exercise("8.2", "A lazy optimiser", difficulty=3, minutes=15)
SHARED = Exercise("8.3", "How much do two tasks share?", difficulty=2, minutes=10)
SILENCE = Exercise("8.4", "The fewest pairs that silence a class", difficulty=3, minutes=15)


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _lost(answer: Answer, rows: list[list[float]]) -> float:
    return expect_number(answer(np.array(rows)))


@FORGETTING.probe(
    "gives one number", hint="each task but the last has lost something: return the mean of these numbers"
)
def one_loss(answer: Answer) -> None:
    _lost(answer, [[0.9, 0.1, 0.2], [0.7, 0.8, 0.1], [0.6, 0.5, 0.9]])


@FORGETTING.probe(
    "is 0 where nothing changes",
    hint="forgetting compares two accuracies of one task, so of one column: subtract the final one from the best",
)
def nothing_lost(answer: Answer) -> None:
    found = _lost(answer, [[0.8, 0.6, 0.7]] * 3)
    expect(abs(found) < 1e-9, f"{found:.4g}, where three tasks keep their accuracies")


@FORGETTING.probe(
    "is positive where accuracy falls", hint="it is what was lost: the best accuracy minus the final one"
)
def positive(answer: Answer) -> None:
    found = _lost(answer, [[0.9, 0.0], [0.4, 0.8]])
    expect(found > 0, f"{found:.4g}, where a task falls from 0.9 to 0.4")


@FORGETTING.probe(
    "is a mean over all tasks but the last",
    hint="the last task had no time to be forgotten: add up all but the last, and divide by how many these are",
)
def first_tasks(answer: Answer) -> None:
    rows = [[0.9, 0.0, 0.0, 0.0], [0.9, 0.9, 0.0, 0.0], [0.9, 0.9, 0.9, 0.0], [0.8, 0.7, 0.6, 0.9]]
    found = _lost(answer, rows)
    expect(abs(found - 0.2) < 1e-6, f"{found:.4g}, where three tasks lose 0.1, 0.2 and 0.3, and a fourth is new")


@FORGETTING.probe(
    "takes the best, not the first",
    hint="a task can get better after its turn: take the maximum down the column, not the diagonal alone",
)
def the_best(answer: Answer) -> None:
    found = _lost(answer, [[0.6, 0.0, 0.0], [0.9, 0.8, 0.0], [0.5, 0.8, 0.7]])
    saw = f"{found:.4g} instead of (0.4 + 0) / 2 = 0.2, where a task has 0.6, then 0.9, then 0.5"
    expect(abs(found - 0.2) < 1e-6, saw)


@FORGETTING.probe(
    "does not count what was known before the task was learnt",
    hint="a guess above the diagonal is no knowledge to forget: task j's maximum begins in row j",
)
def from_its_turn(answer: Answer) -> None:
    found = _lost(answer, [[0.9, 0.8, 0.0], [0.9, 0.6, 0.0], [0.9, 0.5, 0.7]])
    saw = f"{found:.4g} instead of (0 + 0.1) / 2 = 0.05, where task 1 has 0.8, then 0.6 when learnt, then 0.5"
    expect(abs(found - 0.05) < 1e-6, saw)


@FORGETTING.probe(
    "does not take the last row into the maximum",
    hint="the best is from before the last task, so a task that gets better at the end has forgotten less than "
    "nothing",
)
def before_the_last(answer: Answer) -> None:
    rows = [[0.5, 0.3, 0.2], [0.6, 0.7, 0.1], [0.9, 0.6, 0.8]]
    found, expected = _lost(answer, rows), forgetting(np.array(rows))
    saw = f"{found:.4g} instead of (-0.3 + 0.1) / 2 = {expected:.4g}, where a task has 0.5, then 0.6, then 0.9"
    expect(abs(found - expected) < 1e-6, saw)


def _steps(answer: Answer, values: Tensor, gradients: Tensor, learning_rate: float = 0.1) -> Tensor:
    return expect_tensor(answer(values, gradients, learning_rate), tuple(values.shape)).detach()


def _optimised(
    optimizer: type[torch.optim.Optimizer], values: Tensor, gradients: Tensor, learning_rate: float = 0.1
) -> Tensor:
    parameter = torch.nn.Parameter(values.clone())
    steps = optimizer([parameter], lr=learning_rate)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        steps.step()
    return parameter.detach()


def _selected(seed: int, rows: list[str]) -> Tensor:
    """Draw gradients ``(steps, rows, 3)`` that are zero except where a row's text has an x."""
    selects = torch.tensor([[letter == "x" for letter in row] for row in rows])  # (rows, steps)
    return _randn(seed, selects.shape[1], len(rows), 3) * selects.T.unsqueeze(-1)


def _expect_equal(found: Tensor, expected: Tensor, when: str) -> None:
    gap = (found - expected).abs().max()
    expect(torch.equal(found, expected), f"numbers up to {gap:.3g} away from {when}")


@LAZY.probe(
    "gives new values of the same shape", hint="after the last step, return the values alone: (rows, L), no steps"
)
def same_shape(answer: Answer) -> None:
    _steps(answer, _randn(0, 4, 3), _selected(1, ["xxx", "x..", "...", ".xx"]))


@LAZY.probe(
    "leaves a row that is never selected as it is",
    hint="a row moves only if some entry of its gradient is not zero: nothing decays, and 0 / 0 is NaN",
)
def never_selected(answer: Answer) -> None:
    values = _randn(2, 3, 3)
    found = _steps(answer, values, _selected(3, ["xxx", "...", ".x."]))
    _expect_equal(found[1], values[1], "the values of a row that no step selects")


@LAZY.probe(
    "leaves a row selected in step 1 alone where step 1 put it",
    hint="its momentum is not zero yet, and Adam would go on: decide anew in each step which rows move",
)
def selected_once(answer: Answer) -> None:
    values, gradients = _randn(4, 3, 3), _selected(5, ["xxx", "x..", ".xx"])
    once, found = (_steps(answer, values, gradients[:steps])[1] for steps in (1, 3))
    _expect_equal(found, once, "those after step 1, in a row that steps 2 and 3 do not select")


@LAZY.probe(
    "is Adam where every row has a gradient",
    hint="divide m by 1 - 0.9**t and v by 1 - 0.999**t, t = 1 in the first step, and add 1e-8 after the root",
)
def plain_adam(answer: Answer) -> None:
    values, gradients = _randn(6, 3, 3), _selected(7, ["xxxx", "xxxx", "xxxx"])
    gradients[:, 1] *= 1e-7  # here eps counts
    expect_close(_steps(answer, values, gradients), _optimised(torch.optim.Adam, values, gradients), 1e-6)


@LAZY.probe(
    "moves a whole row, entries without gradient too",
    hint="a row is selected as a whole: (gradient != 0).any(-1, keepdim=True), not entry by entry",
)
def whole_row(answer: Answer) -> None:
    values, gradients = _randn(8, 3, 3), _selected(9, ["xxx", "xxx", "xxx"])
    gradients[1:, 1, 2] = 0.0
    expect_close(_steps(answer, values, gradients), _optimised(torch.optim.Adam, values, gradients), 1e-6)


@LAZY.probe(
    "moves a row whose gradient sums to zero",
    hint="a cross-entropy's gradient sums to zero over the classes: ask for an entry that is not zero",
)
def sums_to_zero(answer: Answer) -> None:
    values = torch.ones(1, 3, dtype=torch.float64)
    found = _steps(answer, values, torch.tensor([[[1.0, -2.0, 1.0]]], dtype=torch.float64))
    expect_close(found, torch.tensor([[0.9, 1.1, 0.9]]), 1e-6)


@LAZY.probe(
    "corrects by the number of the step",
    hint="t counts all steps, whether a row moved or not: a row whose first gradient comes late takes a smaller "
    "step",
)
def number_of_step(answer: Answer) -> None:
    values, gradients = _randn(10, 2, 3), _selected(11, ["xxx", "..x"])
    found = _steps(answer, values, gradients)[1]
    expect_close(found, _optimised(LazyAdam, values, gradients)[1], 1e-6)


@LAZY.probe(
    "lets moments fade while a row stays",
    hint="update m and v of all rows in each step, with a gradient of zero where there is none; only the values "
    "wait",
)
def moments_fade(answer: Answer) -> None:
    values, gradients = _randn(12, 4, 3), _selected(13, ["x..x.x", "xx.xxx", "......", ".x..x."])
    expect_close(_steps(answer, values, gradients), _optimised(LazyAdam, values, gradients), 1e-6)


def _share(answer: Answer, first: Tensor, second: Tensor) -> float:
    return expect_number(answer(first, second))


def _keys(seed: int, rows: int = 4, tokens: int = 5, high: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, (rows, tokens, 3), generator=generator)  # (n, S, C)


def _expect_share(found: float, first: Tensor, second: Tensor, where: str) -> None:
    size = int(max(first.max(), second.max())) + 1
    expected = overlap(*(selected_pairs(keys, size) for keys in (first, second)))
    expect(abs(found - expected) < 1e-6, f"{found:.4g} instead of {expected:.4g}, {where}")


@SHARED.probe("gives one number", hint="count over all codebooks together, and divide once")
def one_share(answer: Answer) -> None:
    _share(answer, _keys(0), _keys(1, rows=6, tokens=3))


@SHARED.probe(
    "is 1 for a task and itself", hint="a task shares every pair with itself: divide by the pairs, not by all keys"
)
def with_itself(answer: Answer) -> None:
    found = _share(answer, _keys(2, high=30), _keys(2, high=30))
    expect(abs(found - 1) < 1e-6, f"{found:.4g}")


@SHARED.probe(
    "does not ask where a pair fires",
    hint="neither the place of a token nor what other codebooks fire there matters: collect each codebook's keys "
    "in a set",
)
def any_place(answer: Answer) -> None:
    first = _keys(3)
    second = first.flatten(0, 1).clone()  # (n · S, C)
    for codebook in range(3):
        second[:, codebook] = second[:, codebook].roll(codebook + 1)
    found = _share(answer, first, second.view(first.shape))
    expect(abs(found - 1) < 1e-6, f"{found:.4g}, where both select the same pairs in different places")


@SHARED.probe(
    "tells codebooks apart", hint="key 1 of codebook 0 and key 1 of codebook 1 are two pairs, with a value each"
)
def by_codebook(answer: Answer) -> None:
    first = torch.tensor([[[1, 2], [3, 4]]])
    found = _share(answer, first, first.flip(-1))
    expect(abs(found) < 1e-6, f"{found:.4g}, where the codebooks have swapped their keys")


@SHARED.probe(
    "divides by the second task's pairs",
    hint="of what the second task selects, how much did the first select before? Neither the first's pairs nor "
    "those of both are the whole",
)
def of_the_second(answer: Answer) -> None:
    # as many pairs in each codebook, so that only the denominator is asked for
    first = torch.tensor([[[1, 2], [3, 5], [4, 6], [5, 7]]])
    second = torch.tensor([[[1, 2], [2, 3]]])
    for one, other, where in ((first, second, "many, then few pairs"), (second, first, "few, then many")):
        _expect_share(_share(answer, one, other), one, other, where)


@SHARED.probe(
    "counts each pair once",
    hint="a pair that fires a thousand times is one pair: take unique keys before you count",
)
def counted_once(answer: Answer) -> None:
    first = torch.tensor([[[1, 1], [1, 1], [2, 2]]])
    second = torch.tensor([[[1, 1], [1, 1], [1, 1], [3, 4]]])
    _expect_share(_share(answer, first, second), first, second, "where the shared pairs fire most often")


@SHARED.probe(
    "weighs pairs alike, not codebooks",
    hint="a codebook that fires many keys has more to share: one sum over all pairs, not a mean of C shares",
)
def weighed_alike(answer: Answer) -> None:
    first = torch.tensor([[[1, 1], [2, 1], [3, 1]]])
    second = torch.tensor([[[4, 1], [5, 1], [3, 1], [6, 1]]])  # 1 of 4 keys, and 1 of 1
    _expect_share(_share(answer, first, second), first, second, "where codebooks share 1 of 4 keys and 1 of 1")


@SHARED.probe(
    "leaves padding out",
    hint="keep the tokens whose index is not -1 before you collect anything: -1 is no key, neither key 0 nor the "
    "last one",
)
def padding_out(answer: Answer) -> None:
    first, second = _keys(6, high=5) + 1, _keys(7, high=6) + 2
    empty = torch.full((4, 3, 3), -1)
    longer = [torch.cat([keys, empty], dim=1) for keys in (first, second)]
    second_only = [first, longer[1]]
    for batch in (longer, second_only):
        try:
            found = _share(answer, *batch)
        except Mistake as mistake:  # bincount and one_hot refuse a negative index
            raise Mistake(f"{mistake.saw}, on a batch with padding") from mistake
        _expect_share(found, first, second, "on a batch with padding")


# How often the class's tokens select each pair, (C, K): twelve tokens a codebook, and no two numbers alike
_USED = torch.tensor([[0, 3, 5, 0, 4], [2, 0, 10, 0, 0], [0, 0, 0, 1, 11]])
_CLASS = 2
_SEEDS = (105, 487, 505)  # 3, 5 and 3 pairs are needed; in the first two, one more brings a row back


def _rows(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Make four rows of class 2 and eight of others, of three tokens each: values, key indices and labels."""
    generator = torch.Generator().manual_seed(seed)
    codebooks, size = _USED.shape
    columns = []
    for used in _USED:
        own = torch.arange(size).repeat_interleave(used)[torch.randperm(12, generator=generator)]
        # mostly what the class does not select; with two of the seeds, some of these rows are given the class
        others = torch.arange(size).repeat_interleave(torch.where(used > 0, 1, 9))
        others = others[torch.randint(len(others), (24,), generator=generator)]
        columns.append(torch.cat([own, others]))
    keys = torch.stack(columns, dim=-1).view(12, 3, codebooks)
    order = torch.randperm(12, generator=generator)
    labels = torch.tensor([_CLASS] * 4 + [0, 1, 3, 0, 1, 3, 0, 1])[order]
    values = torch.randn(codebooks, size, 4, generator=generator)
    values[..., _CLASS] += (_USED > 0) * 1.0
    return values, keys[order], labels


def _mask(answer: Answer, values: Tensor, key_indices: Tensor, labels: Tensor, wanted: int = _CLASS) -> Tensor:
    mask, shape = answer(values, key_indices, labels, wanted), tuple(values.shape[:2])
    expect(isinstance(mask, Tensor), f"{type(mask).__name__} instead of a tensor")
    expect(mask.dtype == torch.bool, f"{mask.dtype} instead of torch.bool")
    expect(tuple(mask.shape) == shape, f"shape {tuple(mask.shape)} instead of {shape}")
    return mask


def _recognised(values: Tensor, key_indices: Tensor, off: Tensor, wanted: int = _CLASS) -> int:
    """Count the rows without padding that are given the class when some pairs are off."""
    left = values.masked_fill(off.unsqueeze(-1), 0.0)
    logits = left[torch.arange(len(values)), key_indices].mean((1, 2))  # (n, L)
    return int(((logits.argmax(1) == wanted) & (logits != 0).any(1)).sum())


@SILENCE.probe(
    "gives a mask of the pairs", hint="True or False for each codebook and key: torch.bool, shape values.shape[:2]"
)
def mask_shape(answer: Answer) -> None:
    _mask(answer, *_rows(_SEEDS[0]))


@SILENCE.probe(
    "marks only pairs that the class selects",
    hint="count in the rows of this class alone, labels == wanted: other classes need the other pairs",
)
def only_own(answer: Answer) -> None:
    for seed in _SEEDS:
        foreign = int((_mask(answer, *_rows(seed)) & (_USED == 0)).sum())
        expect(not foreign, f"{foreign} marked, which no row of the class selects")


@SILENCE.probe(
    "takes the most used first",
    hint="rank all pairs of all codebooks together, by how many tokens select each: two tokens of a row are "
    "two uses",
)
def most_used_first(answer: Answer) -> None:
    for seed in _SEEDS:
        mask = _mask(answer, *_rows(seed))
        expect(mask.any(), "no pair marked")
        least, left = int(_USED[mask].min()), max(_USED[~mask].tolist(), default=0)
        expect(
            least > left, f"a pair marked that is used {least} times, and one left out that is used {left} times"
        )


@SILENCE.probe(
    "silences the class",
    hint="go on until none of the class's rows is given it, and set all L numbers of a value to zero",
)
def silenced(answer: Answer) -> None:
    for seed in _SEEDS:
        values, key_indices, labels = _rows(seed)
        own = key_indices[labels == _CLASS]
        left = _recognised(values, own, _mask(answer, values, key_indices, labels))
        expect(not left, f"{left} of {len(own)} rows are still given the class")


@SILENCE.probe(
    "marks not one more than needed",
    hint="try N = 1, 2, 3, … and stop at the first that is enough; only rows of the class have to be silenced",
)
def no_more(answer: Answer) -> None:
    for seed in _SEEDS:
        values, key_indices, labels = _rows(seed)
        own, order = key_indices[labels == _CLASS], _USED.flatten().argsort(descending=True)
        off, fewest = torch.zeros_like(_USED, dtype=torch.bool), 0
        while _recognised(values, own, off):
            off.view(-1)[order[fewest]] = True
            fewest += 1
        found = int(_mask(answer, values, key_indices, labels).sum())
        expect(found == fewest, f"{found} pairs marked, where {fewest} are enough")


@SILENCE.probe(
    "counts a row of zeros as silenced",
    hint="argmax of equal numbers gives class 0, though nothing speaks for it: ask for a logit that is not 0, too",
)
def row_of_zeros(answer: Answer) -> None:
    values = torch.tensor([[[2.0, 1.0], [0.0, 3.0]]])  # (1, 2, 2): key 0 speaks for class 0, key 1 for class 1
    mask = _mask(answer, values, torch.tensor([[[0], [0]], [[1], [1]], [[0], [0]]]), torch.zeros(3).long(), 0)
    expect(mask.tolist() == [[True, False]], f"{show(mask)} instead of [[True, False]], with class 0 wanted")


@SILENCE.probe(
    "counts tokens, not padding",
    hint="-1 is no key: as an index it takes the last one, clamped to 0 it looks like key 0: leave such tokens "
    "out of the counts and of the mean",
)
def tokens_only(answer: Answer) -> None:
    for seed in _SEEDS:
        values, key_indices, labels = _rows(seed)
        expected = _mask(answer, values, key_indices, labels)
        longer = torch.cat([key_indices, torch.full((12, 5, 3), -1)], dim=1)
        try:
            found = _mask(answer, values, longer, labels)
        except Mistake as mistake:  # bincount and one_hot refuse a negative index
            raise Mistake(f"{mistake.saw}, on a batch with padding") from mistake
        differ = int((found != expected).sum())
        expect(not differ, f"{differ} pairs marked differently when five padded tokens follow each row")
