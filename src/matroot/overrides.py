"""Calls with arguments that stand for tensors, such as torch.fx's proxies.

An argument with ``__torch_function__`` handles the call, as with PyTorch's own functions: so
``torch.fx.symbolic_trace`` records a call of matroot's function as one node.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

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
