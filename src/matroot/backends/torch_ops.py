"""The reference backend: PyTorch's own operations, on any device. It defines what is correct."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from matroot.backends import large
from matroot.backends.backend import Backend
from matroot.backends.passes import ByOperations


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    return torch.baddbmm(c, a, b, beta=beta, alpha=alpha)


_PASSES = ByOperations()
TORCH = Backend(
    name="torch",
    matmul=torch.bmm,
    addmm=_addmm,
    declines=lambda a: None,
    roots=partial(large.roots, _PASSES),
    gradient=partial(large.gradient, _PASSES),
)
