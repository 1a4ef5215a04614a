"""The error browser: choose a cell of the confusion table, read its rows, and open one in the explorer."""

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from workbook.bench import Bench, html_table, style_sheet
from workbook.explorer import Explorer


class ErrorBrowser(Bench):
    """A menu of the cells of a confusion table and a list of the rows of one; it shows itself.

    Parameters
    ----------
    texts : sequence of tuple of str
        One row each: a sentence, or a pair.
    labels : numpy.ndarray
        Class numbers, ``(N,)``.
    logits : numpy.ndarray
        The student's, ``(N, num_labels)``.
    explorer : Explorer
        It opens the row that is chosen.

    Attributes
    ----------
    cell : ipywidgets.Dropdown
        The cell as (label, answer), mistakes first.
    row : ipywidgets.Select
        The chosen row, or None.
    confusions, rows : pandas.DataFrame
        What is shown: labels by answers, counts of rows; and the rows of the cell, as `rows_of_cell` gives them.
    """

    hint = "choose a cell of the table and a row"

    def __init__(
        self, texts: Sequence[tuple[str, ...]], labels: np.ndarray, logits: np.ndarray, explorer: Explorer
    ) -> None:
        self._texts, self._labels, self._logits, self._explorer = texts, labels, logits, explorer
        self._names = [name for _, name in sorted(explorer.student.config.id2label.items())]
        counts = confusion_matrix(labels, logits.argmax(1), labels=range(len(self._names)))
        self.confusions = pd.DataFrame(counts, index=self._names, columns=self._names)
        cells = sorted(np.argwhere(counts).tolist(), key=lambda cell: (cell[0] == cell[1], -counts[tuple(cell)]))
        options = [
            (f"{self._names[label]} answered {self._names[answer]}: {counts[label, answer]} rows", (label, answer))
            for label, answer in cells
        ]
        wide = {"style": {"description_width": "140px"}, "layout": widgets.Layout(width="min(900px, 98%)")}
        self.cell = widgets.Dropdown(description="Cell of the table", options=options, **wide)
        self.row = widgets.Select(description="Margin and row", rows=10, **wide)
        self._table, self._says = widgets.HTML(), widgets.HTML()
        self.cell.observe(lambda _: self._list(), "value")
        self.row.observe(self._open, "value")
        self.view = widgets.VBox([style_sheet(), self.cell, self._table, self.row, self._says])
        self._list()

    def _list(self) -> None:
        """Show the table, and the rows of the chosen cell, none of them chosen yet."""
        label, answer = self.cell.value
        caption = "Labels (rows) by the student's answers (columns); the chosen label is underlined"
        shown = self.confusions.rename_axis("label").reset_index()
        chosen = [number == label for number in range(len(self._names))]
        self._table.value = html_table(shown, caption, chosen=chosen)
        self.rows = rows_of_cell(self._labels, self._logits, label, answer)
        options = [
            (f"{one.margin:.2f} · row {one.row} · {' / '.join(self._texts[one.row])}", one.row)
            for one in self.rows.itertuples()
        ]
        self.row.unobserve(self._open, "value")  # a new list chooses its first row by itself
        self.row.options, self.row.value = options, None
        self.row.observe(self._open, "value")
        self._open()

    def _open(self, _change: Any = None) -> None:
        """Open the chosen row in the explorer, and say so."""
        row = self.row.value
        if row is None:
            said = "The margin is the answer's logit minus the next. Choose a row: it opens in the explorer."
        else:
            self._explorer.open(*self._texts[row])
            label, answer = (self._names[number] for number in self.cell.value)
            said = f"Open in the explorer: row {row}, labelled {label}, answered {answer}. "
            said += " / ".join(self._texts[row])
        self._says.value = f'<p class="kv-says" role="status">{escape(said)}</p>'


def rows_of_cell(labels: np.ndarray, logits: np.ndarray, label: int, answer: int) -> pd.DataFrame:
    """List the rows of one cell of the confusion table, those that the model is surest of first.

    Parameters
    ----------
    labels, logits : numpy.ndarray
        ``(N,)`` and ``(N, num_labels)``.
    label, answer : int
        The cell.

    Returns
    -------
    pandas.DataFrame
        ``row`` (its number) and ``margin`` (logit of the answer minus the next one).
    """
    rows = np.flatnonzero((labels == label) & (logits.argmax(1) == answer))
    ordered = np.sort(logits[rows], axis=1)
    found = pd.DataFrame({"row": rows, "margin": ordered[:, -1] - ordered[:, -2]})
    return found.sort_values("margin", ascending=False, kind="stable", ignore_index=True)
