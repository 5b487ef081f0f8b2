"""The table of the steps of Minimax, as kernels read it: see schedules.py of matroot."""

from __future__ import annotations

import triton
import triton.language as tl

from matroot import schedules

OCTAVE = tl.constexpr(schedules.OCTAVE)
OCTAVES = tl.constexpr(schedules.OCTAVES)
STEPS = tl.constexpr(schedules.STEPS[5])


@triton.jit
def row_of(table_ptr, ratio):
    """The best steps for c/λ_min: see Minimax._schedule."""
    ratio = tl.minimum(tl.maximum(ratio, 1.0), 2.0**OCTAVES)
    place = tl.ceil(tl.log2(ratio.to(tl.float32)) * OCTAVE)
    return table_ptr + place.to(tl.int32) * (STEPS * 4)


@triton.jit
def steps_of(row, tol):
    """How many of these steps leave an error of at most ``tol``."""
    errors = tl.load(row + 4 * tl.arange(0, STEPS) + 3)
    return 1 + tl.sum((errors > tol).to(tl.int32), axis=0)
