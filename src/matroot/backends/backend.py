"""What a backend is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


def kind(algorithm: object) -> str:
    """The name of a method's or rule's class if it is one of matroot's own, else "".

    Kernels lie below methods and know them by name. A user's class of the same name is another.
    """
    cls = type(algorithm)
    return (
        cls.__name__
        if cls.__module__.startswith(("matroot.methods.", "matroot.gradients."))
        else ""
    )


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
        rule: the gradient rule whose constants are wanted; None where no derivative is.
        sqrt: whether A^{1/2} is wanted.
        inv_sqrt: whether A^{-1/2} is wanted.
        regular: whether a singular matrix has no result.
        eps: the ridge.
        input_dtype: the dtype that the user gave.
    """

    method: Any
    rule: Any
    sqrt: bool
    inv_sqrt: bool
    regular: bool
    eps: float
    input_dtype: torch.dtype


@dataclass(frozen=True)
class FusedRoots:
    """What such a kernel returns for matrices (..., n, n).

    Attributes:
        info: status, steps, whether converged, (..., 3), int64. Status.LEFT where a matrix is
            left to the reference.
        sqrt: A^{1/2}, exactly Hermitian, NaN where the status is not OK; None if not wanted.
        inv_sqrt: the same of A^{-1/2}.
        constants: what the rule's ``prepare`` returns.
        statuses: which statuses occur, status k as bit k; None if the host does not know.
    """

    info: Tensor
    sqrt: Tensor | None
    inv_sqrt: Tensor | None
    constants: tuple[Tensor, ...]
    statuses: int | None = None


@dataclass(frozen=True)
class GradientProblem:
    """One vector-Jacobian product of the roots: see ``ExplicitRule.vjp``.

    Attributes:
        rule: the gradient rule, with its options.
        sqrt: A^{1/2}, (..., n, n); None where the rule does without.
        inv_sqrt: A^{-1/2}; None where it was not asked for.
        constants: what the rule's ``prepare`` returned.
        g_sqrt: the cotangent of A^{1/2}, or None.
        g_inv: the cotangent of A^{-1/2}, or None.
    """

    rule: Any
    sqrt: Tensor | None
    inv_sqrt: Tensor | None
    constants: tuple[Tensor, ...]
    g_sqrt: Tensor | None
    g_inv: Tensor | None


class RootKernel(Protocol):
    """All of one call for roots on A, (..., n, n) in the computing dtype; None if it declines.

    Its results are memory of their own, not views.
    """

    def __call__(self, problem: RootProblem, a: Tensor) -> FusedRoots | None: ...


class GradientKernel(Protocol):
    """The gradient by A, Hermitian, (..., n, n); None where it declines."""

    def __call__(self, problem: GradientProblem) -> Tensor | None: ...


@dataclass(frozen=True)
class Backend:
    """The arithmetic that methods and gradient rules are written in.

    Attributes:
        name: what ``backend=`` calls it.
        matmul: AB on batches (b, n, n).
        addmm: βC + αAB on batches (b, n, n).
        declines: None where the backend takes this tensor, else the reason why not.
        roots: a kernel for whole calls, where there is one.
        gradient: a kernel for whole gradients, where there is one.
        method: the name of the method whose kernel is the best; None: no matter.
        on_request: why ``"auto"`` passes it by for this tensor; None: it does not.
        note: what is to be said of it beside that it takes this tensor.
    """

    name: str
    matmul: Callable[[Tensor, Tensor], Tensor]
    addmm: FusedProduct
    declines: Callable[[Tensor], str | None]
    roots: RootKernel | None = None
    gradient: GradientKernel | None = None
    method: str | None = None
    on_request: Callable[[Tensor], str | None] = lambda a: None
    note: Callable[[Tensor], str] | None = None
