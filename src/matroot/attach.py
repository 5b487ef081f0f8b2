"""Normalise, solve, and attach the derivative: what stands behind every function."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from matroot import autodiff, checks, normalize, spd
from matroot.backends import GradientProblem, RootProblem
from matroot.checks import Status
from matroot.gradients import ExplicitRule, Unrolled
from matroot.plan import Plan


@dataclass
class Evaluated:
    """What a call has found.

    Attributes:
        info: shape (..., 3), int64: the Status of each matrix; the steps taken; whether the method
            says that they converged, 0 no, 1 yes, 2 where it cannot tell.
        roots: those of ``plan.solved``, S before Z, each (..., n, n).
        constants: those of the derivative, batch first.
        all_ok: whether it is known that every Status is OK.
    """

    info: Tensor
    roots: tuple[Tensor, ...]
    constants: tuple[Tensor, ...] = ()
    all_ok: bool = False

    def flat(self) -> tuple[Tensor, ...]:
        """All tensors, as an autograd function returns them."""
        return (self.info, *self.roots, *self.constants)


def evaluate(plan: Plan, x: Tensor, *, prepare: bool = False, fuse: bool = True) -> Evaluated:
    """The roots.

    Args:
        plan: the call.
        x: shape (..., n, n), in the computing dtype.
        prepare: whether to find the constants of the derivative by the plan's ExplicitRule.
        fuse: whether kernels may be used whose results have no derivative of their own.
    """
    fused = _fused(plan, x, prepare) if fuse else None
    return _evaluate(plan, x, prepare) if fused is None else fused


def _evaluate(plan: Plan, x: Tensor, prepare: bool) -> Evaluated:
    """``evaluate`` by the method, the rule and the backend's products."""
    batch, n = x.shape[:-2], x.shape[-1]
    flat = x.reshape(math.prod(batch), n, n)
    a, k, status = normalize.normalized(flat, plan.input_dtype, plan.eps)
    products_only = autodiff.exporting() and not plan.method.factorises
    if plan.input_dtype != x.dtype and not (plan.method.spectral or products_only):
        a = normalize.without_rounded_negatives(a, plan.input_dtype)
    solution = plan.method.solve(a, plan.solved, plan.ops)
    seen = None if solution.eigenvalues is None else solution.eigenvalues.detach()
    inverse = plan.root != "sqrt" and plan.singular == "raise"
    if not products_only:
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
    if prepare:
        assert isinstance(plan.rule, ExplicitRule)
        if solution.sqrt is not None:
            safe = torch.where(ok, solution.sqrt, spd.identity_like(a))
            solution = replace(solution, sqrt=spd.hermitian_part(safe))
        scale = spd.power_of_two(half, a)
        constants = tuple(
            torch.where(ok.reshape((-1,) + (1,) * (c.ndim - 1)), c, torch.nan)
            for c in plan.rule.prepare(a.detach(), solution, scale, plan.ops)
        )
    steps = solution.steps
    if not isinstance(steps, Tensor):
        # Filled there: a number that is copied to a device waits for it.
        steps = torch.full((), steps, device=x.device)
    steps = steps.expand_as(status)
    told = 2 * torch.ones_like(status) if solution.converged is None else solution.converged.long()
    info = torch.stack([status, steps, torch.where(ok[:, 0, 0], told, 0)], -1)
    info, *rest = (t.reshape((*batch, *t.shape[1:])) for t in (info, *constants))
    return Evaluated(info, tuple(roots), tuple(rest))


def _fused(plan: Plan, x: Tensor, prepare: bool) -> Evaluated | None:
    """``evaluate`` by the backend's own kernel, None where that does not apply."""
    if plan.ops.roots is None:
        return None
    problem = RootProblem(
        method=plan.method,
        rule=plan.rule if prepare else None,
        sqrt=plan.solved != "inv_sqrt",
        inv_sqrt=plan.solved != "sqrt",
        regular=plan.root != "sqrt" and plan.singular == "raise",
        eps=plan.eps,
        input_dtype=plan.input_dtype,
    )
    x = x.detach() if x.requires_grad else x
    fused = plan.ops.roots(problem, x)
    if fused is None:
        return None
    roots = [t for t in (fused.sqrt, fused.inv_sqrt) if t is not None]
    found = Evaluated(fused.info, tuple(roots), fused.constants, fused.statuses == 1 << Status.OK)
    if fused.statuses is not None and fused.statuses & 1 << Status.LEFT:
        # One by one: the bits of a matrix must not depend on how many others are left.
        for index in (fused.info[..., 0] == Status.LEFT).nonzero().tolist():
            place = tuple(index)
            one = _evaluate(plan, x[place], prepare)
            for whole, part in zip(found.flat(), one.flat(), strict=True):
                whole[place] = part
    return found


def _vjp(
    plan: Plan, saved: tuple[Tensor, ...], g_sqrt: Tensor | None, g_inv: Tensor | None
) -> Tensor:
    """The gradient by A: by the backend's own kernel, or else by the rule."""
    assert isinstance(plan.rule, ExplicitRule)
    x = _fused_vjp(plan, saved, g_sqrt, g_inv)
    return plan.rule.vjp(plan.roots(saved), g_sqrt, g_inv, plan.ops) if x is None else x


def _fused_vjp(
    plan: Plan, saved: tuple[Tensor, ...], g_sqrt: Tensor | None, g_inv: Tensor | None
) -> Tensor | None:
    assert isinstance(plan.rule, ExplicitRule)
    # A kernel's result has no derivative of its own, nor does it know that of a pseudo-inverse.
    if plan.ops.gradient is None or torch.is_grad_enabled() or plan.singular == "pinv":
        return None
    roots = plan.roots(saved)
    problem = GradientProblem(
        rule=plan.rule,
        sqrt=roots.sqrt,
        inv_sqrt=roots.inv_sqrt,
        constants=roots.constants,
        g_sqrt=g_sqrt,
        g_inv=g_inv,
    )
    return plan.ops.gradient(problem)


def run(plan: Plan, x: Tensor) -> Evaluated:
    """The roots asked for, differentiable where a derivative may be asked for.

    Args:
        plan: the call.
        x: shape (..., n, n), in the computing dtype.
    """
    differentiated = checks.differentiated(x)
    if differentiated and isinstance(plan.rule, ExplicitRule):
        found = apply(plan, x)
    else:
        if not differentiated and plan.solved != plan.root:
            plan = replace(plan, rule=Unrolled())  # No root for a derivative's sake.
        found = evaluate(plan, x, fuse=not differentiated)
    return replace(found, roots=found.roots[-1:]) if plan.asked < len(found.roots) else found


def apply(plan: Plan, x: Tensor) -> Evaluated:
    """``evaluate`` with the derivative of the plan's ExplicitRule attached."""
    function = autodiff.traceable(_Root, _ForwardRoot, _EagerRoot)
    info, *rest = function.apply(plan, x)
    return Evaluated(info, tuple(rest[: plan.kept]), tuple(rest[plan.kept :]))


class _Root(torch.autograd.Function):
    """The roots of A with the derivative of an ExplicitRule."""

    @staticmethod
    def forward(plan: Plan, x: Tensor) -> tuple[Tensor, ...]:
        return evaluate(plan, x, prepare=True).flat()

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
        with autodiff.no_autocast(saved[0]):
            return None, _vjp(plan, saved, g_sqrt, g_inv)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[None, int], plan: Plan, x: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = apply(plan, x.movedim(in_dims[1], 0)).flat()
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


_EagerRoot = autodiff.in_one_step(_ForwardRoot)
