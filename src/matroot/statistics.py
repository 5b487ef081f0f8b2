"""Covariances of samples, at once and batch by batch, their shrinkage, and triangles as vectors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from matroot import checks, spd
from matroot.dtensors import per_matrix
from matroot.overrides import overridable

__all__ = ["Moments", "Shrinkage", "moments", "pack_triangle", "unpack_triangle"]


def __dir__() -> list[str]:
    return __all__


Shrinkage = Literal["ledoit_wolf", "oas"]
SHRINKAGES: tuple[Shrinkage, ...] = ("ledoit_wolf", "oas")


class Moments(NamedTuple):
    """Mean and covariance of a batch of samples.

    Attributes:
        mean: shape (..., d, 1).
        covariance: (1/m) Σ (x − mean)(x − mean)ᵀ, shrunk if asked for, shape (..., d, d).
        centered: x − mean − offset, shape (..., d, m).
        samples: m, their number or the sum of their weights; a tensor, shape (..., 1, 1), where
            only the device knows it.
        offset: shape (..., d, 1); None: 0. What is centred at one place of a mean of several.
    """

    mean: Tensor
    covariance: Tensor
    centered: Tensor
    samples: int | Tensor
    offset: Tensor | None = None


@overridable
def moments(
    x: Tensor,
    *,
    shrinkage: Shrinkage | float | None = None,
    center: bool = True,
    over_batch: bool = False,
    sample_weight: Tensor | None = None,
) -> Moments:
    """Mean and covariance of samples in columns.

    C = (1/m) Σ_k (x_k − x̄)(x_k − x̄)ᵀ, then (1 − ρ) C + ρ (tr C / d) I. With weights w_k,

        m = Σ_k w_k,    x̄ = (1/m) Σ_k w_k x_k,    C = (1/m) Σ_k w_k (x_k − x̄)(x_k − x̄)ᵀ.

    Args:
        x: samples in columns, shape (..., d, m): d features of m samples, float16, bfloat16,
            float32 or float64; half precision is summed in float32.
        shrinkage: ρ between 0 and 1, or the estimator that chooses it: ``"ledoit_wolf"`` or
            ``"oas"``. None (the default): no shrinkage.
        center: False takes x̄ as 0: the second moment. True is the default.
        over_batch: whether the first dimension counts samples too, False by default; the results do
            not have it.
        sample_weight: w, at least 0, which broadcasts to (..., m): a sample of weight 2 counts as
            two. Booleans are a mask: True counts. A sample of weight 0 is left out, whatever
            numbers it has, NaN too: ``centered`` is 0 there, and so are derivatives by the sample
            and by its weight.

    Returns:
        Moments in the dtype of ``x``, float32 at least.

    Raises:
        TypeError: samples that are no real floating-point numbers, weights that are no real ones.
        ValueError: another shape, no samples, no features, an unknown shrinkage, or weights of
            another shape; where errors are checked (see ``matroot.sqrtm``), weights that are
            negative, not finite, or all zero. Elsewhere the moments are NaN then.

    References:
        O. Ledoit and M. Wolf, A well-conditioned estimator for large-dimensional covariance
        matrices, J. Multivariate Anal. 88 (2004); Y. Chen et al., Shrinkage algorithms for MMSE
        covariance estimation, IEEE Trans. Signal Process. 58 (2010).

    Example:
        >>> import torch
        >>> from matroot.statistics import moments
        >>> moments(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).covariance
        tensor([[1., 0.],
                [0., 0.]])
    """
    checks.floating("moments: the samples", x)
    if x.ndim < 2:
        raise ValueError(f"moments: expected samples in columns, (..., d, m), got {tuple(x.shape)}")
    d, count = x.shape[-2:]
    if d == 0 or count == 0 or (over_batch and x.shape[0] == 0):
        raise ValueError(f"moments: expected features and samples, got shape {tuple(x.shape)}")
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    weight = None
    if sample_weight is not None:
        shape = (*x.shape[:-2], count)
        weight = weights("moments: sample_weight", sample_weight, shape, x)
    samples, mean, centered, scatter = scatter_of(
        x, center=center, over_batch=over_batch, weight=weight
    )
    if isinstance(samples, Tensor):
        _check_some(samples)
        mean = torch.where(samples > 0, mean, torch.nan)
    covariance = scatter / samples
    if shrinkage is not None:
        fourth = functools.partial(_fourth_powers, centered, weight)
        covariance = shrunk(covariance, shrinkage, samples, fourth)
    return Moments(mean, covariance, centered, samples)


def scatter_of(
    x: Tensor, *, center: bool = True, over_batch: bool = False, weight: Tensor | None = None
) -> tuple[int | Tensor, Tensor, Tensor, Tensor]:
    """Number of samples, mean, x − mean, and Σ (x − mean)(x − mean)ᵀ: see ``moments``.

    The mean is 0 with ``center=False`` and of no samples.

    Args:
        x: shape (..., d, m).
        center: see ``moments``.
        over_batch: see ``moments``.
        weight: what ``weights`` returns, with all dimensions of x but that of the features.
    """
    if weight is not None:
        return _weighted_scatter(x, weight[..., None, :], center=center, over_batch=over_batch)
    count = x.shape[-1] * (x.shape[0] if over_batch else 1)
    # As a sum and a product, whose derivatives need no tensor as large as x.
    minus_mean = torch.zeros_like(x[..., :1])
    if center:
        minus_mean = x.sum(-1, keepdim=True) * (-1 / max(count, 1))
    if over_batch:
        minus_mean = minus_mean.sum(0)
    centered = x + minus_mean if center else x
    scatter = centered @ centered.mT
    return count, -minus_mean, centered, scatter.sum(0) if over_batch else scatter


def _weighted_scatter(
    x: Tensor, weight: Tensor, *, center: bool, over_batch: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``scatter_of`` with weights of shape (..., 1, m)."""
    # Not a product with 0, which would not remove NaN, neither here nor from derivatives.
    kept = weight != 0
    x, weight = torch.where(kept, x, 0.0), torch.where(kept, weight, 0.0)
    total, summed = weight.sum(-1, keepdim=True), (weight * x).sum(-1, keepdim=True)
    if over_batch:
        total, summed = total.sum(0), summed.sum(0)
    mean = torch.zeros_like(summed)
    if center:
        mean = summed / torch.where(total == 0, 1.0, total)
    centered = torch.where(kept, x - mean, 0.0) if center else x
    scatter = (weight * centered) @ centered.mT
    return total, mean, centered, scatter.sum(0) if over_batch else scatter


def weights(name: str, weight: object, shape: tuple[int, ...], x: Tensor) -> Tensor:
    """The weights of samples in the dtype that ``x`` is computed in; NaN for what is no weight.

    Args:
        name: what errors call them.
        weight: real numbers or booleans, which broadcast to ``shape``.
        shape: that of the samples. The result has as many dimensions, and the whole size in the
            first and in the last.
        x: the samples.

    Raises:
        TypeError: not a tensor of such numbers.
        ValueError: they do not broadcast, or are on another device; where errors are checked, one
            is negative or not finite.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(weight).__name__}")
    if weight.is_complex():
        raise TypeError(f"{name} must be real numbers or booleans, got {weight.dtype}")
    given = (1,) * (len(shape) - weight.ndim) + tuple(weight.shape)
    fits = len(given) == len(shape)
    # A loop, since the compiler of PyTorch 2.8 does not look into all().
    for a, b in zip(given, shape, strict=False):
        fits = fits and a in (1, b)
    if not fits:
        raise ValueError(
            f"{name} must broadcast to {tuple(shape)}, a number a sample, got shape "
            f"{tuple(weight.shape)}"
        )
    if weight.device != x.device:
        raise ValueError(f"{name} is on {weight.device}, the samples on {x.device}")
    whole = [b if i in (0, len(shape) - 1) else -1 for i, b in enumerate(shape)]
    found = weight.to(spd.computing_dtype(x.dtype)).reshape(given).expand(whole)
    if weight.dtype == torch.bool:
        return found
    bad = ~((found >= 0) & found.isfinite())
    if checks.checking(None, weight) and bad.any():
        first = float(found.detach()[bad][0])
        raise ValueError(f"{name} must be finite and at least 0, got {first}")
    return torch.where(bad, torch.nan, found)


def at_least_two(name: str, weight: Tensor) -> Tensor:
    """The weights, or NaN where they count fewer than two samples in all.

    Raises:
        ValueError: instead, where errors are checked.
    """
    total = weight.sum()
    if checks.checking(None, weight) and total < 2:
        raise ValueError(
            f"{name}: expected at least 2 samples a channel, got weights that sum to "
            f"{float(total):g}; a weight counts samples, so it is no share of all"
        )
    return torch.where(total < 2, torch.nan, weight)


def _check_some(samples: Tensor) -> None:
    """Raise ValueError if weights add up to nothing, where errors are checked."""
    if not checks.checking(None, samples) or (samples > 0).all():
        return
    empty = (samples.flatten() == 0).nonzero().flatten().tolist()
    which = f" (batch index {', '.join(map(str, empty[:4]))})" if samples.numel() > 1 else ""
    raise ValueError(f"moments: sample_weight leaves no sample{which}")


# Samples that are taken at a time into a sum.
_ROWS = 4096


class Sums(NamedTuple):
    """What is kept of samples: how many, their mean and their scatter about it.

    Attributes:
        samples: their number, real, shape (...).
        mean: shape (..., n).
        scatter: Σ (x − mean)(x − mean)ᴴ, shape (..., n, n).
    """

    samples: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Sums:
        """Those of samples in the rows of x, shape (..., m, n)."""
        *batch, _, n = x.shape
        number = x.new_zeros(batch, dtype=spd.real_dtype(x.dtype))
        sums = cls(number, x.new_zeros(*batch, n), x.new_zeros(*batch, n, n))
        sums.include_(x)
        return sums

    def include_(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Take in further samples, shape (..., m, n), in place; or so many of each, (..., m)."""
        if weight is None:
            weight = x.new_ones((), dtype=self.samples.dtype).expand(x.shape[:-1])
        # A derivative would have to be told of every part.
        size = max(x.shape[-2], 1) if x.requires_grad else _ROWS
        for rows, counts in zip(
            torch.split(x, size, -2), torch.split(weight, size, -1), strict=True
        ):
            numbers = torch.cat([self.samples[..., None], counts], -1)
            means = torch.cat([self.mean[..., None, :], rows], -2)
            number, mean, steps = joined(numbers, means)
            self.samples.copy_(number)
            self.mean.copy_(mean)
            self.scatter.add_(steps.mT @ steps.conj())


def joined(numbers: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number and mean of sets of samples together, and what their scatter has beyond theirs.

    Σ s_i s_iᴴ with the steps s_i = √c_i (m_i − m): no difference of large numbers as in
    Σ x xᴴ − c m mᴴ, which has no digits left where the mean is large beside the deviations.

    Args:
        numbers: c_i, shape (..., k); a set may be empty.
        means: m_i, shape (..., k, n).

    Returns:
        Number (...), mean m (..., n) and steps (..., k, n).

    References:
        T. F. Chan, G. H. Golub, R. J. LeVeque, Algorithms for computing the sample variance, The
        American Statistician 37 (1983).
    """
    number = numbers.sum(-1)
    mean = (numbers[..., None] * means).sum(-2) / spd.positive_or_one(number)[..., None]
    return number, mean, numbers.sqrt()[..., None] * (means - mean[..., None, :])


def check_shrinkage(shrinkage: Shrinkage | float | None) -> None:
    """Raise ValueError unless ``moments`` accepts it."""
    if shrinkage is None or shrinkage in SHRINKAGES:
        return
    if not checks.is_share(shrinkage):
        known = ", ".join(map(repr, SHRINKAGES))
        raise ValueError(
            f"shrinkage must be None, a number in [0, 1] or one of {known}, got {shrinkage!r}"
        )


def shrunk(
    c: Tensor,
    shrinkage: Shrinkage | float,
    samples: int | Tensor,
    fourth: Callable[[Tensor], Tensor],
) -> Tensor:
    """(1 − ρ) C + ρ (tr C / d) I.

    Args:
        c: C, shape (..., d, d).
        shrinkage: see ``moments``.
        samples: their number.
        fourth: Σ ‖x‖⁴ of the centred samples in squares of a unit that it is given, shape
            (..., 1, 1) as this, which only ``"ledoit_wolf"`` asks for.
    """
    share = _share(shrinkage, c, samples, fourth)
    return (1 - share) * c + share * _middle(c) * spd.identity_like(c)


def _middle(c: Tensor) -> Tensor:
    """Tr C / d, shape (..., 1, 1)."""
    return c.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]


def _share(
    shrinkage: Shrinkage | float,
    c: Tensor,
    m: int | Tensor,
    fourth: Callable[[Tensor], Tensor],
) -> Tensor | float:
    """ρ, shape (..., 1, 1)."""
    check_shrinkage(shrinkage)
    if not isinstance(shrinkage, str):
        return shrinkage
    d = c.shape[-1]
    # In units of tr C / d, so that fourth powers neither over- nor underflow.
    unit = _middle(c)
    unit = torch.where(unit > 0, unit, 1.0)
    c = c / unit
    square = c.square().sum((-2, -1), keepdim=True)  # tr C²
    trace = c.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    distance = square - trace.square() / d  # ‖C − μI‖_F², μ = tr C / d
    if shrinkage == "ledoit_wolf":
        # Mean of ‖x_k x_kᵀ − C‖_F² over the samples, over their number.
        above, below = (fourth(unit) / m - square) / m, distance
    else:
        above = (1 - 2 / d) * square + trace.square()
        below = (m + 1 - 2 / d) * distance
    # Shrinkage does not change a multiple of the identity: any share is right.
    positive = below > 0
    share = torch.where(positive, above / torch.where(positive, below, 1.0), 1.0)
    return share.clamp(0.0, 1.0)


def _fourth_powers(centered: Tensor, weight: Tensor | None, unit: Tensor) -> Tensor:
    """Σ_k ‖x_k‖⁴/unit² of samples (..., d, m) or (N, ..., d, m), shape (..., 1, 1) as the unit."""
    fourth = (centered / unit.sqrt()).square().sum(-2).square()
    fourth = (fourth if weight is None else weight * fourth).sum(-1)[..., None, None]
    return fourth.sum(0) if fourth.dim() > unit.dim() else fourth


@overridable
@per_matrix()
def pack_triangle(a: Tensor, *, scaled: bool = False) -> Tensor:
    """The upper triangle of symmetric matrices, row by row, as vectors.

    Args:
        a: symmetric matrices, shape (..., n, n), of any dtype.
        scaled: multiply the entries off the diagonal by √2, which makes it an isometry: ⟨pack(A),
            pack(B)⟩ = tr(A B). False is the default.

    Returns:
        Shape (..., n (n + 1)/2).

    Example:
        >>> import torch
        >>> from matroot.nn import pack_triangle
        >>> pack_triangle(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
        tensor([1., 2., 3.])
    """
    if a.dim() < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"pack_triangle: expected shape (..., n, n), got {tuple(a.shape)}")
    n = a.shape[-1]
    row, column = torch.triu_indices(n, n, device=a.device)
    # Indexing by row and column would take five times as long in the backward pass on a CPU.
    packed = a.flatten(-2).index_select(-1, row * n + column)
    if scaled:
        packed = packed * _off_diagonal(row, column, packed, math.sqrt(2))
    return packed


@overridable
@per_matrix(v=1)
def unpack_triangle(v: Tensor, *, scaled: bool = False) -> Tensor:
    """The symmetric matrices that ``pack_triangle`` packed into these vectors.

    Args:
        v: vectors, shape (..., n (n + 1)/2), of any dtype.
        scaled: whether they were packed with ``scaled=True``; False is the default.

    Returns:
        Shape (..., n, n).

    Raises:
        ValueError: the length is not of the form n (n + 1)/2.
    """
    if v.dim() < 1:
        raise ValueError("unpack_triangle: expected shape (..., n (n + 1)/2), got ()")
    length = v.shape[-1]
    n = (math.isqrt(8 * length + 1) - 1) // 2
    if n * (n + 1) // 2 != length:
        raise ValueError(
            f"unpack_triangle: expected a length of n (n + 1)/2, got shape {tuple(v.shape)}"
        )
    row, column = torch.triu_indices(n, n, device=v.device)
    if scaled:
        v = v * _off_diagonal(row, column, v, math.sqrt(0.5))
    # The position in the vector of each entry of the matrix.
    place = torch.zeros(n, n, dtype=torch.long, device=v.device)
    place[row, column] = torch.arange(length, device=v.device)
    place[column, row] = torch.arange(length, device=v.device)
    return v.index_select(-1, place.flatten()).reshape(*v.shape[:-1], n, n)


def _off_diagonal(row: Tensor, column: Tensor, like: Tensor, factor: float) -> Tensor:
    """1 on the diagonal and the factor off it, as packed."""
    if not (like.is_floating_point() or like.is_complex()):
        raise TypeError(f"scaled triangles need floating-point numbers, got {like.dtype}")
    ones = torch.ones(len(row), dtype=like.dtype, device=like.device)
    return torch.where(row == column, ones, factor * ones)
