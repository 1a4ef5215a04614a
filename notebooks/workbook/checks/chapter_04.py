"""Exercises of chapter 04: the loss."""

import torch
import torch.nn.functional as F

from kvlib.loss import distillation_loss
from workbook.checking import Answer, Exercise, Mistake, expect, expect_close, expect_number, expect_tensor, show

SOFT_KL = Exercise("4.1", "KL with temperature, and its T²", difficulty=1, minutes=10)


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


GRADIENT = Exercise("4.2", "The soft loss's gradient, without autograd", difficulty=2, minutes=10)


def _autograd(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    student = student.clone().requires_grad_()
    distillation_loss(student, teacher, temperature=temperature).backward()
    return student.grad


@GRADIENT.probe(
    "gives a number for each logit",
    hint="the loss is one number, its gradient has the shape of the student's logits",
)
def gradient_shape(answer: Answer) -> None:
    student, teacher = _logits(11, rows=4, labels=5)
    expect_tensor(answer(student, teacher, 2.0), (4, 5))


@GRADIENT.probe(
    "sums to zero over the classes of a row",
    hint="raising all logits of a row changes nothing: softmax runs over dim=-1, and its denominator has a "
    "derivative too",
)
def gradient_sums_to_zero(answer: Answer) -> None:
    student, teacher = _logits(13)
    sums = answer(student, teacher, 2.0).sum(-1)
    expect(sums.abs().max() < 1e-9, f"sums {show(sums)}")


@GRADIENT.probe(
    "is zero where student and teacher agree",
    hint="the teacher's whole distribution takes part, not its most likely class",
)
def gradient_zero_at_agreement(answer: Answer) -> None:
    _, teacher = _logits(12)
    largest = answer(teacher, teacher, 2.0).abs().max().item()
    expect(largest < 1e-9, f"a largest entry of {largest:.3g} for two equal inputs")


@GRADIENT.probe(
    "points uphill", hint="the loss falls *against* its gradient: student minus teacher, not the reverse"
)
def gradient_uphill(answer: Answer) -> None:
    student, teacher = _logits(14)
    gradient = answer(student, teacher, 2.0)
    step = 1e-3 * gradient / gradient.norm()
    here, there = (distillation_loss(logits, teacher).item() for logits in (student, student - step))
    expect(there < here, f"the loss goes from {here:.6f} to {there:.6f} after a small step against the gradient")


@GRADIENT.probe(
    "compares the softened distributions", hint="the probabilities are those of the loss: softmax(logits / T)"
)
def gradient_softened(answer: Answer) -> None:
    student, teacher = _logits(15)
    cosine = F.cosine_similarity(answer(student, teacher, 3.0), _autograd(student, teacher, 3.0), dim=-1)
    expect((cosine > 1 - 1e-6).all(), f"at T = 3, cosines with the true rows {show(cosine)}")


@GRADIENT.probe("is that of a mean over the rows", hint="the loss is a mean over B rows: each row gets 1 / B")
def gradient_of_a_mean(answer: Answer) -> None:
    student, teacher = _logits(16, rows=3)
    once = answer(student, teacher, 2.0)
    twice = answer(student.repeat(2, 1), teacher.repeat(2, 1), 2.0)[:3]
    ratio = (once.norm() / twice.norm()).item()
    expect(abs(ratio - 2) < 1e-4, f"rows of a doubled batch are {ratio:.3g} times smaller instead of 2")


@GRADIENT.probe(
    "divides by B alone", hint="the KL is a sum over the classes: no number of classes in the denominator"
)
def gradient_of_a_sum(answer: Answer) -> None:
    student, teacher = _logits(19, rows=4, labels=6)
    ratio = (answer(student, teacher, 1.0).norm() / _autograd(student, teacher, 1.0).norm()).item()
    expect(abs(ratio - 1) < 1e-6, f"with 6 classes and T = 1, {ratio:.3g} times the gradient")


@GRADIENT.probe(
    "has the right power of T", hint="the loss brings T², the chain rule through logits / T takes one factor away"
)
def gradient_power_of_t(answer: Answer) -> None:
    student, teacher = _logits(17)
    ratio = (answer(student, teacher, 4.0).norm() / _autograd(student, teacher, 4.0).norm()).item()
    expect(abs(ratio - 1) < 1e-6, f"at T = 4, {ratio:.3g} times the gradient")


@GRADIENT.probe("needs no autograd", hint="no backward() and no torch.autograd.grad: the formula fits on one line")
def gradient_by_hand(answer: Answer) -> None:
    student, teacher = _logits(18)
    try:
        with torch.inference_mode():
            answer(student, teacher, 2.0)
    except Mistake as mistake:
        raise Mistake(f"{mistake.saw} (under torch.inference_mode)") from mistake


PARTLY = Exercise("4.3", "A batch with few labels", difficulty=2, minutes=10)


def _partly(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return *_logits(seed, rows=6), torch.tensor([2, -100, 0, -100, -100, 1])


@PARTLY.probe("gives one number", hint="both terms are means: one number each, and so is their weighted sum")
def partly_one_number(answer: Answer) -> None:
    expect_number(answer(*_partly(21), 2.0, 0.5))


@PARTLY.probe("gives alpha to the teacher", hint="alpha weighs the soft term, 1 - alpha the labels")
def partly_alpha(answer: Answer) -> None:
    student, teacher = _logits(22, rows=4)
    one, other = (answer(student, teacher, torch.tensor(labels), 2.0, 1.0) for labels in ([0] * 4, [2] * 4))
    one, other = expect_number(one), expect_number(other)
    expect(abs(one - other) < 1e-9, f"at alpha = 1, {one:.4g} and {other:.4g} for two sets of labels")


@PARTLY.probe(
    "hears the teacher in every row",
    hint="the teacher has an opinion on unlabelled rows too: drop them from the label term only",
)
def partly_every_row(answer: Answer) -> None:
    student, teacher, labels = _partly(23)
    other = teacher.clone()
    other[1] += torch.tensor([3.0, 0.0, -3.0])
    losses = [expect_number(answer(student, logits, labels, 2.0, 1.0)) for logits in (teacher, other)]
    expect(abs(losses[0] - losses[1]) > 1e-6, f"{losses[0]:.4g} whatever the teacher says to an unlabelled row")


@PARTLY.probe(
    "takes T² times the KL, a mean over all rows",
    hint="the soft term is the one of exercise 4.1, its factor T**2 included, over all B rows",
)
def partly_soft_mean(answer: Answer) -> None:
    student, teacher, labels = _partly(24)
    expect_close(
        expect_number(answer(student, teacher, labels, 3.0, 1.0)), distillation_loss(student, teacher, None, 3.0)
    )


@PARTLY.probe(
    "does not read −100 as a class",
    hint="a row without a label has no place in the cross-entropy: leave it out (ignore_index does)",
)
def partly_ignores(answer: Answer) -> None:
    student, teacher, labels = _partly(25)
    other = student.clone()
    other[1] += torch.tensor([3.0, 0.0, -3.0])
    losses = [expect_number(answer(logits, teacher, labels, 2.0, 0.0)) for logits in (student, other)]
    saw = f"at alpha = 0, {losses[0]:.4g} and {losses[1]:.4g} after a change in an unlabelled row"
    expect(abs(losses[0] - losses[1]) < 1e-9, saw)


@PARTLY.probe(
    "reads the labels at T = 1", hint="only the soft term is softened: cross-entropy takes the raw logits"
)
def partly_raw_logits(answer: Answer) -> None:
    low, high = (expect_number(answer(*_partly(26), temperature, 0.0)) for temperature in (2.0, 5.0))
    expect(abs(low - high) < 1e-9, f"at alpha = 0, {low:.4g} for T = 2 and {high:.4g} for T = 5")


@PARTLY.probe(
    "takes the label mean over labelled rows", hint="divide the label term by the number of labels, not by B"
)
def partly_hard_mean(answer: Answer) -> None:
    student, teacher, labels = _partly(27)
    labelled = labels >= 0
    expected = F.cross_entropy(student[labelled], labels[labelled])
    expect_close(expect_number(answer(student, teacher, labels, 2.0, 0.0)), expected)


@PARTLY.probe(
    "is a number where no row is labelled",
    hint="a mean of nothing is 0 / 0: take the sum and divide by at least 1",
)
def partly_unlabelled(answer: Answer) -> None:
    student, teacher, _ = _partly(28)
    expect_number(answer(student, teacher, torch.full((6,), -100), 2.0, 0.9))


@PARTLY.probe(
    "keeps alpha where no row is labelled",
    hint="the label term is 0 there; alpha still weighs the teacher's, or such batches weigh more than others",
)
def partly_alpha_unlabelled(answer: Answer) -> None:
    student, teacher, _ = _partly(29)
    loss = expect_number(answer(student, teacher, torch.full((6,), -100), 2.0, 0.25))
    expect_close(loss, 0.25 * distillation_loss(student, teacher).item())


@PARTLY.probe(
    "has a gradient free of NaN where no row is labelled",
    hint="a NaN that is replaced afterwards still sends NaN backwards: do not let it arise",
)
def partly_gradient(answer: Answer) -> None:
    student, teacher, _ = _partly(30)
    answer(student.requires_grad_(), teacher, torch.full((6,), -100), 2.0, 0.5).backward()
    gradient = answer.given[0].grad
    expect(gradient is not None, "no gradient")
    expect(gradient.isfinite().all(), f"{int((~gradient.isfinite()).sum())} of {gradient.numel()} entries")


REPAIR = Exercise("4.4", "Three silent mistakes", difficulty=2, minutes=10)


@REPAIR.probe(
    "gives one number", hint='reduction="batchmean" was right: it gives the sum over classes and rows, over B'
)
def repair_one_number(answer: Answer) -> None:
    expect_number(answer(*_logits(31), torch.tensor([0, 1, 2, 0, 1]), 2.0, 0.5))


@REPAIR.probe("gives alpha to the teacher", hint="alpha was right: it weighs the soft term")
def repair_alpha(answer: Answer) -> None:
    student, teacher = _logits(32, rows=4)
    one, other = (answer(student, teacher, torch.tensor(labels), 2.0, 1.0) for labels in ([0] * 4, [2] * 4))
    one, other = expect_number(one), expect_number(other)
    expect(abs(one - other) < 1e-9, f"at alpha = 1, {one:.4g} and {other:.4g} for two sets of labels")


@REPAIR.probe(
    "is zero for a perfect copy at alpha = 1",
    hint="F.kl_div wants the *logarithm* of the student's probabilities as its first argument",
)
def repair_zero(answer: Answer) -> None:
    _, teacher = _logits(33)
    loss = expect_number(answer(teacher, teacher, torch.tensor([0, 1, 2, 0, 1]), 2.0, 1.0))
    expect(abs(loss) < 1e-9, f"{loss:.4g}")


@REPAIR.probe(
    "is the teacher's divergence from the student",
    hint="F.kl_div takes the student first, in logarithms, then the teacher",
)
def repair_direction(answer: Answer) -> None:
    student, teacher = _logits(34)
    loss = expect_number(answer(student, teacher, torch.tensor([0, 1, 2, 0, 1]), 2.0, 1.0))
    swapped = distillation_loss(teacher, student).item()
    expect(abs(loss - swapped) > 1e-6, f"{loss:.4g}, which is T² · KL(p_s ‖ p_t)")


@REPAIR.probe(
    "keeps what was right in the soft term",
    hint='T softens both sides, reduction="batchmean" and T**2: these were right',
)
def repair_soft(answer: Answer) -> None:
    student, teacher = _logits(35, rows=4, labels=6)
    loss = expect_number(answer(student, teacher, torch.tensor([0, 1, 2, 5]), 3.0, 1.0))
    expect_close(loss, distillation_loss(student, teacher, temperature=3.0))


@REPAIR.probe("reads the labels at T = 1", hint="cross-entropy takes the raw logits: T belongs to the soft term")
def repair_labels(answer: Answer) -> None:
    batch = *_logits(36), torch.tensor([0, 1, 2, 0, 1])
    low, high = (expect_number(answer(*batch, temperature, 0.0)) for temperature in (2.0, 5.0))
    expect(abs(low - high) < 1e-9, f"at alpha = 0, {low:.4g} for T = 2 and {high:.4g} for T = 5")


@REPAIR.probe("sends no gradient to the teacher", hint="the teacher is a fixed target: detach() its logits")
def repair_detached(answer: Answer) -> None:
    student, teacher = (logits.requires_grad_() for logits in _logits(37))
    answer(student, teacher, torch.tensor([0, 1, 2, 0, 1]), 2.0, 0.5).backward()
    gradient = answer.given[1].grad
    largest = 0.0 if gradient is None else gradient.abs().max().item()
    expect(largest == 0, f"a gradient of up to {largest:.3g} at the teacher's logits")


@REPAIR.probe("trains the student", hint="detach() the teacher's side only")
def repair_trains(answer: Answer) -> None:
    student, teacher = _logits(38)
    loss = answer(student.clone().requires_grad_(), teacher, torch.tensor([0, 1, 2, 0, 1]), 2.0, 1.0)
    expect(loss.requires_grad, "at alpha = 1, a loss without a gradient")
    loss.backward()
    ratio = (answer.given[0].grad.norm() / _autograd(student, teacher, 2.0).norm()).item()
    expect(abs(ratio - 1) < 1e-6, f"{ratio:.3g} times the gradient at the student's logits")


@REPAIR.probe(
    "stays finite for a sure student",
    hint="the logarithm of a probability that rounds to zero is minus infinity: take log_softmax",
)
def repair_finite(answer: Answer) -> None:
    sure = torch.tensor([[2000.0, 0.0, -2000.0]])
    expect_number(answer(sure, torch.zeros(1, 3), torch.tensor([0]), 1.0, 0.5))
