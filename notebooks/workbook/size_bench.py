"""The size bench: choose C and K, and see what that does to keys, error, size and score.

Nothing is trained here: the sizes were measured beforehand, by ``tests/benchmarks/bench_sizes.py``.
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from kvlib import get_profile
from workbook import plots
from workbook.bench import Bench, html_table, style_sheet

_SIZE = ["num_codebooks", "codebook_size"]
# the theme's colour in place of black, which a dark theme would swallow
_THEME = "color: var(--jp-content-font-color1, inherit); fill: currentcolor; max-width: 100%; height: auto"


def read_sizes(path: str | Path) -> tuple[pd.DataFrame, dict[str, float], float]:
    """Read what ``tests/benchmarks/bench_sizes.py`` wrote.

    Returns a row a size, ascending, of means over seeds (``num_codebooks``, ``codebook_size``, ``megabytes`` of
    keys and values, ``bits_a_token``, ``perplexity`` and ``dead_keys`` a codebook, ``quantization_error``,
    ``accuracy``, and its ``accuracy_std`` over the seeds), the accuracies to compare with, and the standard error
    of the best accuracy.
    """
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    by_size = pd.DataFrame(found["runs"]).groupby(_SIZE)
    sizes = by_size.mean().drop(columns=["seed", "seconds", "unseen_share"])
    sizes["accuracy_std"] = by_size["accuracy"].std()
    best = sizes["accuracy"].max()
    noise = (best * (1 - best) / found["rows"]["held_out"]) ** 0.5
    return sizes.reset_index(), found["accuracy"], noise


def describe_size(sizes: pd.DataFrame, noise: float, chosen: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """Return what was measured of sizes ``(C, K)``, as text: a row a measure, a column a size."""
    rows = sizes.set_index(_SIZE)
    columns = {}
    for codebooks, size in chosen:
        row = rows.loc[(codebooks, size)]
        behind = (rows["accuracy"].max() - row["accuracy"]) / noise
        columns[f"C = {codebooks}, K = {size:,}"] = {
            "keys and values, MB": f"{row['megabytes']:.3f}",
            "bits a token": f"{row['bits_a_token']:,.0f}",
            "perplexity of a codebook": f"{row['perplexity']:.1f} of {size:,}",
            "dead keys of a codebook": f"{row['dead_keys']:.1f} of {size:,}",
            "quantisation error / variance": f"{row['quantization_error']:.3f}",
            "held-out accuracy, mean ± std": f"{row['accuracy']:.3f} ± {row['accuracy_std']:.3f}",
            "standard errors behind the best": f"{behind:.1f}",
        }
    return pd.DataFrame(columns).rename_axis("measure").reset_index()


def themed_svg(figure: Figure, description: str) -> str:
    """Write a figure as an SVG whose black is the theme's colour of text."""
    with io.StringIO() as written, plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bench"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
        svg = written.getvalue()
    svg = re.sub(r"#000000|\bblack\b", "currentcolor", svg[svg.index("<svg") :])
    return svg.replace("<svg", f'<svg role="img" aria-label="{description}" style="{_THEME}"', 1)


def _places(figure: Figure, sizes: pd.DataFrame) -> dict[tuple[int, int], list[tuple[float, float]]]:
    """Return where in the SVG the points of each size ``(C, K)`` lie, in both axes."""
    figure.set_dpi(72)  # an SVG counts in points
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # saved with other fonts, the axes would move under the rings
    height, places = figure.bbox.height, {}
    for row in sizes.itertuples():
        values = zip(figure.axes, (row.accuracy, row.quantization_error), strict=True)
        points = [ax.transData.transform((row.megabytes, value)) for ax, value in values]
        places[row.num_codebooks, row.codebook_size] = [(x, height - y) for x, y in points]
    return places


class SizeBench(Bench):
    """Menus of C and K over measured sizes; as a cell's last line it shows itself.

    Parameters
    ----------
    sizes, references, noise
        As `read_sizes` gives them; the size of the profile ``quick`` must be among them.

    Attributes
    ----------
    num_codebooks, codebook_size : ipywidgets.Dropdown
        The size that is chosen.
    frame : pandas.DataFrame
        What the table shows.
    """

    hint = "choose C and K"

    def __init__(self, sizes: pd.DataFrame, references: dict[str, float], noise: float) -> None:
        self._measured = sizes, noise
        quick = get_profile("quick")
        self._compared = quick.num_codebooks, quick.codebook_size
        wide = {"description_width": "100px"}
        self.num_codebooks, self.codebook_size = (
            widgets.Dropdown(description=name, options=sorted(set(sizes[column])), value=value, style=wide)
            for name, column, value in zip(("Codebooks C", "Keys K"), _SIZE, self._compared, strict=True)
        )
        self._table, self._picture = widgets.HTML(), widgets.HTML()
        for menu in (self.num_codebooks, self.codebook_size):
            menu.observe(lambda _: self._show(), "value")
        # drawn once, which takes half a second; a move only moves the rings
        figure = plots.plot_sizes(sizes, references, noise, "The rings mark the chosen size")
        self._places = _places(figure, sizes)
        self._svg = themed_svg(figure, "accuracy and quantisation error over megabytes")
        plt.close(figure)
        self.view = widgets.VBox(
            [style_sheet(), self.num_codebooks, self.codebook_size, self._table, self._picture]
        )
        self._show()

    def _show(self) -> None:
        chosen = (self.num_codebooks.value, self.codebook_size.value)
        self.frame = describe_size(*self._measured, dict.fromkeys((chosen, self._compared)))
        between = "beside" if chosen != self._compared else "which is"
        caption = f"C = {chosen[0]}, K = {chosen[1]:,}, {between} the size of the profile quick"
        self._table.value = html_table(self.frame, caption, live=True)
        ring = '<circle cx="{:.1f}" cy="{:.1f}" r="9" fill="none" stroke="currentcolor" stroke-width="2"/>'
        rings = "".join(ring.format(x, y) for x, y in self._places[chosen])
        self._picture.value = self._svg.replace("</svg>", f"{rings}</svg>")
