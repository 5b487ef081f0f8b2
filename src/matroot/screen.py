"""What every function does first: scale, take the Hermitian part, find the bad matrices.

A bad matrix is replaced by the identity for the computation and its result by NaN, so that it can
neither stop a batched eigensolver nor touch its neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from matroot import context, spd

# A skew part below this share of the Frobenius norm is rounding, and is averaged away.
_MAX_SKEW = {torch.float16: 1e-2, torch.bfloat16: 1e-2}


class Status:
    """Why one matrix of a batch has no root; the larger number wins where several hold.

    Plain ints: torch.compile takes the comparison of a tensor with an enum for a constant.
    """

    OK = 0
    DIVERGED = 1
    SINGULAR = 2
    INDEFINITE = 3
    ASYMMETRIC = 4
    NONFINITE = 5
    LEFT = 6  # By a kernel to the method; no caller sees it.


class Converged:
    """Whether a method says that it reached what it aims at; plain ints for the same reason."""

    NO = 0
    YES = 1
    UNKNOWN = 2  # The method cannot tell.


class Thresholds(NamedTuple):
    """What decides whether a matrix has a result.

    Eigenvalues are relative to the largest, u is the rounding unit of the input's dtype.

    Attributes:
        skew: a skew part up to this share of the Frobenius norm is rounding.
        indefinite: below minus this an eigenvalue is negative, n·u; None where it may be.
        singular: up to this an eigenvalue makes a matrix singular; None where it may be singular.
        null: up to this an eigenvalue is zero: see ``spd.null_share``.
    """

    skew: float
    indefinite: float | None
    singular: float | None
    null: float


def thresholds(
    n: int,
    dtype: torch.dtype,
    computing_dtype: torch.dtype | None = None,
    *,
    definite: bool = True,
    regular: bool = False,
) -> Thresholds:
    """The thresholds for n×n matrices.

    Args:
        n: rows.
        dtype: the dtype the user gave.
        computing_dtype: what is computed in; None: what ``dtype`` is computed in.
        definite: whether a matrix with negative eigenvalues has no result.
        regular: whether a singular matrix has no result.
    """
    null = spd.null_share(n, computing_dtype or spd.computing_dtype(dtype))
    return Thresholds(
        skew=_MAX_SKEW.get(dtype, 1e-3),
        indefinite=n * spd.real_eps(dtype) if definite else None,
        singular=null if regular else None,
        null=null,
    )


def normalized(a: Tensor, skew: float, eps: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(A + eps·I)/2ᵏ, Hermitian, with entries below 1 in magnitude.

    Args:
        a: shape (b, n, n), in the computing dtype.
        skew: see Thresholds.
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
    skewed = 0.5 * spd.frobenius_norm(seen - seen.mH) > skew * spd.frobenius_norm(seen)
    status = torch.where(skewed.flatten(), Status.ASYMMETRIC, Status.OK)
    status = torch.where(finite, status, Status.NONFINITE)
    identity = spd.identity_like(x)
    x = spd.hermitian_part(x)
    if eps:
        ridge = torch.full_like(seen[:, :1, :1], eps)
        x = x + spd.times_power_of_two(ridge, -k) * identity
    return torch.where((status == Status.OK)[:, None, None], x, identity), k, status


def definiteness(
    a: Tensor,
    limits: Thresholds,
    *,
    eigenvalues: Tensor | None = None,
    bounds: spd.Bounds | None = None,
) -> Tensor:
    """The Status of Hermitian matrices of norm about 1, shape (b,), by their eigenvalues.

    INDEFINITE and SINGULAR by ``limits``; DIVERGED where a solver found no eigenvalues. Without
    eigenvalues both are settled by a Cholesky factorisation, with bounds of the eigenvalues on the
    side where a matrix at the threshold passes.

    Args:
        a: shape (b, n, n).
        limits: the thresholds. Matrices that may be indefinite are judged by eigenvalues alone.
        eigenvalues: shape (b, n), where a method has found them.
        bounds: where a method has found them.
    """
    unsolved = torch.zeros((), dtype=torch.bool, device=a.device)
    if eigenvalues is not None:
        unsolved = eigenvalues.amin(-1).isnan()
        indefinite, singular = _by_eigenvalues(limits, eigenvalues)
    else:
        assert limits.indefinite is not None
        inverse = limits.singular is not None
        if bounds is None and inverse:
            bounds = spd.bounds(a)
        if bounds is not None and context.host_reads_are_free(a) and (bounds.low > 0).all():
            indefinite = torch.zeros_like(bounds.low, dtype=torch.bool)
        else:
            size = spd.positive_or_one(spd.upper_bound(a))
            # In half precision n·u may exceed 1, and a shift by it hide a negative matrix.
            indefinite = ~spd.factorises(a + limits.indefinite * size * spd.identity_like(a))
            indefinite |= (spd.trace(a) <= 0) & (spd.max_abs(a) > 0)
            if bounds is not None:
                indefinite &= bounds.low <= 0
        singular = indefinite
        if limits.singular is not None and bounds is not None:
            singular = bounds.low_at_most <= limits.singular * spd.largest_at_least(a).flatten()
    status = torch.where(unsolved, Status.DIVERGED, torch.zeros_like(indefinite, dtype=torch.long))
    if limits.singular is not None:
        status = torch.where(singular, Status.SINGULAR, status)
    return torch.where(indefinite, Status.INDEFINITE, status)


def _by_eigenvalues(limits: Thresholds, eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """Which matrices are indefinite, and which singular, shape (b,)."""
    if limits.indefinite is None:
        sizes = eigenvalues.abs()
        indefinite = torch.zeros_like(sizes[:, 0], dtype=torch.bool)
        smallest, largest = sizes.amin(-1), sizes.amax(-1)
    else:
        smallest, largest = eigenvalues.amin(-1), eigenvalues.amax(-1).clamp(min=0)
        indefinite = smallest < -limits.indefinite * largest
    if limits.singular is None:
        return indefinite, indefinite
    return indefinite, smallest <= limits.singular * largest
