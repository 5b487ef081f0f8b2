"""The report: one HTML page that needs no network, its Markdown twin, and the plots."""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

import jinja2
import matplotlib

from matroot import files
from matroot.bench import hard_report, paper_sections, peer_sections, plots, scale_report
from matroot.bench.layout import Group, Section, groups
from matroot.bench.plots import Plot
from matroot.bench.rows import Row

_SECTIONS = (
    paper_sections.claimed,
    paper_sections.headline,
    paper_sections.growing,
    paper_sections.accuracy,
    paper_sections.degrees,
    paper_sections.scalars,
    paper_sections.lyapunov,
    peer_sections.capabilities,
    peer_sections.accuracy,
    peer_sections.speed,
    peer_sections.memory,
    scale_report.processes,
    hard_report.section,
)


def sections(group: Group) -> Iterator[Section]:
    """All sections that these rows can fill."""
    palette = plots.colours(row["candidate"] for row in group.rows)
    for make in _SECTIONS:
        yield from make(group, palette)


def write(
    rows: Sequence[Row],
    complaints: Sequence[str],
    folder: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """The page, its Markdown twin and every plot as SVG and PNG.

    Args:
        rows: as loaded, from one file or several.
        complaints: what was wrong with the files; shown on top.
        folder: made if it is not there.
        progress: called with the plots drawn and those in all.

    Returns:
        What was written: ``index.html``, ``report.md`` and the plots.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("there are no rows to report; run matroot bench paper or peers first")
    # What rows say is text: a dollar begins no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        parts = [(group, list(sections(group))) for group in groups(rows)]
    drawings = folder / "plots"
    drawings.mkdir(parents=True, exist_ok=True)
    # In the order of their groups; two groups may hold plots of the same name.
    written, images = [], {}
    total = sum(len(s.plots) for _, found in parts for s in found)
    progress(0, total)
    for index, (_, found) in enumerate(parts):
        for plot in itertools.chain.from_iterable(s.plots for s in found):
            # Rows name it, and must not choose its folder.
            stem = re.sub(r"[^\w.+-]", "_", plot.name)[:100]
            stem = stem if index == 0 else f"{stem}-{index + 1}"
            svg = _svg(plot, stem)
            files.replace(drawings / f"{stem}.svg", svg)
            # Laid out above; once more would take a quarter of the time.
            plot.figure.set_layout_engine("none")
            with files.replacing(drawings / f"{stem}.png") as fresh:
                plot.figure.savefig(fresh, dpi=130, metadata={"Software": None})
            images[index, plot.name] = (f"plots/{stem}.svg", base64.b64encode(svg).decode())
            progress(len(images), total)
            written += [drawings / f"{stem}.svg", drawings / f"{stem}.png"]
    for template, name in (("report.html.jinja", "index.html"), ("report.md.jinja", "report.md")):
        text = _template(template).render(parts=parts, images=images, complaints=complaints)
        files.replace(folder / name, text)
        written.append(folder / name)
    return written


def _svg(plot: Plot, salt: str) -> bytes:
    buffer = io.BytesIO()
    # Ids that do not change from run to run, so that a report changes only where its rows do; text
    # as text, which is a quarter of the size.
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        plot.figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pipe"] = _for_markdown
    return environment.from_string(
        resources.files("matroot.bench").joinpath(name).read_text(encoding="utf-8")
    )


def _for_markdown(text: str) -> str:
    """Text that cannot break out of a table's cell, nor become HTML."""
    flat = " ".join(str(text).split())
    for sign in "\\`*_[]<>|":
        flat = flat.replace(sign, "\\" + sign)
    return flat.replace("&", "&amp;").replace("\\<", "&lt;").replace("\\>", "&gt;")
