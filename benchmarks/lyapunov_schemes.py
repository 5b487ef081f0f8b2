"""Ways to solve S X + X S = R by products: which is cheapest at equal accuracy?

Each scheme is a function (s, r, low, high, steps) of matrices (b, n, n) whose spectra lie in
[low, high], R symmetric, that returns X and how many products and Cholesky inverses it made. What
the library uses is ``two_shifts``; the others stand here to be compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from matroot.schedules import best_cubic, best_quintic

Scheme = Callable[[Tensor, Tensor, float, float, int], tuple[Tensor, int, int]]


def sign_newton_schulz(
    s: Tensor, r: Tensor, low: float, high: float, steps: int
) -> tuple[Tensor, int, int]:
    """The paper's: Newton–Schulz steps for the matrix sign of [[S, R], [0, −S]]."""
    b, c, identity = s / high, r / high, torch.eye(s.shape[-1], dtype=s.dtype)
    for _ in range(steps):
        rest = 3 * identity - b @ b
        bc = b @ c
        c = (c @ rest - b @ (bc - c @ b)) / 2
        b = b @ rest / 2
    return c / 2, 6 * steps, 0


def _minimax(best: Callable[[Tensor], tuple[Tensor, Tensor]], low: float, steps: int) -> list:
    """Coefficients (a, b, c) of each step on what the steps before leave of [low, 1]."""
    lower, upper = torch.tensor(low, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    found = []
    for _ in range(steps):
        p, error = best(lower / upper)
        found.append([float(p[i] / upper ** (2 * i + 1)) for i in range(3)])
        lower, upper = 1 - error, 1 + error
    return found


def sign_minimax_cubic(
    s: Tensor, r: Tensor, low: float, high: float, steps: int
) -> tuple[Tensor, int, int]:
    """The same with the forward pass's cubic steps; P and H of each step made again."""
    b, c, identity = s / high, r / high, torch.eye(s.shape[-1], dtype=s.dtype)
    for x, y, _ in _minimax(best_cubic, low / high, steps):
        p = b @ b
        pc = p @ c
        c = x * c + y * (pc - b @ c @ b + pc.mT)
        b = b @ (x * identity + y * p)
    return c / 2, 5 * steps, 0


def sign_minimax_quintic(
    s: Tensor, r: Tensor, low: float, high: float, steps: int
) -> tuple[Tensor, int, int]:
    """The same with the forward pass's quintic steps; 5 a step if P and H were kept."""
    b, c, identity = s / high, r / high, torch.eye(s.shape[-1], dtype=s.dtype)
    for x, y, z in _minimax(best_quintic, low / high, steps):
        p = b @ b
        h = x * identity + y * p + z * (p @ p)
        t = b @ c
        d = t - t.mT
        pd = p @ d
        c = b @ (y * d + z * (pd - pd.mT)) + c @ h
        b = b @ h
    return c / 2, 7 * steps, 0


def wachspress(low: float, high: float, count: int) -> list[float]:
    """The shifts that make max |Π (s − μ)/(s + μ)| on [low, high] smallest.

    high · dn((2j − 1) K / 2m) with complementary modulus low/high, by the descending Landen
    transformation (the arithmetic-geometric mean).
    """
    a, b, c = [1.0], low / high, [math.sqrt(1 - (low / high) ** 2)]
    while abs(c[-1]) > 1e-15:
        a, b, c = [*a, (a[-1] + b) / 2], math.sqrt(a[-1] * b), [*c, (a[-1] - b) / 2]
    quarter = math.pi / 2 / a[-1]
    shifts = []
    for j in range(1, count + 1):
        phi = previous = 2 ** (len(a) - 1) * a[-1] * (2 * j - 1) * quarter / (2 * count)
        for mean, half in zip(a[:0:-1], c[:0:-1], strict=True):
            previous, phi = phi, (math.asin(half * math.sin(phi) / mean) + phi) / 2
        shifts.append(high * math.cos(phi) / math.cos(previous - phi))
    return shifts


def shifts(count: int) -> Scheme:
    """So many shifts of the alternating-direction iteration in partial fractions, then squaring."""

    def solve(s: Tensor, r: Tensor, low: float, high: float, steps: int) -> tuple[Tensor, int, int]:
        identity = torch.eye(s.shape[-1], dtype=s.dtype)
        mu = wachspress(min(low, high / 8), high, count)
        residues = [-2 * m * math.prod((m + k) / (m - k) for k in mu if k != m) for m in mu]
        inverses = []
        for m in mu:
            factor = torch.linalg.cholesky(s + m * identity)
            factor = torch.linalg.solve_triangular(factor, identity, upper=False)
            inverses.append(factor.mT @ factor)
        x = torch.zeros_like(s)
        for m, residue, v in zip(mu, residues, inverses, strict=True):
            right = sum(
                residue * q / (m + k) * w for k, q, w in zip(mu, residues, inverses, strict=True)
            )
            x = x + v @ r @ right
        w = identity + sum(q * v for q, v in zip(residues, inverses, strict=True))
        for step in range(steps):
            x = torch.baddbmm(x, w @ x, w)
            if step < steps - 1:
                w = w @ w
        return x, 2 * count + max(3 * steps - 1, 0), count

    return solve


def spectral(s: Tensor, r: Tensor, low: float, high: float, steps: int) -> tuple[Tensor, int, int]:
    """One eigendecomposition of S and division by s_i + s_j."""
    values, q = torch.linalg.eigh(s)
    x = (q.mT @ r @ q) / (values[:, :, None] + values[:, None, :])
    return q @ x @ q.mT, 4, 0


SCHEMES: dict[str, Scheme] = {
    "eigh, division by s_i + s_j": spectral,
    "sign, Newton–Schulz (paper)": sign_newton_schulz,
    "sign, minimax cubic (shared with the forward pass)": sign_minimax_cubic,
    "sign, minimax quintic (shared with the forward pass)": sign_minimax_quintic,
    "squared Smith, one shift": shifts(1),
    "squared Smith, two shifts (the library's)": shifts(2),
    "squared Smith, three shifts": shifts(3),
    "squared Smith, four shifts": shifts(4),
}
