"""The registered functions in mpmath's arithmetic: what is true to as many digits as are wanted."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial, partialmethod
from typing import Any

import mpmath
import torch

from matroot.functions import Exp, InvSqrt, Log, Power, SpectralFunction, Sqrt


def exactly(function: SpectralFunction) -> Callable[[Any], Any]:
    """The function of mpmath's numbers.

    One that is not among these is true as its ``values`` are written: they are evaluated in as many
    digits as mpmath has been told. Its slope, divided differences and matrices are compared with
    that; that it is the function it is called, only a line here can tell.
    """
    if isinstance(function, Power):
        p = int(function.p) if function.whole else mpmath.mpf(function.p)
        return lambda x: x**p if x != 0 or p >= 0 else mpmath.inf
    known = {
        Sqrt: mpmath.sqrt,
        InvSqrt: lambda x: 1 / mpmath.sqrt(x),
        Log: mpmath.log,
        Exp: mpmath.exp,
    }
    return known.get(type(function)) or as_written(function)


def as_written(function: SpectralFunction) -> Callable[[Any], Any]:
    """The function of mpmath's numbers, by its ``values``."""
    return lambda x: function.values(Digits(x)).x


def difference(f: Callable[[Any], Any], *points: float) -> Any:
    """f[x, …] as it is written; ties are taken apart, by 1e-60 of them."""
    x = []
    for i, point in enumerate(map(mpmath.mpf, points)):
        shift = i * mpmath.mpf(10) ** -60 * (abs(point) or 1)
        x.append(point + shift if point in points[:i] else point)
    table = [f(point) for point in x]
    for order in range(1, len(x)):
        table = [(table[i + 1] - table[i]) / (x[i + order] - x[i]) for i in range(len(table) - 1)]
    return table[0]


def _applied(operation: Callable[..., Any], *args: Any) -> Digits:
    return Digits(operation(*(a.x if isinstance(a, Digits) else a for a in args)))


class Digits:
    """A number, or a bool, of mpmath's that answers to the names of PyTorch's operations."""

    dtype = torch.float64

    def __init__(self, x: Any) -> None:
        self.x = x if isinstance(x, bool) else mpmath.mpf(x)

    def __bool__(self) -> bool:
        return bool(self.x)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _applied(_named(func.__name__), *args)

    def __getattr__(self, name: str) -> Any:
        return partial(_applied, _named(name), self)


def _named(name: str) -> Callable[..., Any]:
    """PyTorch's operation of this name, on numbers."""
    found = _OPERATIONS.get(name) or getattr(mpmath, name, None)
    if found is None:
        raise NotImplementedError(f"tests/exact.py does not know {name}: add it to _OPERATIONS")
    return found


# Where mpmath has no function of that name.
_OPERATIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "arctan": mpmath.atan,
    "isfinite": lambda x: bool(mpmath.isfinite(x)),
    "isnan": lambda x: bool(mpmath.isnan(x)),
    "maximum": max,
    "minimum": min,
    "pow": operator.pow,
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / mpmath.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "square": lambda x: x**2,
    "where": lambda condition, x, y: x if condition else y,
}
for _name in ("add", "sub", "mul", "truediv", "pow"):
    _operation = getattr(operator, _name)
    setattr(Digits, f"__{_name}__", partialmethod(lambda x, y, f: _applied(f, x, y), f=_operation))
    setattr(Digits, f"__r{_name}__", partialmethod(lambda x, y, f: _applied(f, y, x), f=_operation))
for _name in ("neg", "abs", "lt", "le", "gt", "ge", "eq", "ne", "and_", "or_"):
    _operation = getattr(operator, _name)
    _method = partialmethod(lambda *args, f: _applied(f, *args), f=_operation)
    setattr(Digits, f"__{_name.rstrip('_')}__", _method)
