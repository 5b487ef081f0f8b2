"""The Bures–Wasserstein distance of matrices and the Fréchet distance of Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from matroot import autodiff, checks, context, errors, screen, spd
from matroot.overrides import overridable
from matroot.screen import Status
from matroot.transport import Call, differentiable, evaluate


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
        call = Call(a.dtype, eps)
        outputs = (
            differentiable(call, x, y)
            if autodiff.differentiated(x, y)
            else evaluate(call, x, y, False)
        )
        if check:
            limits = screen.thresholds(a.shape[-1], a.dtype)
            for name, status in zip(matrices, outputs, strict=False):
                named = errors.Named(name, ridge="a ridge with eps=")
                status = status.reshape(matrices[name].shape[:-2])
                errors.raise_if_bad(named, status, matrices[name], limits, eps)
    return outputs[2], outputs[3]
