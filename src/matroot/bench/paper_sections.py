"""The paper's numerical tests as sections of the report."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from matroot.bench import claims, plots, published
from matroot.bench.layout import (
    ROOT_NAMES,
    Cell,
    Group,
    Section,
    Table,
    not_empty,
    status,
    three_digits,
    times,
    two_digits,
)
from matroot.bench.plots import Plot, condition, number
from matroot.bench.rows import Row, pick


def claimed(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """The claims of the paper that these rows confirm or refute."""
    found = claims.claims(group.rows)
    kinds = {"confirmed": "good", "refuted": "bad"}
    tables = []
    if found:
        body: list[list[str | Cell]] = [
            [c.statement, Cell(c.verdict, kinds.get(c.verdict, "")), c.evidence] for c in found
        ]
        tables.append(Table(["claim", "here", "figures"], body))
    figures = claims.agreement(group.rows)
    if figures:
        compared: list[list[str | Cell]] = [
            [what, f"{here:.4g}", f"{there:.4g}", Cell("yes", "good") if ok else Cell("NO", "bad")]
            for what, here, there, ok in figures
        ]
        caption = "Figures that do not depend on the machine."
        tables.append(Table(["", "here", "reference", "within 3 %"], compared, caption))
    if tables:
        yield Section(
            "The paper's claims on this machine",
            f"{published.SOURCE}. Its times are of a Tesla K40 and a 6-core Xeon; what carries "
            "over is ratios. SVD here means torch.linalg.svd with the gradients in closed form, "
            "NS the coupled iteration by the trace with five steps.",
            tables,
        )


def headline(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """The applications' shapes: times, errors, the K40's figures next to them."""
    tables, drawn = [], []
    for case in claims.by_case(group.rows):
        first = next(iter(case.values()))
        name, title = first["application"], claims.shape(first)
        case_there = _published(first)
        there = {} if case_there is None else case_there.per_transform
        base = there.get("NS, published")
        base_here = number(case.get("NS, published", {}), "ms", "total")
        body: list[list[str | Cell]] = []
        for candidate, row in case.items():
            total = number(row, "ms", "total")
            old = there.get(candidate)
            body.append(
                [
                    candidate,
                    *(three_digits(number(row, "ms", p)) for p in ("forward", "backward")),
                    f"{three_digits(total)} ({_spread(row)})" if total else "–",
                    two_digits(row["error"]),
                    two_digits(row["gradient_error"]),
                    status(row),
                    three_digits(old),
                    times(base_here / total if base_here and total else None),
                    times(base / old if base and old else None),
                ]
            )
        head = ["", "forward, ms", "backward", "total (20–80 %)", "error", "of the gradient"]
        head += ["gate", "K40, ms", "over NS, published: here", "on the K40"]
        tables.append(
            Table(head, body, f"{name}, {title}, {condition(first['cond'])}. {_mark(case_there)}")
        )
        slug = f"headline-{first['batch']}x{first['n']}-{first['root']}"
        for what, y in (("error", "error"), ("gradient", "gradient_error")):
            drawn.append(
                plots.times_and_errors(
                    list(case.values()),
                    name=f"{slug}-{what}",
                    title=f"{name}: {title}",
                    footer=group.footer,
                    y=y,
                    y_label="error of the " + ("root" if y == "error" else "gradient"),
                    phase="total",
                    palette=palette,
                )
            )
    if tables:
        yield Section(
            "The applications' shapes",
            "Root and gradient: time and error, the fastest on top.",
            tables,
            not_empty(drawn),
        )


def _published(row: Row) -> published.Headline | None:
    """The paper's figures for this shape; none for the smaller batch of a quick run."""
    shape = (row["application"], row["batch"], row["n"])
    cases = (c for c in published.HEADLINE if (c.name, c.batch, c.n) == shape)
    return next(cases, None)


def _mark(case: published.Headline | None) -> str:
    if case is None:
        return "A smaller batch than published: no figures to compare with."
    shared = (
        f" The published figure is for {case.transforms} calls; shown is its share of one."
        if case.transforms > 1
        else ""
    )
    if case.known == "recalled":
        return (
            "The K40's figures are quoted from memory and were NOT checked against the paper."
            + shared
        )
    return "The K40's figures were read off the poster, to about 3 %." + shared


def _spread(row: Row) -> str:
    _, low, high = row["ms"]["total"]
    return f"{three_digits(low)}–{three_digits(high)}"


# What is plotted: the field, and its names in the file name, in the title and on the axis.
_TIMES = tuple((f"ms:{phase}", phase, phase, "ms") for phase in ("forward", "backward", "total"))
_ERRORS = (
    ("error", "error", "error of the root", "relative error"),
    ("gradient_error", "gradient_error", "error of the gradient", "relative error"),
)


def _of_both_roots(
    found: Sequence[Row],
    quantities: Sequence[tuple[str, str, str, str]],
    *,
    name: str,
    **options: Any,
) -> list[Plot | None]:
    """A plot of each quantity for the root, then for the inverse root."""
    return [
        plots.curves(
            pick(found, root=root),
            name=f"{name}-{root}-{slug}",
            title=f"{ROOT_NAMES[root]}: {what}",
            y=y,
            y_label=label,
            **options,
        )
        for root, (y, slug, what, label) in itertools.product(ROOT_NAMES, quantities)
    ]


def growing(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """Time and error against n and against the batch."""
    for experiment, x, label, fixed, there in (
        ("size", "n", "n (one matrix)", "one n×n matrix", published.SIZE),
        ("batch", "batch", "matrices of 64×64", "batches of 64×64", published.BATCH),
    ):
        found = pick(group.rows, experiment=experiment)
        if not found:
            continue
        drawn = [
            plot
            for quantities in (_TIMES, _ERRORS)
            for plot in _of_both_roots(
                found,
                quantities,
                name=experiment,
                footer=group.footer,
                x=x,
                x_label=label,
                palette=palette,
                ticks=True,
            )
        ]
        yield Section(
            f"Time against {'the size' if experiment == 'size' else 'the batch'}",
            f"{fixed[0].upper()}{fixed[1:]}, κ = 10².",
            [_against_k40(pick(found, root="sqrt"), x, there)],
            not_empty(drawn),
        )


def _against_k40(found: list[Row], x: str, there: dict[str, dict[int, float]]) -> Table:
    body: list[list[str | Cell]] = []
    points = sorted({row[x] for row in found})
    for candidate in dict.fromkeys(row["candidate"] for row in found):
        line: list[str | Cell] = [candidate]
        for point in points:
            case = {r["candidate"]: number(r, "ms", "total") for r in pick(found, **{x: point})}
            here, svd = case.get(candidate), case.get("SVD")
            old, old_svd = there.get(candidate, {}).get(point), there["SVD"].get(point)
            text = three_digits(here)
            if here and svd:
                text += f", {times(svd / here)}"
            if old and old_svd:
                text += f" (K40: {old:g}, {times(old_svd / old)})"
            line.append(text)
        body.append(line)
    caption = (
        "Root, forward + backward: milliseconds here, times faster than SVD here; in brackets the "
        "same on the K40, read off the poster to about 3 %."
    )
    return Table(["", *(f"{x} = {p}" for p in points)], body, caption)


def accuracy(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """Errors against n and the condition number."""
    drawn: list[Plot | None] = []
    found = pick(group.rows, experiment="mae")
    if found:
        # matroot's, at 1e-15, would flatten the other curves.
        shown = [row for row in found if row["candidate"] != "matroot"]
        read_off = [
            {"candidate": f"{name}, read off the poster", "n": n, "mae": mae}
            for name, figures in published.MAE.items()
            for n, mae in figures.items()
        ]
        drawn.append(
            plots.curves(
                [*shown, *read_off],
                name="mae",
                title=f"root of XXᵀ, float64: mean absolute error\n{_read_off(shown)}",
                footer=group.footer,
                x="n",
                y="mae",
                x_label="n",
                y_label="mean absolute error",
                palette=plots.colours(row["candidate"] for row in [*shown, *read_off]),
                ticks=True,
                log_y=False,
                gated=False,
            )
        )
    conditions = pick(group.rows, experiment="condition")
    drawn += _of_both_roots(
        conditions,
        (*_ERRORS, ("ms:total", "ms-total", "time", "ms")),
        name="condition",
        footer=group.footer,
        x="cond",
        x_label="condition number κ (n = 64)",
        palette=palette,
    )
    tables = [_condition_table(pick(conditions, root=root), root) for root in ROOT_NAMES]
    if not_empty(drawn):
        yield Section(
            "Accuracy",
            "The published methods converge on well conditioned matrices only; the gate of a "
            "truncated method is an error of 10 %, of the others the error that rounding allows.",
            [table for table in tables if table.body],
            not_empty(drawn),
        )


def _read_off(found: list[Row]) -> str:
    """How near these are to the poster's curves."""
    worst = {
        name: max(
            (
                abs(row["mae"] / there[row["n"]] - 1)
                for row in pick(found, candidate=name)
                if row["n"] in there
            ),
            default=None,
        )
        for name, there in published.MAE.items()
    }
    near = [f"{name} within {value:.0%}" for name, value in worst.items() if value is not None]
    return f"{', '.join(near)} of the poster" if near else ""


def _condition_table(found: list[Row], root: str) -> Table:
    points = sorted({row["cond"] for row in found})
    body: list[list[str | Cell]] = []
    for candidate in dict.fromkeys(row["candidate"] for row in found):
        line: list[str | Cell] = [candidate]
        for cond in points:
            for row in pick(found, candidate=candidate, cond=cond):
                text = f"{two_digits(row['error'])} / {two_digits(row['gradient_error'])}"
                line.append(Cell(text, "" if row.get("passed") else "bad", row.get("why") or ""))
        body.append(line)
    caption = f"{ROOT_NAMES[root].capitalize()}: error / error of the gradient; red: failed."
    return Table(["", *map(condition, points)], body, caption)


def degrees(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """Error and time against degree, order and steps."""
    found = [
        {**row, "candidate": row["candidate"].split()[0]}
        for row in pick(group.rows, experiment="degree")
    ]
    times_apart = (
        ("ms:forward", "ms-forward", "time forward", "ms"),
        ("ms:backward", "ms-backward", "time backward", "ms"),
    )
    drawn = _of_both_roots(
        found,
        (*_ERRORS, *times_apart),
        name="degree",
        footer=group.footer,
        x="x",
        x_label="Taylor degree, Padé order, Newton–Schulz steps",
        palette=plots.colours(row["candidate"] for row in found),
        log_x=False,
        ranked=False,
    )
    if not_empty(drawn):
        yield Section(
            "Degree, order, steps",
            "Root of XXᵀ, X Gaussian 64×64; inverse root at κ = 10². Gradient by eight Lyapunov "
            "steps.",
            (),
            not_empty(drawn),
        )


def scalars(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """The methods' values for a single eigenvalue."""
    drawn = []
    for root in ROOT_NAMES:
        found = pick(group.rows, experiment="scalar", root=root)
        if not found:
            continue
        values, errors = [], []
        for row in found:
            for x, y in zip(row["curve"]["x"], row["curve"]["y"], strict=True):
                truth = math.sqrt(x) if root == "sqrt" else 1 / math.sqrt(x)
                values.append({"candidate": row["candidate"], "x": x, "y": y})
                errors.append({"candidate": row["candidate"], "x": x, "y": abs(y / truth - 1)})
        local = plots.colours(row["candidate"] for row in found)
        power = "√x" if root == "sqrt" else "1/√x"
        for points, what, label in ((values, "", "value"), (errors, ", error", "relative error")):
            drawn.append(
                plots.curves(
                    points,
                    name=f"scalar-{root}-{label.split()[-1]}",
                    title=f"{power}{what}\nthe smaller the eigenvalue, the further off",
                    footer=group.footer,
                    x="x",
                    y="y",
                    x_label="eigenvalue x of A/c",
                    y_label=label,
                    palette=local,
                    gated=False,
                )
            )
    if drawn:
        yield Section(
            "On one eigenvalue",
            "Each method's value for an eigenvalue x of A divided by its normaliser c.",
            (),
            not_empty(drawn),
        )


def lyapunov(group: Group, palette: dict[str, Any]) -> Iterator[Section]:
    """The steps of the backward pass."""
    tables, drawn = [], []
    points = [
        {"candidate": condition(row["cond"]), "x": x, "y": y}
        for row in pick(group.rows, experiment="convergence")
        for x, y in zip(row["curve"]["x"], row["curve"]["y"], strict=True)
    ]
    if points:
        drawn.append(
            plots.curves(
                points,
                name="convergence",
                title="Sign iteration, n = 64, float64: a larger κ takes more steps",
                footer=group.footer,
                x="x",
                y="y",
                x_label="step k",
                y_label="‖Bₖ − I‖",
                palette=plots.colours(p["candidate"] for p in points),
                log_x=False,
                gated=False,
            )
        )
    found = pick(group.rows, experiment="lyapunov")
    if found:
        body: list[list[str | Cell]] = [
            [
                row["candidate"],
                condition(row["cond"]),
                two_digits(row["error"]),
                two_digits(row["gradient_error"]),
                three_digits(number(row, "ms", "backward")),
            ]
            for row in found
        ]
        head = ["", "", "error of X", "error of the gradient", "backward, ms"]
        tables.append(
            Table(
                head, body, "X solves S X + X S = G for the computed MPA root S, float32, n = 64."
            )
        )
    if tables or not_empty(drawn):
        yield Section(
            "The Lyapunov iteration",
            "How many steps the backward pass takes, started at S/√‖A‖_F with S by MPA.",
            tables,
            not_empty(drawn),
        )
