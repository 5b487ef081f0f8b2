"""Roots by the coupled minimax iteration, one matrix a program: see methods/minimax.py."""

from __future__ import annotations

import triton
import triton.language as tl

from matroot.kernels.triton import launch
from matroot.kernels.triton.arithmetic import (
    ZERO_UNITS,
    eps_of,
    get,
    hermitian_part,
    inverse,
    is_finite,
    kernel,
    memory_of,
    norm,
    plus_diagonal,
    positive_or_one,
    power_of_two,
    product,
    put,
    span,
    square_root,
    told,
    upper_bound,
)
from matroot.kernels.triton.schedules import row_of, steps_of
from matroot.kernels.triton.screen import OK, prepared, write_info, write_root
from matroot.screen import Status

DIVERGED = tl.constexpr(Status.DIVERGED)
BOUNDS = tl.constexpr(launch.BOUNDS)
NORM = tl.constexpr(launch.NORM)


@triton.constexpr_function
def half_digits(dtype):
    """The root of the rounding unit."""
    return 2.0**-26 if dtype == tl.float64 else 2.0**-11.5


@triton.jit
def grown(y, z, trace_bound, memory, n, sqrt, PRECISION: tl.constexpr):
    """See methods.coupled.grown."""
    bad = is_finite(z) == 0
    if sqrt:
        size = norm(y)
        shifted = plus_diagonal(hermitian_part(y), size * (2.0 * half_digits(size.dtype)), n)
        _, definite = inverse(shifted, memory, n, PRECISION)
        definite = definite | (size == 0)
        bounded = size * size <= trace_bound * (1.0 + 20.0 * half_digits(size.dtype))
        bad = bad | ((definite & bounded) == 0)
    return bad


@kernel
def minimax_kernel(
    memory_ptr,
    batch,
    n,
    a_ptr,
    sqrt_ptr,
    inv_sqrt_ptr,
    constants_ptr,
    info_ptr,
    table_ptr,
    eps,
    eps_high,
    eps_low,
    skew_limit,
    indefinite_limit,
    singular_limit,
    null_limit,
    tol,
    max_steps,
    sqrt,
    inv,
    constants,
    N: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Roots of A, (b, n, n), by the coupled minimax iteration.

    Args:
        memory_ptr: four matrices N×N a program, if N is above IN_REGISTERS.
        batch: b.
        n: rows.
        a_ptr: A.
        sqrt_ptr: A^{1/2}, written if ``sqrt``.
        inv_sqrt_ptr: A^{-1/2}, written if ``inv``.
        constants_ptr: what the gradient is given (gradients.Lyapunov.prepare), written if
            ``constants`` is BOUNDS: bounds of the spectrum of A^{1/2}, (b, 2), or NORM: √‖A‖_F,
            (b,).
        info_ptr: status, steps, whether converged, (b, 3), int64.
        table_ptr: schedules(5, …).
        eps: the ridge.
        eps_high: the upper half of its bits in float64, used if A is float64.
        eps_low: the lower half.
        skew_limit: this and the next three are Thresholds; ``singular`` is below 0 for None.
        indefinite_limit: …
        singular_limit: …
        null_limit: …
        tol: see Minimax.
        max_steps: see Minimax.
        sqrt: 1 if the root is wanted, else 0.
        inv: 1 if the inverse root is wanted, else 0.
        constants: NOTHING, BOUNDS or NORM: see launch.py.
        N: the power of 2, at least 16, that n is padded to.
        HALF: whether A was given in half precision.
        PRECISION: of products, as tl.dot names it.
    """
    # In turn, the scratch matrices hold: A and D; A⁻¹ and Y; A² and P; Z.
    first = memory_of(memory_ptr, N, 4)
    second, third, fourth = first + N * N, first + 2 * N * N, first + 3 * N * N
    end, stride = span(batch, N)
    eps = told(eps, eps_high, eps_low, a_ptr.dtype.element_ty)
    for index in range(tl.program_id(0), end, stride):
        matrix = tl.cast(index, tl.int64)
        a, k, status, low, low_at_most, high, at_least, sum, size = prepared(
            a_ptr,
            matrix,
            table_ptr,
            first,
            second,
            third,
            fourth,
            n,
            eps,
            skew_limit,
            indefinite_limit,
            singular_limit,
            N,
            HALF,
            PRECISION,
        )
        # The first step, with Y = A and Z = I, finds the coefficients and how many steps follow.
        y, z, row, r = a, a, table_ptr, tl.cast(1.0, high.dtype)
        step, needed, wanted = 0, 1, 1
        while step < needed:
            if step > 0:
                p = put(product(z, y, N, PRECISION), third)
            else:
                p = y
            square = product(p, p, N, PRECISION)
            if step == 0:
                high = positive_or_one(tl.minimum(high, tl.sqrt(upper_bound(square, n))))
                units = tl.where(low > 0, ZERO_UNITS, tl.maximum(n * 1.0, ZERO_UNITS))
                row = row_of(table_ptr, high / tl.maximum(low, units * high * eps_of(high.dtype)))
                wanted = steps_of(row, tol)
                # A matrix without a root takes no further steps: they would overflow.
                needed = tl.where(status == OK, tl.minimum(wanted, max_steps), 1)
                r = 1.0 / high
            # h includes the division by c of P = Z Y/c, so that no A/c is rounded before a product.
            h0, h1 = tl.load(row + 4 * step), tl.load(row + 4 * step + 1) * r
            h2 = tl.load(row + 4 * step + 2) * r * r
            # First H, then H − I: what a step adds becomes small, and so does its rounding error.
            h0 = tl.where(step > 0, h0 - 1.0, h0)
            memory = tl.where(step > 0, first, fourth)
            d = put(plus_diagonal(h2 * square + h1 * get(p, N), h0, n), memory)
            if step == 0:
                z = d
            elif (inv != 0) | (step < needed - 1):
                z = put(get(z, N) + product(d, z, N, PRECISION), fourth)
            if (sqrt != 0) | (step < needed - 1):
                new = product(y, d, N, PRECISION)
                y = put(tl.where(step > 0, get(y, N), 0.0) + new, second)
            step += 1

        if (low <= 0) & (status == OK):
            # Before the last step eigenvalues of Y are too large by a factor of up to 1 + error.
            left = 1.0 + tl.load(row + 4 * (needed - 1) + 3)
            bound = sum * r * left * left
            bad = grown(get(y, N) * r, get(z, N), bound, third, n, sqrt, PRECISION)
            status = tl.where(bad, DIVERGED, status)

        good = status == OK
        write_info(info_ptr, matrix, status, needed, good & (needed == wanted))
        half = k >> 1
        factor = tl.where(good, square_root(r), float("nan"))
        unit = tl.where(good, power_of_two(half, r.dtype), float("nan"))
        if constants == BOUNDS:
            null = low_at_most <= at_least * (2.0 * null_limit)
            tl.store(constants_ptr + 2 * matrix, tl.where(null, 0.0, tl.sqrt(low)) * unit)
            tl.store(constants_ptr + 2 * matrix + 1, tl.sqrt(high) * unit)
        if constants == NORM:
            tl.store(constants_ptr + matrix, tl.sqrt(tl.sqrt(size)) * unit)
        for i in range(2):
            if tl.where(i == 0, sqrt, inv):
                root = tl.where(i == 0, sqrt_ptr, inv_sqrt_ptr)
                write_root(root, matrix, get(y, N), factor, tl.where(i == 0, half, -half), n)
            y = z
