"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class FusedProduct(Protocol):
    """βC + αAB on batches (b, n, n), C broadcast over the batch."""

    def __call__(
        self, c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1.0, alpha: float = 1.0
    ) -> Tensor: ...


@dataclass(frozen=True)
class RootProblem:
    """One call for roots, for a kernel that does all of it: see ``attach.evaluate``.

    Attributes:
        method: the method, with its options.
        sqrt: whether A^{1/2} is wanted.
        inv_sqrt: whether A^{-1/2} is wanted.
        bounds: whether bounds of the spectrum of A^{1/2} are wanted.
        eps: the ridge.
        input_dtype: the dtype that the user gave.
    """

    method: object
    sqrt: bool
    inv_sqrt: bool
    bounds: bool
    eps: float
    input_dtype: torch.dtype


@dataclass(frozen=True)
class FusedRoots:
    """What such a kernel returns for matrices (b, n, n).

    Attributes:
        info: status, steps, whether converged, (b, 3), int64. Status.DIVERGED where a matrix is
            left to others: it is singular to rounding, or indefinite.
        sqrt: A^{1/2}, exactly Hermitian, NaN where the status is not OK; None if not wanted.
        inv_sqrt: the same of A^{-1/2}.
        bounds: low and high, (b, 2); low is 0 where A may be singular; None if not wanted.
    """

    info: Tensor
    sqrt: Tensor | None
    inv_sqrt: Tensor | None
    bounds: Tensor | None


class RootKernel(Protocol):
    """All of one call for roots on A, (b, n, n) in the computing dtype; None where it declines."""

    def __call__(self, problem: RootProblem, a: Tensor) -> FusedRoots | None: ...


class GradientKernel(Protocol):
    """X of S X + X S = herm(G_S) − Z herm(G_Z) Z, (b, n, n); None where it declines.

    ``bounds`` are those of ``FusedRoots``. Where the lower one is 0 the result means nothing.
    """

    def __call__(
        self, s: Tensor, z: Tensor | None, g_s: Tensor | None, g_z: Tensor | None, bounds: Tensor
    ) -> Tensor | None: ...


@dataclass(frozen=True)
class Backend:
    """The arithmetic that methods and gradient rules are written in.

    Attributes:
        name: what ``backend=`` calls it.
        matmul: AB on batches (b, n, n).
        addmm: βC + αAB on batches (b, n, n).
        declines: None where the backend takes this tensor, else the reason why not.
        roots: a kernel for whole calls, where there is one.
        gradient: a kernel for the Lyapunov equation of both roots' gradient, where there is one.
    """

    name: str
    matmul: Callable[[Tensor, Tensor], Tensor]
    addmm: FusedProduct
    declines: Callable[[Tensor], str | None]
    roots: RootKernel | None = None
    gradient: GradientKernel | None = None
