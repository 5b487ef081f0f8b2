"""Matrix Padé approximant (MPA) of Song, Sebe and Wang, arXiv 2201.08663 and 2201.12543.

With Z = I − A/‖A‖_F and the diagonal [m/m] Padé approximant p/q of (1 − z)^{1/2},

    A^{1/2} ≈ ‖A‖_F^{1/2} Q(Z)^{-1} P(Z),    A^{-1/2} ≈ ‖A‖_F^{-1/2} P(Z)^{-1} Q(Z)
    p_k = (−1/4)^k (2m+1)/(2m+1−k) C(2m+1−k, k),    q_k = (−1/4)^k C(2m−k, k)

since the [m/m] approximant of (1 − z)^{-1/2} is exactly q/p. P and Q are positive definite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from matroot import checks, context, spd
from matroot.methods.method import Method
from matroot.methods.polynomial import evaluate, powers_for
from matroot.roots import Functions, Wanted, roots_in_order, wanted_roots
from matroot.solution import Solution

# Powers lose a factor cond(P) = 4^m: harmless to m = 5, fatal in float32 from m = 12.
_LAST_ORDER_BY_POWERS = 5


def coefficients(order: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(p_0 … p_m, q_0 … q_m): quotients of integers, which Python divides with one rounding."""
    order = context.constant(order)
    r = 2 * order + 1
    p = ((-1) ** k * r * math.comb(r - k, k) / ((r - k) * 4**k) for k in range(order + 1))
    q = ((-1) ** k * math.comb(r - 1 - k, k) / 4**k for k in range(order + 1))
    return tuple(p), tuple(q)


@dataclass(frozen=True)
class Pade(Method):
    """Matrix Padé approximant of the published method.

    It equals √x·coth((2m+1) artanh √x) on each eigenvalue x of A/‖A‖_F (the inverse x^{-1/2}·tanh):
    0.15 % wrong at 0.1, 25 % at 0.01, 200 % at 0.001 for ``order=5``; it regularises.

    Args:
        order: order m of the numerator and the denominator, 1 to 32; the paper's is 5.

    Note:
        To order 5 by powers: 4 products and one Cholesky solve a root at order 5. Above, by partial
        fractions: ``order`` Cholesky solves a root, each about 1⅓ products, at rounding level.
    """

    order: int = 5
    factorises = True
    summary = "matrix Padé approximant (paper)"

    def __post_init__(self) -> None:
        checks.count(self, "order", least=1, most=32)

    @property
    def polynomials(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The coefficients of P and Q; None where powers lose too much."""
        return coefficients(self.order) if self.order <= _LAST_ORDER_BY_POWERS else None

    def solve(self, a: Tensor, functions: Functions) -> Solution:
        """The values of the approximants, for each root asked for."""
        wanted = wanted_roots(functions)
        norm = spd.norm_or_one(a)
        scale = spd.sqrt_or_zero(spd.frobenius_norm(a))
        x = a / norm
        if self.polynomials is None:
            sqrt, inv_sqrt = self._by_fractions(x, wanted)
        else:
            sqrt, inv_sqrt = self._by_powers(x, wanted)
        values = roots_in_order(
            functions,
            None if sqrt is None else sqrt * scale,
            None if inv_sqrt is None else inv_sqrt / norm.sqrt(),
        )
        return Solution(functions, values, steps=self.order)

    def _by_powers(self, x: Tensor, wanted: Wanted) -> tuple[Tensor | None, Tensor | None]:
        powers = powers_for(spd.identity_like(x) - x, self.order, 2)
        p, q = (evaluate(coeffs, powers) for coeffs in coefficients(self.order))
        sqrt = spd.cholesky_solve(q, p) if wanted.sqrt else None
        inv_sqrt = spd.cholesky_solve(p, q) if wanted.inv_sqrt else None
        return sqrt, inv_sqrt

    def _by_fractions(self, x: Tensor, wanted: Wanted) -> tuple[Tensor | None, Tensor | None]:
        """The same rational functions as sums over positive shifts, r = 2m + 1.

        x^{-1/2} ≈ (1/r)[1 + 2 Σ_{i<m}   1/(sin²θ_i + cos²θ_i x)],  θ_i = (2i+1)π/(2r)
        x^{1/2}  ≈ (1/r)[1 + 2 Σ_{j=1..m} x/(sin²φ_j + cos²φ_j x)],  φ_j = jπ/r
        """
        r = 2 * self.order + 1
        identity = spd.identity_like(x)
        sqrt = inv_sqrt = None
        if wanted.sqrt:
            angles = [j * math.pi / r for j in range(1, self.order + 1)]
            sqrt = (identity + 2 * _sum_of_fractions(x, angles, x)) / r
        if wanted.inv_sqrt:
            angles = [(2 * i + 1) * math.pi / (2 * r) for i in range(self.order)]
            inv_sqrt = (identity + 2 * _sum_of_fractions(x, angles, identity.expand_as(x))) / r
        return sqrt, inv_sqrt


def _sum_of_fractions(x: Tensor, angles: list[float], numerator: Tensor) -> Tensor:
    """Σ (sin²θ I + cos²θ X)⁻¹ N over the angles, smallest terms first."""
    identity = spd.identity_like(x)
    total = torch.zeros_like(x)
    for angle in reversed(angles):
        shifted = math.sin(angle) ** 2 * identity + math.cos(angle) ** 2 * x
        total = total + spd.cholesky_solve(shifted, numerator)
    return total
