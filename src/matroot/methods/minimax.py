"""Coupled iteration with minimax steps: the root and the inverse root by products alone.

With Y₀ = A/c, Z₀ = I, c ≥ λ_max, and an odd polynomial p(t) = t·h(t²) of degree 3 or 5 a step,

    P = Z Y,  H = h(P),  Y ← Y H,  Z ← H Z;    A^{1/2} = √c Y,  A^{-1/2} = Z/√c.

On an eigenvalue t² of P a step maps t to p(t). Each p is the best approximation of 1 on the
interval that the steps before left; see ``matroot.schedules``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from matroot import checks, context, spd, spectrum
from matroot.methods.coupled import diverged
from matroot.methods.eigh import Eigh
from matroot.methods.method import Method
from matroot.roots import Functions, Wanted, roots_in_order, wanted_roots
from matroot.schedules import OCTAVE, OCTAVES, fixed_schedule, largest_errors, schedules
from matroot.solution import Solution


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

    Under ``torch.export`` (and so for ONNX) nothing is factorised: every matrix takes the steps for
    ``max_cond``, or else for eigenvalues down to n·e·c, and comes back as NaN where the result is
    no root to 1 % (the inverse: to 10 %, checked only without ``max_cond``).
    Without ``max_cond`` the error is up to 1e-10 in float64, and 1e-4 in singular float32 matrices.

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

    def solve(self, a: Tensor, functions: Functions) -> Solution:
        """The roots after as many steps as each matrix needs, and bounds of its spectrum."""
        if context.exporting():
            return self._exported(a, functions)
        seen, square = a.detach(), torch.bmm(a, a)
        bounds, high, low = self._interval(seen, square.detach())
        schedule = self._schedule(seen, high / low)
        enough, needed, most = self._counts(seen, schedule)
        wanted, c = wanted_roots(functions), high[:, None, None]
        y, z, deviation = self._iterated(a, square, c, schedule, needed, most, wanted)

        converged = needed == enough
        if deviation is not None:
            before = schedule[..., 3].gather(1, (needed - 2).clamp(min=0)[:, None])[:, 0]
            before = torch.where(needed > 1, 2.1 * before, 1 - low / high)
            slack = 10 * spd.real_eps(a.dtype) * (high / low).sqrt()
            converged &= deviation <= a.shape[-1] ** 0.5 * (before + slack)
            bounds = self._promised(high, low, converged, seen)
        sqrt, inv_sqrt = (x / c.sqrt() if w else None for x, w in zip((y, z), wanted, strict=True))
        values = roots_in_order(functions, sqrt, inv_sqrt)
        solution = Solution(functions, values, needed, bounds=bounds, converged=converged)
        if bounds is not None and context.host_reads_are_free(a):
            zero = spd.null_share(a.shape[-1], a.dtype) * spd.largest_at_least(seen).flatten()
            return _with_eigh(a, solution, bounds.low_at_most <= zero)
        # A step that is not the last leaves eigenvalues of Y up to 1 + error too large.
        left = schedule[..., 3].gather(1, (needed - 1)[:, None])[:, 0]
        trace = spd.trace(seen) / high * (1 + left).square()
        wrong = diverged(y.detach() / c, z.detach(), trace, wanted)
        return replace(solution, diverged=wrong if bounds is None else wrong & (bounds.low <= 0))

    def _counts(self, a: Tensor, schedule: Tensor) -> tuple[Tensor, Tensor, int]:
        """Steps until the error is ``tol``; steps to be taken; how many the loop is run, at most.

        The first two are of shape (b,).
        """
        tol = 2 * spd.real_eps(a.dtype) if self.tol is None else self.tol
        enough = 1 + (schedule[..., 3] > tol).sum(-1)
        most = schedule.shape[1]
        if self.max_steps is not None:
            most = min(most, context.constant(self.max_steps))
        needed = enough.clamp(max=most)
        if context.host_reads_are_free(a):
            return enough, needed, int(needed.max())
        # What _interval designs for at most: to rounding, or, by a promise, for bounds of λ_max
        # that are at most n^{1/4} times too high and n^{1/2} times too low. (A compiled program
        # may not know n.)
        ratio = None
        if self.max_cond is not None and not torch.compiler.is_compiling():
            ratio = 1.01 * self.max_cond * a.shape[-1] ** 0.75
        errors = largest_errors(context.constant(self.step_degree), spd.real_dtype(a.dtype), ratio)
        return enough, needed, min(most, 1 + len([error for error in errors if error > tol]))

    def _iterated(
        self,
        a: Tensor,
        square: Tensor,
        c: Tensor,
        schedule: Tensor,
        needed: Tensor,
        most: int,
        wanted: Wanted,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """√c A^{1/2} and √c A^{-1/2}, those that are wanted.

        And ‖P − I‖_F before the last step, shape (b,), where the steps rest on a promise.
        """
        # h of P = Z Y/c takes the division by c, so that A is not rounded before the first product.
        h = (schedule[..., :3] / torch.cat([torch.ones_like(c), c, c.square()], -1))[..., None]
        # Converged matrices stay fixed (H = I): what others need makes no difference to them.
        done = torch.arange(h.shape[1], device=a.device) >= needed[:, None]
        h = torch.where(done[..., None, None], 0.0, h)
        h[:, :, 0] += done[..., None]
        z = spd.add_to_diagonal_(h[:, 0, 1, None] * a + h[:, 0, 2, None] * square, h[:, 0, 0])
        y = _product_in_double(a, z)
        deviation = None if self.max_cond is None else _from_identity(a.detach() / c)
        for step in range(1, most):
            p = torch.bmm(z, y)
            if deviation is not None:
                norm = _from_identity(p.detach() / c)
                deviation = torch.where(needed == step + 1, norm, deviation)
            d = self._rest(h[:, step], p)
            final = step == most - 1
            y, z = (
                torch.baddbmm(y, y, d) if wanted.sqrt or not final else y,
                torch.baddbmm(z, d, z) if wanted.inv_sqrt or not final else z,
            )
        return y, z, deviation

    def _rest(self, h: Tensor, p: Tensor) -> Tensor:
        """D = h(P) − I: what a step adds gets small, and its rounding with it; h (b, 3, 1)."""
        d = h[:, 1, None] * p
        if self.step_degree == 5:
            d = torch.bmm(p, spd.add_to_diagonal_(h[:, 2, None] * p, h[:, 1]))
        return spd.add_to_diagonal_(d, h[:, 0] - 1)

    def _exported(self, a: Tensor, functions: Functions) -> Solution:
        """The same for programs that run elsewhere: one schedule for all, products alone.

        No factorisation tells what the spectrum is, so the steps are those for ``max_cond``, or for
        eigenvalues down to rounding; the result shows whether it is a root.
        """
        n, unit, wanted = a.shape[-1], spd.real_eps(a.dtype), wanted_roots(functions)
        c = spd.positive_or_one(spd.upper_bound(a, torch.bmm(a, a)))
        # c may be n^{1/4} λ_max. More than 1/(n·e) would let rounding's negative eigenvalues grow.
        ratio = 1 / (max(n, spd.NULL_UNITS) * unit)
        if self.max_cond is not None:
            ratio = min(ratio, self.max_cond * n**0.25)
        tol = 2 * unit if self.tol is None else self.tol
        steps = fixed_schedule(context.constant(self.step_degree), ratio, tol, self.max_steps)
        y, z = a / c, spd.identity_like(a)
        for step, coefficients in enumerate(steps):
            h = torch.tensor(coefficients, dtype=spd.real_dtype(a.dtype), device=a.device)
            d = self._rest(h[None, :, None], torch.bmm(z, y) if step else y)
            final = step == len(steps) - 1
            y, z = (
                torch.baddbmm(y, y, d) if wanted.sqrt or not final else y,
                z if final and not wanted.inv_sqrt else torch.baddbmm(z, d, z) if step else z + d,
            )
        good = (y if wanted.sqrt else z).isfinite().all(-1).all(-1)
        if wanted.sqrt:
            wrong, norm = spd.frobenius_norm(torch.bmm(y, y) - a / c), spd.frobenius_norm(a / c)
            good &= (wrong <= 1e-2 * norm).flatten()
        if wanted.inv_sqrt and self.max_cond is None:
            good &= _from_identity(torch.bmm(z, torch.bmm(a / c, z))) <= 0.1
        values = roots_in_order(
            functions,
            y * c.sqrt() if wanted.sqrt else None,
            z / c.sqrt() if wanted.inv_sqrt else None,
        )
        return Solution(functions, values, len(steps), diverged=~good)

    def _interval(self, a: Tensor, square: Tensor) -> tuple[spd.Bounds | None, Tensor, Tensor]:
        """What is known of the spectrum, and c and the least eigenvalue to design the steps for."""
        if self.max_cond is not None:
            high = spd.positive_or_one(spd.upper_bound(a, square).flatten())
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
        if not context.host_reads_are_free(a):
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
        table = schedules(context.constant(self.step_degree), spd.real_dtype(a.dtype), a.device)
        if isinstance(a, FakeTensor) or context.fake_mode_active():
            # The one way to bring an ordinary tensor among those without values.
            table = torch.ops.aten.lift_fresh_copy.default(table)
        return table[(ratio.clamp(1, 2.0**OCTAVES).log2() * OCTAVE).ceil().long()]


def _from_identity(p: Tensor) -> Tensor:
    """‖P − I‖_F, shape (b,), of a P that is the caller's own and changes."""
    return spd.frobenius_norm(spd.add_to_diagonal_(p, -1.0)).flatten()


def _product_in_double(a: Tensor, b: Tensor) -> Tensor:
    """AB in double precision, rounded once, where the device has it at speed: on a CPU."""
    if context.on_accelerator(a) or spd.real_dtype(a.dtype) == torch.float64:
        return torch.bmm(a, b)
    return torch.bmm(spd.in_double(a), spd.in_double(b)).to(a.dtype)


def _with_eigh(a: Tensor, solution: Solution, which: Tensor) -> Solution:
    """The solution, with those matrices that are singular to rounding done by Eigh instead.

    Products would leave their null space at the root of rounding, of either sign, or grow it.
    """
    # The derivative of an eigendecomposition, where it is to be differentiated, would be NaN for
    # regular matrices with repeated eigenvalues: these must not come in.
    for index in which.nonzero() if a.requires_grad else spectrum.together(which, a.shape[-1]):
        other = Eigh().solve(a[index], solution.functions)
        solution = _replaced(solution, other, index, which[index])
    return solution


def _replaced(solution: Solution, other: Solution, index: Tensor, taken: Tensor) -> Solution:
    """The solution with what ``other`` has found of matrices ``index``, where ``taken``."""
    known, pairs = solution.bounds, other.spectrum
    assert known is not None
    assert pairs is not None
    values = pairs.values.detach()
    low, high = values[:, 0].clamp(min=0), values.abs().amax(-1)

    def put(x: Tensor, y: Tensor) -> Tensor:
        return x.index_copy(0, index[taken], y[taken].to(x.dtype))

    return replace(
        solution,
        values=tuple(map(put, solution.values, other.values)),
        steps=put(torch.as_tensor(solution.steps), torch.ones_like(index)),
        bounds=spd.Bounds(put(known.low, low), put(known.low_at_most, low), put(known.high, high)),
    )
