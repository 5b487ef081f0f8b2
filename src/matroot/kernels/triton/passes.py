"""The passes of kernels/passes.py as fused kernels, each of them an operator of PyTorch's.

On a CPU without Triton's interpreter an operator takes PyTorch's operations instead, so that
launches can be counted anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from matroot import spd
from matroot.kernels.passes import ByOperations, Chosen, Scaled, choose, constant
from matroot.kernels.triton.launch import interpreting
from matroot.schedules import Steps
from matroot.screen import Thresholds

TILE = 32
SPAN = 16384  # Among so many numbers a program of the first kernel finds the largest.


class ByKernels:
    """The passes by fused kernels: see ``passes.Passes``."""

    def scaled(self, a: Tensor, eps: float) -> Scaled:
        """See Passes.scaled."""
        a = a.contiguous()
        largest = _maxima(a)
        x, scale, sums = _scaled(a, largest, eps)
        return Scaled(x, scale, (largest, sums))

    def chosen(
        self,
        scaled: Scaled,
        square: Tensor,
        inverse: Tensor | None,
        failed: Tensor | None,
        limits: Thresholds,
        max_cond: float | None,
        steps: Steps,
    ) -> Chosen:
        """See Passes.chosen."""
        largest, x_sums = scaled.known
        found = _chosen(
            largest,
            scaled.scale,
            x_sums,
            _sums(square, inverse),
            failed,
            *steps,
            square.shape[-1],
            limits.skew,
            limits.null,
            limits.singular is not None,
            max_cond,
        )
        return Chosen(*found)

    def combination(
        self, d: Tensor, c: Tensor, p: Tensor, e: Tensor | None = None, q: Tensor | None = None
    ) -> Tensor:
        """See Passes.combination."""
        x: Tensor = _combination(d, c, p, e, q)
        return x

    def shift(self, bounds: Tensor, least: float) -> Tensor:
        """See Passes.shift."""
        inverse: Tensor = _shift(bounds.contiguous(), least)
        return inverse

    def finished(self, x: Tensor, f: Tensor, failed: Tensor | None = None) -> Tensor:
        """See Passes.finished."""
        found: Tensor = _finished(x, f, failed)
        return found


_OPERATIONS = ByOperations()
_LIBRARY = torch.library.Library("matroot", "FRAGMENT")


def _operator(kernel: Callable[..., Any], operations: Callable[..., Any]) -> Any:
    """``torch.ops.matroot.NAME``: the kernel's launch on a GPU and in Triton's interpreter."""
    name = "pass" + kernel.__name__.removesuffix("_by_kernel")
    schema = torch.library.infer_schema(kernel, mutates_args=())

    def run(*arguments: Any) -> Any:
        if arguments[0].is_cuda or interpreting():
            with torch.cuda.device_of(arguments[0]):
                return kernel(*arguments)
        return operations(*arguments)

    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    return getattr(torch.ops.matroot, name).default


def _double(*values: float, like: Tensor) -> Tensor:
    """The numbers in double precision; as arguments of a kernel they would be in single."""
    return constant(tuple(map(float, values)), torch.float64, like.device)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def _maxima_by_kernel(a: Tensor) -> Tensor:
    """Max |a_ij| of parts of each matrix, (b, parts); infinity where one is NaN."""
    from matroot.kernels.triton.elementwise import maxima_kernel

    batch, size = len(a), a.shape[-1] ** 2
    largest = a.new_empty(batch, -(-size // SPAN))
    grid = tuple(largest.shape)
    maxima_kernel[grid](a, largest, size, largest.shape[1], SPAN)
    return largest


def _maxima_by_operations(a: Tensor) -> Tensor:
    return a.abs().amax((-2, -1))[:, None].nan_to_num(torch.inf, torch.inf)


def _scaled_by_kernel(a: Tensor, largest: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """X, the scale, and sums of strips of rows, (b, strips, 3)."""
    from matroot.kernels.triton.elementwise import scaled_kernel

    batch, n = len(a), a.shape[-1]
    x, scale = torch.empty_like(a), a.new_empty(batch)
    sums = a.new_empty(batch, -(-n // TILE), 3)
    spans = largest.shape[1]
    scaled_kernel[(batch, sums.shape[1])](
        a,
        largest,
        x,
        scale,
        sums,
        constant((eps, 8 * torch.finfo(a.dtype).tiny), a.dtype, a.device),
        n,
        spans,
        DOUBLE=a.dtype == torch.float64,
        SPANS=_power_of_two(spans),
        T=TILE,
    )
    return x, scale, sums


def _scaled_by_operations(a: Tensor, largest: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    scaled = _OPERATIONS.scaled(a, eps)
    sums = [scaled.x.square().sum((-2, -1)), spd.trace(scaled.x), scaled.known[1].square()]
    return scaled.x, scaled.scale, torch.stack(sums, -1)[:, None]


def _sums_by_kernel(first: Tensor, second: Tensor | None) -> Tensor:
    """‖·‖_F² and trace of strips of rows of both matrices, (b, strips, 2, 2)."""
    from matroot.kernels.triton.elementwise import sums_kernel

    batch, n = len(first), first.shape[-1]
    sums = first.new_empty(batch, -(-n // TILE), 2, 2)
    grid = (batch, sums.shape[1], 1 if second is None else 2)
    sums_kernel[grid](first, first if second is None else second, sums, n, T=TILE)
    return sums


def _sums_by_operations(first: Tensor, second: Tensor | None) -> Tensor:
    both = torch.stack([first, first if second is None else second], 1)
    return torch.stack([both.square().sum((-2, -1)), spd.trace(both)], -1)[:, None]


def _chosen_by_kernel(
    largest: Tensor,
    scale: Tensor,
    x_sums: Tensor,
    sums: Tensor,
    failed: Tensor | None,
    bounds: Tensor,
    rows: Tensor,
    known: Tensor,
    n: int,
    max_skew: float,
    null: float,
    regular: bool,
    max_cond: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of Chosen."""
    from matroot.kernels.triton.elementwise import chosen_kernel

    batch, (spans, strips) = len(scale), (largest.shape[1], x_sums.shape[1])
    found = (
        scale.new_empty(batch, *rows.shape[1:]),
        known.new_empty(batch, 3),
        scale.new_empty(batch, 2),
        scale.new_empty(batch, 2),
        scale.new_empty(batch, 2),
    )
    count, unit = rows.shape[1] * 3, spd.real_eps(scale.dtype)
    chosen_kernel[(batch,)](
        largest,
        scale,
        x_sums,
        sums,
        largest if failed is None else failed,
        bounds,
        rows,
        known,
        *found,
        _double(
            n,
            max_skew,
            null,
            unit,
            100 * torch.finfo(scale.dtype).tiny,
            max_cond or 1.0,
            like=scale,
        ),
        spans,
        strips,
        len(bounds),
        count,
        REGULAR=regular and max_cond is None,
        PROMISED=max_cond is not None,
        SPANS=_power_of_two(spans),
        STRIPS=_power_of_two(strips),
        LENGTH=_power_of_two(len(bounds)),
        COUNT=_power_of_two(count),
    )
    return found


def _chosen_by_operations(
    largest: Tensor,
    scale: Tensor,
    x_sums: Tensor,
    sums: Tensor,
    failed: Tensor | None,
    bounds: Tensor,
    rows: Tensor,
    known: Tensor,
    n: int,
    max_skew: float,
    null: float,
    regular: bool,
    max_cond: float | None,
) -> tuple[Tensor, ...]:
    of_x, others = x_sums.sum(1), sums.sum(1).permute(1, 0, 2)
    held = torch.cat([others[: 1 if failed is None else 2], of_x[None, :, :2]])
    found = choose(
        n,
        largest.amax(-1),
        scale,
        of_x[:, 2].sqrt(),
        held[..., 0].sqrt(),
        held[..., 1],
        failed,
        Thresholds(max_skew, None, null if regular else None, null),
        max_cond,
        Steps(bounds, rows, known),
    )
    return found.steps, found.info, found.factors, found.bounds, found.interval


def _combination_by_kernel(
    d: Tensor, c: Tensor, p: Tensor, e: Tensor | None, q: Tensor | None
) -> Tensor:
    """See Passes.combination."""
    from matroot.kernels.triton.elementwise import NUMBERS, combination_kernel

    x, n, both = torch.empty_like(p), p.shape[-1], e is not None
    combination_kernel[(len(p), -(-(n**2) // NUMBERS.value))](
        d,
        c,
        p,
        c if e is None else e,
        p if q is None else q,
        x,
        n,
        d.stride(0),
        c.stride(0),
        0 if e is None else e.stride(0),
        BOTH=both,
    )
    return x


def _shift_by_kernel(bounds: Tensor, least: float) -> Tensor:
    """See Passes.shift."""
    from matroot.kernels.triton.elementwise import NUMBERS, shift_kernel

    inverse = bounds.new_empty(len(bounds))
    shift_kernel[(-(-len(bounds) // NUMBERS.value),)](
        bounds,
        inverse,
        _double(least, 2.0**20 * torch.finfo(bounds.dtype).tiny, like=bounds),
        len(bounds),
    )
    return inverse


def _finished_by_kernel(x: Tensor, f: Tensor, failed: Tensor | None) -> Tensor:
    """See Passes.finished."""
    from matroot.kernels.triton.elementwise import finished_kernel

    found, n = torch.empty_like(x), x.shape[-1]
    tiles = -(-n // TILE)
    finished_kernel[(len(x), tiles, tiles)](
        x,
        f,
        f if failed is None else failed,
        found,
        n,
        f.stride(0),
        FAILED=failed is not None,
        T=TILE,
    )
    return found


_maxima = _operator(_maxima_by_kernel, _maxima_by_operations)
_scaled = _operator(_scaled_by_kernel, _scaled_by_operations)
_sums = _operator(_sums_by_kernel, _sums_by_operations)
_chosen = _operator(_chosen_by_kernel, _chosen_by_operations)
_combination = _operator(_combination_by_kernel, _OPERATIONS.combination)
_shift = _operator(_shift_by_kernel, _OPERATIONS.shift)
_finished = _operator(_finished_by_kernel, _OPERATIONS.finished)
