"""Measuring: a correctness gate first, then candidates in turns within one process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from matroot.bench.rows import Row
from matroot.testing import relative_error, tolerance

Lap = Callable[[], None]
Run = Callable[[Lap], None]
"""One execution of a candidate, which calls its argument at the end of every phase."""

APPROXIMATE = 0.1
"""Relative error up to which a truncated method counts as an approximation of the root."""

RootName = Literal["sqrt", "inv_sqrt"]
ROOTS: tuple[RootName, ...] = ("sqrt", "inv_sqrt")


class Stopwatch:
    """Milliseconds of the phases of a run: the clock on a CPU, events of the device on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, run: Run, repeats: int = 1) -> list[float]:
        """Mean time of every phase over so many executions in a row."""
        if self._device.type == "cuda":
            return self._by_events(run, repeats)
        marks: list[list[float]] = []
        for _ in range(repeats):
            marks.append([time.perf_counter()])
            run(lambda: marks[-1].append(time.perf_counter()))
        return _means([[(b - a) * 1e3 for a, b in pairwise(m)] for m in marks])

    def _by_events(self, run: Run, repeats: int) -> list[float]:
        stream = torch.cuda.current_stream(self._device)

        def event() -> Any:
            # PyTorch publishes no type of it.
            made = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            made.record(stream)
            return made

        torch.cuda.synchronize(self._device)
        marks = []
        for _ in range(repeats):
            marks.append([event()])
            run(lambda: marks[-1].append(event()))
        torch.cuda.synchronize(self._device)
        return _means([[a.elapsed_time(b) for a, b in pairwise(m)] for m in marks])


def _means(laps: list[list[float]]) -> list[float]:
    return [sum(phase) / len(laps) for phase in zip(*laps, strict=True)]


def in_turns(
    runs: Mapping[str, Run],
    device: torch.device,
    *,
    seconds: float,
    least: int = 3,
    most: int = 25,
    on_turn: Callable[[int], None] | None = None,
) -> dict[str, list[list[float]]]:
    """Milliseconds of every phase of every candidate, one sample of each in turn.

    Args:
        runs: the candidates.
        device: where they run.
        seconds: what each candidate may take in all. One that has used it up is not timed again,
            but not before ``least`` samples, unless a single one took longer.
        least: smallest number of samples.
        most: largest number of samples.
        on_turn: called after each turn with how many there were.

    Returns:
        For each candidate its samples, each a list of milliseconds a phase. A sample is the mean of
        as many executions as fill a millisecond or two.
    """
    watch = Stopwatch(device)
    samples: dict[str, list[list[float]]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    repeats = {}
    for name, run in runs.items():
        # The gate has run every candidate before; this one warms caches and estimates.
        first = watch(run)
        repeats[name] = max(1, min(50, math.ceil(2.0 / sum(first))))
        # The first alone may have been disturbed by another process: it decides only if far beyond.
        if sum(first) / 1e3 > 5 * seconds:
            samples[name].append(first)
        elif sum(first) / 1e3 > seconds and sum(again := watch(run)) / 1e3 > seconds:
            samples[name].append(again)
    slow = {name for name in runs if samples[name]}
    for turn in range(most):
        for name, run in runs.items():
            if name in slow or (spent[name] > seconds and turn >= least):
                continue
            found = watch(run, repeats[name])
            samples[name].append(found)
            spent[name] += sum(found) * repeats[name] / 1e3
        if on_turn is not None:
            on_turn(turn + 1)
    return samples


def percentiles(samples: Iterable[float]) -> list[float]:
    """Median, 20th and 80th percentile."""
    levels = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    return torch.tensor(list(samples), dtype=torch.float64).quantile(levels).tolist()


def milliseconds(samples: list[list[float]], phases: tuple[str, ...]) -> dict[str, list[float]]:
    """[median, p20, p80] of every phase, and of their sum under ``"total"``."""
    table = {
        name: percentiles(column)
        for name, column in zip(phases, zip(*samples, strict=True), strict=True)
    }
    if len(phases) > 1:
        table["total"] = percentiles(sum(sample) for sample in samples)
    return table


@dataclass(frozen=True)
class Problem:
    """Matrices, a cotangent and the exact answers in double precision.

    Attributes:
        a: shape (b, n, n).
        g: the cotangent, same shape.
        root: ``"sqrt"`` or ``"inv_sqrt"``.
    """

    a: Tensor
    g: Tensor
    root: RootName
    value: Tensor = field(init=False)
    gradient: Tensor = field(init=False)
    cond: float = field(init=False)

    def __post_init__(self) -> None:
        double = torch.complex128 if self.a.is_complex() else torch.float64
        values, q = torch.linalg.eigh(self.a.to(double))
        self._set_answers(
            values.clamp(min=0).sqrt(), q, float((values[..., -1] / values[..., 0]).max())
        )

    def _set_answers(self, s: Tensor, q: Tensor, cond: float) -> None:
        """Set the answers from the eigenpairs of the root."""
        inverse = self.root == "inv_sqrt"
        sums = s[..., :, None] + s[..., None, :]
        weights = 1 / (-sums * s[..., :, None] * s[..., None, :] if inverse else sums)
        g = (self.g + self.g.mH).to(q.dtype) / 2
        answers = {
            "value": (q * (1 / s if inverse else s)[..., None, :]) @ q.mH,
            "gradient": q @ ((q.mH @ g @ q) * weights) @ q.mH,
            "cond": cond,
        }
        for name, answer in answers.items():
            object.__setattr__(self, name, answer)


@dataclass(frozen=True)
class SquareProblem(Problem):
    """A problem A = S² in double precision, S known to the last digit.

    In double precision, a reference from the eigenvalues of A would have the same rounding errors
    as most candidates. The root here is S itself; all else comes from the eigenvalues of S, which
    lose √κ instead of κ.
    """

    s: Tensor

    def __post_init__(self) -> None:
        values, q = torch.linalg.eigh(self.s)
        self._set_answers(values, q, float((values[..., -1] / values[..., 0]).max()) ** 2)
        if self.root == "sqrt":
            object.__setattr__(self, "value", self.s)


def gate(problem: Problem, *, truncated: bool) -> float:
    """The relative error that the root may have.

    ``matroot.testing.tolerance`` of a converged method at this dtype and condition number;
    ``APPROXIMATE`` for a truncated one, and at most that for all.
    """
    if truncated:
        return APPROXIMATE
    return min(APPROXIMATE, tolerance(problem.a.dtype, problem.cond, problem.root))


def judged(
    problem: Problem,
    run: Callable[[], tuple[Tensor, Tensor | None]],
    *,
    truncated: bool,
) -> Row:
    """Errors of a candidate and whether it passes its gate.

    Returns:
        ``error`` and ``gradient_error``, the largest of the batch, ``gate``, ``passed``, and in
        ``why`` the reason if not.
    """
    allowed = gate(problem, truncated=truncated)
    row: Row = {"error": None, "gradient_error": None, "gate": allowed, "passed": False}
    try:
        value, gradient = run()
    # A peer may raise anything, and a benchmark goes on; Ctrl-C is no Exception.
    except Exception as error:
        return {**row, "why": f"raises {describe(error)}"}
    for found, expected in ((value, problem.value), (gradient, problem.gradient)):
        if found is not None and found.shape != expected.shape:
            return {**row, "why": f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"}
    row["error"] = float(relative_error(value, problem.value).max())
    if gradient is not None:
        row["gradient_error"] = float(relative_error(gradient, problem.gradient).max())
    # Written so that NaN fails.
    if not row["error"] <= allowed:
        finite = math.isfinite(row["error"])
        what = f"error {row['error']:.1e}" if finite else "not finite"
        return {**row, "why": f"{what}, allowed {allowed:.1e}"}
    if gradient is not None and not math.isfinite(row["gradient_error"]):
        return {**row, "passed": True, "why": "gradient not finite"}
    return {**row, "passed": True, "why": None}


def describe(error: BaseException) -> str:
    """The error in a short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__
