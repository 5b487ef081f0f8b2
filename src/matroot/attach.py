"""Normalise, solve, and attach the derivative: what stands behind every function."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from matroot import autodiff, normalize, spd
from matroot.backends import RootProblem
from matroot.checks import Status
from matroot.gradients import ExplicitRule, Lyapunov
from matroot.plan import Plan


def evaluate(plan: Plan, x: Tensor) -> tuple[Tensor, ...]:
    """(info, the roots of ``plan.solved``, the constants of the derivative), batch first.

    info, shape (..., 3), int64: the Status of each matrix; the steps taken; whether the method says
    that they converged, 0 no, 1 yes, 2 where it cannot tell.

    Args:
        plan: the call.
        x: shape (..., n, n), in the computing dtype.
    """
    fused = _fused(plan, x)
    return _evaluate(plan, x) if fused is None else fused


def _evaluate(plan: Plan, x: Tensor) -> tuple[Tensor, ...]:
    """``evaluate`` by the method, the rule and the backend's products."""
    batch, n = x.shape[:-2], x.shape[-1]
    flat = x.reshape(math.prod(batch), n, n)
    a, k, status = normalize.normalized(flat, plan.input_dtype, plan.eps)
    if plan.input_dtype != x.dtype and not plan.method.spectral:
        a = normalize.without_rounded_negatives(a, plan.input_dtype)
    solution = plan.method.solve(a, plan.solved, plan.ops)
    seen = None if solution.eigenvalues is None else solution.eigenvalues.detach()
    inverse = plan.root != "sqrt" and plan.singular == "raise"
    found = normalize.definiteness(
        a.detach(), plan.input_dtype, inverse=inverse, eigenvalues=seen, bounds=solution.bounds
    )
    status = torch.maximum(status, found)
    if solution.diverged is not None:
        status = torch.where(solution.diverged & (status == Status.OK), Status.DIVERGED, status)
    ok = (status == Status.OK)[:, None, None]
    half = torch.div(k, 2, rounding_mode="floor")
    wanted = [
        spd.times_power_of_two(spd.hermitian_part(value), power).reshape(x.shape)
        for value, power in ((solution.sqrt, half), (solution.inv_sqrt, -half))
        if value is not None
    ]
    # Reshaped before the last operation: an output that is a view could not be changed in place.
    good = ok.reshape((*batch, 1, 1))
    roots = [torch.where(good, value, spd.nan_where(~good, x)) for value in wanted]
    constants: tuple[Tensor, ...] = ()
    if isinstance(plan.rule, ExplicitRule):
        if solution.sqrt is not None:
            safe = torch.where(ok, solution.sqrt, spd.identity_like(a))
            solution = replace(solution, sqrt=spd.hermitian_part(safe))
        scale = spd.power_of_two(half, a)
        constants = tuple(
            torch.where(ok.reshape((-1,) + (1,) * (c.ndim - 1)), c, torch.nan)
            for c in plan.rule.prepare(a.detach(), solution, scale, plan.ops)
        )
    steps = torch.as_tensor(solution.steps, device=x.device).expand_as(status)
    told = 2 * torch.ones_like(status) if solution.converged is None else solution.converged.long()
    info = torch.stack([status, steps, torch.where(ok[:, 0, 0], told, 0)], -1)
    rest = (t.reshape((*batch, *t.shape[1:])) for t in (info, *constants))
    return (next(rest), *roots, *rest)


def _fused(plan: Plan, x: Tensor) -> tuple[Tensor, ...] | None:
    """``evaluate`` by the backend's own kernel, None where that does not apply."""
    explicit = isinstance(plan.rule, ExplicitRule)
    if plan.ops.roots is None or (explicit and plan.rule != Lyapunov()):
        return None
    if not explicit and torch.is_grad_enabled() and x.requires_grad:
        return None  # To be differentiated operation by operation.
    problem = RootProblem(
        method=plan.method,
        sqrt=plan.solved != "inv_sqrt",
        inv_sqrt=plan.solved != "sqrt",
        bounds=explicit,
        eps=plan.eps,
        input_dtype=plan.input_dtype,
    )
    batch, n = x.shape[:-2], x.shape[-1]
    flat = x.detach().reshape(math.prod(batch), n, n)
    found = plan.ops.roots(problem, flat)
    if found is None:
        return None
    outputs = [t for t in (found.info, found.sqrt, found.inv_sqrt, found.bounds) if t is not None]
    (left,) = torch.where(found.info[:, 0] == Status.DIVERGED)
    if len(left) > 0:
        for whole, part in zip(outputs, _evaluate(plan, flat[left]), strict=True):
            whole[left] = part
    return tuple(t.reshape((*batch, *t.shape[1:])) for t in outputs)


def apply(plan: Plan, x: Tensor) -> tuple[Tensor, ...]:
    """``evaluate`` with the derivative of the plan's ExplicitRule attached."""
    function = autodiff.traceable(_Root, _ForwardRoot)
    outputs: tuple[Tensor, ...] = function.apply(plan, x)
    return outputs


class _Root(torch.autograd.Function):
    """The roots of A with the derivative of an ExplicitRule."""

    @staticmethod
    def forward(plan: Plan, x: Tensor) -> tuple[Tensor, ...]:
        return evaluate(plan, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Plan, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.plan = inputs[0]
        info, *rest = output
        ctx.mark_non_differentiable(info, *rest[ctx.plan.kept :])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*rest)

    @staticmethod
    def backward(ctx: Any, _info: None, *g: Tensor | None) -> tuple[None, Tensor | None]:
        plan: Plan = ctx.plan
        g_roots = g[: plan.kept]
        if all(value is None for value in g_roots):
            return None, None
        g_sqrt = g_roots[0] if plan.solved != "inv_sqrt" else None
        g_inv = g_roots[-1] if plan.solved != "sqrt" else None
        saved = ctx.saved_tensors  # Once: activation checkpointing allows no second look.
        assert isinstance(plan.rule, ExplicitRule)
        with autodiff.no_autocast(saved[0]):
            return None, plan.rule.vjp(plan.roots(saved), g_sqrt, g_inv, plan.ops)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[None, int], plan: Plan, x: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = apply(plan, x.movedim(in_dims[1], 0))
        return outputs, (0,) * len(outputs)


class _ForwardRoot(_Root):
    """The same with a forward-mode rule, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Plan, Tensor], output: tuple[Tensor, ...]) -> None:
        _Root.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*output[1:])

    @staticmethod
    def jvp(ctx: Any, _plan: None, e: Tensor) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        assert isinstance(plan.rule, ExplicitRule)
        saved = autodiff.primals(ctx.saved_tensors)
        with autodiff.nested_forward_mode(), autodiff.no_autocast(e):
            tangents = plan.rule.jvp(plan.roots(saved), e, plan.ops)
        wanted = [t for t in tangents if t is not None]
        return (None, *wanted, *(None for _ in saved[plan.kept :]))
