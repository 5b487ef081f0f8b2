"""What the layers compute, as functions of tensors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from matroot import call, checks, context, errors, spd
from matroot.dtensors import per_matrix
from matroot.gradients import GradientName, GradientRule, Lyapunov
from matroot.kernels import TRITON_DOUBLE, Family, ValueKernel
from matroot.methods import Method, MethodName, Minimax
from matroot.overrides import overridable
from matroot.plan import resolve
from matroot.request import Request, Singular
from matroot.roots import INV_SQRT, SQRT
from matroot.statistics import Moments, Shrinkage, moments, weights

__all__ = ["inverse_root", "power_normalization", "whiten_and_color"]


def __dir__() -> list[str]:
    return __all__


@overridable
@per_matrix()
def inverse_root(
    covariance: Tensor,
    eps: float,
    *,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    rounding: float | Tensor = 1.0,
    rtol: float | None = None,
) -> Tensor:
    """(Σ + eps·I)^{-1/2} of covariances, finite with fewer samples than features.

    Rounding leaves an error of some units of √(σ_ii σ_jj) in entry i, j of a covariance: a zero
    eigenvalue becomes noise of that size, of either sign. So the ridge of feature i is
    max(eps, 8u·c·σ_ii), with u the rounding unit and c ≥ 1 a bound of the largest eigenvalue of the
    correlations: 1e-6 of a variance where features are not correlated. The root is computed in
    double precision (on Apple's GPUs, which have none, in single), so that features of very
    different variance are as accurate as others, within its range: where even with these ridges an
    eigenvalue is zero to the rounding of double precision, compared with the largest, all features
    take a larger ridge, 2·max(8, n) units of λ_max. Variances below about 1e-14·n of the largest
    are then lost: rescale features that differ by so much.

    Args:
        covariance: symmetric positive semi-definite matrices, shape (..., n, n), float32 or
            float64.
        eps: the ridge, at least 0, in the units of the covariance.
        method: a name from ``matroot.methods.METHODS`` or an object such as ``NewtonSchulz()``;
            ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()`` elsewhere.
        gradient: a name from ``matroot.gradients.GRADIENTS`` or an object; ``"auto"`` (the default)
            is ``Spectral()`` for the spectral methods and ``Lyapunov()`` for the others.
        rounding: the rounding in Σ, as a multiple of that of one sum, 1 by default.
        rtol: leave out eigenvalues up to this share of the largest, as noise, instead of adding
            ridges for rounding, which gives the pseudo-inverse root; None (the default): leave out
            none.

    Returns:
        The shape and dtype of ``covariance``.

    Raises:
        ValueError: ``rtol`` with a method that has no eigenvalues.
        torch.linalg.LinAlgError: where errors are checked (see ``matroot.inv_sqrtm``): NaN or
            infinity; with ``eps=0``, no variance at all.

    Example:
        >>> import torch
        >>> from matroot.nn.functional import inverse_root
        >>> inverse_root(torch.tensor([[1.0, 0.0], [0.0, 1e-12]]), 0.0).diagonal()
        tensor([1.0000e+00, 1.0000e+06])
    """
    return _inverse_root(
        covariance,
        eps,
        method,
        gradient,
        rounding,
        rtol,
        named=errors.Named("covariance", ridge="a ridge with eps="),
    )


def _inverse_root(
    covariance: Tensor,
    eps: float,
    method: MethodName | Method,
    gradient: GradientName | GradientRule,
    rounding: float | Tensor = 1.0,
    rtol: float | None = None,
    *,
    named: errors.Named,
) -> Tensor:
    """``inverse_root`` with the caller's wording of errors: see ``errors.raise_if_bad``."""
    checks.cut_off("rtol", rtol)
    wide = covariance
    if covariance.device.type != "mps":
        wide = covariance.to(torch.float64)
    fused = _fused(covariance, wide)
    if rtol is None:
        ridge = _ridge(wide, eps, rounding * spd.real_eps(covariance.dtype))
        wide, eps = _regular(wide + torch.diag_embed(ridge), ridge, fused), 0.0
    singular: Singular = "raise" if rtol is None else "pinv"
    backend = "auto" if fused is None else fused.name
    # Below zero by no more than the rounding of the covariance counts as zero.
    rounded_in = None if rtol is None else covariance.dtype
    plan = resolve(
        (INV_SQRT,), wide, eps, method, gradient, backend, singular, input_dtype=rounded_in
    )
    (root,) = call.values(plan, wide, None, rtol=rtol, named=named)
    return root.to(covariance.dtype)


def _fused(covariance: Tensor, wide: Tensor) -> Family | None:
    """The kernels in double precision, for a covariance in single on a GPU that has them.

    Even where double precision is slow, one launch replaces hundreds. A covariance in double
    precision stays with PyTorch's operations: see their ``on_request``.
    """
    if covariance.device.type != "cuda" or covariance.dtype == wide.dtype:
        return None
    return TRITON_DOUBLE if TRITON_DOUBLE.declines(wide) is None else None


def _ridge(covariance: Tensor, eps: float, unit: float | Tensor) -> Tensor:
    """max(eps, 8u·c·σ_ii), u the rounding in Σ; a single variance needs no ridge but eps."""
    c = covariance.detach()
    variance = c.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    if covariance.shape[-1] <= 1:
        return torch.full_like(variance, eps)
    scale = spd.positive_or_one(variance).rsqrt()
    correlation = c * scale[..., :, None] * scale[..., None, :]
    largest = spd.upper_bound(correlation)[..., 0].clamp(min=1)
    if eps == 0:
        # A constant feature takes the ridge of the feature that varies most.
        variance = torch.where(variance > 0, variance, variance.amax(-1, keepdim=True))
    return (8 * unit * largest * variance).clamp(min=eps)


def _regular(a: Tensor, ridge: Tensor, fused: Family | None = None) -> Tensor:
    """Σ, with a further ridge where its least eigenvalue is zero compared with λ_max.

    The ridge of a feature is in units of its own variance: for features of small variance it may be
    negligible compared with the largest eigenvalue.

    Args:
        a: Σ with the ridges, shape (..., n, n).
        ridge: these ridges, shape (..., n): no eigenvalue is below the least, except by rounding.
        fused: kernels that bound the spectrum in one launch.
    """
    if context.exporting() or a.shape[-1] <= 1:
        # ONNX has no factorisation, and exported programs accept singular matrices.
        return a
    share = 2 * spd.null_share(a.shape[-1], a.dtype)
    bounds = None if fused is None or a.numel() == 0 else _bounds(a.detach(), fused)
    if bounds is not None:
        # NaN for a bad matrix, which stays as it is.
        low, least = bounds[..., 0], share * bounds[..., 1].square()
        # A covariance of zero has no inverse root, and gets no ridge.
        some = a.detach().diagonal(dim1=-2, dim2=-1).amax(-1) > 0
        short = some & (low == 0) & (ridge.amin(-1) <= least)
        return a + torch.diag_embed(torch.where(short, least, 0.0)[..., None].expand_as(ridge))
    # In units in which no square overflows.
    seen = a.detach()
    k = torch.where(spd.max_abs(seen).isfinite(), spd.exponent(seen), 0)
    scaled = spd.times_power_of_two(seen, -k)
    least = share * spd.upper_bound(scaled)
    enough = ridge.amin(-1)[..., None, None] > spd.times_power_of_two(least, k)
    if context.host_reads_are_free(a) and enough.all():
        return a
    found = spd.bounds(scaled).low_at_most.reshape(least.shape) > least
    more = spd.times_power_of_two(torch.where(enough | found, 0.0, least), k)
    return a + more * spd.identity_like(a)


def _bounds(a: Tensor, fused: Family) -> Tensor | None:
    """Bounds of the spectrum of A^{1/2}, the lower one 0 where an eigenvalue may count as zero.

    They are those that a forward pass keeps for the gradient by the Lyapunov equation; no root is
    computed.

    Returns:
        Shape (..., 2), NaN for a bad matrix; None if there is no kernel for it.
    """
    request = Request((), Minimax(max_steps=1), Lyapunov(), 0.0, "raise", a.dtype, a.dtype)
    kernel = fused.accepts(request, a)
    found = kernel.run(request, a) if isinstance(kernel, ValueKernel) else None
    return None if found is None else found.constants[0]


@overridable
@per_matrix()
def power_normalization(
    a: Tensor, *, rank: int = 1, steps: int = 1, root: Literal["sqrt", "inv_sqrt"] = "sqrt"
) -> Tensor:
    """Power normalisation of the largest eigenvalues by power iteration (So-ViT, 2021).

    The ``rank`` largest eigenpairs (σ_i, v_i) come from ``steps`` power iterations each, started
    at the vector of ones, with deflation; the rest is divided by the root of the last one found:

        Σ_i √σ_i v_i v_iᵀ + (A − Σ_i σ_i v_i v_iᵀ)/√σ_rank.

    It is not a square root: the other eigenvalues keep their ratios. At ``rank=1`` it is A/√σ₁.
    For the inverse root it is Σ_i v_i v_iᵀ/√σ_i + (I − Σ_i v_i v_iᵀ)/√σ_rank, at ``rank=1``
    I/√σ₁.

    Args:
        a: symmetric positive semi-definite matrices, shape (..., n, n), float32 or float64.
        rank: number of eigenpairs, at least 1 (the default).
        steps: power iterations each, at least 1 (the default).
        root: the root that it replaces, ``"sqrt"`` (the default) or ``"inv_sqrt"``.

    Returns:
        The shape and dtype of ``a``. 0 where A = 0 (NaN for the inverse); NaN where the rank is
        below ``rank``, or where the vector of ones lies in the null space.

    References:
        J. Xie et al., So-ViT: Mind Visual Tokens for Vision Transformer, arXiv 2104.10935.

    Example:
        >>> import torch
        >>> from matroot.nn.functional import power_normalization
        >>> power_normalization(torch.tensor([[2.0, 2.0], [2.0, 2.0]]))
        tensor([[1., 1.],
                [1., 1.]])
    """
    checks.whole("power_normalization: rank", rank)
    checks.whole("power_normalization: steps", steps)
    if a.numel() == 0:
        return a.clone()
    # Powers of 4 change no digit, and nothing over- or underflows between.
    power = torch.where(spd.max_abs(a).isfinite(), spd.even_exponent(a), 0)
    scaled = spd.times_power_of_two(a, -power)
    zero = (spd.max_abs(a) == 0)[..., None, None]
    rest = torch.where(zero, torch.ones_like(a), scaled)
    found, sigma = torch.zeros_like(a), None
    left = spd.identity_like(a)
    for _ in range(rank):
        v = a.new_ones(*a.shape[:-1], 1)
        for _ in range(steps):
            v = F.normalize(rest @ v, dim=-2)
        sigma = v.mT @ rest @ v
        pair = v @ v.mT
        found = found + (sigma.sqrt() if root == "sqrt" else sigma.rsqrt()) * pair
        rest = rest - sigma * pair
        left = left - pair
    assert sigma is not None
    half = torch.div(power, 2, rounding_mode="floor")
    if root == "inv_sqrt":
        value = torch.where(zero, torch.nan, found + left / sigma.sqrt())
        return spd.times_power_of_two(value, -half)
    return spd.times_power_of_two(torch.where(zero, 0.0, found + rest / sigma.sqrt()), half)


@overridable
@per_matrix(content=-1, style=-1, blending=-1, content_weight=-1, style_weight=-1)
def whiten_and_color(
    content: Tensor,
    style: Tensor,
    *,
    groups: int = 1,
    blending: float | Tensor = 1.0,
    eps: float = 1e-5,
    shrinkage: Shrinkage | float | None = None,
    method: MethodName | Method = "auto",
    gradient: GradientName | GradientRule = "auto",
    normalization: Literal["sqrt", "power"] = "sqrt",
    rtol: float | None = None,
    content_weight: Tensor | None = None,
    style_weight: Tensor | None = None,
) -> Tensor:
    """Give the content's features the mean and covariance of the style's: the WCT.

    For each picture and group of channels, with means μ and covariances C over the pixels,

        y = b·[(C_style + eps·I)^{1/2} (C_content + eps·I)^{-1/2} (x − μ_content) + μ_style]
            + (1 − b)·x.

    Args:
        content: x, shape (N, C, ...), float16, bfloat16, float32 or float64.
        style: shape (N, C, ...) or (1, C, ...), of the same dtype, with any number of pixels, but
            at least one.
        groups: number of groups of channels, each with its own covariance, 1 by default.
        blending: b, a number or a tensor that broadcasts to (N, C, ...), 1 by default: 0 leaves the
            content.
        eps: ridge on both covariances, in their units, 1e-5 by default; at least some units of
            their rounding.
        shrinkage: of both covariances: a share of shrinkage between 0 and 1, or ``"ledoit_wolf"``
            or ``"oas"``, which choose it; None (the default): none.
        method: of both roots, a name from ``matroot.methods.METHODS`` or an object such as
            ``NewtonSchulz()``; ``"auto"`` (the default) is ``Eigh()`` on a CPU and ``Minimax()``
            elsewhere.
        gradient: of both roots, a name from ``matroot.gradients.GRADIENTS`` or an object;
            ``"auto"`` (the default) is ``Spectral()`` for the spectral methods and ``Lyapunov()``
            for the others.
        normalization: ``"sqrt"`` (the default), or ``"power"``, which replaces both roots by power
            normalisation, for comparison.
        rtol: of the content's inverse root: leave out directions with eigenvalues up to this share
            of the largest, as noise, instead of adding a ridge for rounding; None (the default):
            leave out none.
        content_weight: how much each pixel counts in the statistics, at least 0, which broadcasts
            to (N, ...) without the channels; booleans are a mask, True counts. Pixels of weight 0
            are left out, and come out as they are.
        style_weight: the same of the style.

    Returns:
        The shape and dtype of ``content``; covariances and roots are float32 at least.

    Raises:
        TypeError: no floating-point numbers, two dtypes, or weights that are no real numbers.
        ValueError: shapes that do not go together; groups that do not divide the channels; where
            errors are checked, weights that are negative, or leave no pixel of a picture.
        torch.linalg.LinAlgError: where errors are checked (see ``sqrtm``), NaN or infinity.

    Note:
        Two roots and three products with the pixels. Directions in which the content does not vary,
        as with fewer pixels than channels, are not coloured.

    References:
        Y. Li et al., Universal Style Transfer via Feature Transforms, NeurIPS 2017.

    Example:
        >>> import torch
        >>> from matroot.nn.functional import whiten_and_color
        >>> content, style = torch.randn(1, 3, 16, 16), 5 * torch.randn(1, 3, 24, 24) + 2
        >>> y = whiten_and_color(content, style)
        >>> found, goal = (torch.cov(x[0].flatten(1), correction=0) for x in (y, style))
        >>> torch.allclose(found, goal, rtol=1e-3, atol=1e-3)
        True
    """
    _check_pair(content, style, groups)
    channels = content.shape[1]
    given = {"content_weight": (content, content_weight), "style_weight": (style, style_weight)}
    with context.no_autocast(content):
        counts = [_pixel_weights(name, x, weight) for name, (x, weight) in given.items()]
        found, goal = (
            _moments_of_groups(x, groups, channels // groups, shrinkage, weight)
            for x, weight in zip((content, style), counts, strict=True)
        )
        if normalization == "power":
            identity = spd.identity_like(found.covariance)
            whitening = power_normalization(found.covariance + eps * identity, root="inv_sqrt")
            coloring = power_normalization(goal.covariance + eps * identity)
        else:
            remedies = {
                "ridge": "a ridge with eps=",
                "otherwise": "shrink with shrinkage=, or take more groups",
            }
            whitening = _inverse_root(
                found.covariance,
                eps,
                method,
                gradient,
                rtol=rtol,
                named=errors.Named("the covariance of content", **remedies),
            )
            unit = spd.real_eps(goal.covariance.dtype)
            ridged = goal.covariance + torch.diag_embed(_ridge(goal.covariance, eps, unit))
            plan = resolve((SQRT,), ridged, 0.0, method, gradient, "auto", "raise")
            named = errors.Named("the covariance of style", **remedies)
            (coloring,) = call.values(plan, ridged, None, named=named)
        y = (coloring @ whitening) @ found.centered + goal.mean
        y = y.reshape(content.shape)
        before = content.to(y.dtype)
        kept = None
        if counts[0] is not None:
            kept = (counts[0] != 0).reshape(content.shape[0], 1, *content.shape[2:])
        if not (isinstance(blending, (int, float)) and blending == 1):
            # NaN in a pixel that is left out must not come into the derivative by the blending.
            inner = before if kept is None else torch.where(kept, before, 0.0)
            y = torch.lerp(inner, y, blending)
        if kept is not None:
            y = torch.where(kept, y, before)
        return y.to(content.dtype)


def _pixel_weights(name: str, x: Tensor, weight: Tensor | None) -> Tensor | None:
    """The weights of pixels, shape (N, 1, pixels) as their groups' samples."""
    if weight is None:
        return None
    shape = (x.shape[0], *x.shape[2:])
    return weights(name, weight, shape, x).expand(shape).flatten(1).unsqueeze(1)


def _moments_of_groups(
    x: Tensor,
    groups: int,
    size: int,
    shrinkage: Shrinkage | float | None,
    weight: Tensor | None,
) -> Moments:
    """The moments of each picture and group: shapes (N, groups, size, …)."""
    positions = math.prod(x.shape[2:])
    samples = x.reshape(x.shape[0], groups, size, positions)
    return moments(samples, shrinkage=shrinkage, sample_weight=weight)


def _check_pair(content: Tensor, style: Tensor, groups: int) -> None:
    for name, x in (("content", content), ("style", style)):
        checks.floating(name, x)
    if content.dtype != style.dtype:
        raise TypeError(
            f"content and style must have one dtype, got {content.dtype}, {style.dtype}"
        )
    shapes = f"{tuple(content.shape)} and {tuple(style.shape)}"
    if content.dim() < 3 or style.dim() < 3:
        raise ValueError(f"content and style must have shape (N, C, ...), got {shapes}")
    if content.shape[1] != style.shape[1] or style.shape[0] not in (1, content.shape[0]):
        raise ValueError(f"content and style must have the same N (or 1) and C, got {shapes}")
    if 0 in content.shape[1:] or 0 in style.shape[1:]:
        raise ValueError(f"content and style must have channels and pixels, got {shapes}")
    if groups < 1 or content.shape[1] % groups:
        raise ValueError(f"groups={groups} does not divide the {content.shape[1]} channels")
