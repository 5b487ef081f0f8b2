"""The first two derivatives of functions of Hermitian matrices, exact at repeated eigenvalues.

With A = Q diag(λ) Qᴴ and Ê = Qᴴ E Q (Daleckii and Krein 1965; Higham, Functions of Matrices, 2008):

    L(A)[E] = Q (f[λ_i, λ_j] Ê_ij) Qᴴ
    D(A)[E, G] = Q (Σ_k f[λ_i, λ_k, λ_j] (Ê_ik Ĝ_kj + Ĝ_ik Ê_kj)) Qᴴ

L is self-adjoint, and the adjoint of G ↦ D[E, G] is G ↦ D[Eᴴ, G]: both directions of either
derivative are made of the same two maps. Eigenpairs are constants of them, never differentiated.

Where the slope of f is unbounded at 0, what would be infinite on the null space of A is left out
(minimum norm): of L the block null × null, of D every term with two null eigenvalues. Where only
the curvature is unbounded, of D the terms with three.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from matroot import autodiff, context, spd
from matroot.functions import SpectralFunction

# Second differences are made by blocks of triples, each with some sixteen tensors of at most so
# many numbers. On a CPU they stay in its cache; an accelerator is better fed with more: 64 MiB in
# all. The side of a block is a number of its own, since a sum by other blocks has other bits; small
# blocks do less work, by symmetry.
_BLOCK_ON_CPU, _SIDE_ON_CPU = 2**15, 12
_BLOCK_ON_ACCELERATOR, _SIDE_ON_ACCELERATOR = 2**19, 64


def frechet(
    function: SpectralFunction, a: Tensor, values: Tensor, vectors: Tensor, e: Tensor
) -> Tensor:
    """The Fréchet derivative L(A)[E], differentiable in E to any order and once in A.

    The derivative by A is that along Hermitian directions: its gradients are Hermitian.

    Args:
        function: f.
        a: A, shape (..., n, n), which gradients go to; its numbers are not looked at.
        values: λ, shape (..., n), in the precision of ``a`` or a higher one, exactly 0 where they
            are null: see ``Spectrum.arguments``. A constant.
        vectors: Q, shape (..., n, n). A constant.
        e: E, any square matrices, shape and dtype of ``a``.

    Returns:
        Shape and dtype of ``a``; Hermitian where E is.

    Raises:
        NotImplementedError: when its second derivative by A is asked for.
    """
    rule = autodiff.traceable(_Frechet, _ForwardFrechet)
    with context.no_autocast(a):
        found: Tensor = rule.apply(function, a, e, values, vectors)
        return found


def second_frechet(
    function: SpectralFunction, a: Tensor, values: Tensor, vectors: Tensor, e: Tensor, g: Tensor
) -> Tensor:
    """The second derivative D(A)[E, G], differentiable in E and G to any order and not in A.

    Args:
        function: f.
        a: A, shape (..., n, n).
        values: see ``frechet``.
        vectors: see ``frechet``.
        e: E, any square matrices, shape and dtype of ``a``.
        g: G, the same.

    Raises:
        NotImplementedError: when its derivative by A is asked for.
    """
    rule = autodiff.traceable(_Second, _ForwardSecond)
    with context.no_autocast(a):
        found: Tensor = rule.apply(function, a, e, g, values, vectors)
        return found


def differences(function: SpectralFunction, values: Tensor) -> Tensor:
    """f[λ_i, λ_j], shape (..., n, n), without those that are infinite on null × null space.

    Args:
        function: f.
        values: λ, shape (..., n), exactly 0 where they are null.
    """
    x, y = values[..., :, None], values[..., None, :]
    found = function.difference(x, y)
    if function.bounded_slope:
        return found
    return torch.where((x == 0) & (y == 0), 0.0, found)


def _second_differences(function: SpectralFunction, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """f[x, y, z] without those that are infinite by null eigenvalues."""
    found = function.second_difference(x, y, z)
    if function.bounded_curvature:
        return found
    of_x, of_y, of_z = x == 0, y == 0, z == 0
    if function.bounded_slope:
        return torch.where(of_x & of_y & of_z, 0.0, found)
    return torch.where(of_x & of_y | of_y & of_z | of_z & of_x, 0.0, found)


def _first_order(function: SpectralFunction, values: Tensor, vectors: Tensor, e: Tensor) -> Tensor:
    """L(A)[E]."""
    weights = differences(function, values).to(spd.real_dtype(vectors.dtype))
    weighted = weights * (vectors.mH @ e @ vectors)
    return vectors @ weighted @ vectors.mH


def _second_order(
    function: SpectralFunction, values: Tensor, vectors: Tensor, e: Tensor, g: Tensor
) -> Tensor:
    """D(A)[E, G]."""
    n = values.shape[-1]
    if function.bounded_slope and not function.bounded_curvature:
        size = values.abs()
        null = size <= spd.null_share(n, vectors.dtype) * size.amax(-1, keepdim=True)
        values = torch.where(null, 0.0, values)
    e, g = vectors.mH @ e @ vectors, vectors.mH @ g @ vectors
    block, side = _BLOCK_ON_CPU, min(n, _SIDE_ON_CPU)
    if context.on_accelerator(values):
        block, side = _BLOCK_ON_ACCELERATOR, min(n, _SIDE_ON_ACCELERATOR)
    blocks = [slice(i, min(i + side, n)) for i in range(0, n, side)]
    rows, together = values.shape[:-1].numel(), max(1, block // side**3)
    if values.ndim == 1 or rows <= together:
        whole = _sum_over_blocks(function, values, e, g, blocks)
    else:
        flat = (values.reshape(rows, n), e.reshape(rows, n, n), g.reshape(rows, n, n))
        parts = zip(*(torch.split(x, together) for x in flat), strict=True)
        whole = torch.cat([_sum_over_blocks(function, v, e, g, blocks) for v, e, g in parts])
        whole = whole.reshape(vectors.shape)
    return vectors @ whole @ vectors.mH


def _sum_over_blocks(
    function: SpectralFunction, values: Tensor, e: Tensor, g: Tensor, blocks: list[slice]
) -> Tensor:
    """Σ_k f[λ_i, λ_k, λ_j] (E_ik G_kj + G_ik E_kj), by blocks of the three indices.

    Second differences do not depend on the order of their points, so that those of one block serve
    for up to six.
    """
    found: dict[tuple[int, int], Tensor] = {}
    for triple in itertools.combinations_with_replacement(range(len(blocks)), 3):
        x, y, z = (values[..., blocks[b]] for b in triple)
        weights = _second_differences(
            function, x[..., :, None, None], y[..., None, :, None], z[..., None, None, :]
        )
        weights = weights.to(spd.real_dtype(e.dtype))
        orders = {tuple(triple[o] for o in order): order for order in _ORDERS}
        for (i, k, j), order in orders.items():
            turned = weights.movedim([o - 3 for o in order], [-3, -2, -1])
            first, second = (blocks[i], blocks[k]), (blocks[k], blocks[j])
            products = e[..., *first][..., None] * g[..., *second][..., None, :, :]
            products = products + g[..., *first][..., None] * e[..., *second][..., None, :, :]
            part = (turned * products).sum(-2)
            found[i, j] = found[i, j] + part if (i, j) in found else part
    many = range(len(blocks))
    return torch.cat([torch.cat([found[i, j] for j in many], -1) for i in many], -2)


_ORDERS = tuple(itertools.permutations(range(3)))


class _Frechet(torch.autograd.Function):
    """L(A)[E] as a function of A and E."""

    @staticmethod
    def forward(
        function: SpectralFunction, a: Tensor, e: Tensor, values: Tensor, vectors: Tensor
    ) -> Tensor:
        return _first_order(function, values, vectors, e)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.function, *tensors = inputs
        # So that a tangent of zeros is known from none.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return (None,) * 5
        a, e, values, vectors = ctx.saved_tensors
        by_a = by_e = None
        if ctx.needs_input_grad[1]:
            by_a = spd.hermitian_part(second_frechet(ctx.function, a, values, vectors, e.mH, g))
        if ctx.needs_input_grad[2]:
            by_e = frechet(ctx.function, a, values, vectors, g)
        return None, by_a, by_e, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: SpectralFunction, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        a, e, values, vectors = autodiff.batch_first(info.batch_size, in_dims[1:], tensors)
        return frechet(function, a, values, vectors, e), 0


class _ForwardFrechet(_Frechet):
    """The same with a forward-mode rule, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Frechet.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def jvp(
        ctx: Any, _function: None, da: Tensor | None, de: Tensor | None, *_: None
    ) -> Tensor | None:
        with autodiff.nested_forward_mode():
            a, e, values, vectors = autodiff.primals(ctx.saved_tensors)
            found = None
            if de is not None:
                found = frechet(ctx.function, a, values, vectors, de)
            if da is not None:
                along = spd.hermitian_part(da)
                second = second_frechet(ctx.function, a, values, vectors, e, along)
                found = second if found is None else found + second
            return found


class _Second(torch.autograd.Function):
    """D(A)[E, G] as a function of E and G, and a refusal as one of A."""

    @staticmethod
    def forward(
        function: SpectralFunction,
        a: Tensor,
        e: Tensor,
        g: Tensor,
        values: Tensor,
        vectors: Tensor,
    ) -> Tensor:
        return _second_order(function, values, vectors, e, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.function, *tensors = inputs
        # So that a tangent of zeros is known from none.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, w: Tensor | None) -> tuple[Tensor | None, ...]:
        if w is None:
            return (None,) * 6
        a, e, g, values, vectors = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            raise _third_derivative(ctx.function)
        by_e = by_g = None
        if ctx.needs_input_grad[2]:
            by_e = second_frechet(ctx.function, a, values, vectors, g.mH, w)
        if ctx.needs_input_grad[3]:
            by_g = second_frechet(ctx.function, a, values, vectors, e.mH, w)
        return None, None, by_e, by_g, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], function: SpectralFunction, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        a, e, g, values, vectors = autodiff.batch_first(info.batch_size, in_dims[1:], tensors)
        return second_frechet(function, a, values, vectors, e, g), 0


class _ForwardSecond(_Second):
    """The same with a forward-mode rule, which torch.compile does not take."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Second.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def jvp(
        ctx: Any,
        _function: None,
        da: Tensor | None,
        de: Tensor | None,
        dg: Tensor | None,
        *_: None,
    ) -> Tensor | None:
        if da is not None:
            raise _third_derivative(ctx.function)
        with autodiff.nested_forward_mode():
            a, e, g, values, vectors = autodiff.primals(ctx.saved_tensors)
            found = None
            for tangent, other in ((de, g), (dg, e)):
                if tangent is not None:
                    x = second_frechet(ctx.function, a, values, vectors, tangent, other)
                    found = x if found is None else found + x
            return found


def _third_derivative(function: SpectralFunction) -> NotImplementedError:
    return NotImplementedError(
        f"third derivatives of {function} of a matrix; only first and second ones are implemented"
    )
