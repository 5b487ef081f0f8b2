"""Plots as SVG and PNG, drawn by several processes, which load matplotlib and not PyTorch."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

import matplotlib
from matplotlib.figure import Figure

# A process takes as long to start as two plots.
_PLOTS_OF_A_PROCESS = 10


def draw(figure: Figure, salt: str) -> tuple[bytes, bytes]:
    """The figure as SVG and as PNG.

    Args:
        figure: laid out here.
        salt: makes ids in the SVG that do not change from run to run, so that a report changes only
            where its rows do.
    """
    svg, png = io.BytesIO(), io.BytesIO()
    # Text as text is a quarter of the size.
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    # Laid out above; once more would take a quarter of the time.
    figure.set_layout_engine("none")
    figure.savefig(png, format="png", dpi=130, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def draw_all(figures: Sequence[Figure], salts: Sequence[str]) -> Iterator[tuple[bytes, bytes]]:
    """``draw`` of each, in this order."""
    processes = min(os.cpu_count() or 1, 4, len(figures) // _PLOTS_OF_A_PROCESS)
    if processes < 2:
        yield from map(draw, figures, salts)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(draw, figures, salts)
