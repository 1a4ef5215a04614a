"""The Voronoi bench: move a key, update the codebook, revive dead keys, and see who is hit.

What moves keys is `DiscreteKeyValueBottleneck.update_keys`; here are its plane, the numbers, and the controls.
"""

import base64
from collections.abc import Callable
from io import BytesIO

import ipywidgets as widgets
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from kvlib import DiscreteKeyValueBottleneck
from workbook.bench import Bench, html_table, style_sheet
from workbook.plots import plot_cells

DECAY = 0.8  # init_keys takes 0.95; smaller, so that a few steps show what many do
_EDGE = 4.5  # of the square in which keys start and move


def random_codebook(size: int, seed: int) -> DiscreteKeyValueBottleneck:
    """Build one codebook of `size` keys at random places of the square from -4.5 to 4.5, each with count 1."""
    codebook = DiscreteKeyValueBottleneck(2, num_codebooks=1, codebook_size=size, standardize=False).double()
    places = torch.rand(1, size, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    codebook.keys.copy_(_EDGE * (2 * places - 1))
    codebook.counts.fill_(1.0)
    return codebook


def update(codebook: DiscreteKeyValueBottleneck, points: Tensor, generator: torch.Generator) -> None:
    """Take one EMA step on all points ``(N, 2)``."""
    codebook.update_keys(points.unsqueeze(1), DECAY, generator)


def revive(codebook: DiscreteKeyValueBottleneck, points: Tensor, generator: torch.Generator) -> None:
    """Replace each key without hits by a random one of the points ``(N, 2)``, now: the others stay."""
    codebook.counts[codebook.hits(codebook.quantize(points)) == 0] = 0.0
    # with a decay of all but 1 a step moves nothing, but replaces what has no count
    codebook.update_keys(points.unsqueeze(1), 1 - 1e-12, generator)


def place(codebook: DiscreteKeyValueBottleneck, key: int, x: float, y: float) -> None:
    """Put a key somewhere else, with a fresh count of 1: the old one tells of the old place."""
    codebook.keys[0, key] = torch.tensor([x, y], dtype=codebook.keys.dtype)
    codebook.counts[0, key] = 1.0


def measure(codebook: DiscreteKeyValueBottleneck, points: Tensor) -> tuple[pd.DataFrame, dict[str, float]]:
    """Measure how points ``(N, 2)`` use the keys.

    Returns a row for each ``key`` with its ``hits`` and its ``count``, their moving average; and, of the codebook,
    the number of ``dead`` keys, ``perplexity``, the mean ``squared_distance``, and ``quantization_error``, that
    over the variance of the points.
    """
    found = codebook.quantize(points)
    usage = codebook.usage(found, points).iloc[0]
    hits = codebook.hits(found)[0].long().tolist()
    keys = pd.DataFrame({"key": range(len(hits)), "hits": hits, "count": codebook.counts[0].tolist()})
    totals = {"dead": int(usage["dead_keys"]), "perplexity": usage["perplexity"]}
    totals["squared_distance"] = float((points - codebook.keys[0, found[:, 0]]).square().sum(-1).mean())
    return keys, totals | {"quantization_error": usage["quantization_error"]}


def say(totals: dict[str, float], size: int) -> str:
    """Put what `measure` found for `size` keys into a line."""
    return (
        f"{totals['dead']} of {size} keys dead, perplexity {totals['perplexity']:.1f}, mean squared distance "
        f"{totals['squared_distance']:.2f}, {totals['quantization_error']:.3f} of the variance"
    )


class VoronoiBench(Bench):
    """A codebook in the plane under controls for `place`, `update` and `revive`; a cell's last line shows it.

    Parameters
    ----------
    points : torch.Tensor
        ``(N, 2)``, float64, in the square from -4.5 to 4.5: what the keys are fitted to.
    size, seed : int
        How many keys there are, and of their places; the button *Another start* takes the next seed.

    Attributes
    ----------
    key, x, y, step, revive, restart : ipywidgets.Widget
        The controls, from top to bottom.
    codebook : DiscreteKeyValueBottleneck
        What they work on.
    """

    hint = "choose a key and move it"

    def __init__(self, points: Tensor, size: int, seed: int) -> None:
        self._points, self._size, self._seed, self._shown = points, size, seed, (0.0, 0.0)
        self._figure = Figure(figsize=(5.2, 4.9), dpi=80)
        self._axes = self._figure.add_axes((0.1, 0.17, 0.88, 0.77))
        wide = {"style": {"description_width": "130px"}, "layout": widgets.Layout(width="min(420px, 98%)")}
        self.key = widgets.Dropdown(description="Key", options=range(size), **wide)
        limits = {"min": -_EDGE, "max": _EDGE, "step": 0.1, "readout_format": ".1f", **wide}
        self.x = widgets.FloatSlider(description="First dimension", **limits)
        self.y = widgets.FloatSlider(description="Second dimension", **limits)
        names = ("One update step", "Revive dead keys", "Another start")
        self.step, self.revive, self.restart = (
            widgets.Button(description=name, layout=widgets.Layout(width="auto")) for name in names
        )
        self._picture, self._says, self._table = widgets.HTML(), widgets.HTML(), widgets.HTML()
        for control in (self.x, self.y):
            control.observe(lambda _: self._move(), "value")
        self.key.observe(lambda _: self._show(), "value")
        self.step.on_click(lambda _: self._apply(update))
        self.revive.on_click(lambda _: self._apply(revive))
        self.restart.on_click(lambda _: self._start(self._seed + 1))
        row = widgets.Layout(flex_flow="row wrap", align_items="center")
        buttons = widgets.HBox([self.step, self.revive, self.restart], layout=row)
        views = widgets.HBox([self._picture, self._table], layout=row)
        self.view = widgets.VBox([style_sheet(), self.key, self.x, self.y, buttons, self._says, views])
        self._start(seed)

    def _start(self, seed: int) -> None:
        self._seed, self.codebook = seed, random_codebook(self._size, seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._show()

    def _apply(self, change: Callable[[DiscreteKeyValueBottleneck, Tensor, torch.Generator], None]) -> None:
        change(self.codebook, self._points, self._generator)
        self._show()

    def _move(self) -> None:
        wanted = self.x.value, self.y.value
        # a browser sends back what it was sent, with rounding errors: that is no move
        if max(abs(one - other) for one, other in zip(wanted, self._shown, strict=True)) > 0.01:
            place(self.codebook, self.key.value, *wanted)
            self._show()

    def _show(self) -> None:
        """Measure and draw; the sliders follow the chosen key."""
        self._shown = tuple(round(one, 1) for one in self.codebook.keys[0, self.key.value].tolist())
        # both sliders stand at the key before either says that it was moved
        with self.x.hold_trait_notifications(), self.y.hold_trait_notifications():
            self.x.value, self.y.value = self._shown
        keys, totals = measure(self.codebook, self._points)
        said = say(totals, self._size)
        self._says.value = f'<p class="kv-says" role="status">{said}</p>'
        chosen = [key == self.key.value for key in keys["key"]]
        self._table.value = html_table(keys, "Hits of each key, and their moving average", chosen=chosen)
        self._axes.clear()
        title = "Darker cells have more hits, white keys have none"
        plot_cells(self._points.numpy(), self.codebook.keys[0].numpy(), title, self._axes, keys["hits"].to_numpy())
        ring = self.codebook.keys[0, self.key.value].tolist()
        self._axes.scatter(*ring, s=260, facecolors="none", edgecolors="black", linewidths=1.6)
        self._axes.set(xlim=(-_EDGE - 0.5, _EDGE + 0.5), ylim=(-_EDGE - 0.5, _EDGE + 0.5))
        stream = BytesIO()
        self._figure.savefig(stream, format="png", pil_kwargs={"compress_level": 1})  # soon there, not small
        picture = base64.b64encode(stream.getvalue()).decode()
        self._picture.value = f'<img alt="Keys, cells and points: {said}" src="data:image/png;base64,{picture}">'
