"""Other packages' square roots and matroot's: what they can do, how exactly, how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from matroot.bench.adapters import Absent, Thunk, quiet
from matroot.bench.candidates import problem_of
from matroot.bench.capabilities import PROBES, Probe, Subject
from matroot.bench.cases import Case, Settings
from matroot.bench.measure import (
    ROOTS,
    Lap,
    Problem,
    RootName,
    Run,
    describe,
    in_turns,
    judged,
    milliseconds,
)
from matroot.bench.packages import Peer
from matroot.bench.rows import Row


def capability(settings: Settings, peers: Sequence[Peer]) -> list[Case]:
    """What each peer can do: a case for each question."""

    def measure(probe: Probe) -> list[Row]:
        found = []
        for peer in peers:
            subject = Subject(peer.functions, peer.adapter, peer.truncated, settings.device)
            with quiet():
                answer = probe.answer(subject)
            found.append({**_named(peer), "question": probe.question, **answer})
        return found

    return [
        Case(
            "capability",
            {"probe": probe.name, "dtype": probe.dtype},
            partial(measure, probe),
            10.0 if probe.name == "compile" else 1.0,
        )
        for probe in PROBES
    ]


def accuracy(settings: Settings, peers: Sequence[Peer]) -> list[Case]:
    """Errors of root and gradient against the condition number, n = 64."""
    batch = 1 if settings.quick else 4
    dtypes = [settings.dtype] if settings.quick else [settings.dtype, torch.float64]
    conds = (1e2, 1e4, 1e6) if settings.quick else (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)

    def measure(chosen: Settings, root: RootName, cond: float) -> list[Row]:
        problem = problem_of(chosen, root, batch, 64, cond)
        with quiet():
            return [_judged(problem, peer)[0] for peer in _with(root, peers)]

    return [
        Case(
            "accuracy",
            {"dtype": chosen.dtype_name, "root": root, "cond": cond, "batch": batch, "n": 64},
            partial(measure, chosen, root, cond),
            2.0,
        )
        # Without repetition, in this order.
        for chosen in (replace(settings, dtype=dtype) for dtype in dict.fromkeys(dtypes))
        for root in ROOTS
        for cond in conds
    ]


BATCHES = ((1024, 8), (1024, 16), (256, 32), (64, 48), (256, 64), (64, 128), (16, 256))
SHAPES: dict[RootName, tuple[tuple[int, int], ...]] = {
    "sqrt": (*BATCHES, (1, 64), (1, 512)),
    # Fewer: the inverse costs what the root costs.
    "inv_sqrt": ((1024, 16), (64, 48), (64, 128), (1, 64)),
}
# 1×64: OTT-JAX, which takes seconds to compile, has been compiled for it in ``accuracy``.
QUICK = ((256, 16), (64, 32), (1, 64))


def speed(settings: Settings, peers: Sequence[Peer]) -> list[Case]:
    """Root, and root with gradient, at κ = 1e4, in turns."""

    def measure(root: RootName, batch: int, n: int) -> list[Row]:
        problem = problem_of(settings, root, batch, n, 1e4)
        with quiet():
            return _timed(problem, _with(root, peers), settings)

    chosen = [(root, shape) for root in ROOTS for shape in SHAPES[root]]
    if settings.quick:
        chosen = [*(("sqrt", shape) for shape in QUICK), ("inv_sqrt", QUICK[-1])]
    return [
        Case(
            "speed",
            {"root": root, "batch": batch, "n": n, "cond": 1e4},
            partial(measure, root, batch, n),
            2 * len(peers) * settings.seconds + 5e-7 * batch * n**3 + 0.07 * n,
        )
        for root, (batch, n) in chosen
    ]


def memory(settings: Settings, peers: Sequence[Peer]) -> list[Case]:
    """Peak memory of root and gradient: a case for each peer, in a process of its own."""
    batch, n = (2048, 16) if settings.quick else (512, 64)

    def measure(peer: Peer, root: str) -> list[Row]:
        arguments = (peer.name, root, batch, n, settings.dtype_name, settings.device)
        return [{**_named(peer), **_in_process(*map(str, arguments))}]

    return [
        Case(
            "memory",
            {"candidate": peer.name, "root": root, "batch": batch, "n": n},
            partial(measure, peer, root),
            4.0,
        )
        for peer in peers
        for root in (next(root for root in ROOTS if root in peer.functions),)
    ]


EXPERIMENTS: dict[str, Callable[[Settings, Sequence[Peer]], list[Case]]] = {
    "capability": capability,
    "accuracy": accuracy,
    "speed": speed,
    "memory": memory,
}


def _named(peer: Peer) -> Row:
    return {"candidate": peer.name, "version": peer.version}


def _with(root: RootName, peers: Sequence[Peer]) -> list[Peer]:
    return [peer for peer in peers if root in peer.functions]


def _judged(problem: Problem, peer: Peer) -> tuple[Row, dict[str, Thunk]]:
    """The row of errors, and the executions that work, under ``"forward"`` and ``"both"``."""
    function, adapter = peer.functions[problem.root], peer.adapter
    thunks: dict[str, Thunk] = {}
    lost = None

    def run() -> tuple[Tensor, Tensor | None]:
        nonlocal lost
        forward = adapter.forward(function, problem.a)
        (value,) = adapter.tensors(forward())
        thunks["forward"] = forward
        try:
            both = adapter.both(function, problem.a, (problem.g,))
            gradient = adapter.tensors(both())[-1]
        except Absent:
            return value, None
        # Whatever the gradient raises, the root counts.
        except Exception as error:
            lost = f"gradient raises {describe(error)}"
            return value, None
        thunks["both"] = both
        return value, gradient

    row = judged(problem, run, truncated=peer.truncated)
    return {**_named(peer), **row, "why": row["why"] or lost}, thunks


def _timed(problem: Problem, peers: Sequence[Peer], settings: Settings) -> list[Row]:
    """Gate, then time; a peer that raises or fails stays in the rows, with the reason."""
    found = []
    runs: dict[str, dict[str, Run]] = {"forward": {}, "both": {}}
    for peer in peers:
        row, thunks = _judged(problem, peer)
        found.append(row)
        for phase, thunk in thunks.items():
            runs[phase][peer.name] = _as_run(thunk)
    for row in found:
        row["ms"] = {}
    for phase, candidates in runs.items():
        samples = in_turns(candidates, settings.device, seconds=settings.seconds)
        for row in found:
            if row["candidate"] in samples:
                row["ms"] |= milliseconds(samples[row["candidate"]], (phase,))
    return found


def _as_run(thunk: Thunk) -> Run:
    def run(lap: Lap) -> None:
        thunk()
        lap()

    return run


# The C library's initial thresholds, fixed: otherwise it raises them as memory is freed, keeps that
# memory, and its reuse would not be counted.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def _in_process(*arguments: str, timeout: float = 120.0) -> Row:
    """The row of ``python -m matroot.bench.memory``."""
    command = [sys.executable, "-m", "matroot.bench.memory", *arguments]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    environment = {**os.environ, **_MALLOC, **threads}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        return {"memory": None, "why": f"not finished after {timeout:g} s"}
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return {"memory": None, "why": f"fails: {last[:120]}"}
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row
