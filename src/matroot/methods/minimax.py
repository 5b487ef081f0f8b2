"""Coupled iteration with minimax steps: the root and the inverse root by products alone.

With Y₀ = A/c, Z₀ = I, c ≥ λ_max, and an odd polynomial p(t) = t·h(t²) of degree 3 or 5 a step,

    P = Z Y,  H = h(P),  Y ← Y H,  Z ← H Z;    A^{1/2} = √c Y,  A^{-1/2} = Z/√c.

On an eigenvalue t² of P a step maps t to p(t). Each p is the best approximation of 1 on the
interval that the steps before left, which is optimal for the composition (Amsel, Persson, Musco and
Gower, "The Polar Express", arXiv 2505.16932). The cubic has a closed form (Grishina, Smirnov and
Rakhuba, "CANS", arXiv 2506.10935); the quintic is found by Remez exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from matroot import checks, spd
from matroot.backends import Backend
from matroot.methods.coupled import grown
from matroot.methods.method import Method
from matroot.solution import Root, Solution


def best_cubic(low: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (a, b, 0) of the best a t + b t³ ≈ 1 on [low, 1], and its error."""
    mean = (1 + low + low.square()) / 3
    scale = 2 / (2 * mean**1.5 + low + low.square())
    coefficients = torch.stack([3 * mean * scale, -scale, torch.zeros_like(low)], -1)
    return coefficients, (2 * mean**1.5 - low - low.square()) * scale / 2


def best_quintic(low: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (a, b, c) of the best a t + b t³ + c t⁵ ≈ 1 on [low, 1], and its error.

    Remez exchange: the error takes its extreme value with alternating sign at low, two points
    between, and 1; the points between are where the derivative vanishes. Near low = 1, where the
    four points meet, Newton and Schulz's (15 t − 10 t³ + 3 t⁵)/8 is as good to rounding.
    """
    flat = low > 0.99
    left = torch.where(flat, 0.5, low)
    inner = torch.stack([(3 * left + 1) / 4, (left + 3) / 4], -1)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=low.dtype).expand(*low.shape, 4)
    for _ in range(12):
        t = torch.cat([left[..., None], inner, torch.ones_like(left)[..., None]], -1)
        system = torch.stack([t, t**3, t**5, signs], -1)
        solution = torch.linalg.solve(system, torch.ones_like(t))
        a, b, c = solution[..., 0], solution[..., 1], solution[..., 2]
        root = (9 * b.square() - 20 * a * c).clamp(min=0).sqrt()
        squares = torch.stack([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)], -1)
        inner = squares.clamp(min=0).sqrt()
    newton = torch.tensor([1.875, -1.25, 0.375], dtype=low.dtype)
    coefficients = torch.where(flat[..., None], newton, solution[..., :3])
    return coefficients, torch.where(flat, (1 - low.square()) ** 3, solution[..., 3].abs())


_OCTAVE = 64  # Schedules are tabulated for c/λ_min = 2^(i/64) …
_OCTAVES = 52  # … up to the rounding of float64,
_STEPS = {3: 40, 5: 16}  # which takes so many steps.


def schedules(step_degree: int) -> Tensor:
    """The best steps for every interval: a, b, c of h(s) = a + b s + c s² and the error after it.

    Returns:
        Shape (grid, steps, 4), float64.
    """
    return _schedules(step_degree)


# What torch.compiler.assume_constant_result does, less the import of the compiler: the table is
# taken for what it is instead of being traced.
schedules._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=2)
def _schedules(step_degree: int) -> Tensor:
    best = best_cubic if step_degree == 3 else best_quintic
    grid = torch.arange(_OCTAVES * _OCTAVE + 1, dtype=torch.float64)
    low, high = torch.exp2(-grid / (2 * _OCTAVE)), torch.ones_like(grid)
    coefficients, errors = [], []
    for _ in range(_STEPS[step_degree]):
        p, error = best(low / high)
        scale = high[:, None] ** torch.tensor([1.0, 3.0, 5.0], dtype=p.dtype)
        coefficients.append(p / scale)
        errors.append(error)
        low, high = 1 - error, 1 + error
    return torch.cat([torch.stack(coefficients, 1), torch.stack(errors, 1)[..., None]], -1)


@dataclass(frozen=True)
class Minimax(Method):
    """Coupled minimax iteration: products only, accurate to the dtype at any condition number.

    The interval of the steps is found for each matrix: c is a rigorous upper bound of λ_max, and
    λ_min is bounded below by ‖A⁻¹‖_F⁻¹ from a Cholesky factorisation; where there is none (A is
    singular to rounding) eigenvalues below n·e·c are shrunk in the root, e the rounding unit.

    Args:
        tol: relative error that the schedule aims at; None is 2 units of rounding.
        max_cond: a promise that λ_max/λ_min is not larger, which saves finding the bound. Beyond
            it eigenvalues are shrunk in the root and capped in the inverse.
        max_steps: at most so many steps; None is as many as ``tol`` needs.
        step_degree: 5 (4 products a step) or 3 (3 products).

    Note:
        Products for both roots with ``step_degree=5`` and ``tol=1e-6``: 14, 22, 26 up to c/λ_min of
        5e2, 1.7e5, 3e6. Finding the bound costs a Cholesky factorisation and an inverse, half a
        product.
    """

    tol: float | None = None
    max_cond: float | None = None
    max_steps: int | None = None
    step_degree: Literal[3, 5] = 5
    summary = "coupled iteration with minimax steps"

    def __post_init__(self) -> None:
        if self.tol is not None:
            checks.positive(self, "tol")
        if self.max_cond is not None:
            checks.positive(self, "max_cond")
        if self.max_steps is not None:
            checks.count(self, "max_steps", least=1)
        if self.step_degree not in (3, 5):
            raise ValueError(f"Minimax(step_degree=…) must be 3 or 5, got {self.step_degree!r}")

    def solve(self, a: Tensor, root: Root, ops: Backend) -> Solution:
        """See Method.solve."""
        bound = spd.positive_or_one(spd.upper_bound(a))
        y, identity = a / bound, spd.identity_like(a)
        index = self._index(a.detach(), bound.detach().flatten())
        table: Tensor = schedules(self.step_degree)
        most = min(self.max_steps or table.shape[1], table.shape[1])
        schedule = table.to(a.device)[index]
        coefficients = schedule.to(spd.real_dtype(a.dtype))[..., :3, None, None]
        tol = 2 * spd.real_eps(a.dtype) if self.tol is None else self.tol
        needed = (1 + (schedule[..., 3] > tol).sum(-1)).clamp(max=most)
        if checks.host_reads_are_free(a):
            most = int(needed.max())
        trace = spd.trace(y.detach())
        z = identity.expand_as(a)
        for step in range(most):
            p = ops.matmul(z, y) if step else y
            h = self._polynomial(p, coefficients[:, step], identity, ops)
            # Matrices that are done stand still, so that none feels how long others take.
            active = (needed > step)[:, None, None]
            last = step == most - 1
            new_z = (ops.matmul(h, z) if step else h) if not (last and root == "sqrt") else z
            new_y = ops.matmul(y, h) if not (last and root == "inv_sqrt") else y
            y, z = torch.where(active, new_y, y), torch.where(active, new_z, z)
        # A step that is not the last leaves eigenvalues of Y up to 1 + error too large.
        left = schedule.gather(1, (needed - 1)[:, None, None].expand(-1, 1, 4))[:, 0, 3]
        trace = trace * (1 + left.to(trace.dtype)).square()
        scale = bound.sqrt()
        return Solution(
            y * scale if root != "inv_sqrt" else None,
            z / scale if root != "sqrt" else None,
            steps=most,
            diverged=grown(y.detach(), z.detach(), trace, root),
        )

    def _polynomial(self, p: Tensor, abc: Tensor, identity: Tensor, ops: Backend) -> Tensor:
        """H = a I + b P (+ c P²) with a, b, c of each matrix, abc of shape (b, 3, 1, 1)."""
        if self.step_degree == 3:
            return abc[:, 0] * identity + abc[:, 1] * p
        return ops.addmm(abc[:, 0] * identity, p, abc[:, 1] * identity + abc[:, 2] * p)

    def _index(self, a: Tensor, bound: Tensor) -> Tensor:
        """The row of the schedule for each matrix: c/λ_min, rounded up to the grid."""
        eps = spd.real_eps(a.dtype)
        if self.max_cond is not None:
            low = spd.largest_at_least(a).flatten() / self.max_cond
        else:
            inverse, definite = spd.inverse_by_cholesky(a)
            low = spd.frobenius_norm(inverse).flatten().reciprocal()
            # Designing a singular matrix for more would let rounding's negative eigenvalues grow.
            floor = torch.where(definite, spd.NULL_UNITS, max(a.shape[-1], spd.NULL_UNITS))
            floor = floor * eps * bound
            low = torch.where(definite & (low > floor), low, floor)
        ratio = (bound / low).clamp(min=1, max=2.0**_OCTAVES)
        return (ratio.log2() * _OCTAVE).ceil().long()
