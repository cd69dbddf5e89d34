"""A figure of what time buys: values against milliseconds a query, one curve an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xtrrep.report.figure import COLOURS, MARKERS, new_figure, save_figure

WIDTH, HEIGHT = 5.0, 3.6  # inches of a panel: read on a phone without turning it
SIZES = {"": 4.5, "study": 8.0, "library": 8.0}


@dataclass(frozen=True)
class Traded:
    """One setting. preset: "study" or "library" for what the engine comes with. dominated: by its own curve."""

    milliseconds: float
    value: float
    preset: str = ""
    dominated: bool = False


@dataclass(frozen=True)
class Curve:
    """One engine under one scoring; a dashed line where `dashed`."""

    engine: str
    name: str
    points: Sequence[Traded]
    dashed: bool = False


def tradeoff(panels: Mapping[str, Sequence[Curve]], title: str, stem: Path) -> list[Path]:
    """Values against time (log axis), one panel a value, below each other. Colour and marker tell the engine, dashes
    XTR's scoring; what its own curve dominates is small, grey and off the line. Returns the files written.
    """
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    legend = 0.2 * (len(names) + 3) / 2 + 0.3
    figure, axes = new_figure(WIDTH, HEIGHT * len(panels) + legend, len(panels), columns=1, sharex=True)
    engines = list(dict.fromkeys(curve.engine for curves in panels.values() for curve in curves))
    handles: dict[str, Line2D] = {}
    for axis, (value, curves) in zip(axes, panels.items(), strict=True):
        for curve in curves:
            number = engines.index(curve.engine)
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            line = sorted((p.milliseconds, p.value) for p in curve.points if not p.dominated and p.preset != "library")
            style = "--" if curve.dashed else "-"
            axis.plot([x for x, _ in line], [y for _, y in line], style, color=colour, linewidth=1.3)
            for point in curve.points:
                faint = point.dominated and not point.preset
                axis.plot(
                    [point.milliseconds],
                    [point.value],
                    linestyle="none",
                    marker=marker,
                    markersize=2.5 if faint else SIZES[point.preset],
                    color="#aaaaaa" if faint else colour,
                    markerfacecolor="white" if point.preset == "library" else "#aaaaaa" if faint else colour,
                    markeredgecolor="#aaaaaa" if faint else "black" if point.preset == "study" else colour,
                )
            handles[curve.name] = Line2D([], [], linestyle=style, color=colour, marker=marker, markersize=4.5)
        axis.set_xscale("log")
        axis.grid(axis="x", linewidth=0.4, alpha=0.5)
        axis.set_title(value, loc="left", fontsize=10)
    axes[-1].set_xlabel("milliseconds a query (median)")
    for name, edge, fill, size in (
        ("large: the preset", "black", "#888888", 8.0),
        ("hollow: the library's own", "#888888", "white", 8.0),
        ("small: slower and no better", "#aaaaaa", "#aaaaaa", 2.5),
    ):
        handles[name] = Line2D(
            [], [], linestyle="none", marker="o", markersize=size, markeredgecolor=edge, markerfacecolor=fill
        )
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncol=2, fontsize=8, frameon=False, handlelength=3
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return save_figure(figure, stem)
