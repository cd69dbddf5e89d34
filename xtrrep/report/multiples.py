"""Small multiples: many quantities of the same lines, a small panel each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xtrrep.report.figure import COLOURS, MARKERS, Lines, new_figure, save_figure


def small_multiples(
    panels: Mapping[str, Lines],
    x_label: str,
    title: str,
    stem: Path,
    *,
    bands: Mapping[str, Lines] | None = None,
    columns: int = 4,
) -> list[Path]:
    """A quantity a panel against numbers from 0 on (logarithmic above the first of them), a line of one colour and
    marker a name in all of them; `bands` as in `k_prime_sweep`. Returns the files written.
    """
    columns = min(columns, len(panels))
    figure, axes = new_figure(3.0 * columns + 1.2, 2.5 * -(-len(panels) // columns) + 0.5, len(panels), columns)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    ticks = sorted({x for lines in panels.values() for points in lines.values() for x, _ in points})
    for axis, (quantity, lines) in zip(axes, panels.items(), strict=True):
        for name, points in lines.items():
            xs, ys = zip(*points, strict=True)
            i = names.index(name)
            axis.plot(xs, ys, "-" if i % 2 == 0 else "--", color=COLOURS[i % len(COLOURS)],
                      marker=MARKERS[i % len(MARKERS)], markersize=4, linewidth=1.3, label=name)  # fmt: skip
            halves = dict((bands or {}).get(quantity, {}).get(name, ()))
            around = [(x, y - halves[x], y + halves[x]) for x, y in points if x in halves]
            if around:
                at, low, high = zip(*around, strict=True)
                axis.fill_between(at, low, high, color=COLOURS[i % len(COLOURS)], alpha=0.12, linewidth=0)
        axis.set_xscale("symlog", linthresh=min((x for x in ticks if x > 0), default=1.0))
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks], fontsize=7)
        axis.minorticks_off()
        axis.tick_params(axis="y", labelsize=7)
        axis.set_xlabel(x_label, fontsize=8)
        axis.set_title(quantity, loc="left", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=min(4, len(labels)))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return save_figure(figure, stem)
