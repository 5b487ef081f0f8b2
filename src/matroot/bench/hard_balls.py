"""Roots enclosed in balls: certified for any precision, by python-flint, for small matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flint
import torch
from torch import Tensor

from matroot import spd

# Bits of the midpoints: three times what the worst double-precision matrix needs.
_BITS = 400


@dataclass(frozen=True)
class Enclosure:
    """A^{1/2} and A^{-1/2} of one matrix, each entry within its ball."""

    sqrt: Any
    inv_sqrt: Any

    def error(self, x: Tensor, root: str) -> tuple[float, float]:
        """Certified lower and upper bounds of ‖X − X*‖_F/‖X*‖_F; ``root`` as in ``sqrtm_ex``."""
        with flint.ctx.workprec(_BITS):
            truth = self.sqrt if root == "sqrt" else self.inv_sqrt
            ratio = _norm(_balls(x) - truth) / _norm(truth)
            return max(float(ratio.lower()), 0.0), float(ratio.upper())


def enclosed(a: Tensor) -> Enclosure:
    """The roots of (A + Aᴴ)/2 for one positive definite matrix, in balls.

    Denman and Beavers' iteration finds S ≈ A^{1/2}. With R = S² − A in balls and λ_min(S) ≥ μ > 0
    by a Cholesky factorisation in balls, ‖S − A^{1/2}‖_F ≤ ‖R‖_F/μ.

    Raises:
        ValueError: A is not certified to be positive definite.
        ZeroDivisionError: its condition number is too large for so many bits.
    """
    with flint.ctx.workprec(_BITS):
        exact = _balls(a)
        exact = (exact + exact.transpose().conjugate()) / 2
        n = exact.nrows()
        if not _is_definite(exact):
            raise ValueError("the matrix is not certified to be positive definite")
        x, y = exact, _identity(n)
        for _ in range(200):
            inverse = y.inv().mid()
            following = ((x + inverse) / 2).mid()
            y = ((y + x.inv()) / 2).mid()
            change = _norm(following - x) / _norm(following)
            x = following
            if change < flint.arb(2) ** (-_BITS // 2):
                break
        s = ((x + x.transpose().conjugate()) / 2).mid()
        low = 1 / _norm(s.inv()) / 2
        if not _is_definite(s - low.upper() * _identity(n)):
            raise ValueError("the root is not certified to be positive definite")
        radius = _norm(s * s - exact) / low
        ball = flint.acb(flint.arb(0, radius.upper()), flint.arb(0, radius.upper()))
        root = s + flint.acb_mat(n, n, [ball] * n * n)
        return Enclosure(root, root.inv())


def _balls(a: Tensor) -> Any:
    """Exact numbers."""
    n = a.shape[-1]
    entries = [
        flint.acb(z.real, z.imag) for z in spd.in_double(a).to(torch.complex128).flatten().tolist()
    ]
    return flint.acb_mat(n, n, entries)


def _identity(n: int) -> Any:
    return flint.acb_mat(n, n, [int(i == j) for i in range(n) for j in range(n)])


def _norm(a: Any) -> Any:
    # Products, since a power is taken by the logarithm, which balls around 0 do not have.
    squares = sum((z.real * z.real + z.imag * z.imag for z in a.entries()), flint.arb(0))
    # The ball of a square may reach below 0.
    return squares.nonnegative_part().sqrt()


def _is_definite(a: Any) -> bool:
    """Whether a Cholesky factorisation in balls proves that Hermitian A is positive definite."""
    n = a.nrows()
    rest = [[a[i, j] for j in range(n)] for i in range(n)]
    for k in range(n):
        pivot = rest[k][k].real
        if not pivot > 0:
            return False
        for i in range(k + 1, n):
            for j in range(k + 1, i + 1):
                rest[i][j] -= rest[i][k] * rest[j][k].conjugate() / pivot
    return True
