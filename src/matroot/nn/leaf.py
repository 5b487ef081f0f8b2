"""What all layers share."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy

from matroot import checks


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
