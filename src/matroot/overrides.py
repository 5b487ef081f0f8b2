"""Calls with arguments that stand for tensors, such as torch.fx's proxies.

An argument with ``__torch_function__`` handles the call, as with PyTorch's own functions: so
``torch.fx.symbolic_trace`` records a call of matroot's function, or of a layer, as one node.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn
from torch.fx import Proxy
from torch.overrides import handle_torch_function, has_torch_function

from matroot import checks

P = ParamSpec("P")
R = TypeVar("R")


def overridable(function: Callable[P, R]) -> Callable[P, R]:
    """The function; arguments with ``__torch_function__`` that are no tensors handle its calls.

    Subclasses of Tensor do not: they handle the operations inside.
    """

    @functools.wraps(function)
    def dispatching(*args: P.args, **kwargs: P.kwargs) -> R:
        # In C, and true for modes and subclasses of Tensor too, which are sorted out next.
        if has_torch_function((*args, *kwargs.values())):
            proxies = tuple(filter(_stands_for_a_tensor, (*args, *kwargs.values())))
            if proxies:
                value: R = handle_torch_function(dispatching, proxies, *args, **kwargs)
                return value
        return function(*args, **kwargs)

    return dispatching


def _stands_for_a_tensor(x: object) -> bool:
    return not isinstance(x, Tensor) and hasattr(type(x), "__torch_function__")


class Leaf(nn.Module):
    """A module that torch.fx's tracers record as one call, as they do PyTorch's own modules.

    Its ridge ``eps``, if it has one, is a number that is finite and at least 0, also where it is
    set later.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """As torch.nn.Module, but for what no ridge can be."""
        if name == "eps":
            checks.finite_at_least_zero(f"{type(self).__name__}: eps", value)
        super().__setattr__(name, value)

    @property
    def itself(self) -> Leaf:
        """The module, as an attribute through which a trace of this module alone calls it."""
        return self

    def recorded(self, *inputs: Any) -> Any:
        """The proxy of this module's result where an input is a proxy, None where none is."""
        for x in inputs:
            if isinstance(x, Proxy):
                tracer: Any = x.tracer
                path = tracer.path_of_module(self) or "itself"
                return tracer.create_proxy("call_module", path, inputs, {})
        return None
