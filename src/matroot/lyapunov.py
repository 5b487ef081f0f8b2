"""The Lyapunov equation S X + X S = R: the heart of every gradient, differentiable to any order.

With X = lyap(S, R) and a cotangent G of X, W = lyap(S, G) is the cotangent of R and −(W Xᴴ + Xᴴ W)
that of S: the derivative is another such equation, so every order is finite wherever the first is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from matroot import autodiff, checks, context, errors, screen, spd
from matroot.dtensors import per_matrix
from matroot.lyapunov_solvers import BySmith, Solver
from matroot.overrides import overridable
from matroot.screen import Status


@overridable
@per_matrix()
def solve_lyapunov(s: Tensor, g: Tensor, *, check_errors: bool | None = None) -> Tensor:
    """The solution X of the Lyapunov equation S X + X S = G for symmetric positive definite S.

    Args:
        s: symmetric (Hermitian) positive definite matrices, shape (..., n, n), float16, bfloat16,
            float32, float64, complex64 or complex128; half precision is computed in float32. Where
            S is singular the block of X on null × null space is 0 (minimum norm).
        g: any square matrices, the same shape and dtype.
        check_errors: whether to raise for a bad ``s``. None (the default) does so in eager mode on
            a CPU, where looking costs nothing; elsewhere its X is NaN, its neighbours intact.

    Returns:
        X, the shape, dtype and device of ``g``.

    Raises:
        TypeError: ``s`` or ``g`` is not a tensor of a supported dtype, or the dtypes differ; an
            option has the wrong type.
        ValueError: ``s`` or ``g`` is not (..., n, n), or the shapes or devices differ.
        torch.linalg.LinAlgError: where errors are checked: ``s`` not finite, not symmetric, or
            indefinite, in the sense of ``sqrtm``. Elsewhere its X is NaN.

    Note:
        Products only, by the squared Smith iteration (see ``matroot.gradients.Lyapunov``);
        differentiable to any order in both arguments; keeps S and X for the backward pass.

    References:
        R. A. Smith, Matrix equation XA + BX = C, SIAM J. Appl. Math. 16 (1968).

    Example:
        >>> import torch, matroot
        >>> matroot.solve_lyapunov(torch.eye(2, dtype=torch.float64), torch.ones(2, 2).double())
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]], dtype=torch.float64)
    """
    checks.square_matrices("s", s)
    checks.square_matrices("g", g)
    checks.same_kind("s", s, "g", g)
    check = checks.checking(check_errors, s, g)
    if s.numel() == 0:
        return s * g  # As empty, and a function of both.
    dtype = spd.computing_dtype(s.dtype)
    with context.no_autocast(s):
        flat = s.to(dtype).reshape(math.prod(s.shape[:-2]), *s.shape[-2:])
        limits = screen.thresholds(s.shape[-1], s.dtype)
        clean, k, status = screen.normalized(flat, limits.skew)
        status = torch.maximum(status, screen.definiteness(clean.detach(), limits))
        if check:
            named = errors.Named("s")
            errors.raise_if_bad(named, status.reshape(s.shape[:-2]), s, limits)
        ok = (status == Status.OK)[:, None, None]
        left = torch.where(ok, clean, spd.nan_where(~ok, flat)).reshape(s.shape)
        # In units in which neither side nor what comes between overflows: S/2ᵏ and G/2ʲ.
        right = g.to(dtype)
        # (A whole number has no derivative; and PyTorch's batched gradients do not support detach.)
        j = torch.where(spd.max_abs(right).isfinite(), spd.exponent(right), 0)
        solver = BySmith(of_rounded_matrix=False)
        right = spd.times_power_of_two(right, -j)
        x = lyapunov(solver, left, right)
        # In two steps, since 2^(j − k) may be the square of the largest number.
        back = j - k.reshape(j.shape)
        half = torch.div(back, 2, rounding_mode="floor")
        x = spd.times_power_of_two(spd.times_power_of_two(x, half), back - half)
        return x.to(g.dtype)


class _Lyapunov(torch.autograd.Function):
    """X of S X + X S = R as a function of S and R; flattening and vmap in one place."""

    @staticmethod
    def forward(solver: Solver, s: Tensor, r: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        n = s.shape[-1]
        batch = math.prod(s.shape[:-2])
        flat = tuple(c.reshape((batch, *c.shape[s.ndim - 2 :])) for c in constants)
        x = solver.solve(s.reshape(batch, n, n), r.reshape(batch, n, n), flat)
        # Said here once for every solver: a bad S must not come out as a plausible X.
        bad = spd.max_abs(s).isnan()[..., None, None]
        return torch.where(bad, torch.nan, x.reshape(r.shape))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        solver, s, _, constants = inputs
        ctx.solver = solver
        ctx.save_for_backward(output, s, *constants)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, s, *constants = ctx.saved_tensors
        w = lyapunov(ctx.solver, s, g, *constants)
        s_grad = None
        if ctx.needs_input_grad[1]:
            with context.no_autocast(s):
                s_grad = -(w @ x.mH + x.mH @ w)
        return None, s_grad, w, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        solver: Solver,
        s: Tensor,
        r: Tensor,
        constants: tuple[Tensor, ...],
    ) -> tuple[Tensor, int]:
        dims = (*in_dims[1:3], *in_dims[3])
        batched = autodiff.batch_first(info.batch_size, dims, (s, r, *constants))
        return lyapunov(solver, *batched), 0


class _ForwardLyapunov(_Lyapunov):
    """The same with a forward-mode rule, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Lyapunov.setup_context(ctx, inputs, output)
        ctx.save_for_forward(output, inputs[1], *inputs[3])

    @staticmethod
    def jvp(ctx: Any, _solver: None, ds: Tensor | None, dr: Tensor | None, *_: None) -> Tensor:
        with autodiff.nested_forward_mode():
            x, s, *constants = autodiff.primals(ctx.saved_tensors)
            right = torch.zeros_like(x) if dr is None else dr
            if ds is not None:
                with context.no_autocast(s):
                    right = right - (ds @ x + x @ ds)
            return lyapunov(ctx.solver, s, right, *constants)


def lyapunov(solver: Solver, s: Tensor, r: Tensor, *constants: Tensor) -> Tensor:
    """X of S X + X S = R by a given solver, differentiable to any order.

    Args:
        solver: how.
        s: Hermitian positive semi-definite, shape (..., n, n), float32, float64 or complex.
        r: the same shape and dtype.
        constants: what the solver was prepared with, batch dimensions as of s.
    """
    function = autodiff.traceable(_Lyapunov, _ForwardLyapunov)
    with context.no_autocast(s):
        x: Tensor = function.apply(solver, s, r, constants)
    return x
