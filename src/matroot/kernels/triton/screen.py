"""What every kernel for roots begins and ends with: see screen.py and solve.py of matroot."""

from __future__ import annotations

import triton
import triton.language as tl

from matroot.kernels.triton.arithmetic import (
    eps_of,
    exponent,
    get,
    hermitian_part,
    inverse,
    largest_of,
    load,
    max_abs,
    measured,
    norm,
    plus_diagonal,
    positive_or_one,
    power_of_two,
    product,
    put,
    store,
    times_power_of_two,
    upper_bound,
)
from matroot.kernels.triton.schedules import row_of, steps_of
from matroot.screen import Status

OK = tl.constexpr(Status.OK)
SINGULAR = tl.constexpr(Status.SINGULAR)
INDEFINITE = tl.constexpr(Status.INDEFINITE)
ASYMMETRIC = tl.constexpr(Status.ASYMMETRIC)
NONFINITE = tl.constexpr(Status.NONFINITE)


@triton.jit
def normalized(a, n, eps, skew_limit):
    """See screen.normalized: the scaled matrix, the even exponent k, the status."""
    largest = max_abs(a)
    finite = largest <= largest_of(a.dtype)
    a = tl.where(finite, a, 0.0)
    k = exponent(tl.maximum(tl.where(finite, largest, 0.0), eps))
    k = tl.where(finite, k + (k & 1), 0)
    a = times_power_of_two(a, -k)
    other = tl.trans(a)
    asymmetric = 0.5 * norm(a - other) > skew_limit * norm(a)
    status = tl.where(asymmetric, ASYMMETRIC, OK)
    status = tl.where(finite, status, NONFINITE)
    a = plus_diagonal(a * 0.5 + other * 0.5, times_power_of_two(eps, -k), n)
    identity = plus_diagonal(tl.zeros_like(a), 1.0, n)
    return tl.where(status == OK, a, identity), k, status


@triton.jit
def without_negatives(
    a, first, second, third, table_ptr, n, N: tl.constexpr, PRECISION: tl.constexpr
):
    """(A + |A|)/2, not held, of a held A: see spectrum.without_rounded_negatives.

    |A| = A sign A by minimax steps for eigenvalues above n·e of the largest. ``first`` to ``third``
    are memory for one matrix each.
    """
    least = n * eps_of(tl.float32)
    c = positive_or_one(upper_bound(get(a, N), n))
    row = row_of(table_ptr, 1.0 / (least * least))
    x = put(get(a, N) / c, first)
    for step in range(steps_of(row, eps_of(tl.float32))):
        h0, h1 = tl.load(row + 4 * step), tl.load(row + 4 * step + 1)
        h2 = tl.load(row + 4 * step + 2)
        square = put(product(x, x, N, PRECISION), second)
        d = h2 * product(square, square, N, PRECISION) + h1 * get(square, N)
        d = put(plus_diagonal(d, h0, n), third)
        x = put(hermitian_part(product(x, d, N, PRECISION)), first)
    return hermitian_part(0.5 * (get(a, N) + product(a, x, N, PRECISION)))


@triton.jit
def prepared(
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
    N: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The beginning of every method: A scaled, screened and bounded.

    Returns:
        A as from screen.normalized, held in the first memory; its exponent; its status, including
        screen.definiteness; a lower and an upper bound of λ_min, 0 where A has no Cholesky factor;
        what ``measured`` returns for A.
    """
    a, k, status = normalized(load(a_ptr, matrix, n, N), n, eps, skew_limit)
    a = put(a, first)
    zero = tl.cast(0.0, a_ptr.dtype.element_ty)
    high, at_least, sum, square, low, low_at_most = zero, zero, zero, zero, zero, zero
    definite, indefinite, changed = False, False, False
    # One piece of code inverts, in stage 0, A; in stage 1, where A has no factor, A shifted by what
    # rounding may leave below zero; in stages 2 and 3 the same, after the negative eigenvalues that
    # half precision has left are removed.
    for stage in range(4 if HALF else 2):
        if (low <= 0) & ((stage < 2) | changed):
            high, at_least, sum, square = measured(get(a, N), n)
            shifted = stage % 2 == 1
            shift = tl.where(shifted, indefinite_limit * positive_or_one(high), 0.0)
            shifted_a = plus_diagonal(get(a, N), shift, n)
            inverted, factorised = inverse(shifted_a, second, n, PRECISION)
            if shifted:
                # In half precision n·u may exceed 1: such a shift would hide a negative matrix.
                indefinite = (factorised == 0) | ((sum <= 0) & (square > 0))
                if HALF:
                    if (definite | indefinite) == 0:
                        a = without_negatives(a, second, third, fourth, table_ptr, n, N, PRECISION)
                        a = put(a, first)
                        changed = True
            else:
                definite = factorised
                most, least, _, _ = measured(get(inverted, N), n)
                found = (
                    definite
                    & (most <= largest_of(most.dtype))
                    & (least <= largest_of(most.dtype))
                    & (least > 0)
                )
                low = tl.where(found, 1.0 / positive_or_one(most), 0.0)
                low_at_most = tl.where(found, 1.0 / positive_or_one(least), 0.0)
    singular = (singular_limit >= 0) & (low_at_most <= at_least * singular_limit)
    status = tl.maximum(status, tl.where(singular, SINGULAR, OK))
    status = tl.maximum(status, tl.where(indefinite & (low <= 0), INDEFINITE, OK))
    return a, k, status, low, low_at_most, high, at_least, sum, square


@triton.jit
def write_info(info_ptr, matrix, status, steps, converged):
    """Status, steps, and whether they converged: Status and Converged of matroot.screen."""
    info = info_ptr + 3 * matrix
    tl.store(info, status.to(tl.int64))
    tl.store(info + 1, tl.cast(steps, tl.int64))
    tl.store(info + 2, converged.to(tl.int64))


@triton.jit
def write_root(pointer, matrix, x, factor, k, n):
    """X · factor · 2ᵏ, Hermitian."""
    store(pointer, matrix, hermitian_part(x) * factor * power_of_two(k, factor.dtype), n)
