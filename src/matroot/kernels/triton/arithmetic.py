"""What the kernels are made of: one program that works on one matrix, padded with zeros to N×N.

Between operations a matrix is where ``put`` leaves it: up to N = 32 in registers, beyond in
memory of the program's own, which the caches hold. Both kinds are called ``held`` here: ``get``
makes the numbers of either, and ``product`` multiplies either. Padding stays zero, or its own
block, in every operation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from matroot.kernels.triton.launch import interpreting
from matroot.spd import NULL_UNITS

# Numbers that kernels use must be known when they are compiled.
ZERO_UNITS = tl.constexpr(NULL_UNITS)
# More of a larger matrix than one product's result has no room in the registers.
IN_REGISTERS = tl.constexpr(32)
BLOCK = tl.constexpr(16)  # Rows that are eliminated at once; the least that tl.dot takes.
INTERPRETED = tl.constexpr(interpreting())
STRIP = tl.constexpr(32)  # Columns of a factor that a product reads at once.


def kernel(function: Callable[..., None]) -> Any:
    """A kernel with one binary for all values and alignments of what is not a constexpr.

    Else Triton makes others where a number is 1 or a number or an address a multiple of 16: the
    bits of a result would depend on the batch, and a new batch size take seconds to compile.
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
    """A number of the caller's: x, or, for float64, that whose bits the two words are.

    Triton hands every float over in single precision.
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
    """Hold A: in registers if it is small, else in ``memory``, which may be that of A's makers."""
    N: tl.constexpr = a.shape[0]
    if N <= IN_REGISTERS:
        return a
    else:
        # Other threads may still read what was there; then they must not read before it is written.
        tl.debug_barrier()
        tl.store(memory + place(N), a)
        tl.debug_barrier()
        return memory


@triton.jit
def get(held, N: tl.constexpr):
    """The numbers of a held matrix."""
    if N <= IN_REGISTERS:
        return held
    else:
        return tl.load(held + place(N))


@triton.jit
def product(a, b, N: tl.constexpr, PRECISION: tl.constexpr):
    """AB, not yet held, of held A and B."""
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
    """The program's own memory for ``MATRICES`` matrices; reads and writes take 16 bytes at once.

    It begins at a multiple of them, as all memory that PyTorch allocates, which no argument of a
    kernel tells: see ``kernel``.
    """
    own = memory_ptr + tl.program_id(0).to(tl.int64) * (MATRICES * N * N)
    return tl.multiple_of(own, 16)


@triton.jit
def span(batch, N: tl.constexpr):
    """Where the matrices of a program end, which begin at its number, and the step between them.

    Without memory of their own there is a program a matrix. A loop that is none would cost 60
    registers, in which the compiler keeps what does not change.
    """
    if N <= IN_REGISTERS:
        return tl.program_id(0) + 1, 1
    else:
        return batch, tl.num_programs(0)


@triton.jit
def max_abs(x):
    """The largest entry in magnitude; inf or NaN if one is not finite.

    By the bits of |x|, which are ordered as the numbers are, with NaN above all: a GPU reduces
    whole numbers by one instruction a warp.
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
    """(A + Aᵀ)/2, each half by itself since the sum may overflow."""
    return a * 0.5 + tl.trans(a) * 0.5


@triton.jit
def plus_diagonal(a, d, n):
    """A + d I, not in the padding."""
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

    One that is not is taken for 1, and the result means nothing.
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
    """What sweeping pivots start, start + 1 … leaves of their own rows.

    Returns:
        Those rows; F, whose FᵀF is what it takes from the others; whether all pivots were positive.
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
        # The block's own rest is taken by the same FᵀF as the other rows'.
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

    By the sweep operator (Gauss and Jordan's elimination of a symmetric matrix in place), a large
    matrix in blocks of rows. What a block takes from the rest is FᵀF, as in Cholesky's
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
            tl.debug_barrier()  # All have read.
            tl.store(held + place(N), rest, mask=outside[:, None] & outside[None, :])
            tl.store(held + few[:, None] * N + line[None, :], rows)
            tl.store(held + line[:, None] * N + few[None, :], tl.trans(rows), mask=outside[:, None])
            tl.debug_barrier()  # All have written.
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
    """Whether all entries are."""
    return max_abs(a) <= largest_of(a.dtype)


@triton.jit
def again(n):
    """n, of which the compiler does not know that it is n.

    What it makes of it, addresses above all, it makes again where it is wanted, instead of keeping
    it in registers from the first load to the last store.
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
