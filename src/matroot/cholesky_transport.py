"""The distance of large regular matrices by Cholesky factors, one pair after the other.

With A = L Lᴴ, B = R Rᴴ and the singular value decomposition Lᴴ R = U Σ Vᴴ, F = L U and T = R V have

    F Fᴴ = A,  T Tᴴ = B,  Fᴴ T = Σ,    d² = tr A + tr B − 2 tr Σ = ‖F − T‖_F²,

and the transport maps from A to B and back are T Σ⁻¹ Tᴴ and F Σ⁻¹ Fᴴ. Where only d² is wanted, and
is not so small that the traces would cancel, singular values are enough.

Matrices of single precision are done in double precision, where the eigenvalues Σ² of Rᴴ A R and
their vectors V have digits to spare; F is then A T Σ⁻¹.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from matroot import spd, spectrum

# What d² is of tr A + tr B at least, where singular values decide: they leave two digits fewer than
# the dtype has.
_CANCELLED = 0.01


class Factor(NamedTuple):
    """A regular matrix A and its Cholesky factor, scaled.

    Attributes:
        matrix: A/4ᵏ, shape (n, n), in double precision.
        lower: L/2ᵏ, lower triangular.
        k: (), an integer.
    """

    matrix: Tensor
    lower: Tensor
    k: Tensor


def factor(scaled: Tensor, k: Tensor) -> Factor | None:
    """The factor of a matrix that has no eigenvalue that is zero to rounding, else None.

    Args:
        scaled: A/4ᵏ, exactly Hermitian, shape (n, n), of single or double precision.
        k: see Factor.
    """
    wide = spd.in_double(scaled)
    if not spd.is_regular(wide, scaled.dtype):
        return None
    lower, info = torch.linalg.cholesky_ex(wide)
    return None if info else Factor(wide, lower, k)


def squared_distance(
    first: Factor, second: Factor, dtype: torch.dtype, *, gradients: bool
) -> tuple[Tensor, ...]:
    """(d², d) of one pair, in double precision, and if asked for both gradients of d².

    Args:
        first: that of A.
        second: that of B.
        dtype: that of the matrices before they were factored, and of the gradients.
        gradients: whether they are wanted.
    """
    k = torch.maximum(first.k, second.k)
    i, j = first.k - k, second.k - k
    is_double = spd.real_dtype(dtype) == torch.float64
    if torch.equal(first.matrix, second.matrix) and first.k == second.k:
        zero = first.matrix.new_zeros((), dtype=torch.float64)
        nothing = torch.zeros_like(first.matrix, dtype=dtype)
        return (zero, zero, nothing, nothing) if gradients else (zero, zero)
    if not gradients:
        square = _by_values(first, second, i, j, dtype, is_double)
        if square is not None:
            return _scaled_back(square, k)
    if is_double:
        u, sigma, vh = spectrum.svd(first.lower.mH @ second.lower)
        f, t = first.lower @ u, second.lower @ vh.mH
    else:
        sigma, v = spectrum.eigh(_congruence(first, second))
        # A tiny number in place of what rounding left below it.
        sigma = sigma.clamp(min=torch.finfo(sigma.dtype).tiny).sqrt()
        t = second.lower @ v
        f = (first.matrix @ t) / sigma
    rest = spd.times_power_of_two(f, i) - spd.times_power_of_two(t, j)
    found = _scaled_back(spd.frobenius_norm(rest)[0, 0].square(), k)
    if not gradients:
        return found
    by = []
    for x, scale in ((t, j - i), (f, i - j)):
        transport = spd.times_power_of_two((x / sigma) @ x.mH, scale)
        by.append((spd.identity_like(x) - spd.hermitian_part(transport)).to(dtype))
    return (*found, *by)


def _by_values(
    first: Factor, second: Factor, i: Tensor, j: Tensor, dtype: torch.dtype, is_double: bool
) -> Tensor | None:
    """d²/4ᵏ by singular values alone; None where it would not be exact."""
    left, right = (spd.power_of_two(x, first.matrix) for x in (i, j))
    traces = spd.trace(first.matrix) * left**2 + spd.trace(second.matrix) * right**2
    if is_double:
        sigma = spectrum.singular_values(first.lower.mH @ second.lower)
        least = _CANCELLED * traces
    else:
        n, unit = first.matrix.shape[-1], spd.real_eps(torch.float64)
        values = spectrum.eigenvalues(_congruence(first, second)).clamp(min=0)
        sigma, off = values.sqrt(), 4 * n**0.5 * unit * values[-1]
        error = torch.minimum(off / (2 * sigma), off.sqrt()).sum() * left * right
        least = (2 * error + 4 * unit * traces) / spd.real_eps(dtype)
    square = traces - 2 * sigma.sum() * left * right
    return square if square > least else None


def _congruence(first: Factor, second: Factor) -> Tensor:
    """Rᴴ A R."""
    return spd.hermitian_part(second.lower.mH @ first.matrix @ second.lower)


def _scaled_back(square: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """(d², d) from d²/4ᵏ, each by itself since one of them may overflow."""
    scale = spd.power_of_two(k, square)
    return square * scale * scale, square.sqrt() * scale
