"""Whole calls by compiled and fused kernels, above the methods and rules that they speed up.

What no kernel takes is done by the method and the rule themselves, by PyTorch's operations, which
define what is correct.

A family of kernels is registered by its import here, ``import … as …`` so that type checkers let it
pass on.
"""

from __future__ import annotations

from torch import Tensor

from matroot.kernels.kernel import BackendName as BackendName
from matroot.kernels.kernel import Declined as Declined
from matroot.kernels.kernel import Family as Family
from matroot.kernels.kernel import GradientKernel as GradientKernel
from matroot.kernels.kernel import Solved as Solved
from matroot.kernels.kernel import ValueKernel as ValueKernel

# In the order in which "auto" asks them, but for TORCH, which comes last then. It passes by those
# that say why they run on request only: see Family.on_request.
# isort: off
from matroot.kernels.torch_ops import TORCH as TORCH
from matroot.kernels.native import NATIVE as NATIVE
from matroot.kernels.triton import TRITON as TRITON
from matroot.kernels.triton import TRITON_TF32 as TRITON_TF32
from matroot.kernels.triton import TRITON_DOUBLE as TRITON_DOUBLE

# isort: on

FAMILIES = {f.name: f for f in tuple(globals().values()) if isinstance(f, Family)}


def select(name: str, a: Tensor) -> tuple[Family, ...]:
    """The families to ask, in this order: the one called ``name``, or all that take ``a`` unasked.

    Raises:
        ValueError: no such family, or the named one declines this tensor.
    """
    if name == "auto":
        faster = [family for family in FAMILIES.values() if family is not TORCH]
        asked = [f for f in faster if f.on_request(a) is None and f.declines(a) is None]
        return (*asked, TORCH)
    if name not in FAMILIES:
        known = ", ".join(map(repr, ("auto", *FAMILIES)))
        raise ValueError(f"unknown backend {name!r}; known: {known}")
    reason = FAMILIES[name].declines(a)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run this: {reason}")
    return (FAMILIES[name],)
