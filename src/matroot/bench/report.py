"""The report: one HTML page that needs no network, its Markdown twin, and the plots."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

import jinja2
import matplotlib

from matroot import files
from matroot.bench import drawing, hard_report, paper_sections, peer_sections, plots, scale_report
from matroot.bench.layout import Group, Section, groups
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
    found = [
        (index, plot, _stem(plot.name, index))
        for index, (_, made) in enumerate(parts)
        for plot in itertools.chain.from_iterable(s.plots for s in made)
    ]
    written, images = [], {}
    progress(0, len(found))
    drawn = drawing.draw_all([plot.figure for _, plot, _ in found], [stem for *_, stem in found])
    for done, ((index, plot, stem), (svg, png)) in enumerate(zip(found, drawn, strict=True), 1):
        for path, content in ((f"{stem}.svg", svg), (f"{stem}.png", png)):
            files.replace(drawings / path, content)
            written.append(drawings / path)
        images[index, plot.name] = (f"plots/{stem}.svg", base64.b64encode(svg).decode())
        progress(done, len(found))
    for template, name in (("report.html.jinja", "index.html"), ("report.md.jinja", "report.md")):
        text = _template(template).render(parts=parts, images=images, complaints=complaints)
        files.replace(folder / name, text)
        written.append(folder / name)
    return written


def _stem(name: str, group: int) -> str:
    """The name of a plot's files: rows name plots, and must not choose their folder."""
    stem = re.sub(r"[^\w.+-]", "_", name)[:100]
    return stem if group == 0 else f"{stem}-{group + 1}"


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
