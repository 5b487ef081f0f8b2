"""The Fréchet distance of two sets of samples, by the samples themselves where they are few.

With the centred samples in the rows of F and G, divided by the square root of their count, the
covariances are FᴴF and GᴴG, and F Gᴴ = U Σ Vᴴ has the singular values of the product of their
roots:

    d² = ‖F‖² + ‖G‖² − 2 tr Σ = ‖F − W G‖² + ‖G − V Vᴴ G‖²,    W = U Vᴴ.

So N and M samples of n features take a matrix N×M and none of n×n, and no root of a singular
covariance. Since W is the best isometry, the gradient is 2 (F − W G) by F and 2 (G − Wᴴ F) by G.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from matroot import checks, context, errors, spd, spectrum
from matroot.distances import finite_or_nan, frechet_distance
from matroot.dtensors import per_matrix
from matroot.overrides import overridable
from matroot.statistics import Sums


@overridable
@per_matrix()
def frechet_distance_from_features(
    x: Tensor, y: Tensor, *, squared: bool = True, eps: float = 0.0, correction: int = 1
) -> Tensor:
    """The Fréchet distance of the Gaussians with the means and covariances of two sets of samples.

    d² = ‖μ_x − μ_y‖² + tr C_x + tr C_y − 2 tr (C_x^{1/2} C_y C_x^{1/2})^{1/2}: the FID, if they are
    features of an image network.

    Args:
        x: samples in rows, shape (..., N, n), float16, bfloat16, float32, float64, complex64 or
            complex128.
        y: shape (..., M, n), the same n, dtype and device; batch dimensions broadcast.
        squared: whether to return d² (the default, as FID is) or d.
        eps: ridge added to both covariances, at least 0 (the default), in their units.
        correction: covariances are sums over N − correction: 1 (the default) as in NumPy's ``cov``,
            0 for the second moments of the samples themselves.

    Returns:
        d² or d, shape (...), real, in the precision of ``x``, float32 at least; exactly 0 where the
        samples are the same.

    Raises:
        TypeError: an argument is not a tensor of a supported dtype, or the dtypes differ; an option
            has the wrong type.
        ValueError: samples are not (..., N, n), the shapes do not fit, or the devices differ;
            ``eps`` or ``correction`` is out of range; or there are not more than ``correction``
            samples.
        torch.linalg.LinAlgError: in eager mode on a CPU: a sample is not finite. Elsewhere NaN.

    Note:
        Everything is summed in double precision, where the device has it. With fewer samples than
        features on one of the sides, and no ridge: one singular value decomposition of N×M, in
        which a side with more samples than features counts n. First derivatives take two products
        more; there are no second ones. Else ``frechet_distance`` of the covariances: n² memory, any
        order of derivative, costs as there; without a gradient samples are taken 4096 at a time.

    References:
        M. Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
        Equilibrium, NeurIPS 2017.

    Example:
        >>> import torch, matroot
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> matroot.frechet_distance_from_features(x, 3 * x, correction=0)  # (3 − 1)²
        tensor(4.)
    """
    samples = {"x": x, "y": y}
    for name, given in samples.items():
        _check(name, given, correction)
    checks.broadcastable(samples)
    checks.flag("squared", squared)
    eps = checks.ridge(eps, x.dtype)
    n = x.shape[-1]
    with context.no_autocast(x):
        wide = [_wide(given) for given in (x, y)]
        if eps or min(x.shape[-2], y.shape[-2]) >= n:
            parts = []
            for given in wide:
                sums = Sums.of(given)
                parts += [sums.mean, sums.scatter / (given.shape[-2] - correction)]
            distance = frechet_distance(*parts, squared=squared, eps=eps)
        else:
            distance = _by_samples(samples, wide, correction, squared)
        return distance.to(spd.real_dtype(spd.computing_dtype(x.dtype)))


def _check(name: str, x: Tensor, correction: int) -> None:
    """Raise if these are no samples."""
    checks.vectors(name, x)
    if x.ndim < 2:
        raise ValueError(f"{name} must have shape (..., samples, features), got {tuple(x.shape)}")
    checks.whole("correction", correction, least=0)
    if x.shape[-2] <= correction:
        raise ValueError(
            f"{name} must have more than {correction} samples (correction={correction}), got shape "
            f"{tuple(x.shape)}"
        )


def _wide(x: Tensor) -> Tensor:
    """In double precision; Apple's GPUs have none."""
    return spd.in_double(x) if x.device.type != "mps" else x.to(spd.computing_dtype(x.dtype))


def _by_samples(names: Iterable[str], wide: list[Tensor], correction: int, squared: bool) -> Tensor:
    means, factors = [], []
    for name, given in zip(names, wide, strict=True):
        x = finite_or_nan(errors.Named(name, things="sets of samples"), given, 2)
        mean = x.mean(-2, keepdim=True)
        factor = (x - mean) / math.sqrt(x.shape[-2] - correction)
        if x.shape[-2] > x.shape[-1] and not x.requires_grad:
            factor = torch.linalg.qr(factor, mode="r").R
        means.append(mean[..., 0, :])
        factors.append(factor)
    ndim = max(factor.ndim for factor in factors)
    f, g = (factor[(None,) * (ndim - factor.ndim)] for factor in factors)
    square = _Distance.apply(f, g)[0]
    step = means[0] - means[1]
    square = square + spd.real_parts(step).square().sum(-1)
    return square if squared else spd.sqrt_or_zero(square)


class _Distance(torch.autograd.Function):
    """(d², half its gradients) of centred samples F and G."""

    generate_vmap_rule = True

    @staticmethod
    def forward(f: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        batch = spd.broadcast_shapes(f.shape[:-2], g.shape[:-2])
        x, y = (z.expand(*batch, *z.shape[-2:]) for z in (f, g))
        u, sigma, vh = spectrum.svd(x @ y.mH)
        size = spd.frobenius_norm(x) * spd.frobenius_norm(y)
        # Vectors of zeros are any: what they would carry over is left where it is.
        kept = sigma > max(x.shape[-2:]) * spd.real_eps(x.dtype) * size[..., 0]
        u, vh = u * kept[..., None, :], vh * kept[..., :, None]
        along_u, along_v = u.mH @ x, vh @ y
        by_f, by_g = x - u @ along_v, y - vh.mH @ along_u
        # ‖F − U Uᴴ F‖² + ‖Uᴴ F − Vᴴ G‖² + ‖G − V Vᴴ G‖²
        rest = (x - u @ along_u, along_u - along_v, y - vh.mH @ along_v)
        first, second, third = (spd.frobenius_norm(z)[..., 0, 0].square() for z in rest)
        square = first + second + third
        if f.shape[-2:] == g.shape[-2:]:
            same = (x == y).all(-1).all(-1)
            square = torch.where(same, 0.0, square)
            by_f, by_g = (torch.where(same[..., None, None], 0.0, z) for z in (by_f, by_g))
        return square, by_f, by_g

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        # As outputs, whose own derivative is refused and not taken for 0.
        ctx.save_for_backward(*output[1:])
        ctx.shapes = [z.shape for z in inputs]

    @staticmethod
    def backward(ctx: Any, by: Tensor | None, *second: Tensor | None) -> tuple[Tensor | None, ...]:
        if any(z is not None for z in second):
            raise NotImplementedError(
                "second derivatives of frechet_distance_from_features with fewer samples than "
                "features; take frechet_distance of the covariances"
            )
        if by is None:
            return None, None
        weight = 2 * by[..., None, None]
        return tuple(
            (weight * z).sum_to_size(shape)
            for z, shape in zip(ctx.saved_tensors, ctx.shapes, strict=True)
        )
