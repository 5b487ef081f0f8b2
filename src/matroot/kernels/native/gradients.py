"""Gradients by the compiled kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from matroot import screen, spd
from matroot.gradients import Kept, Lyapunov
from matroot.gradients.rule import Cotangents
from matroot.kernels.kernel import GradientKernel
from matroot.kernels.native import tasks
from matroot.kernels.native.values import unknown_function
from matroot.request import Request
from matroot.roots import root_pair
from matroot.screen import Status, Thresholds


def _spectral_declines(request: Request, a: Tensor) -> str | None:
    return unknown_function(request)


def _by_spectrum(request: Request, kept: Kept, g: Cotangents) -> Tensor | None:
    if not tasks.have_memory(*kept.values, *kept.constants, *g):
        return None
    first, vectors = kept.constants
    if not request.roots_only:
        return _by_divided_differences(request, first, vectors, g)
    return _divided(first, vectors, None, None, 0, kept, g)


def _by_divided_differences(
    request: Request, values: Tensor, vectors: Tensor, g: Cotangents
) -> Tensor:
    """Σ U [f[λ_i, λ_j] (Uᵀ G_f U)_ij] Uᵀ; see FrechetTask."""
    n = vectors.shape[-1]
    limits = request.thresholds(n)
    given = [
        (tasks.known(function), tasks.in_memory(x))
        for function, x in zip(request.solved, g, strict=True)
        if x is not None
    ]
    values, vectors = tasks.in_memory(values.to(torch.float64)), tasks.in_memory(vectors)
    if n > tasks.LARGEST_BY_EIGENPAIRS[vectors.dtype]:
        r = torch.zeros_like(vectors)
        for known, y in given:
            r += _weighed(values, _turned(vectors, y), known, limits)
        return _turned_back(vectors, r)
    x = torch.empty_like(vectors)
    task = tasks.MODULE.FrechetTask(
        batch=tasks.batch(x),
        values=values.data_ptr(),
        vectors=vectors.data_ptr(),
        cotangents=[tasks.MODULE.Cotangent(function=f, g=y.data_ptr()) for f, y in given],
        x=x.data_ptr(),
        thresholds=tasks.thresholds(limits),
    )
    tasks.MODULE.frechet(task)
    return x


def _weighed(
    values: Tensor, r: Tensor, function: tasks.MODULE.Function, limits: Thresholds
) -> Tensor:
    """f[λ_i, λ_j] r_ij, in the memory of R."""
    task = tasks.MODULE.WeighTask(
        batch=tasks.batch(r),
        r=r.data_ptr(),
        values=values.data_ptr(),
        function=function,
        thresholds=tasks.thresholds(limits),
    )
    tasks.MODULE.weigh(task)
    return r


def _lyapunov_declines(request: Request, a: Tensor) -> str | None:
    if a.shape[-1] > tasks.LARGEST:
        return f"its kernel for Lyapunov holds matrices up to n = {tasks.LARGEST}"
    return None


def _by_lyapunov(request: Request, kept: Kept, g: Cotangents) -> Tensor | None:
    """By the eigenpairs of S, found again: as exact as S, and faster than products.

    So are the steps of the sign iteration: they are taken on the eigenvalues.
    """
    rule, root = request.rule, kept.sqrt
    assert isinstance(rule, Lyapunov)
    steps, norms = rule.steps or 0, None
    if root is None or not tasks.have_memory(*kept.values, *kept.constants, *g):
        return None
    if steps:
        if not kept.constants:
            return None
        norms = tasks.in_memory(kept.constants[0])
    root = tasks.in_memory(root)
    z = None if kept.inv_sqrt is None else tasks.in_memory(kept.inv_sqrt)
    info, s, vectors = tasks.info(root), root.new_empty(root.shape[:-1]), torch.empty_like(root)
    limits = screen.thresholds(root.shape[-1], root.dtype)._replace(skew=1.0)
    statuses = tasks.eigh(root, [], info, limits, roots=s, vectors=vectors, of_root=True)
    if statuses & 1 << Status.LEFT:
        return None
    return _divided(s, vectors, z, norms, steps, kept, g)


def _divided(
    s: Tensor,
    vectors: Tensor,
    z: Tensor | None,
    norms: Tensor | None,
    steps: int,
    kept: Kept,
    g: Cotangents,
) -> Tensor:
    """Division by s_i + s_j in the basis of the eigenvectors, or steps; see SpectralTask."""
    n = vectors.shape[-1]
    # A matrix that has an inverse root has no null space.
    null = math.sqrt(spd.null_share(n, s.dtype)) if kept.inv_sqrt is None else 0.0
    s, vectors = tasks.in_memory(s), tasks.in_memory(vectors)
    pair = root_pair(kept.functions, g)
    g_sqrt, g_inv = (None if x is None else tasks.in_memory(x) for x in pair)
    if n > tasks.LARGEST_BY_EIGENPAIRS[vectors.dtype]:
        return _divided_by_passes(s, vectors, g_sqrt, g_inv, null)
    x = torch.empty_like(vectors)
    task = tasks.MODULE.SpectralTask(
        batch=tasks.batch(x),
        roots=s.data_ptr(),
        vectors=vectors.data_ptr(),
        z=tasks.address(z),
        g_sqrt=tasks.address(g_sqrt),
        g_inv=tasks.address(g_inv),
        x=x.data_ptr(),
        null=null,
        norms=tasks.address(norms),
        steps=steps,
    )
    tasks.MODULE.spectral(task)
    return x


def _divided_by_passes(
    s: Tensor, vectors: Tensor, g_sqrt: Tensor | None, g_inv: Tensor | None, null: float
) -> Tensor:
    """``_divided`` of large matrices, Z exact."""
    q = None if g_inv is None else _turned(vectors, g_inv)
    r = torch.zeros_like(vectors) if g_sqrt is None else _turned(vectors, g_sqrt)
    task = tasks.MODULE.DivideTask(
        batch=tasks.batch(r), r=r.data_ptr(), q=tasks.address(q), roots=s.data_ptr(), null=null
    )
    tasks.MODULE.divide(task)
    return _turned_back(vectors, r)


def _turned(vectors: Tensor, g: Tensor) -> Tensor:
    """Uᵀ herm(G) U of large matrices, shape (..., n, n)."""
    n = vectors.shape[-1]
    g = g.clone()
    tasks.symmetrise(g)
    u, g = vectors.view(-1, n, n), g.view(-1, n, n)
    return tasks.symmetric_product(torch.bmm(u.mT, g), u).view(vectors.shape)


def _turned_back(vectors: Tensor, r: Tensor) -> Tensor:
    """U R Uᵀ of large matrices and symmetric R."""
    n = vectors.shape[-1]
    u, r = vectors.view(-1, n, n), r.view(-1, n, n)
    return tasks.symmetric_product(torch.bmm(u, r), u.mT).view(vectors.shape)


SPECTRAL = (GradientKernel("spectral", _spectral_declines, _by_spectrum),)
LYAPUNOV = (GradientKernel("lyapunov", _lyapunov_declines, _by_lyapunov),)
