"""Tables and plots of ``matroot bench scale``: what was measured, what the model says, plans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from matroot.bench import scale_model
from matroot.bench.layout import Group, Section, Table, three_digits, two_digits
from matroot.bench.plots import Plot, finish, label_ends, panel
from matroot.bench.rows import Row, pick
from matroot.bench.scale_model import PUBLISHED, HugePlan, Link, Traffic

OPERATIONS = ("all_reduce", "all_gather", "broadcast")
EXPERIMENTS = ("map", "whitening", "huge")

# The root of one matrix of condition number up to 1e4 takes so many products of blocks.
PRODUCTS = 21
PLANNED = (65_536, (2, 4))
# Three products in TF32, of the leading and the trailing digits, are one to the rounding of float32
# (H. Ootomo and R. Yokota, Int. J. High Perform. Comput. Appl. 36 (2022)).
RATES = {"float32": PUBLISHED["FP32"].value, "three in TF32": PUBLISHED["TF32"].value / 3}
# Groups and channels of each.
LAYERS = ((1, 64), (8, 64), (1, 512))
RANKS = (8, 64, 512)


def processes(group: Group, palette: object) -> Iterator[Section]:
    """All of it as a section of the report."""
    measured = [
        row
        for name in ("collectives", "balance", *EXPERIMENTS)
        for row in pick(group.rows, experiment=name)
    ]
    if measured:
        shown = [replace(table, caption=title) for title, table in tables(measured).items()]
        text = "Model: time = operations/rate + messages·α + bytes/β, see docs/scaling.md."
        yield Section("Several processes", text, [t for t in shown if t.body], plots(measured))


def links(rows: Sequence[Row]) -> dict[str, Link]:
    """α and β of each collective, fitted to its rows; a reduction is as a broadcast.

    Empty where a collective was not measured.
    """
    found = {}
    for name in OPERATIONS:
        own = pick(rows, experiment="collectives", operation=name)
        if not own:
            return {}
        found[name] = scale_model.fitted((_traffic(row, name), _seconds(row)) for row in own)
    return {**found, "reduce": found["broadcast"]}


def predicted(row: Row, known: dict[str, Link]) -> float | None:
    """Milliseconds by the model; None where the row or the collectives were not timed."""
    if row.get("local_ms") is None or not known:
        return None
    local: float = row["local_ms"]
    for name, sent in row["traffic"].items():
        if name == "broadcast" and row.get("panel_ms") is not None:
            # Measured beside products, which leave no processor to those who send.
            local += sent["calls"] * row["panel_ms"]
        else:
            local += 1e3 * known[name].seconds(_traffic(row, name))
    return local


def _traffic(row: Row, name: str) -> Traffic:
    return Traffic(row["traffic"][name]["messages"], row["traffic"][name]["bytes"])


def _seconds(row: Row) -> float:
    milliseconds: float = row["ms"]["call"][0]
    return milliseconds / 1e3


def links_table(rows: Sequence[Row]) -> Table:
    """α and β, and how far the measured times are from them."""
    body = []
    for name, link in links(rows).items():
        own = pick(rows, experiment="collectives", operation=name)
        if own:
            ratios = [link.seconds(_traffic(row, name)) / _seconds(row) for row in own]
            fit = f"{min(ratios):.2f} to {max(ratios):.2f}"
            body.append([name, f"{link.latency * 1e6:.0f}", f"{link.bandwidth / 1e9:.2g}", fit])
    return Table(["collective", "α, µs", "β, GB/s", "model / measured"], body)


def measured_table(rows: Sequence[Row]) -> Table:
    """Every row of the experiments, timed or counted."""
    known, body = links(rows), []
    for experiment in EXPERIMENTS:
        # The same number of processes may have been counted for several sizes.
        for row in sorted(pick(rows, experiment=experiment), key=_order):
            model = predicted(row, known)
            ms = row["ms"]["call"][0] if row.get("ms") else None
            ratio = "–" if model is None or ms is None else f"{model / ms:.2f}"
            exchanged = row["traffic"].values()
            calls = ", ".join(f"{t['calls']} {name}" for name, t in row["traffic"].items())
            what = f"{experiment}, n = {row['n']}" if row.get("n") else experiment
            body.append(
                [
                    what,
                    str(row["ranks"]),
                    three_digits(ms),
                    three_digits(model),
                    ratio,
                    two_digits(row["error"]),
                    calls or "–",
                    _megabytes(sum(t["bytes"] for t in exchanged)),
                ]
            )
    head = ["", "processes", "ms", "model, ms", "model / measured", "error", "calls", "MB received"]
    return Table(head, body)


def _order(row: Row) -> tuple[float, float]:
    return row.get("n") or 0, row["ranks"]


def _megabytes(count: float) -> str:
    return three_digits(count / 1e6)


def balance_table(rows: Sequence[Row]) -> Table:
    """How evenly the shares of ``map`` take."""
    body = []
    for row in sorted(pick(rows, experiment="balance"), key=_order):
        loads = row["loads"]
        mean = sum(loads) / len(loads)
        spreads = [f"{row[name]:.3f}" for name in ("spread", "spread_by_formula")]
        body.append(
            [
                str(row["ranks"]),
                three_digits(max(loads)),
                three_digits(mean),
                *spreads,
                two_digits(row["error"]),
            ]
        )
    head = ["processes", "busiest, ms", "mean, ms", "busiest / mean", "by the formula", "error"]
    return Table(head, body)


def huge_table() -> Table:
    """The plan for one matrix of 65,536 rows."""
    n, grid = PLANNED
    body = []
    for name, rate in RATES.items():
        plan = HugePlan(n, grid, PRODUCTS, rate)
        low, high = plan.seconds
        body.append(
            [
                name,
                f"{plan.compute:.1f}",
                f"{plan.communication:.2f}",
                f"{low:.1f} to {high:.1f}",
                f"{plan.traffic.bytes / 1e9:.0f}",
                f"{plan.memory / 1e9:.1f}",
            ]
        )
    head = ["products", "products, s", "NVLink, s", "in all, s", "GB received", "GB held"]
    return Table(head, body)


def whitening_table() -> Table:
    """The plan for synchronised whitening: one all-reduce, of which a step has two."""
    body = []
    for groups, n in LAYERS:
        for ranks in RANKS:
            size = scale_model.whitening_bytes(groups, n, ranks)
            times = scale_model.all_reduce_over_nodes(size, ranks)
            shown = [f"{1e6 * times[name]:.0f}" for name in ("ring", "tree")]
            body.append([f"{groups} × {n}", str(ranks), f"{size / 1e3:.0f}", *shown])
    return Table(["groups × channels", "GPUs", "kB", "ring, µs", "tree, µs"], body)


def published_table() -> Table:
    """Constants, and where they come from."""
    units = (("FP32", "TFLOP/s", 1e12), ("TF32", "TFLOP/s", 1e12), ("NVLink", "GB/s", 1e9))
    scales = {name: (unit, scale) for name, unit, scale in (*units, ("NDR", "GB/s", 1e9))}
    body = []
    for name, known in PUBLISHED.items():
        unit, scale = scales.get(name, ("µs", 1e-6))
        body.append([known.name, f"{known.value / scale:.3g} {unit}", known.source])
    return Table(["constant", "value", "source"], body)


def tables(rows: Sequence[Row]) -> dict[str, Table]:
    """All of them by their titles; those of what was not measured are empty."""
    return {
        "Collectives of two processes": links_table(rows),
        "Measured, and by the model": measured_table(rows),
        "Shares of map, one after the other": balance_table(rows),
        f"{PLANNED[0]:,} rows on {math.prod(PLANNED[1])} H100, by the model": huge_table(),
        "An all-reduce of synchronised whitening, by the model": whitening_table(),
        "Published constants": published_table(),
    }


def markdown(table: Table) -> str:
    """As in a page."""
    lines = [table.head, ["---"] * len(table.head), *([c.text for c in x] for x in table.cells)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plots(rows: Sequence[Row]) -> list[Plot]:
    """Collectives here, the plan against the number of GPUs, whitening against their number."""
    footer = Group(list(rows)).footer
    found = [_huge_plot(), _whitening_plot()]
    if links(rows):
        found.append(_links_plot(rows, footer))
    return found


def _links_plot(rows: Sequence[Row], footer: str) -> Plot:
    title = "Collectives of two processes, gloo\nmeasured (dots), α + bytes/β (lines)"
    figure, axes = panel(title, footer)
    ends = []
    for place, name in enumerate(OPERATIONS):
        own = sorted(pick(rows, experiment="collectives", operation=name), key=lambda r: r["size"])
        sizes, link = [row["size"] for row in own], links(rows)[name]
        axes.plot(sizes, [row["ms"]["call"][0] for row in own], "o", color=f"C{place}", ms=4)
        model = [1e3 * link.seconds(_traffic(row, name)) for row in own]
        axes.plot(sizes, model, "-", color=f"C{place}", lw=1)
        ends.append((name, f"C{place}", sizes[-1], model[-1]))
    axes.set(xscale="log", yscale="log", xlabel="bytes a process", ylabel="ms")
    finish(axes)
    label_ends(axes, ends)
    return Plot("scaling-collectives", "", figure)


def _huge_plot() -> Plot:
    n = PLANNED[0]
    grids = [(1, 2), (2, 2), (2, 4)]
    every = [HugePlan(n, grid, PRODUCTS, rate) for rate in RATES.values() for grid in grids]
    share = max(plan.communication / plan.seconds[1] for plan in every)
    title = (
        f"Plan: the root of one {n:,} × {n:,} matrix\nNVLink takes {share:.0%} of the time or less"
    )
    figure, axes = panel(title, _SOURCES)
    ends = []
    for place, (name, rate) in enumerate(RATES.items()):
        plans = [HugePlan(n, grid, PRODUCTS, rate) for grid in grids]
        ranks = [plan.ranks for plan in plans]
        low, high = zip(*(plan.seconds for plan in plans), strict=True)
        axes.fill_between(ranks, low, high, color=f"C{place}", alpha=0.4)
        ends.append((f"in all, products\n{name}", f"C{place}", ranks[-1], high[-1]))
    over = [HugePlan(n, grid, PRODUCTS, 1.0).communication for grid in grids]
    axes.plot([a * b for a, b in grids], over, "--", color="0.3")
    ends.append(("NVLink alone", "0.3", math.prod(grids[-1]), over[-1]))
    axes.set(xscale="log", yscale="log", xlabel="H100", ylabel="seconds")
    finish(axes)
    axes.set_xticks([2, 4, 8], ["2", "4", "8"])
    label_ends(axes, ends)
    return Plot("scaling-huge", "", figure)


def _whitening_plot() -> Plot:
    counts = [2**k for k in range(1, 11)]
    times = {
        (groups, n): [
            scale_model.all_reduce_over_nodes(scale_model.whitening_bytes(groups, n, ranks), ranks)
            for ranks in counts
        ]
        for groups, n in LAYERS
    }
    ratio = min(found[-1]["ring"] / found[-1]["tree"] for found in times.values())
    figure, axes = panel(
        "Plan: the all-reduce of synchronised whitening\n"
        f"On {counts[-1]:,} GPUs a ring (dashed) takes ≥ {ratio:.0f} times a tree's time",
        _SOURCES,
    )
    ends = []
    for place, ((groups, n), found) in enumerate(times.items()):
        for name, style in (("ring", "--"), ("tree", "-")):
            shown = [1e6 * time[name] for time in found]
            axes.plot(counts, shown, style, color=f"C{place}")
            ends.append((f"{groups} × {n}, {name}", f"C{place}", counts[-1], shown[-1]))
    axes.set(xscale="log", yscale="log", xlabel="GPUs, eight a machine", ylabel="µs")
    finish(axes)
    axes.set_xticks([2, 8, 32, 128, 512], ["2", "8", "32", "128", "512"])
    label_ends(axes, ends)
    return Plot("scaling-whitening", "", figure)


_SOURCES = "By the model, from published constants"
