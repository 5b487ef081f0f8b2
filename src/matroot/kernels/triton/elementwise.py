"""The passes between products as kernels: see passes.py in this folder and kernels/passes.py.

Matrices are stored one after the other, row by row. A sum over a whole matrix is taken strip of
rows by strip of rows, always in the same order; the kernel that needs it adds the strips up, in
double precision, which costs nothing for one number per matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl

from matroot.kernels.triton.arithmetic import kernel
from matroot.screen import Status

NUMBERS = tl.constexpr(1024)  # As many numbers as a program of an elementwise kernel takes at once.
# Statuses: see screen.Status.
OK = tl.constexpr(Status.OK)
SINGULAR = tl.constexpr(Status.SINGULAR)
ASYMMETRIC = tl.constexpr(Status.ASYMMETRIC)
NONFINITE = tl.constexpr(Status.NONFINITE)


@triton.jit
def total(parts_ptr, count, stride, P: tl.constexpr):
    """The sum of ``count`` numbers ``stride`` apart, in double precision."""
    part = tl.arange(0, P)
    return tl.sum(tl.load(parts_ptr + part * stride, part < count, 0.0).to(tl.float64), 0)


@triton.jit
def finite_or_zero(x):
    """x, or 0 where it is NaN or infinite."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@kernel
def maxima_kernel(a_ptr, largest_ptr, size, strips, span):
    """Max |a_ij| of each strip of ``span`` numbers of a matrix; infinity where one is NaN."""
    matrix, strip = tl.program_id(0).to(tl.int64), tl.program_id(1)
    largest = tl.zeros((NUMBERS,), a_ptr.dtype.element_ty)
    for start in range(0, span, NUMBERS):
        place = strip * span + start + tl.arange(0, NUMBERS)
        a = tl.load(a_ptr + matrix * size + place, place < size, 0.0)
        largest = tl.maximum(largest, tl.where(a == a, tl.abs(a), float("inf")))
    tl.store(largest_ptr + matrix * strips + strip, tl.max(largest, 0))


@triton.jit
def power_of_two(largest, smallest, DOUBLE: tl.constexpr):
    """The largest 2·4ʲ up to ``largest``, or ``smallest`` if that is larger."""
    if DOUBLE:
        bits = largest.to(tl.int64, bitcast=True) & 0x7FE0000000000000
        return tl.maximum(bits.to(tl.float64, bitcast=True), smallest)
    else:
        bits = largest.to(tl.int32, bitcast=True) & 0x7F000000
        return tl.maximum(bits.to(tl.float32, bitcast=True), smallest)


@kernel
def scaled_kernel(
    a_ptr,
    largest_ptr,
    x_ptr,
    scale_ptr,
    sums_ptr,
    numbers_ptr,
    n,
    spans,
    DOUBLE: tl.constexpr,
    SPANS: tl.constexpr,
    T: tl.constexpr,
):
    """See Passes.scaled; a program takes a strip of T rows.

    Args:
        a_ptr: A.
        largest_ptr: what maxima_kernel found, (b, spans).
        x_ptr: X.
        scale_ptr: the scale, (b,).
        sums_ptr: ‖X‖_F², tr X, ‖skew part‖_F² of each strip, (b, strips, 3).
        numbers_ptr: the ridge and the least scale. (As arguments they would be single precision.)
        n: rows.
        spans: how many numbers maxima_kernel found for each matrix.
        DOUBLE: whether in double precision.
        SPANS: a power of 2, at least ``spans``.
        T: a power of 2.
    """
    matrix, strip = tl.program_id(0).to(tl.int64), tl.program_id(1)
    span = tl.arange(0, SPANS)
    found = tl.load(largest_ptr + matrix * spans + span, span < spans, 0.0)
    eps = tl.load(numbers_ptr)
    largest = tl.maximum(tl.max(found, 0), eps)
    scale = power_of_two(largest, tl.load(numbers_ptr + 1), DOUBLE)
    inverse = (1.0 / scale.to(tl.float64)).to(found.dtype)
    ridge = 2.0 * eps * inverse
    row = strip * T + tl.arange(0, T)
    a_ptr += matrix * n * n
    x_ptr += matrix * n * n
    squares, skews = tl.zeros((T, T), found.dtype), tl.zeros((T, T), found.dtype)
    trace = tl.zeros((T, T), found.dtype)
    for start in range(0, n, T):
        column = start + tl.arange(0, T)
        inside = (row[:, None] < n) & (column[None, :] < n)
        here = tl.load(a_ptr + row[:, None] * n + column[None, :], inside, 0.0) * inverse
        there = tl.load(a_ptr + column[None, :] * n + row[:, None], inside, 0.0) * inverse
        on_diagonal = inside & (row[:, None] == column[None, :])
        x = here + there + tl.where(on_diagonal, ridge, 0.0)
        tl.store(x_ptr + row[:, None] * n + column[None, :], x, inside)
        squares += x * x
        skews += (here - there) * (here - there)
        trace += tl.where(on_diagonal, x, 0.0)
    sums_ptr += (matrix * tl.num_programs(1) + strip) * 3
    tl.store(sums_ptr, tl.sum(squares))
    tl.store(sums_ptr + 1, tl.sum(trace))
    tl.store(sums_ptr + 2, tl.sum(skews))
    if strip == 0:
        tl.store(scale_ptr + matrix, scale)


@kernel
def sums_kernel(first_ptr, second_ptr, sums_ptr, n, T: tl.constexpr):
    """‖·‖_F² and trace of strips of T rows of each of two matrices, (b, strips, 2, 2)."""
    matrix, strip, which = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    x_ptr = first_ptr if which == 0 else second_ptr
    row = strip * T + tl.arange(0, T)
    squares = tl.zeros((T, T), first_ptr.dtype.element_ty)
    trace = tl.zeros((T, T), first_ptr.dtype.element_ty)
    for start in range(0, n, T):
        column = start + tl.arange(0, T)
        inside = (row[:, None] < n) & (column[None, :] < n)
        place = matrix * n * n + row[:, None] * n + column[None, :]
        x = tl.load(x_ptr + place, inside, 0.0)
        squares += x * x
        trace += tl.where(row[:, None] == column[None, :], x, 0.0)
    sums_ptr += ((matrix * tl.num_programs(1) + strip) * 2 + which) * 2
    tl.store(sums_ptr, tl.sum(squares))
    tl.store(sums_ptr + 1, tl.sum(trace))


@triton.jit
def upper_bound(square, trace, n, inflated, tiny):
    """Wolkowicz and Styan's bound of λ_max, above 0: see spd.upper_bound; n in double precision."""
    variance = tl.maximum(square - trace * trace / n, tiny)
    return (trace / n + tl.sqrt(variance * (tl.maximum(n - 1.0, 1.0) / n))) * inflated


@kernel
def chosen_kernel(
    largest_ptr,
    scale_ptr,
    x_sums_ptr,
    sums_ptr,
    failed_ptr,
    bounds_ptr,
    rows_ptr,
    known_ptr,
    steps_ptr,
    info_ptr,
    factors_ptr,
    roots_ptr,
    interval_ptr,
    numbers_ptr,
    spans,
    strips,
    length,
    count,
    REGULAR: tl.constexpr,
    PROMISED: tl.constexpr,
    SPANS: tl.constexpr,
    STRIPS: tl.constexpr,
    LENGTH: tl.constexpr,
    COUNT: tl.constexpr,
):
    """See passes.choose; a program takes one matrix.

    Args:
        largest_ptr: (b, spans).
        scale_ptr: (b,).
        x_sums_ptr: what scaled_kernel found, (b, strips, 3).
        sums_ptr: what sums_kernel found of X² and X⁻¹, (b, strips, 2, 2).
        failed_ptr: not 0 where X has no Cholesky factor, (b,); not read if PROMISED.
        bounds_ptr: Steps.bounds, (length,).
        rows_ptr: Steps.rows, count numbers a row.
        known_ptr: Steps.info.
        steps_ptr: this and the next four are the fields of Chosen, which are written.
        info_ptr: …
        factors_ptr: …
        roots_ptr: Chosen.bounds.
        interval_ptr: …
        numbers_ptr: rows of a matrix; Limits.skew and null; the rounding unit; a number just above
            0; Limits.max_cond; in double precision.
        spans: see scaled_kernel.
        strips: see scaled_kernel.
        length: of the table, less one.
        count: numbers in a row of it.
        REGULAR: see Limits; not with PROMISED.
        PROMISED: whether ``max_cond`` is given.
        SPANS: this and the next three are powers of 2, at least the numbers that they are named
            after.
        STRIPS: …
        LENGTH: …
        COUNT: …
    """
    matrix = tl.program_id(0).to(tl.int64)
    span = tl.arange(0, SPANS)
    found = tl.load(largest_ptr + matrix * spans + span, span < spans, 0.0)
    finite = tl.max(found, 0) < float("inf")
    x_sums_ptr += matrix * strips * 3
    sums_ptr += matrix * strips * 4
    x_square = total(x_sums_ptr, strips, 3, STRIPS)
    x_trace = total(x_sums_ptr + 1, strips, 3, STRIPS)
    skew = total(x_sums_ptr + 2, strips, 3, STRIPS)
    n, max_skew = tl.load(numbers_ptr), tl.load(numbers_ptr + 1)
    share, tiny = tl.load(numbers_ptr + 2), tl.load(numbers_ptr + 4)
    inflated = 1.0 + (8.0 + n) * tl.load(numbers_ptr + 3)
    square = total(sums_ptr, strips, 4, STRIPS)
    # The trace of X² is ‖X‖_F².
    high = tl.sqrt(upper_bound(square, total(sums_ptr + 1, strips, 4, STRIPS), n, inflated, tiny))
    least = finite_or_zero(x_square / x_trace)
    if PROMISED:
        low = tl.minimum(least / tl.load(numbers_ptr + 5), high)
        known_low = low
    else:
        square = total(sums_ptr + 2, strips, 4, STRIPS)
        trace = total(sums_ptr + 3, strips, 4, STRIPS)
        failed = tl.load(failed_ptr + matrix) != 0
        low = finite_or_zero(1.0 / upper_bound(square, trace, n, inflated, tiny))
        low = tl.where(failed, 0.0, low)
        ratio = finite_or_zero(trace / square / least)
        ratio = tl.where(failed, 0.0, ratio)
        known_low = tl.where(ratio > 2.0 * share, low, 0.0)
        singular = ratio <= share

    # The row of the table, as torch.bucketize(right=True) finds it.
    line = tl.arange(0, LENGTH)
    bounds = tl.load(bounds_ptr + line, line < length, float("inf")).to(tl.float64)
    row = tl.sum((bounds <= low / high).to(tl.int32), 0)
    entry = tl.arange(0, COUNT)
    taken = tl.load(rows_ptr + row * count + entry, entry < count, 0.0)
    kind = entry % 3
    power = tl.where(kind == 0, 1.0, tl.where(kind == 1, 1.0 / high, 1.0 / high / high))
    tl.store(steps_ptr + matrix * count + entry, taken.to(tl.float64) * power, entry < count)
    factor = tl.load(rows_ptr + row * count + count - 6).to(tl.float64)

    status = OK
    if REGULAR:
        status = tl.where(singular, SINGULAR, status)
    status = tl.where(skew > max_skew * max_skew * x_square, ASYMMETRIC, status)
    status = tl.where(finite, status, NONFINITE)
    info_ptr += matrix * 3
    converged = tl.load(known_ptr + row * 3 + 2)
    tl.store(info_ptr, status.to(tl.int64))
    tl.store(info_ptr + 1, tl.load(known_ptr + row * 3 + 1))
    tl.store(info_ptr + 2, tl.where(status == OK, converged, 0))
    size = tl.sqrt(0.5 * tl.load(scale_ptr + matrix).to(tl.float64))
    size = tl.where(status == OK, size, float("nan"))
    factor = factor / tl.sqrt(high)
    tl.store(factors_ptr + 2 * matrix, factor * size)
    tl.store(factors_ptr + 2 * matrix + 1, factor / size)
    tl.store(roots_ptr + 2 * matrix, tl.sqrt(known_low) * size)
    tl.store(roots_ptr + 2 * matrix + 1, tl.sqrt(high) * size)
    tl.store(interval_ptr + 2 * matrix, known_low)
    tl.store(interval_ptr + 2 * matrix + 1, high)


@kernel
def combination_kernel(
    d_ptr, c_ptr, p_ptr, e_ptr, q_ptr, x_ptr, n, d_stride, c_stride, e_stride, BOTH: tl.constexpr
):
    """X = d I + c P, and + e Q if BOTH."""
    matrix = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * NUMBERS + tl.arange(0, NUMBERS)
    inside = place < n * n
    p_ptr += matrix * n * n
    x = tl.load(c_ptr + matrix * c_stride) * tl.load(p_ptr + place, inside, 0.0)
    if BOTH:
        q = tl.load(q_ptr + matrix * n * n + place, inside, 0.0)
        x += tl.load(e_ptr + matrix * e_stride) * q
    d = tl.load(d_ptr + matrix * d_stride)
    x += tl.where(place % (n + 1) == 0, d, 0.0)
    tl.store(x_ptr + matrix * n * n + place, x, inside)


@kernel
def shift_kernel(bounds_ptr, inverse_ptr, numbers_ptr, batch):
    """See Passes.shift; the two numbers are the least values of low/high and of high."""
    least, smallest = tl.load(numbers_ptr), tl.load(numbers_ptr + 1)
    matrix = tl.program_id(0) * NUMBERS + tl.arange(0, NUMBERS)
    inside = matrix < batch
    low = tl.load(bounds_ptr + 2 * matrix, inside, 1.0).to(tl.float64)
    high = tl.load(bounds_ptr + 2 * matrix + 1, inside, 1.0).to(tl.float64)
    # Written so that NaN remains NaN.
    high = tl.where(high < smallest, smallest, high)
    ratio = tl.where(low / high < least, least, low / high)
    tl.store(inverse_ptr + matrix, 1.0 / tl.sqrt(ratio) / high, inside)


@kernel
def finished_kernel(
    x_ptr, f_ptr, failed_ptr, out_ptr, n, f_stride, FAILED: tl.constexpr, T: tl.constexpr
):
    """F (X + Xᵀ), NaN where ``failed`` is not 0; a program takes a tile of T×T."""
    matrix = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * T + tl.arange(0, T)
    column = tl.program_id(2) * T + tl.arange(0, T)
    inside = (row[:, None] < n) & (column[None, :] < n)
    x_ptr += matrix * n * n
    here = tl.load(x_ptr + row[:, None] * n + column[None, :], inside, 0.0)
    there = tl.load(x_ptr + column[None, :] * n + row[:, None], inside, 0.0)
    f = tl.load(f_ptr + matrix * f_stride)
    if FAILED:
        f = tl.where(tl.load(failed_ptr + matrix) == 0, f, float("nan"))
    place = matrix * n * n + row[:, None] * n + column[None, :]
    tl.store(out_ptr + place, (here + there) * f, inside)
