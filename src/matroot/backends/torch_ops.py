"""The reference backend: PyTorch's own operations, on any device. It defines what is correct."""

from __future__ import annotations

import torch
from torch import Tensor

from matroot.backends import large
from matroot.backends.backend import Backend, FusedRoots, GradientProblem, RootProblem
from matroot.backends.passes import ByOperations


def _addmm(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    return torch.baddbmm(c, a, b, beta=beta, alpha=alpha)


_PASSES = ByOperations()


def _roots(problem: RootProblem, a: Tensor) -> FusedRoots | None:
    return large.roots(_PASSES, problem, a) if large.takes_roots(problem, a) else None


def _gradient(problem: GradientProblem) -> Tensor | None:
    return large.gradient(_PASSES, problem) if large.takes_gradient(problem) else None


TORCH = Backend(
    name="torch",
    matmul=torch.bmm,
    addmm=_addmm,
    declines=lambda a: None,
    roots=_roots,
    gradient=_gradient,
)
