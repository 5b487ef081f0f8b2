"""The Bures–Wasserstein distance of matrices, the Fréchet distance of Gaussians, their gradients.

With S_a = A^{1/2}, S_b = B^{1/2} and the singular value decomposition S_a S_b = U Σ Vᴴ,

    d² = tr A + tr B − 2 tr Σ = ‖S_a − S_b V Uᴴ‖_F²,

a sum of squares: never negative, and as exact at A ≈ B as elsewhere, where the traces cancel. Its
gradient by A, I − M with the transport map M = S_b V Uᴴ S_a⁻¹ that takes A to B = M A M, is made of
the same factors, without a Lyapunov equation.

Compiled kernels do it with a Cholesky factor and one eigendecomposition a pair, see
native/distance.hpp, for matrices of single precision that are regular beyond doubt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from matroot import autodiff, checks, context, errors, screen, spd, spectrum
from matroot.functional import sqrtm, sqrtm_pair
from matroot.kernels.native.distances import squared_distances
from matroot.lyapunov import solve_lyapunov
from matroot.overrides import overridable
from matroot.screen import Status
from matroot.spectrum import Spectrum


@overridable
def bures_wasserstein_distance(
    a: Tensor, b: Tensor, *, squared: bool = True, eps: float = 0.0
) -> Tensor:
    """The Bures–Wasserstein distance of symmetric (Hermitian) positive semi-definite matrices.

    d² = tr A + tr B − 2 tr (A^{1/2} B A^{1/2})^{1/2}, with A + eps·I and B + eps·I for A and B: the
    squared 2-Wasserstein distance of centred Gaussians with these covariances.

    Args:
        a: shape (..., n, n), float16, bfloat16, float32, float64, complex64 or complex128. The
            Hermitian part is used; half precision is computed in float32.
        b: the same n, dtype and device; batch dimensions broadcast against those of ``a``.
        squared: whether to return d² or d.
        eps: ridge added to both diagonals, at least 0, in the units of ``a``.

    Returns:
        d² or d, shape (...), real, in the precision of ``a``; exactly 0 where the matrices are the
        same. Never below 0.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype, or the dtypes differ; an option
            has the wrong type.
        ValueError: a shape is not (..., n, n), the shapes do not fit, or the devices differ;
            ``eps`` is out of range.
        torch.linalg.LinAlgError: in eager mode on a CPU: a matrix is not finite, not symmetric or
            indefinite, in the sense of ``sqrtm``. Elsewhere the distance of its pair is NaN.

    Note:
        One eigendecomposition for each matrix, and for each pair a singular value decomposition and
        2 products; 6 more where a gradient may be asked for, and none in the backward pass, which
        keeps both gradients. On a CPU the compiled kernels take real matrices up to n = 256 of
        single precision, or of half precision, in which none is singular or nearly so: one
        eigendecomposition in double precision for each pair, 4 products and 2 more for the
        gradients. Results are then exact to some units of rounding, but for gradients at nearly
        equal, badly conditioned matrices (relative error 2e-5 at condition 1e5 and a step of 1e-7).
        Second derivatives and forward mode take a Lyapunov solve; inside torch.compile there are
        first derivatives alone.

        Eigenvalues up to 4 units of rounding of the largest (in double precision max(8, n) units)
        count as 0. On null × null space of a
        singular matrix the gradient is 0 (minimum norm). The gradient of d is 0 where d is.

    References:
        R. Bhatia, T. Jain, Y. Lim, On the Bures–Wasserstein distance between positive definite
        matrices, Expositiones Mathematicae 37 (2019).

    Example:
        >>> import torch, matroot
        >>> a, b = torch.diag(torch.tensor([4.0, 9.0])), torch.eye(2)
        >>> matroot.bures_wasserstein_distance(a, b)  # (2 − 1)² + (3 − 1)²
        tensor(5.)
    """
    matrices = {"a": a, "b": b}
    for name, matrix in matrices.items():
        checks.square_matrices(name, matrix)
    checks.broadcastable(matrices)
    checks.flag("squared", squared)
    distances = _distances(matrices, checks.ridge(eps, a.dtype))
    return distances[0 if squared else 1].to(spd.real_dtype(a.dtype))


@overridable
def frechet_distance(
    mu1: Tensor,
    cov1: Tensor,
    mu2: Tensor,
    cov2: Tensor,
    *,
    squared: bool = True,
    eps: float = 0.0,
) -> Tensor:
    """The Fréchet (2-Wasserstein) distance of two Gaussians.

    d² = ‖μ₁ − μ₂‖² + tr C₁ + tr C₂ − 2 tr (C₁^{1/2} C₂ C₁^{1/2})^{1/2}, with the ridge eps·I added
    to both covariances. Of the features of an image network it is the FID.

    Args:
        mu1: mean, shape (..., n), dtypes as of ``sqrtm``.
        cov1: covariance, shape (..., n, n), the same n, dtype and device.
        mu2: mean, as ``mu1``. Batch dimensions of all four broadcast.
        cov2: covariance, as ``cov1``.
        squared: whether to return d² (as FID is) or d.
        eps: ridge added to both covariances, at least 0, in their units.

    Returns:
        d² or d, shape (...), real, in the precision of the arguments.

    Raises:
        TypeError: see ``bures_wasserstein_distance``.
        ValueError: see ``bures_wasserstein_distance``; or a mean is not (..., n).
        torch.linalg.LinAlgError: see ``bures_wasserstein_distance``; or a mean is not finite.

    Note:
        Costs and accuracy of ``bures_wasserstein_distance``.

    References:
        D. C. Dowson, B. V. Landau, The Fréchet distance between multivariate normal distributions,
        Journal of Multivariate Analysis 12 (1982).

    Example:
        >>> import torch, matroot
        >>> mu, cov = torch.tensor([3.0, 0.0]), torch.eye(2)
        >>> matroot.frechet_distance(mu, cov, torch.zeros(2), 4 * cov)  # 3² + (2 − 1)² + (2 − 1)²
        tensor(11.)
    """
    means, covariances = {"mu1": mu1, "mu2": mu2}, {"cov1": cov1, "cov2": cov2}
    for name, mean in means.items():
        checks.vectors(name, mean)
    for name, covariance in covariances.items():
        checks.square_matrices(name, covariance)
    checks.broadcastable(covariances, means)
    checks.flag("squared", squared)
    by_square, by_root = _distances(covariances, checks.ridge(eps, cov1.dtype))
    wide = [_finite(name, mean).to(spd.computing_dtype(mean.dtype)) for name, mean in means.items()]
    step = wide[0] - wide[1]
    parts = spd.real_parts(step)
    if squared:
        distance = parts.square().sum(-1) + by_square
    else:
        # PyTorch's function has no annotations.
        batch = torch.broadcast_shapes(parts.shape[:-1], by_root.shape)  # type: ignore[no-untyped-call]
        legs = (parts.expand(*batch, -1), by_root.expand(batch)[..., None])
        distance = _norm(torch.cat(legs, -1))
    return distance.to(spd.real_dtype(mu1.dtype))


def _finite(name: str, mean: Tensor) -> Tensor:
    """The mean; NaN where a component is not finite, or the error that says so."""
    finite = mean.detach().isfinite().all(-1, keepdim=True)
    if checks.checking(None, mean):
        status = torch.where(finite[..., 0], Status.OK, Status.NONFINITE)
        limits = screen.thresholds(mean.shape[-1], mean.dtype)
        errors.raise_if_bad(errors.Named(name, things="means"), status, mean, limits)
    return torch.where(finite, mean, spd.nan_where(~finite, mean))


def _norm(x: Tensor) -> Tensor:
    """‖x‖ of real vectors (..., n), n ≥ 1, with gradient 0 at 0 and squares that stay in range."""
    column = x[..., None]
    k = spd.exponent(column.detach())
    total = spd.times_power_of_two(column, -k).square().sum((-2, -1), keepdim=True)
    zero = total == 0
    root = torch.where(zero, 0.0, torch.where(zero, 1.0, total).sqrt())
    return spd.times_power_of_two(root, k)[..., 0, 0]


@dataclass(frozen=True)
class _Call:
    """What the computation knows but the numbers."""

    dtype: torch.dtype
    eps: float


def _distances(matrices: dict[str, Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """(d², d) of two checked, named tensors of matrices, in the computing dtype."""
    a, b = matrices.values()
    dtype = spd.computing_dtype(a.dtype)
    if a.numel() == 0 or b.numel() == 0:
        nothing = spd.trace(a.to(dtype)) + spd.trace(b.to(dtype))
        return nothing, nothing
    check = checks.checking(None, a, b)
    with context.no_autocast(a):
        ndim = max(a.ndim, b.ndim)
        x, y = (m.to(dtype)[(None,) * (ndim - m.ndim)] for m in (a, b))
        call = _Call(a.dtype, eps)
        outputs = (
            _apply(call, x, y) if autodiff.differentiated(x, y) else _evaluate(call, x, y, False)
        )
        if check:
            limits = screen.thresholds(a.shape[-1], a.dtype)
            for name, status in zip(matrices, outputs, strict=False):
                named = errors.Named(name, ridge="a ridge with eps=")
                status = status.reshape(matrices[name].shape[:-2])
                errors.raise_if_bad(named, status, matrices[name], limits, eps)
    return outputs[2], outputs[3]


@dataclass(frozen=True)
class _Root:
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
    def of(cls, call: _Call, a: Tensor) -> _Root:
        """By eigenpairs of A."""
        scaled, k, status = _scaled(call, a)
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


def _scaled(call: _Call, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """((A + eps·I)/4ᵏ, k, Status) of matrices (..., n, n); see screen.normalized."""
    batch, flat = a.shape[:-2], a.reshape(-1, *a.shape[-2:])
    skew = screen.thresholds(a.shape[-1], call.dtype).skew
    x, twice, status = screen.normalized(flat, skew, call.eps)
    k = torch.div(twice, 2, rounding_mode="floor")
    return x.reshape(a.shape), k.reshape(batch), status.reshape(batch)


def _evaluate(call: _Call, a: Tensor, b: Tensor, gradients: bool) -> tuple[Tensor, ...]:
    """(status of A, status of B, d², d) and, if asked for, both gradients of d².

    Args:
        call: the call.
        a: shape (..., n, n), in the computing dtype.
        b: shape (..., n, n), as many dimensions; those of the batch broadcast.
        gradients: whether they are wanted.
    """
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


def _by_svd(call: _Call, a: Tensor, b: Tensor, gradients: bool) -> tuple[Tensor, ...]:
    """``_evaluate`` by PyTorch's operations, which define what is correct.

    Everything is done in the bases of eigenvectors, where S_a and S_b are their roots: with
    C = Q_aᴴ Q_b the singular value decomposition is that of s_a C s_b.

    Args:
        call: the call.
        a: shape (..., n, n), in the computing dtype.
        b: shape (..., n, n), as many dimensions; those of the batch broadcast.
        gradients: whether they are wanted.
    """
    first, second = _Root.of(call, a), _Root.of(call, b)
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


def _gradient(first: _Root, second: _Root, c: Tensor, isometry: Tensor, k: Tensor) -> Tensor:
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
    call: _Call, a: Tensor, b: Tensor, toward: tuple[Tensor, Tensor], g: tuple[Tensor, Tensor]
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
    a, i, _ = _scaled(call, a)
    b, j, _ = _scaled(call, b)
    s, z = sqrtm_pair(a, singular="pinv", check_errors=False)
    # As a Gram matrix it is semi-definite to its own rounding, also where the ranges hardly meet.
    half = sqrtm(b, check_errors=False) @ s
    k = sqrtm(spd.hermitian_part(half.mH @ half), check_errors=False)
    right = s @ (toward[1] - there @ toward[0] @ there) @ s
    moved = z @ solve_lyapunov(k, right, check_errors=False) @ z
    moved = spd.hermitian_part(spd.times_power_of_two(moved, -(i + j)))
    return -moved, spd.hermitian_part(back @ moved @ back)


def _apply(call: _Call, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """``_evaluate`` with the derivative attached."""
    function = autodiff.traceable(_Distance, _SmoothDistance)
    outputs: tuple[Tensor, ...] = function.apply(call, a, b)
    return outputs


class _Distance(torch.autograd.Function):
    """d² and d with their first derivative: all that torch.compile takes."""

    @staticmethod
    def forward(call: _Call, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return _evaluate(call, a, b, True)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[_Call, Tensor, Tensor], output: tuple[Tensor, ...]
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
        info: Any, in_dims: tuple[int | None, ...], call: _Call, a: Tensor, b: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = _apply(call, *autodiff.batch_first(info.batch_size, in_dims[1:], (a, b)))
        return outputs, (0,) * len(outputs)


class _SmoothDistance(_Distance):
    """The same to any order: the gradients are outputs with a derivative of their own."""

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[_Call, Tensor, Tensor], output: tuple[Tensor, ...]
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
