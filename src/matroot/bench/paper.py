"""The numerical tests of the paper, as cases that measure its methods, its baselines and matroot.

Song, Sebe, Wang: "Fast Differentiable Matrix Square Root and Inverse Square Root".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import matroot
from matroot.bench import published
from matroot.bench.candidates import (
    PHASES,
    Candidate,
    forward_backward,
    once,
    ours,
    plot_candidates,
    problem_of,
    side_by_side,
    table_candidates,
)
from matroot.bench.cases import Case, Settings
from matroot.bench.measure import ROOTS, RootName, SquareProblem, in_turns, milliseconds
from matroot.bench.rows import Row
from matroot.gradients import GradientRule, Lyapunov
from matroot.lyapunov_solvers import sign_step
from matroot.methods import Method, MethodName, NewtonSchulz, Pade, Taylor
from matroot.testing import exact, random_spd, relative_error

# Single matrices for the curves: eigenvalues x of A/c in (0, 1].
GRID = torch.logspace(-4, math.log10(0.999), 60, dtype=torch.float64)


def timed_case(
    settings: Settings,
    experiment: str,
    choose: Callable[[RootName, Tensor], dict[str, Candidate]],
    *,
    root: RootName,
    batch: int,
    n: int,
    cond: float,
    **fields: object,
) -> Case:
    """One problem, the candidates side by side."""

    def measure() -> list[Row]:
        problem = problem_of(settings, root, batch, n, cond)
        return side_by_side(problem, choose(root, problem.a), settings)

    shape = {"batch": batch, "n": n, "root": root, "cond": cond}
    weight = 10 * settings.seconds + 8e-8 * batch * n**3
    return Case(experiment, {**fields, **shape}, measure, weight)


def headline(settings: Settings) -> list[Case]:
    """The applications' shapes."""
    found = []
    for case in published.HEADLINE:
        batch = min(case.batch, 16) if settings.quick and case.n > 128 else case.batch
        for root in case.roots:
            choose = partial(table_candidates, application=case.name)
            found.append(
                timed_case(
                    settings,
                    "headline",
                    choose,
                    application=case.name,
                    root=root,
                    batch=batch,
                    n=case.n,
                    cond=1e2,
                )
            )
    return found


def _plotted(root: RootName, a: Tensor) -> dict[str, Candidate]:
    return plot_candidates(root)


def batch_sizes(settings: Settings) -> list[Case]:
    """Batches of 64×64."""
    batches = (1, 4, 16, 64) if settings.quick else (1, 4, 16, 64, 256)
    return [
        timed_case(settings, "batch", _plotted, root=root, batch=batch, n=64, cond=1e2)
        for root in ROOTS
        for batch in batches
    ]


def sizes(settings: Settings) -> list[Case]:
    """One matrix of growing size."""
    all_sizes = (16, 32, 64, 96, 128) if settings.quick else (16, 32, 64, 96, 128, 256, 512)
    return [
        timed_case(settings, "size", _plotted, root=root, batch=1, n=n, cond=1e2)
        for root in ROOTS
        for n in all_sizes
    ]


def condition_numbers(settings: Settings) -> list[Case]:
    """Sixteen matrices of 64×64 from well to badly conditioned."""
    batch = 4 if settings.quick else 16
    return [
        timed_case(settings, "condition", _plotted, root=root, batch=batch, n=64, cond=cond)
        for root in ROOTS
        for cond in (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
    ]


MATRICES = {16: 4000, 32: 2000, 64: 400, 96: 200, 128: 200}


def mean_errors(settings: Settings) -> list[Case]:
    """Mean |S − S_exact| of the root of X Xᵀ in float64, as the paper plots it.

    As many matrices in a quick run as in a full one: 16×16 matrices scatter by 14 %.
    """
    methods: dict[str, Method | MethodName] = {
        "MPA": Pade(5),
        "MTP": Taylor(10),
        "NS": NewtonSchulz(5, "trace"),
        "NS, Frobenius": NewtonSchulz(5, "frobenius"),
        "matroot": "auto",
    }

    def measure(n: int) -> list[Row]:
        generator = torch.Generator().manual_seed(n)
        x = torch.randn(MATRICES[n], n, n, dtype=torch.float64, generator=generator)
        a = (x @ x.mT).to(settings.device)
        truth = exact(a)
        return [
            {"candidate": name, "mae": float((matroot.sqrtm(a, method=m) - truth).abs().mean())}
            for name, m in methods.items()
        ]

    return [
        Case(
            "mae",
            {"n": n, "batch": count, "root": "sqrt", "dtype": "float64"},
            partial(measure, n),
            2e-9 * count * n**3,
        )
        for n, count in MATRICES.items()
    ]


_DEGREE_INPUTS: tuple[tuple[RootName, str, float | None], ...] = (
    ("sqrt", "gaussian", None),
    ("inv_sqrt", "κ = 1e2", 1e2),
)


def degrees(settings: Settings) -> list[Case]:
    """Taylor degree, Padé order and Newton–Schulz steps; root of X Xᵀ, inverse root at κ = 1e2.

    The library's own methods in PyTorch's operations, which take any degree.
    """
    methods: dict[str, Method] = {
        **{f"MTP {k}": Taylor(k) for k in range(6, 19, 2)},
        **{f"MPA {m}": Pade(m) for m in range(3, 9)},
        **{f"NS {s}": NewtonSchulz(s) for s in range(3, 9)},
    }
    batch = 4 if settings.quick else 16

    def measure(root: RootName, cond: float | None) -> list[Row]:
        problem = problem_of(settings, root, batch, 64, cond)
        options = {"gradient": Lyapunov(steps=8), "backend": "torch", "check_errors": False}
        candidates = {
            name: Candidate(ours(root, method=method, **options), truncated=True)
            for name, method in methods.items()
        }
        found = side_by_side(problem, candidates, settings)
        return [{**row, "x": int(row["candidate"].split()[1])} for row in found]

    return [
        Case(
            "degree",
            {"root": root, "matrices": name, "batch": batch, "n": 64},
            partial(measure, root, cond),
            20 * settings.seconds,
        )
        for root, name, cond in _DEGREE_INPUTS
    ]


def scalars(settings: Settings) -> list[Case]:
    """Each method's approximation of √x and 1/√x for one eigenvalue x of A/c."""
    methods: dict[str, Method | MethodName] = {
        "MTP-10": Taylor(10),
        "MPA-5": Pade(5),
        "NS-5": NewtonSchulz(5),
        "matroot": "auto",
    }

    def measure(root: RootName) -> list[Row]:
        found = []
        for name, method in methods.items():
            # diag(x, y) with norm 1 in the method's own normalisation.
            y = 1 - GRID if name.startswith("NS") else (1 - GRID**2).sqrt()
            a = torch.diag_embed(torch.stack([GRID, y], -1)).to(settings.device)
            values = ours(root, method=method)(a)[:, 0, 0]
            curve = {"x": GRID.tolist(), "y": values.tolist()}
            found.append({"candidate": name, "curve": curve})
        return found

    return [
        Case("scalar", {"root": root, "dtype": "float64"}, partial(measure, root), 0.2)
        for root in ROOTS
    ]


def convergence(settings: Settings) -> list[Case]:
    """‖B_k − I‖_F of the sign iteration from B₀ = S/√‖A‖_F, S by MPA, 64×64, float64."""

    def measure() -> list[Row]:
        found = []
        for cond in (1e1, 1e2, 1e4):
            a = random_spd(64, 1, cond=cond, device=settings.device)
            norm = torch.linalg.matrix_norm(a, keepdim=True)
            b, c = matroot.sqrtm(a, method=Pade(5)) / norm.sqrt(), torch.zeros_like(a)
            identity = torch.eye(64, dtype=a.dtype, device=a.device)
            steps, values = list(range(1, 11)), []
            for _ in steps:
                b, c = sign_step(b, c)
                values.append(float(torch.linalg.matrix_norm(b - identity)[0]))
            curve = {"x": steps, "y": values}
            found.append({"candidate": f"κ = {cond:.0e}", "cond": cond, "curve": curve})
        return found

    return [Case("convergence", {"n": 64, "dtype": "float64"}, measure, 0.2)]


def lyapunov_steps(settings: Settings) -> list[Case]:
    """The backward pass alone: 5 to 10 sign steps after the MPA root, and matroot's own solver.

    ``error`` is that of the Lyapunov equation of the computed root, ``gradient_error`` that of the
    gradient of A^{1/2}, which the error of the root limits.
    """
    rules: dict[str, GradientRule] = {
        **{f"{k} steps": Lyapunov(steps=k) for k in range(5, 11)},
        "squared Smith": Lyapunov(),
    }
    batch = 4 if settings.quick else 16

    def measure(cond: float) -> list[Row]:
        problem = problem_of(settings, "sqrt", batch, 64, cond)
        function = partial(matroot.sqrtm, method=Pade(), backend="torch", check_errors=False)
        with torch.no_grad():
            s = function(problem.a)
        # The gradient of a root is the solution of its Lyapunov equation.
        own = SquareProblem(problem.a, problem.g.double(), "sqrt", s.double())
        found: list[Row] = []
        runs = {}
        for name, rule in rules.items():
            rooted = partial(function, gradient=rule)
            _, gradient = once(rooted, problem.a, problem.g)
            found.append(
                {
                    "candidate": name,
                    "error": float(relative_error(gradient, own.gradient).max()),
                    "gradient_error": float(relative_error(gradient, problem.gradient).max()),
                }
            )
            runs[name] = forward_backward(rooted, problem.a, problem.g)
        times = in_turns(runs, settings.device, seconds=settings.seconds)
        return [{**row, "ms": milliseconds(times[row["candidate"]], PHASES)} for row in found]

    return [
        Case(
            "lyapunov",
            {"cond": cond, "batch": batch, "n": 64},
            partial(measure, cond),
            8 * settings.seconds,
        )
        for cond in (1e1, 1e2, 1e4)
    ]


EXPERIMENTS: dict[str, Callable[[Settings], list[Case]]] = {
    "headline": headline,
    "batch": batch_sizes,
    "size": sizes,
    "condition": condition_numbers,
    "degree": degrees,
    "mae": mean_errors,
    "scalar": scalars,
    "convergence": convergence,
    "lyapunov": lyapunov_steps,
}
