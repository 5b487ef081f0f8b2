"""Plots of rows: one panel in a figure, so that figures can be placed side by side or stacked."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, NullLocator

if TYPE_CHECKING:
    from matroot.bench.rows import Row

# A colour for every candidate, the same in all plots; matroot black. Dark enough for letters.
_COLOURS = (
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#d95f02",
    "#9467bd",
    "#8c564b",
    "#c2459a",
    "#0e8fa0",
    "#8a8b00",
    "#3b528b",
    "#6b6b6b",
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

    @property
    def title(self) -> str:
        """What is plotted, and what is seen, in a line."""
        return self.figure.get_suptitle().replace("\n", ": ")


def colours(names: Iterable[str]) -> dict[str, Any]:
    """The colour of each candidate, in order of appearance."""
    found: dict[str, Any] = {"matroot": "black"}
    for name in names:
        if name not in found:
            found[name] = _COLOURS[(len(found) - 1) % len(_COLOURS)]
    return found


def panel(
    title: str, footer: str, *, width: float = 4.6, height: float = 3.5, panels: int = 1
) -> tuple[Figure, Axes]:
    """A figure with its first panel, the title on top and the provenance at the bottom.

    Small, so that its letters can be read on a phone.
    """
    # The object interface keeps matplotlib's global state, and any display, out of it.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    for axes in np.ravel(figure.subplots(1, panels, sharey=True)):
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    lines = [textwrap.fill(line, round(12.6 * width)) for line in title.splitlines()]
    figure.suptitle("\n".join(lines), x=0.02, ha="left", fontsize=9.5)
    figure.supxlabel(textwrap.fill(footer, 90), fontsize=5.5, color="0.4")
    return figure, figure.axes[0]


def label_ends(
    axes: Axes, ends: Sequence[tuple[str, Any, float, float]], *, size: float = 7.5
) -> None:
    """Names to the right of the panel, each joined to its point by a thin line.

    Names whose points are close are pushed apart. Limits and scales of the axes must be final.

    Args:
        axes: where.
        ends: name, colour, x and y of each, such as the last point of a line.
        size: of the letters, in points.
    """
    if not ends:
        return
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    # A line is a fifth higher than letters, and the layout makes the panel a little lower.
    points = 72 * figure.get_figheight() * axes.get_position().height
    step = 1.35 * size / points
    axes.autoscale_view()
    to_panel = axes.transScale + axes.transLimits
    placed = sorted((to_panel.transform((x, y))[1], name, c, x, y) for name, c, x, y in ends)
    for place, (_, name, colour, x, y) in zip(
        _apart([height for height, *_ in placed], step), placed, strict=True
    ):
        axes.annotate(
            name,
            (x, y),
            (1.06, place),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            color=colour,
            weight="bold" if name == "matroot" else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.5,
                "shrinkA": 1,
                "shrinkB": 2,
                # To the first letter: to the middle of the name it would cross others.
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], step: float) -> list[float]:
    """The places nearest to these ascending heights with distances of at least ``step``."""
    # Not above: the processes that draw (see drawing.py) load this module and place no names.
    from scipy.optimize import isotonic_regression

    offsets = step * np.arange(len(heights))
    # Places less their offsets only need to ascend.
    found = isotonic_regression(heights - offsets).x
    return list(np.clip(found, 0, max(0, 1 - offsets[-1])) + offsets)


def plain_ticks(axis: Axis) -> None:
    """0.1, 1, 10 on a logarithmic axis within 0.0005 … 200,000, otherwise 10⁻⁷."""
    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    if low < 5e-4 or high > 2e5:
        axis.set_major_formatter(FuncFormatter(_power))
    else:
        subs = (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(_plain))
    # Each minor tick takes as long as a curve.
    axis.set_minor_locator(NullLocator())


# Functions with names, so that other processes can draw the plots: see drawing.py.
def _plain(x: float, position: int | None) -> str:
    return f"{x:g}" if x < 1e4 else f"{x:,.0f}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(x: float, position: int | None) -> str:
    """10⁻³; matplotlib's own ticks are formulas, which take a quarter of the time of a plot."""
    exponent = round(math.log10(x))
    return f"10{str(exponent).translate(_RAISED)}" if math.isclose(x, 10.0**exponent) else ""


def condition(cond: float) -> str:
    """``κ = 10⁴``."""
    return f"κ = {_power(cond, None) or f'{cond:.2g}'}"


_LEAST_RANGE = 4


def finish(axes: Axes, *, failed: bool = False) -> None:
    """The limits, the ticks, and the meaning of a cross."""
    for axis, set_limits in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            # Noise of a few per cent must not look like a result.
            low, high = sorted(axis.get_view_interval())
            if high < _LEAST_RANGE * low:
                middle, half = math.sqrt(low * high), math.sqrt(_LEAST_RANGE)
                set_limits(middle / half, middle * half)
            plain_ticks(axis)
    if failed:
        # A legend of one marker, since it belongs to no line.
        axes.annotate(
            "×  failed its accuracy gate",
            (0, 0),
            (0, -38),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=7.5,
        )


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
    ranked: bool = True,
) -> Plot | None:
    """One line for each candidate, y against x; a cross instead of a dot where the gate was failed.

    The title says who is first. Where candidates differ in what x means, and ``ranked`` is False,
    it says how small errors, and how large times, become.
    Points without a number, not finite or not measured, are named in the caption.
    """
    if gated:
        title += _places(rows, x, y) if ranked else _furthest(rows, x, y)
    figure, axes = panel(title, footer)
    lost: list[str] = []
    ends: list[tuple[str, Any, float, float]] = []
    failed = False
    for candidate in dict.fromkeys(row["candidate"] for row in rows):
        points = sorted((r for r in rows if r["candidate"] == candidate), key=lambda r: r[x])
        shown = [(r, number(r, y)) for r in points]
        without = [f"{r[x]:g}" for r, value in shown if value is None]
        if without:
            lost.append(f"{candidate} at {', '.join(without)}")
        kept = [(r, value) for r, value in shown if value is not None and value > 0]
        if not kept:
            continue
        colour = palette[candidate]
        axes.plot(
            [r[x] for r, _ in kept],
            [value for _, value in kept],
            "-",
            color=colour,
            lw=2 if candidate == "matroot" else 1.2,
        )
        # Markers of many points would be a thick line.
        for r, value in kept if len(kept) < 30 else ():
            bad = gated and r.get("passed") is False
            failed = failed or bad
            axes.plot([r[x]], [value], "x" if bad else "o", color=colour, ms=7 if bad else 4)
        ends.append((candidate, colour, kept[-1][0][x], kept[-1][1]))
    if not ends:
        return None
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    finish(axes, failed=failed)
    if ticks:
        marks = sorted({row[x] for row in rows})
        axes.set_xticks(marks, [f"{mark:g}" for mark in marks])
        axes.set_xticks([], minor=True)
    label_ends(axes, ends)
    return Plot(name, f"No number, not drawn: {'; '.join(lost)}." if lost else "", figure)


def _places(rows: Sequence[Row], x: str, y: str) -> str:
    """A line of the title: who has the least y, of those that passed, at most of the points."""
    points: dict[Any, list[tuple[float, str]]] = {}
    for row in rows:
        value = number(row, y)
        if value is not None and row.get("passed") is not False:
            points.setdefault(row[x], []).append((value, row["candidate"]))
    firsts = [min(point)[1] for point in points.values() if len(point) > 1]
    if not firsts:
        return ""
    name, count = Counter(firsts).most_common(1)[0]
    what = "fastest" if y.startswith("ms") else "most accurate"
    where = "at every point" if count == len(firsts) else f"at {count} of {len(firsts)} points"
    return f"\n{name} is the {what} {where}"


def _furthest(rows: Sequence[Row], x: str, y: str) -> str:
    """A line of the title: the least error, or the longest time, and where it is."""
    found = [
        (value, row["candidate"], row[x]) for row in rows if (value := number(row, y)) is not None
    ]
    if not found:
        return ""
    timed = y.startswith("ms")
    value, name, place = (max if timed else min)(found)
    what = f"longest {value:.2g} ms" if timed else f"least {value:.2g}"
    return f"\n{what}, by {name} with {place:g}"


def times_and_errors(
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
    """Time and error of each candidate side by side, the fastest on top.

    A cross: failed its gate. Points of a plot of the error against the time would cover each other.
    """
    lost, shown = [], []
    for row in rows:
        time, error = number(row, "ms", phase), number(row, y)
        if time is None or error is None:
            lost.append(f"{row['candidate']} ({row.get('why') or 'not measured'})")
        else:
            shown.append((time, error, row))
    if not shown:
        return None
    shown.sort(key=lambda found: -found[0])
    title += _fastest([(time, row) for time, _, row in shown])
    figure, left = panel(title, footer, height=1.35 + 0.17 * len(shown), panels=2)
    right = figure.axes[1]
    failed = False
    for place, (time, error, row) in enumerate(shown):
        bad = row.get("passed") is False
        failed = failed or bad
        colour, marker = palette[row["candidate"]], "x" if bad else "o"
        big = 8 if row["candidate"] == "matroot" else 5
        left.plot(row["ms"][phase][1:], [place, place], "-", color=colour, lw=1)
        left.plot([time], [place], marker, color=colour, ms=big)
        # A logarithmic axis cannot show errors of exactly 0.
        right.plot([max(error, 1e-17)], [place], marker, color=colour, ms=big)
    left.set(xscale="log", xlabel=f"{phase}, ms")
    right.set(xscale="log", xlabel=y_label)
    left.set_yticks(range(len(shown)), [row["candidate"] for *_, row in shown], fontsize=7.5)
    left.margins(y=0.5 / len(shown))
    right.tick_params(left=False)
    for axes in (left, right):
        axes.xaxis.label.set_fontsize(8.5)
    finish(right)
    finish(left, failed=failed)
    return Plot(name, f"Not drawn: {'; '.join(lost)}." if lost else "", figure)


def _fastest(shown: Sequence[tuple[float, Row]]) -> str:
    """A line of the title: the fastest that passed, and by how much."""
    passed = sorted(
        ((time, row["candidate"]) for time, row in shown if row.get("passed") is not False)
    )
    if len(passed) < 2:
        return ""
    (first, name), (second, other) = passed[:2]
    gate = " within the gate" if min(time for time, _ in shown) < first else ""
    if second < 1.05 * first:
        return f"\n{name} and {other} are fastest{gate}"
    return f"\n{name} is fastest{gate}, {second / first:.2g} times as fast as {other}"


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
    figure, axes = panel(title, footer, height=1.2 + 0.2 * len(values))
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
