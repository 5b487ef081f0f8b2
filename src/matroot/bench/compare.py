"""Two files of rows compared: how much faster, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matroot.bench.rows import Row


@dataclass(frozen=True)
class Change:
    """One phase of one candidate on one case, in two files.

    Attributes:
        case: the case.
        candidate: the candidate.
        phase: ``"forward"``, ``"backward"``, ``"total"`` or ``"both"``.
        ratio: median of B over median of A; below 1, B is faster.
        low: the ratio if B ran at its 20th percentile and A at its 80th.
        high: the ratio if B ran at its 80th percentile and A at its 20th.
        errors: relative errors of the root in A and B.
    """

    case: str
    candidate: str
    phase: str
    ratio: float
    low: float
    high: float
    errors: tuple[float | None, float | None]

    @property
    def verdict(self) -> str:
        """``"faster"`` or ``"slower"`` where the band excludes 1, otherwise ``"within noise"``."""
        if self.high < 1:
            return "faster"
        return "slower" if self.low > 1 else "within noise"


def changes(a: Sequence[Row], b: Sequence[Row]) -> list[Change]:
    """Every time that both files hold, matched by case and candidate."""
    known = {(row["case"], row["candidate"]): row for row in a}
    found = []
    for row in b:
        other = known.get((row["case"], row["candidate"]))
        if other is None:
            continue
        for phase, (median, p20, p80) in (row.get("ms") or {}).items():
            before = (other.get("ms") or {}).get(phase)
            if before is None:
                continue
            found.append(
                Change(
                    row["case"],
                    row["candidate"],
                    phase,
                    median / before[0],
                    p20 / before[2],
                    p80 / before[1],
                    (other.get("error"), row.get("error")),
                )
            )
    return found


def mean_ratio(found: Sequence[Change]) -> float:
    """The geometric mean of the ratios."""
    return math.exp(sum(math.log(change.ratio) for change in found) / len(found))


def changed_gates(a: Sequence[Row], b: Sequence[Row]) -> list[str]:
    """A sentence for every gate that only one of A and B passes."""
    known = {(row["case"], row["candidate"]): row.get("passed") for row in a}
    found = []
    for row in b:
        before, now = known.get((row["case"], row["candidate"])), row.get("passed")
        if before is not None and now is not None and before != now:
            word = "passes its gate now" if now else f"fails its gate now ({row.get('why')})"
            found.append(f"{row['candidate']} on {row['case']} {word}")
    return found
