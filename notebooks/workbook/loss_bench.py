"""The loss bench: move logits, temperature and alpha, and see what the loss and its gradient do."""

from collections.abc import Sequence

import ipywidgets as widgets
import pandas as pd
import torch
from torch import Tensor

from kvlib.loss import distillation_loss
from workbook.bench import Bench, html_table, style_sheet


def take_apart(
    student_logits: Tensor,
    teacher_logits: Tensor,
    label: int,
    temperature: float = 2.0,
    alpha: float = 0.9,
    squared: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take one example's `distillation_loss` apart, by class and by part.

    Parameters
    ----------
    student_logits, teacher_logits : torch.Tensor
        ``(num_labels,)``.
    label, temperature, alpha
        As in `kvlib.loss.distillation_loss`.
    squared : bool
        Whether the KL is multiplied by T², as it should be.

    Returns
    -------
    classes : pandas.DataFrame
        A class a row: probabilities at T of ``teacher`` and ``student``; ``KL_term``, which sum to the KL; and the
        gradient with respect to the student's logits, ``soft_gradient`` + ``hard_gradient`` = ``gradient``.
    parts : pandas.DataFrame
        Rows ``soft`` (KL at T) and ``hard`` (cross-entropy at T = 1): ``value``, ``weight``, and their product
        ``weighted``. With `squared` the products sum to `distillation_loss`.
    """
    logits = student_logits.detach().clone().requires_grad_()
    one, teacher = logits.unsqueeze(0), teacher_logits.unsqueeze(0)  # (1, num_labels)
    kl = distillation_loss(one, teacher, temperature=temperature) / temperature**2
    hard = distillation_loss(one, None, torch.tensor([label]), alpha=0.0)
    weights = alpha * (temperature**2 if squared else 1.0), 1 - alpha
    gradients = [
        torch.autograd.grad(weight * part, logits)[0] for weight, part in zip(weights, (kl, hard), strict=True)
    ]
    taught, learnt = ((z / temperature).log_softmax(-1) for z in (teacher_logits, student_logits))
    columns = {"teacher": taught.exp(), "student": learnt.exp(), "KL_term": taught.exp() * (taught - learnt)}
    columns |= {"soft_gradient": gradients[0], "hard_gradient": gradients[1], "gradient": sum(gradients)}
    classes = pd.DataFrame({name: column.tolist() for name, column in columns.items()})
    parts = pd.DataFrame({"part": ["soft", "hard"], "value": [kl.item(), hard.item()], "weight": weights})
    return classes, parts.assign(weighted=parts["value"] * parts["weight"])


class LossBench(Bench):
    """Sliders and tables around `take_apart`; as a cell's last line it shows itself.

    Parameters
    ----------
    names : sequence of str
        Of the classes.
    student_logits, teacher_logits : sequence of float
        A number a class, to begin with.
    label : int
        To begin with.

    Attributes
    ----------
    student, teacher : list of ipywidgets.FloatSlider
        The logits.
    label, temperature, alpha, squared : ipywidgets.Widget
        The other controls.
    classes, parts : pandas.DataFrame
        What the tables show.
    """

    hint = "move a slider"

    def __init__(
        self, names: Sequence[str], student_logits: Sequence[float], teacher_logits: Sequence[float], label: int
    ) -> None:
        self._names = list(names)
        wide = {"style": {"description_width": "150px"}, "layout": widgets.Layout(width="400px")}
        slider = {"readout_format": ".1f", **wide}
        self.teacher, self.student = (
            [
                widgets.FloatSlider(logit, description=f"{who}: {name}", min=-8, max=8, step=0.5, **slider)
                for name, logit in zip(names, logits, strict=True)
            ]
            for who, logits in (("Teacher", teacher_logits), ("Student", student_logits))
        )
        self.temperature = widgets.FloatSlider(
            2.0, description="Temperature T", min=0.5, max=10, step=0.5, **slider
        )
        self.alpha = widgets.FloatSlider(0.5, description="alpha (teacher's)", min=0, max=1, step=0.1, **slider)
        self.squared = widgets.Checkbox(True, description="KL times T²", **wide)
        options = [(name, number) for number, name in enumerate(names)]
        self.label = widgets.Dropdown(description="Label", options=options, value=label, **wide)
        others = [self.temperature, self.alpha, self.squared, self.label]
        for control in (*self.teacher, *self.student, *others):
            control.observe(lambda _: self._show(), "value")
        columns = [widgets.VBox([*self.teacher, *self.student]), widgets.VBox(others)]
        self._tables = [widgets.HTML() for _ in range(3)]
        row = widgets.HBox(columns, layout={"flex_flow": "row wrap"})
        self.view = widgets.VBox([style_sheet(), row, *self._tables])
        self._show()

    def _show(self) -> None:
        logits = [
            torch.tensor([slider.value for slider in sliders], dtype=torch.float64)
            for sliders in (self.student, self.teacher)
        ]
        label, temperature, squared = self.label.value, self.temperature.value, self.squared.value
        self.classes, self.parts = take_apart(*logits, label, temperature, self.alpha.value, squared)
        parts = self.parts.assign(part=["soft: KL at T", "hard: cross-entropy"])
        weights = f"weights {'alpha · T²' if squared else 'alpha (no T²)'} and 1 − alpha"
        classes = self.classes.assign(**{"class": self._names}).rename(columns=lambda name: name.replace("_", " "))
        chosen = [number == label for number in range(len(classes))]
        distributions = ["teacher", "student", "KL term"]
        gradients = ["soft gradient", "hard gradient", "gradient"]
        terms = f"Probabilities at T = {temperature:.1f}, and the terms of the KL; the label is underlined"
        slope = "Gradient of the loss with respect to the student's logits; a step goes against it"
        tables = (
            html_table(parts, f"Loss, with {weights}", ["weighted"], sums=True, live=True),
            html_table(classes[["class", *distributions]], terms, distributions, chosen, sums=True),
            html_table(classes[["class", *gradients]], slope, gradients, chosen, sums=True),
        )
        for view, table, is_signed in zip(self._tables, tables, (False, False, True), strict=True):
            view.value = table if is_signed else table.replace(">+", ">")  # a probability needs no plus sign
