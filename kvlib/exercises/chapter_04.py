"""Exercises of chapter 04: the loss."""

import torch
import torch.nn.functional as F

from kvlib.exercises.checking import Answer, Exercise, expect, expect_close, expect_number

SOFT_KL = Exercise("4.1", "KL with temperature, and its T²", difficulty=2, minutes=10)


def _logits(seed: int, rows: int = 5, labels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, labels, generator=generator, dtype=torch.float64)
    return student, teacher


@SOFT_KL.probe(
    "gives one number", hint="a batch has one loss: sum over the classes, then take the mean over the rows"
)
def one_number(answer: Answer) -> None:
    expect_number(answer(*_logits(1), 2.0))


@SOFT_KL.probe(
    "is zero where student and teacher agree",
    hint="KL is a probability times a difference of two logarithms, and that difference is zero here",
)
def zero_at_agreement(answer: Answer) -> None:
    _, teacher = _logits(2)
    loss = expect_number(answer(teacher, teacher, 1.0))
    expect(abs(loss) < 1e-9, f"{loss:.4g} for two equal inputs")


@SOFT_KL.probe(
    "does not change when a row's logits all rise by 1",
    hint="softmax runs over the classes, dim=-1, not over the rows of the batch",
)
def shift_invariant(answer: Answer) -> None:
    student, teacher = _logits(3)
    raised = student + torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]).unsqueeze(1)
    expect_close(expect_number(answer(raised, teacher, 2.0)), expect_number(answer(student, teacher, 2.0)))


@SOFT_KL.probe(
    "is the teacher's divergence from the student",
    hint="KL(p_t ‖ p_s) is weighted by the teacher's probabilities; F.kl_div wants the student's logarithms first",
)
def direction(answer: Answer) -> None:
    student, teacher = _logits(4)
    loss = expect_number(answer(student, teacher, 1.0))
    swapped = F.kl_div(teacher.log_softmax(-1), student.log_softmax(-1), reduction="batchmean", log_target=True)
    expect(abs(loss - swapped.item()) > 1e-6, f"{loss:.4g}, which is KL(p_s ‖ p_t)")


@SOFT_KL.probe(
    "is a mean over rows, not over rows and classes",
    hint='F.kl_div(reduction="mean") also divides by the number of classes: use "batchmean"',
)
def mean_over_rows(answer: Answer) -> None:
    student, teacher = _logits(5, rows=4, labels=6)
    expected = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
    expect_close(expect_number(answer(student, teacher, 1.0)), expected)


@SOFT_KL.probe("softens both sides by T", hint="divide the teacher's logits by T as well as the student's")
def both_softened(answer: Answer) -> None:
    factors = []  # T², or 1 where it was forgotten: the same for any batch
    for seed in (7, 8):
        student, teacher = _logits(seed)
        student_log, teacher_log = ((logits / 3).log_softmax(-1) for logits in (student, teacher))
        soft = F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
        factors.append(expect_number(answer(student, teacher, 3.0)) / soft.item())
    saw = f"at T = 3, {factors[0]:.3g} and {factors[1]:.3g} times the softened KL of two batches"
    expect(abs(factors[0] / factors[1] - 1) < 1e-4, saw)


@SOFT_KL.probe(
    "keeps the size of its gradient as T grows",
    hint="softening divides the gradient by about T²: multiply the KL by T**2",
)
def gradient_keeps_size(answer: Answer) -> None:
    student, teacher = _logits(6)
    norms = []
    for temperature in (8.0, 16.0):
        answer(student.clone().requires_grad_(), teacher, temperature).backward()
        norms.append(answer.given[0].grad.norm().item())
    expect(0.8 < norms[1] / norms[0] < 1.25, f"norm {norms[0]:.3g} at T = 8, {norms[1]:.3g} at T = 16")


@SOFT_KL.probe(
    "stays finite for sure teachers",
    hint="the logarithm of a probability that rounds to zero is minus infinity: take log_softmax",
)
def finite(answer: Answer) -> None:
    sure = torch.tensor([[2000.0, 0.0, -2000.0]])
    expect_number(answer(torch.zeros(1, 3), sure, 1.0))
    expect_number(answer(sure, torch.zeros(1, 3), 1.0))
