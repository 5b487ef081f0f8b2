"""Whether memory stays flat over very many calls, of every kind, errors among them.

python benchmarks/flat_memory.py --calls 1000000

Calls of several shapes, dtypes and methods, with and without gradients, with options that no two
calls share (caches must not grow with them), and calls that raise. Prints the resident memory after
the warm-up and at the end, in MiB, and how much it has grown by the call.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import typer

import matroot
from matroot.testing import random_spd

SHAPES = ((8, 2), (32, 3), (4, 16), (2, 33))
WARM_UP = 15_000
"""Calls before the first figure: the caches, of up to 1024 entries, are full then."""


def calls() -> Iterator[Callable[[], object]]:
    """Calls without end, all kinds in turns."""
    matrices = [
        random_spd(n, batch, cond=100, dtype=dtype)
        for batch, n in SHAPES
        for dtype in (torch.float32, torch.float64)
    ]
    indefinite = torch.diag(torch.tensor([1.0, -1.0, 2.0]))
    for i in itertools.count():
        a = matrices[i % len(matrices)]
        # Numbers that no two calls share.
        eps, p = 1e-3 + 1e-9 * i, 0.1 + 1e-7 * i
        yield lambda a=a: matroot.sqrtm(a)
        yield lambda a=a: _with_gradient(matroot.inv_sqrtm, a)
        yield lambda a=a: matroot.sqrtm_ex(a, root="both")
        yield lambda a=a, eps=eps: matroot.sqrtm(a, eps=eps, backend="native")
        yield lambda a=a, p=p: _with_gradient(matroot.powm, a, p)
        yield lambda: _refused(matroot.sqrtm, indefinite)
        yield lambda a=a, eps=eps: _with_gradient(matroot.sqrtm, a, method="pade", eps=eps)
        yield lambda: _refused(matroot.inv_sqrtm, torch.zeros(2, 2))
        yield lambda a=a: matroot.bures_wasserstein_distance(a, a.mT)
        yield lambda: _refused(matroot.sqrtm, torch.full((2, 3, 3), torch.nan))
        yield lambda a=a, tol=eps: matroot.sqrtm(a, method=matroot.methods.Minimax(tol=tol))


def _with_gradient(
    function: Callable[..., Any], a: torch.Tensor, *args: Any, **options: Any
) -> None:
    a = a.clone().requires_grad_()
    function(a, *args, **options).sum().backward()


def _refused(function: Callable[..., object], a: torch.Tensor) -> None:
    try:
        function(a)
    except torch.linalg.LinAlgError:
        return
    raise AssertionError("a bad matrix was taken")


def resident() -> float:
    """MiB in memory now."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def main(number: Annotated[int, typer.Option("--calls", min=1)] = 1_000_000) -> None:
    """Make so many calls, and say how memory has grown."""
    torch.set_num_threads(1)
    made = calls()
    for call in itertools.islice(made, WARM_UP):
        call()
    before, start = resident(), time.perf_counter()
    part = max(number // 10, 1)
    for done in range(0, number, part):
        for call in itertools.islice(made, min(part, number - done)):
            call()
        print(f"{min(done + part, number):>9,} calls: {resident():.1f} MiB", flush=True)
    after = resident()
    print(
        f"{number:,} calls in {time.perf_counter() - start:.0f} s: {before:.1f} MiB before, "
        f"{after:.1f} after: {(after - before) * 2**20 / number:.2f} bytes a call"
    )


if __name__ == "__main__":
    typer.run(main)
