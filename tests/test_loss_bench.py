"""The loss bench: what it shows is the library's loss and its gradient, and every control moves it."""

import time

import pytest
import torch

from kvlib.loss import distillation_loss
from workbook.loss_bench import LossBench, take_apart

STUDENT, TEACHER = torch.tensor([[1.0, 2.0, 0.0], [4.0, 2.0, -3.0]], dtype=torch.float64)
NAMES = ["entailment", "neutral", "contradiction"]


@pytest.mark.parametrize("temperature", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_parts_and_gradients_sum_to_the_librarys_loss_and_its_gradient(temperature, alpha):
    classes, parts = take_apart(STUDENT, TEACHER, 1, temperature, alpha)
    logits = STUDENT.clone().requires_grad_()
    loss = distillation_loss(logits[None], TEACHER[None], torch.tensor([1]), temperature, alpha)
    loss.backward()
    assert parts["weighted"].sum() == pytest.approx(loss.item())
    assert classes["gradient"].tolist() == pytest.approx(logits.grad.tolist())
    assert (classes["soft_gradient"] + classes["hard_gradient"]).tolist() == pytest.approx(logits.grad.tolist())
    assert classes["KL_term"].sum() == pytest.approx(parts["value"][0])
    for name, z in (("teacher", TEACHER), ("student", STUDENT)):
        assert classes[name].tolist() == pytest.approx((z / temperature).softmax(-1).tolist())


def test_without_the_square_the_soft_part_shrinks_and_the_hard_one_stays():
    (with_it, parts), (without, fewer) = (take_apart(STUDENT, TEACHER, 0, 4.0, 0.9, on) for on in (True, False))
    assert parts["value"].tolist() == fewer["value"].tolist()
    assert (parts["weight"] / fewer["weight"]).tolist() == pytest.approx([16, 1])
    assert (with_it["soft_gradient"] / without["soft_gradient"]).tolist() == pytest.approx([16] * 3)
    assert with_it["hard_gradient"].tolist() == without["hard_gradient"].tolist()


def test_logits_keep_their_gradients_to_themselves():
    student = STUDENT.clone().requires_grad_()
    take_apart(student, TEACHER, 0)
    assert student.grad is None


def test_every_control_moves_the_tables_and_no_move_takes_long():
    bench = LossBench(NAMES, STUDENT.tolist(), TEACHER.tolist(), label=1)
    moves = [(slider, slider.value + 0.5) for slider in (*bench.teacher, *bench.student)]
    moves += [(bench.temperature, 4.0), (bench.alpha, 0.9), (bench.squared, False), (bench.label, 2)]
    seconds = []
    for control, value in moves:
        before = [table.value for table in bench._tables]
        begun = time.perf_counter()
        control.value = value
        seconds.append(time.perf_counter() - begun)
        assert [table.value for table in bench._tables] != before, control.description
    student, teacher = STUDENT + 0.5, TEACHER + 0.5
    classes, parts = take_apart(student, teacher, 2, 4.0, 0.9, squared=False)
    assert bench.classes.equals(classes) and bench.parts.equals(parts)
    assert sorted(seconds)[len(seconds) // 2] < 0.2
    print(f"{1000 * sorted(seconds)[len(seconds) // 2]:.1f} ms a move (median), {1000 * max(seconds):.1f} at most")


def test_extreme_logits_stay_finite():
    bench = LossBench(NAMES, [8.0, -8.0, -8.0], [-8.0, 8.0, -8.0], label=2)
    bench.temperature.value = bench.temperature.min
    assert bench.classes.notna().all(axis=None) and "nan" not in "".join(table.value for table in bench._tables)


def test_its_text_has_no_numbers():
    bench = LossBench(NAMES, STUDENT.tolist(), TEACHER.tolist(), label=1)
    assert bench._repr_mimebundle_()["text/plain"] == "LossBench: run this cell in a kernel, move a slider"
