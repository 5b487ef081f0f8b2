"""Collectives with derivatives, of PyTorch's functional ones, which compilers can trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import _functional_collectives as functional


def processes(group: Any = None) -> int:
    """How many processes a group has; 1 where PyTorch runs in one process alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size(group)


def summed(x: Tensor, group: Any = None) -> Tensor:
    """Σ over the processes of a group, the same bits in each of them; one all-reduce.

    The derivative is the same sum of the processes' cotangents: that of the sum of all processes'
    losses. It may be differentiated again.

    Args:
        x: any shape, the same in every process.
        group: None: the default group.
    """
    total: Tensor = _Summed.apply(x, distributed.group.WORLD if group is None else group)
    return total


class _Summed(torch.autograd.Function):
    """See ``summed``."""

    @staticmethod
    def forward(x: Tensor, group: Any) -> Tensor:
        total = functional.all_reduce(x, "sum", group)
        # PyTorch leaves it without types.
        return functional.wait_tensor(total)  # type: ignore[no-untyped-call, no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Any], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return summed(g.contiguous(), ctx.group), None
