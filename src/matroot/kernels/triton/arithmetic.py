"""The building blocks of the kernels: a program works on one matrix, padded with zeros to N×N.

Between operations a matrix is where ``put`` leaves it: up to N = 32 in registers, beyond that in
the program's own memory, which stays in the caches. Either kind is called ``held`` here: ``get``
returns its entries, and ``product`` multiplies it. Every operation leaves the padding zero, or a
block of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from matroot.kernels.triton.launch import interpreting
from matroot.spd import NULL_UNITS

# The numbers that kernels use must be known at compile time.
ZERO_UNITS = tl.constexpr(NULL_UNITS)
# For larger matrices the registers have room for the result of one product only.
IN_REGISTERS = tl.constexpr(32)
BLOCK = tl.constexpr(16)  # Rows that are eliminated at once; the fewest that tl.dot takes.
INTERPRETED = tl.constexpr(interpreting())
STRIP = tl.constexpr(32)  # Columns of a factor that a product reads at once.


def kernel(function: Callable[..., None]) -> Any:
    """A kernel with one binary for all values and alignments of what is not a constexpr.

    Otherwise Triton compiles further ones for numbers that are 1 and for numbers and addresses that
    are multiples of 16: the bits of a result would depend on the batch, and a new batch size would
    take seconds to compile.
    """
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if "constexpr" not in str(parameter.annotation)
    ]
    return triton.jit(function, do_not_specialize=names, do_not_specialize_on_alignment=names)


@triton.constexpr_function
def eps_of(dtype):
    """The rounding unit: see spd.real_eps."""
    return 2.0**-52 if dtype == tl.float64 else 2.0**-23


@triton.constexpr_function
def largest_of(dtype):
    """The largest number."""
    return (2.0 - 2.0**-52) * 2.0**1023 if dtype == tl.float64 else (2.0 - 2.0**-23) * 2.0**127


@triton.jit
def told(x, high, low, dtype: tl.constexpr):
    """A number given by the caller: x or, in float64, the number whose bits are the two words.

    Triton passes every float in single precision.
    """
    if dtype == tl.float64:
        bits = (high.to(tl.int64) << 32) | (low.to(tl.int64) & 0xFFFFFFFF)
        return bits.to(tl.float64, bitcast=True)
    else:
        return x


@triton.jit
def place(N: tl.constexpr):
    """Where the entries of a held matrix are."""
    line = tl.arange(0, N)
    return line[:, None] * N + line[None, :]


@triton.jit
def put(a, memory):
    """Hold A: in registers if it is small, otherwise in ``memory``.

    The memory may be that of a matrix from which A was computed.
    """
    N: tl.constexpr = a.shape[0]
    if N <= IN_REGISTERS:
        return a
    else:
        # All threads have read what was there; below, all have written A before one reads it.
        tl.debug_barrier()
        tl.store(memory + place(N), a)
        tl.debug_barrier()
        return memory


@triton.jit
def get(held, N: tl.constexpr):
    """The entries of a held matrix."""
    if N <= IN_REGISTERS:
        return held
    else:
        return tl.load(held + place(N))


@triton.jit
def product(a, b, N: tl.constexpr, PRECISION: tl.constexpr):
    """AB of held A and B; the result is not yet held."""
    if N <= IN_REGISTERS:
        return tl.dot(a, b, input_precision=PRECISION)
    else:
        line, strip = tl.arange(0, N), tl.arange(0, STRIP)
        c = tl.zeros((N, N), a.dtype.element_ty)
        for k in range(0, N, STRIP):
            columns = tl.load(a + line[:, None] * N + (k + strip)[None, :])
            rows = tl.load(b + (k + strip)[:, None] * N + line[None, :])
            c = tl.dot(columns, rows, c, input_precision=PRECISION)
        return c


@triton.jit
def memory_of(memory_ptr, N: tl.constexpr, MATRICES: tl.constexpr):
    """The program's own memory for ``MATRICES`` matrices, read and written by 16 bytes at once.

    It begins at a multiple of 16 bytes, as all memory that PyTorch allocates does; the arguments of
    a kernel do not show this: see ``kernel``.
    """
    own = memory_ptr + tl.program_id(0).to(tl.int64) * (MATRICES * N * N)
    return tl.multiple_of(own, 16)


@triton.jit
def span(batch, N: tl.constexpr):
    """The end of a program's range of matrices, which begins at its number, and the step.

    Programs without memory of their own solve one matrix each. A real loop would cost 60 registers
    there, in which the compiler keeps what does not change.
    """
    if N <= IN_REGISTERS:
        return tl.program_id(0) + 1, 1
    else:
        return batch, tl.num_programs(0)


@triton.jit
def max_abs(x):
    """The largest entry in magnitude; inf or NaN if one is not finite.

    The bits of |x| are compared, which are ordered as the numbers are, NaN last: a GPU reduces
    integers by one instruction per warp.
    """
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
        return tl.max(bits).to(tl.float64, bitcast=True)
    else:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        return tl.max(bits).to(tl.float32, bitcast=True)


@triton.jit
def trace(a):
    """The trace."""
    line = tl.arange(0, a.shape[0])
    return tl.sum(tl.where(line[:, None] == line[None, :], a, 0.0))


@triton.jit
def norm(a):
    """‖A‖_F."""
    return tl.sqrt(tl.sum(a * a))


@triton.jit
def hermitian_part(a):
    """(A + Aᵀ)/2, both terms halved first, since the sum may overflow."""
    return a * 0.5 + tl.trans(a) * 0.5


@triton.jit
def plus_diagonal(a, d, n):
    """A + d I, outside the padding."""
    line = tl.arange(0, a.shape[0]) + again(0)
    here = (line[:, None] == line[None, :]) & (line[:, None] < n)
    return tl.where(here, a + d, a)


@triton.jit
def positive_or_one(x):
    """See spd.positive_or_one."""
    return tl.where(x > 0, x, 1.0)


@triton.jit
def reciprocal(x):
    """1/x, correctly rounded."""
    if x.dtype == tl.float64:
        return 1.0 / x
    else:
        return tl.div_rn(1.0, x)


@triton.jit
def square_root(x):
    """√x, correctly rounded."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def upper_bound(a, n):
    """See spd.upper_bound."""
    high, _, _, _ = measured(a, n)
    return high


@triton.jit
def measured(a, n):
    """spd.upper_bound and spd.largest_at_least of A, its trace and ‖A‖_F²."""
    square, sum = tl.sum(a * a), trace(a)
    n = tl.cast(n, a.dtype)
    rows = tl.max(tl.sum(tl.abs(a), axis=1))
    mean = sum / n
    spread = tl.sqrt(tl.maximum(square - sum * mean, 0.0) * ((n - 1.0) / n))
    bound = tl.minimum(tl.minimum(tl.sqrt(square), rows), mean + spread)
    at_least = tl.where(sum > 0, square / positive_or_one(sum), 0.0)
    return bound * (1.0 + (8.0 + n) * eps_of(a.dtype)), at_least, sum, square


@triton.jit
def swept(a, n):
    """−A⁻¹ by sweeping n pivots, and whether all were positive.

    A pivot that is not is replaced by 1; the result is then meaningless.
    """
    line = tl.arange(0, a.shape[0])
    good = True
    for k in range(n):
        i = line[:, None] == k
        j = line[None, :] == k
        row = tl.sum(tl.where(i, a, 0.0), axis=0)
        pivot = tl.sum(tl.where(line == k, row, 0.0), axis=0)
        good = good & (pivot > 0)
        r = reciprocal(positive_or_one(pivot))
        rest = a - (row[:, None] * row[None, :]) * r
        cross = tl.where(i, row[None, :], row[:, None]) * r
        a = tl.where(i & j, -r, tl.where(i | j, cross, rest))
    return a, good


@triton.jit
def swept_rows(rows, start, count):
    """Sweep pivots start, start + 1, … in a block of their own rows.

    Returns:
        The block after that; F, where FᵀF is to be subtracted from the other rows; whether all
        pivots were positive.
    """
    block, line = tl.arange(0, rows.shape[0]), tl.arange(0, rows.shape[1])
    factor = tl.zeros_like(rows)
    good = True
    for k in range(count):
        i = block[:, None] == k
        j = line[None, :] == start + k
        row = tl.sum(tl.where(i, rows, 0.0), axis=0)
        column = tl.sum(tl.where(j, rows, 0.0), axis=1)
        pivot = tl.sum(tl.where(line == start + k, row, 0.0), axis=0)
        good = good & (pivot > 0)
        r = reciprocal(positive_or_one(pivot))
        # The rest of the block loses the same FᵀF as the other rows.
        root = square_root(r)
        f = row * root
        factor = tl.where(i, f[None, :], factor)
        rest = rows - (column * root)[:, None] * f[None, :]
        cross = tl.where(i, row[None, :], column[:, None]) * r
        rows = tl.where(i & j, -r, tl.where(i | j, cross, rest))
    return rows, factor, good


@triton.jit
def inverse(a, memory, n, PRECISION: tl.constexpr):
    """A⁻¹, held, of an SPD A that is not yet held, and whether all pivots were positive.

    By the sweep operator (Gauss–Jordan elimination of a symmetric matrix in place), for a large
    matrix in blocks of rows. Each block subtracts FᵀF from the rest, as in a Cholesky
    factorisation: Rᵀ D⁻¹ R with an explicit D⁻¹ is not stable.
    """
    N: tl.constexpr = a.shape[0]
    if N <= IN_REGISTERS:
        a, good = swept(a, n)
        return -a, good
    else:
        held = put(a, memory)
        line, block = tl.arange(0, N), tl.arange(0, BLOCK)
        good = True
        for start in range(0, n, BLOCK):
            few = start + block
            rows = tl.load(held + few[:, None] * N + line[None, :])
            rows, factor, positive = swept_rows(rows, start, tl.minimum(n - start, BLOCK))
            good = good & positive
            rest = tl.load(held + place(N))
            rest -= tl.dot(tl.trans(factor), factor, input_precision=PRECISION)
            outside = (line < start) | (line >= start + BLOCK)
            tl.debug_barrier()  # All threads have read.
            tl.store(held + place(N), rest, mask=outside[:, None] & outside[None, :])
            tl.store(held + few[:, None] * N + line[None, :], rows)
            tl.store(held + line[:, None] * N + few[None, :], tl.trans(rows), mask=outside[:, None])
            tl.debug_barrier()  # All threads have written.
        return put(-get(held, N), held), good


@triton.jit
def power_of_two(k, dtype: tl.constexpr):
    """2ᵏ, exactly, for −126 ≤ k ≤ 127; in float64 for −1022 ≤ k ≤ 1023."""
    if dtype == tl.float64:
        return ((k + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        return ((k + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exponent(x):
    """The integer k with x/2ᵏ in [1/2, 1) of a number x ≥ 0; 0 for 0."""
    if x.dtype == tl.float64:
        small = x < 2.0**-1022
        bits = tl.where(small, x * 2.0**53, x).to(tl.int64, bitcast=True)
        k = (bits >> 52).to(tl.int32) - 1022 - tl.where(small, 53, 0)
    else:
        small = x < 2.0**-126
        bits = tl.where(small, x * 16777216.0, x).to(tl.int32, bitcast=True)
        k = (bits >> 23) - 126 - tl.where(small, 24, 0)
    return tl.where(x > 0, k, 0)


@triton.jit
def times_power_of_two(a, k):
    """A · 2ᵏ in two factors, since 2ᵏ alone may overflow."""
    half = k >> 1
    return a * power_of_two(half, a.dtype) * power_of_two(k - half, a.dtype)


@triton.jit
def is_finite(a):
    """Whether all entries are finite."""
    return max_abs(a) <= largest_of(a.dtype)


@triton.jit
def again(n):
    """n, hidden from the compiler.

    It then recomputes what depends on n, addresses above all, where that is used, instead of
    keeping it in registers from the first load to the last store.
    """
    if INTERPRETED:
        return n
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [n], tl.int32, False, 1)


@triton.jit
def load(pointer, matrix, n, N: tl.constexpr):
    """Matrix number ``matrix`` of a batch (b, n, n), padded with zeros."""
    n = again(n)
    line = tl.arange(0, N)
    inside = (line[:, None] < n) & (line[None, :] < n)
    return tl.load(
        pointer + matrix * n * n + line[:, None] * n + line[None, :], mask=inside, other=0.0
    )


@triton.jit
def store(pointer, matrix, a, n):
    """A without its padding becomes matrix number ``matrix`` of a batch (b, n, n)."""
    n = again(n)
    line = tl.arange(0, a.shape[0])
    inside = (line[:, None] < n) & (line[None, :] < n)
    tl.store(pointer + matrix * n * n + line[:, None] * n + line[None, :], a, mask=inside)
