"""What all benches share: how they show themselves, tables as HTML, keys that work."""

from collections.abc import Sequence
from html import escape
from typing import Any, ClassVar

import ipywidgets as widgets
import pandas as pd

_HEADINGS = {"runner_up_gap": "runner-up<br>farther by"}
# the theme's own colours, so that light and dark both work; side and sign of a bar say what its colour says
STYLE = """
.kv-table {border-collapse: collapse; font-size: var(--jp-ui-font-size1, 13px); line-height: 1.4; margin: 0;
  color: var(--jp-content-font-color1, inherit)}
.kv-table caption {text-align: left; font-weight: 600; padding: 8px 0 4px; caption-side: top}
.kv-table .kv-short {white-space: nowrap}
.kv-table th, .kv-table td {padding: 1px 10px 1px 0; text-align: right; font-weight: 400; background: none;
  border: 0}
.kv-table td, .kv-table tbody th {white-space: nowrap}
.kv-table thead th {font-weight: 600; border-bottom: 1px solid currentcolor; vertical-align: bottom}
.kv-table tfoot th {text-align: left}
.kv-table tfoot > tr > * {font-weight: 600; border-top: 1px solid currentcolor}
.kv-table .kv-text {text-align: left; white-space: normal}
.kv-table .kv-chosen > * {font-weight: 700; text-decoration: underline}
.kv-bar {display: inline-block; position: relative; width: 52px; height: 10px; margin-left: 6px;
  background: linear-gradient(currentcolor, currentcolor) center / 1px 100% no-repeat}
.kv-bar i {position: absolute; top: 1px; bottom: 1px}
.kv-plus {left: 50%; background: #0072B2}
.kv-minus {right: 50%; background: #D55E00}
.kv-none {visibility: hidden}
[data-jp-theme-light="false"] .widget-dropdown > select {appearance: auto; background-image: none;
  color-scheme: dark}
.kv-says {font-size: var(--jp-ui-font-size1, 13px); line-height: 1.4; margin: 4px 0;
  color: var(--jp-content-font-color1, inherit)}
"""
# JupyterLab takes arrow keys and letters on menus and sliders for its own shortcuts (the next cell, delete) unless
# the focused element refuses; and a slider's handle does not bear the name that stands beside it
KEYBOARD = """this.closest('.widget-vbox').addEventListener('focusin', ({target}) => {
  if (!target.matches(':read-write')) target.setAttribute('data-lm-suppress-shortcuts', '');
  if (target.matches('[role=slider]'))
    target.setAttribute('aria-label', target.closest('.widget-slider').querySelector('label').textContent);
})"""


class Bench:
    """Controls and tables in a `view`; as a cell's last line a bench shows itself."""

    hint: ClassVar[str]
    view: widgets.Widget

    def __repr__(self) -> str:
        return f"{type(self).__name__}: run this cell in a kernel, {self.hint}"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        # a text without numbers and ids: strict comparison of outputs reads it
        return self.view._repr_mimebundle_(**options) | {"text/plain": repr(self)}


def style_sheet(more: str = "") -> widgets.HTML:
    """Return the styles of `html_table`, and `more`, as the first part of a view; they make its keys work, too."""
    return widgets.HTML(f'<style onload="{KEYBOARD}">{STYLE}{more}</style>')


def html_table(
    frame: pd.DataFrame,
    caption: str,
    bars: Sequence[str] = (),
    chosen: Sequence[bool] | None = None,
    sums: bool = False,
    live: bool = False,
) -> str:
    """Write a data frame as an HTML table that needs neither colour nor mouse.

    Parameters
    ----------
    frame : pandas.DataFrame
        The first column heads the rows.
    caption : str
        What the table shows.
    bars : sequence of str
        Columns of signed numbers that get bars, to the right of the zero line or to the left, on one scale.
    chosen : sequence of bool, optional
        Rows to point out.
    sums : bool
        Whether a last row sums up `bars`.
    live : bool
        Whether a screen reader should read the table out when it changes.

    Returns
    -------
    str
        With everything in `frame` and `caption` escaped.
    """
    longest = frame[list(bars)].abs().to_numpy().max() if bars else 0.0
    texts = [' class="kv-text"' if pd.api.types.is_string_dtype(kind) else "" for kind in frame.dtypes]
    heads = "".join(
        f'<th scope="col"{text}>{_heading(column)}</th>' for column, text in zip(frame, texts, strict=True)
    )
    rows = []
    marks = [False] * len(frame) if chosen is None else list(chosen)
    for record, mark in zip(frame.to_dict("records"), marks, strict=True):
        cells = [_cell(value, longest if column in bars else None) for column, value in record.items()]
        first = cells[0].replace("<td", '<th scope="row"').replace("</td>", "</th>")
        pointed = ' class="kv-chosen" aria-current="true"' if mark else ""
        rows.append(f"<tr{pointed}>{first}{''.join(cells[1:])}</tr>")
    foot = ""
    if sums:
        cells = "".join(
            _cell(frame[column].sum(), 0.0) if column in bars else "<td></td>" for column in list(frame)[1:]
        )
        foot = f'<tfoot><tr><th scope="row">sum</th>{cells}</tr></tfoot>'
    short = ' class="kv-short"' if len(caption) <= 90 else ""  # not broken over a narrow table
    table = (
        f'<table class="kv-table"><caption{short}>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody>{foot}</table>"
    )
    return f'<div role="status">{table}</div>' if live else table


def _cell(value: Any, longest: float | None) -> str:
    """Write a text, a number or, given the longest bar of the table (0 for none), a signed number and its bar."""
    if isinstance(value, str):
        return f'<td class="kv-text">{escape(value)}</td>'
    if longest is None:
        return f"<td>{value}</td>" if isinstance(value, int) else f"<td>{_number(value)}</td>"
    side = "kv-plus" if value > 0 else "kv-minus"
    width = 50 * abs(value) / longest if longest else 0
    none = "" if longest else " kv-none"  # a sum has no bar, only its place
    bar = (
        f'<span class="kv-bar{none}" aria-hidden="true"><i class="{side}" style="width: {width:.1f}%"></i></span>'
    )
    return f"<td>{signed(value)}{bar}</td>"


def _heading(column: str) -> str:
    if column.startswith("push_"):
        return f"push on<br>{escape(column.removeprefix('push_'))}"
    return _HEADINGS.get(column, escape(column))


def _number(value: float) -> str:
    return "none" if value != value else f"{value:.4f}".replace("-", "−")


def signed(value: float) -> str:
    """Write a number with its sign and four digits."""
    text = f"{value:+.4f}".replace("-", "−")
    return "0.0000" if text[1:] == "0.0000" else text
