"""Published algorithms that matroot is compared with, written from their formulas.

Each takes matrices A of shape (b, n, n), symmetric positive definite, and is differentiable once.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from matroot.bench.measure import RootName
from matroot.gradients import SpectralNaive
from matroot.gradients.published import PublishedRule


def eigh_by_hand(a: Tensor, root: RootName = "sqrt") -> Tensor:
    """The root by torch.linalg.eigh, its gradient by division by s_i + s_j.

    With A = Q diag(s²) Qᵀ:  S = Q diag(s) Qᵀ,  X = Q [(Qᵀ sym(G) Q)_ij / (s_i + s_j)] Qᵀ; for the
    inverse root 1/s and −1/(s_i s_j (s_i + s_j)).

    Args:
        a: shape (..., n, n); eigenvalues below zero count as zero.
        root: ``"sqrt"`` or ``"inv_sqrt"``.
    """
    result: Tensor = _EighByHand.apply(a, root)
    return result


class _EighByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, root: RootName) -> Tensor:
        values, q = torch.linalg.eigh(a)
        s = values.clamp(min=0).sqrt()
        ctx.save_for_backward(s, q)
        ctx.root = root
        result: Tensor = (q * (s if root == "sqrt" else 1 / s)[..., None, :]) @ q.mH
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        s, q = ctx.saved_tensors
        sums = s[..., :, None] + s[..., None, :]
        if ctx.root == "inv_sqrt":
            sums = -sums * s[..., :, None] * s[..., None, :]
        return q @ ((q.mH @ ((g + g.mH) / 2) @ q) / sums) @ q.mH, None


def newton_schulz(
    a: Tensor, *, steps: int = 5, root: RootName = "sqrt", published: bool = False
) -> Tensor:
    """The root of iSQRT-COV with its hand-written gradient (Li, Xie, Wang, Gao; CVPR 2018).

    Forward, with t = tr A, Y₀ = A/t, Z₀ = I:  T = (3I − ZY)/2,  Y ← YT,  Z ← TZ;  √t Y, Z/√t.
    Backward, from the last step to the first, Y and Z being those before the step:
    T̄ = YȲ + Z̄Z,  Ȳ ← ȲT − ZT̄/2,  Z̄ ← TZ̄ − T̄Y/2;  finally the terms of t on the diagonal.

    Args:
        a: shape (b, n, n).
        steps: number of steps, at least 1.
        root: ``"sqrt"`` or ``"inv_sqrt"``.
        published: the same numbers at the cost of the published code: T̄ multiplied out,
            10 products a step instead of 6, and the terms of t in a Python loop over the matrices.

    Note:
        Products for the root at 5 steps: 12 forward; 24 backward, published 38.
    """
    if steps < 1:
        raise ValueError(f"newton_schulz: steps must be at least 1, got {steps}")
    result: Tensor = _NewtonSchulz.apply(a, steps, root, published)
    return result


class _NewtonSchulz(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, steps: int, root: RootName, published: bool) -> Tensor:
        trace = a.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        y = a / trace
        t = 1.5 * identity - 0.5 * y
        kept = [y, t]
        y, z = y @ t if steps > 1 or root == "sqrt" else y, t
        for step in range(2, steps + 1):
            t = 1.5 * identity - 0.5 * (z @ y)
            kept += [y, z, t]
            last = step == steps
            y, z = (
                y @ t if not last or root == "sqrt" else y,
                t @ z if not last or root == "inv_sqrt" else z,
            )
        ctx.save_for_backward(a, trace, y if root == "sqrt" else z, *kept)
        ctx.root, ctx.published = root, published
        return y * trace.sqrt() if root == "sqrt" else z / trace.sqrt()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        a, trace, last, y_first, t_first, *kept = ctx.saved_tensors
        scale = trace.sqrt() if ctx.root == "sqrt" else 1 / trace.sqrt()
        inner = (g * last).sum((-2, -1), keepdim=True)
        # d√t/dt = 1/(2√t),  d(1/√t)/dt = −1/(2 t√t).
        along = inner * (0.5 / scale if ctx.root == "sqrt" else -0.5 * scale**3)
        # In the last step one of Y and Z is not needed, and has no cotangent.
        y_bar, z_bar = (g * scale, None) if ctx.root == "sqrt" else (None, g * scale)
        step = _published_step if ctx.published else _step
        for i in range(len(kept) - 3, -1, -3):
            y_bar, z_bar = step(y_bar, z_bar, *kept[i : i + 3])
        # The first step: Y₁ = Y₀ T₁ and Z₁ = T₁ = (3I − Y₀)/2.
        first = torch.zeros_like(a) if z_bar is None else -0.5 * z_bar
        if y_bar is not None:
            first = first + y_bar @ t_first - 0.5 * (y_first @ y_bar)
        along = along - (first * a).sum((-2, -1), keepdim=True) / trace**2
        gradient = first / trace
        if ctx.published:
            for i in range(len(a)):
                ones = torch.ones(a.shape[-1], dtype=a.dtype, device=a.device)
                gradient[i] += along[i] * ones.diag()
        else:
            gradient.diagonal(dim1=-2, dim2=-1).add_(along[..., 0])
        return gradient, None, None, None


def _step(
    y_bar: Tensor | None, z_bar: Tensor | None, y: Tensor, z: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """(Ȳ, Z̄) before a step from those after it."""
    terms = []
    if y_bar is not None:
        terms.append(y @ y_bar)
    if z_bar is not None:
        terms.append(z_bar @ z)
    t_bar = sum(terms[1:], terms[0])
    y_before, z_before = -0.5 * (z @ t_bar), -0.5 * (t_bar @ y)
    if y_bar is not None:
        y_before = y_before + y_bar @ t
    if z_bar is not None:
        z_before = z_before + t @ z_bar
    return y_before, z_before


def _published_step(
    y_bar: Tensor | None, z_bar: Tensor | None, y: Tensor, z: Tensor, t: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with T̄ multiplied out and T computed again, as published."""
    three = 3 * torch.eye(y.shape[-1], dtype=y.dtype, device=y.device)
    yz, zy = three - y @ z, z @ y
    y_before, z_before = torch.zeros_like(y), torch.zeros_like(y)
    if y_bar is not None:
        y_before = y_bar @ yz - zy @ y_bar
        z_before = -(y @ y_bar @ y)
    if z_bar is not None:
        y_before = y_before - z @ z_bar @ z
        z_before = z_before + yz @ z_bar - z_bar @ zy
    return 0.5 * y_before, 0.5 * z_before


def paper(a: Tensor, *, forward: Literal["pade", "taylor"], root: RootName = "sqrt") -> Tensor:
    """MPA-Lya and MTP-Lya as a file of PyTorch operations, with no checks and nothing fused.

    The algorithm as copied from the paper: Z = I − A/‖A‖_F; [5/5] Padé approximant or Taylor
    polynomial of degree 10 by powers of Z; backward eight Newton–Schulz steps of the sign of
    [[B, C], [0, −B]] with six products each, from B = S/√‖A‖_F, C = G/√‖A‖_F, for the inverse
    root from B = Z/‖Z‖_F, C = −Z² G Z²/‖Z‖_F. The numbers are those of ``Pade()`` and ``Taylor()``
    with ``Lyapunov(steps=8)``, except for the gradient of the inverse root: matroot solves with S,
    and the two differ as far as the forward pass is inexact. Two defects are not repeated: norms
    are taken per matrix, and Q is factorised by Cholesky (PyTorch's batched LU on a CPU is wrong
    from n = 150 or so).

    Args:
        a: shape (b, n, n).
        forward: ``"pade"`` or ``"taylor"``.
        root: ``"sqrt"`` or ``"inv_sqrt"``.

    Note:
        Products: Padé 4 and a solve, Taylor 9; backward 48, for the inverse root 51.
    """
    result: Tensor = _Paper.apply(a, forward, root)
    return result


class _Paper(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, forward: str, root: RootName) -> Tensor:
        norm = torch.linalg.matrix_norm(a, keepdim=True)
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        z = identity - a / norm
        power = z
        if forward == "pade":
            p, q = (torch.zeros_like(a) + c[0] * identity for c in (_P, _Q))
            for k in range(1, 6):
                p.add_(power, alpha=_P[k])
                q.add_(power, alpha=_Q[k])
                power = power @ z if k < 5 else power
            above, below = (p, q) if root == "sqrt" else (q, p)
            x = torch.cholesky_solve(above, torch.linalg.cholesky(below))
        else:
            x, c = identity.expand_as(a).clone(), 1.0
            exponent = 0.5 if root == "sqrt" else -0.5
            for k in range(1, 11):
                c *= (k - 1 - exponent) / k
                x.add_(power, alpha=c)
                power = power @ z if k < 10 else power
        result: Tensor = x * norm.sqrt() if root == "sqrt" else x / norm.sqrt()
        ctx.save_for_backward(result, norm)
        ctx.root = root
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        x, norm = ctx.saved_tensors
        if ctx.root == "sqrt":
            scale = norm.sqrt()
        else:
            square = x @ x
            g = -(square @ g @ square)
            scale = torch.linalg.matrix_norm(x, keepdim=True)
        b, c = x / scale, g / scale
        three = 3 * torch.eye(b.shape[-1], dtype=b.dtype, device=b.device).expand_as(b)
        for _ in range(8):
            square = b @ b
            rest = three - square
            c = 0.5 * (c @ rest - square @ c + b @ c @ b)
            b = 0.5 * (b @ rest)
        return 0.5 * c, None, None


# The [5/5] Padé approximant of √(1 − z): exact fractions of powers of two.
_P = (1.0, -2.75, 2.75, -1.203125, 0.21484375, -0.0107421875)
_Q = (1.0, -2.25, 1.75, -0.546875, 0.05859375, -0.0009765625)


def svd(a: Tensor, rule: PublishedRule, root: RootName = "sqrt") -> Tensor:
    """The root by torch.linalg.svd with one of the published gradients, without checks.

    The numbers are those of ``method=Svd(), gradient=rule`` for definite matrices.

    Args:
        a: shape (b, n, n).
        rule: what stands in for 1/(λ_i − λ_j).
        root: ``"sqrt"`` or ``"inv_sqrt"``.
    """
    result: Tensor = _Svd.apply(a, rule, root, a.shape[-1])
    return result


def truncated_svd(a: Tensor, *, count: int) -> Tensor:
    """SVD-TopN: the root of the ``count`` largest eigenvalues, the others dropped.

    Σ_{i ≤ N} √λ_i q_i q_iᵀ, and the textbook gradient Q [Φ ∘ (Qᵀ sym(G) Q)] Qᵀ with f(λ_i) = √λ_i
    to N and 0 beyond: Φ_ij = (f_i − f_j)/(λ_i − λ_j), Φ_ii = f'_i. Where two eigenvalues are equal
    it is not finite.

    Args:
        a: shape (b, n, n).
        count: N, between 1 and n.
    """
    if not 1 <= count <= a.shape[-1]:
        raise ValueError(
            f"truncated_svd: count must be between 1 and n = {a.shape[-1]}, got {count}"
        )
    result: Tensor = _Svd.apply(a, SpectralNaive(), "sqrt", count)
    return result


class _Svd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, rule: PublishedRule, root: RootName, count: int) -> Tensor:
        u, sigma, _ = torch.linalg.svd(a)
        kept = torch.arange(a.shape[-1], device=a.device) < count
        s = sigma.sqrt()
        values = torch.where(kept, s if root == "sqrt" else 1 / s, 0.0)
        slopes = torch.where(kept, 0.5 / s if root == "sqrt" else -0.5 / (s * sigma), 0.0)
        ctx.save_for_backward(u, sigma, values, slopes)
        ctx.rule = rule
        result: Tensor = (u * values[:, None, :]) @ u.mT
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        u, sigma, values, slopes = ctx.saved_tensors
        phi = ctx.rule.weights(sigma, values, slopes)
        return u @ (phi * (u.mT @ ((g + g.mT) / 2) @ u)) @ u.mT, None, None, None
