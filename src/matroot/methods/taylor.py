"""Matrix Taylor polynomial (MTP) of Song, Sebe and Wang, arXiv 2201.08663 and 2201.12543.

With Z = I − A/‖A‖_F, whose eigenvalues lie in [0, 1),

    A^{1/2}  ≈ ‖A‖_F^{1/2}  (I − Σ_{k=1..K} |C(1/2, k)|  Z^k)
    A^{-1/2} ≈ ‖A‖_F^{-1/2} (I + Σ_{k=1..K} |C(−1/2, k)| Z^k)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from matroot import checks, spd
from matroot.methods.method import Method
from matroot.methods.polynomial import evaluate, powers_for
from matroot.roots import Functions, roots_in_order, wanted_roots
from matroot.solution import Solution


def coefficients(degree: int, root: Literal["sqrt", "inv_sqrt"]) -> tuple[float, ...]:
    """Taylor coefficients of (1 − z)^{±1/2} for z⁰ … z^degree.

    C(−1/2, k) and C(1/2, k) are C(2k, k)/4^k and −C(2k, k)/(4^k (2k − 1)) in magnitude and sign
    with (−z)^k: quotients of integers, which Python divides with one rounding.
    """
    if root == "sqrt":
        return tuple(math.comb(2 * k, k) / (4**k * (1 - 2 * k)) for k in range(degree + 1))
    return tuple(math.comb(2 * k, k) / 4**k for k in range(degree + 1))


@dataclass(frozen=True)
class Taylor(Method):
    """Matrix Taylor polynomial of the published method: cheapest, least accurate.

    Its error is that of a truncated series: 4 % on an eigenvalue at 0.1 ‖A‖_F, 94 % at 0.01 ‖A‖_F
    with ``degree=10``; small eigenvalues come out too large, so it regularises.

    Args:
        degree: degree K of the polynomial in Z, at least 1; the paper's is 10.

    Note:
        Products of n×n matrices, by Paterson–Stockmeyer: about 2√K; for ``degree=10`` 5 for one
        root and 6 for both.
    """

    degree: int = 10
    summary = "matrix Taylor polynomial (paper)"

    def __post_init__(self) -> None:
        checks.count(self, "degree", least=1)

    @property
    def polynomials(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The coefficients of both polynomials, that of the root first."""
        return coefficients(self.degree, "sqrt"), coefficients(self.degree, "inv_sqrt")

    def solve(self, a: Tensor, functions: Functions) -> Solution:
        """The values of the polynomials, for each root asked for."""
        wanted = wanted_roots(functions)
        norm = spd.norm_or_one(a)
        z = spd.identity_like(a) - a / norm
        powers = powers_for(z, self.degree, len(functions))
        scale = spd.sqrt_or_zero(spd.frobenius_norm(a))
        sqrt = inv_sqrt = None
        if wanted.sqrt:
            sqrt = scale * evaluate(coefficients(self.degree, "sqrt"), powers)
        if wanted.inv_sqrt:
            inv_sqrt = evaluate(coefficients(self.degree, "inv_sqrt"), powers) / norm.sqrt()
        values = roots_in_order(functions, sqrt, inv_sqrt)
        return Solution(functions, values, steps=self.degree)
