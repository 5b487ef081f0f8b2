"""Screen, solve by a kernel or the method, finish, attach the derivative: every function's path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from matroot import autodiff, context, screen, spd, spectrum
from matroot.functions import Sqrt
from matroot.gradients import ExplicitRule
from matroot.gradients.rule import Cotangents
from matroot.kernels import Solved
from matroot.plan import Plan
from matroot.request import Request
from matroot.screen import Converged, Status
from matroot.solution import Solution


@dataclass
class Evaluated:
    """What a call has found.

    Attributes:
        info: shape (..., 3), int64: the Status of each matrix; the steps taken; whether the method
            says that they converged, see Converged.
        values: those of ``request.solved``, each (..., n, n).
        constants: those of the derivative, batch first.
        all_ok: whether it is known that every Status is OK.
    """

    info: Tensor
    values: tuple[Tensor, ...]
    constants: tuple[Tensor, ...] = ()
    all_ok: bool = False

    def flat(self) -> tuple[Tensor, ...]:
        """All tensors, as an autograd function returns them."""
        return (self.info, *self.values, *self.constants)


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
    batch, n = x.shape[:-2], x.shape[-1]
    limits = request.thresholds(n)
    flat = x.reshape(math.prod(batch), n, n)
    a, k, status = screen.normalized(flat, limits.skew, request.eps)
    products_only = context.exporting() and not request.method.factorises
    if request.rounded and not (request.method.spectral or products_only):
        a = spectrum.without_rounded_negatives(a, request.input_dtype)
    # Of functions other than the roots a method is asked for eigenpairs alone.
    solution = request.method.solve(a, request.solved if request.roots_only else ())
    if not products_only:
        pairs = solution.spectrum
        seen = None if pairs is None else pairs.values.detach()
        found = screen.definiteness(a.detach(), limits, eigenvalues=seen, bounds=solution.bounds)
        status = torch.maximum(status, found)
    if solution.diverged is not None:
        status = torch.where(solution.diverged & (status == Status.OK), Status.DIVERGED, status)
    ok = (status == Status.OK)[:, None, None]
    if not request.roots_only:
        solution = _by_eigenpairs(request, solution, k)
        k = torch.zeros_like(k)
    values = _scaled_back(solution, k, ok, x)
    constants: tuple[Tensor, ...] = ()
    if request.rule is not None:
        constants = _constants(request, a, solution, k, ok)
    steps = solution.steps
    if not isinstance(steps, Tensor):
        # Filled there: a number that is copied to a device waits for it.
        steps = torch.full((), steps, device=x.device)
    steps = steps.expand_as(status)
    reported = solution.converged
    reported = Converged.UNKNOWN * torch.ones_like(status) if reported is None else reported.long()
    info = torch.stack([status, steps, torch.where(ok[:, 0, 0], reported, Converged.NO)], -1)
    info, *rest = (t.reshape((*batch, *t.shape[1:])) for t in (info, *constants))
    return Evaluated(info, values, tuple(rest))


def _by_eigenpairs(request: Request, solution: Solution, k: Tensor) -> Solution:
    """The functions of A = 2ᵏ X by the eigenpairs of X, which are scaled back first."""
    assert solution.spectrum is not None
    pairs = solution.spectrum.scaled(k)
    values = tuple([pairs.assembled(function) for function in request.solved])
    return replace(solution, functions=request.solved, values=values, spectrum=pairs)


def _scaled_back(solution: Solution, k: Tensor, ok: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """The values of A = 2ᵏ X from those of X, Hermitian, NaN where not ``ok``."""
    half = torch.div(k, 2, rounding_mode="floor")
    wanted = [
        spd.times_power_of_two(
            spd.hermitian_part(value), half if type(function) is Sqrt else -half
        ).reshape(x.shape)
        for function, value in zip(solution.functions, solution.values, strict=True)
    ]
    # Reshaped before the last operation: an output that is a view could not be changed in place.
    good = ok.reshape((*x.shape[:-2], 1, 1))
    return tuple([torch.where(good, value, spd.nan_where(~good, x)) for value in wanted])


def _constants(
    request: Request, a: Tensor, solution: Solution, k: Tensor, ok: Tensor
) -> tuple[Tensor, ...]:
    """Those of the derivative, batch first, NaN where not ``ok``."""
    assert isinstance(request.rule, ExplicitRule)
    if solution.sqrt is not None:
        safe = torch.where(ok, solution.sqrt, spd.identity_like(a))
        solution = solution.with_sqrt(spd.hermitian_part(safe))
    scale = spd.power_of_two(torch.div(k, 2, rounding_mode="floor"), a)
    return tuple(
        torch.where(ok.reshape((-1,) + (1,) * (c.ndim - 1)), c, torch.nan)
        for c in request.rule.prepare(a.detach(), solution, scale)
    )


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
