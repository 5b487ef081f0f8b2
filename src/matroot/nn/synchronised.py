"""Mean and covariance of the samples of all processes, and roots that these find for each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from matroot import checks
from matroot.distributed.collectives import processes, summed
from matroot.statistics import (
    Moments,
    Shrinkage,
    pack_triangle,
    scatter_of,
    shrunk,
    unpack_triangle,
)

# What a process says of its samples.
_FINE, _NOT_FINITE, _INVALID = 0, 1, 2

# From how many multiplications on the roots of k matrices, k·n³, are shared: measured with two
# processes of one thread each on a CPU (docs/decisions.md).
_SHARED_FROM = 2**24


def pooled_moments(
    x: Tensor,
    group: Any,
    *,
    shrinkage: Shrinkage | float | None = None,
    name: str,
    twice: bool = False,
    invalid: bool = False,
    weight: Tensor | None = None,
) -> Moments:
    """``matroot.statistics.moments`` of the samples of all processes, over the batch.

    With m_r samples of mean μ_r and scatter S_r about it in process r, m = Σ m_r and any point c,

        μ = c + δ,   δ = (1/m) Σ_r m_r d_r,   d_r = μ_r − c,
        C = (1/m) Σ_r (S_r + m_r d_r d_rᵀ) − δ δᵀ.

    Each process centres its samples by their own mean. What remains is a sum over the processes in
    double precision, so that samples in single precision lose nothing with c = 0: their own
    rounding, u·|μ| against deviations σ, is larger than that of the difference by a factor of
    10⁹·σ/|μ|. Samples in double precision lose (μ/σ)² units, unless ``twice`` makes c the mean of
    all, from a first sum that needs no derivative, since the result does not depend on c.
    Ledoit–Wolf's share depends on Σ ‖x − μ‖⁴ and so on c = μ: there the first sum has one.

    Args:
        x: shape (N, k, n, positions) of k groups of channels, float32 or float64. N may differ
            between processes and may be 0.
        group: a process group; all its processes call this.
        shrinkage: see ``matroot.statistics.moments``.
        name: of the layer, for errors.
        twice: whether to find c first; the same in all processes, which x.dtype might not be.
        invalid: x, of NaN, stands for an input that is none; all processes get an error.
        weight: of samples, shape (N, 1, positions), in some processes or in all; m counts it.

    Returns:
        Moments, the same bits in all processes but for ``centered`` and ``offset``, which are those
        of x. The derivative by x is that of the sum of all processes' losses.

    Raises:
        ValueError: where errors are checked: an input of another process is invalid, or there are
            fewer than two samples in all. Elsewhere the moments are NaN.
        torch.linalg.LinAlgError: where errors are checked: NaN or infinity; the same error in all
            processes, which names those with such samples. Elsewhere the moments of these groups
            are NaN.

    Note:
        One all-reduce forward and one backward of k·(n (n + 1)/2 + n) + 1 + R numbers of 8 bytes
        for R processes. ``twice``: two forward, of k·n + 1 + R and k·(n (n + 1)/2 + n) numbers, and
        one backward, of the latter. Ledoit–Wolf's shrinkage: the same with k further numbers in the
        second, and both backward.
    """
    wide = torch.float64
    samples, own, centered, scatter = scatter_of(x, over_batch=True, weight=weight)
    own, scatter = own.to(wide), scatter.to(wide)
    if isinstance(samples, Tensor):
        count = samples.to(wide).reshape(1)
    else:
        count = own.new_full((1,), samples)
    finite = scatter.isfinite().all() & own.isfinite().all()
    said = torch.where(finite, _FINE, _INVALID if invalid else _NOT_FINITE)
    here = torch.arange(processes(group), device=x.device) == distributed.get_rank(group)
    head = (count, torch.where(here, said, 0).to(wide))

    def parts(origin: Tensor) -> tuple[Tensor, Tensor]:
        step = own - origin
        return pack_triangle(scatter + count * step * step.mT), count * step

    fourth = own.new_zeros(())  # Ledoit–Wolf alone asks for it.
    if shrinkage == "ledoit_wolf":
        first, m = _checked(name, _sums((count * own, *head), group), group)
        origin = first / m
        powers = _fourth_powers(centered + (own - origin).to(x.dtype), weight)
        triangle, steps, fourth = _sums((*parts(origin), powers), group)
    elif twice:
        first, m = _checked(name, _sums((count * own.detach(), *head), group), group)
        origin = first / m
        triangle, steps = _sums(parts(origin), group)
    else:
        origin = torch.zeros_like(own)
        triangle, steps, m = _checked(name, _sums((*parts(origin), *head), group), group)
    delta = steps / m
    covariance = unpack_triangle(triangle) / m - delta * delta.mT
    if shrinkage is not None:
        covariance = shrunk(covariance, shrinkage, m, lambda unit: fourth / unit.square())
    offset = (own - origin - delta).to(x.dtype)
    mean = origin + delta
    return Moments(mean.to(x.dtype), covariance.to(x.dtype), centered, m, offset)


def _sums(parts: tuple[Tensor, ...], group: Any) -> list[Tensor]:
    """The sums over the processes of several tensors, by one all-reduce."""
    together = summed(torch.cat([part.flatten() for part in parts]), group)
    each = torch.split(together, [part.numel() for part in parts])
    return [total.view_as(part) for total, part in zip(each, parts, strict=True)]


def _fourth_powers(centered: Tensor, weight: Tensor | None) -> Tensor:
    """Σ ‖x‖⁴ over the batch and positions, shape (k, 1, 1), in double precision for its range."""
    fourth = centered.square().sum(-2, keepdim=True).to(torch.float64).square()
    if weight is not None:
        w = weight[..., None, :]
        fourth = torch.where(w == 0, 0.0, w * fourth)
    return fourth.sum((0, -1))[..., None]


def _checked(name: str, sums: list[Tensor], group: Any) -> list[Tensor]:
    """The sums but for the flags, the last of them, and with NaN for a number of samples below two.

    Where errors are checked, every process raises the same one, which names processes. That with
    an invalid input raises its own in place of it.
    """
    *rest, m, flags = sums
    if checks.checking(None, flags):
        said = flags.detach().tolist()
        if _INVALID in said:
            raise ValueError(
                f"{name}: the input in {_ranks(said, _INVALID, group)} has a wrong shape or dtype, "
                "see the error there; statistics are of all processes together"
            )
        if _NOT_FINITE in said:
            raise torch.linalg.LinAlgError(
                f"the covariance of the input of {name} is not finite (NaN or infinity): the input "
                f"in {_ranks(said, _NOT_FINITE, group)}"
            )
        if m.detach() < 2:
            raise ValueError(
                f"{name}: expected at least 2 samples a channel in all processes together, got "
                f"{float(m):g}"
            )
    return [*rest, torch.where(m < 2, math.nan, m)]


def _ranks(said: list[float], what: int, group: Any) -> str:
    ranks = distributed.get_process_group_ranks(group)
    found = [str(rank) for rank, flag in zip(ranks, said, strict=True) if flag == what]
    return ("rank " if len(found) == 1 else "ranks ") + ", ".join(found)


def shared(function: Callable[[Tensor], Tensor], a: Tensor, group: Any) -> Tensor:
    """``function(a)`` of matrices that all processes have, each found by one and sent to all.

    Each process does this for itself where it would take longer to send: below 2²⁴ in k·n³, for
    one matrix, and, where that has not been measured, on accelerators and under torch.compile.

    Args:
        function: of any number of matrices, each without regard to the others.
        a: shape (k, n, n), the same in all processes.
        group: a process group; all its processes call this.

    Note:
        One all-reduce of k·n² numbers of 8 bytes forward and one backward, where it shares.
    """
    many, n = a.shape[0], a.shape[-1]
    if many < 2 or many * n**3 < _SHARED_FROM or not checks.checking(None, a):
        return function(a)
    each = math.ceil(many / processes(group))
    begin = min(many, each * distributed.get_rank(group))
    part = a[begin : begin + each]
    if len(part):
        try:
            part = function(part)
        except Exception:
            # The others wait for this process, whatever happened: they hear of it by NaN.
            part = torch.full_like(part, math.nan)
    before, after = (a.new_zeros(k, n, n) for k in (begin, many - begin - len(part)))
    # In double precision, since processes may compute in different ones.
    found = summed(torch.cat([before, part, after]).double(), group).to(a.dtype)
    # Where one has an error each finds all of them, and gets it with the index in the whole batch.
    return found if bool(found.isfinite().all()) else function(a)
