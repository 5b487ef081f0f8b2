"""Whole calls by compiled and fused kernels, above the methods and rules that they speed up.

What no kernel takes is done by the method and the rule themselves, by PyTorch's operations, which
define what is correct.
"""

from __future__ import annotations

from torch import Tensor

from matroot.kernels.kernel import Declined, Family, GradientKernel, Solved, ValueKernel
from matroot.kernels.native import NATIVE
from matroot.kernels.torch_ops import TORCH
from matroot.kernels.triton import TRITON, TRITON_DOUBLE, TRITON_TF32

__all__ = [
    "FAMILIES",
    "NATIVE",
    "TORCH",
    "TRITON",
    "TRITON_DOUBLE",
    "TRITON_TF32",
    "Declined",
    "Family",
    "GradientKernel",
    "Solved",
    "ValueKernel",
    "select",
]

FAMILIES = {family.name: family for family in (TORCH, NATIVE, TRITON, TRITON_TF32, TRITON_DOUBLE)}


def select(name: str, a: Tensor) -> tuple[Family, ...]:
    """The families to ask, in this order: the one called ``name``, or all that take ``a`` unasked.

    Raises:
        ValueError: no such family, or the named one declines this tensor.
    """
    if name == "auto":
        asked = [f for f in (NATIVE, TRITON) if f.declines(a) is None and f.on_request(a) is None]
        return (*asked, TORCH)
    if name not in FAMILIES:
        known = ", ".join(map(repr, ("auto", *FAMILIES)))
        raise ValueError(f"unknown backend {name!r}; known: {known}")
    reason = FAMILIES[name].declines(a)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run this: {reason}")
    return (FAMILIES[name],)
