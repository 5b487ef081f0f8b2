"""PyTorch's operations: on an accelerator whole calls in few of them, else what methods are."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from matroot.gradients import Kept, Lyapunov
from matroot.gradients.rule import Cotangents
from matroot.kernels import large
from matroot.kernels.kernel import Family, GradientKernel, ValueKernel
from matroot.kernels.passes import ByOperations
from matroot.methods import Minimax
from matroot.request import Request

_PASSES = ByOperations()


def _gradient(request: Request, kept: Kept, g: Cotangents) -> Tensor | None:
    return large.gradient(_PASSES, kept, g) if large.fits_gradient(kept, g) else None


TORCH = Family(
    name="torch",
    declines=lambda a: None,
    values={Minimax: (ValueKernel("large", large.declines, partial(large.values, _PASSES)),)},
    gradients={Lyapunov: (GradientKernel("large", large.gradient_declines, _gradient),)},
)
