"""The two roots among the functions: a pair is two functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from matroot.functions import InvSqrt, SpectralFunction, Sqrt

Functions = tuple[SpectralFunction, ...]
Root = Literal["sqrt", "inv_sqrt", "both"]

SQRT, INV_SQRT = Sqrt(), InvSqrt()
BOTH: Functions = (SQRT, INV_SQRT)
ROOTS: dict[Root, Functions] = {"sqrt": (SQRT,), "inv_sqrt": (INV_SQRT,), "both": BOTH}


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


def root_pair(
    functions: Functions, things: Sequence[Tensor | None]
) -> tuple[Tensor | None, Tensor | None]:
    """What belongs to the root and to the inverse root, None where one was not asked for."""
    return belonging(Sqrt, functions, things), belonging(InvSqrt, functions, things)


def roots_in_order(
    functions: Functions, sqrt: Tensor | None, inv_sqrt: Tensor | None
) -> tuple[Tensor, ...]:
    """The values of the functions, which are roots."""
    found = [sqrt if type(function) is Sqrt else inv_sqrt for function in functions]
    return tuple([x for x in found if x is not None])
