"""The distance of large matrices by Cholesky factors, one pair after the other.

With A = L Lᴴ, B = R Rᴴ and the singular value decomposition Lᴴ R = U Σ Vᴴ, F = L U and T = R V have

    F Fᴴ = A,  T Tᴴ = B,  Fᴴ T = Σ,    d² = tr A + tr B − 2 tr Σ = ‖F − T‖_F²,

and the transport maps from A to B and back are T Σ⁻¹ Tᴴ and F Σ⁻¹ Fᴴ. Where only d² is wanted, and
is not so small that the traces would cancel, singular values are enough.

Matrices of single precision are done in double precision, where the eigenvalues Σ² of Rᴴ A R and
their vectors V have digits to spare; F is then A T Σ⁻¹.

A singular matrix has a factor of as many columns as its rank, where rounding leaves no doubt of
that. With U and V of min(rank A, rank B) columns

    d² = ‖F − T‖_F² + ‖L − L U Uᴴ‖_F² + ‖R − R V Vᴴ‖_F²,

and X with X L = L − R V Uᴴ is the gradient by A on its range.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from matroot import spd, spectrum

# What d² is of tr A + tr B at least, where singular values decide: they leave two digits fewer than
# the dtype has.
_CANCELLED = 0.01


# Columns of a pivoted factor that are found before the rest of the matrix is updated.
_BLOCK = 64


class Factor(NamedTuple):
    """A matrix A and its Cholesky factor, scaled.

    Attributes:
        matrix: A/4ᵏ, shape (n, n), in double precision.
        lower: L/2ᵏ, lower triangular; of a singular matrix shape (n, rank).
        k: (), an integer.
    """

    matrix: Tensor
    lower: Tensor
    k: Tensor


def factor(scaled: Tensor, k: Tensor) -> Factor | None:
    """The factor of a matrix; None where it has none, or is singular or not within rounding.

    Args:
        scaled: A/4ᵏ, exactly Hermitian, shape (n, n), of single or double precision.
        k: see Factor.
    """
    wide = spd.in_double(scaled)
    if not spd.is_regular(wide, scaled.dtype):
        thin = _thin(wide, scaled.dtype)
        return None if thin is None else Factor(wide, thin, k)
    lower, info = torch.linalg.cholesky_ex(wide)
    return None if info else Factor(wide, lower, k)


def _thin(a: Tensor, dtype: torch.dtype) -> Tensor | None:
    """L with A = L Lᴴ, shape (n, rank), but for eigenvalues that are zero to rounding.

    Pivots on the diagonal (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 10.3) find
    the rank and the range. None where it is not certain that as many eigenvalues are zero to the
    rounding of ``dtype`` as columns are missing.
    """
    n, share = a.shape[-1], spd.null_share(a.shape[-1], dtype)
    norm, trace = spd.frobenius_norm(a)[0, 0], spd.trace(a)
    if not trace > 0:
        return None
    null = share * norm.square() / trace  # The largest eigenvalue is at least that.
    rest, diagonal = a.clone(), a.diagonal().real.clone()
    eliminated = torch.zeros(n, dtype=torch.bool)
    blocks: list[Tensor] = []  # of Lᴴ
    done = False
    while not done and sum(map(len, blocks)) < n:
        block = a.new_empty(_BLOCK, n)
        rows = 0
        while rows < _BLOCK:
            pivot = int(diagonal.argmax())
            size = diagonal[pivot]
            done = not size > null
            if done:
                break
            row = rest[pivot] - block[:rows, pivot].conj() @ block[:rows]
            row = row.masked_fill_(eliminated, 0.0).div_(size.sqrt())
            block[rows] = row
            diagonal -= row.abs().square()
            eliminated[pivot], diagonal[pivot] = True, -torch.inf
            rows += 1
        blocks.append(block[:rows])
        rest.addmm_(blocks[-1].mH, blocks[-1], alpha=-1)
    # The pivots have the range to some times the rounding; a product with A more has it exactly.
    q = torch.linalg.qr(a @ torch.cat(blocks).mH).Q
    inner = spd.hermitian_part(q.mH @ a @ q)
    if not spd.factorises(inner - 2 * share * norm * spd.identity_like(inner)):
        return None
    missing = torch.addmm(a, q @ inner, q.mH, alpha=-1)
    if not spd.frobenius_norm(missing) <= null:
        both = null * spd.identity_like(a) + torch.stack([missing, -missing])
        if not spd.factorises(spd.hermitian_part(both)).all():
            return None
    lower: Tensor = q @ torch.linalg.cholesky(inner)
    return lower


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
    if _are_thin(first, second):
        return _by_thin(first, second, i, j, k, dtype, gradients=gradients)
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


def _are_thin(*factors: Factor) -> bool:
    """Whether one of them has fewer columns than rows."""
    return any(x.lower.shape[-1] < x.lower.shape[-2] for x in factors)


def _by_thin(
    first: Factor,
    second: Factor,
    i: Tensor,
    j: Tensor,
    k: Tensor,
    dtype: torch.dtype,
    *,
    gradients: bool,
) -> tuple[Tensor, ...]:
    """``squared_distance`` where a matrix is singular; the gradients are of minimum norm."""
    left, right = (spd.times_power_of_two(x.lower, scale) for x, scale in ((first, i), (second, j)))
    u, sigma, vh = spectrum.svd(left.mH @ right)
    f, t = left @ u, right @ vh.mH
    legs = (f - t, left - f @ u.mH, right - t @ vh)
    square = sum((spd.frobenius_norm(x)[0, 0].square() for x in legs), sigma.new_zeros(()))
    found = _scaled_back(square, k)
    if not gradients:
        return found
    # What the rounding of the matrices leaves of zeros decides nothing.
    share = spd.null_share(left.shape[-2], dtype)
    largest = torch.linalg.matrix_norm(left, 2) * torch.linalg.matrix_norm(right, 2)
    turn = (u * (sigma > share * largest)) @ vh
    by_a, by_b = _on_range(left, right @ turn.mH), _on_range(right, left @ turn)
    return (*found, by_a.to(dtype), by_b.to(dtype))


def _on_range(x: Tensor, image: Tensor) -> Tensor:
    """Hermitian G of minimum norm with G X = X − image on the range of X, shape (n, r)."""
    step = x - image
    if x.shape[-1] == x.shape[-2]:
        return spd.hermitian_part(torch.linalg.solve(x, step, left=False))
    q, r = torch.linalg.qr(x)
    y = torch.linalg.solve_triangular(r, step, upper=True, left=False)
    inner = q.mH @ y
    y = y - q @ (inner - 0.5 * spd.hermitian_part(inner))
    y = y @ q.mH
    found: Tensor = y + y.mH
    return found


def _by_values(
    first: Factor, second: Factor, i: Tensor, j: Tensor, dtype: torch.dtype, is_double: bool
) -> Tensor | None:
    """d²/4ᵏ by singular values alone; None where it would not be exact."""
    left, right = (spd.power_of_two(x, first.matrix) for x in (i, j))
    # By the factors, of which nothing is left out that σ lacks.
    sizes = [spd.frobenius_norm(x.lower)[0, 0] for x in (first, second)]
    traces = (sizes[0] * left).square() + (sizes[1] * right).square()
    if is_double or _are_thin(first, second):
        sigma = spectrum.singular_values(first.lower.mH @ second.lower)
        least = _CANCELLED * traces * (spd.real_eps(torch.float64) / spd.real_eps(dtype))
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
