"""Exercises of chapter 07: carried keys."""

import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from kvlib.bottleneck import DiscreteKeyValueBottleneck
from workbook.checking import Answer, Exercise, Mistake, expect, expect_close, expect_tensor, show

CARRY = Exercise("7.1", "Carry the keys", difficulty=2, minutes=10)
KAPPA = Exercise("7.2", "Agreement above chance", difficulty=2, minutes=10)
ERROR = Exercise("7.3", "The error under foreign keys", difficulty=2, minutes=10)


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _teacher(seed: int, projection: str = "chunk") -> DiscreteKeyValueBottleneck:
    """Build a frozen bottleneck of 3 codebooks of 8 keys for 12 dimensions, its values of 5."""
    bottleneck = DiscreteKeyValueBottleneck(12, 3, 8, dim_value=5, projection=projection)
    bottleneck.keys.copy_(_randn(seed, 3, 8, 4))
    bottleneck.counts.copy_(_randn(seed + 1, 3, 8).abs() + 0.1)
    bottleneck.mean.copy_(3 * _randn(seed + 2, 12))
    bottleneck.std.copy_(_randn(seed + 3, 12).abs() + 0.5)
    bottleneck.values.data.copy_(_randn(seed + 4, 3, 8, 5))
    bottleneck.freeze_keys()
    return bottleneck


def _student(projection: str = "chunk") -> DiscreteKeyValueBottleneck:
    return DiscreteKeyValueBottleneck(12, 3, 8, dim_value=2, projection=projection)


def _carried(answer: Answer, teacher: DiscreteKeyValueBottleneck) -> dict[str, Tensor]:
    state = answer({name: tensor.clone() for name, tensor in teacher.state_dict().items()}, 2)
    expect(isinstance(state, dict), f"{type(state).__name__} {show(state)} instead of a dictionary")
    for name, tensor in state.items():
        expect(isinstance(tensor, Tensor), f"{type(tensor).__name__} instead of a tensor under {name!r}")
    return state


def _expect_names(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing, odd = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys(), key=str)
    expect(not missing, f"no {', '.join(missing)}")
    expect(not odd, f"{', '.join(map(str, odd))}, which the student's bottleneck does not have")


def _expect_equal(state: dict[str, Tensor], teacher: DiscreteKeyValueBottleneck, name: str) -> None:
    found, expected = state[name], teacher.state_dict()[name]
    expect_tensor(found, tuple(expected.shape))
    gap = (found - expected).abs().max()
    expect(torch.equal(found, expected), f"under {name!r}, numbers up to {gap:.3g} away from the teacher's")


@CARRY.probe(
    "gives a state of the student's names",
    hint="load_state_dict wants a tensor under each of the teacher's names: values, keys, counts, mean, std and "
    "frozen",
)
def names(answer: Answer) -> None:
    _expect_names(_carried(answer, _teacher(0)), _student().state_dict())


@CARRY.probe(
    "carries the keys bit for bit",
    hint="keys lie in the standardised space already: copy them as they are, neither scaled nor fitted again",
)
def same_keys(answer: Answer) -> None:
    teacher = _teacher(10)
    _expect_equal(_carried(answer, teacher), teacher, "keys")


@CARRY.probe(
    "carries the standardisation",
    hint="under another mean and std the same hidden state lands in another cell: they belong to the keys",
)
def standardisation(answer: Answer) -> None:
    teacher = _teacher(20)
    state = _carried(answer, teacher)
    _expect_equal(state, teacher, "mean")
    _expect_equal(state, teacher, "std")


@CARRY.probe("carries the counts", hint="a bottleneck whose counts are all zero passes for one without keys")
def same_counts(answer: Answer) -> None:
    teacher = _teacher(30)
    _expect_equal(_carried(answer, teacher), teacher, "counts")


@CARRY.probe(
    "starts with values of its own",
    hint="what the teacher learnt under its keys stays behind: zeros of shape (C, K, dim_value)",
)
def own_values(answer: Answer) -> None:
    values = _carried(answer, _teacher(40))["values"]
    expect_tensor(values, (3, 8, 2))
    expect(not values.any(), f"values up to {values.abs().max():.3g} instead of zeros")


@CARRY.probe(
    "marks the keys as frozen",
    hint="frozen is a tensor too: without it the student refuses to train, and init_keys could move the keys",
)
def is_frozen(answer: Answer) -> None:
    frozen = _carried(answer, _teacher(50))["frozen"]
    expect(frozen.shape == () and frozen.dtype == torch.bool and frozen, f"frozen = {show(frozen)}")


@CARRY.probe(
    "carries a random projection, too",
    hint='with projection="random" the state holds a tensor more: go through the names of teacher_state, instead '
    "of listing them",
)
def projection(answer: Answer) -> None:
    teacher, student = _teacher(60, "random"), _student("random")
    torch.nn.init.normal_(teacher.projections, generator=torch.Generator().manual_seed(61))
    state = _carried(answer, teacher)
    _expect_names(state, student.state_dict())
    _expect_equal(state, teacher, "projections")


@CARRY.probe(
    "shares no memory with the teacher",
    hint="detach() and view() look into the same memory, where a change would reach both: clone() every tensor",
)
def own_memory(answer: Answer) -> None:
    state = _carried(answer, _teacher(70))
    theirs = {tensor.untyped_storage().data_ptr() for tensor in answer.given[0].values()}
    shared = [name for name, tensor in state.items() if tensor.untyped_storage().data_ptr() in theirs]
    expect(not shared, f"{', '.join(shared)} are the teacher's own memory")


def _kappa(answer: Answer, teacher: Tensor, student: Tensor, size: int) -> Tensor:
    """Call with key indices ``(B, T, C)``."""
    return expect_tensor(answer(teacher, student, size), (teacher.shape[-1],)).double()


def _indices(seed: int, codebooks: int = 3, size: int = 4) -> Tensor:
    return torch.randint(size, (6, 20, codebooks), generator=torch.Generator().manual_seed(seed))  # (B, T, C)


def _all_pairs(teacher: list[int], student: list[int]) -> tuple[Tensor, Tensor]:
    """Let every one of the teacher's indices meet every one of the student's: as independent as can be."""
    shape = (1, len(teacher) * len(student), 1)
    pairs = torch.cartesian_prod(torch.tensor(teacher), torch.tensor(student))
    return pairs[:, 0].view(shape), pairs[:, 1].view(shape)


@KAPPA.probe(
    "gives one number for each codebook",
    hint="take means over examples and tokens, and keep the last dimension, C",
)
def one_for_each(answer: Answer) -> None:
    _kappa(answer, _indices(0), _indices(1), 4)


@KAPPA.probe(
    "is 1 where both always fire the same key",
    hint="divide what is gained over chance by what there was to gain: (agreement - chance) / (1 - chance)",
)
def one_at_agreement(answer: Answer) -> None:
    found = _kappa(answer, _indices(2), _indices(2), 4)
    expect_close(found, torch.ones(3))


@KAPPA.probe(
    "is 0 at chance",
    hint="two that fire 4 keys alike and independently agree on 1 in 4: subtract that before you divide",
)
def zero_at_chance(answer: Answer) -> None:
    found = _kappa(answer, *_all_pairs([0, 1, 2, 3], [0, 1, 2, 3]), 4).item()
    expect(abs(found) < 1e-4, f"{found:.4g}, where four keys are fired alike and independently")


@KAPPA.probe(
    "takes chance from how often each key is fired",
    hint="chance is the sum over keys of the teacher's share times the student's; it is 1 / K only where keys are "
    "fired alike, and a mean of the two shares is neither's",
)
def from_marginals(answer: Answer) -> None:
    found = _kappa(answer, *_all_pairs([0, 0, 0, 0, 1], [0, 0, 1, 2]), 4).item()
    saw = f"{found:.4g}, where teacher and student are independent and chance is 4/5 · 1/2 + 1/5 · 1/4 = 0.45"
    expect(abs(found) < 1e-4, saw)


@KAPPA.probe(
    "takes each codebook's own chance",
    hint="count how often a key is fired codebook by codebook: some codebooks have a favourite, others have none",
)
def own_chance(answer: Answer) -> None:
    teacher, student = _indices(3, 2, size=5), _indices(4, 2, size=5)
    student[:4] = teacher[:4]
    teacher[..., 1], student[..., 1] = teacher[..., 1] // 3, student[..., 1] // 4
    both = zip(teacher.flatten(0, 1).T.tolist(), student.flatten(0, 1).T.tolist(), strict=True)
    expected = [float(cohen_kappa_score(one, other)) for one, other in both]
    expect_close(_kappa(answer, teacher, student, 5), torch.tensor(expected))


@KAPPA.probe(
    "leaves padding out",
    hint="keep the rows whose index is not -1 before you count anything: -1 equals -1, but no key fired",
)
def padding(answer: Answer) -> None:
    teacher, student = _indices(5), _indices(6)
    student[:, 8:] = teacher[:, 8:]
    expected = _kappa(answer, teacher, student, 4)
    empty = torch.full((6, 9, 3), -1)
    longer = [torch.cat([indices, empty], dim=1) for indices in (teacher, student)]
    try:
        found = _kappa(answer, *longer, 4)
    except Mistake as mistake:  # bincount and one_hot refuse a negative index
        raise Mistake(f"{mistake.saw}, on a batch with padding") from mistake
    saw = f"{show(found)} with padding instead of {show(expected)} without"
    expect((found - expected).abs().max() < 1e-4, saw)


@KAPPA.probe(
    "is 0 where one key takes all",
    hint="both always fire the same single key: chance is 1, nothing could be gained, and 0 / 0 is NaN",
)
def one_key(answer: Answer) -> None:
    teacher, student = _indices(7), _indices(8)
    teacher[..., 1] = student[..., 1] = 2
    found = _kappa(answer, teacher, student, 4)[1].item()
    expect(abs(found) < 1e-4, f"{found:.4g} in a codebook where both fire key 2 alone")


def _error(answer: Answer, states: Tensor, mean: Tensor, std: Tensor, keys: Tensor) -> Tensor:
    return expect_tensor(answer(states, mean, std, keys), (len(keys),)).double()


def _plain(dim: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(dim), torch.ones(dim)


def _circle(codebooks: int, size: int) -> Tensor:
    """Place keys on a circle, turned from codebook to codebook, ``(C, K, 2)``: equal lengths, mean 0, std 1."""
    angles = torch.arange(size) * 2 * torch.pi / size + 0.3 * torch.arange(codebooks).unsqueeze(1)
    return 2**0.5 * torch.stack([angles.cos(), angles.sin()], dim=-1)


def _on_keys(keys: Tensor, used: int) -> Tensor:
    """Make states ``(N, C · d)`` whose vectors are keys: the first `used` of each codebook, all alike often."""
    indices = (torch.arange(100 * used).unsqueeze(1) * torch.arange(1, len(keys) + 1)) % used
    return keys[torch.arange(len(keys)), indices].flatten(1)


@ERROR.probe(
    "gives one number for each codebook", hint="take means over the vectors, and keep the codebooks: (C,)"
)
def error_shape(answer: Answer) -> None:
    _error(answer, _randn(0, 9, 6), *_plain(6), _circle(3, 5))


@ERROR.probe(
    "is 0 where every vector is a key",
    hint="codebook c gets the c-th of C neighbouring chunks, unflatten(-1, (C, d)), and its own keys",
)
def zero_on_keys(answer: Answer) -> None:
    found = _error(answer, _on_keys(_circle(3, 5), 5), *_plain(6), _circle(3, 5))
    expect_close(found, torch.zeros(3))


@ERROR.probe(
    "standardises by the mean and std given",
    hint="keys lie in the space of the teacher's mean and std: subtract and divide by those, not by the student's "
    "own",
)
def given_standardisation(answer: Answer) -> None:
    keys, mean, std = _circle(2, 7), 5 * _randn(2, 4), _randn(3, 4).abs() + 0.5
    found = _error(answer, _on_keys(keys, 3) * std + mean, mean, std, keys)
    expect_close(found, torch.zeros(2), 1e-3)


@ERROR.probe(
    "does not change when all is three times as large",
    hint="divide the mean of the squared distances by a variance: both grow by nine, a distance by three only",
)
def no_scale(answer: Answer) -> None:
    states, keys = _randn(5, 30, 2), _circle(1, 4)
    small, large = (_error(answer, size * states, *_plain(2), size * keys).item() for size in (1, 3))
    expect(abs(large / small - 1) < 1e-3, f"{small:.4g}, then {large:.4g}")


@ERROR.probe(
    "measures to the nearest key",
    hint="nearest by squared distance, |k|²/2 - x·k: the product alone favours long keys",
)
def nearest(answer: Answer) -> None:
    states, keys = 2 * _randn(9, 50, 2), _randn(10, 1, 6, 2)
    many, single = (_error(answer, states, *_plain(2), some).item() for some in (keys, keys[:, :1]))
    squares = (states.unsqueeze(1) - keys[0]).square().sum(-1)  # (N, K)
    expected = (squares.amin(1).mean() / squares[:, 0].mean()).item()  # whatever they are divided by
    saw = f"{many / single:.3g} times the error of the first key alone, instead of {expected:.3g} times"
    expect(abs(many / single / expected - 1) < 1e-3, f"six keys: {saw}")


@ERROR.probe(
    "is 1 where the only key is the mean",
    hint="the variance of a codebook is the mean squared distance of its vectors from their mean: summed over the "
    "d dimensions, as the distance is, and divided by N, var(0, correction=0)",
)
def one_at_mean(answer: Answer) -> None:
    states = _randn(6, 5, 3)
    states = states - states.mean(0)
    found = _error(answer, states, *_plain(3), torch.zeros(1, 1, 3)).item()
    expect(abs(found - 1) < 1e-3, f"{found:.4g} for five vectors of 3 dimensions, and a single key at their mean")


@ERROR.probe(
    "measures the variance about the vectors' own mean",
    hint="under the teacher's mean the student's vectors need not lie around zero: subtract their own mean in the "
    "variance, not their squares alone",
)
def own_mean(answer: Answer) -> None:
    states, keys = _randn(7, 30, 2), _circle(1, 4)
    here, there = (_error(answer, states + far, *_plain(2), keys + far).item() for far in (0.0, 10.0))
    expect(abs(there / here - 1) < 1e-3, f"{here:.4g}, and {there:.4g} when vectors and keys move by 10")


@ERROR.probe(
    "divides by each codebook's own variance",
    hint="a codebook's error is compared with the spread of its own vectors: sum over d alone, not over codebooks",
)
def own_variance(answer: Answer) -> None:
    teacher, states = _teacher(80), _randn(84, 50, 12) * torch.arange(1, 13)
    expected = teacher.usage(teacher.quantize(states), states)["quantization_error"]
    expect_close(
        _error(answer, states, teacher.mean, teacher.std, teacher.keys), torch.tensor(expected.to_numpy()), 1e-3
    )
