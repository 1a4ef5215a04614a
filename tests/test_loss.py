import math

import pytest
import torch
import torch.nn.functional as F

from kvlib import DiscreteKeyValueBottleneck, distillation_loss
from kvlib.loss import alignment_loss, layer_loss

STUDENT = torch.tensor([[0.0, 1.0, 0.5], [2.0, 0.0, 0.0]], dtype=torch.float64)
TEACHER = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([1, 2])


def test_matches_the_formula_written_out():
    temperature, total = 3.0, 0.0
    for student, teacher in zip(STUDENT.tolist(), TEACHER.tolist(), strict=True):
        p = [math.exp(z / temperature) for z in teacher]
        q = [math.exp(z / temperature) for z in student]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = total / 2 * temperature**2
    assert distillation_loss(STUDENT, TEACHER, temperature=temperature).item() == pytest.approx(
        expected, rel=1e-12
    )


def test_alpha_is_the_weight_of_the_teachers_loss():
    soft = distillation_loss(STUDENT, TEACHER)
    hard = F.cross_entropy(STUDENT, LABELS)
    mixed = distillation_loss(STUDENT, TEACHER, LABELS, alpha=0.3)
    torch.testing.assert_close(mixed, 0.3 * soft + 0.7 * hard)
    torch.testing.assert_close(distillation_loss(STUDENT, None, LABELS, alpha=0.0), hard)


def test_gradient_does_not_vanish_with_temperature():
    norms = []
    for temperature in (1.0, 10.0, 100.0):
        student = STUDENT.clone().requires_grad_()
        distillation_loss(student, TEACHER, temperature=temperature).backward()
        norms.append(student.grad.norm().item())
    # for large T the loss tends to half the squared distance of centred logits over the number of classes
    centred = (STUDENT - TEACHER) - (STUDENT - TEACHER).mean(1, keepdim=True)
    limit = (centred / 3 / 2).norm().item()
    assert norms[2] == pytest.approx(limit, rel=0.02)
    assert min(norms) > 0.3 * max(norms)


def test_no_gradient_reaches_the_teacher():
    teacher = TEACHER.clone().requires_grad_()
    distillation_loss(STUDENT.clone().requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_regression_is_squared_error_to_teacher_and_label():
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [2.0]])
    labels = torch.tensor([1.0, 4.0])
    assert distillation_loss(student, teacher, labels, alpha=0.25).item() == pytest.approx(0.25 * 0.5 + 0.75 * 2.0)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="same shape"):
        distillation_loss(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match=r"labels has shape \(4, 1\)"):
        distillation_loss(torch.zeros(4, 1), None, torch.zeros(4, 1), alpha=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"alpha": 0.5}, "no labels"),
        ({"teacher_logits": None}, "no teacher_logits"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        distillation_loss(STUDENT, **({"teacher_logits": TEACHER} | arguments))


BOTTLENECKS = [
    {},
    {"standardize": False},
    {"projection": "random", "dim_key": 3},
    {"projection": "random", "dim_key": 5, "standardize": False},
]


def states_and_bottleneck(dtype=torch.float64, **options):
    """Six tokens of a student and of its teacher, and keys fitted on states like the teacher's."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 1.0, 9.0, 0.2, 1.0, 1.0, 3.0, 1.0])  # one dimension is large, as in BERT
    student, teacher, many = (torch.randn(rows, 8, generator=generator) * scales + 1 for rows in (6, 6, 200))
    torch.manual_seed(0)
    bottleneck = DiscreteKeyValueBottleneck(8, num_codebooks=2, codebook_size=5, **options)
    bottleneck.init_keys([many])
    bottleneck.freeze_keys()
    return student.to(dtype), teacher.to(dtype), bottleneck.to(dtype)


def by_hand(bottleneck, student, teacher, weight, temperature):
    """The formula of `alignment_loss`, vector by vector."""
    if bottleneck.standardize:
        student, teacher = ((states - bottleneck.mean) / bottleneck.std for states in (student, teacher))
    if bottleneck.projection == "random":
        student, teacher = student @ bottleneck.projections, teacher @ bottleneck.projections
    total = torch.zeros((), dtype=student.dtype)
    C, _, d = bottleneck.keys.shape
    for token in range(len(student)):
        for codebook in range(C):
            s, t = (states[token, codebook * d : (codebook + 1) * d] for states in (student, teacher))
            total = total + (s - t).square().sum() / d
            fired = (t - bottleneck.keys[codebook]).square().sum(-1).argmin()
            scores = -(s - bottleneck.keys[codebook]).square().sum(-1) / temperature
            total = total + weight * F.cross_entropy(scores, fired)
    return total / (len(student) * C)


def test_layer_loss_by_hand():
    generator = torch.Generator().manual_seed(0)
    teacher = [10**layer * torch.randn(2, 5, 8, generator=generator) for layer in range(6)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 0]])
    deviation = [
        torch.stack([row[real].std(correction=0) for row, real in zip(t, mask.bool(), strict=True)])
        for t in teacher
    ]
    # layers and examples of other scales weigh the same: each is off by one of its standard deviations
    student = [teacher[layer] + deviation[layer][:, None, None] for layer in (1, 3, 5)]
    assert layer_loss(student, teacher, mask).item() == pytest.approx(1, rel=1e-5)
    assert layer_loss([teacher[1], teacher[3], teacher[5]], teacher, mask).item() == 0
    # four of six: after 1, 3, 4 and 6
    assert layer_loss([teacher[place - 1] for place in (1, 3, 4, 6)], teacher, mask).item() == 0
    # what stands at padding is nothing to it
    student[0][1, 0] = 1e3
    assert layer_loss(student, teacher, mask).item() == pytest.approx(1, rel=1e-5)
    # a mean over examples, whatever the number of their tokens
    parts = [layer_loss([s[[row]] for s in student], [t[[row]] for t in teacher], mask[[row]]) for row in (0, 1)]
    assert layer_loss(student, teacher, mask).item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-6)


def test_a_student_deeper_than_its_teacher_is_refused():
    states = [torch.zeros(1, 2, 3)] * 3
    with pytest.raises(ValueError, match="the student has 3 layers, the teacher only 2"):
        layer_loss(states, states[:2], torch.ones(1, 2))


def test_layer_loss_moves_the_student_and_not_the_teacher():
    student, teacher, _ = states_and_bottleneck(torch.float32)
    student, teacher = student[None].requires_grad_(), teacher[None].requires_grad_()
    layer_loss([student], [teacher], torch.ones(student.shape[:2])).backward()
    assert teacher.grad is None
    s, t = student.detach(), teacher.detach()
    torch.testing.assert_close(student.grad, 2 * (s - t) / t.var(correction=0) / s.numel(), atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("options", BOTTLENECKS, ids=lambda options: "-".join(map(str, options.values())) or "-")
def test_alignment_loss_is_the_formula_written_out(options):
    student, teacher, bottleneck = states_and_bottleneck(**options)
    for weight, temperature in ((0.0, 1.0), (0.7, 1.0), (0.7, 2.5)):
        found = alignment_loss(bottleneck, student, teacher, weight, temperature)
        expected = by_hand(bottleneck, student, teacher, weight, temperature)
        torch.testing.assert_close(found, expected, atol=0, rtol=1e-12)
    assert alignment_loss(bottleneck, student, student).item() == 0
    # the student sits where the teacher does, but the softmax is not yet all on its key
    assert alignment_loss(bottleneck, student, student, key_weight=1.0).item() > 0


@pytest.mark.parametrize("options", BOTTLENECKS, ids=lambda options: "-".join(map(str, options.values())) or "-")
def test_alignment_loss_passes_gradcheck_and_moves_the_student_alone(options):
    student, teacher, bottleneck = states_and_bottleneck(**options)

    def loss(states):
        return alignment_loss(bottleneck, states, teacher, 0.7, 2.0)

    assert torch.autograd.gradcheck(loss, student.clone().requires_grad_())
    teacher.requires_grad_()
    student.requires_grad_()
    loss(student).backward()
    assert student.grad.abs().min() > 0
    assert teacher.grad is None
    assert bottleneck.values.grad is None
    assert not bottleneck.keys.requires_grad


def test_following_the_key_term_fires_the_teachers_keys():
    student, teacher, bottleneck = states_and_bottleneck()
    target = bottleneck.quantize(teacher)
    assert (bottleneck.quantize(student) != target).any()
    moving = student.clone().requires_grad_()
    optimizer = torch.optim.Adam([moving], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        # the cross-entropy alone: the squared error taken off again
        total = alignment_loss(bottleneck, moving, teacher, key_weight=1.0)
        (total - alignment_loss(bottleneck, moving, teacher)).backward()
        optimizer.step()
    assert torch.equal(bottleneck.quantize(moving.detach()), target)


@pytest.mark.parametrize("options", BOTTLENECKS, ids=lambda options: "-".join(map(str, options.values())) or "-")
def test_autocast_does_not_change_the_losses_on_hidden_states(options):
    student, teacher, bottleneck = states_and_bottleneck(torch.float32, **options)
    losses = []
    for enabled in (False, True):
        states = student.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = alignment_loss(bottleneck, states, teacher, 0.7) + layer_loss(
                [states[None]], [teacher[None]], torch.ones(1, len(states))
            )
        assert found.dtype == torch.float32
        found.backward()
        losses.append((found.detach(), states.grad))
    # bfloat16 has a relative precision of 4e-3: a single product taken in it would show
    torch.testing.assert_close(losses[1][0], losses[0][0], atol=0, rtol=1e-6)
    torch.testing.assert_close(losses[1][1], losses[0][1], atol=1e-6, rtol=1e-5)


def test_hidden_states_of_other_tokens_or_widths_are_refused():
    student, teacher, bottleneck = states_and_bottleneck()
    for other in (teacher[:1], teacher[:, :4], teacher[None]):
        # a single row would broadcast without a word
        with pytest.raises(ValueError, match=r"student_states \(6, 8\) and teacher_states \(.* same shape"):
            layer_loss([student], [other], torch.ones(student.shape[:2]))
        with pytest.raises(ValueError, match=r"student_states \(6, 8\) and teacher_states \(.* same shape"):
            alignment_loss(bottleneck, student, other)


def test_infinite_temperature_is_refused():
    logits = torch.randn(4, 2)
    with pytest.raises(ValueError, match=r"temperature is inf, expected a positive, finite number"):
        distillation_loss(logits, logits, temperature=float("inf"))
