"""Powers, logarithm and exponential beside sqrtm and other packages: how exactly, how fast.

python benchmarks/functions.py measure    some three minutes; rows to benchmarks/results
python benchmarks/functions.py write      the table in docs/performance.md

One thread, candidates in turns. Other packages are measured where they are installed (geoopt,
pyriemann, torchspd).
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpmath
import torch
from numerics import command, fill, load, table
from torch import Tensor

import matroot
from matroot import functions
from matroot.bench.measure import in_turns, milliseconds
from matroot.bench.rows import Row, pick
from matroot.testing import random_spd, relative_error

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks/results/functions-cpu.jsonl"
PAGE = ROOT / "docs/performance.md"

SHAPES = ((1024, 16), (256, 64))
CONDITIONS = (1e1, 1e3, 1e5)
OURS: dict[str, tuple[functions.SpectralFunction, Callable[[Tensor], Tensor]]] = {
    "sqrt": (functions.Sqrt(), matroot.sqrtm),
    "power 0.3": (functions.Power(0.3), lambda a: matroot.powm(a, 0.3)),
    "power -1/4": (functions.Power(-0.25), lambda a: matroot.powm(a, -0.25)),
    "log": (functions.Log(), matroot.logm),
    "exp": (functions.Exp(), matroot.expm),
}
Peers = dict[str, Callable[[Tensor], Tensor]]


def _pyriemann() -> Peers:
    from pyriemann.geometry import base

    def of(function: Callable[..., Any], *arguments: float) -> Callable[[Tensor], Tensor]:
        return lambda a: torch.from_numpy(function(a.detach().numpy(), *arguments))

    return {
        "sqrt": of(base.sqrtm),
        "power 0.3": of(base.powm, 0.3),
        "power -1/4": of(base.powm, -0.25),
        "log": of(base.logm),
        "exp": of(base.expm),
    }


def _geoopt() -> Peers:
    from geoopt import linalg

    return {"sqrt": linalg.sym_sqrtm, "log": linalg.sym_logm, "exp": linalg.sym_expm}


def _torchspd() -> Peers:
    import torchspd

    return {
        "sqrt": torchspd.sqrtm,
        "power 0.3": lambda a: torchspd.powm(a, 0.3),
        "power -1/4": lambda a: torchspd.powm(a, -0.25),
        "log": torchspd.logm,
        "exp": torchspd.expm,
    }


PEERS = {"pyriemann": _pyriemann, "geoopt": _geoopt, "torchspd": _torchspd}
DIFFERENTIABLE = ("matroot", "geoopt", "torchspd")


def candidates(name: str) -> Peers:
    """matroot, and the packages that are installed and have this function."""
    found = {"matroot": OURS[name][1]}
    for package, load_package in PEERS.items():
        try:
            theirs = load_package()
        except ImportError:
            continue
        if name in theirs:
            found[package] = theirs[name]
    return found


def exact(name: str, values: Any, q: Any) -> Tensor:
    """f(A) from eigenpairs of 40 digits, rounded to double precision."""
    function = OURS[name][0]
    with mpmath.workdps(40):
        if function.degree is not None:
            f = [x ** mpmath.mpf(function.degree) for x in values]
        else:
            f = [(mpmath.log if name == "log" else mpmath.exp)(x) for x in values]
        return torch.tensor((q * mpmath.diag(f) * q.T).tolist(), dtype=torch.float64)


@functools.cache
def problems(n: int, dtype: torch.dtype) -> list[tuple[Tensor, Any, Any]]:
    """A matrix of each condition number, and the eigenpairs of its very numbers."""
    found = []
    for cond in CONDITIONS:
        a = random_spd(n, cond=cond, dtype=dtype)
        with mpmath.workdps(40):
            found.append((a, *mpmath.eigsy(mpmath.matrix(a.double().tolist()))))
    return found


def measure() -> Iterator[Row]:
    """Errors in units of rounding, and milliseconds without and with a gradient."""
    torch.set_num_threads(1)
    for dtype, (batch, n), name in itertools.product((torch.float32, torch.float64), SHAPES, OURS):
        found = candidates(name)
        errors: dict[str, list[float]] = {candidate: [] for candidate in found}
        for matrix, values, q in problems(n, dtype):
            truth = exact(name, values, q)
            for candidate, function in found.items():
                error = relative_error(function(matrix[None])[0].double(), truth)
                errors[candidate].append(float(error) / torch.finfo(dtype).eps)
        a = random_spd(n, batch, cond=100, dtype=dtype)
        g = torch.randn_like(a)

        def forward(function: Callable[[Tensor], Tensor], a: Tensor = a) -> Callable[..., None]:
            def run(lap: Callable[[], None]) -> None:
                function(a)
                lap()

            return run

        def both(
            function: Callable[[Tensor], Tensor], a: Tensor = a, g: Tensor = g
        ) -> Callable[..., None]:
            x = a.clone().requires_grad_()

            def run(lap: Callable[[], None]) -> None:
                torch.autograd.grad(function(x), x, g)
                lap()

            return run

        runs: dict[str, Callable[..., None]] = {}
        for candidate, function in {"sqrtm": matroot.sqrtm, **found}.items():
            runs[f"{candidate} forward"] = forward(function)
            if candidate in ("sqrtm", *DIFFERENTIABLE):
                runs[f"{candidate} both"] = both(function)
        times = in_turns(runs, torch.device("cpu"), seconds=2.0, least=9)
        took = {key: milliseconds(times[key], ("total",))["total"] for key in runs}
        for candidate in found:
            yield {
                "kind": "functions",
                "function": name,
                "candidate": candidate,
                "version": importlib.metadata.version(candidate),
                "dtype": str(dtype).removeprefix("torch."),
                "batch": batch,
                "n": n,
                "units": errors[candidate],
                "forward": took[f"{candidate} forward"],
                "both": took.get(f"{candidate} both"),
                "sqrtm forward": took["sqrtm forward"],
                "sqrtm both": took["sqrtm both"],
            }


def functions_table(rows: list[Row]) -> str:
    """Those of matroot, as multiples of sqrtm's; of the others as multiples of matroot's."""
    head = ["function", "dtype", "batch×n", "package", "error, units", "forward", "and backward"]
    body = []
    for dtype, (batch, n), name in itertools.product(("float32", "float64"), SHAPES, OURS):
        same = pick(rows, function=name, dtype=dtype, batch=batch, n=n)
        (ours,) = [row for row in same if row["candidate"] == "matroot"] or [None]
        for row in same if ours else ():
            line = [name, dtype, f"{batch}×{n}", row["candidate"]]
            line.append(" · ".join(f"{x:.1f}" for x in row["units"]))
            for key in ("forward", "both"):
                if row[key] is None:
                    line.append("–")
                elif row is ours:
                    times = row[key][0] / row[f"sqrtm {key}"][0]
                    line.append(f"{row[key][0]:.3g} ms, {times:.2f} of sqrtm")
                else:
                    line.append(f"{row[key][0] / ours[key][0]:.1f} times matroot's")
            body.append(line)
    return table(head, body)


def write() -> None:
    """The table in docs/performance.md."""
    page = fill(PAGE.read_text(encoding="utf-8"), "functions", functions_table(load(ROWS)))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    command(__doc__, ROWS, {"functions": measure}, write)
