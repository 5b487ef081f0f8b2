"""Tables and plot of ``matroot bench hard``, from rows of blocks or from sums of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from matroot.bench.hard import BINS, LAPACK_THRESHOLD
from matroot.bench.hard_families import FAMILIES
from matroot.bench.layout import Group, Section, Table, three_digits
from matroot.bench.plots import Plot, colours, finish, label_ends, panel
from matroot.bench.rows import DTYPES, Row, pick

# What rows are summed over: blocks and sizes.
SUMMED = ("candidate", "family", "dtype", "method", "backend")
RATIOS = {
    "sqrt_ratio": "S² − A",
    "inv_ratio": "ZAZ − I",
    "sqrt_error": "S",
    "inv_error": "Z",
    "gradient_error": "∇S",
    "inv_gradient_error": "∇Z",
}


def section(group: Group, palette: object) -> Iterator[Section]:
    """All of it as a section of the report."""
    found = pick(group.rows, experiment="hard")
    if found:
        shown = [replace(table, caption=title) for title, table in tables(found).items()]
        yield Section("Hard matrices", "See docs/hard.md.", shown, [plot(found)])


def summed(rows: Iterable[Row], by: Sequence[str] = SUMMED) -> list[Row]:
    """Rows added up: counts, violations and histograms, of the same ``by``."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = tuple(row.get(name) for name in by)
        total = found.setdefault(
            key,
            {**dict(zip(by, key, strict=True)), "matrices": 0, "failed": 0}
            | {"ratios": {}, "violations": {}},
        )
        total["matrices"] += row["matrices"]
        total["failed"] += row.get("failed") or 0
        for name, count in row["violations"].items():
            total["violations"][name] = total["violations"].get(name, 0) + count
        for name, histogram in row["ratios"].items():
            _add(total["ratios"].setdefault(name, {"count": 0, "max": None, "bins": {}}), histogram)
    return list(found.values())


def _add(total: Row, histogram: Row) -> None:
    total["count"] += histogram["count"]
    largest = [x for x in (total["max"], histogram["max"]) if x is not None]
    total["max"] = max(largest) if largest else None
    for name, count in histogram["bins"].items():
        total["bins"][name] = total["bins"].get(name, 0) + count


def quantile(histogram: Row | None, share: float) -> float | None:
    """The upper end of the bin that holds it, at most the largest number."""
    if not histogram or not histogram["count"]:
        return None
    left = share * histogram["count"]
    for name in sorted(histogram["bins"], key=int):
        left -= histogram["bins"][name]
        if left <= 0:
            end: float = 10 ** ((int(name) + 1) / BINS)
            return end if histogram["max"] is None else min(end, histogram["max"])
    return None


def largest(row: Row, name: str) -> float | None:
    """The largest number of a histogram."""
    histogram = row["ratios"].get(name)
    return histogram["max"] if histogram else None


def tables(rows: Sequence[Row]) -> dict[str, Table]:
    """Every table by its title."""
    own = pick(rows, candidate="matroot")
    found = {
        "By dtype and method": _by(own, ("dtype", "method", "backend"), _worst),
        "By family, auto on the compiled kernels": _families(own),
        "Other packages on the same matrices": _by(rows, ("dtype", "candidate"), _beside, rows),
    }
    bounds = _by(own, ("dtype", "method", "backend"), _bounds)
    if bounds.body:
        found["Bounds of the error over the error"] = bounds
    return found


_Columns = Callable[[Row], dict[str, str] | None]


def _by(
    rows: Sequence[Row], by: Sequence[str], columns: _Columns, others: Sequence[Row] | None = None
) -> Table:
    """A line for each value of ``by``."""
    if others is not None:
        # Like with like: only such blocks as other packages were given.
        cases = {row.get("dtype") for row in others if row["candidate"] != "matroot"}
        rows = [r for r in rows if r["dtype"] in cases and r["method"] in ("auto", r["candidate"])]
    totals = sorted(summed(rows, by), key=lambda r: (DTYPES.index(r["dtype"]), -r["matrices"]))
    lines = [(r, columns(r)) for r in totals]
    shown = [(r, c) for r, c in lines if c is not None]
    head = [*by, *(shown[0][1] if shown else ())]
    return Table(head, [[*(str(r[name]) for name in by), *c.values()] for r, c in shown])


def _count(x: int) -> str:
    return f"{x:,}"


def _worst(row: Row) -> dict[str, str]:
    """The largest number of each ratio."""
    found = {"matrices": _count(row["matrices"])}
    found |= {text: three_digits(largest(row, name)) for name, text in RATIOS.items()}
    return {**found, "violations": _count(sum(row["violations"].values()))}


def _families(own: Sequence[Row]) -> Table:
    """Largest LAPACK ratios and 99 % of errors, float32 and float64 side by side."""
    kept = summed(pick(own, method="auto", backend="native"), ("family", "dtype"))
    body = []
    for family in FAMILIES:
        line, found = [family], pick(kept, family=family)
        if not found:
            continue
        for dtype in ("float32", "float64"):
            row = next(iter(pick(found, dtype=dtype)), None)
            if row is None:
                line += ["–"] * 4
                continue
            line += [_count(row["matrices"])]
            line += [
                three_digits(largest(row, "sqrt_ratio")),
                three_digits(largest(row, "inv_ratio")),
            ]
            line += [three_digits(quantile(row["ratios"].get("sqrt_error"), 0.99))]
        body.append(line)
    head = ["family"]
    for dtype in ("float32", "float64"):
        head += [dtype, "S² − A, largest", "ZAZ − I, largest", "error of S, 99 %"]
    return Table(head, body)


def _beside(row: Row) -> dict[str, str]:
    """LAPACK's ratios and the error of S."""
    found = {"matrices": _count(row["matrices"])}
    residuals = row["ratios"].get("sqrt_ratio")
    found["S² − A: median"] = three_digits(quantile(residuals, 0.5))
    found["99 %"] = three_digits(quantile(residuals, 0.99))
    found["largest"] = three_digits(largest(row, "sqrt_ratio"))
    found["ZAZ − I: largest"] = three_digits(largest(row, "inv_ratio"))
    found["S: largest"] = three_digits(largest(row, "sqrt_error"))
    return {**found, "no root": "–" if row["candidate"] == "matroot" else _count(row["failed"])}


def _bounds(row: Row) -> dict[str, str] | None:
    """How often a bound is finite, and how tight."""
    found: dict[str, str] = {}
    for name in ("S", "Z", "∇S", "∇Z"):
        finite = row["ratios"].get(f"bound of {name} finite")
        tight = row["ratios"].get(f"bound of {name} / error")
        if not finite or not finite["count"]:
            found |= dict.fromkeys((f"{name}: finite", f"{name}: 99 %"), "–")
            continue
        # Bin 0 holds those that are 1.
        share = finite["bins"].get("0", 0) / finite["count"]
        found[f"{name}: finite"] = f"{100 * share:.1f} %"
        found[f"{name}: 99 %"] = three_digits(quantile(tight, 0.99))
    return found if set(found.values()) != {"–"} else None


# Where the axis of ratios ends; a marker > stands for what is beyond.
_END = 1e3


def plot(rows: Sequence[Row]) -> Plot:
    """‖S² − A‖_F/(‖A‖_F n u) by family and package: median, 99 % and largest; 60 as a line."""
    kept = [r for r in rows if r["dtype"] in ("float32", "float64")]
    kept = [r for r in kept if r["candidate"] != "matroot" or r["method"] == "auto"]
    totals = summed(kept, ("candidate", "family"))
    names = list(dict.fromkeys(row["candidate"] for row in totals))
    palette = colours(names)
    families = [f for f in FAMILIES if pick(totals, family=f)]
    # A place for each package in each family, and one between families.
    height = len(names) + 1
    figure, axes = panel(
        _seen(totals),
        Group(list(rows)).footer if rows and rows[0].get("torch") else "",
        width=7,
        height=1.3 + 0.05 * height * len(families),
    )
    for row in totals:
        histogram = row["ratios"].get("sqrt_ratio")
        if not histogram or not histogram["count"]:
            continue
        y = families.index(row["family"]) * height + names.index(row["candidate"])
        points = [quantile(histogram, 0.5), quantile(histogram, 0.99), histogram["max"]]
        # Exact roots have no place on a logarithmic axis; far beyond, a number says no more.
        x = [min(max(p, 1e-3), _END) for p in points if p is not None]
        colour = palette[row["candidate"]]
        axes.plot([x[0], x[-1]], [y, y], "-", color=colour, lw=1)
        for value, marker in zip(x, ("|", ".", "o"), strict=False):
            shown = ">" if value == _END else marker
            axes.plot([value], [y], shown, color=colour, ms=3 if marker in ".o" else 4)
    axes.axvline(LAPACK_THRESHOLD, color="0.3", ls="--", lw=1)
    axes.set(xscale="log", xlabel="‖S² − A‖ / (‖A‖ n u); dashed: LAPACK's threshold, 60")
    middle = (len(names) - 1) / 2
    axes.set_yticks([i * height + middle for i in range(len(families))], families, fontsize=8)
    axes.set_ylim(len(families) * height - 0.5, -1.5)
    finish(axes)
    # Beside the bars of the first family.
    ends = []
    for row in pick(totals, family=families[0]) if families else ():
        histogram = row["ratios"].get("sqrt_ratio")
        if histogram and histogram["max"]:
            place = names.index(row["candidate"])
            ends.append((row["candidate"], palette[row["candidate"]], histogram["max"], place))
    label_ends(axes, ends)
    return Plot("hard-residuals", "", figure)


def _seen(totals: Sequence[Row]) -> str:
    """The title: what the largest residuals are."""
    title = "Residuals by family of matrices: median (|), 99 % (·), largest (●)"
    sizes = [(row, largest(row, "sqrt_ratio") or 0) for row in totals]
    ours = [size for row, size in sizes if row["candidate"] == "matroot"]
    if not ours:
        return title
    beyond = dict.fromkeys(
        row["family"]
        for row, size in sizes
        if row["candidate"] != "matroot" and size > LAPACK_THRESHOLD
    )
    others = f"; others pass {LAPACK_THRESHOLD:.0f} on {', '.join(beyond)}" if beyond else ""
    return f"{title}\nmatroot stays below {math.ceil(max(ours))}{others}"
