"""Solve by a kernel or the method, and attach the derivative: every function's path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from matroot import autodiff, context
from matroot.evaluated import Evaluated, by_solver
from matroot.gradients import ExplicitRule
from matroot.gradients.rule import Cotangents
from matroot.kernels import Solved
from matroot.plan import Plan
from matroot.request import Request


def evaluate(plan: Plan, x: Tensor, *, prepare: bool = False, fuse: bool = True) -> Evaluated:
    """The values.

    Args:
        plan: the call.
        x: shape (..., n, n), in the computing dtype.
        prepare: whether to find the constants of the derivative by the plan's ExplicitRule.
        fuse: whether kernels may be used, whose results have no derivative of their own.
    """
    request = plan.request if prepare else plan.plain
    if fuse:
        seen = x.detach() if x.requires_grad else x
        for kernel in plan.value_kernels(request, seen):
            found = kernel.run(request, seen)
            if found is not None:
                return _completed(request, seen, found)
    return _by_method(request, x)


def _completed(request: Request, x: Tensor, found: Solved) -> Evaluated:
    """What a kernel has found, and by the method the matrices that it left."""
    whole = Evaluated(found.info, found.values, found.constants, found.all_ok)
    if found.left is not None:
        # One by one: the bits of a matrix must not depend on how many others are left.
        for index in found.left.nonzero().tolist():
            place = tuple(index)
            one = _by_method(request, x[place])
            for to, part in zip(whole.flat(), one.flat(), strict=True):
                to[place] = part
    return whole


def _by_method(request: Request, x: Tensor) -> Evaluated:
    """``evaluate`` by the method and the rule, which PyTorch's operations are."""
    return by_solver(request, x, request.method.solve)


def _vjp(plan: Plan, saved: tuple[Tensor, ...], g: Cotangents) -> Tensor:
    """The gradient by A: by a kernel, or else by the rule."""
    request = plan.request
    assert isinstance(request.rule, ExplicitRule)
    kept = request.kept(saved)
    # A kernel's result has no derivative of its own.
    if not torch.is_grad_enabled():
        for kernel in plan.gradient_kernels(saved[0]):
            x = kernel.run(request, kept, g)
            if x is not None:
                return x
    return request.rule.vjp(kept, g)


def run(plan: Plan, x: Tensor) -> Evaluated:
    """The values asked for, differentiable where a derivative may be asked for.

    Args:
        plan: the call.
        x: shape (..., n, n), in the computing dtype.
    """
    differentiated = autodiff.differentiated(x)
    if differentiated and isinstance(plan.request.rule, ExplicitRule):
        found = apply(plan, x)
    else:
        found = evaluate(plan, x, fuse=not differentiated)
    asked = len(plan.request.functions)
    return found if asked == len(found.values) else replace(found, values=found.values[-asked:])


def apply(plan: Plan, x: Tensor) -> Evaluated:
    """``evaluate`` with the derivative of the plan's ExplicitRule attached."""
    function = autodiff.traceable(_Values, _ForwardValues, _EagerValues)
    info, *rest = function.apply(plan, x)
    count = len(plan.request.solved)
    return Evaluated(info, tuple(rest[:count]), tuple(rest[count:]))


def _saved(plan: Plan, x: Tensor, found: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What ``Request.kept`` is to be made of."""
    if plan.request.roots_only:
        return tuple(found)
    return (x, *found[len(plan.request.solved) :])


class _Values(torch.autograd.Function):
    """Functions of A with the derivative of an ExplicitRule."""

    @staticmethod
    def forward(plan: Plan, x: Tensor) -> tuple[Tensor, ...]:
        return evaluate(plan, x, prepare=True).flat()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Plan, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.plan = inputs[0]
        info, *rest = output
        ctx.mark_non_differentiable(info, *rest[len(ctx.plan.request.solved) :])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*_saved(*inputs, rest))

    @staticmethod
    def backward(ctx: Any, _info: None, *g: Tensor | None) -> tuple[None, Tensor | None]:
        plan: Plan = ctx.plan
        cotangents = g[: len(plan.request.solved)]
        if all(value is None for value in cotangents):
            return None, None
        saved = ctx.saved_tensors  # Once: activation checkpointing allows no second look.
        with context.no_autocast(saved[0]):
            return None, _vjp(plan, saved, cotangents)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[None, int], plan: Plan, x: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = apply(plan, x.movedim(in_dims[1], 0)).flat()
        return outputs, (0,) * len(outputs)


class _ForwardValues(_Values):
    """The same with a forward-mode rule, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Plan, Tensor], output: tuple[Tensor, ...]) -> None:
        _Values.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*_saved(*inputs, output[1:]))

    @staticmethod
    def jvp(ctx: Any, _plan: None, e: Tensor) -> tuple[Tensor | None, ...]:
        request: Request = ctx.plan.request
        assert isinstance(request.rule, ExplicitRule)
        kept = request.kept(autodiff.primals(ctx.saved_tensors))
        with autodiff.nested_forward_mode(), context.no_autocast(e):
            tangents = request.rule.jvp(kept, e)
        return (None, *tangents, *(None for _ in kept.constants))


_EagerValues = autodiff.in_one_step(_ForwardValues)
