"""The suppressor: choose a class, and see which answers change once its pairs are switched off."""

from collections.abc import Sequence

import ipywidgets as widgets
import pandas as pd
from sklearn.metrics import confusion_matrix
from torch import Tensor

from kvlib.continual.learners import Values
from kvlib.continual.suppression import pairs_to_suppress, switched_off
from workbook.bench import Bench, html_table, style_sheet

_NOTHING = -1  # in the menu of classes


class Suppressor(Bench):
    """A menu of classes and the matrix of confusions around `switched_off`; as a cell's last line it shows itself.

    Parameters
    ----------
    values : Values
        Trained; they stay as they are.
    key_indices, labels : torch.Tensor
        Of the training rows, by which pairs are chosen: ``(n, S, C)`` and ``(n,)``.
    test_key_indices, test_labels : torch.Tensor
        Of the rows that are shown.
    names : sequence of str
        Of the classes.

    Attributes
    ----------
    suppressed : ipywidgets.Dropdown
        The class that is suppressed.
    confusions : pandas.DataFrame
        What the table shows: classes by answers, counts of rows.
    """

    hint = "choose a class"

    def __init__(
        self,
        values: Values,
        key_indices: Tensor,
        labels: Tensor,
        test_key_indices: Tensor,
        test_labels: Tensor,
        names: Sequence[str],
    ) -> None:
        self._values, self._training, self._test = values, (key_indices, labels), (test_key_indices, test_labels)
        self._names = list(names)
        options = [("none", _NOTHING), *((name, number) for number, name in enumerate(names))]
        self.suppressed = widgets.Dropdown(description="Suppress", options=options, value=_NOTHING)
        self._table = widgets.HTML()
        self.suppressed.observe(lambda _: self._show(), "value")
        self.view = widgets.VBox([style_sheet(), self.suppressed, self._table])
        self._show()

    def _show(self) -> None:
        wanted, (key_indices, labels) = self.suppressed.value, self._test
        if wanted == _NOTHING:
            answers, said = self._values(key_indices).argmax(1), "Nothing is switched off"
        else:
            off = pairs_to_suppress(self._values, *self._training, wanted)
            answers = switched_off(self._values, key_indices, off)
            said = f"{self._names[wanted]} suppressed: {int(off.sum()):,} of {off.numel():,} pairs switched off"
        counts = confusion_matrix(labels, answers, labels=range(-1, len(self._names)))[1:]
        self.confusions = pd.DataFrame(counts, index=self._names, columns=["no answer", *self._names])
        right = int((answers == labels).sum())
        caption = f"{said}; {right} of {len(labels)} rows right. Rows: classes, columns: answers"
        shown = self.confusions.rename_axis("class").reset_index()
        chosen = [number == wanted for number in range(len(self._names))]
        self._table.value = html_table(shown, caption, chosen=chosen, live=True)
