"""The gradient by the Lyapunov equation, a matrix a program: see lyapunov.py for the reference."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from matroot.backends.triton.arithmetic import (
    LARGEST,
    exponent,
    get,
    hermitian_part,
    inverse,
    is_finite,
    largest_at_least,
    load,
    max_abs,
    norm,
    plus_diagonal,
    positive_or_one,
    product,
    put,
    store,
    times_power_of_two,
    upper_bound,
)

# log₂(−log(EPS)/4): doublings for a rate of 1.
DOUBLINGS = tl.constexpr(math.log2(23 * math.log(2) / 4))


@triton.jit
def null_projector(s, share, third, fourth, n, N: tl.constexpr, PRECISION: tl.constexpr):
    """N, held in the fourth memory, of a held S: see spd.null_projector."""
    square = put(product(s, s, N, PRECISION), third)
    ratio = norm(product(square, square, N, PRECISION)) / positive_or_one(norm(get(square, N)))
    tau = share * positive_or_one(tl.sqrt(ratio))
    v, found = inverse(plus_diagonal(get(s, N), tau, n), fourth, n, PRECISION)
    # Without a factor the projector is not known, and a plausible one must not come out.
    tau = tl.where(found, tau, float("nan"))
    v = put(plus_diagonal(-2.0 * tau * get(v, N), 1.0, n), fourth)
    for _ in range(12):
        rest = put(plus_diagonal(-0.5 * product(v, v, N, PRECISION), 1.5, n), third)
        v = put(product(v, rest, N, PRECISION), fourth)
    return put(plus_diagonal(-0.5 * get(v, N), 0.5, n), fourth)


@triton.jit
def minimum_norm(x, null, memory, N: tl.constexpr, PRECISION: tl.constexpr):
    """X − N X N, not held, of a held N."""
    left = put(product(null, put(x, memory), N, PRECISION), memory)
    return x - product(left, null, N, PRECISION)


@triton.jit
def smith(s, r, low, high, first, second, third, n, PRECISION: tl.constexpr):
    """X of S X + X S = R, not held, for a spectrum of S in [low, high].

    Smith's squaring with one shift μ = √(low·high), where lyapunov.BySmith has two: here an inverse
    is as long as several products. V = (S + μ)⁻¹, X₀ = 2μ V R V, W = I − 2μ V; X ← X + W X W,
    W ← W².

    Args:
        s: S, held in the first memory, which changes.
        r: R, not held.
        low: above 0.
        high: at least low.
        first: memory for one matrix, as ``second`` and ``third``.
        n: rows.
    """
    N: tl.constexpr = r.shape[0]
    mu = tl.sqrt(low * high)
    v, found = inverse(plus_diagonal(get(s, N), mu, n), first, n, PRECISION)
    # S + μ has no factor only where S is far from semi-definite.
    twice = 2.0 * tl.where(found, mu, float("nan"))
    left = put(product(v, put(r, second), N, PRECISION), third)
    x = put(twice * product(left, v, N, PRECISION), second)
    w = put(plus_diagonal(-twice * get(v, N), 1.0, n), first)
    # |w| ≤ (1 − t)/(1 + t) = exp(−2 artanh t), t² = low/high; |w|^(2^(q + 1)) < eps.
    t = tl.minimum(tl.sqrt(low / high), 0.9)
    rate = 0.5 * tl.log((1.0 + t) / (1.0 - t))
    doublings = tl.maximum(tl.ceil(-tl.log2(rate) + DOUBLINGS), 1.0).to(tl.int32)
    for step in range(doublings):
        left = put(product(w, x, N, PRECISION), third)
        x = put(get(x, N) + product(left, w, N, PRECISION), second)
        if step < doublings - 1:
            w = put(product(w, w, N, PRECISION), first)
    return get(x, N)


@triton.jit
def sign(b, c, steps, first, second, third, fourth, n, PRECISION: tl.constexpr):
    """Newton–Schulz steps of the matrix sign function from B and C, not held: see lyapunov.BySign.

    Five products a step, for a symmetric C: C B = (B C)ᵀ. The last step leaves B alone.
    """
    N: tl.constexpr = b.shape[0]
    b = put(b, first)
    c = put(hermitian_part(c), second)
    for step in range(steps):
        rest = put(plus_diagonal(-product(b, b, N, PRECISION), 3.0, n), third)
        bc = product(b, c, N, PRECISION)
        commutator = put(bc - tl.trans(bc), fourth)
        new = product(c, rest, N, PRECISION) - product(b, commutator, N, PRECISION)
        c = put(hermitian_part(0.5 * new), second)
        if step < steps - 1:
            b = put(0.5 * product(b, rest, N, PRECISION), first)
    return 0.5 * get(c, N)


@triton.jit
def lyapunov_kernel(
    memory_ptr,
    batch,
    n,
    s_ptr,
    z_ptr,
    constants_ptr,
    g_sqrt_ptr,
    g_inv_ptr,
    x_ptr,
    share,
    steps,
    N: tl.constexpr,
    SQRT: tl.constexpr,
    INV: tl.constexpr,
    SIGN: tl.constexpr,
    CONSTANTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """X of S X + X S = G_S − Z G_Z Z, Hermitian, (b, n, n).

    Args:
        memory_ptr: five matrices N×N a program, if N is above IN_REGISTERS.
        batch: b.
        n: rows.
        s_ptr: S = A^{1/2}.
        z_ptr: Z = A^{-1/2}, read if INV.
        constants_ptr: see gradients.Lyapunov.prepare, read if CONSTANTS: bounds of the spectrum of
            S, (b, 2), or, if SIGN, √‖A‖_F, (b,).
        g_sqrt_ptr: G_S, read if SQRT.
        g_inv_ptr: G_Z, read if INV.
        x_ptr: X.
        share: eigenvalues of S up to this share of the largest are zero.
        steps: of the matrix sign function, used if SIGN.
        N: the power of 2, at least 16, that n is padded to.
        SIGN: take steps of the matrix sign function instead of solving to rounding.
        PRECISION: of products, as tl.dot names it.
    """
    first = memory_ptr + tl.program_id(0).to(tl.int64) * (5 * N * N)
    second, third, fourth = first + N * N, first + 2 * N * N, first + 3 * N * N
    fifth = first + 4 * N * N
    for index in range(tl.program_id(0), batch, tl.num_programs(0)):
        matrix = tl.cast(index, tl.int64)
        s = load(s_ptr, matrix, n, N)
        finite = is_finite(s)
        s = tl.where(finite, s, 0.0)
        r = tl.zeros((N, N), tl.float32)
        if SQRT:
            r += hermitian_part(load(g_sqrt_ptr, matrix, n, N))
        if INV:
            z = put(load(z_ptr, matrix, n, N), third)
            g = put(hermitian_part(load(g_inv_ptr, matrix, n, N)), fourth)
            left = put(product(z, g, N, PRECISION), second)
            r -= product(left, z, N, PRECISION)
        k = exponent(max_abs(s))
        s = times_power_of_two(s, -k)

        if SIGN:
            if CONSTANTS:
                nu = times_power_of_two(tl.load(constants_ptr + matrix), -k)
            else:
                nu = norm(s)
            nu = positive_or_one(nu)
            s, r = s / nu, r / nu
            _, regular = inverse(plus_diagonal(s, -share, n), first, n, PRECISION)
            singular = regular == 0
        else:
            if CONSTANTS:
                low = times_power_of_two(tl.load(constants_ptr + 2 * matrix), -k)
                high = times_power_of_two(tl.load(constants_ptr + 2 * matrix + 1), -k)
            else:
                # See lyapunov._bounds.
                high = upper_bound(s, n)
                inverted, definite = inverse(s, first, n, PRECISION)
                most = upper_bound(get(inverted, N), n)
                least = largest_at_least(get(inverted, N))
                found = definite & (most <= LARGEST) & (least <= LARGEST) & (least > 0)
                clear = 1.0 / positive_or_one(least) > 2.0 * share * largest_at_least(s)
                low = tl.where(found & clear, 1.0 / positive_or_one(most), 0.0)
            high = positive_or_one(high)
            singular = low <= 0

        # Where S may be singular: the projector on its null space, and R without that block.
        # What rounding leaves on null × null space is divided by next to 0, so again afterwards.
        s = put(s, first)
        if singular:
            null = null_projector(s, share, third, fourth, n, N, PRECISION)
            r = minimum_norm(r, null, third, N, PRECISION)
            if SIGN:
                # The steps give R/(2 s_i) on range × null space, where R/s_i is wanted.
                held = put(r, third)
                r += product(null, held, N, PRECISION) + product(held, null, N, PRECISION)
        else:
            null = put(tl.zeros((N, N), tl.float32), fourth)
        if SIGN:
            x = sign(get(s, N), r, steps, first, second, third, fifth, n, PRECISION)
        else:
            # See lyapunov.BySmith._regular.
            least = share / tl.sqrt(n * 1.0)
            low = tl.where(singular, share, tl.maximum(low / high, least)) * high
            x = smith(s, r, tl.minimum(low, high), high, first, second, third, n, PRECISION)
        if singular:
            x = minimum_norm(x, null, third, N, PRECISION)
        x = times_power_of_two(hermitian_part(x), -k)
        store(x_ptr, matrix, tl.where(finite, x, float("nan")), n)
