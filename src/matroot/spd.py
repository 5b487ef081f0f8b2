"""Small facts about symmetric positive semi-definite matrices that every part shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matroot import context

# In single precision an eigenvalue is zero up to this many units of rounding of the largest.
NULL_UNITS = 4.0

# A table, since the compiler of PyTorch 2.14 does not know dtype.to_real.
_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}

# Half precision is computed in float32: sums of n products need the wider mantissa, and the
# eigensolvers and factorisations have no half kernels.
_COMPUTING_DTYPE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def null_units(n: int, dtype: torch.dtype) -> float:
    """Units of rounding of the largest eigenvalue up to which one is zero.

    The one rule for what is null: there an inverse root does not exist, or is left out of the
    pseudo-inverse root, and there gradients are of minimum norm.

    Rounding moves the zero eigenvalues of covariances and projectors by 1 to 3 units in single
    precision (n = 8 to 512), where an eigensolver's own error is kept out by double precision; in
    double precision by up to some n units.
    """
    return max(8, n) if real_dtype(dtype) == torch.float64 else NULL_UNITS


def null_share(n: int, dtype: torch.dtype) -> float:
    """The share of the largest eigenvalue up to which one is zero: ``null_units`` of rounding."""
    return null_units(n, dtype) * real_eps(dtype)


def broadcast_shapes(*shapes: tuple[int, ...]) -> torch.Size:
    """The shape that these broadcast to."""
    # PyTorch's function has no annotations.
    shape: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return shape


def hermitian_part(a: Tensor) -> Tensor:
    """(A + Aᴴ)/2, shape (..., n, n), each half by itself since the sum may overflow.

    Exactly Hermitian, also where halves are rounded, below the normal numbers.
    """
    half = a * 0.5
    return half + half.mH


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the real part."""
    return _REAL.get(dtype, dtype)


def computing_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that an input dtype is computed in: float32 for the half types, else itself."""
    return _COMPUTING_DTYPE.get(dtype, dtype)


def real_eps(dtype: torch.dtype) -> float:
    """The rounding unit (distance from 1 to the next number) of a real or complex dtype."""
    return torch.finfo(dtype).eps


def in_double(a: Tensor) -> Tensor:
    """A in double precision, real or complex as it is."""
    return a.to(torch.complex128 if a.is_complex() else torch.float64)


def real_parts(a: Tensor) -> Tensor:
    """Real and imaginary parts of vectors or matrices side by side, shape (..., 2n); A if real.

    Not by view_as_real, whose derivative fails for gradients that lie crosswise in memory.
    """
    return torch.cat([a.real, a.imag], -1) if a.is_complex() else a


def max_abs(a: Tensor) -> Tensor:
    """The largest real or imaginary part in magnitude, shape (...); NaN and inf show."""
    return real_parts(a).abs().amax((-2, -1))


def frobenius_norm(a: Tensor) -> Tensor:
    """‖A‖_F, shape (..., 1, 1), with a zero subgradient at A = 0."""
    if a.is_complex():
        # PyTorch sums complex squares naively, which costs three digits at n = 1000 in complex64.
        a = real_parts(a)
    if context.on_accelerator(a):
        norm: Tensor = torch.linalg.vector_norm(a, dim=(-2, -1), keepdim=True)
        return norm
    # On a CPU that function adds squares one by one, which costs three digits at n = 4096; a sum
    # goes by parts. A norm of norms would not be twice differentiable where a row is zero.
    return sqrt_or_zero(a.square().sum((-2, -1), keepdim=True))


def norm_or_one(a: Tensor) -> Tensor:
    """‖A‖_F, or 1 where A = 0, shape (..., 1, 1): a divisor that is safe and keeps the scale."""
    return positive_or_one(frobenius_norm(a))


def positive_or_one(x: Tensor) -> Tensor:
    """The number where it is above zero, else 1: a divisor or scale that is safe at A = 0."""
    return torch.where(x > 0, x, 1.0)


def sqrt_or_zero(x: Tensor) -> Tensor:
    """√x, and 0 with derivative 0 where x is 0 or below; NaN stays NaN."""
    zero = x <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x).sqrt())


def trace(a: Tensor) -> Tensor:
    """The real trace of Hermitian matrices, shape (...)."""
    return a.diagonal(dim1=-2, dim2=-1).real.sum(-1)


def exponent(a: Tensor, at_least: float = 0.0) -> Tensor:
    """The integer k with max|a_ij| / 2ᵏ in [1/2, 1), shape (...); 0 where A = 0.

    Dividing by 2ᵏ is exact, so that nothing overflows or underflows inside.
    """
    largest = max_abs(a).clamp(min=at_least)
    if torch.compiler.is_compiling():
        # Neither frexp nor ldexp is among the operators that exporters know, and the C++ that
        # torch.compile makes of frexp in double precision does not compile (PyTorch 2.14).
        rounded = torch.where(largest > 0, largest, 0.5).log2().floor() + 1
        return torch.where(largest.isfinite(), rounded, 0.0).to(torch.int32)
    k: Tensor = torch.frexp(largest).exponent
    return k


def even_exponent(a: Tensor, at_least: float = 0.0) -> Tensor:
    """``exponent`` rounded up to even: 4^(k/2) commutes with the square root exactly."""
    k = exponent(a, at_least)
    return k + k.remainder(2)


def times_power_of_two(a: Tensor, k: Tensor) -> Tensor:
    """A · 2ᵏ for matrices (..., n, n), k (...), in two factors since 2ᵏ alone may overflow."""
    half = torch.div(k, 2, rounding_mode="floor")
    first, second = power_of_two(half, a), power_of_two(k - half, a)
    return a * first[..., None, None] * second[..., None, None]


def power_of_two(k: Tensor, like: Tensor) -> Tensor:
    """2ᵏ in the real dtype of ``like``, exactly."""
    if context.exporting():
        return torch.exp2(k.to(real_dtype(like.dtype)))
    return torch.ldexp(torch.ones_like(k, dtype=real_dtype(like.dtype)), k)


def nan_where(bad: Tensor, a: Tensor) -> Tensor:
    """NaN with a NaN derivative where ``bad``, else 0 with derivative 0; shape of ``a``.

    Nothing is multiplied by NaN elsewhere, since PyTorch's anomaly detection looks behind masks.
    """
    factor = torch.where(
        bad, torch.nan, torch.zeros((), dtype=real_dtype(a.dtype), device=a.device)
    )
    return torch.where(bad, a, 0.0) * factor


def upper_bound(a: Tensor, square: Tensor | None = None) -> Tensor:
    """A rigorous upper bound of λ_max of Hermitian matrices, shape (..., 1, 1).

    Where A² is given, the root of its bound, which is tighter, if that is smaller.

    The smallest of ‖A‖_F, ‖A‖_∞ and the bound of Wolkowicz and Styan (1980),
    m + √((n−1)(‖A‖_F²/n − m²)) with m = tr A / n, inflated by what rounding may take from the sums.
    """
    rows = a.abs().sum(-1, keepdim=True).amax(-2, keepdim=True)
    total = trace(a)[..., None, None]
    bound = upper_bound_by(frobenius_norm(a), rows, total, a.shape[-1], real_eps(a.dtype))
    return bound if square is None else torch.minimum(bound, upper_bound(square).sqrt())


def upper_bound_by(frobenius: Tensor, row: Tensor, trace: Tensor, n: int, unit: float) -> Tensor:
    """``upper_bound`` by ‖A‖_F, ‖A‖_∞ and tr A, with the rounding unit of their sums."""
    mean = trace / n
    spread = ((n - 1) * (frobenius.square() / n - mean.square()).clamp(min=0)).sqrt()
    bound = torch.minimum(torch.minimum(frobenius, row), mean + spread)
    return bound * (1 + (8 + n) * unit)


def largest_at_least(a: Tensor) -> Tensor:
    """A lower bound of λ_max of positive semi-definite matrices, ‖A‖_F²/tr A, shape (..., 1, 1).

    Exact for projectors and matrices of rank one; 0 where the trace is not positive.
    """
    total = trace(a)[..., None, None]
    return torch.where(total > 0, frobenius_norm(a).square() / positive_or_one(total), 0.0)


def cholesky_solve(a: Tensor, b: Tensor) -> Tensor:
    """A⁻¹B for positive definite A, by Cholesky.

    Never by LU: batched LU on a CPU returns garbage in PyTorch 2.5 to 2.15 (pytorch #142815).
    cholesky_ex does not synchronise; a failure leaves numbers that the caller's check discards.
    """
    factor = torch.linalg.cholesky_ex(a).L
    return torch.cholesky_solve(b, factor)


def inverse_by_cholesky(a: Tensor) -> tuple[Tensor, Tensor]:
    """A⁻¹ of positive definite matrices and whether A has a Cholesky factor, no host sync.

    The identity stands in where there is none. By a triangular solve and a product, since
    torch.cholesky_inverse synchronises to look for errors and is slower on a batch.
    """
    factor, info = torch.linalg.cholesky_ex(a)
    success = info == 0
    identity = identity_like(a)
    factor = torch.where(success[..., None, None], factor, identity)
    inverse_factor = torch.linalg.solve_triangular(factor, identity, upper=False)
    return inverse_factor.mH @ inverse_factor, success


@dataclass(frozen=True)
class Bounds:
    """What is known of the spectrum of Hermitian matrices, each of shape (b,).

    Attributes:
        low: at most λ_min, by Cholesky; 0 where there is no factor.
        low_at_most: at least λ_min, within a factor 2 in practice; 0 where there is no factor.
        high: at least λ_max.
    """

    low: Tensor
    low_at_most: Tensor
    high: Tensor


def bounds(a: Tensor, square: Tensor | None = None) -> Bounds:
    """Rigorous bounds of the spectrum, by one Cholesky factorisation and the inverse.

    λ_max ≤ ``upper_bound`` of A, or the root of that of A², which is tighter; λ_min ≥
    1/``upper_bound(A⁻¹)`` and λ_min ≤ tr A⁻¹/‖A⁻¹‖_F².

    Args:
        a: shape (b, n, n).
        square: A², where it is known.
    """
    high = upper_bound(a, square)
    inverse, success = inverse_by_cholesky(a)
    most, least = upper_bound(inverse), largest_at_least(inverse)
    # Where A is as good as singular its inverse overflows and the quotients are no numbers.
    found = success[..., None, None] & most.isfinite() & least.isfinite() & (least > 0)
    low = torch.where(found, 1 / torch.where(found, most, 1.0), 0.0)
    low_at_most = torch.where(found, 1 / torch.where(found, least, 1.0), 0.0)
    return Bounds(low.flatten(), low_at_most.flatten(), high.flatten())


def add_to_diagonal_(a: Tensor, d: Tensor | float) -> Tensor:
    """A + d I for d of shape (b, 1) or a number, in place: A must be the caller's own."""
    if context.exporting():
        # Exporters have no diagonal that can be written to.
        return a + torch.as_tensor(d, dtype=a.dtype)[..., None] * identity_like(a)
    a.diagonal(dim1=-2, dim2=-1).add_(d)
    return a


def identity_like(a: Tensor) -> Tensor:
    """The n×n identity in a's dtype and device (without them eye is float32 on the CPU)."""
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def factorises(a: Tensor) -> Tensor:
    """Whether each Hermitian matrix has a Cholesky factor, shape (...), without a host sync."""
    success: Tensor = torch.linalg.cholesky_ex(a).info == 0
    return success


def is_regular(a: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether no eigenvalue of Hermitian matrices is zero to the rounding of ``dtype``, (...).

    In a higher precision than that, if the answer is to be exact: see ``null_share``.
    """
    share = null_share(a.shape[-1], dtype) * frobenius_norm(a)
    return factorises(a - share * identity_like(a))


def null_projector(s: Tensor, share: float) -> Tensor:
    """The projector on eigenvectors of S with eigenvalues below ``share`` of the largest.

    (I − sign V)/2 for V = (S − τ)(S + τ)⁻¹/2, by Newton–Schulz steps, which take |V| < √3. Rounding
    leaves eigenvalues from −0.4 τ to 0.8 τ where A has 0; eigenvalues of regular matrices begin
    above τ. Fourteen steps turn ±0.05, their image in V, into ±1.

    Args:
        s: shape (b, n, n), in units in which its eighth power neither overflows nor underflows.
        share: above 0.
    """
    identity = identity_like(s)
    square = s @ s
    fourth = square @ square
    # (Σ s⁸/Σ s⁴)^{1/4} ≤ s_max: a bound from above would call regular eigenvalues null.
    ratio = frobenius_norm(fourth) / norm_or_one(square)
    tau = share * positive_or_one(ratio.sqrt())
    inverse, found = inverse_by_cholesky(s + tau * identity)
    # Without a factor the projector is not known, and a plausible one must not come out.
    inverse = torch.where(found[:, None, None], inverse, torch.nan)
    v = 0.5 * identity - tau * inverse
    for _ in range(14):
        v = v @ torch.baddbmm(identity, v, v, beta=1.5, alpha=-0.5)
    return 0.5 * (identity - v)


def minimum_norm(x: Tensor, null: Tensor | None) -> Tensor:
    """X − N X N: 0 on null × null space, bit for bit X where N = 0 or there is none."""
    return x if null is None else torch.baddbmm(x, null @ x, null, alpha=-1.0)
