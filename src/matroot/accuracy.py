"""The one table of what accuracy is promised: see the numerics page."""

from __future__ import annotations

import math
from typing import Literal

import torch

Quantity = Literal["sqrt", "inv_sqrt", "gradient", "inv_gradient"]


def tolerance(dtype: torch.dtype, cond: float, quantity: Quantity) -> float:
    """The relative error that a converged result may have at a condition number.

    Rounding the input alone costs about u·√κ in the root and u·κ in the inverse root and in both
    gradients; the factors allow for n up to some hundreds and for every converged method. Half
    precision is computed in float32 and rounded once, at input and output.

    Args:
        dtype: of the matrices.
        cond: λ_max/λ_min.
        quantity: ``"sqrt"``, ``"inv_sqrt"``, ``"gradient"`` or ``"inv_gradient"``.

    Returns:
        The bound of ‖X − X₀‖_F/‖X₀‖_F.
    """
    unit = torch.finfo(dtype).eps
    if dtype in (torch.float16, torch.bfloat16):
        return unit + tolerance(torch.float32, cond, quantity)
    if quantity == "sqrt":
        return unit * (20 + 4 * math.sqrt(cond))
    return unit * (50 + 2 * cond)
