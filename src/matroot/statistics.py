"""Covariances of samples, at once and batch by batch, their shrinkage, and triangles as vectors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from matroot import spd
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
        samples: m, their number; a tensor where only the device knows it.
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
) -> Moments:
    """Mean and covariance of samples in columns.

    C = (1/m) Σ_k (x_k − x̄)(x_k − x̄)ᵀ, then (1 − ρ) C + ρ (tr C / d) I.

    Args:
        x: samples in columns, shape (..., d, m): d features of m samples, float16, bfloat16,
            float32 or float64; half precision is summed in float32.
        shrinkage: ρ between 0 and 1, or the estimator that chooses it: ``"ledoit_wolf"`` or
            ``"oas"``. None (the default): no shrinkage.
        center: False takes x̄ as 0: the second moment. True is the default.
        over_batch: whether the first dimension counts samples too, False by default; the results do
            not have it.

    Returns:
        Moments in the dtype of ``x``, float32 at least.

    Raises:
        ValueError: no samples, no features, or an unknown shrinkage.

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
    d, count = x.shape[-2:]
    if d == 0 or count == 0 or (over_batch and x.shape[0] == 0):
        raise ValueError(f"moments: expected features and samples, got shape {tuple(x.shape)}")
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if over_batch:
        count *= x.shape[0]
    mean, centered, scatter = scatter_of(x, count, center=center, over_batch=over_batch)
    covariance = scatter / count
    if shrinkage is not None:
        fourth = functools.partial(_fourth_powers, centered)
        covariance = shrunk(covariance, shrinkage, count, fourth)
    return Moments(mean, covariance, centered, count)


def scatter_of(
    x: Tensor, count: int, *, center: bool = True, over_batch: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (0 with ``center=False``), x − mean, and Σ (x − mean)(x − mean)ᵀ: see ``moments``."""
    # As a sum and a product, whose derivatives need no tensor as large as x.
    minus_mean = torch.zeros_like(x[..., :1])
    if center:
        minus_mean = x.sum(-1, keepdim=True) * (-1 / max(count, 1))
    if over_batch:
        minus_mean = minus_mean.sum(0)
    centered = x + minus_mean if center else x
    scatter = centered @ centered.mT
    return -minus_mean, centered, scatter.sum(0) if over_batch else scatter


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

    def include_(self, x: Tensor) -> None:
        """Take in further samples, shape (..., m, n), in place."""
        # A derivative would have to be told of every part.
        for rows in torch.split(x, x.shape[-2] if x.requires_grad else _ROWS, -2):
            ones = rows.new_ones(rows.shape[:-1], dtype=self.samples.dtype)
            numbers = torch.cat([self.samples[..., None], ones], -1)
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
    if isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
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


def _fourth_powers(centered: Tensor, unit: Tensor) -> Tensor:
    """Σ_k ‖x_k‖⁴/unit² of samples (..., d, m) or (N, ..., d, m), shape (..., 1, 1) as the unit."""
    fourth = (centered / unit.sqrt()).square().sum(-2).square().sum(-1)[..., None, None]
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
