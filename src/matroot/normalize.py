"""What every function does first: scale, take the Hermitian part, find the bad matrices.

A bad matrix is replaced by the identity for the computation and its result by NaN, so that it can
neither stop a batched eigensolver nor touch its neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from matroot import checks, spd, spectrum
from matroot.checks import Status


def normalized(a: Tensor, dtype: torch.dtype, eps: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(A + eps·I)/2ᵏ, Hermitian, with entries below 1 in magnitude.

    Args:
        a: shape (b, n, n), in the computing dtype.
        dtype: the dtype the user gave, which sets how much skewness is rounding.
        eps: the ridge.

    Returns:
        The scaled Hermitian matrices with the identity in place of bad ones, (b, n, n); the even k,
        (b,); the Status of each, (b,).
    """
    seen = a.detach()
    finite = spd.max_abs(seen).isfinite()
    k = torch.where(finite, spd.even_exponent(seen, eps), 0)
    x = spd.times_power_of_two(a, -k)
    seen = x.detach()
    skew = 0.5 * spd.frobenius_norm(seen - seen.mH) > checks.max_skew(dtype) * spd.frobenius_norm(
        seen
    )
    status = torch.where(skew.flatten(), Status.ASYMMETRIC, Status.OK)
    status = torch.where(finite, status, Status.NONFINITE)
    identity = spd.identity_like(x)
    x = spd.hermitian_part(x)
    if eps:
        ridge = torch.full_like(seen[:, :1, :1], eps)
        x = x + spd.times_power_of_two(ridge, -k) * identity
    return torch.where((status == Status.OK)[:, None, None], x, identity), k, status


def definiteness(
    a: Tensor,
    dtype: torch.dtype,
    *,
    inverse: bool,
    eigenvalues: Tensor | None = None,
    bounds: spd.Bounds | None = None,
) -> Tensor:
    """The Status of Hermitian matrices of norm about 1, shape (b,), by their eigenvalues.

    Relative to the largest: INDEFINITE below −n·u, u the rounding unit of the user's dtype;
    SINGULAR (looked at only for the inverse) up to ``spd.null_share`` of the computing dtype.
    DIVERGED where a solver found no eigenvalues. Without eigenvalues both are settled by a Cholesky
    factorisation, with bounds of the eigenvalues on the side where a matrix at the threshold
    passes.

    Args:
        a: shape (b, n, n).
        dtype: the dtype the user gave.
        inverse: whether the inverse root is wanted.
        eigenvalues: shape (b, n), where a method has found them.
        bounds: where a method has found them.
    """
    below = a.shape[-1] * spd.real_eps(dtype)
    above = spd.null_share(a.shape[-1], a.dtype)
    unsolved = torch.zeros((), dtype=torch.bool, device=a.device)
    if eigenvalues is not None:
        smallest, largest = eigenvalues.amin(-1), eigenvalues.amax(-1).clamp(min=0)
        indefinite = smallest < -below * largest
        singular = smallest <= above * largest
        unsolved = smallest.isnan()
    else:
        if bounds is None and inverse:
            bounds = spd.bounds(a)
        if bounds is not None and checks.host_reads_are_free(a) and (bounds.low > 0).all():
            indefinite = torch.zeros_like(bounds.low, dtype=torch.bool)
        else:
            shift = below * spd.positive_or_one(spd.upper_bound(a)) * spd.identity_like(a)
            # In half precision n·u may exceed 1, and a shift by it hide a negative matrix.
            indefinite = ~spd.factorises(a + shift)
            indefinite |= (spd.trace(a) <= 0) & (spd.max_abs(a) > 0)
            if bounds is not None:
                indefinite &= bounds.low <= 0
        singular = indefinite
        if inverse and bounds is not None:
            singular = bounds.low_at_most <= above * spd.largest_at_least(a).flatten()
    ok = torch.where(unsolved, Status.DIVERGED, torch.zeros_like(indefinite, dtype=torch.long))
    if inverse:
        ok = torch.where(singular, Status.SINGULAR, ok)
    return torch.where(indefinite, Status.INDEFINITE, ok)


def without_rounded_negatives(a: Tensor, dtype: torch.dtype) -> Tensor:
    """A with negative eigenvalues at the rounding level of the user's half dtype put to 0.

    They are far above the rounding of the computing dtype, where a rational or polynomial
    approximation of the root is nonsense on them. Only matrices that need it change.
    """
    seen = a.detach()
    shift = a.shape[-1] * spd.real_eps(a.dtype) * spd.positive_or_one(spd.upper_bound(seen))
    negative = ~spd.factorises(seen + shift * spd.identity_like(a))
    if checks.host_reads_are_free(a) and not negative.any():
        return a
    values, q = spectrum.eigh(seen)
    clipped = (q * values.clamp(min=0)[:, None, :]) @ q.mH
    # A negative matrix stays as it is, to be found indefinite.
    rounded = negative & (values[:, 0] >= -a.shape[-1] * spd.real_eps(dtype) * values[:, -1])
    return a + torch.where(rounded[:, None, None], spd.hermitian_part(clipped) - seen, 0.0)
