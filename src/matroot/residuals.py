"""How good roots are: what is measured of them, their residuals, and whether these are rounding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from matroot import context, spd
from matroot.kernels.native import measures
from matroot.plan import Plan
from matroot.request import Request


def _shift(n: int, dtype: torch.dtype) -> float:
    """The share of ‖S‖_F by which an eigenvalue of a root in this dtype may be negative.

    Eight units of it, and what a factorisation in double precision may need.
    """
    return 8 * spd.real_eps(dtype) + 4 * n * spd.real_eps(torch.float64)


class InverseMeasures(NamedTuple):
    """Of S⁻¹ R for a regular root S and R = S² − A, in the same units; infinite where S is not.

    Attributes:
        one: ‖S⁻¹ R‖_F.
        square: tr (S⁻¹ R)², which is ‖S^{−1/2} R S^{−1/2}‖_F².
        two: ‖S⁻¹ R S⁻¹‖_F.
    """

    one: Tensor
    square: Tensor
    two: Tensor


class SqrtMeasures(NamedTuple):
    """Of a root S of A, in units in which nothing overflows, double precision, shape (...).

    Attributes:
        norm: ‖S‖_F.
        residual: ‖S² − A‖_F.
        least: at most λ_min(S), but for the rounding of a Cholesky factorisation; below 0 where S
            may be singular, NaN where it may be indefinite.
        inverse: with the inverse; None where that was not measured.
    """

    norm: Tensor
    residual: Tensor
    least: Tensor
    inverse: InverseMeasures | None = None


class InvSqrtMeasures(NamedTuple):
    """Of an inverse root Z of A, in the same units.

    Attributes:
        norm: ‖Z‖_F.
        largest: ‖Z‖_2 at most.
        half: ‖Z A‖_F.
        residual: ‖Z A Z − I‖_F.
        positive: 1 where Z has a Cholesky factor, else NaN.
        projection: ‖P² − P‖_F for P = Z A Z, of a pseudo-inverse root; None for others.
    """

    norm: Tensor
    largest: Tensor
    half: Tensor
    residual: Tensor
    positive: Tensor
    projection: Tensor | None = None


class Measures(NamedTuple):
    """Of matrices and their roots.

    Attributes:
        norm: ‖A‖_F, with the ridge.
        trace: tr A.
        sqrt: of the root, None where there is none.
        inv_sqrt: of the inverse root, None where there is none.
        relative_ridge: the Frobenius norm of what relative_eps adds, a product with a norm, which
            is rounded; None where it adds nothing. (eps is exact, its sum to rounding.)
    """

    norm: Tensor
    trace: Tensor
    sqrt: SqrtMeasures | None
    inv_sqrt: InvSqrtMeasures | None
    relative_ridge: Tensor | None = None


class Residuals(NamedTuple):
    """Shape (...), real.

    Attributes:
        sqrt: ‖S² − A‖_F/‖A‖_F; None where there is no root.
        inv_sqrt: ‖Z A Z − I‖_F/√n; None where there is no inverse root.
        ratio: the larger of both over the level of rounding.
    """

    sqrt: Tensor | None
    inv_sqrt: Tensor | None
    ratio: Tensor


def measure(
    plan: Plan,
    a: Tensor,
    sqrt: Tensor | None,
    inv_sqrt: Tensor | None,
    relative_eps: float = 0.0,
) -> Measures:
    """The measures, by a compiled kernel or else by PyTorch's operations.

    Args:
        plan: the call.
        a: the argument of the call, shape (..., n, n), n ≥ 1, any dtype.
        sqrt: as it is returned, None if not asked for, as the inverse root.
        inv_sqrt: …
        relative_eps: the relative ridge.
    """
    request = plan.request
    shift = _shift(a.shape[-1], request.input_dtype)
    a = a.detach()
    sqrt, inv_sqrt = (None if x is None else x.detach() for x in (sqrt, inv_sqrt))
    native = any(family.name == "native" for family in plan.families)
    if native and not relative_eps and request.singular == "raise":
        found = measures.measure(a, sqrt, inv_sqrt, request.eps, shift)
        if found is not None:
            norm, trace, *rest = found.unbind(-1)
            of_sqrt = of_inv = None
            if sqrt is not None:
                size, residual, least, *inverse = rest[:6]
                of_sqrt = SqrtMeasures(size, residual, least, InverseMeasures(*inverse))
            if inv_sqrt is not None:
                of_inv = InvSqrtMeasures(*rest[6:])
            return Measures(norm, trace, of_sqrt, of_inv)
    return _by_torch(request, a, sqrt, inv_sqrt, relative_eps, shift)


def _by_torch(
    request: Request,
    a: Tensor,
    sqrt: Tensor | None,
    inv_sqrt: Tensor | None,
    relative_eps: float,
    shift: float,
) -> Measures:
    """``measure`` by PyTorch's operations, in double precision where the device has it."""
    wide = spd.in_double if a.device.type != "mps" else torch.Tensor.float
    x = wide(a)
    n, identity = x.shape[-1], spd.identity_like(x)
    finite = spd.max_abs(x).isfinite()
    # Units in which nothing overflows: A/2ʲ for an even j, S/2^{j/2}. 2ʲ must be a normal number.
    j = torch.where(finite, spd.even_exponent(x, request.eps), 0).clamp(-1000, 1000)
    half = torch.div(j, 2, rounding_mode="floor")
    y = spd.hermitian_part(spd.times_power_of_two(x, -j))
    ridge = spd.times_power_of_two(torch.full_like(y[..., :1, :1].real, request.eps), -j)
    relative_ridge = None
    if relative_eps:
        relative = relative_eps * spd.frobenius_norm(spd.times_power_of_two(x, -j))
        ridge = ridge + relative
        relative_ridge = n**0.5 * relative[..., 0, 0]
    y = y + ridge * identity

    def norm(value: Tensor) -> Tensor:
        return spd.frobenius_norm(value)[..., 0, 0]

    def factorised(value: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse, and whether the matrix has a Cholesky factor."""
        if context.exporting():
            # Exporters know no factorisation: nothing is said then.
            return value, torch.zeros_like(finite)
        # A NaN must not stop a batched factorisation.
        good = spd.max_abs(value).isfinite()
        inverse, found = spd.inverse_by_cholesky(
            torch.where(good[..., None, None], value, identity)
        )
        return inverse, good & found

    def with_inverse(inverse: Tensor, rest: Tensor, regular: Tensor) -> InverseMeasures:
        product = inverse @ rest
        square = (product * product.mT).sum((-2, -1)).real
        found = norm(product), square, norm(product @ inverse)
        return InverseMeasures(*(torch.where(regular, x, torch.inf) for x in found))

    of_sqrt = of_inv = None
    if sqrt is not None:
        s = spd.times_power_of_two(wide(sqrt), -half)
        size = norm(s)
        inverse, regular = factorised(s)
        below = shift * size
        _, semidefinite = factorised(s + below[..., None, None] * identity)
        largest = spd.upper_bound(inverse)[..., 0, 0]
        # Rounding changes the inverse by less than the share 16 n u ‖S‖ ‖S⁻¹‖.
        doubt = 16 * n * spd.real_eps(x.dtype) * largest * size
        least = torch.where(semidefinite, -below, torch.nan)
        regular = regular & (doubt < 0.5)
        least = torch.where(regular, (1 - doubt) / largest, least)
        rest = s @ s - y
        of_inverse = None if context.exporting() else with_inverse(inverse, rest, regular)
        of_sqrt = SqrtMeasures(size, norm(rest), least, of_inverse)
    if inv_sqrt is not None:
        z = spd.times_power_of_two(wide(inv_sqrt), half)
        product = z @ y
        p = product @ z
        projection = norm(p @ p - p) if request.singular == "pinv" else None
        of_inv = InvSqrtMeasures(
            norm(z),
            spd.upper_bound(z)[..., 0, 0],
            norm(product),
            norm(p - identity),
            torch.where(factorised(z)[1], 1.0, torch.nan).to(y.real.dtype),
            projection,
        )
    return Measures(norm(y), spd.trace(y), of_sqrt, of_inv, relative_ridge)


def residuals(request: Request, measures: Measures, n: int) -> Residuals:
    """The residuals of n×n matrices, in the dtype that they were computed in."""
    dtype = spd.real_dtype(request.computing_dtype)
    e, u = spd.real_eps(dtype), spd.real_eps(request.input_dtype)
    rounded = u if request.rounded else 0.0
    sqrt = inv_sqrt = None
    ratio = torch.zeros_like(measures.norm)
    if measures.sqrt is not None:
        sqrt = measures.sqrt.residual / spd.positive_or_one(measures.norm)
        ratio = sqrt / (16 * n**0.5 * e + rounded)
    if measures.inv_sqrt is not None:
        found = measures.inv_sqrt
        residual = found.residual if found.projection is None else found.projection
        inv_sqrt = residual / n**0.5
        least = (2 * e + rounded) * measures.norm * found.norm.square() / n**0.5
        ratio = torch.maximum(ratio, inv_sqrt / spd.positive_or_one(least))
    sqrt, inv_sqrt = (None if x is None else x.to(dtype) for x in (sqrt, inv_sqrt))
    return Residuals(sqrt, inv_sqrt, ratio)
