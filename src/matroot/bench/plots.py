"""Plots of rows: one panel in a figure, so that figures can be placed side by side or stacked."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator

if TYPE_CHECKING:
    from matroot.bench.rows import Row

# A colour for every candidate, the same in all plots; matroot black.
_COLOURS = (
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#ff7f0e",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#17becf",
    "#bcbd22",
    "#3b528b",
    "#7f7f7f",
    "#005f5f",
    "#b8860b",
    "#4b0082",
)


@dataclass(frozen=True)
class Plot:
    """A figure with its file name (no ending) and a caption."""

    name: str
    caption: str
    figure: Figure


def colours(names: Iterable[str]) -> dict[str, Any]:
    """The colour of each candidate, in order of appearance."""
    found: dict[str, Any] = {"matroot": "black"}
    for name in names:
        if name not in found:
            found[name] = _COLOURS[(len(found) - 1) % len(_COLOURS)]
    return found


def panel(title: str, footer: str, *, lines: int = 0, height: float = 3.5) -> tuple[Figure, Axes]:
    """A figure with one panel, ``lines`` of legend below and the provenance at the bottom.

    Small, so that its letters can be read on a phone.
    """
    # The object interface keeps matplotlib's global state, and any display, out of it.
    figure = Figure(figsize=(4.6, height + 0.16 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    figure.supxlabel(textwrap.fill(footer, 90), fontsize=5.5, color="0.4")
    return figure, axes


def _plain_ticks(axis: Axis) -> None:
    """1, 2, 5, 10 instead of powers of ten, on a logarithmic axis of at most four decades."""
    decades = _decades(axis)
    if decades > 4:
        return
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.minorticks_off()


def _decades(axis: Axis) -> float:
    low, high = axis.get_view_interval()
    return math.log10(high / low)


# Functions with names, so that other processes can draw the plots: see drawing.py.
def _plain(x: float, position: int | None) -> str:
    return f"{x:g}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(x: float, position: int | None) -> str:
    """10⁻³; matplotlib's own ticks are formulas, which take a quarter of the time of a plot."""
    exponent = round(math.log10(x))
    return f"10{str(exponent).translate(_RAISED)}" if math.isclose(x, 10.0**exponent) else ""


def finish(axes: Axes, handles: Sequence[Any]) -> None:
    """The ticks, and the legend below the panel."""
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            axis.set_major_formatter(FuncFormatter(_power))
            if _decades(axis) > 2:
                # Each tick takes as long as a curve.
                axis.minorticks_off()
    if handles:
        # Between the panel and the provenance at the bottom.
        axes.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.17),
            ncols=2,
            fontsize=7.5,
            frameon=False,
            handletextpad=0.4,
            labelspacing=0.25,
        )


_FAILED = Line2D([], [], color="0.3", marker="x", ls="", ms=7, label="failed its accuracy gate")


def curves(
    rows: Sequence[Row],
    *,
    name: str,
    title: str,
    footer: str,
    x: str,
    y: str,
    x_label: str,
    y_label: str,
    palette: dict[str, Any],
    log_x: bool = True,
    log_y: bool = True,
    gated: bool = True,
    ticks: bool = False,
) -> Plot | None:
    """One line for each candidate, y against x; a cross instead of a dot where the gate was failed.

    Points without a number, not finite or not measured, are named in the caption.
    """
    figure, axes = panel(title, footer, lines=len({row["candidate"] for row in rows}) // 2 + 1)
    lost: list[str] = []
    failed = drawn = False
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        points = sorted((r for r in rows if r["candidate"] == candidate), key=lambda r: r[x])
        shown = [(r, number(r, y)) for r in points]
        without = [f"{r[x]:g}" for r, value in shown if value is None]
        if without:
            lost.append(f"{candidate} at {', '.join(without)}")
        kept = [(r, value) for r, value in shown if value is not None and value > 0]
        if not kept:
            continue
        drawn = True
        colour = palette[candidate]
        axes.plot(
            [r[x] for r, _ in kept],
            [value for _, value in kept],
            "-",
            color=colour,
            lw=2 if candidate == "matroot" else 1.2,
            label=candidate,
        )
        for r, value in kept:
            bad = gated and r.get("passed") is False
            failed = failed or bad
            axes.plot([r[x]], [value], "x" if bad else "o", color=colour, ms=7 if bad else 4)
    if not drawn:
        return None
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    if ticks:
        marks = sorted({row[x] for row in rows})
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
        axes.set_xticks([], minor=True)
    if y_label == "ms":
        _plain_ticks(axes.yaxis)
    handles = axes.get_legend_handles_labels()[0]
    finish(axes, [*handles, _FAILED] if failed else handles)
    return Plot(name, f"No number, not drawn: {'; '.join(lost)}." if lost else "", figure)


def pareto(
    rows: Sequence[Row],
    *,
    name: str,
    title: str,
    footer: str,
    y: str,
    y_label: str,
    phase: str,
    palette: dict[str, Any],
) -> Plot | None:
    """Error against time: down and to the left is better. A cross: failed its gate."""
    figure, axes = panel(title, footer, lines=len(rows) // 2 + 1)
    lost, failed, handles = [], False, []
    for row in rows:
        time, error = number(row, "ms", phase), number(row, y)
        if time is None or error is None:
            lost.append(f"{row['candidate']} ({row.get('why') or 'not measured'})")
            continue
        bad = row.get("passed") is False
        failed = failed or bad
        colour, low_high = palette[row["candidate"]], row["ms"][phase][1:]
        axes.plot(low_high, [error, error], "-", color=colour, lw=1, alpha=0.5)
        marker = "x" if bad else "o"
        big = 9 if row["candidate"] == "matroot" else 6
        # A logarithmic axis cannot show errors of exactly 0.
        axes.plot([time], [max(error, 1e-17)], marker, color=colour, ms=8 if bad else big)
        handles.append(
            Line2D([], [], color=colour, marker=marker, ls="", ms=6, label=row["candidate"])
        )
    if not handles:
        return None
    axes.set(xscale="log", yscale="log", xlabel=f"{phase}, ms", ylabel=y_label)
    _plain_ticks(axes.xaxis)
    finish(axes, [*handles, _FAILED] if failed else handles)
    return Plot(name, f"Not drawn: {'; '.join(lost)}." if lost else "", figure)


def bars(
    values: dict[str, float],
    *,
    name: str,
    title: str,
    footer: str,
    x_label: str,
    palette: dict[str, Any],
    caption: str = "",
) -> Plot | None:
    """A horizontal bar for each candidate, the shortest on top."""
    if not values:
        return None
    figure, axes = panel(title, footer, height=1.2 + 0.24 * len(values))
    names = sorted(values, key=lambda key: -values[key])
    found = axes.barh(names, [values[n] for n in names], color=[palette[n] for n in names])
    axes.bar_label(found, fmt="%.1f", fontsize=7, padding=2)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel(x_label)
    axes.margins(x=0.12)
    return Plot(name, caption, figure)


def number(row: Row, field: str, phase: str | None = None) -> float | None:
    """The field, or the median of a phase of it; ``None`` where there is none."""
    value = row.get(field)
    if field == "ms" and phase is not None:
        value = value[phase][0] if value and phase in value else None
    elif field.startswith("ms:"):
        return number(row, "ms", field.removeprefix("ms:"))
    return None if value is None else float(value)
