"""Candidates and problems of the paper's tests: what runs side by side, and on which matrices.

Candidates under a published name are the published algorithms in plain PyTorch operations
(``bench.baselines``); ``matroot`` is the default of this library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import matroot
from matroot.bench import baselines
from matroot.bench.cases import Settings
from matroot.bench.measure import (
    Lap,
    Problem,
    RootName,
    Run,
    SquareProblem,
    in_turns,
    judged,
    milliseconds,
)
from matroot.bench.rows import Row
from matroot.gradients import (
    Lyapunov,
    PowerIteration,
    SpectralClipped,
    SpectralNaive,
    SpectralPade,
    SpectralTaylor,
)
from matroot.gradients.published import PublishedRule
from matroot.kernels import NATIVE
from matroot.methods import Pade, Taylor
from matroot.nn.functional import power_normalization
from matroot.testing import random_spd

Function = Callable[[Tensor], Tensor]
PHASES = ("forward", "backward")
SVD_RULES: dict[str, PublishedRule] = {
    "SVD": SpectralNaive(),
    "SVD-Clip": SpectralClipped(),
    "SVD-Taylor": SpectralTaylor(),
    "SVD-Padé": SpectralPade(),
    "SVD-PI": PowerIteration(),
}


@dataclass(frozen=True)
class Candidate:
    """A differentiable root; ``truncated`` ones are approximations, not accurate to rounding."""

    function: Function
    truncated: bool = False


def ours(root: RootName, **options: Any) -> Function:
    """The library's function for this root with these options."""
    return partial(matroot.sqrtm if root == "sqrt" else matroot.inv_sqrtm, **options)


def plot_candidates(root: RootName) -> dict[str, Candidate]:
    """The candidates of the paper's plots, and two that it leaves out: eigh and matroot."""
    return {
        "SVD": Candidate(partial(baselines.svd, rule=SVD_RULES["SVD"], root=root)),
        "eigh": Candidate(partial(baselines.eigh_by_hand, root=root)),
        "NS, published": Candidate(
            partial(baselines.newton_schulz, root=root, published=True), truncated=True
        ),
        "NS": Candidate(partial(baselines.newton_schulz, root=root), truncated=True),
        "MPA-Lya": Candidate(partial(baselines.paper, forward="pade", root=root), truncated=True),
        "MTP-Lya": Candidate(partial(baselines.paper, forward="taylor", root=root), truncated=True),
        "matroot": Candidate(ours(root)),
    }


def table_candidates(root: RootName, a: Tensor, *, application: str) -> dict[str, Candidate]:
    """The candidates of the paper's tables for an application."""
    found = plot_candidates(root)
    variants = {
        name: Candidate(partial(baselines.svd, rule=rule, root=root))
        for name, rule in SVD_RULES.items()
    }
    found = {**variants, **found}
    if root == "sqrt" and "transformer" in application:
        found["PI"] = Candidate(power_normalization, truncated=True)
    if root == "sqrt" and "pooling" in application:
        count = max(1, 3 * a.shape[-1] // 4)
        found["SVD-TopN"] = Candidate(partial(baselines.truncated_svd, count=count), truncated=True)
    if NATIVE.declines(a) is None:
        for name, method in (("MPA-Lya", Pade()), ("MTP-Lya", Taylor())):
            function = ours(root, method=method, gradient=Lyapunov(steps=8), backend="native")
            found[f"{name}, matroot's kernels"] = Candidate(function, truncated=True)
    return found


def forward_backward(function: Function, a: Tensor, g: Tensor) -> Run:
    """Root, then gradient, as two phases."""
    leaf = a.clone().requires_grad_()

    def run(lap: Lap) -> None:
        root = function(leaf)
        lap()
        torch.autograd.grad(root, leaf, g)
        lap()

    return run


def once(function: Function, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """The root and its gradient."""
    leaf = a.clone().requires_grad_()
    root = function(leaf)
    return root.detach(), torch.autograd.grad(root, leaf, g)[0]


def side_by_side(
    problem: Problem, candidates: dict[str, Candidate], settings: Settings
) -> list[Row]:
    """Gate, then time; a candidate that raises or fails stays in the rows, with the reason."""
    found = {
        name: judged(
            problem,
            partial(once, candidate.function, problem.a, problem.g),
            truncated=candidate.truncated,
        )
        for name, candidate in candidates.items()
    }
    runs = {
        name: forward_backward(candidates[name].function, problem.a, problem.g)
        for name, row in found.items()
        if not str(row["why"]).startswith("raises")
    }
    times = in_turns(runs, settings.device, seconds=settings.seconds)
    return [
        {
            "candidate": name,
            **row,
            "ms": milliseconds(times[name], PHASES) if name in times else None,
            "samples": len(times.get(name, ())),
        }
        for name, row in found.items()
    ]


def problem_of(
    settings: Settings, root: RootName, batch: int, n: int, cond: float | None = 1e2
) -> Problem:
    """Log-spaced spectra of this condition number; for ``None`` X Xᵀ with X Gaussian.

    In double precision, of a given condition number, with a root that is known in advance.
    """
    generator = torch.Generator().manual_seed(n)
    s = None
    if cond is None:
        x = torch.randn(batch, n, n, dtype=torch.float64, generator=generator)
        a = x @ x.mT
    elif settings.dtype == torch.float64:
        # Multiples of 2⁻²⁶ between −1 and 1: the products are multiples of 2⁻⁵², and no sum of them
        # in S² exceeds 1, so that nothing is rounded.
        s = (random_spd(n, batch, cond=math.sqrt(cond)) * 2**26).round() / 2**26
        a = s @ s
    else:
        a = random_spd(n, batch, cond=cond)
    g = torch.randn(batch, n, n, dtype=torch.float64, generator=generator)
    # Symmetric, since published gradients do not project on symmetric matrices.
    g = g + g.mT
    a, g = (x.to(dtype=settings.dtype, device=settings.device) for x in (a, g))
    return Problem(a, g, root) if s is None else SquareProblem(a, g, root, s.to(settings.device))
