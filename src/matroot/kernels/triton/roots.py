"""The roots, one matrix a program: see methods/minimax.py, taylor.py, pade.py for the reference."""

from __future__ import annotations

import triton
import triton.language as tl

from matroot.kernels.triton.arithmetic import (
    ZERO_UNITS,
    eps_of,
    exponent,
    get,
    hermitian_part,
    inverse,
    is_finite,
    kernel,
    largest_of,
    load,
    max_abs,
    measured,
    memory_of,
    norm,
    plus_diagonal,
    positive_or_one,
    power_of_two,
    product,
    put,
    reciprocal,
    span,
    square_root,
    store,
    times_power_of_two,
    told,
    upper_bound,
)
from matroot.schedules import OCTAVE as GRID
from matroot.schedules import OCTAVES as RANGE
from matroot.schedules import STEPS as ROWS
from matroot.screen import Status

OK = tl.constexpr(Status.OK)
DIVERGED = tl.constexpr(Status.DIVERGED)
SINGULAR = tl.constexpr(Status.SINGULAR)
INDEFINITE = tl.constexpr(Status.INDEFINITE)
ASYMMETRIC = tl.constexpr(Status.ASYMMETRIC)
NONFINITE = tl.constexpr(Status.NONFINITE)
OCTAVE = tl.constexpr(GRID)
OCTAVES = tl.constexpr(RANGE)
STEPS = tl.constexpr(ROWS[5])


@triton.constexpr_function
def half_digits(dtype):
    """The root of the rounding unit."""
    return 2.0**-26 if dtype == tl.float64 else 2.0**-11.5


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
def row_of(table_ptr, ratio):
    """The best steps for c/λ_min: see Minimax._schedule."""
    ratio = tl.minimum(tl.maximum(ratio, 1.0), 2.0**OCTAVES)
    place = tl.ceil(tl.log2(ratio.to(tl.float32)) * OCTAVE)
    return table_ptr + place.to(tl.int32) * (STEPS * 4)


@triton.jit
def steps_of(row, tol):
    """How many of them leave no more than ``tol``."""
    errors = tl.load(row + 4 * tl.arange(0, STEPS) + 3)
    return 1 + tl.sum((errors > tol).to(tl.int32), axis=0)


@triton.jit
def without_negatives(
    a, first, second, third, table_ptr, n, N: tl.constexpr, PRECISION: tl.constexpr
):
    """(A + |A|)/2, not held, of a held A: see spectrum.without_rounded_negatives.

    |A| = A sign A by minimax steps for eigenvalues above n·e of the largest. The memory is for one
    matrix each.
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
    """What all methods begin with.

    Returns:
        A as screen.normalized makes it, held in the first memory; its exponent; its status, with
        screen.definiteness; lower and upper bound of λ_min, 0 where A has no factor; what
        ``measured`` says of A.
    """
    a, k, status = normalized(load(a_ptr, matrix, n, N), n, eps, skew_limit)
    a = put(a, first)
    zero = tl.cast(0.0, a_ptr.dtype.element_ty)
    high, at_least, sum, square, low, low_at_most = zero, zero, zero, zero, zero, zero
    definite, indefinite, changed = False, False, False
    # By one piece of code: 0, A; 1, where A has no factor, A shifted by what rounding may leave
    # below zero; 2 and 3, the same without the negative eigenvalues that half precision has left.
    for stage in range(4 if HALF else 2):
        if (low <= 0) & ((stage < 2) | changed):
            high, at_least, sum, square = measured(get(a, N), n)
            shifted = stage % 2 == 1
            shift = tl.where(shifted, indefinite_limit * positive_or_one(high), 0.0)
            shifted_a = plus_diagonal(get(a, N), shift, n)
            inverted, factorised = inverse(shifted_a, second, n, PRECISION)
            if shifted:
                # In half precision n·u may exceed 1, and a shift by it hide a negative matrix.
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


@triton.jit
def write_info(info_ptr, matrix, status, steps, converged):
    """Status, steps, whether converged."""
    info = info_ptr + 3 * matrix
    tl.store(info, status.to(tl.int64))
    tl.store(info + 1, tl.cast(steps, tl.int64))
    tl.store(info + 2, converged.to(tl.int64))


@triton.jit
def write_root(pointer, matrix, x, factor, k, n):
    """X · factor · 2ᵏ, Hermitian."""
    store(pointer, matrix, hermitian_part(x) * factor * power_of_two(k, factor.dtype), n)


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
        constants_ptr: what the gradient wants to know (gradients.Lyapunov.prepare), written if
            ``constants`` is 1: bounds of the spectrum of A^{1/2}, (b, 2), or 2: √‖A‖_F, (b,).
        info_ptr: status, steps, whether converged, (b, 3), int64.
        table_ptr: schedules(5, …).
        eps: the ridge.
        eps_high: the upper half of its bits in float64, which are wanted where A is in that.
        eps_low: the lower half.
        skew_limit: these four are Thresholds, ``singular`` below 0 for None.
        indefinite_limit: …
        singular_limit: …
        null_limit: …
        tol: see Minimax.
        max_steps: see Minimax.
        sqrt: 1 if the root is wanted, else 0.
        inv: 1 if the inverse root is wanted, else 0.
        constants: 0, 1 or 2.
        N: the power of 2, at least 16, that n is padded to.
        HALF: whether A was given in half precision.
        PRECISION: of products, as tl.dot names it.
    """
    # The scratch matrices hold, one after the other: A, D; A⁻¹, Y; A², P; Z.
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
        # The first step, with Y = A and Z = I, tells its coefficients and how many others follow.
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
                # What has no root takes no steps, which would overflow.
                needed = tl.where(status == OK, tl.minimum(wanted, max_steps), 1)
                r = 1.0 / high
            # h of P = Z Y/c takes the division by c, so that A is not rounded before its product.
            h0, h1 = tl.load(row + 4 * step), tl.load(row + 4 * step + 1) * r
            h2 = tl.load(row + 4 * step + 2) * r * r
            # H, then H − I: what a step adds gets small, and its rounding with it.
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
            # A step that is not the last leaves eigenvalues of Y up to 1 + error too large.
            left = 1.0 + tl.load(row + 4 * (needed - 1) + 3)
            bound = sum * r * left * left
            bad = grown(get(y, N) * r, get(z, N), bound, third, n, sqrt, PRECISION)
            status = tl.where(bad, DIVERGED, status)

        good = status == OK
        write_info(info_ptr, matrix, status, needed, good & (needed == wanted))
        half = k >> 1
        factor = tl.where(good, square_root(r), float("nan"))
        unit = tl.where(good, power_of_two(half, r.dtype), float("nan"))
        if constants == 1:
            null = low_at_most <= at_least * (2.0 * null_limit)
            tl.store(constants_ptr + 2 * matrix, tl.where(null, 0.0, tl.sqrt(low)) * unit)
            tl.store(constants_ptr + 2 * matrix + 1, tl.sqrt(high) * unit)
        if constants == 2:
            tl.store(constants_ptr + matrix, tl.sqrt(tl.sqrt(size)) * unit)
        for i in range(2):
            if tl.where(i == 0, sqrt, inv):
                root = tl.where(i == 0, sqrt_ptr, inv_sqrt_ptr)
                write_root(root, matrix, get(y, N), factor, tl.where(i == 0, half, -half), n)
            y = z


@triton.jit
def coefficients_at(c_ptr, k, one, square, cube, n, N: tl.constexpr, TOP: tl.constexpr):
    """c_k I + c_{k+1} Z + c_{k+2} Z², and at the top c_{k+3} Z³, not held."""
    result = tl.load(c_ptr + k + 1) * get(one, N) + tl.load(c_ptr + k + 2) * get(square, N)
    if TOP:
        result += tl.load(c_ptr + k + 3) * get(cube, N)
    return plus_diagonal(result, tl.load(c_ptr + k), n)


@triton.jit
def polynomial(
    c_ptr, blocks, one, square, cube, memory, n, N: tl.constexpr, PRECISION: tl.constexpr
):
    """Σ c_k Z^k, not held, by Paterson and Stockmeyer's scheme: Horner in Z³.

    Args:
        c_ptr: c_0 …, with zeros up to 3·blocks.
        blocks: of three coefficients; the top one takes a fourth.
        one: Z, held.
        square: Z², held.
        cube: Z³, held.
        memory: for one matrix.
        n: rows.
    """
    result = coefficients_at(c_ptr, 3 * (blocks - 1), one, square, cube, n, N, True)
    for i in range(1, blocks):
        result = product(put(result, memory), cube, N, PRECISION)
        result += coefficients_at(c_ptr, 3 * (blocks - 1 - i), one, square, cube, n, N, False)
    return result


@triton.jit
def solved(a, b, first, second, third, n, N: tl.constexpr, PRECISION: tl.constexpr):
    """A⁻¹B, not held, of held A and B: by the inverse, and a step of refinement."""
    inverted, _ = inverse(get(a, N), first, n, PRECISION)
    x = put(product(inverted, b, N, PRECISION), second)
    rest = put(get(b, N) - product(a, x, N, PRECISION), third)
    return get(x, N) + product(inverted, rest, N, PRECISION)


@kernel
def published_kernel(
    memory_ptr,
    batch,
    n,
    a_ptr,
    sqrt_ptr,
    inv_sqrt_ptr,
    constants_ptr,
    info_ptr,
    table_ptr,
    coefficients_ptr,
    eps,
    eps_high,
    eps_low,
    skew_limit,
    indefinite_limit,
    singular_limit,
    null_limit,
    blocks,
    degree,
    sqrt,
    inv,
    constants,
    N: tl.constexpr,
    HALF: tl.constexpr,
    PADE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Roots of A, (b, n, n), by the published polynomials P and Q in Z = I − A/‖A‖_F.

    Taylor: A^{1/2} ≈ √‖A‖_F P, A^{-1/2} ≈ Q/√‖A‖_F; Padé: √‖A‖_F Q⁻¹P and P⁻¹Q/√‖A‖_F.

    Args:
        memory_ptr: five matrices N×N a program, if N is above IN_REGISTERS.
        coefficients_ptr: those of P, then of Q, each with zeros up to 3·blocks.
        blocks: ⌈degree/3⌉.
        degree: of P and Q.
        constants: 0 or 2.
        PADE: whether it is Padé's.

    The other arguments are those of minimax_kernel.
    """
    # The scratch matrices hold, one after the other: A, Z, inverses; Z², quotients; Z³, what they
    # miss; P; Q.
    first = memory_of(memory_ptr, N, 5)
    second, third, fourth = first + N * N, first + 2 * N * N, first + 3 * N * N
    end, stride = span(batch, N)
    eps = told(eps, eps_high, eps_low, a_ptr.dtype.element_ty)
    for index in range(tl.program_id(0), end, stride):
        matrix = tl.cast(index, tl.int64)
        a, k, status, _, _, _, _, _, size = prepared(
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
        size = square_root(size)
        one = -get(a, N) * reciprocal(positive_or_one(size))
        one = put(plus_diagonal(one, 1.0, n), first)
        square = put(product(one, one, N, PRECISION), second)
        cube = put(product(one, square, N, PRECISION), third)
        good = status == OK
        write_info(info_ptr, matrix, status, degree, 2 * good.to(tl.int32))
        half, scale = k >> 1, square_root(size)
        if constants == 2:
            unit = tl.where(good, power_of_two(half, size.dtype), float("nan"))
            tl.store(constants_ptr + matrix, scale * unit)
        scale = tl.where(good, scale, float("nan"))
        p, q = one, one
        if PADE:
            for i in range(2):
                of_it, memory = coefficients_ptr + i * (3 * blocks + 1), fourth + i * (N * N)
                x = polynomial(of_it, blocks, one, square, cube, memory, n, N, PRECISION)
                p, q = q, put(x, memory)
        # The root, then the inverse root, by one piece of code.
        for i in range(2):
            if tl.where(i == 0, sqrt, inv):
                if PADE:
                    x = solved(q, p, first, second, third, n, N, PRECISION)
                else:
                    of_it = coefficients_ptr + i * (3 * blocks + 1)
                    x = polynomial(of_it, blocks, one, square, cube, fourth, n, N, PRECISION)
                if i == 0:
                    write_root(sqrt_ptr, matrix, x, scale, half, n)
                else:
                    write_root(inv_sqrt_ptr, matrix, x, reciprocal(scale), -half, n)
            if PADE:
                p, q = q, p
