"""The distance of two matrices by the transport map between them, and its derivatives.

With S_a = A^{1/2}, S_b = B^{1/2} and the singular value decomposition S_a S_b = U Σ Vᴴ,

    d² = tr A + tr B − 2 tr Σ = ‖S_a − S_b V Uᴴ‖_F²,

a sum of squares: never negative, and as exact at A ≈ B as elsewhere, where the traces cancel. Its
gradient by A, I − M with the transport map M = S_b V Uᴴ S_a⁻¹ that takes A to B = M A M, comes from
the same factors, without a Lyapunov equation.

Compiled kernels do it with a Cholesky factor and one eigendecomposition a pair, see
native/distance.hpp, for matrices of single precision that are regular beyond doubt; for large ones
on a CPU see cholesky_transport.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from matroot import autodiff, context, screen, spd, spectrum
from matroot.cholesky_transport import Factor, factor, squared_distance
from matroot.functional import sqrtm, sqrtm_pair
from matroot.kernels.native.distances import squared_distances
from matroot.lyapunov import solve_lyapunov
from matroot.screen import Status
from matroot.spectrum import Spectrum


@dataclass(frozen=True)
class Call:
    """What is given besides the matrices: the dtype that the user gave, and the ridge."""

    dtype: torch.dtype
    eps: float


@dataclass(frozen=True)
class EigenRoot:
    """The root of one matrix (A + eps·I)/4ᵏ of a pair, in the basis of its eigenvectors.

    Attributes:
        roots: its eigenvalues s, (..., n), 0 where they are zero to rounding.
        vectors: the eigenvectors Q, (..., n, n).
        kept: which eigenvalues are not zero, (..., n).
        k: (...).
        status: the Status of the matrix, (...).
    """

    roots: Tensor
    vectors: Tensor
    kept: Tensor
    k: Tensor
    status: Tensor

    @classmethod
    def of(cls, call: Call, a: Tensor) -> EigenRoot:
        """By eigenpairs of A."""
        scaled, k, status = normalized(call, a)
        n = a.shape[-1]
        pairs = Spectrum.of(scaled)
        found = screen.definiteness(
            scaled.reshape(-1, n, n),
            screen.thresholds(n, call.dtype),
            eigenvalues=pairs.values.reshape(-1, n),
        )
        status = torch.maximum(status, found.reshape(status.shape))
        return cls(pairs.roots, pairs.vectors, pairs.kept, k, status)

    @property
    def inverse_roots(self) -> Tensor:
        """1/s, 0 where s is."""
        return torch.where(self.kept, 1 / torch.where(self.kept, self.roots, 1.0), 0.0)


def normalized(call: Call, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """((A + eps·I)/4ᵏ, k, Status) of matrices (..., n, n); see screen.normalized."""
    batch, flat = a.shape[:-2], a.reshape(-1, *a.shape[-2:])
    skew = screen.thresholds(a.shape[-1], call.dtype).skew
    x, twice, status = screen.normalized(flat, skew, call.eps)
    k = torch.div(twice, 2, rounding_mode="floor")
    return x.reshape(a.shape), k.reshape(batch), status.reshape(batch)


def evaluate(call: Call, a: Tensor, b: Tensor, gradients: bool) -> tuple[Tensor, ...]:
    """(status of A, status of B, d², d) and, if asked for, both gradients of d².

    Args:
        call: the call.
        a: shape (..., n, n), in the computing dtype.
        b: shape (..., n, n), as many dimensions; those of the batch broadcast.
        gradients: whether they are wanted.
    """
    if a.shape[-1] > _LARGE and context.host_reads_are_free(a):
        return _one_by_one(call, a, b, gradients)
    limits = screen.thresholds(a.shape[-1], call.dtype)
    found = squared_distances(a, b, limits, call.eps, gradients=gradients)
    if found is None:
        return _by_svd(call, a, b, gradients)
    square, *by = found
    left = square.isnan()
    fast = [square.to(a.dtype), square.sqrt().to(a.dtype), *by]
    if not left.any():
        ok = [torch.full(x.shape[:-2], Status.OK, device=x.device) for x in (a, b)]
        return (*ok, *fast)
    # All of them again: the bits of a pair must not depend on how many others are left.
    status_a, status_b, *slow = _by_svd(call, a, b, gradients)
    whole = [
        torch.where(left.reshape(left.shape + (1,) * (x.ndim - left.ndim)), y, x)
        for x, y in zip(fast, slow, strict=True)
    ]
    return (status_a, status_b, *whole)


# Beyond, LAPACK takes longer than some calls to it.
_LARGE = 256


def _one_by_one(call: Call, a: Tensor, b: Tensor, gradients: bool) -> tuple[Tensor, ...]:
    """``evaluate`` for large matrices: by Cholesky factors where both are regular."""
    n = a.shape[-1]
    batch = spd.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    real = spd.real_dtype(a.dtype)
    found = [a.new_empty(batch, dtype=real) for _ in range(2)]
    found += [a.new_empty((*batch, n, n)) for _ in range(2 if gradients else 0)]
    statuses = [torch.full(x.shape[:-2], Status.OK, device=x.device) for x in (a, b)]
    indices = [torch.arange(s.numel()).reshape(s.shape).expand(batch).flatten() for s in statuses]
    matrices = [x.reshape(-1, n, n) for x in (a, b)]
    factors: list[dict[int, Factor | None]] = [{}, {}]
    for place, pair in enumerate(zip(*(i.tolist() for i in indices), strict=True)):
        for known, which, x in zip(factors, pair, matrices, strict=True):
            if which not in known:
                if len(x) == found[0].numel():
                    known.clear()  # Each is needed once.
                scaled, k, status = normalized(call, x[which][None])
                ok = bool(status == Status.OK)
                known[which] = factor(scaled[0], k[0]) if ok else None
        first, second = (known[which] for known, which in zip(factors, pair, strict=True))
        if first is not None and second is not None:
            parts = squared_distance(first, second, a.dtype, gradients=gradients)
        else:
            one = [x[which][None] for x, which in zip(matrices, pair, strict=True)]
            whole = _by_svd(call, one[0], one[1], gradients)
            for status, which, of in zip(whole, pair, statuses, strict=False):
                of.view(-1)[which] = status[0]
            parts = tuple(part[0] for part in whole[2:])
        for to, part in zip(found, parts, strict=True):
            to.view(len(indices[0]), *part.shape)[place] = part
    return (*statuses, *found)


def _by_svd(call: Call, a: Tensor, b: Tensor, gradients: bool) -> tuple[Tensor, ...]:
    """``evaluate`` by PyTorch's operations, which define what is correct.

    Everything is done in the bases of eigenvectors, where S_a and S_b are their roots: with
    C = Q_aᴴ Q_b the singular value decomposition is that of s_a C s_b.

    Args:
        call: the call.
        a: shape (..., n, n), in the computing dtype.
        b: shape (..., n, n), as many dimensions; those of the batch broadcast.
        gradients: whether they are wanted.
    """
    first, second = EigenRoot.of(call, a), EigenRoot.of(call, b)
    same = (a == b).all(-1).all(-1)[..., None, None]
    ok = ((first.status == Status.OK) & (second.status == Status.OK))[..., None, None]
    c = first.vectors.mH @ second.vectors
    u, sigma, vh = spectrum.svd(first.roots[..., :, None] * c * second.roots[..., None, :])
    # A matrix of zeros has no scale of its own, and could push a tiny one's squares below range.
    i = torch.where(first.kept.any(-1), first.k, second.k)
    j = torch.where(second.kept.any(-1), second.k, first.k)
    k = torch.maximum(i, j)
    s_a = spd.times_power_of_two(first.roots[..., None, :], i - k)
    s_b = spd.times_power_of_two(second.roots[..., :, None], j - k)
    rest = torch.where(same, 0.0, c.mH * s_a - s_b * (vh.mH @ u.mH))
    norm = spd.frobenius_norm(rest)
    root = spd.times_power_of_two(norm, k)
    square = spd.times_power_of_two(norm.square(), 2 * k)
    # Made whole before the last operation: an output that is a view could not be changed in place.
    found = [torch.where(ok[..., 0, 0], x[..., 0, 0], torch.nan) for x in (square, root)]
    if gradients:
        largest = first.roots.amax(-1, keepdim=True) * second.roots.amax(-1, keepdim=True)
        # Of a product of computed factors singular values are known to some n units.
        null = max(a.shape[-1], spd.NULL_UNITS) * spd.real_eps(a.dtype)
        isometry = (vh.mH * (sigma > null * largest)[..., None, :]) @ u.mH
        for x in (
            _gradient(first, second, c, isometry, j - i),
            _gradient(second, first, c.mH, isometry.mH, i - j),
        ):
            found.append(torch.where(ok, torch.where(same, 0.0, x), torch.nan))
    return (first.status, second.status, *found)


def _gradient(
    first: EigenRoot, second: EigenRoot, c: Tensor, isometry: Tensor, k: Tensor
) -> Tensor:
    """The gradient of d² by the first matrix, of minimum norm where that is singular.

    With W the isometry from its range to that of the second, X = (S_a − S_b W) S_a⁺: I − M on the
    range, where X is Hermitian; its block from range to null space is halved by symmetry and the
    one on null × null space left out.

    Args:
        first: the matrix differentiated by.
        second: the other one.
        c: Q_aᴴ Q_b.
        isometry: Q_bᴴ W Q_a, without the singular values that are zero to rounding.
        k: the scale of the second root over that of the first is 2ᵏ.
    """
    inverse = first.inverse_roots[..., None, :]
    carried = spd.times_power_of_two(second.roots[..., :, None] * isometry * inverse, k)
    kept = first.kept.to(inverse.dtype)[..., None, :]
    x = c @ (c.mH * kept - carried)
    both = first.kept[..., :, None] & first.kept[..., None, :]
    x = torch.where(both, spd.hermitian_part(x), x + x.mH)
    return spd.hermitian_part(first.vectors @ x @ first.vectors.mH)


def _hessian_product(
    call: Call, a: Tensor, b: Tensor, toward: tuple[Tensor, Tensor], g: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The derivative of both gradients of d² in a Hermitian direction, which is self-adjoint.

    From M A M = B: with S = A^{1/2} and K = (S B S)^{1/2} = S M S,

        K Y + Y K = S (dB − M dA M) S,    dM = S⁻¹ Y S⁻¹,    d(M⁻¹) = −M⁻¹ dM M⁻¹.

    Made of differentiable functions, so that every order of derivative follows.

    Args:
        call: the call.
        a: shape (..., n, n).
        b: shape (..., n, n).
        toward: (dA, dB).
        g: the gradients I − M and I − M⁻¹.
    """
    there, back = (spd.identity_like(a) - x for x in g)
    a, i, _ = normalized(call, a)
    b, j, _ = normalized(call, b)
    s, z = sqrtm_pair(a, singular="pinv", check_errors=False)
    # As a Gram matrix it is semi-definite to its own rounding, also where the ranges hardly meet.
    half = sqrtm(b, check_errors=False) @ s
    k = sqrtm(spd.hermitian_part(half.mH @ half), check_errors=False)
    right = s @ (toward[1] - there @ toward[0] @ there) @ s
    moved = z @ solve_lyapunov(k, right, check_errors=False) @ z
    moved = spd.hermitian_part(spd.times_power_of_two(moved, -(i + j)))
    return -moved, spd.hermitian_part(back @ moved @ back)


def differentiable(call: Call, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """``evaluate`` with the derivative attached."""
    function = autodiff.traceable(_Distance, _SmoothDistance)
    outputs: tuple[Tensor, ...] = function.apply(call, a, b)
    return outputs


class _Distance(torch.autograd.Function):
    """d² and d with their first derivative: all that torch.compile takes."""

    @staticmethod
    def forward(call: Call, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return evaluate(call, a, b, True)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Call, Tensor, Tensor], output: tuple[Tensor, ...]
    ) -> None:
        ctx.mark_non_differentiable(*output[:2], *output[4:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:], *output[3:])

    @staticmethod
    def backward(
        ctx: Any,
        _status_a: None,
        _status_b: None,
        by_square: Tensor | None,
        by_root: Tensor | None,
        *_: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        return None, *_first_order(ctx.saved_tensors, by_square, by_root)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], call: Call, a: Tensor, b: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = differentiable(call, *autodiff.batch_first(info.batch_size, in_dims[1:], (a, b)))
        return outputs, (0,) * len(outputs)


class _SmoothDistance(_Distance):
    """The same to any order: the gradients are outputs with a derivative of their own."""

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Call, Tensor, Tensor], output: tuple[Tensor, ...]
    ) -> None:
        ctx.call = inputs[0]
        ctx.mark_non_differentiable(*output[:2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[1:], *output[3:])
        ctx.save_for_forward(*inputs[1:], *output[3:])

    @staticmethod
    def backward(ctx: Any, *by: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # Once: activation checkpointing allows no second look.
        first = _first_order(saved, by[2], by[3])
        if by[4] is None and by[5] is None:
            return None, *first
        a, b, _, *g = saved
        with context.no_autocast(a):
            by_a, by_b = _hessian_product(ctx.call, a, b, _hermitian(by[4:], g), (g[0], g[1]))
        second = (by_a.sum_to_size(a.shape), by_b.sum_to_size(b.shape))
        return None, *(y if x is None else x + y for x, y in zip(first, second, strict=True))

    @staticmethod
    def jvp(
        ctx: Any, _call: None, da: Tensor | None, db: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        a, b, root, *g = autodiff.primals(ctx.saved_tensors)
        with autodiff.nested_forward_mode(), context.no_autocast(a):
            toward = _hermitian((da, db), g)
            parts = [(x.conj() * y).real.sum((-2, -1)) for x, y in zip(g, toward, strict=True)]
            square = parts[0] + parts[1]
            second = _hessian_product(ctx.call, a, b, toward, (g[0], g[1]))
            return None, None, square, square * _half_inverse(root), *second


def _first_order(
    saved: tuple[Tensor, ...], by_square: Tensor | None, by_root: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by A and B from the cotangents of d² and d; ``saved`` is (A, B, d, gradients).

    None where there are no cotangents.
    """
    a, b, root, *g = saved
    if by_root is not None:
        of_root = by_root * _half_inverse(root)
        by_square = of_root if by_square is None else by_square + of_root
    if by_square is None:
        return None, None
    weight = by_square[..., None, None]
    return (weight * g[0]).sum_to_size(a.shape), (weight * g[1]).sum_to_size(b.shape)


def _half_inverse(root: Tensor) -> Tensor:
    """1/(2d), the derivative of d by d²; 0 where d is 0."""
    zero = root == 0
    return torch.where(zero, 0.0, 0.5 / torch.where(zero, 1.0, root))


def _hermitian(directions: tuple[Tensor | None, ...], like: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Hermitian parts of two directions, 0 for None."""
    first, second = (
        torch.zeros_like(y) if x is None else spd.hermitian_part(x)
        for x, y in zip(directions, like, strict=True)
    )
    return first, second
