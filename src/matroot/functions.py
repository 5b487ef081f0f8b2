"""What is computed: functions of Hermitian matrices A = Q diag(λ) Qᴴ, f(A) = Q diag(f(λ)) Qᴴ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

Root = Literal["sqrt", "inv_sqrt", "both"]


class SpectralFunction(ABC):
    """A function of a matrix by its eigenvalues.

    Attributes:
        definite: whether its argument has no negative eigenvalues.
        regular: whether its argument has no eigenvalue 0.
    """

    definite: ClassVar[bool] = True
    regular: ClassVar[bool] = False

    @abstractmethod
    def values(self, eigenvalues: Tensor, null: Tensor) -> Tensor:
        """f(λ), shape (..., n), 0 for null eigenvalues where f has none at 0.

        Args:
            eigenvalues: λ, shape (..., n).
            null: which of them are zero to rounding.
        """


@dataclass(frozen=True)
class Sqrt(SpectralFunction):
    """f(λ) = √λ; eigenvalues that rounding left below zero count as zero."""

    def values(self, eigenvalues: Tensor, null: Tensor) -> Tensor:
        """See SpectralFunction.values."""
        # The double where keeps the derivative at zero eigenvalues finite when this is unrolled.
        positive = eigenvalues > 0
        return torch.where(positive, torch.where(positive, eigenvalues, 1.0).sqrt(), 0.0)


@dataclass(frozen=True)
class InvSqrt(SpectralFunction):
    """f(λ) = 1/√λ; null eigenvalues are left out, which makes it the pseudo-inverse root."""

    regular = True

    def values(self, eigenvalues: Tensor, null: Tensor) -> Tensor:
        """See SpectralFunction.values."""
        return torch.where(null, 0.0, 1.0 / torch.where(null, 1.0, eigenvalues).sqrt())


Functions = tuple[SpectralFunction, ...]
SQRT, INV_SQRT = Sqrt(), InvSqrt()
BOTH: Functions = (SQRT, INV_SQRT)
ROOTS: dict[Root, Functions] = {"sqrt": (SQRT,), "inv_sqrt": (INV_SQRT,), "both": BOTH}


def only_roots(functions: Functions) -> bool:
    """Whether all of them are the two roots."""
    return len([f for f in functions if type(f) in (Sqrt, InvSqrt)]) == len(functions)


def belonging(
    kind: type[SpectralFunction], functions: Functions, things: Sequence[Tensor | None]
) -> Tensor | None:
    """The thing that belongs to the function of this kind, None where it was not asked for."""
    for function, thing in zip(functions, things, strict=True):
        if type(function) is kind:
            return thing
    return None


class Wanted(NamedTuple):
    """Which of the two roots are wanted."""

    sqrt: bool
    inv_sqrt: bool


def wanted_roots(functions: Functions) -> Wanted:
    """Which of the two roots are among the functions."""
    sqrt = inv_sqrt = False
    for function in functions:
        sqrt = sqrt or type(function) is Sqrt
        inv_sqrt = inv_sqrt or type(function) is InvSqrt
    return Wanted(sqrt, inv_sqrt)


def roots_in_order(
    functions: Functions, sqrt: Tensor | None, inv_sqrt: Tensor | None
) -> tuple[Tensor, ...]:
    """The values of the functions, which are roots."""
    found = [sqrt if type(function) is Sqrt else inv_sqrt for function in functions]
    return tuple([x for x in found if x is not None])
