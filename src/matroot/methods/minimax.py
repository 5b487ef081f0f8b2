"""Coupled iteration with minimax steps: the root and the inverse root by products alone.

With Y₀ = A/c, Z₀ = I, c ≥ λ_max, and an odd polynomial p(t) = t·h(t²) of degree 3 or 5 a step,

    P = Z Y,  H = h(P),  Y ← Y H,  Z ← H Z;    A^{1/2} = √c Y,  A^{-1/2} = Z/√c.

On an eigenvalue t² of P a step maps t to p(t). Each p is the best approximation of 1 on the
interval that the steps before left, which is optimal for the composition (Amsel, Persson, Musco and
Gower, "The Polar Express", arXiv 2505.16932). The cubic has a closed form (Grishina, Smirnov and
Rakhuba, "CANS", arXiv 2506.10935); the quintic is found by Remez exchange.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from matroot import checks, spd
from matroot.backends import Backend
from matroot.methods.coupled import grown
from matroot.methods.eigh import Eigh
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
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=low.dtype, device=low.device).expand(
        *low.shape, 4
    )
    for _ in range(12):
        t = torch.cat([left[..., None], inner, torch.ones_like(left)[..., None]], -1)
        system = torch.stack([t, t**3, t**5, signs], -1)
        solution = torch.linalg.solve(system, torch.ones_like(t))
        a, b, c = solution[..., 0], solution[..., 1], solution[..., 2]
        root = (9 * b.square() - 20 * a * c).clamp(min=0).sqrt()
        squares = torch.stack([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)], -1)
        inner = squares.clamp(min=0).sqrt()
    newton = torch.tensor([1.875, -1.25, 0.375], dtype=low.dtype, device=low.device)
    coefficients = torch.where(flat[..., None], newton, solution[..., :3])
    return coefficients, torch.where(flat, (1 - low.square()) ** 3, solution[..., 3].abs())


_OCTAVE = 64  # Schedules are tabulated for c/λ_min = 2^(i/64) …
_OCTAVES = 52  # … up to the rounding of float64,
_STEPS = {3: 40, 5: 16}  # which takes so many steps.


def schedules(step_degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The best steps for every interval: a, b, c of h(s) = a + b s + c s² and the error after it.

    Returns:
        Shape (grid, steps, 4), made once for a dtype and device.
    """
    # Shields the cached table from the modes of whoever asks first: it must be an ordinary tensor.
    with torch.inference_mode(False), _disable_current_modes():
        return _schedules(step_degree, dtype, device)


# What torch.compiler.assume_constant_result does, less the import of the compiler: the table is
# taken for what it is instead of being traced.
schedules._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache
def _schedules(step_degree: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    best = best_cubic if step_degree == 3 else best_quintic
    grid = torch.arange(_OCTAVES * _OCTAVE + 1, dtype=torch.float64, device="cpu")
    low, high = torch.exp2(-grid / (2 * _OCTAVE)), torch.ones_like(grid)
    powers = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64, device="cpu")
    coefficients, errors = [], []
    for _ in range(_STEPS[step_degree]):
        p, error = best(low / high)
        coefficients.append(p / high[:, None] ** powers)
        errors.append(error)
        low, high = 1 - error, 1 + error
    table = torch.cat([torch.stack(coefficients, 1), torch.stack(errors, 1)[..., None]], -1)
    return table.to(device=device, dtype=dtype)


@dataclass(frozen=True)
class Minimax(Method):
    """Coupled minimax iteration: products only, accurate to the dtype at any condition number.

    The interval of the steps is found for each matrix: c is a rigorous upper bound of λ_max, and
    λ_min is bounded below by a Cholesky factorisation. Where A is singular to rounding the matrix
    is done by ``Eigh`` on a CPU; elsewhere eigenvalues below n·e·c, e the rounding unit, are shrunk
    in the root, and a matrix comes back as NaN where negative eigenvalues that rounding left of
    zeros have grown.

    What a single-precision root gets wrong it gets wrong in the first step, where Y₁ = A Z₁ is
    rounded while the small eigenvalues of Y₁ are still small; later steps keep Y = A Z far better.
    So on a CPU that one product is made in double precision.

    Args:
        tol: relative error that the schedule aims at; None is 2 units of rounding.
        max_cond: a promise that λ_max/λ_min is not larger, which saves finding the bound. Beyond
            it eigenvalues are shrunk in the root and capped in the inverse, and ``converged`` of
            ``sqrtm_ex`` is False (which may miss a promise broken by less than half).
        max_steps: at most so many steps; None is as many as ``tol`` needs.
        step_degree: 5 (4 products a step) or 3 (3 products).

    Note:
        Products for both roots with ``step_degree=5`` and ``tol=1e-6``: 14, 22, 26 up to c/λ_min of
        5e2, 1.7e5, 3e6; one less for one root. Finding the bound costs a Cholesky factorisation,
        a triangular solve and a product.
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
            if self.max_cond < 1:
                raise ValueError(f"Minimax(max_cond=…) must be at least 1, got {self.max_cond}")
        if self.max_steps is not None:
            checks.count(self, "max_steps", least=1)
        if type(self.step_degree) is not int or self.step_degree not in (3, 5):
            raise ValueError(f"Minimax(step_degree=…) must be 3 or 5, got {self.step_degree!r}")

    def solve(self, a: Tensor, root: Root, ops: Backend) -> Solution:
        """See Method.solve."""
        seen, square = a.detach(), ops.matmul(a, a)
        bounds, high, low = self._interval(seen, square.detach())
        schedule = self._schedule(seen, high / low)
        tol = 2 * spd.real_eps(a.dtype) if self.tol is None else self.tol
        wanted = 1 + (schedule[..., 3] > tol).sum(-1)
        always, most = 1, min(self.max_steps or schedule.shape[1], schedule.shape[1])
        needed = wanted.clamp(max=most)
        if checks.host_reads_are_free(a):
            always, most = int(needed.min()), int(needed.max())

        # h of P = Z Y/c takes the division by c, so that A is not rounded before the first product.
        c = high[:, None, None]
        h = (schedule[..., :3] / torch.cat([torch.ones_like(c), c, c.square()], -1))[..., None]
        z = spd.add_to_diagonal_(h[:, 0, 1, None] * a + h[:, 0, 2, None] * square, h[:, 0, 0])
        y = _product_in_double(a, z, ops)
        # How far P is from I before the last step, where the steps rest on a promise.
        deviation = spd.frobenius_norm(spd.add_to_diagonal_(seen / c, -1.0)).flatten()
        for step in range(1, most):
            p = ops.matmul(z, y)
            if self.max_cond is not None:
                norm = spd.frobenius_norm(spd.add_to_diagonal_(p.detach() / c, -1.0)).flatten()
                deviation = torch.where(needed == step + 1, norm, deviation)
            # D = H − I instead of H: what a step adds gets small, and its rounding with it.
            d = h[:, step, 1, None] * p
            if self.step_degree == 5:
                q = spd.add_to_diagonal_(h[:, step, 2, None] * p, h[:, step, 1])
                d = ops.matmul(p, q)
            d = spd.add_to_diagonal_(d, h[:, step, 0] - 1)
            final = step == most - 1
            new_z = z if final and root == "sqrt" else ops.addmm(z, d, z)
            new_y = y if final and root == "inv_sqrt" else ops.addmm(y, y, d)
            if step >= always:
                # Matrices that are done stand still, so that none feels how long others take.
                active = (needed > step)[:, None, None]
                new_y, new_z = torch.where(active, new_y, y), torch.where(active, new_z, z)
            y, z = new_y, new_z

        left = schedule[..., 3].gather(1, (needed - 1)[:, None])[:, 0]
        converged = needed == wanted
        if self.max_cond is not None:
            before = schedule[..., 3].gather(1, (needed - 2).clamp(min=0)[:, None])[:, 0]
            before = torch.where(needed > 1, 2.1 * before, 1 - low / high)
            slack = 10 * spd.real_eps(a.dtype) * (high / low).sqrt()
            converged &= deviation <= a.shape[-1] ** 0.5 * (before + slack)
            bounds = self._promised(high, low, converged, seen)
        solution = Solution(
            y / c.sqrt() if root != "inv_sqrt" else None,
            z / c.sqrt() if root != "sqrt" else None,
            steps=needed,
            bounds=bounds,
            converged=converged,
        )
        if bounds is not None and checks.host_reads_are_free(a):
            zero = spd.NULL_UNITS * spd.real_eps(a.dtype) * spd.largest_at_least(seen).flatten()
            return _with_eigh(a, solution, bounds.low_at_most <= zero, root, ops)
        # A step that is not the last leaves eigenvalues of Y up to 1 + error too large.
        trace = spd.trace(seen) / high * (1 + left).square()
        diverged = grown(y.detach() / c, z.detach(), trace, root)
        return replace(
            solution, diverged=diverged if bounds is None else diverged & (bounds.low <= 0)
        )

    def _interval(self, a: Tensor, square: Tensor) -> tuple[spd.Bounds | None, Tensor, Tensor]:
        """What is known of the spectrum, and c and the least eigenvalue to design the steps for."""
        if self.max_cond is not None:
            high = torch.minimum(spd.upper_bound(a), spd.upper_bound(square).sqrt()).flatten()
            high = spd.positive_or_one(high)
            low = spd.largest_at_least(a).flatten() / self.max_cond
            return None, high, torch.where(low > 0, low, high).minimum(high)
        bounds = spd.bounds(a, square)
        high = spd.positive_or_one(bounds.high)
        # Designing a singular matrix for more would let rounding's negative eigenvalues grow.
        units = torch.where(bounds.low > 0, spd.NULL_UNITS, max(a.shape[-1], spd.NULL_UNITS))
        return bounds, high, torch.maximum(bounds.low, units * spd.real_eps(a.dtype) * high)

    @staticmethod
    def _promised(high: Tensor, low: Tensor, kept: Tensor, a: Tensor) -> spd.Bounds | None:
        """The bounds that were promised; where a promise was not kept, or proves nothing, others.

        None where it costs a synchronisation to know whether any are needed.
        """
        if not checks.host_reads_are_free(a):
            return None
        kept = kept & (low > 4 * spd.NULL_UNITS * spd.real_eps(a.dtype) * high)
        if kept.all():
            return spd.Bounds(low, high, high)
        found = spd.bounds(a)
        return spd.Bounds(
            torch.where(kept, low, found.low),
            torch.where(kept, high, found.low_at_most),
            torch.where(kept, high, found.high),
        )

    def _schedule(self, a: Tensor, ratio: Tensor) -> Tensor:
        """The steps for c/λ_min of each matrix, rounded up to the grid, shape (b, steps, 4)."""
        table = schedules(self.step_degree, spd.real_dtype(a.dtype), a.device)
        if isinstance(a, FakeTensor):
            # The one way to bring an ordinary tensor among those without values.
            table = torch.ops.aten.lift_fresh_copy.default(table)
        return table[(ratio.clamp(1, 2.0**_OCTAVES).log2() * _OCTAVE).ceil().long()]


def _product_in_double(a: Tensor, b: Tensor, ops: Backend) -> Tensor:
    """AB in double precision, rounded once, where the device has it at speed: on a CPU."""
    if a.device.type != "cpu" or spd.real_dtype(a.dtype) == torch.float64:
        return ops.matmul(a, b)
    double = torch.complex128 if a.is_complex() else torch.float64
    return ops.matmul(a.to(double), b.to(double)).to(a.dtype)


def _with_eigh(a: Tensor, solution: Solution, which: Tensor, root: Root, ops: Backend) -> Solution:
    """The solution, with those matrices that are singular to rounding done by Eigh instead.

    Products would leave their null space at the root of rounding, of either sign, or grow it.
    """
    (index,) = torch.where(which)
    known = solution.bounds
    if len(index) == 0 or known is None:
        return solution
    other = Eigh().solve(a[index], root, ops)
    assert other.eigenvalues is not None
    values = other.eigenvalues.detach()
    low, high = values[:, 0].clamp(min=0), values.abs().amax(-1)

    def put(x: Tensor, y: Tensor) -> Tensor:
        return x.index_copy(0, index, y.to(x.dtype))

    return replace(
        solution,
        sqrt=None if root == "inv_sqrt" else put(_known(solution.sqrt), _known(other.sqrt)),
        inv_sqrt=None if root == "sqrt" else put(_known(solution.inv_sqrt), _known(other.inv_sqrt)),
        steps=put(torch.as_tensor(solution.steps), torch.ones_like(index)),
        bounds=spd.Bounds(put(known.low, low), put(known.low_at_most, low), put(known.high, high)),
    )


def _known(x: Tensor | None) -> Tensor:
    assert x is not None
    return x
