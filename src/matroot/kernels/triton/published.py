"""Roots by the published polynomials, one matrix a program: see methods/taylor.py and pade.py."""

from __future__ import annotations

import triton
import triton.language as tl

from matroot.kernels.triton import launch
from matroot.kernels.triton.arithmetic import (
    get,
    inverse,
    kernel,
    memory_of,
    plus_diagonal,
    positive_or_one,
    power_of_two,
    product,
    put,
    reciprocal,
    span,
    square_root,
    told,
)
from matroot.kernels.triton.screen import OK, prepared, write_info, write_root
from matroot.screen import Converged

NORM = tl.constexpr(launch.NORM)
UNKNOWN = tl.constexpr(Converged.UNKNOWN)


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
        blocks: how many blocks of three coefficients; the top one has a fourth.
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
    """A⁻¹B, not held, of held A and B: by the inverse and a step of iterative refinement."""
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
        constants: NOTHING or NORM: see launch.py.
        PADE: whether it is Padé's.

    The other arguments are those of minimax_kernel.
    """
    # In turn, the scratch matrices hold: A, Z and inverses; Z² and quotients; Z³ and residuals; P;
    # Q.
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
        write_info(info_ptr, matrix, status, degree, good.to(tl.int32) * UNKNOWN)
        half, scale = k >> 1, square_root(size)
        if constants == NORM:
            unit = tl.where(good, power_of_two(half, size.dtype), float("nan"))
            tl.store(constants_ptr + matrix, scale * unit)
        scale = tl.where(good, scale, float("nan"))
        p, q = one, one
        if PADE:
            for i in range(2):
                of_it, memory = coefficients_ptr + i * (3 * blocks + 1), fourth + i * (N * N)
                x = polynomial(of_it, blocks, one, square, cube, memory, n, N, PRECISION)
                p, q = q, put(x, memory)
        # The root, then the inverse root, by the same code.
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
