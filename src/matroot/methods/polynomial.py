"""Matrix polynomials with few products: the scheme of Paterson and Stockmeyer (1973)."""

from __future__ import annotations

import torch
from torch import Tensor

from matroot import context, spd


def block_size(degree: int, polynomials: int) -> int:
    """The number of powers Z … Z^s that makes Paterson–Stockmeyer cheapest.

    s − 1 products make the powers, ⌈degree/s⌉ − 1 make each polynomial (the top block of a degree
    that s divides is a number, not a matrix).
    """
    degree = context.constant(degree)
    # No key for min: the compiler of PyTorch 2.8 does not know it.
    costs = [s - 1 + polynomials * (-(-degree // s) - 1) for s in range(1, degree + 1)]
    return 1 + costs.index(min(costs))


def powers_for(z: Tensor, degree: int, polynomials: int) -> list[Tensor]:
    """I, Z, …, Z^s for the cheapest evaluation of so many polynomials of this degree in Z."""
    powers = [spd.identity_like(z), z]
    while len(powers) <= block_size(degree, polynomials):
        half = len(powers) // 2
        powers.append(torch.bmm(powers[half], powers[len(powers) - half]))
    return powers


def evaluate(coeffs: tuple[float, ...], powers: list[Tensor]) -> Tensor:
    """Σ c_k Z^k by Paterson and Stockmeyer's scheme: Horner in Z^s with blocks of degree s − 1.

    Args:
        coeffs: c_0 … c_K, K ≥ 1.
        powers: I, Z, …, Z^s.
    """
    s, degree = len(powers) - 1, len(coeffs) - 1
    top = (degree - 1) // s * s
    # The top block takes up to degree s, so that no product is spent on a multiple of I.
    result = _block(coeffs[top:], powers)
    for start in range(top - s, -1, -s):
        result = torch.baddbmm(_block(coeffs[start : start + s], powers), result, powers[s])
    return result


def _block(coeffs: tuple[float, ...], powers: list[Tensor]) -> Tensor:
    """Σ c_k Z^k over the given powers."""
    total = coeffs[0] * powers[0]
    # No zip: the compilers of old PyTorch want equal lengths.
    for k in range(1, min(len(coeffs), len(powers))):
        total = total + coeffs[k] * powers[k]
    return total
