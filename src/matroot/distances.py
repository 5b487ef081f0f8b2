"""The Bures–Wasserstein distance, the Fréchet distance of Gaussians, transport maps and means."""

from __future__ import annotations

import torch
from torch import Tensor

from matroot import autodiff, call, checks, context, errors, screen, spd
from matroot.dtensors import per_matrix
from matroot.overrides import overridable
from matroot.plan import Plan, resolve
from matroot.roots import BOTH, SQRT, Functions
from matroot.screen import Status
from matroot.transport import Call, differentiable, evaluate, normalized


@overridable
@per_matrix()
def bures_wasserstein_distance(
    a: Tensor, b: Tensor, *, squared: bool = True, eps: float = 0.0
) -> Tensor:
    """The Bures–Wasserstein distance of symmetric (Hermitian) positive semi-definite matrices.

    d² = tr A + tr B − 2 tr (A^{1/2} B A^{1/2})^{1/2}, with A + eps·I and B + eps·I for A and B: the
    squared 2-Wasserstein distance of centred Gaussians with these covariances.

    Args:
        a: symmetric (Hermitian) positive semi-definite matrices, shape (..., n, n), float16,
            bfloat16, float32, float64, complex64 or complex128. The Hermitian part is used; half
            precision is computed in float32.
        b: positive semi-definite, the same n, dtype and device; batch dimensions broadcast against
            those of ``a``.
        squared: whether to return d² (the default) or d.
        eps: ridge added to both diagonals, at least 0 (the default), in the units of ``a``.

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
        keeps both gradients. Pairs in which no matrix is singular or nearly so take less on a CPU.
        In single and half precision up to n = 256 compiled kernels make one eigendecomposition in
        double precision, 4 products and 2 more for the gradients. Beyond n = 256 two Cholesky
        factors and a product leave one decomposition: eigenvalues in double precision for single,
        singular values for double, with vectors where a gradient may be asked for or the matrices
        are close to each other, and 4 products for the gradients. Factors of singular matrices have
        as many columns as the rank, where that is certain. Results of single precision are
        then exact to some units of rounding, but for gradients at nearly equal, badly conditioned
        matrices (relative error 2e-5 at condition 1e5 and a step of 1e-7).
        Second derivatives and forward mode take a Lyapunov solve; inside torch.compile there are
        first derivatives alone. Second derivatives at singular matrices are finite, but not those
        of a curve through matrices of that rank.

        Eigenvalues up to 4 units of rounding of the largest (in double precision max(8, n) units)
        count as 0. On null × null space of a singular matrix the gradient is 0 (minimum norm). The
        gradient of d is 0 where d is.

    References:
        R. Bhatia, T. Jain, Y. Lim, On the Bures–Wasserstein distance between positive definite
        matrices, Expositiones Mathematicae 37 (2019).

    Example:
        >>> import torch, matroot
        >>> a, b = torch.diag(torch.tensor([4.0, 9.0])), torch.eye(2)
        >>> matroot.bures_wasserstein_distance(a, b)  # (2 − 1)² + (3 − 1)²
        tensor(5.)
    """
    matrices, eps = _checked(a, b, eps)
    checks.flag("squared", squared)
    distances = _distances(matrices, eps)
    return distances[0 if squared else 1].to(spd.real_dtype(a.dtype))


@overridable
@per_matrix(mu1=1, mu2=1)
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
        mu1: mean, shape (..., n), float16, bfloat16, float32, float64, complex64 or complex128;
            half precision is computed in float32.
        cov1: covariance, shape (..., n, n), the same n, dtype and device.
        mu2: mean, as ``mu1``. Batch dimensions of all four broadcast.
        cov2: covariance, as ``cov1``.
        squared: whether to return d² (the default, as FID is) or d.
        eps: ridge added to both covariances, at least 0 (the default), in their units.

    Returns:
        d² or d, shape (...), real, in the precision of the arguments.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype, or the dtypes differ; an option
            has the wrong type.
        ValueError: a mean is not (..., n) or a covariance not (..., n, n), the shapes do not fit,
            or the devices differ; ``eps`` is out of range.
        torch.linalg.LinAlgError: in eager mode on a CPU: a mean is not finite, or a covariance is
            not finite, not symmetric or indefinite, in the sense of ``sqrtm``. Elsewhere the
            distance of its pair is NaN.

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
    wide = [
        finite_or_nan(errors.Named(name, things="means"), mean, 1).to(
            spd.computing_dtype(mean.dtype)
        )
        for name, mean in means.items()
    ]
    step = wide[0] - wide[1]
    parts = spd.real_parts(step)
    if squared:
        distance = parts.square().sum(-1) + by_square
    else:
        batch = spd.broadcast_shapes(parts.shape[:-1], by_root.shape)
        legs = (parts.expand(*batch, -1), by_root.expand(batch)[..., None])
        distance = _norm(torch.cat(legs, -1))
    return distance.to(spd.real_dtype(mu1.dtype))


@overridable
@per_matrix()
def transport_map(a: Tensor, b: Tensor, *, eps: float = 0.0) -> Tensor:
    """The optimal transport map between centred Gaussians with covariances A and B.

    M = A^{-1/2} (A^{1/2} B A^{1/2})^{1/2} A^{-1/2}, with A + eps·I and B + eps·I for A and B: the
    one positive semi-definite M with M A M = B. x ↦ M x takes the first Gaussian to the second at
    the least mean squared cost, which is their squared Bures–Wasserstein distance.

    Args:
        a: symmetric (Hermitian) positive definite matrices, shape (..., n, n), float16, bfloat16,
            float32, float64, complex64 or complex128. The Hermitian part is used; half precision is
            computed in float32.
        b: positive semi-definite, the same n, dtype and device; batch dimensions broadcast against
            those of ``a``.
        eps: ridge added to both diagonals, at least 0 (the default), in the units of ``a``.

    Returns:
        M, shape (..., n, n), the dtype and device of ``a``; Hermitian, and exactly I where the
        matrices are the same.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype, or the dtypes differ; an option
            has the wrong type.
        ValueError: a shape is not (..., n, n), the shapes do not fit, or the devices differ;
            ``eps`` is out of range.
        torch.linalg.LinAlgError: in eager mode on a CPU: a matrix is not finite, not symmetric or
            indefinite, in the sense of ``sqrtm``, or a matrix of ``a`` is singular, in the sense of
            ``inv_sqrtm``. Elsewhere its map is NaN.

    Note:
        Costs of ``bures_wasserstein_distance`` with a gradient, which is I − M, and a Cholesky
        factorisation; its derivatives take a Lyapunov solve. Inside torch.compile two
        eigendecompositions and four products.

    References:
        M. Knott, C. S. Smith, On the optimal mapping of distributions, Journal of Optimization
        Theory and Applications 43 (1984).

    Example:
        >>> import torch, matroot
        >>> a, b = torch.diag(torch.tensor([4.0, 9.0])), torch.eye(2)
        >>> matroot.transport_map(a, b)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.3333]])
    """
    matrices, eps = _checked(a, b, eps)
    if a.numel() == 0 or b.numel() == 0:
        return a + b
    if torch.compiler.is_compiling():
        # Where distances have first derivatives alone.
        return _between(matrices, eps, inverse=True)
    with context.no_autocast(a):
        # B no smaller than A: of a tiny M the distance's gradient I − M has no digit.
        x, y = (_ridged(m, eps) for m in matrices.values())
        k = spd.exponent(x.detach()) - spd.exponent(y.detach())
        k = torch.div(k.clamp(min=0), 2, rounding_mode="floor")
        finite = spd.max_abs(x.detach()).isfinite() & spd.max_abs(y.detach()).isfinite()
        k = torch.where(finite, k, 0)
        outputs = _outputs(
            matrices, eps, gradients=True, ridged=(x, spd.times_power_of_two(y, 2 * k))
        )
        regular = _is_regular(a.detach(), eps)
        if checks.checking(None, a):
            named = errors.Named("a", ridge="a ridge with eps=", lacks="transport map")
            limits = screen.thresholds(a.shape[-1], a.dtype)
            status = torch.where(regular, Status.OK, Status.SINGULAR)
            errors.raise_if_bad(named, status, a, limits, eps)
        found = spd.times_power_of_two(spd.identity_like(outputs[4]) - outputs[4], -k)
        bad = ~regular[..., None, None]
        return torch.where(bad, spd.nan_where(bad, found), found).to(a.dtype)


def _ridged(a: Tensor, eps: float) -> Tensor:
    """A + eps·I in the computing dtype."""
    a = a.to(spd.computing_dtype(a.dtype))
    return a + eps * spd.identity_like(a) if eps else a


def _is_regular(a: Tensor, eps: float) -> Tensor:
    """Which matrices have no eigenvalue that is zero to rounding, shape (...), bool."""
    dtype = spd.computing_dtype(a.dtype)
    x, _, status = normalized(Call(a.dtype, eps), a.to(dtype))
    if a.device.type != "mps":  # In single precision 4 units are within its own rounding.
        x = spd.in_double(x)
    return (status == Status.OK) & spd.is_regular(x, dtype)


@overridable
@per_matrix()
def geometric_mean(a: Tensor, b: Tensor, *, eps: float = 0.0) -> Tensor:
    """The geometric mean of positive definite matrices.

    A # B = A^{1/2} (A^{-1/2} B A^{-1/2})^{1/2} A^{1/2}, with A + eps·I and B + eps·I for A and B:
    the midpoint of A and B in the affine-invariant metric, and the one positive definite G with
    G A⁻¹ G = B.

    Args:
        a: symmetric (Hermitian) positive definite matrices, shape (..., n, n), float16, bfloat16,
            float32, float64, complex64 or complex128. The Hermitian part is used; half precision is
            computed in float32.
        b: positive semi-definite, the same n, dtype and device; batch dimensions broadcast against
            those of ``a``.
        eps: ridge added to both diagonals, at least 0 (the default), in the units of ``a``.

    Returns:
        G, shape (..., n, n), the dtype and device of ``a``, exactly Hermitian.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype, or the dtypes differ; an option
            has the wrong type.
        ValueError: a shape is not (..., n, n), the shapes do not fit, or the devices differ;
            ``eps`` is out of range.
        torch.linalg.LinAlgError: in eager mode on a CPU: a matrix is not finite, not symmetric or
            indefinite, in the sense of ``sqrtm``, or a matrix of ``a`` is singular, in the sense of
            ``inv_sqrtm``. Elsewhere its mean is NaN.

    Note:
        Two eigendecompositions and four products; every order of derivative. Errors are those of
        rounding times the condition number of ``a``: put the better conditioned matrix first, the
        mean does not depend on the order.

    References:
        R. Bhatia, Positive Definite Matrices, Princeton University Press 2007, chapter 4.

    Example:
        >>> import torch, matroot
        >>> a, b = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([9.0, 4.0]))
        >>> matroot.geometric_mean(a, b)
        tensor([[3., 0.],
                [0., 4.]])
    """
    matrices, eps = _checked(a, b, eps)
    if a.numel() == 0 or b.numel() == 0:
        return a + b
    return _between(matrices, eps, inverse=False)


def _between(matrices: dict[str, Tensor], eps: float, *, inverse: bool) -> Tensor:
    """A # B = S (Z B Z)^{1/2} S, or A⁻¹ # B = Z (S B S)^{1/2} Z, with S = A^{1/2} and Z = S⁻¹."""
    a, b = matrices.values()
    dtype = spd.computing_dtype(a.dtype)

    def options(x: Tensor, functions: Functions, eps: float) -> Plan:
        return resolve(functions, x, eps, "auto", "auto", "auto", "raise", input_dtype=a.dtype)

    with context.no_autocast(a):
        x, y = a.to(dtype), b.to(dtype)
        ridge = "a ridge with eps="
        roots = call.values(options(x, BOTH, eps), x, None, named=errors.Named("a", ridge=ridge))
        named = errors.Named("b", ridge=ridge)
        unit, k, status = normalized(Call(a.dtype, eps), y)
        if checks.checking(None, b):
            limits = screen.thresholds(a.shape[-1], a.dtype)
            errors.raise_if_bad(named, status, b, limits, eps)
        bad = (status != Status.OK)[..., None, None]
        y = torch.where(bad, spd.nan_where(bad, y), unit)
        # In units in which the product of three neither overflows nor underflows.
        j = spd.exponent(roots[0].detach())
        s, z = (spd.times_power_of_two(m, i) for m, i in zip(roots, (-j, j), strict=True))
        outer, inner, k = (z, s, k - j) if inverse else (s, z, k + j)
        # Its own rounding is no asymmetry of b.
        middle = spd.hermitian_part(inner @ y @ inner)
        (root,) = call.values(options(middle, (SQRT,), 0.0), middle, None, named=named)
        found = spd.hermitian_part(outer @ root @ outer)
        return spd.times_power_of_two(found, k).to(a.dtype)


def _checked(a: Tensor, b: Tensor, eps: float) -> tuple[dict[str, Tensor], float]:
    """Matrices that go together, by name, and the ridge."""
    matrices = {"a": a, "b": b}
    for name, matrix in matrices.items():
        checks.square_matrices(name, matrix)
    checks.broadcastable(matrices)
    return matrices, checks.ridge(eps, a.dtype)


def finite_or_nan(named: errors.Named, x: Tensor, dims: int) -> Tensor:
    """Vectors or sets of them, the last ``dims`` dimensions of ``x``; NaN where one is not finite.

    Raises:
        torch.linalg.LinAlgError: instead, where errors are checked.
    """
    finite = x.detach().isfinite()
    for dim in range(1, dims + 1):
        finite = finite.all(-dim, keepdim=True)
    if checks.checking(None, x):
        status = torch.where(finite.reshape(x.shape[:-dims]), Status.OK, Status.NONFINITE)
        errors.raise_if_bad(named, status, x, screen.thresholds(x.shape[-1], x.dtype))
    return torch.where(finite, x, spd.nan_where(~finite, x))


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
    if a.numel() == 0 or b.numel() == 0:
        dtype = spd.computing_dtype(a.dtype)
        nothing = spd.trace(a.to(dtype)) + spd.trace(b.to(dtype))
        return nothing, nothing
    outputs = _outputs(matrices, eps, gradients=False)
    return outputs[2], outputs[3]


def _outputs(
    matrices: dict[str, Tensor],
    eps: float,
    *,
    gradients: bool,
    ridged: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """What ``transport.evaluate`` returns, differentiable, after its errors have been raised.

    Args:
        matrices: A and B by name.
        eps: the ridge.
        gradients: whether they are wanted.
        ridged: what is computed with in their place, in the computing dtype, ridge included.
    """
    a, b = matrices.values()
    dtype = spd.computing_dtype(a.dtype)
    check = checks.checking(None, a, b)
    with context.no_autocast(a):
        computed = ridged or (a.to(dtype), b.to(dtype))
        ndim = max(m.ndim for m in computed)
        x, y = (m[(None,) * (ndim - m.ndim)] for m in computed)
        pair = Call(a.dtype, 0.0 if ridged else eps)
        outputs = (
            differentiable(pair, x, y)
            if autodiff.differentiated(x, y)
            else evaluate(pair, x, y, gradients)
        )
        if check:
            limits = screen.thresholds(a.shape[-1], a.dtype)
            for name, status in zip(matrices, outputs, strict=False):
                named = errors.Named(name, ridge="a ridge with eps=")
                given = matrices[name]
                # One that was broadcast is one matrix.
                status = status[(0,) * (status.ndim - given.ndim + 2)]
                for dim in range(given.ndim - 2):
                    status = status.narrow(dim, 0, given.shape[dim])
                errors.raise_if_bad(named, status, given, limits, eps)
    return outputs
