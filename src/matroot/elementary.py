"""Powers, logarithms and exponentials of eigenvalues, to units of rounding, and their differences.

Elementwise PyTorch operations on real tensors of single or double precision that broadcast
together, whose bits do not depend on the place of a number in a tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from matroot import spd


def power(x: Tensor, p: float) -> Tensor:
    """xᵖ for x ≥ 0 and p other than 0, to one and a half units of rounding.

    Not by ``Tensor.pow``: on a CPU its last bits depend on the place of a number in the tensor.
    """
    if x.device.type == "mps" or p in _EXACT:  # The one has no double precision.
        return x.pow(p)
    zero = x == 0
    safe = torch.where(zero, 1.0, x)
    if x.dtype == torch.float32:
        found = (p * safe.double().log()).exp().to(x.dtype)
    else:
        found = _power_of_double(safe, p)
    return torch.where(zero, 0.0 if p > 0 else math.inf, found)


# Exponents for which ``Tensor.pow`` multiplies, divides and takes square roots.
_EXACT = (-2, -1, -0.5, 0.5, 1, 2, 3)
_LN_2 = math.log(2)
# ln 2 in two parts, the first of 30 bits.
_LN_2_HIGH, _LN_2_LOW = 0x2C5C85FE / 2**30, -4.2009150726810846e-11


def _power_of_double(x: Tensor, p: float) -> Tensor:
    """The same in double precision, for x > 0.

    With x = 2ᵏ m and m about 1, log x = k log 2 + 2 artanh z where z = (m − 1)/(m + 1). What
    p log x would lose to rounding, as many units as it is large, is kept: products of parts of few
    digits are exact, and a multiple of log 2 goes into a power of two.
    """
    p = max(-1e300, min(p, 1e300))
    wide = p * (2.0**25 + 1)
    first = wide - (wide - p)  # 28 bits of p (Veltkamp 1968)
    last = p - first
    k = (x.detach().log() / _LN_2).round()
    half = (k / 2).floor()  # 2⁻ᵏ alone may overflow.
    m = x * torch.exp2(-half) * torch.exp2(half - k)
    z = (m - 1) / (m + 1)
    high, m_high = _short(z), _short(m)
    low = (((m - 1 - high) - high * m_high) - high * (m - m_high)) / (m + 1)
    square = z * z
    tail = torch.full_like(square, 1 / 23)
    for odd in range(21, 1, -2):
        tail = 1 / odd + square * tail
    low = low + z * square * tail
    shift = k * first
    whole = shift.round()
    leading = 2 * first * high
    rest = 2 * (p * low + last * high) + _LN_2 * ((shift - whole) + k * last)
    more = ((leading + rest).detach() / _LN_2).round()
    rest = (leading - more * _LN_2_HIGH) + (rest - more * _LN_2_LOW)
    # Beyond, everything overflows or underflows. 2¹⁰²⁴ by itself would, too.
    whole = (whole + more).clamp(-1074, 1025)
    return 2 * (rest.exp() * torch.exp2(whole - 1))


def _short(x: Tensor) -> Tensor:
    """The first 24 bits of doubles; a constant."""
    return x.detach().to(torch.float32).to(x.dtype)


def integer_power(x: Tensor, p: float) -> Tensor:
    """xᵖ for an integer p and x of any sign."""
    if p == 0:
        return torch.where(x.isnan(), x, 1.0)
    if p in (1, 2):
        return x if p == 1 else x * x
    size = power(x.abs(), p)
    return torch.where(x < 0, -size, size) if p % 2 else size


def half_power(p: float, x: Tensor, y: Tensor) -> Tensor:
    """x^(p/2) of the larger number for p > 0, of the smaller for p < 0.

    Powers are taken before x and y are broadcast: there are fewer of them.
    """
    return torch.where((x < y) == (p > 0), power(y, p / 2), power(x, p / 2))


def lowered_power(factor: Tensor | float, x: Tensor, half: Tensor, p: float, by: int) -> Tensor:
    """x^(p − by) · factor, for x ≥ 0, half = x^(p/2) and by = 1 or 2, p other than by.

    By two factors x^(p/2): p − by may round, which costs log(x)/4 units, and xᵖ may overflow.
    """
    found = (half * factor / x) * (half if by == 1 else half / x)
    return torch.where(x == 0, factor * (math.inf if p < by else 0.0), found)


def descending(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three numbers in descending order, elementwise."""
    high, low = torch.maximum(x, y), torch.minimum(x, y)
    middle = torch.maximum(low, torch.minimum(high, z))
    return torch.maximum(high, z), middle, torch.minimum(low, z)


def gap(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(near, apart, unit) with high − low = apart · unit, where neither overflows nor underflows.

    Numbers within a factor of two are near and measured by the lower one, others by 1.
    """
    near = high <= 2 * low
    unit = torch.where(near & (low != 0), low, 1.0)
    return near, (high - low) / unit, torch.where(near, low, 1.0)


def log_ratio(high: Tensor, low: Tensor) -> Tensor:
    """log(high/low) for high ≥ low ≥ 0, to a few units relatively: 0 at ties, ∞ for low = 0."""
    near, apart, _ = gap(high, low)
    quotient = high / torch.where(low > 0, low, 1.0)
    # Numbers whose quotient is out of range have logarithms that are far apart.
    by_quotient = (low > 0) & quotient.isfinite()
    far = torch.where(by_quotient, quotient.log(), high.log() - low.log())
    return torch.where(near, torch.where(near, apart, 0.0).log1p(), far)


def power_difference(p: float, x: Tensor, y: Tensor, factor: Tensor | float = 1.0) -> Tensor:
    """f[x, y] · factor of xᵖ for x, y ≥ 0 and p other than 0 and 1: see Power."""
    high, low = torch.maximum(x, y), torch.minimum(x, y)
    t, half = log_ratio(high, low), half_power(p, x, y)
    if p > 0:
        apart = (high - low) / spd.positive_or_one(high)
        tie = apart == 0
        ratio = -torch.expm1(-p * t) / torch.where(tie, 1.0, apart)
        return lowered_power(torch.where(tie, p, ratio) * factor, high, half, p, 1)
    _, apart, unit = gap(high, low)
    tie = apart == 0
    ratio = torch.expm1(p * t) / torch.where(tie, 1.0, apart)
    return half * torch.where(tie, p, ratio) * factor / unit * half


def terms(dtype: torch.dtype) -> int:
    """How many terms of a power series are needed up to a third of its radius of convergence."""
    return 18 if dtype == torch.float32 else 36


def binomials(p: float, dtype: torch.dtype) -> list[float]:
    """The binomial coefficients C(p, k) from k = 2 on."""
    found = [p * (p - 1) / 2]
    for k in range(2, 1 + terms(dtype)):
        found.append(found[-1] * (p - k) / (k + 1))
    return found


def near_series(
    coefficients: list[float], a: Tensor, b: Tensor, c: Tensor, reach: float
) -> tuple[Tensor, Tensor]:
    """Which triples are near, and their second difference of Σ c_k (x/m − 1)ᵏ, m = (a + c)/2.

    With h = a/m − 1 = 1 − c/m and g = b/m − 1 it is Σ c_k H_(k−2)/m² (the caller divides by m²),
    where the sums H of all products of so many of g, h and −h satisfy H_k = g H_(k−1) + hᵏ for even
    k and g H_(k−1) for odd ones.

    Args:
        coefficients: c_2, c_3, …
        a: the largest.
        b: the middle one.
        c: the smallest.
        reach: the largest h that is near; elsewhere the result is of no use.
    """
    middle = 0.5 * a + 0.5 * c
    half = 0.5 * a - 0.5 * c
    near = half <= reach * middle.abs()
    safe = torch.where(near & (middle != 0), middle, 1.0)
    g = torch.where(near, b - middle, 0.0) / safe
    square = (torch.where(near, half, 0.0) / safe).square()
    power = torch.ones_like(square)
    term = power
    total = coefficients[0] * term
    for k, coefficient in enumerate(coefficients[1:], start=1):
        if k % 2 == 0:
            power = power * square
            term = torch.addcmul(power, g, term)
        else:
            term = g * term
        total = torch.add(total, term, alpha=coefficient)
    return near, total


def falling(d: Tensor) -> Tensor:
    """(1 − e^(−d))/d for d ≥ 0, 1 at 0."""
    tie = d == 0
    return torch.where(tie, 1.0, -torch.expm1(-d) / torch.where(tie, 1.0, d))


def times_exp(x: Tensor, factor: Tensor) -> Tensor:
    """eˣ · factor, in two steps since eˣ alone may overflow."""
    half = (0.5 * x).exp()
    return half * factor * half
