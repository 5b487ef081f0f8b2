"""What an accelerator does between the products of a whole call: few passes, each of few launches.

Here each pass is made of PyTorch's operations; ``kernels/triton/passes.py`` has the same as fused
kernels. ``kernels/large.py`` puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from matroot import context, spd
from matroot.schedules import Steps
from matroot.screen import Status, Thresholds


@dataclass(frozen=True)
class Scaled:
    """X = (A + Aᴴ + 2 eps I)/scale, scale = 2·4ʲ, with entries up to 8 in magnitude.

    Attributes:
        x: shape (b, n, n).
        scale: shape (b,).
        known: what the pass has learnt for ``chosen``.
    """

    x: Tensor
    scale: Tensor
    known: tuple[Tensor, ...]


@dataclass(frozen=True)
class Chosen:
    """The steps of each matrix, and what its results are to be multiplied by.

    Attributes:
        steps: as ``Steps.rows``, divided by c and c², (b, steps + 2, 3).
        info: status, steps, whether converged, (b, 3), int64.
        factors: f in A^{1/2} = f (Y + Yᴴ), A^{-1/2} = f (Z + Zᴴ), (b, 2); NaN where the status is
            not OK.
        bounds: of the spectrum of A^{1/2}, (b, 2); the lower one 0 where A may be singular, or
            where that is not known; NaN as above.
        interval: of the spectrum of X: a lower bound, 0 where X may be singular, and c, (b, 2). (By
            a promise it may be wrong.)
    """

    steps: Tensor
    info: Tensor
    factors: Tensor
    bounds: Tensor
    interval: Tensor


class Passes(Protocol):
    """The passes; matrices are (b, n, n), numbers (b,)."""

    def scaled(self, a: Tensor, eps: float) -> Scaled:
        """A scaled by a power of 4, with its ridge."""
        ...

    def chosen(
        self,
        scaled: Scaled,
        square: Tensor,
        inverse: Tensor | None,
        failed: Tensor | None,
        limits: Thresholds,
        max_cond: float | None,
        steps: Steps,
    ) -> Chosen:
        """The steps by bounds of the spectrum: see ``spd.bounds``.

        c ≥ λ_max by Wolkowicz and Styan's bound for X², λ_min by the same for X⁻¹ where it is
        known and by ``max_cond`` where it is not.

        Args:
            scaled: X.
            square: X².
            inverse: X⁻¹ by Cholesky, or None.
            failed: not 0 where there was no factor, int32.
            limits: what decides on the status.
            max_cond: a promise of the condition number, or None.
            steps: the table.
        """
        ...

    def combination(
        self, d: Tensor, c: Tensor, p: Tensor, e: Tensor | None = None, q: Tensor | None = None
    ) -> Tensor:
        """D I + c P + e Q."""
        ...

    def shift(self, bounds: Tensor, least: float) -> Tensor:
        """1/μ for the shift μ = √(low high) of a spectrum, low at least ``least``·high."""
        ...

    def finished(self, x: Tensor, f: Tensor, failed: Tensor | None = None) -> Tensor:
        """F (X + Xᴴ), NaN where ``failed`` is not 0."""
        ...


_EXPONENT = {torch.float32: torch.int32, torch.float64: torch.int64}
# The bits of every second power of two, 2, 8, 32 …; of the sign and all that is smaller, none.
_EVERY_SECOND = {torch.float32: 0x7F000000, torch.float64: 0x7FE0000000000000}


def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers, made once for a dtype and device: each time they would be copied there."""
    with torch.inference_mode(False), _disable_current_modes():
        return _constant(values, dtype, device)


@lru_cache
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    context.refuse_capture(device)
    return torch.tensor(values, dtype=dtype, device=device)


def choose(
    n: int,
    largest: Tensor,
    scale: Tensor,
    skew: Tensor,
    norms: Tensor,
    traces: Tensor,
    failed: Tensor | None,
    limits: Thresholds,
    max_cond: float | None,
    steps: Steps,
) -> Chosen:
    """See Passes.chosen.

    Args:
        n: rows of a matrix.
        largest: max |a_ij|, (b,).
        scale: see Scaled.
        skew: ‖X − Xᴴ‖_F/2 before it was made Hermitian.
        norms: ‖·‖_F of X², of X⁻¹ if it is known, and of X, (2 or 3, b).
        traces: of the same.
        failed: see Passes.chosen; None where X⁻¹ is not known.
        limits: see Passes.chosen.
        max_cond: see Passes.chosen.
        steps: see Passes.chosen.
    """
    unit, squares = spd.real_eps(norms.dtype), norms.square()
    # Of X² and X⁻¹ upper bounds; of X⁻¹ and X what their largest eigenvalue is at least.
    count = len(norms) - 1
    known = norms.new_empty(2 * count, norms.shape[1])
    inflated = 1 + (8 + n) * unit
    # Above 0, so that c is a divisor where A = 0.
    variance = torch.addcmul(squares[:count], traces[:count], traces[:count], value=-1 / n)
    spread = variance.clamp_(min=100 * torch.finfo(norms.dtype).tiny).sqrt_()
    mean = traces[:count] * (inflated / n)
    torch.add(mean, spread, alpha=inflated * (max(n - 1, 1) / n) ** 0.5, out=known[:count])
    torch.div(squares[1:], traces[1:], out=known[count:])
    high = known[0].sqrt()
    kinds = [Status.NONFINITE, Status.ASYMMETRIC]
    wrong = [(largest - largest) != 0, skew > limits.skew * norms[-1]]
    if failed is None:
        assert max_cond is not None
        low = torch.minimum(known[1] / max_cond, high).nan_to_num_(0, 0, 0)
        interval = torch.stack([low, high], -1)
    else:
        # 0 where there is no factor, or where what follows from it overflows.
        below = ((failed == 0) / known[1:]).nan_to_num_(0, 0, 0)
        low, ratio = below[0], below[1] * below[2]
        interval = torch.stack([low * (ratio > 2 * limits.null), high], -1)
        if limits.singular is not None:
            kinds.append(Status.SINGULAR)
            wrong.append(ratio <= limits.singular)

    place = torch.bucketize(low / high, steps.bounds, right=True)
    rows, info = steps.rows[place], steps.info[place]
    taken = rows / high[:, None, None] ** constant((0.0, 1.0, 2.0), high.dtype, high.device)
    torch.amax(
        torch.stack(wrong, -1) * constant(tuple(kinds), info.dtype, info.device), -1, out=info[:, 0]
    )
    ok = info[:, 0] == Status.OK
    info[:, 2].mul_(ok)
    size = torch.where(ok, (scale * 0.5).sqrt(), constant((torch.nan,), high.dtype, high.device))[
        :, None
    ]
    roots = interval.sqrt()
    factors = (
        size ** constant((1.0, -1.0), high.dtype, high.device)
        * (rows[:, -2, 0] / roots[:, 1])[:, None]
    )
    return Chosen(taken, info, factors, roots * size, interval)


class ByOperations:
    """The passes by PyTorch's operations."""

    def scaled(self, a: Tensor, eps: float) -> Scaled:
        """See Passes.scaled."""
        largest = torch.linalg.vector_norm(a, torch.inf, (-2, -1))
        bits = (largest.clamp(min=eps) if eps else largest).view(_EXPONENT[a.dtype])
        scale = (bits & _EVERY_SECOND[a.dtype]).view(a.dtype)
        # So that neither it nor its inverse is 0 or infinite.
        scale.clamp_(min=8 * torch.finfo(a.dtype).tiny)
        half = a / scale[:, None, None]
        x = half + half.mT
        if eps:
            x.diagonal(dim1=-2, dim2=-1).add_((2 * eps / scale)[:, None])
        skew = torch.linalg.vector_norm(half - half.mT, dim=(-2, -1))
        return Scaled(x, scale, (largest, skew))

    def chosen(
        self,
        scaled: Scaled,
        square: Tensor,
        inverse: Tensor | None,
        failed: Tensor | None,
        limits: Thresholds,
        max_cond: float | None,
        steps: Steps,
    ) -> Chosen:
        """See Passes.chosen."""
        largest, skew = scaled.known
        held = torch.stack([square, *([] if inverse is None else [inverse]), scaled.x])
        norms = torch.linalg.vector_norm(held, dim=(-2, -1))
        traces = held.diagonal(dim1=-2, dim2=-1).sum(-1)
        n = square.shape[-1]
        return choose(
            n, largest, scaled.scale, skew, norms, traces, failed, limits, max_cond, steps
        )

    def combination(
        self, d: Tensor, c: Tensor, p: Tensor, e: Tensor | None = None, q: Tensor | None = None
    ) -> Tensor:
        """See Passes.combination."""
        x = p * c[:, None, None]
        if e is not None and q is not None:
            x.addcmul_(q, e[:, None, None])
        return spd.add_to_diagonal_(x, d[:, None])

    def shift(self, bounds: Tensor, least: float) -> Tensor:
        """See Passes.shift."""
        high = bounds[:, 1].clamp(min=2.0**20 * torch.finfo(bounds.dtype).tiny)
        return (bounds[:, 0] / high).clamp_(min=least).rsqrt_() / high

    def finished(self, x: Tensor, f: Tensor, failed: Tensor | None = None) -> Tensor:
        """See Passes.finished."""
        if failed is not None:
            f = torch.where(failed == 0, f, constant((torch.nan,), f.dtype, f.device))
        x = x * f[:, None, None]
        return x + x.mT
