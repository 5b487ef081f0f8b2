"""Parts of a report: tables, sections, and the rows of one environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from matroot.bench.plots import Plot
from matroot.bench.rows import ENVIRONMENT, Row

ROOT_NAMES = {"sqrt": "square root", "inv_sqrt": "inverse square root"}


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell; ``kind`` is ``"good"``, ``"bad"`` or empty, ``hint`` explains it."""

    text: str
    kind: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Table:
    """Columns, rows of cells (strings or Cells) and a caption."""

    head: Sequence[str]
    body: Sequence[Sequence[str | Cell]]
    caption: str = ""

    @property
    def cells(self) -> list[list[Cell]]:
        """Every cell as a Cell."""
        return [[c if isinstance(c, Cell) else Cell(c) for c in line] for line in self.body]


@dataclass(frozen=True)
class Section:
    """A heading with text, tables and plots."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = field(default_factory=tuple)


@dataclass(frozen=True)
class Group:
    """All rows measured in one environment."""

    rows: list[Row]

    @property
    def quick(self) -> bool:
        """Measured with ``--quick``."""
        return bool(self.rows[0].get("quick"))

    @property
    def title(self) -> str:
        """The device."""
        return str(self.rows[0].get("device_name") or self.rows[0].get("device"))

    @property
    def footer(self) -> str:
        """The provenance in a line, for plots."""
        row = self.rows[0]
        return (
            f"matroot {row.get('matroot')} ({row.get('commit') or 'installed'}), "
            f"PyTorch {row.get('torch')}, {row.get('device_name')}, {row.get('threads')} threads"
            + (", QUICK RUN" if self.quick else "")
        )

    @property
    def provenance(self) -> Table:
        """The provenance in full."""
        row = self.rows[0]
        names = ("matroot", "commit", "torch", "python", "system", "device", "device_name")
        times = sorted(str(r["measured"]) for r in self.rows if r.get("measured"))
        span = f"{times[0]} to {times[-1]}" if times else "unknown"
        body = [[name.replace("_", " "), str(row.get(name))] for name in (*names, "threads")]
        experiments = dict.fromkeys(r["experiment"] for r in self.rows)
        body += [["measured", span], ["experiments", ", ".join(experiments)]]
        return Table(["", ""], [*body, ["rows", str(len(self.rows))]])


def groups(rows: Sequence[Row]) -> list[Group]:
    """Rows by environment, so that figures of two machines or versions are never mixed."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = (*(row.get(name) for name in ENVIRONMENT), bool(row.get("quick")))
        found.setdefault(key, []).append(row)
    return [Group(members) for members in found.values()]


def two_digits(x: float | None) -> str:
    """``1.2e-07``; a dash where there is none."""
    return "–" if x is None or not math.isfinite(x) else f"{x:.1e}"


def three_digits(x: float | None) -> str:
    """``0.0123``, ``12.3``, ``1230``, ``1.23e+07``; a dash where there is none."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{x:.0f}" if 1000 <= x < 1e6 else f"{x:.3g}"


def times(x: float | None) -> str:
    """``3.2×``."""
    return "–" if x is None else f"{x:.2g}×" if x < 100 else f"{x:.0f}×"


def status(row: Row) -> Cell:
    """Whether the root passed its gate."""
    why = row.get("why") or ""
    if row.get("passed"):
        return Cell(why or "passed", "bad" if why else "good")
    return Cell(f"FAILED: {why}", "bad")


def not_empty(drawn: Sequence[Plot | None]) -> list[Plot]:
    """The plots that had points to show."""
    return [plot for plot in drawn if plot is not None]
