"""Upper bounds of the error of roots, by what is measured of them.

The numerics page has the derivation. They hold whatever made the numbers: a residual in higher
precision is enough, with what the rounding of its own evaluation can be at most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from matroot import spd
from matroot.residuals import InvSqrtMeasures, Measures, SqrtMeasures


def enlarged(bound: Tensor) -> Tensor:
    """A thousandth more, for the rounding of the sums in a bound and of the bound itself."""
    return bound * (1 + 2.0**-10)


def error_bounds(
    measures: Measures, n: int, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Those of the root and of the inverse root, in the real dtype; None where there is no root.

    Args:
        measures: of the matrices and their roots.
        n: rows.
        dtype: that they were computed in.
    """
    real = spd.real_dtype(dtype)
    sqrt = None if measures.sqrt is None else _of_sqrt(measures, measures.sqrt, n, dtype).to(real)
    if measures.inv_sqrt is None:
        return sqrt, None
    return sqrt, _of_inv_sqrt(measures, measures.inv_sqrt, n, dtype).to(real)


def _of_sqrt(measures: Measures, found: SqrtMeasures, n: int, dtype: torch.dtype) -> Tensor:
    """At least ‖S − S₀‖_F/‖S₀‖_F, S₀ the exact root of A, negative eigenvalues counted as 0.

    With r ≥ ‖S² − A‖_F and S ≥ s I > 0, S₀ ≥ √(s² − r) or 0: ‖S − S₀‖_F ≤ r/(s + √(s² − r)), since
    S₀(S − S₀) + (S − S₀)S = S² − S₀². By Powers and Størmer (1970) ‖|S| − S₀‖_F² ≤ √n r, where |S|
    is S but for eigenvalues that rounding has made negative. And see ``_by_inverse``.
    ‖S₀‖_F is √tr A. NaN where S is not known to be semi-definite.
    """
    unit = rounding(n, dtype, measures.norm)
    delta = unit * (found.norm.square() + measures.norm)
    if measures.relative_ridge is not None:
        delta = delta + unit * measures.relative_ridge
    r = found.residual + delta
    proven = found.least - unit * n**0.5 * found.norm
    s = proven.clamp(min=0)
    least = s + (s.square() - r).clamp(min=0).sqrt()
    by_lyapunov = torch.where(least > 0, r / spd.positive_or_one(least), torch.inf)
    below_zero = 2 * n**0.5 * (-proven).clamp(min=0)
    by_positivity = (n**0.5 * r).sqrt() + below_zero
    # The clamps keep NaN; torch.where does not.
    error = torch.minimum(by_lyapunov + 0 * proven, by_positivity)
    if found.inverse is not None:
        error = torch.minimum(error, _by_inverse(found, proven, delta, n, unit))
    zero = (measures.norm == 0) & (found.norm == 0)
    return enlarged(torch.where(zero, 0.0, error / measures.trace.sqrt()))


def _by_inverse(found: SqrtMeasures, proven: Tensor, delta: Tensor, n: int, unit: float) -> Tensor:
    """At least ‖S − S₀‖_F, by the residual R = S² − A, found to δ, seen through S⁻¹.

    With ρ ≥ ‖S⁻¹ R S⁻¹‖_2, ρ < 1: S₀² = S (I − S⁻¹ R S⁻¹) S ≥ (1 − ρ) S², so S₀ ≥ √(1 − ρ) S, and
    ‖S − S₀‖_F ≤ ½ ‖S₀^{−1/2} R S^{−1/2}‖_F ≤ ½ (1 − ρ)^{−1/4} ‖S^{−1/2} R S^{−1/2}‖_F.
    Much less than the other bounds where S is nearly singular and R lies in its large eigenvectors.
    Infinite where ρ is not below 1 or S not known to be regular.
    """
    inverse = found.inverse
    assert inverse is not None
    s_inverse = 1 / spd.positive_or_one(proven)  # ‖S⁻¹‖_2 at most.
    # Rounding of the inverse, relative, and with it of the product with R, absolute.
    doubt = 32 * unit * found.norm * s_inverse
    off = s_inverse * (2 * doubt * (found.residual + delta) + delta)
    rho = inverse.two + s_inverse * (off + 2 * doubt * inverse.one)
    square = inverse.square + n * unit * inverse.one.square() + (2 * inverse.one + off) * off
    bound = 0.5 * square.sqrt() / (1 - rho).clamp(min=0).pow(0.25)
    return torch.where((proven > 0) & (doubt < 0.5) & (rho < 1), bound, torch.inf)


def _of_inv_sqrt(measures: Measures, found: InvSqrtMeasures, n: int, dtype: torch.dtype) -> Tensor:
    """At least ‖Z − Z₀‖_F/‖Z₀‖_F, Z₀ the exact inverse root of A.

    With ρ ≥ ‖Z A Z − I‖_F, ρ < 1 and Z positive definite:
    ‖Z − Z₀‖_F ≤ ‖Z‖_2 ρ/(√(1−ρ) (1 + √(1−ρ))), and ‖Z₀‖_F ≥ ‖Z‖_F/√(1+ρ).
    NaN where ρ is not below 1 or Z not known to be definite.
    """
    unit = rounding(n, dtype, measures.norm)
    evaluated = measures.norm * found.largest * found.norm + found.half * found.norm + n**0.5
    if measures.relative_ridge is not None:
        evaluated = evaluated + measures.relative_ridge * found.largest.square()
    rho = found.residual + unit * evaluated
    rest = (1 - rho).sqrt()  # NaN beyond 1.
    # Z has no eigenvalue between ± √(1 − ρ)/√‖A‖, and none below what rounding lets a factor pass.
    definite = unit * n**0.5 * found.norm * measures.norm.sqrt() < rest
    factor = (1 + rho).sqrt() * rho / (rest * (1 + rest))
    bound = enlarged(found.largest / found.norm * factor * found.positive)
    return torch.where(definite & (rest > 0), bound, torch.nan)


def rounding(n: int, dtype: torch.dtype, measured: Tensor) -> float:
    """What a sum of n products and A itself may lose, relative to the sum of magnitudes.

    Half a unit an operation; two are spent on A + Aᴴ and the ridge. A complex product is a sum of
    two real ones for each part, or is made by three products.
    """
    terms = 8 * n if dtype.is_complex else n
    return (terms + 4) * spd.real_eps(measured.dtype) / 2
