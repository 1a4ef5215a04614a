import math

import pytest
import torch
import torch.nn.functional as F

from kvlib import distillation_loss

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
