"""The other packages as sections of the report."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from matroot.bench import plots
from matroot.bench.layout import (
    ROOT_NAMES,
    Cell,
    Group,
    Section,
    Table,
    not_empty,
    three_digits,
    times,
)
from matroot.bench.plots import number
from matroot.bench.rows import Row, pick


def capabilities(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """Which package can do what."""
    found = pick(group.rows, experiment="capability")
    if not found:
        return
    names = list(dict.fromkeys(row["candidate"] for row in found))
    kinds = {"y": "good", "n": "bad"}
    body: list[list[str | Cell]] = []
    for question in dict.fromkeys(row["question"] for row in found):
        line: list[str | Cell] = [question]
        answers = {row["candidate"]: row for row in pick(found, question=question)}
        for name in names:
            row = answers.get(name)
            if row is None:
                line.append("–")
            else:
                line.append(Cell(row["answer"], kinds.get(row["answer"], ""), row["why"] or ""))
        body.append(line)
    versions = {row["candidate"]: row.get("version") for row in found}
    head = ["", *(f"{n} {versions[n]}" if versions[n] else n for n in names)]
    reasons: list[list[str | Cell]] = [
        [row["candidate"], row["question"], row["why"]]
        for row in found
        if row["answer"] == "n" and row["why"]
    ]
    yield Section(
        "Who can do what",
        "Found by running each package, not from its documentation. y: right; n: wrong, not finite "
        "or an error; –: no such function. What does not claim to reach the root (the paper's MPA, "
        "CIQ) may be off by 10 %, but for “to rounding”; in the row on NaN matroot is called with "
        "check_errors=False, since by default it raises.",
        [Table(head, body), Table(["", "asked", "why n"], reasons, "Every n, with what happened.")],
    )


def accuracy(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """Errors against the condition number."""
    found = pick(group.rows, experiment="accuracy")
    drawn = []
    for dtype, root, (y, what) in itertools.product(
        dict.fromkeys(row["dtype"] for row in found),
        ROOT_NAMES,
        (("error", "root"), ("gradient_error", "gradient")),
    ):
        drawn.append(
            plots.curves(
                [
                    row
                    for row in pick(found, dtype=dtype, root=root)
                    # A peer without a gradient is left out; one whose gradient failed is named.
                    if y == "error" or row["gradient_error"] is not None or row.get("why")
                ],
                name=f"accuracy-{dtype}-{root}-{y}",
                title=f"{dtype}, {ROOT_NAMES[root]}: error of the {what}",
                footer=group.footer,
                x="cond",
                y=y,
                x_label="condition number κ (n = 64)",
                y_label="relative error",
                palette=palette,
            )
        )
    if not_empty(drawn):
        yield Section("Accuracy of the packages", "", (), not_empty(drawn))


def speed(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """Times, and errors against them."""
    found = pick(group.rows, experiment="speed")
    tables, drawn = [], []
    for root, phase in itertools.product(ROOT_NAMES, ("forward", "both")):
        cases: dict[str, dict[str, Row]] = {}
        for row in pick(found, root=root):
            cases.setdefault(f"{row['batch']}×{row['n']}", {})[row["candidate"]] = row
        if cases:
            tables.append(_speed_table(cases, root, phase))
    for (batch, n), (y, what) in itertools.product(
        dict.fromkeys((row["batch"], row["n"]) for row in found),
        (("error", "root"), ("gradient_error", "gradient")),
    ):
        drawn.append(
            plots.times_and_errors(
                [
                    row
                    for row in pick(found, batch=batch, n=n, root="sqrt")
                    if y == "error" or (row["ms"] or {}).get("both")
                ],
                name=f"speed-{batch}x{n}-{y}",
                title=f"square root of {batch}×{n}×{n}: error of the {what}",
                footer=group.footer,
                y=y,
                y_label="relative error",
                phase="forward" if y == "error" else "both",
                palette=palette,
            )
        )
    if tables:
        yield Section(
            "Speed of the packages",
            "Every package on the same matrices, in turns. “forward” keeps nothing for a gradient, "
            "“both” is root and gradient.",
            tables,
            not_empty(drawn),
        )


def _speed_table(cases: dict[str, dict[str, Row]], root: str, phase: str) -> Table:
    names = dict.fromkeys(name for case in cases.values() for name in case)
    body: list[list[str | Cell]] = []
    for name in names:
        line: list[str | Cell] = [name]
        for case in cases.values():
            row = case.get(name, {})
            here = number(row, "ms", phase)
            ours = number(case.get("matroot", {}), "ms", phase)
            if here is None:
                line.append(Cell("–", "", row.get("why") or ""))
                continue
            text = three_digits(here)
            if ours and name != "matroot":
                text += f", {times(here / ours)}"
            bad = not row.get("passed")
            line.append(
                Cell(text + (" FAILED" if bad else ""), "bad" if bad else "", row["why"] or "")
            )
        body.append(line)
    what = "forward" if phase == "forward" else "root and gradient"
    caption = (
        f"{ROOT_NAMES[root].capitalize()}, {what}: milliseconds, and times slower than matroot. "
        "FAILED: the root is wrong, see the gate in the rows."
    )
    return Table(["", *cases], body, caption)


def memory(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """Peak memory."""
    found = pick(group.rows, experiment="memory")
    shares = {
        row["candidate"]: row["memory"] / row["input"]
        for row in found
        if row.get("memory") is not None and row.get("input")
    }
    title = "peak extra memory of root and gradient"
    # Why a package is not measured, or has no gradient.
    whole = [name for name in shares if not pick(found, candidate=name)[0].get("why")]
    if whole:
        least = min(whole, key=lambda name: shares[name])
        title += f"\n{least} needs least with a gradient, {shares[least]:.1f} times its input"
    plot = plots.bars(
        shares,
        name="memory",
        title=title,
        footer=group.footer,
        x_label="times the input",
        palette=palette,
        caption="; ".join(f"{row['candidate']}: {row['why']}" for row in found if row.get("why")),
    )
    if plot is not None:
        yield Section("Memory", "In a process of its own each.", (), [plot])
