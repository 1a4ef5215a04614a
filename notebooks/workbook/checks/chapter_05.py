"""Exercises of chapter 05: training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from kvlib.bottleneck import DiscreteKeyValueBottleneck
from kvlib.loss import distillation_loss
from workbook.checking import Answer, Exercise, expect, expect_close, expect_tensor, show

GROUPS = Exercise("5.1", "What weight decay may touch", difficulty=2, minutes=10)


def _model(tied: bool = False, frozen: bool = False) -> nn.ModuleDict:
    """Return parts as of a student; `tied` shares a matrix between two, `frozen` freezes the embeddings."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "word_embeddings": nn.Embedding(11, 6),
            "LayerNorm": nn.LayerNorm(6),
            "lin1": nn.Linear(6, 8),
            "lin2": nn.Linear(8, 6, bias=False),
            "sa_layer_norm": nn.LayerNorm(6),
            "bottleneck": DiscreteKeyValueBottleneck(6, 2, 5, 3),
        }
    )
    if tied:
        model["output"] = nn.Linear(6, 11, bias=False)
        model["output"].weight = model["word_embeddings"].weight
    if frozen:
        for part in ("word_embeddings", "LayerNorm"):
            model[part].requires_grad_(False)
    return model


def _sorted(answer: Answer, **options: bool) -> list[tuple[str, float]]:
    """Return name and weight decay of each parameter in the groups, twice for one that stands there twice."""
    groups = answer(_model(**options), 0.1)
    names = {id(parameter): name for name, parameter in answer.given[0].named_parameters()}
    return [(names.get(id(p), "unknown"), group["weight_decay"]) for group in groups for p in group["params"]]


def _decays(answer: Answer, chosen: Callable[[str], bool], decay: float) -> None:
    for name, found in _sorted(answer):
        expect(not chosen(name) or found == decay, f"{name} with a weight decay of {found:g}")


@GROUPS.probe(
    "gives two groups that AdamW takes",
    hint='a list of two dictionaries, each with "params" (a list of parameters) and "weight_decay": where it is '
    "missing, AdamW decays by its own 0.01",
)
def two_groups(answer: Answer) -> None:
    groups = answer(_model(), 0.1)
    expect(isinstance(groups, (list, tuple)), f"{type(groups).__name__} {show(groups)}")
    expect(all(isinstance(group, dict) for group in groups), f"{type(groups[0]).__name__} in the list")
    keys = [sorted(group) for group in groups]
    expect(len(groups) == 2, f"{len(groups)} groups")
    expect(all({"params", "weight_decay"} <= set(group) for group in groups), f"groups with the keys {show(keys)}")
    kinds = {type(group["params"]).__name__ for group in groups}
    expect(kinds <= {"list", "tuple"}, f"params of type {show(sorted(kinds))}")


@GROUPS.probe(
    "holds the model's own parameters",
    hint="state_dict() hands out detached tensors, which get no gradient: use parameters() or named_parameters()",
)
def own_parameters(answer: Answer) -> None:
    strangers = sum(name == "unknown" for name, _ in _sorted(answer))
    expect(not strangers, f"{strangers} tensors that are not in model.parameters()")


@GROUPS.probe(
    "holds no parameter twice",
    hint="model.parameters() visits all parts and hands out a shared matrix once; a walk part by part does not",
)
def no_parameter_twice(answer: Answer) -> None:
    for tied in (False, True):
        names = [name for name, _ in _sorted(answer, tied=tied)]
        twice = sorted({name for name in names if names.count(name) > 1})
        expect(not twice, f"{', '.join(twice)} more than once{' where a matrix is shared' if tied else ''}")


@GROUPS.probe("leaves frozen parameters out", hint="a frozen parameter has requires_grad = False: filter by it")
def no_frozen(answer: Answer) -> None:
    frozen = [name for name, _ in _sorted(answer, frozen=True) if name.startswith(("word", "LayerNorm"))]
    expect(not frozen, f"{', '.join(frozen)} in a group, though frozen")


@GROUPS.probe(
    "forgets no trained parameter",
    hint="one group holds what the other does not; a generator such as model.parameters() is empty after one pass",
)
def none_forgotten(answer: Answer) -> None:
    found = {name for name, _ in _sorted(answer)}
    missing = [name for name, _ in _model().named_parameters() if name not in found]
    expect(not missing, f"{', '.join(missing)} in no group")


@GROUPS.probe(
    "decays matrices by the given weight decay",
    hint="a matrix, of a linear layer or of embeddings, has two dimensions: the first group, with weight_decay",
)
def decays_matrices(answer: Answer) -> None:
    _decays(
        answer, lambda name: name.split(".")[0] in ("word_embeddings", "lin1", "lin2") and "bias" not in name, 0.1
    )


@GROUPS.probe("spares biases", hint='a bias has one dimension, and a name that ends in "bias": weight decay 0')
def spares_biases(answer: Answer) -> None:
    _decays(answer, lambda name: name.endswith("bias"), 0.0)


@GROUPS.probe(
    "spares layer norms",
    hint="a layer norm has a weight besides its bias, and not all models spell its name alike: go by dimensions",
)
def spares_layer_norms(answer: Answer) -> None:
    _decays(answer, lambda name: name in ("LayerNorm.weight", "sa_layer_norm.weight"), 0.0)


@GROUPS.probe(
    "spares values",
    hint="values have three dimensions, (C, K, num_labels); decay would shrink those that no sentence selects",
)
def spares_values(answer: Answer) -> None:
    _decays(answer, lambda name: name == "bottleneck.values", 0.0)


FROM_KEYS = Exercise("5.2", "Key indices as data: logits without a loop", difficulty=2, minutes=10)


def _keys(seed: int, sentences: int = 5, tokens: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values (3, 4, 2) and key indices (sentences, tokens, 3) of full sentences, each key used."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    key_indices = torch.randint(4, (sentences, tokens, 3), generator=generator)
    key_indices[0, :4] = torch.arange(4).unsqueeze(1)
    return values, key_indices


def _shorten(key_indices: torch.Tensor) -> torch.Tensor:
    """Pad sentences at their ends: the last keeps one token, each one before it one more."""
    key_indices = key_indices.clone()
    for row in range(1, len(key_indices)):
        key_indices[row, len(key_indices) - row :] = -1
    return key_indices


def _shares(key_indices: torch.Tensor, size: int) -> torch.Tensor:
    """Return which part of each sentence's mean every value is, (B, C, K)."""
    hits = F.one_hot(key_indices + 1, size + 1)[..., 1:].double().sum(1)
    return hits / hits.sum((1, 2), keepdim=True)


class _Counting(TorchFunctionMode):
    """Counts calls of torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@FROM_KEYS.probe(
    "gives logits of shape (B, num_labels)", hint="the mean runs over tokens and codebooks: dimensions 1 and 2"
)
def shape_of_logits(answer: Answer) -> None:
    values, key_indices = _keys(1)
    expect_tensor(answer(values, key_indices), (5, 2))


@FROM_KEYS.probe("takes a mean, not a sum", hint="divide the sum by the number of handed-out values, C · T")
def mean_not_sum(answer: Answer) -> None:
    values, key_indices = _keys(2)
    expect_close(answer(torch.ones_like(values), key_indices)[0], torch.ones(2))


@FROM_KEYS.probe(
    "hands out each key's value from its own codebook",
    hint="with values.flatten(0, 1), key k of codebook c is row c · K + k; key 0 is a key like any other",
)
def own_codebook(answer: Answer) -> None:
    values, key_indices = _keys(3)
    logits = answer(values, key_indices)
    expect_close(logits, torch.einsum("bck,ckl->bl", _shares(key_indices, 4), values))


@FROM_KEYS.probe(
    "counts each sentence's own real tokens",
    hint="(key_indices[..., 0] >= 0).sum(1) tokens of a sentence are real: divide by C times that",
)
def own_real_tokens(answer: Answer) -> None:
    values, key_indices = _keys(4)
    logits = answer(torch.ones_like(values), _shorten(key_indices))
    saw = f"{show(logits[:, 0])} for padded sentences where all values are 1"
    expect((logits - 1).abs().max() < 1e-6, saw)


@FROM_KEYS.probe(
    "leaves padding out",
    hint="-1 is a valid index in Python, the last row: clamp it and set what it fetched to 0 before the sum",
)
def padding_left_out(answer: Answer) -> None:
    values, key_indices = _keys(5)
    short = _shorten(key_indices)
    further = F.pad(short, (0, 0, 0, 3), value=-1)
    expected = torch.einsum("bck,ckl->bl", _shares(short, 4), values)
    for padded in (short, further):
        expect_close(answer(values, padded), expected)


@FROM_KEYS.probe(
    "gives each value that fired its share of the gradient",
    hint="look values up with indexing or F.embedding without padding_idx, and do not detach them",
)
def shares_of_gradient(answer: Answer) -> None:
    values, key_indices = _keys(6)
    short = _shorten(key_indices)
    logits = answer(values.requires_grad_(), short)
    expect(logits.requires_grad, "logits without a gradient")
    logits[:, 0].sum().backward()
    expect_close(answer.given[0].grad[..., 0], _shares(short, 4).sum(0))


@FROM_KEYS.probe(
    "needs no loop over sentences or tokens",
    hint="one look-up takes all key indices at once: index with a whole tensor",
)
def no_loop(answer: Answer) -> None:
    calls = []
    for sentences, tokens in ((4, 6), (8, 12)):
        values, key_indices = _keys(7, sentences, tokens)
        with _Counting() as counting:
            answer(values, key_indices)
        calls.append(counting.calls)
    expect(calls[0] == calls[1], f"{calls[1] - calls[0]} more calls of torch for twice the sentences and tokens")


STAGE_3 = Exercise("5.3", "Stage 3 on one page", difficulty=3, minutes=25)


def _reference(
    key_indices: torch.Tensor,
    teacher_logits: torch.Tensor,
    size: int,
    epochs: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    accumulate: bool = False,
    fresh: bool = False,
    padded: bool = False,
) -> torch.Tensor:
    """Train values on one batch, rightly or with one of four mistakes."""
    shares = _shares(key_indices, size).float()
    if padded:
        shares *= (key_indices[..., 0] >= 0).float().mean(1).view(-1, 1, 1)
    values = torch.zeros(*shares.shape[1:], teacher_logits.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([values], lr=learning_rate, weight_decay=weight_decay)
    for _ in range(epochs):
        if fresh:
            optimizer = torch.optim.AdamW([values], lr=learning_rate, weight_decay=weight_decay)
        if not accumulate:
            optimizer.zero_grad()
        distillation_loss(torch.einsum("bck,ckl->bl", shares, values), teacher_logits).backward()
        optimizer.step()
    return values.detach()


def _lesson(seed: int, sentences: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Return key indices (sentences, 5, 3), some padded, of 4 keys a codebook, and logits that values can give."""
    generator = torch.Generator().manual_seed(seed)
    key_indices = torch.randint(4, (sentences, 5, 3), generator=generator)
    key_indices[::3, 3:] = -1
    values = 6 * torch.randn(3, 4, 2, generator=generator)
    return key_indices, torch.einsum("bck,ckl->bl", _shares(key_indices, 4).float(), values)


def _one_batch(answer: Answer, **mistake: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Train on a single batch, in which no order plays a part; return the values and the reference's."""
    lesson = _lesson(9, sentences=12)
    return answer(*lesson, 4, 6, 0.5, 0), _reference(*lesson, 4, 6, 0.5, **mistake)


def _unlike(answer: Answer, saw: str, **mistake: Any) -> None:
    found, mistaken = _one_batch(answer, **mistake)
    expect((found - mistaken).abs().max() > 1e-3, saw)


@STAGE_3.probe("returns values of shape (C, K, num_labels)", hint="C is key_indices.shape[2], K codebook_size")
def shape_of_values(answer: Answer) -> None:
    key_indices, teacher_logits = _lesson(1)
    expect_tensor(answer(key_indices, teacher_logits, 4, 1, 0.1, 0), (3, 4, 2))


@STAGE_3.probe(
    "starts with values at zero",
    hint="start with torch.zeros: a value that never fires keeps its start and must say nothing",
)
def values_start_at_zero(answer: Answer) -> None:
    key_indices, teacher_logits = _lesson(2)
    largest = answer(key_indices, teacher_logits, 4, 0, 0.1, 0).abs().max().item()
    expect(largest == 0, f"a largest value of {largest:.3g} before the first epoch")


@STAGE_3.probe(
    "moves only values whose keys fired",
    hint="-1 is padding, not the last key: it must hand out nothing, and get no gradient",
)
def only_fired_move(answer: Answer) -> None:
    key_indices, teacher_logits = _lesson(3)
    key_indices = torch.where(
        key_indices < 0, -1, 1 + key_indices % 2
    )  # keys 1 and 2 fire, neither first nor last
    values = answer(key_indices, teacher_logits, 4, 2, 0.1, 0)
    unfired = (_shares(key_indices, 4).sum(0) == 0) & (values != 0).any(-1)
    moved = [tuple(place) for place in unfired.nonzero().tolist()]
    expect(not moved, f"moved although never fired: (codebook, key) {show(moved)}")


@STAGE_3.probe(
    "learns from every sentence", hint="the last batch of an epoch may hold fewer than 16 sentences: use it too"
)
def every_sentence(answer: Answer) -> None:
    key_indices = torch.arange(19).view(19, 1, 1)
    teacher_logits = torch.tensor([[2.0, -2.0]]).repeat(19, 1)
    values = answer(key_indices, teacher_logits, 19, 1, 0.1, 0)
    unmoved = int((values == 0).all(-1).sum())
    expect(not unmoved, f"values of {unmoved} of 19 sentences still at zero after an epoch")


@STAGE_3.probe(
    "takes the mean over real tokens", hint="divide by C times the sentence's real tokens, as in exercise 5.2"
)
def real_tokens_only(answer: Answer) -> None:
    _unlike(answer, "the values that a mean over the padded length gives", padded=True)


@STAGE_3.probe("clears the gradient before each step", hint="backward() adds to .grad: call optimizer.zero_grad()")
def clears_gradient(answer: Answer) -> None:
    _unlike(answer, "the values that gradients summed over all steps give", accumulate=True)


@STAGE_3.probe(
    "keeps one optimiser", hint="AdamW's moving averages live in the optimiser: make it once, before the loop"
)
def keeps_optimizer(answer: Answer) -> None:
    _unlike(answer, "the values that a new AdamW for each batch gives", fresh=True)


@STAGE_3.probe("trains without weight decay", hint="torch's AdamW decays by 0.01 unless told weight_decay=0.0")
def without_decay(answer: Answer) -> None:
    _unlike(answer, "the values that AdamW's default weight decay of 0.01 leaves", weight_decay=0.01)


@STAGE_3.probe(
    "comes near the teacher",
    hint="the loss must fall: logits are means over real tokens and codebooks, and AdamW's steps, unlike plain "
    "gradient descent's, do not shrink with 1 / (C · T)",
)
def comes_near(answer: Answer) -> None:
    key_indices, teacher_logits = _lesson(4)
    values = answer(key_indices, teacher_logits, 4, 25, 0.3, 0)
    logits = torch.einsum("bck,ckl->bl", _shares(key_indices, 4).float(), values.detach())
    start, end = (distillation_loss(z, teacher_logits).item() for z in (torch.zeros_like(logits), logits))
    expect(end < 0.1 * start, f"a loss of {start:.3f} at zero and {end:.3f} after 25 epochs")


@STAGE_3.probe(
    "gives the same values for the same seed",
    hint="draw the order from torch.Generator().manual_seed(seed), not from torch's global generator",
)
def same_for_a_seed(answer: Answer) -> None:
    found = []
    for elsewhere in (1, 2):
        torch.manual_seed(elsewhere)  # a learner's notebook draws numbers in between
        found.append(answer(*_lesson(5), 4, 2, 0.1, 7))
    gap = (found[0] - found[1]).abs().max().item()
    expect(gap < 1e-4, f"values that differ by up to {gap:.3g} between two calls")


@STAGE_3.probe(
    "shuffles by the seed", hint="torch.randperm(len(key_indices), generator=generator) gives an epoch's order"
)
def shuffles(answer: Answer) -> None:
    one, other = (answer(*_lesson(6), 4, 2, 0.1, seed) for seed in (1, 2))
    gap = (one - other).abs().max().item()
    expect(gap > 1e-4, f"values that differ by {gap:.3g} between two seeds")


@STAGE_3.probe(
    "does AdamW's steps on the KL softened by T = 2",
    hint="one step a batch, at a constant rate, on distillation_loss(logits, teacher_logits, temperature=2.0)",
)
def right_steps(answer: Answer) -> None:
    found, expected = _one_batch(answer)
    gap = (found - expected).abs().max().item()
    expect(gap < 1e-3, f"values off by up to {gap:.3g} after 6 epochs of a single batch")


CHOOSE = Exercise("5.4", "Choose C and K under a budget, and defend it", difficulty=2, minutes=15)

_COLUMNS = ["num_codebooks", "codebook_size", "megabytes", "accuracy"]
# neither by size nor by score, so that no place in the table is the answer
_MEASURED = (
    (32, 256, 0.46, 0.86),
    (64, 1024, 2.10, 0.90),
    (8, 16, 0.03, 0.78),
    (16, 64, 0.12, 0.85),
    (8, 64, 0.10, 0.84),
)


def _choose(answer: Answer, budget: float, rows: int, *sizes: tuple[int, int, float, float]) -> tuple | None:
    found = answer(pd.DataFrame(sizes or _MEASURED, columns=_COLUMNS), budget, rows)
    if found is None:
        return None
    is_pair = isinstance(found, (tuple, list)) and len(found) == 2
    expect(is_pair, f"{type(found).__name__} {show(found)}, expected (C, K) or None")
    for number in found:
        expect(isinstance(number, (int, float, np.integer)), f"{type(number).__name__} in the pair, not a number")
    return tuple(map(int, found))


def _expect_choice(
    answer: Answer, wanted: tuple[int, int] | None, budget: float, rows: int, *sizes: tuple
) -> None:
    found = _choose(answer, budget, rows, *sizes)
    expect(found == wanted, f"{found}, expected {wanted}, with {budget} MB and {rows} rows")


@CHOOSE.probe(
    "keeps within the budget", hint='first leave out what is too large: sizes[sizes["megabytes"] <= budget]'
)
def within_budget(answer: Answer) -> None:
    found = _choose(answer, 0.2, 130, (64, 1024, 2.10, 0.99), (8, 16, 0.03, 0.80))
    expect(found != (64, 1024), "(64, 1024), of 2.10 MB, for a budget of 0.2 MB")


@CHOOSE.probe("lets a size fit that needs all of the budget", hint="within a budget is <=, not <")
def all_of_budget(answer: Answer) -> None:
    _expect_choice(answer, (8, 16), 0.03, 130, (8, 16, 0.03, 0.80))


@CHOOSE.probe("returns None where nothing fits", hint="ask whether what fits is .empty, and return None if so")
def nothing_fits(answer: Answer) -> None:
    _expect_choice(answer, None, 0.01, 130)


@CHOOSE.probe(
    "measures by the best size that fits",
    hint="a size that we cannot pay for sets no bar: take the maximum after the budget has been applied",
)
def best_that_fits(answer: Answer) -> None:
    _expect_choice(answer, (8, 16), 0.2, 130, (64, 1024, 2.10, 0.99), (8, 16, 0.03, 0.80))


@CHOOSE.probe(
    "gives up one standard error of accuracy",
    hint="the bar is a - (a * (1 - a) / rows) ** 0.5: as far as `rows` rows can tell, what reaches it is as good",
)
def one_standard_error(answer: Answer) -> None:
    _expect_choice(answer, (8, 64), 1.0, 130)


@CHOOSE.probe(
    "gives up no more than one standard error",
    hint="one, not two, and of as many rows as `rows` says: more rows, a higher bar",
)
def no_more_than_one(answer: Answer) -> None:
    _expect_choice(answer, (16, 64), 1.0, 1000)


@CHOOSE.probe(
    "takes the more accurate of equally small sizes",
    hint='sort_values(["megabytes", "accuracy"], ascending=[True, False]), then the first row',
)
def more_accurate(answer: Answer) -> None:
    _expect_choice(answer, (4, 16), 1.0, 130, (32, 256, 0.46, 0.86), (2, 16, 0.03, 0.84), (4, 16, 0.03, 0.85))
