"""True errors of roots and gradients, also in double precision, and certified ones by balls.

In single and half precision the truth is torch.linalg.eigh of the promoted matrix. In double there
is none to compare with. There the residual is computed to some 70 bits, by products whose leading
parts are exact, and the error is the solution of the linear equation that it satisfies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from matroot import spd


def product(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """X Y = H + L to some 70 bits relative to |X| |Y|, double precision, shape (b, n, n).

    The leading bits of X and Y are split off by rows and columns, so few that no sum of n of their
    products is rounded (Ozaki's scheme); the rest is so small that its rounding does not matter.

    Returns:
        H, computed without any error, and L, some 2⁻²⁰ of it.
    """
    terms = x.shape[-1] * (2 if x.is_complex() else 1)
    bits = (53 - math.ceil(math.log2(max(terms, 1)))) // 2
    x1, y1 = _leading(x, bits, -1), _leading(y, bits, -2)
    return x1 @ y1, x1 @ (y - y1) + (x - x1) @ y


def _leading(x: Tensor, bits: int, dim: int) -> Tensor:
    """X rounded to multiples of 2^(e − bits), 2^e above the entries of its row or column."""
    if x.is_complex():
        size = torch.maximum(x.real.abs(), x.imag.abs()).amax(dim, keepdim=True)
    else:
        size = x.abs().amax(dim, keepdim=True)
    e = torch.frexp(size).exponent
    # Adding 1.5·2^E leaves multiples of 2^(E − 52).
    big = torch.ldexp(torch.full_like(size, 1.5), e + (52 - bits))
    if x.is_complex():
        return torch.complex((x.real + big) - big, (x.imag + big) - big)
    return (x + big) - big


def hermitian(a: Tensor) -> tuple[Tensor, Tensor]:
    """(A + Aᴴ)/2 = H + L exactly (but for underflow)."""
    x, y = a * 0.5, a.mH * 0.5
    if a.is_complex():
        (h, low), (h2, low2) = _two_sum(x.real, y.real), _two_sum(x.imag, y.imag)
        return torch.complex(h, h2), torch.complex(low, low2)
    return _two_sum(x, y)


def _two_sum(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    total = x + y
    part = total - x
    return total, (x - (total - part)) + (y - part)


def norm(a: Tensor) -> Tensor:
    """‖A‖_F, shape (b,)."""
    found: Tensor = spd.real_parts(a).square().sum((-2, -1)).sqrt()
    return found


@dataclass(frozen=True)
class Results:
    """What is judged, in double precision and the units in which A is about 1; None: not asked for.

    Attributes:
        sqrt: S, shape (b, n, n); NaN where there is no result.
        inv_sqrt: Z.
        gradient: of Re⟨S, G⟩.
        inv_gradient: of Re⟨Z, G⟩.
    """

    sqrt: Tensor
    inv_sqrt: Tensor
    gradient: Tensor
    inv_gradient: Tensor


@dataclass
class Truth:
    """What is so, each of shape (b,), double precision.

    Errors are relative, in Frobenius norm. Where A is singular to the rounding of double precision
    and the dtype is double, ``sqrt_error`` is NaN: there it is judged by S² ≈ A and S ⪰ 0 alone,
    which bound the error by the root of the residual (Powers and Størmer).

    Attributes:
        norm: ‖A‖_F.
        low: λ_min.
        high: λ_max.
        trace: tr A.
        sqrt_norm: ‖A^{1/2}‖_F.
        inv_norm: ‖A^{-1/2}‖_F; infinite where λ_min ≤ 0.
        least: the smallest eigenvalue of S over √‖A‖_F; 0 where not looked at.
        sqrt_residual: ‖S² − A‖_F/‖A‖_F.
        inv_residual: ‖Z A Z − I‖_F.
        sqrt_error: of S; ``inv_error``: of Z; ``gradient_error``, ``inv_gradient_error``.
        gradient_size: ‖L‖_F/‖G‖_F of the true gradient; ``inv_gradient_size``.
        sqrt_change: what the square of the error changed of ``sqrt_error``, relative: what is left
            is the square of that. ``inv_change``: of ``inv_error``.
    """

    norm: Tensor
    low: Tensor
    high: Tensor
    trace: Tensor
    sqrt_norm: Tensor
    inv_norm: Tensor
    least: Tensor
    sqrt_residual: Tensor
    inv_residual: Tensor
    sqrt_error: Tensor
    inv_error: Tensor
    gradient_error: Tensor
    inv_gradient_error: Tensor
    gradient_size: Tensor
    inv_gradient_size: Tensor
    sqrt_change: Tensor
    inv_change: Tensor


def by_eigh(a: Tensor, g: Tensor, found: Results) -> Truth:
    """The truth of matrices promoted from single or half precision, by their eigenpairs.

    Its own error is some n·κ_f units of double precision, 1e-8 of what is judged.

    Args:
        a: shape (b, n, n), double precision, largest entry about 1.
        g: the cotangent, Hermitian, shape (n, n).
        found: what is judged.
    """
    a = spd.hermitian_part(a)
    values, q = torch.linalg.eigh(a)
    s = values.clamp(min=0).sqrt()
    sums = s[:, :, None] + s[:, None, :]
    turned = q.mH @ g @ q
    # Infinite where singular: such gradients are not compared.
    gradient = turned / sums
    inv_gradient = -gradient / (s[:, :, None] * s[:, None, :])
    size = norm(a)

    def error(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        scale = norm(truth)
        return norm(q.mH @ x @ q - truth) / spd.positive_or_one(scale), scale

    sqrt_error, sqrt_norm = error(found.sqrt, torch.diag_embed(s).to(q.dtype))
    inv_error, inv_norm = error(found.inv_sqrt, torch.diag_embed(1 / s).to(q.dtype))
    gradient_error, gradient_norm = error(found.gradient, gradient)
    inv_gradient_error, inv_gradient_norm = error(found.inv_gradient, inv_gradient)
    return Truth(
        norm=size,
        low=values[:, 0],
        high=values[:, -1],
        trace=values.sum(1),
        sqrt_norm=sqrt_norm,
        inv_norm=inv_norm,
        least=torch.zeros_like(size),
        sqrt_residual=norm(found.sqrt @ found.sqrt - a) / spd.positive_or_one(size),
        inv_residual=norm(found.inv_sqrt @ (a @ found.inv_sqrt) - spd.identity_like(a)),
        sqrt_error=sqrt_error,
        inv_error=inv_error,
        gradient_error=gradient_error,
        inv_gradient_error=inv_gradient_error,
        gradient_size=gradient_norm / norm(g),
        inv_gradient_size=inv_gradient_norm / norm(g),
        sqrt_change=torch.zeros_like(size),
        inv_change=torch.zeros_like(size),
    )


def by_residuals(a: Tensor, g: Tensor, found: Results) -> Truth:
    """The truth of matrices in double precision: see ``by_eigh`` for the arguments.

    With S = S* + E and S*² = A: S E + E S − E² = S² − A, solved by the eigenpairs of S, to which
    a digit or two would do. Likewise S E + E S + E A E = Z A Z − I for Z = Z* + E, and the
    gradients satisfy linear equations with S* = S − E in them.
    """
    a, a_low = hermitian(a)
    values = torch.linalg.eigvalsh(a)
    size, identity = norm(a), spd.identity_like(a)
    have = found.sqrt.isfinite().all(-1).all(-1)
    root = torch.where(have[:, None, None], found.sqrt, identity)
    s, q = torch.linalg.eigh(root)
    signed, s = s, s.abs()
    sums = s[:, :, None] + s[:, None, :]
    # Zero roots have no error that a linear equation could tell: see Truth.
    weights = 1 / spd.positive_or_one(sums)
    products = s[:, :, None] * s[:, None, :]

    high, rest = product(found.sqrt, found.sqrt)
    residual = (high - a) + (rest - a_low)
    # E in the eigenvectors of S, once by the linear equation and once with the square in it.
    r = q.mH @ residual @ q
    first = r * weights
    e = (r + first @ first) * weights
    sqrt_change = norm(e - first) / spd.positive_or_one(norm(e))
    # A negative eigenvalue of S has a residual as small as its opposite.
    wrong = 2 * signed.clamp(max=0).square().sum(1).sqrt()
    sqrt_error = norm(e) + wrong
    e = q @ e @ q.mH

    z = found.inv_sqrt
    high, rest = product(a, z)
    high2, rest2 = product(z, high)
    inv_residual = (high2 - identity) + (rest2 + z @ (rest + a_low @ z))
    r = q.mH @ inv_residual @ q
    first = r * weights
    e_inv = (r - (first * s.square()[:, None, :]) @ first) * weights
    inv_change = norm(e_inv - first) / spd.positive_or_one(norm(e_inv))

    sqrt_norm = values.clamp(min=0).sum(1).sqrt()
    inv_norm = (1 / s).square().sum(1).sqrt()

    # S* L + L S* = G.
    gradient = found.gradient
    high, rest = product(root, gradient)
    half = rest - e @ gradient
    off = (high + high.mH - g) + (half + half.mH)
    gradient_off = (q.mH @ off @ q) * weights

    # A M S* + S* M A = −G.
    inv_gradient = found.inv_gradient
    high, rest = product(inv_gradient, root)
    rest = rest - inv_gradient @ e
    high2, rest2 = product(a, high)
    half = rest2 + a @ rest + a_low @ high
    off = (high2 + high2.mH + g) + (half + half.mH)
    inv_gradient_off = (q.mH @ off @ q) * weights / spd.positive_or_one(products)
    return Truth(
        norm=size,
        low=values[:, 0],
        high=values[:, -1],
        trace=values.sum(1),
        sqrt_norm=sqrt_norm,
        inv_norm=inv_norm,
        least=signed[:, 0] / spd.positive_or_one(size.sqrt()),
        sqrt_residual=norm(residual) / spd.positive_or_one(size),
        inv_residual=norm(inv_residual),
        sqrt_error=sqrt_error / spd.positive_or_one(sqrt_norm),
        inv_error=norm(e_inv) / inv_norm,
        gradient_error=_relative(gradient_off, q.mH @ gradient @ q),
        inv_gradient_error=_relative(inv_gradient_off, q.mH @ inv_gradient @ q),
        gradient_size=norm(gradient) / norm(g),
        inv_gradient_size=norm(inv_gradient) / norm(g),
        sqrt_change=sqrt_change,
        inv_change=inv_change,
    )


def _relative(off: Tensor, x: Tensor) -> Tensor:
    """‖E‖_F/‖X − E‖_F for the error E of X."""
    return norm(off) / spd.positive_or_one(norm(x - off))
