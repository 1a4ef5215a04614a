"""The course's plots: one look, each function one kind of picture; titles state the finding."""

from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.patheffects import withStroke
from scipy.spatial import Voronoi

# Okabe & Ito's colours, told apart by readers with any colour vision; markers and dashes say the same
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_STYLE = {
    "figure.figsize": (6.4, 3.6),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": plt.cycler(color=COLORS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def _axes(title: str, xlabel: str, ylabel: str, ax: Axes | None, height: float = 3.6) -> Axes:
    with plt.rc_context(_STYLE):
        if ax is None:
            figure, ax = plt.subplots(figsize=(6.4, height))
            # over the whole figure: beside long bar names an axes' own title would run out of the picture
            figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        else:
            ax.set_title(title, loc="left", fontsize=11)
        ax.set_prop_cycle(plt.cycler(color=COLORS))
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.spines[["top", "right"]].set_visible(False)
    return ax


def _references(ax: Axes, references: Mapping[str, float] | None, horizontal: bool) -> None:
    for number, (name, value) in enumerate((references or {}).items()):
        draw = ax.axhline if horizontal else ax.axvline
        draw(value, color="0.25", linestyle=("--", ":", "-.")[number % 3], linewidth=1.2, label=name)


def plot_lines(
    frame: pd.DataFrame,
    x: str,
    columns: Sequence[str],
    title: str,
    xlabel: str,
    ylabel: str,
    references: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw columns of a frame as lines over column `x`.

    Parameters
    ----------
    frame : pandas.DataFrame
        The numbers; column names are the legend.
    x : str
        Column on the horizontal axis.
    columns : sequence of str
        Columns to draw, at most seven.
    title, xlabel, ylabel : str
        The finding, and the axes with their units.
    references : mapping of str to float, optional
        Dashed horizontal lines, for example chance.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = _axes(title, xlabel, ylabel, ax)
    for number, column in enumerate(columns):
        marker = _MARKERS[number] if len(frame) <= 25 else None
        style = ("-", "--", "-.", ":")[number % 4]
        ax.plot(frame[x], frame[column], marker=marker, linestyle=style, label=column)
    _references(ax, references, horizontal=True)
    if len(columns) > 1 or references:
        ax.legend(frameon=False, fontsize=9)
    return ax


def plot_ranks(shares: Mapping[str, np.ndarray], title: str, references: Mapping[str, float]) -> Axes:
    """Draw rank against frequency: shares of all tokens, the largest first, on logarithmic axes."""
    longest = max(map(len, shares.values()))
    frame = pd.DataFrame({name: pd.Series(np.asarray(share)) for name, share in shares.items()})
    frame.insert(0, "rank", np.arange(1, longest + 1))
    ax = plot_lines(frame, "rank", list(shares), title, "rank, most used first", "share of all tokens", references)
    ax.loglog()
    plt.setp([ax.xaxis, ax.yaxis], major_formatter="{x:g}")  # 100, not 10²
    return ax


def plot_bars(
    values: Mapping[str, float],
    title: str,
    xlabel: str,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    references: Mapping[str, float] | None = None,
) -> Axes:
    """Draw named numbers as horizontal bars, first on top, each with its number.

    Parameters
    ----------
    values : mapping of str to float
        Name to number.
    title, xlabel : str
        The finding, and what the bars measure.
    intervals : mapping of str to tuple of float, optional
        Name to lower and upper end, drawn as whiskers.
    references : mapping of str to float, optional
        Dashed vertical lines.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = _axes(title, xlabel, "", None, height=1.2 + 0.34 * len(values))
    names, numbers = list(values), np.array(list(values.values()), dtype=float)
    places = np.arange(len(names))[::-1]
    ax.barh(places, numbers, height=0.62, color=[COLORS[0] if n >= 0 else COLORS[1] for n in numbers])
    low, high = numbers, numbers
    if intervals:
        low, high = np.array([intervals[name] for name in names]).T
        ax.hlines(places, low, high, color="black", linewidth=1.5)
    largest = np.abs([numbers, low, high]).max()
    decimals = 0 if (numbers % 1 == 0).all() else 3 if largest <= 1 else 2 if largest < 10 else 1
    if min(numbers.min(), low.min()) < 0:
        ax.axvline(0, color="black", linewidth=0.8)
    for place, number, left, right in zip(places, numbers, low, high, strict=True):
        ax.annotate(
            f"{number:.{decimals}f}".replace("-", "−"),
            (min(number, left) if number < 0 else max(number, right), place),
            xytext=(-4 if number < 0 else 4, 0),
            textcoords="offset points",
            ha="right" if number < 0 else "left",
            va="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # where a dashed line passes behind it
        )
    ax.set_yticks(places, names)
    ax.set_ylim(-0.6, len(names) - 0.4)  # a share of the height would leave gaps beside many bars
    _references(ax, references, horizontal=False)
    if references:
        # on the axes' upper edge: a legend's own padding is in points, the same above few bars and many
        ax.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    ax.margins(x=0.2 if (numbers < 0).any() else 0.14)  # room for the numbers
    return ax


def plot_histogram(
    groups: Mapping[str, np.ndarray],
    title: str,
    xlabel: str,
    ylabel: str = "examples",
    bins: int | Sequence[float] = 30,
    ax: Axes | None = None,
) -> Axes:
    """Draw the distribution of each group of numbers as an outlined histogram over shared bins."""
    ax = _axes(title, xlabel, ylabel, ax)
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins)
    for number, (name, numbers) in enumerate(groups.items()):
        counts, _ = np.histogram(numbers, edges)
        style = ("-", "--", "-.", ":")[number % 4]
        ax.stairs(counts, edges, label=name, linestyle=style, linewidth=1.8, color=COLORS[number % 7])
    if len(groups) > 1:
        ax.legend(frameon=False, fontsize=9)
    return ax


def plot_learning_curves(history: pd.DataFrame, kept: int, references: Mapping[str, float], title: str) -> Figure:
    """Draw losses by epoch and, beside them, the held-out accuracy by which an epoch is kept.

    Parameters
    ----------
    history : pandas.DataFrame
        An epoch a row, with columns ``epoch``, ``training``, ``held out`` (losses) and ``accuracy``.
    kept : int
        The epoch that is kept, marked in both.
    references : mapping of str to float
        Dashed horizontal lines beside the accuracy.
    title : str
        The finding.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2), layout="constrained")
    for ax, columns, lines, name in (
        (axes[0], ["training", "held out"], None, "mean cross-entropy (nats)"),
        (axes[1], ["accuracy"], references, "held-out accuracy"),
    ):
        plot_lines(history, "epoch", columns, "", "epoch", name, lines, ax)
        ax.axvline(kept, color="0.45", linestyle=":", linewidth=1.2, label="kept")
        ax.set_xticks(history["epoch"])
        ax.margins(x=0.12)
        ax.legend(frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def plot_leads(teacher: np.ndarray, students: Mapping[str, np.ndarray], label: str, title: str) -> Axes:
    """Draw how far one of two classes leads: students over their teacher, a point a row.

    Parameters
    ----------
    teacher : numpy.ndarray
        Logit of the second class minus that of the first, ``(N,)``.
    students : mapping of str to numpy.ndarray
        Name to the same of a student; at most three, drawn in this order.
    label : str
        The second class's name.
    title : str
        The finding.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = _axes(title, f"teacher's lead of {label} (logits)", "student's lead (logits)", None, height=4.4)
    for number, (name, lead) in enumerate(students.items()):
        face = COLORS[number] if number else "none"
        ax.scatter(
            teacher, lead, s=18, marker="so^"[number], facecolors=face, edgecolors=COLORS[number], label=name
        )
    ax.axline((0, 0), slope=1, color="0.45", linestyle="--", linewidth=1.2, label="as the teacher")
    ax.axhline(0, color="0.75", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.75", linewidth=0.8, zorder=0)
    shares = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    top = ax.secondary_xaxis("top")
    top.set_xticks(np.log(shares / (1 - shares)), [f"{share:g}" for share in shares])
    top.set_xlabel(f"teacher's probability of {label} at T = 1")
    ax.legend(frameon=False, fontsize=9)
    return ax


def plot_heatmap(
    matrix: np.ndarray | pd.DataFrame, title: str, xlabel: str, ylabel: str, colorbar: str, ax: Axes | None = None
) -> Axes:
    """Draw a matrix as colours; a data frame's index and columns become tick labels.

    Parameters
    ----------
    matrix : numpy.ndarray or pandas.DataFrame
        Shape ``(rows, columns)``; the first row on top.
    title, xlabel, ylabel, colorbar : str
        The finding, the axes, and what a colour measures with its unit.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
    """
    values = np.asarray(matrix, dtype=float)
    named = isinstance(matrix, pd.DataFrame)
    ax = _axes(title, xlabel, ylabel, ax, height=min(7.0, 1.8 + 0.24 * len(values)) if named else 3.6)
    image = ax.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis")
    ax.figure.colorbar(image, ax=ax, label=colorbar)
    if named:
        ax.set_xticks(range(values.shape[1]), matrix.columns, rotation=90, fontsize=8)
        ax.set_yticks(range(values.shape[0]), matrix.index, fontsize=8)
    return ax


def plot_cells(
    points: np.ndarray, keys: np.ndarray, title: str, ax: Axes | None = None, hits: np.ndarray | None = None
) -> Axes:
    """Draw two-dimensional vectors, keys, and the cells in which each key is the nearest.

    Parameters
    ----------
    points : numpy.ndarray
        Vectors, ``(N, 2)``.
    keys : numpy.ndarray
        ``(K, 2)``.
    title : str
        The finding.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.
    hits : numpy.ndarray, optional
        Of each key, ``(K,)``: they shade its cell, keys get their numbers, and one without hits is hollow.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = _axes(title, "first dimension", "second dimension", ax, height=4.4)
    span = np.concatenate([points, keys])
    low, high = span.min(0), span.max(0)
    margin = 0.08 * (high - low)
    cells, owners = _cells(keys, (low + high) / 2, 50 * (high - low).max())
    share = np.ones(len(keys)) if hits is None else hits / hits.max()
    shade = "none" if hits is None else matplotlib.colormaps["Blues"](0.45 * share[owners])
    ax.add_collection(PolyCollection(cells, facecolors=shade, edgecolors="0.45", linewidths=1.0, zorder=0))
    ax.scatter(*points.T, s=8, alpha=0.45, color=COLORS[0], linewidths=0, label="vectors")
    for which, color, label in ((share > 0, COLORS[1], "keys"), (share == 0, "white", "keys without hits")):
        if which.any():
            style = {"s": 60, "marker": "X", "color": color, "edgecolors": "black", "linewidths": 0.8}
            ax.scatter(*keys[which].T, label=label, **style)
    if hits is not None:
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        for number, key in enumerate(keys):
            ax.annotate(str(number), key, (6, 5), textcoords="offset points", fontsize=9, bbox=box)
    ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
    ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
    ax.set_aspect("equal")  # else borders do not stand upright between two keys
    # below the picture: inside, it would cover a key
    ax.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
    return ax


def _cells(keys: np.ndarray, centre: np.ndarray, reach: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the corners of each Voronoi cell and the key that owns it; of equal keys the first owns all."""
    distinct, owners = np.unique(keys, axis=0, return_index=True)
    # four far keys close the outer cells, which would otherwise have no end
    far = centre + reach * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    diagram = Voronoi(np.concatenate([distinct, far]))
    return [diagram.vertices[diagram.regions[diagram.point_region[one]]] for one in range(len(distinct))], owners


def plot_scatter(points: np.ndarray, labels: Sequence[str | int], title: str, ax: Axes) -> Axes:
    """Draw two-dimensional points, each label with a colour and a marker; up to seven labels get a legend.

    Parameters
    ----------
    points : numpy.ndarray
        ``(N, 2)``, for example the first two principal components.
    labels : sequence of str or int
        Of each point; of more than seven, colours and then markers come again.
    title : str
        The finding.
    ax : matplotlib.axes.Axes
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = _axes(title, "first principal component", "second principal component", ax)
    labels = np.asarray(labels)
    different = list(dict.fromkeys(labels.tolist()))
    for number, label in enumerate(different):
        # a step of colour and marker together, so that up to seven differ in both
        marker = _MARKERS[(number + number // 7) % 7]
        style = {"s": 12, "alpha": 0.6, "linewidths": 0, "marker": marker, "color": COLORS[number % 7]}
        ax.scatter(*points[labels == label].T, label=str(label), **style)
    if len(different) <= 7:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
        ax.legend(fontsize=9, ncols=7, frameon=False, markerscale=2, **below)
    return ax


def plot_scatters(
    panels: Mapping[str, np.ndarray], labels: Sequence[str], title: str, same_axes: bool = False
) -> Figure:
    """Draw the same labelled rows side by side, as `plot_scatter` does, in one panel for each place they lie in.

    Parameters
    ----------
    panels : mapping of str to numpy.ndarray
        Name to points ``(N, 2)``.
    labels : sequence of str
        Of each point, at most seven different ones.
    title : str
        The finding.
    same_axes : bool
        Whether all panels have the same principal components.

    Returns
    -------
    matplotlib.figure.Figure
    """
    share = {"sharex": same_axes, "sharey": same_axes}
    figure, axes = plt.subplots(1, len(panels), figsize=(9.6, 3.6), layout="constrained", **share)
    for ax, (name, points) in zip(axes, panels.items(), strict=True):
        plot_scatter(points, labels, name, ax).get_legend().remove()
        ax.set_ylabel(ax.get_ylabel() if ax is axes[0] else "")
        for drawn in ax.collections[::2]:  # hollow and filled by turns, to be told apart without colour
            drawn.set(facecolor="none", edgecolor=drawn.get_facecolor(), linewidth=0.8, sizes=[18])
    figure.legend(*ax.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=7, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def unit_square(side: int = 60) -> np.ndarray:
    """Return the points of a grid over the unit square, ``(side², 2)``, as `plot_regions` draws them."""
    return np.stack(np.meshgrid(*2 * [np.linspace(0, 1, side)]), axis=-1).reshape(-1, 2)


def plot_regions(
    regions: Mapping[str, Sequence[np.ndarray]],
    points: np.ndarray,
    labels: np.ndarray,
    tasks: Sequence[Sequence[int]],
    title: str,
) -> Figure:
    """Draw how learners part the unit square after each task of a stream, with the classes shown so far.

    Parameters
    ----------
    regions : mapping of str to sequence of numpy.ndarray
        By learner, its class number at each point of `unit_square`, ``(side²,)``, after each task.
    points, labels : numpy.ndarray
        ``(N, 2)`` and ``(N,)``; each class's number is written at its mean.
    tasks : sequence of sequence of int
        The classes of each task.
    title : str
        The finding.

    Returns
    -------
    matplotlib.figure.Figure
    """
    size = (2 * len(tasks), 2 * len(regions) + 0.4)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(len(regions), len(tasks), figsize=size, squeeze=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    for line, (name, after_each) in zip(axes, regions.items(), strict=True):
        line[0].set_ylabel(name)
        for after, (ax, found) in enumerate(zip(line, after_each, strict=True)):
            _draw_regions(ax, found.reshape(-1, round(len(found) ** 0.5)))
            for label in [label for task in tasks[: after + 1] for label in task]:
                own = points[labels == label]
                ax.scatter(*own.T, s=3, color="black", alpha=0.4, linewidths=0)
                number = ax.annotate(str(label), own.mean(0), fontsize=10, weight="bold", ha="center", va="center")
                # black on a cloud of black dots could not be read
                number.set_path_effects([withStroke(linewidth=3, foreground="white")])
    for number, ax in enumerate(axes[0], start=1):
        ax.set_title(f"after task {number}", fontsize=10)
    return figure


def _draw_regions(ax: Axes, regions: np.ndarray) -> None:
    ax.imshow(regions, origin="lower", extent=(0, 1, 0, 1), cmap="tab10", vmin=0, vmax=9, alpha=0.45)
    ax.set_xticks([])
    ax.set_yticks([])


def plot_sizes(sizes: pd.DataFrame, references: Mapping[str, float], noise: float, title: str) -> Figure:
    """Draw score and quantisation error of bottlenecks of many sizes over their megabytes.

    Parameters
    ----------
    sizes : pandas.DataFrame
        A row a size: ``num_codebooks``, ``codebook_size``, ``megabytes``, ``accuracy``, ``quantization_error``.
    references : mapping of str to float
        Accuracies to compare with, the lowest at the foot of the picture.
    noise : float
        Standard error of an accuracy, drawn as a band below the best one.
    title : str
        The finding.

    Returns
    -------
    matplotlib.figure.Figure
        Axes of accuracy and of quantisation error.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    best = sizes["accuracy"].max()
    axes[0].axhspan(best - noise, best, color="0.5", alpha=0.25, linewidth=0, label="one standard error")
    for ax, column, name in zip(
        axes,
        ("accuracy", "quantization_error"),
        ("held-out accuracy", "quantisation error / variance"),
        strict=True,
    ):
        _axes("", "keys and values, MB", name, ax)
        for number, (codebooks, rows) in enumerate(sizes.groupby("num_codebooks")):
            style = {"marker": _MARKERS[number], "markersize": 5, "linewidth": 0.8}
            ax.plot(rows["megabytes"], rows[column], label=f"C = {codebooks}", **style)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    _references(axes[0], references, horizontal=True)
    axes[0].set_ylim(min(references.values()) - 0.02, 1)
    axes[1].set_ylim(0, 1)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=9, loc="outside right upper")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


# the whole system for the course's pair of 26 tokens in the profile quick: columns as left and right edges
_COLUMNS = ((0.0, 1.75), (2.35, 3.55), (4.25, 5.5), (6.2, 7.4), (8.0, 8.9))
_PAIR = "The young nurse thanked\nthe old teacher on\nMonday. On Monday, …"
# for each stage its name, and of each box: first and last column, text, what it is, shape at the arrow behind it
_SYSTEM = (
    (
        "stage 1 · teach",
        (0, 0, _PAIR, "data", "26"),
        (1, 3, "BERT teacher: encoder, mean over real tokens, classifier", "trained", "2"),
        (4, 4, "logits,\ncached", "data", ""),
    ),
    (
        "stage 2 · distil",
        (0, 0, _PAIR, "data", "26"),
        (1, 1, "DistilBERT\nencoder", "trained", "26 × 384"),
        (2, 2, "mean over\nreal tokens", "data", "384"),
        (3, 3, "classifier", "trained", "2"),
        (4, 4, "logits", "data", ""),
    ),
    (
        "stage 3 · discretise",
        (0, 0, _PAIR, "data", "26"),
        (1, 1, "DistilBERT\nencoder", "frozen", "26 × 384"),
        (2, 2, "nearest key in\n32 codebooks", "frozen", "26 × 32"),
        (3, 3, "value of each\nkey, mean", "trained", "2"),
        (4, 4, "logits", "data", ""),
    ),
)
_BOXES = {
    "data": {"facecolor": "white", "edgecolor": "0.6", "linestyle": "-"},
    "trained": {"facecolor": "#FBE3D1", "edgecolor": COLORS[1], "linestyle": "-", "linewidth": 1.8},
    "frozen": {"facecolor": "#DCEAF5", "edgecolor": COLORS[0], "linestyle": "--", "linewidth": 1.8},
}


def _box(ax: Axes, left: float, right: float, y: float, text: str, kind: str, height: float = 0.74) -> None:
    shape = (left, y - height / 2), right - left, height
    ax.add_patch(FancyBboxPatch(*shape, boxstyle="round,pad=0,rounding_size=0.08", **_BOXES[kind]))
    ax.text((left + right) / 2, y, text, ha="center", va="center", fontsize=8.5)


def plot_system(title: str) -> Axes:
    """Draw the three stages of the whole system as rows of boxes, with the shapes of the course's pair.

    Parameters
    ----------
    title : str
        The finding.

    Returns
    -------
    matplotlib.axes.Axes
    """
    _, ax = plt.subplots(figsize=(9, 4.9), layout="constrained")
    ax = _axes(title, "", "", ax)
    ax.set_axis_off()
    ax.set_xlim(-0.05, 9.3)
    ax.set_ylim(-3.95, 0.75)
    small, arrow = (
        {"fontsize": 8, "color": "0.15"},
        {"arrowstyle": "-|>", "color": "0.3", "shrinkA": 0, "shrinkB": 0},
    )
    for number, (name, *boxes) in enumerate(_SYSTEM):
        y = -1.4 * number
        ax.text(0, y + 0.48, name, fontsize=10, fontweight="bold")
        for first, last, text, kind, shape in boxes:
            right = _COLUMNS[last][1]
            _box(ax, _COLUMNS[first][0], right, y, text, kind)
            if shape:
                end = _COLUMNS[last + 1][0]
                ax.annotate("", (end, y), (right, y), arrowprops=arrow)
                ax.text((right + end) / 2, y + 0.07, shape, ha="center", va="bottom", **small)
    # what the students learn from the teacher
    dotted = {**arrow, "linestyle": ":"}
    for x, loss in ((2.95, "layer loss"), (8.45, "T² · KL")):
        ax.annotate("", (x, -1.03), (x, -0.37), arrowprops=dotted)
        ax.text(x - 0.08, -0.7, loss, ha="right", va="center", **small)
    ax.plot([8.9, 9.15, 9.15], [0, 0, -2.8], linestyle=":", color="0.3", linewidth=1)
    ax.annotate("", (8.9, -2.8), (9.15, -2.8), arrowprops=arrow)
    ax.text(9.07, -2.1, "T² · KL", ha="right", va="center", **small)
    for left, kind, meaning in ((0, "trained", "trained in this stage"), (2.35, "frozen", "frozen")):
        _box(ax, left, left + 1.75, -3.65, meaning, kind, height=0.4)
    numbers = "at the arrows: tokens, dimensions, key indices\nor logits of this pair, in the profile quick"
    ax.text(4.25, -3.65, numbers, va="center", **small)
    return ax
