"""How good roots are: their residuals, and whether these are at the level of rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from matroot import spd
from matroot.request import Request


def residuals(
    request: Request, a: Tensor, sqrt: Tensor | None, inv_sqrt: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """‖S² − A‖_F/‖A‖_F, ‖Z A Z − I‖_F/√n, and the larger of both over the level of rounding."""
    x, n, dtype = a.detach(), max(a.shape[-1], 1), request.input_dtype
    if a.numel() == 0:
        zeros = torch.zeros(a.shape[:-2], dtype=spd.real_dtype(x.dtype), device=a.device)
        return None if sqrt is None else zeros, None if inv_sqrt is None else zeros, zeros
    identity = spd.identity_like(x)
    # In units in which nothing overflows: 4^j for A, 2^j for its root.
    j = torch.where(spd.max_abs(x).isfinite(), spd.even_exponent(x, request.eps), 0)
    half = torch.div(j, 2, rounding_mode="floor")
    ridge = spd.times_power_of_two(request.eps * identity.expand_as(x), -j)
    y = spd.hermitian_part(spd.times_power_of_two(x, -j)) + ridge
    norm = spd.frobenius_norm(y)[..., 0, 0]
    level = 16 * n**0.5 * spd.real_eps(x.dtype)
    if dtype != x.dtype:
        level += spd.real_eps(dtype)
    residual = inv_residual = None
    ratio = torch.zeros_like(norm)
    if sqrt is not None:
        s = spd.times_power_of_two(sqrt.detach().to(x.dtype), -half)
        residual = spd.frobenius_norm(s @ s - y)[..., 0, 0] / spd.positive_or_one(norm)
        ratio = residual / level
    if inv_sqrt is not None:
        z = spd.times_power_of_two(inv_sqrt.detach().to(x.dtype), half)
        p = z @ y @ z
        rest = p @ p - p if request.singular == "pinv" else p - identity
        inv_residual = spd.frobenius_norm(rest)[..., 0, 0] / n**0.5
        unit = 2 * spd.real_eps(x.dtype) + (spd.real_eps(dtype) if dtype != x.dtype else 0)
        least = unit * norm * spd.frobenius_norm(z)[..., 0, 0].square() / n**0.5
        ratio = torch.maximum(ratio, inv_residual / spd.positive_or_one(least))
    return residual, inv_residual, ratio
