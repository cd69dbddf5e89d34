"""Figures: one function each, from plain rows, saved as PNG, SVG and PDF.

Colours are Okabe and Ito's, told apart in grey by line style and marker too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from xtrrep.artifacts import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a file would say of when it was made: without it the same data gives the same bytes.
UNDATED = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX<>phH*8d"
FILLS = ("full", "none", "left", "bottom")
NAMES = 0.34  # share of the width of `speed_and_quality` that names on the left take

# line name -> [(x, y)]
Lines = Mapping[str, Sequence[tuple[float, float]]]


def new_figure(
    width: float, height: float, panels: int, columns: int | None = None, *, sharex: bool = False
) -> tuple[Figure, list[Axes]]:
    """An empty figure and its panels, in so many columns (None: all beside each other)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    across = columns or panels
    axes = figure.subplots(-(-panels // across), across, squeeze=False, sharex=sharex).flatten()
    for unused in axes[panels:]:
        unused.remove()
    axes = axes[:panels]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", linewidth=0.4, alpha=0.5)
    return figure, list(axes)


def _write_bytes(path: Path, data: bytes) -> None:
    write_atomic(path, lambda file: file.write(data))


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG, SVG and PDF. Returns the files."""
    import matplotlib

    paths = []
    with matplotlib.rc_context({"svg.hashsalt": "xtrrep", "svg.fonttype": "path"}):
        for kind, undated in UNDATED.items():
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=undated)
            path = stem.with_suffix(f".{kind}")
            _write_bytes(path, buffer.getvalue())
            paths.append(path)
    return paths


def k_prime_sweep(
    panels: Mapping[str, Lines],
    levels: Mapping[str, Mapping[str, float]],
    title: str,
    stem: Path,
    *,
    bands: Mapping[str, Lines] | None = None,
) -> list[Path]:
    """Figure 1 of the study: a measure against k' on a log axis, one panel a measure, one labelled line a (model,
    scoring), named "MODEL as SCORING" and of one colour a model.

    `levels` holds, per measure, horizontal reference lines such as BM25; `bands`, shaped as `panels`, half the height
    of a shade around the points of a line. Returns the files written.
    """
    figure, axes = new_figure(5.8 * len(panels), 4.6, len(panels))
    for axis, (measure, lines) in zip(axes, panels.items(), strict=True):
        models = list(dict.fromkeys(name.partition(" as ")[0] for name in lines))
        number = {name: models.index(name.partition(" as ")[0]) for name in lines}
        colours = {name: COLOURS[i % len(COLOURS)] for name, i in number.items()}
        for name, points in lines.items():
            xs, ys = zip(*points, strict=True)
            dashed = "--" if name.endswith("as ColBERT") else "-"
            axis.plot(xs, ys, dashed, color=colours[name], marker=MARKERS[number[name] % len(MARKERS)], markersize=4,
                      linewidth=1.4)  # fmt: skip
            halves = dict((bands or {}).get(measure, {}).get(name, ()))
            around = [(x, y - halves[x], y + halves[x]) for x, y in points if x in halves]
            if around:
                at, low, high = zip(*around, strict=True)
                axis.fill_between(at, low, high, color=colours[name], alpha=0.1, linewidth=0)
        for name, value in levels.get(measure, {}).items():
            axis.axhline(value, color="#666666", linestyle=":", linewidth=1)
            axis.annotate(
                name,
                (0.99, value),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=8,
                color="#444444",
            )
        axis.set_xscale("log")
        axis.set_xlabel("k' (tokens retrieved per query token)")
        axis.set_title(measure, loc="left", fontsize=10)
        axis.set_ylim(axis.get_ylim())
        heights = _apart({name: points[-1][1] for name, points in lines.items()}, axis.get_ylim())
        for name, points in lines.items():
            _margin_label(axis, name, points[-1], heights[name], colours[name])
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save_figure(figure, stem)


@dataclass(frozen=True)
class Timed:
    """One point of `speed_and_quality`: queries a second and a value, what it is of, and the spread of both."""

    speed: float
    value: float
    engine: str
    stage: str = ""
    model: str = ""
    speed_sd: float = 0.0
    value_sd: float = 0.0

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.engine, self.stage, self.model)))


def speed_and_quality(
    points: Sequence[Timed], measure: str, title: str, stem: Path, *, base: str | None = None
) -> list[Path]:
    """Queries a second (log axis) against a measure: Figure 2 of the study.

    The marker tells the engine, its fill the stage, the colour the model; each name stands in the nearer margin. Thin
    lines lead from the model `base` to the others of its engine and stage, grey bars show the standard deviations of
    points that have any. Returns the files written.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    height = max(4.6, 1 + 0.17 * len(points))  # inches; a label of 8 points needs 0.16
    figure, (axis,) = new_figure(9.0, height, 1)
    engines, stages, colours = (
        list(dict.fromkeys(keys))
        for keys in ([p.engine for p in points], [p.stage for p in points], [p.model or p.engine for p in points])
    )
    starts = {(p.engine, p.stage): p for p in points if p.model == base}
    for p in points:
        start = starts.get((p.engine, p.stage))
        if start is not None and start != p:
            axis.plot([start.speed, p.speed], [start.value, p.value], color="#333333", linewidth=0.9, zorder=1)
        if p.speed_sd or p.value_sd:
            axis.errorbar([p.speed], [p.value], [p.value_sd], [p.speed_sd], fmt="none", ecolor="#999999", elinewidth=1)
        axis.plot(
            [p.speed],
            [p.value],
            color=COLOURS[colours.index(p.model or p.engine) % len(COLOURS)],
            marker=MARKERS[engines.index(p.engine) % len(MARKERS)],
            fillstyle=FILLS[stages.index(p.stage) % len(FILLS)],
            markerfacecoloralt="white",
            markersize=7,
        )
    axis.set_xscale("log")
    slow, fast = min(p.speed for p in points), max(p.speed for p in points)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)) if fast > 3 * slow else MaxNLocator(5))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(0.06)
    axis.set_ylim(axis.get_ylim())
    middle = math.sqrt(slow * fast)
    halves = [p for p in points if p.speed < middle], [p for p in points if p.speed >= middle]
    if halves[0]:  # the slower half is named on the left, where room is made for it; so no line crosses the picture
        low, high = (math.log(limit) for limit in axis.get_xlim())
        axis.set_xlim(left=math.exp(low - (high - low) * NAMES / (1 - NAMES)))
    for half, at in zip(halves, (0.01, 1.03), strict=True):
        heights = _apart({p.name: p.value for p in half}, axis.get_ylim(), 0.16 / (height - 1))
        for p in half:
            _margin_label(axis, p.name, (p.speed, p.value), heights[p.name], "#666666", at)
    axis.set_xlabel("queries a second")
    axis.set_ylabel(measure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save_figure(figure, stem)


def score_density(panels: Mapping[str, Lines], title: str, stem: Path) -> list[Path]:
    """Figure 3 of the study: densities of token scores, one panel an engine, one labelled curve a model.

    All panels have the same axes. Returns the files written.
    """
    figure, axes = new_figure(5.2 * len(panels) + 1, 4.2, len(panels))
    points = [point for lines in panels.values() for curve in lines.values() for point in curve]
    xs, ys = zip(*points, strict=True)
    for axis, (engine, lines) in zip(axes, panels.items(), strict=True):
        axis.set_xlim(min(xs), max(xs))
        axis.set_ylim(0, 1.05 * max(ys))
        axis.set_xlabel("similarity of a query token and one of its best corpus tokens")
        axis.set_title(f"density, {engine} search", loc="left", fontsize=10)
        _labelled(axis, lines, {name: max(curve, key=lambda point: point[1]) for name, curve in lines.items()})
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save_figure(figure, stem)


def token_rates(panels: Mapping[str, Lines], title: str, stem: Path) -> list[Path]:
    """Figure 4 of the study: a rate by the rank of a retrieved token, one panel a rate, one labelled line a model.

    Returns the files written.
    """
    figure, axes = new_figure(5.2 * len(panels) + 1, 4.2, len(panels))
    for axis, (rate, lines) in zip(axes, panels.items(), strict=True):
        axis.set_xlim(0, max(line[-1][0] for line in lines.values()))
        axis.set_ylim(0, 1.05 * max(y for line in lines.values() for _, y in line) or 1)
        axis.set_xlabel("rank of the retrieved token")
        axis.set_title(f"{rate} rate", loc="left", fontsize=10)
        _labelled(axis, lines, {name: line[-1] for name, line in lines.items()})
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save_figure(figure, stem)


def candidate_shares(lines: Lines, title: str, stem: Path) -> list[Path]:
    """The share of the corpus that PLAID looks at against nprobe (log axis), one labelled line a model.

    Returns the files written.
    """
    figure, (axis,) = new_figure(6.4, 4.2, 1)
    axis.set_xscale("log", base=2)
    axis.set_ylim(0, 1.05 * max(y for line in lines.values() for _, y in line))
    ticks = sorted({x for line in lines.values() for x, _ in line})
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.set_xlabel("nprobe (centroids a query token)")
    axis.set_ylabel("candidates, share of the corpus")
    _labelled(axis, lines, {name: line[-1] for name, line in lines.items()})
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save_figure(figure, stem)


def bars(
    panels: Mapping[str, Mapping[str, float]], measure: str, title: str, stem: Path, *, digits: int = 3
) -> list[Path]:
    """A measure as bars from zero with the value on each, a panel a key: under each imputation, or in each row.

    Returns the files written.
    """
    width = max(3.6, *(0.9 * len(values) for values in panels.values()))
    figure, axes = new_figure(width * len(panels) + 0.8, 4.0, len(panels))
    top = max(value for values in panels.values() for value in values.values())
    for axis, (model, values) in zip(axes, panels.items(), strict=True):
        drawn = axis.bar(list(values), list(values.values()), color=COLOURS[: len(values)], width=0.7)
        axis.bar_label(drawn, fmt=f"%.{digits}f", fontsize=8, padding=2)
        axis.set_ylim(0, 1.12 * top or 1)
        axis.set_axisbelow(True)
        axis.set_ylabel(measure)
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(model, loc="left", fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save_figure(figure, stem)


def _apart(wanted: Mapping[str, float], limits: tuple[float, float], share: float = 0.055) -> dict[str, float]:
    """Heights for labels, in the order of those wanted and as near as they come, `share` of the axis between any two.

    They stay within the limits where they fit there, else they stand out below.
    """
    low, high = limits
    gap = share * (high - low)
    names = sorted(wanted, key=lambda name: wanted[name])
    heights: dict[str, float] = {}
    last = low - gap
    for name in names:
        heights[name] = last = max(wanted[name], last + gap)
    last = high + gap
    for name in reversed(names):
        heights[name] = last = min(heights[name], last - gap)
    return heights


def _margin_label(
    axis: Axes, name: str, point: tuple[float, float], height: float, colour: str, at: float = 1.03
) -> None:
    """A name in the right margin, or `at` another share of the axis' width, at a height of it, tied to its point by a
    dotted line."""
    axis.annotate(
        name,
        point,
        xytext=(at, height),
        textcoords=axis.get_yaxis_transform(),
        va="center",
        fontsize=8,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        arrowprops={
            "arrowstyle": "-",
            "linestyle": ":",
            "linewidth": 0.8,
            "color": colour,
            "relpos": (0 if at > 1 else 1, 0.5),
        },
    )


def _labelled(axis: Axes, lines: Lines, points: Mapping[str, tuple[float, float]]) -> None:
    """Draw lines of many points, each with its name in the right margin, tied to one of its points.

    The axis' limits must stand.
    """
    heights = _apart({name: y for name, (_, y) in points.items()}, axis.get_ylim())
    for i, (name, line) in enumerate(lines.items()):
        xs, ys = zip(*line, strict=True)
        colour, every = COLOURS[i % len(COLOURS)], max(1, len(xs) // 10)
        axis.plot(xs, ys, "-" if i % 2 == 0 else "--", color=colour, linewidth=1.4, marker=MARKERS[i % len(MARKERS)],
                  markersize=4, markevery=(i * every // len(lines), every))  # fmt: skip
        _margin_label(axis, name, points[name], heights[name], colour)


def loss_curve(
    steps: Sequence[int], losses: Sequence[float], ln_pool: float | None, title: str, stem: Path
) -> list[Path]:
    """Training loss by step, with its running mean and, where there is one, the loss of guessing, ln(pool).

    Returns the files written.
    """
    import numpy as np

    figure, (axis,) = new_figure(6, 3.6, 1)
    axis.plot(steps, losses, color=COLOURS[0], linewidth=0.6, alpha=0.45)
    window = max(1, len(losses) // 20)
    losses = list(losses) or [float("nan")]  # a run that diverged at its first step
    steps = list(steps) or [0]
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    axis.plot(steps[window - 1 :], smooth, color=COLOURS[0], linewidth=1.6)
    if ln_pool is not None:
        axis.axhline(ln_pool, color="#666666", linestyle=":", linewidth=1)
        axis.annotate("guessing: ln(pool)", (0.99, ln_pool), xycoords=("axes fraction", "data"), ha="right",
                      va="bottom", fontsize=8, color="#444444")  # fmt: skip
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    axis.set_title(title, loc="left", fontsize=10)
    return save_figure(figure, stem)


def anisotropy_and_speed(
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]], title: str, stem: Path
) -> list[Path]:
    """Queries a second (log axis) against what `panels` names, one panel each: one colour and marker an engine, each
    model's name above its points.

    `panels` is {what is on the x axis: {engine: {model: (x, queries a second)}}}. Returns the files written.
    """
    from matplotlib.ticker import LogFormatter

    figure, axes = new_figure(5.2 * len(panels), 4.4, len(panels))
    for axis, (name, engines) in zip(axes, panels.items(), strict=True):
        for i, (engine, points) in enumerate(engines.items()):
            xs, ys = zip(*points.values(), strict=True)
            axis.plot(xs, ys, MARKERS[i], color=COLOURS[i], markersize=6, linestyle="none", label=engine)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(LogFormatter())
        axis.yaxis.set_minor_formatter(LogFormatter())
        axis.locator_params(axis="x", nbins=5)
        axis.margins(x=0.15, y=0.1)
        axis.set_xlabel(name)
        axis.set_ylabel("queries a second")
        places = {model: x for points in engines.values() for model, (x, _) in points.items()}
        apart = _apart(places, axis.get_xlim())
        for model, x in places.items():
            axis.axvline(x, color="#666666", linestyle=":", linewidth=0.6, zorder=0)
            axis.annotate(
                model,
                (x, 1),
                xycoords=axis.get_xaxis_transform(),
                xytext=(apart[model], 1.04),
                textcoords=axis.get_xaxis_transform(),
                rotation=35,
                rotation_mode="anchor",
                fontsize=8,
                arrowprops={
                    "arrowstyle": "-",
                    "linestyle": ":",
                    "linewidth": 0.6,
                    "color": "#666666",
                    "relpos": (0, 0),
                },
            )
    axes[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save_figure(figure, stem)


def scale_curves(panels: Mapping[str, Lines], levels: Mapping[str, float], stem: Path) -> list[Path]:
    """What each stage takes against the size of the collection, both axes logarithmic: a panel a quantity, a line a
    stage of one colour and marker in all of them. `levels` holds a bound to draw, by quantity. Returns the files.
    """
    figure, axes = new_figure(4.6 * len(panels), 4.6, len(panels))
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for axis, (quantity, lines) in zip(axes, panels.items(), strict=True):
        for name, points in lines.items():
            xs, ys = zip(*points, strict=True)
            i = names.index(name)
            axis.plot(xs, ys, "-", color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)],
                      markersize=4, linewidth=1.4, label=name)  # fmt: skip
        if quantity in levels:
            axis.axhline(levels[quantity], color="#666666", linestyle=":", linewidth=1)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("passages")
        axis.set_title(quantity, loc="left", fontsize=10)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    axes[-1].legend(handles.values(), handles.keys(), fontsize=8, frameon=False, loc="center left",
                    bbox_to_anchor=(1.01, 0.5))  # fmt: skip
    return save_figure(figure, stem)
