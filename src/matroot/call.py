"""A call, from checked arguments to values in the caller's dtype, and the errors that it raises."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from matroot import checks, context, errors, pseudo, solve, spd
from matroot.evaluated import Evaluated
from matroot.plan import Plan


def values(
    plan: Plan,
    a: Tensor,
    check_errors: bool | None,
    relative_eps: float = 0.0,
    rtol: float | None = None,
    *,
    named: errors.Named,
) -> tuple[Tensor, ...]:
    """The one path behind every public function; the values asked for, in their order.

    Layers say what their errors are to call the matrices, and what helps there.
    """
    if type(relative_eps) is not float or relative_eps:
        checks.ridge(relative_eps, a.dtype, "relative_eps")
    check = _checking(plan, a, check_errors)
    if a.numel() == 0:
        return tuple(a.clone() for _ in plan.request.functions)
    found, x = evaluated(plan, a, relative_eps, rtol)
    if check and not found.all_ok:
        limits = plan.request.thresholds(x.shape[-1])
        errors.raise_if_bad(named, found.info[..., 0], x, limits, plan.request.eps)
    return found.values


def _checking(plan: Plan, a: Tensor, check_errors: bool | None) -> bool:
    """See ``checks.checking``, which a plan for plain tensors has been asked before."""
    if check_errors is None and plan.chosen is not None:
        return plan.chosen.readable
    return checks.checking(check_errors, a)


def evaluated(
    plan: Plan, a: Tensor, relative_eps: float, rtol: float | None
) -> tuple[Evaluated, Tensor]:
    """What was found, the roots in a's dtype, and A with the relative ridge, computing dtype."""
    dtype = plan.request.computing_dtype
    with context.no_autocast(a):
        x = a if a.dtype == dtype else a.to(dtype)
        if relative_eps:
            x = _relatively_ridged(x, relative_eps)
        found = solve.run(plan, x) if rtol is None else pseudo.run(plan, x, rtol)
        if a.dtype != dtype:
            found = replace(found, values=tuple(value.to(a.dtype) for value in found.values))
    return found, x


def _relatively_ridged(x: Tensor, relative_eps: float) -> Tensor:
    """A + relative_eps·‖A‖_F I, in units in which nothing overflows."""
    seen = x.detach()
    k = torch.where(spd.max_abs(seen).isfinite(), spd.exponent(seen), 0)
    norm = spd.frobenius_norm(spd.times_power_of_two(x, -k))
    return x + spd.times_power_of_two(relative_eps * norm, k) * spd.identity_like(x)
