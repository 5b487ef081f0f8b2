"""The paper's claims, checked against rows: confirmed or refuted, with the figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matroot.bench import published
from matroot.bench.layout import times
from matroot.bench.plots import condition, number
from matroot.bench.rows import Row, pick


@dataclass(frozen=True)
class Claim:
    """A statement, whether it holds in these rows, and the figures behind that."""

    statement: str
    verdict: str
    evidence: str


def verdict(holds: Sequence[bool]) -> str:
    """In words, from whether it holds in each case."""
    if not holds:
        return "not measured"
    if all(holds):
        return "confirmed"
    return "refuted" if not any(holds) else f"holds in {sum(holds)} of {len(holds)}"


def shape(row: Row) -> str:
    """``64×48×48``, with the root where it is the inverse."""
    inverse = ", inverse" if row.get("root") == "inv_sqrt" else ""
    return f"{row['batch']}×{row['n']}×{row['n']}{inverse}"


def by_case(rows: Sequence[Row]) -> list[dict[str, Row]]:
    """The candidates of each headline case."""
    found: dict[str, dict[str, Row]] = {}
    for row in pick(rows, experiment="headline"):
        found.setdefault(row["case"], {})[row["candidate"]] = row
    return list(found.values())


def ratios(rows: Sequence[Row], other: str, candidate: str) -> dict[str, float]:
    """How many times faster the candidate is than another in each headline case, in total."""
    found = {}
    for case in by_case(rows):
        if other in case and candidate in case:
            slow, fast = (number(case[n], "ms", "total") for n in (other, candidate))
            if slow is not None and fast is not None:
                found[shape(case[candidate])] = slow / fast
    return found


def _listed(found: dict[str, float]) -> str:
    return ", ".join(f"{name}: {times(ratio)}" for name, ratio in found.items())


def _faster(rows: Sequence[Row], statement: str, candidate: str, other: str) -> Claim:
    found = ratios(rows, other, candidate)
    return Claim(statement, verdict([r > 1 for r in found.values()]), _listed(found))


def _headline_ratio(rows: Sequence[Row]) -> Claim:
    """The four ratios of the abstract, at 64×48×48."""
    stated = {
        ("NS, published", "MPA-Lya"): 3.2,
        ("NS, published", "MTP-Lya"): 4.3,
        ("SVD-Taylor", "MPA-Lya"): 25.6,
        ("SVD-Taylor", "MTP-Lya"): 34.8,
    }
    holds, evidence = [], []
    for (other, candidate), expected in stated.items():
        found = ratios(rows, other, candidate).get("64×48×48")
        if found is not None:
            holds.append(found >= 0.8 * expected)
            evidence.append(f"{candidate} over {other}: {times(found)} here, {expected}× there")
    return Claim(
        "At 64×48×48 MPA is 3.2 and MTP 4.3 times faster than NS, 25.6 and 34.8 times than SVD "
        "(confirmed from 80 % of that)",
        verdict(holds),
        "; ".join(evidence),
    )


def _mean_errors(rows: Sequence[Row], statement: str, better: str, worse: str) -> Claim:
    pairs = {}
    for n in sorted({row["n"] for row in pick(rows, experiment="mae")}):
        found = {r["candidate"]: r["mae"] for r in pick(rows, experiment="mae", n=n)}
        if found.get(better) is not None and found.get(worse) is not None:
            pairs[n] = (found[better], found[worse])
    evidence = ", ".join(f"n = {n}: {x:.4f} against {y:.4f}" for n, (x, y) in pairs.items())
    return Claim(statement, verdict([x < y for x, y in pairs.values()]), evidence)


def _eight_steps(rows: Sequence[Row]) -> Claim:
    found = [
        (r["cond"], r["error"], r["gradient_error"])
        for r in pick(rows, experiment="lyapunov", candidate="8 steps")
        if r["error"] is not None and r["gradient_error"] is not None
    ]
    evidence = "; ".join(
        f"{condition(cond)}: equation of its own root {own:.1e}, gradient of the exact root {g:.1e}"
        for cond, own, g in sorted(found)
    )
    return Claim(
        "Eight iterations of the sign function solve the Lyapunov equation (here: to 1 %)",
        verdict([own <= 0.01 for _, own, _ in found]),
        evidence,
    )


def _accuracy_in_use(rows: Sequence[Row]) -> Claim:
    found = {}
    for row in pick(rows, experiment="condition", candidate="MPA-Lya"):
        if row["cond"] in (1e2, 1e4) and None not in (row["error"], row["gradient_error"]):
            inverse = "inverse root" if row["root"] == "inv_sqrt" else "root"
            found[f"{inverse} at {condition(row['cond'])}"] = (row["error"], row["gradient_error"])
    evidence = "; ".join(f"{name}: {x:.1e}, gradient {g:.1e}" for name, (x, g) in found.items())
    return Claim(
        "MPA is accurate (here: root and gradient to 1 %)",
        verdict([x <= 0.01 and g <= 0.01 for x, g in found.values()]),
        evidence,
    )


def _matroot(rows: Sequence[Row], statement: str, *, failed: bool) -> Claim:
    """Not from the paper: matroot against the fastest other, with or without those that failed."""
    found: dict[str, tuple[float, str]] = {}
    for case in by_case(rows):
        ours = case.get("matroot", {})
        time = number(ours, "ms", "total")
        others = [
            (other / time, name)
            for name, row in case.items()
            if time is not None
            and name != "matroot"
            and (failed or row.get("passed"))
            and (other := number(row, "ms", "total")) is not None
        ]
        if others:
            found[shape(ours)] = min(others)
    evidence = ", ".join(
        f"{case}: {times(ratio)} ({name})" for case, (ratio, name) in found.items()
    )
    return Claim(statement, verdict([ratio > 1 for ratio, _ in found.values()]), evidence)


_ALL: tuple[Callable[[Sequence[Row]], Claim], ...] = (
    lambda rows: _faster(rows, "MPA is faster than SVD", "MPA-Lya", "SVD-Taylor"),
    lambda rows: _faster(rows, "MTP is faster than SVD", "MTP-Lya", "SVD-Taylor"),
    lambda rows: _faster(rows, "MPA is faster than NS as published", "MPA-Lya", "NS, published"),
    lambda rows: _faster(rows, "MTP is faster than NS as published", "MTP-Lya", "NS, published"),
    lambda rows: _faster(
        rows, "MPA is faster than NS with a lean, vectorised gradient", "MPA-Lya", "NS"
    ),
    lambda rows: _faster(rows, "MPA is faster than a plain eigh", "MPA-Lya", "eigh"),
    lambda rows: _faster(rows, "MTP is faster than MPA", "MTP-Lya", "MPA-Lya"),
    _headline_ratio,
    lambda rows: _mean_errors(rows, "MPA is more accurate than MTP", "MPA", "MTP"),
    lambda rows: _mean_errors(rows, "MPA is more accurate than NS (by the trace)", "MPA", "NS"),
    lambda rows: _mean_errors(
        rows,
        "MPA is more accurate than NS in MPA's own normalisation",
        "MPA",
        "NS, Frobenius",
    ),
    _accuracy_in_use,
    _eight_steps,
    lambda rows: _matroot(
        rows,
        "Not of the paper: matroot is the fastest of all that pass their gate (in brackets the "
        "nearest)",
        failed=False,
    ),
    lambda rows: _matroot(rows, "Not of the paper: and of those that fail it, too", failed=True),
)


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Every claim that these rows can confirm or refute."""
    return [c for c in (make(rows) for make in _ALL) if c.verdict != "not measured"]


def agreement(rows: Sequence[Row]) -> list[tuple[str, float, float, bool]]:
    """Reproduced figures: (what, here, reference, within 3 %)."""
    found = []
    for name, references in published.MEAN_ERRORS.items():
        for n, expected in references.items():
            for row in pick(rows, experiment="mae", candidate=name, n=n):
                if row["mae"] is not None:
                    found.append((f"mean |S − S_exact|, {name}, n = {n}", row["mae"], expected))
    for row in pick(rows, experiment="convergence", cond=1e1):
        here = dict(zip(row["curve"]["x"], row["curve"]["y"], strict=True))
        for k, expected in published.CONVERGENCE.items():
            if k in here:
                found.append((f"‖B_{k} − I‖_F at κ = 10", here[k], expected))
    return [(*f, math.isclose(f[1], f[2], rel_tol=0.03)) for f in found]
