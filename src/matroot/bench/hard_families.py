"""Families of hard matrices, many of one size at a time, the same for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from matroot import spd


@dataclass(frozen=True)
class Draw:
    """What a family makes its matrices of.

    Attributes:
        count: how many.
        n: rows of each.
        dtype: that they will be rounded to.
        seed: of the generator; the same four give the same matrices.
    """

    count: int
    n: int
    dtype: torch.dtype
    seed: int

    @cached_property
    def generator(self) -> torch.Generator:
        """Of all numbers drawn here."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def double(self) -> torch.dtype:
        """What matrices are made in."""
        return torch.complex128 if self.dtype.is_complex else torch.float64

    @property
    def unit(self) -> float:
        """The rounding unit of the dtype."""
        return spd.real_eps(self.dtype)

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers, shape (count, *shape), real or complex as the dtype."""
        return torch.randn(self.count, *shape, dtype=self.double, generator=self.generator)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform real numbers, shape (count, *shape)."""
        drawn = torch.rand(self.count, *shape, dtype=torch.float64, generator=self.generator)
        return low + (high - low) * drawn

    def powers(self, low: float, high: float, *shape: int) -> Tensor:
        """10^x for uniform x, shape (count, *shape)."""
        return torch.pow(10.0, self.uniform(low, high, *shape))

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from ``low`` to ``high``, both drawn, shape (count, *shape), float64."""
        shape = (self.count, *shape)
        drawn = torch.randint(low, high + 1, shape, generator=self.generator)
        return drawn.to(torch.float64)

    def conditions(self, beyond: float = 1e2) -> Tensor:
        """Condition numbers, log-uniform from 1 to beyond 1/u, shape (count, 1)."""
        return self.powers(0.0, math.log10(beyond / self.unit), 1)

    def rotations(self) -> Tensor:
        """Orthogonal (unitary) matrices, shape (count, n, n).

        Products of two out of 64 by Haar's measure: a QR decomposition of each would take longer
        than all that is done with the matrix.
        """
        pool = torch.randn(
            min(self.count, 64), self.n, self.n, dtype=self.double, generator=self.generator
        )
        q: Tensor = torch.linalg.qr(pool).Q
        if len(q) == self.count:
            return q
        first, second = self.whole(0, len(q) - 1, 2).long().unbind(1)
        found: Tensor = q[first] @ q[second]
        return found

    def with_eigenvalues(self, values: Tensor) -> Tensor:
        """Q diag(λ) Qᴴ, exactly Hermitian."""
        q = self.rotations()
        return spd.hermitian_part((q * values[:, None, :].to(q.dtype)) @ q.mH)

    def turned(self, a: Tensor) -> Tensor:
        """P D A Dᴴ Pᵀ for signs (complex: powers of i) D and permutations P: exact."""
        a = a.expand(self.count, self.n, self.n).to(self.double)
        d = 1 - 2 * self.whole(0, 1, self.n)
        if self.dtype.is_complex:
            d = torch.where(self.whole(0, 1, self.n) > 0, d * 1j, d.to(self.double))
        return self.permuted(d[:, :, None] * a * d.conj()[:, None, :])

    def permuted(self, a: Tensor) -> Tensor:
        """P A Pᵀ for random permutations."""
        order = self.uniform(0, 1, self.n).argsort(1)
        rows = order[:, :, None].expand_as(a)
        return a.gather(1, rows).gather(2, rows.mT)

    def index(self) -> Tensor:
        """0 … n−1."""
        return torch.arange(self.n, dtype=torch.float64)


def _log(draw: Draw) -> Tensor:
    """Eigenvalues evenly spaced in the logarithm, from 1 down to 1/κ."""
    steps = draw.index() / max(draw.n - 1, 1)
    return draw.with_eigenvalues(draw.conditions().pow(-steps))


def _clusters(draw: Draw) -> Tensor:
    """Up to four eigenvalues, each repeated many times."""
    exponents = draw.uniform(0, 1, 4)
    exponents[:, 0] = 0
    exponents[:, 1] = 1
    which = draw.whole(0, 3, draw.n).long()
    return draw.with_eigenvalues(draw.conditions().pow(-exponents.gather(1, which)))


def _outlier(draw: Draw) -> Tensor:
    """One eigenvalue far above or far below the others, which are equal."""
    cond = draw.conditions()
    above = draw.whole(0, 1, 1) > 0
    first = draw.index() == 0
    return draw.with_eigenvalues(torch.where(first == above, 1.0, 1 / cond))


def _rank_deficient(draw: Draw) -> Tensor:
    """B Bᴴ of rank r < n: singular but for the rounding of its entries."""
    rank = draw.whole(0, draw.n - 1, 1)
    b = draw.normal(draw.n, draw.n) * (draw.index() < rank)[:, None, :]
    return spd.hermitian_part(b @ b.mH)


def _samples(draw: Draw) -> Tensor:
    """Covariances of fewer centred samples than dimensions, the samples in the dtype."""
    samples = draw.whole(1, draw.n, 1)
    taken = (draw.index() < samples)[:, None, :]
    x = _rounded(draw.normal(draw.n, draw.n), draw.dtype) * taken
    mean = x.sum(2, keepdim=True) / samples[:, :, None]
    x = (x - mean) * taken
    return spd.hermitian_part(x @ x.mH / samples[:, :, None])


def _graded(draw: Draw) -> Tensor:
    """D A D for a well-conditioned A and D falling by up to 1/u along the diagonal."""
    b = draw.normal(draw.n, draw.n)
    a = b @ b.mH / draw.n + torch.eye(draw.n, dtype=draw.double)
    d = draw.conditions().pow(-0.5 * draw.index() / max(draw.n - 1, 1))
    return draw.permuted(spd.hermitian_part(d[:, :, None] * a * d[:, None, :]))


def _blocks(draw: Draw) -> Tensor:
    """Blocks of different condition on the diagonal, their rows then permuted: exact zeros."""
    steps = draw.index() / max(draw.n - 1, 1)
    a = draw.with_eigenvalues(draw.conditions().pow(-steps))
    block = (draw.index() * draw.whole(1, max(draw.n // 2, 1), 1) / draw.n).floor()
    return draw.permuted(a * (block[:, :, None] == block[:, None, :]))


def _zero_rows(draw: Draw) -> Tensor:
    """Some rows and columns exactly zero, at times all."""
    steps = draw.index() / max(draw.n - 1, 1)
    a = draw.with_eigenvalues(draw.powers(0, 4, 1).pow(-steps))
    kept = draw.index() < draw.whole(0, draw.n - 1, 1)
    return draw.permuted(a * (kept[:, :, None] & kept[:, None, :]))


def _with_ridge(draw: Draw, a: Tensor) -> Tensor:
    """Turned; half of them with a ridge, so that the condition number varies."""
    ridge = draw.powers(-18, -1, 1, 1) * draw.whole(0, 1, 1, 1)
    return draw.turned(a / a.abs().max() + ridge * torch.eye(draw.n, dtype=torch.float64))


def _hilbert(draw: Draw) -> Tensor:
    """Hilbert's matrices 1/(i + j + 1)."""
    i = draw.index()
    return _with_ridge(draw, 1 / (i[:, None] + i + 1))


def _pascal(draw: Draw) -> Tensor:
    """Pascal's matrices of binomials C(i+j, i), over the largest."""
    i = draw.index()
    single = (i + 1).lgamma()
    logarithm = (i[:, None] + i + 1).lgamma() - (single[:, None] + single)
    if logarithm.max() < 30:
        # Whole numbers below 2⁵³ come out of the exponential as whole after rounding.
        return _with_ridge(draw, logarithm.exp().round())
    return _with_ridge(draw, (logarithm - logarithm.max()).exp())


def _minij(draw: Draw) -> Tensor:
    """min(i, j), the covariance of Brownian motion."""
    i = draw.index() + 1
    return _with_ridge(draw, torch.minimum(i[:, None], i))


def _lehmer(draw: Draw) -> Tensor:
    """Lehmer's matrices min(i, j)/max(i, j)."""
    i = draw.index() + 1
    return _with_ridge(draw, torch.minimum(i[:, None], i) / torch.maximum(i[:, None], i))


def _gram(draw: Draw) -> Tensor:
    """Gram matrices of Gaussian functions at random points: eigenvalues fall very fast."""
    points = draw.uniform(0, 1, draw.n).sort(1).values
    width = draw.powers(-2.5, 0.5, 1, 1)
    a = torch.exp(-0.5 * ((points[:, :, None] - points[:, None, :]) / width).square())
    return draw.turned(a)


def _ties(draw: Draw) -> Tensor:
    """Eigenvalues p + q and p − q, equal to the last bit many times; at times q = p."""
    partner = draw.index().long()
    pairs = draw.n // 2
    partner[: 2 * pairs] = partner[: 2 * pairs].view(pairs, 2).flip(1).flatten()
    swap = torch.eye(draw.n, dtype=torch.float64)[partner]
    p = draw.whole(1, 8, 1, 1) / 8
    below = draw.whole(0, 8, 1, 1) * draw.unit * (draw.whole(0, 2, 1, 1) > 0) * p
    # A half of the differences are some units of rounding, the others eighths.
    q = torch.where(draw.whole(0, 1, 1, 1) > 0, p - below, p * draw.whole(0, 8, 1, 1) / 8)
    return draw.turned(p * torch.eye(draw.n, dtype=torch.float64) + q * swap)


def _ulp(draw: Draw) -> Tensor:
    """One unit in the last place off matrices with a known root, symmetrically, here and there."""
    i = draw.index()
    one, ones = torch.eye(draw.n, dtype=torch.float64), torch.ones(draw.n, draw.n).double()
    known = torch.stack(
        [one, ones, one + ones, torch.minimum(i[:, None], i) + 1, torch.diag((i + 1).square())]
    )
    a = _rounded(draw.turned(known[draw.whole(0, len(known) - 1).long()]), draw.dtype)
    off = draw.whole(-1, 1, draw.n, draw.n) * (draw.uniform(0, 1, draw.n, draw.n) < 0.5)
    off = off.triu() + off.triu(1).mT
    size = a.abs()
    place = torch.ldexp(torch.full_like(size, draw.unit / 2), torch.frexp(size).exponent)
    return a / spd.positive_or_one(size) * (size + off * place)


def _integers(draw: Draw) -> Tensor:
    """B Bᵀ of small whole numbers, of any rank."""
    most = 2 if draw.unit > 1e-4 else 9
    b = draw.whole(-most, most, draw.n, draw.n)
    b = b * (draw.index() < draw.whole(1, draw.n, 1))[:, None, :]
    return draw.turned(b @ b.mT)


def _diagonal(draw: Draw) -> Tensor:
    """Diagonal matrices with entries over many decades, some exactly zero."""
    decades = math.log10(1e2 / draw.unit)
    d = draw.powers(-decades, 0, draw.n) * (draw.uniform(0, 1, draw.n) < 0.97)
    return torch.diag_embed(d).to(draw.double)


def _scaled(draw: Draw, low: Tensor) -> Tensor:
    """The family ``log`` with its largest entry at 2^low."""
    a = _log(draw)
    a = a / spd.max_abs(a)[:, None, None]
    # In two factors: 2^low alone may be below the normal numbers.
    return (
        a
        * torch.exp2(low.div(2).floor())[:, None, None]
        * torch.exp2(low - low.div(2).floor())[:, None, None]
    )


def _denormals(draw: Draw) -> Tensor:
    """Entries at and below the smallest normal number."""
    smallest = math.log2(torch.finfo(draw.dtype).tiny)
    digits = -math.log2(draw.unit)
    return _scaled(draw, draw.uniform(smallest - digits, smallest + digits).floor())


def _overflow(draw: Draw) -> Tensor:
    """The largest entry within a factor 16 of the largest number."""
    largest = math.log2(torch.finfo(draw.dtype).max)
    return _scaled(draw, largest - draw.uniform(0, 4))


def _indefinite(draw: Draw) -> Tensor:
    """λ_min at −t·n·u·λ_max, t from 0.01 to 100: a result above the threshold, an error below."""
    steps = draw.index() / max(draw.n - 1, 1)
    values = draw.powers(0, 3, 1).pow(-steps)
    values[:, -1:] = -draw.powers(-2, 2, 1) * draw.n * draw.unit
    if draw.n > 1:
        return draw.with_eigenvalues(values)
    # Alone, the one eigenvalue is the largest too.
    return (values * (1 - 2 * draw.whole(0, 1, 1)))[:, :, None].to(draw.double)


def _asymmetric(draw: Draw) -> Tensor:
    """A skew part from one unit of rounding up to 1e-4 of the norm."""
    a = _log(draw)
    skew = draw.normal(draw.n, draw.n)
    skew = skew - skew.mH
    share = draw.powers(math.log10(draw.unit), max(-4.0, math.log10(draw.unit)), 1, 1)
    return a + share * skew * spd.norm_or_one(a) / spd.norm_or_one(skew)


FAMILIES: dict[str, Callable[[Draw], Tensor]] = {
    "log": _log,
    "clusters": _clusters,
    "outlier": _outlier,
    "rank-deficient": _rank_deficient,
    "samples": _samples,
    "graded": _graded,
    "blocks": _blocks,
    "zero rows": _zero_rows,
    "hilbert": _hilbert,
    "pascal": _pascal,
    "minij": _minij,
    "lehmer": _lehmer,
    "gram": _gram,
    "ties": _ties,
    "ulp": _ulp,
    "integers": _integers,
    "diagonal": _diagonal,
    "denormals": _denormals,
    "overflow": _overflow,
    "indefinite": _indefinite,
    "asymmetric": _asymmetric,
}
"""Every family by its name; each returns (count, n, n) in double precision."""


def matrices(family: str, draw: Draw) -> Tensor:
    """The matrices of a family in the dtype, rounded once, shape (count, n, n)."""
    # A copy, whose generator starts anew.
    return FAMILIES[family](replace(draw)).to(draw.dtype)


def _rounded(a: Tensor, dtype: torch.dtype) -> Tensor:
    return a.to(dtype).to(a.dtype)
