"""The pseudo-inverse root with a cut-off of the user's, differentiable to any order.

With P the projector on the eigenvectors of A whose eigenvalues are above rtol·λ_max, N = I − P and
any c > 0,

    A_r^{+1/2} = C^{-1/2} − c^{-1/2} N,    C = P A P + c N,

where C is regular: everything but P is a root like any other. The derivative of P has
E_ij/(λ_i − λ_j) between kept and null eigenvectors, 0 elsewhere. It is the Lyapunov equation of
B = (2P − I) A, the eigenvalues of which are λ_i and −λ_j: closed under any order of derivative.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from matroot import autodiff, screen, solve, spd, spectrum
from matroot.evaluated import Evaluated
from matroot.lyapunov import lyapunov
from matroot.lyapunov_solvers import BySpectrum
from matroot.plan import Plan
from matroot.roots import INV_SQRT, SQRT
from matroot.screen import Status


def run(plan: Plan, x: Tensor, rtol: float) -> Evaluated:
    """What ``solve.run`` returns, with eigenvalues up to rtol·λ_max left out of the inverse root.

    Args:
        plan: a call for the pseudo-inverse root.
        x: shape (..., n, n), in the computing dtype.
        rtol: at least 0; what is zero to rounding is left out in any case.
    """
    batch, n = x.shape[:-2], x.shape[-1]
    request, limits = plan.request, screen.thresholds(n, plan.request.input_dtype, x.dtype)
    a, k, status = screen.normalized(x.reshape(-1, n, n), limits.skew, request.eps)
    function = autodiff.traceable(_Projector, _ForwardProjector)
    p, values, _ = function.apply(a, max(rtol, limits.null))
    seen = values.abs()
    definite = screen.definiteness(a.detach(), limits, eigenvalues=values)
    status = torch.maximum(status, definite)
    ok = (status == Status.OK)[:, None, None]
    c = spd.positive_or_one(seen.amax(-1))[:, None, None]
    null = spd.identity_like(p) - p
    regular = spd.hermitian_part(p @ a @ p) + c * null
    regular_root = replace(
        request, functions=(INV_SQRT,), singular="raise", eps=0.0, input_dtype=x.dtype
    )
    safe = torch.where(ok, regular, spd.identity_like(p))
    found = solve.run(plan.of(regular_root), safe)
    z = spd.hermitian_part(found.values[-1] - null / c.sqrt())
    half = torch.div(k, 2, rounding_mode="floor")
    z = torch.where(ok, spd.times_power_of_two(z, -half), spd.nan_where(~ok, x.reshape(a.shape)))
    steps, converged = found.info[..., 1], found.info[..., 2]
    status = torch.maximum(status, found.info[..., 0])
    roots: tuple[Tensor, ...] = (z.reshape(x.shape),)
    if len(request.functions) > 1:
        root = replace(request, functions=(SQRT,), singular="raise")
        other = solve.run(plan.of(root), x)
        roots = (other.values[-1], *roots)
        status = torch.maximum(status, other.info[..., 0].flatten())
        converged = torch.minimum(converged, other.info[..., 2].flatten())
    converged = torch.where(status == Status.OK, converged, 0)
    info = torch.stack([status, steps, converged], -1)
    return Evaluated(info.reshape(*batch, 3), roots)


class _Projector(torch.autograd.Function):
    """(P, λ, Q) of matrices (b, n, n) and a cut-off; P has a derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, rtol: float) -> tuple[Tensor, Tensor, Tensor]:
        values, q = spectrum.eigh(a)
        kept = values > rtol * values.abs().amax(-1, keepdim=True)
        return spd.hermitian_part((q * kept[..., None, :].to(q.dtype)) @ q.mH), values, q

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        ctx.rtol = inputs[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: None) -> tuple[Tensor, None]:
        return _derivative(ctx.rtol, ctx.saved_tensors, g), None


class _ForwardProjector(_Projector):
    """The same with a forward-mode rule, which torch.compile does not take."""

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        _Projector.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0], *output)

    @staticmethod
    def jvp(ctx: Any, e: Tensor, _: None) -> tuple[Tensor, None, None]:
        with autodiff.nested_forward_mode():
            return _derivative(ctx.rtol, autodiff.primals(ctx.saved_tensors), e), None, None


def _derivative(rtol: float, saved: tuple[Tensor, ...], e: Tensor) -> Tensor:
    """The derivative of P in the direction E; self-adjoint."""
    a, p, values, q = saved
    null = spd.identity_like(p) - p
    reflected = spd.hermitian_part(2 * (p @ a) - a)
    kept = values > rtol * values.abs().amax(-1, keepdim=True)
    across = p @ spd.hermitian_part(e) @ null
    solver = BySpectrum(of_rounded_matrix=False)
    signed = torch.where(kept, values, -values)
    x = p @ lyapunov(solver, reflected, across + across.mH, signed, q) @ null
    return x + x.mH
