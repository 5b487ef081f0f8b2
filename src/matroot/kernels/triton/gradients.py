"""The gradient by the Lyapunov equation, one matrix a program: see lyapunov_solvers.py."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from matroot.kernels.triton.arithmetic import (
    IN_REGISTERS,
    exponent,
    get,
    hermitian_part,
    inverse,
    kernel,
    largest_of,
    load,
    max_abs,
    measured,
    memory_of,
    norm,
    plus_diagonal,
    positive_or_one,
    product,
    put,
    reciprocal,
    span,
    store,
    times_power_of_two,
)

# The stages of lyapunov_kernel.
RIGHT_SIDE = tl.constexpr(0)
NULL_SPACE = tl.constexpr(1)
SOLUTION = tl.constexpr(2)
LEFT_OVER = tl.constexpr(3)
STAGES = tl.constexpr(4)

# log₂(−log(eps)/4): doublings for a rate of 1.
DOUBLINGS = tl.constexpr(math.log2(23 * math.log(2) / 4))
DOUBLINGS_IN_DOUBLE = tl.constexpr(math.log2(52 * math.log(2) / 4))


@triton.jit
def scaled_root(s_ptr, matrix, finite, k, unit, n, N: tl.constexpr):
    """S · unit/2ᵏ, not held; 0 if it is not finite."""
    s = tl.where(finite, load(s_ptr, matrix, n, N), 0.0)
    return times_power_of_two(s, -k) * unit


@triton.jit
def null_shift(s, share, memory, N: tl.constexpr, PRECISION: tl.constexpr):
    """τ, the share of the largest eigenvalue of a held S: see spd.null_projector."""
    one = tl.cast(1.0, share.dtype)
    power, size, before = s, one, one
    for _ in range(2):
        power, before = put(product(power, power, N, PRECISION), memory), size
        size = norm(get(power, N))
    return share * positive_or_one(tl.sqrt(size / positive_or_one(before)))


@triton.jit
def null_projector(v, found, tau, second, fourth, n, N: tl.constexpr, PRECISION: tl.constexpr):
    """N, not held, of V = (S + τ)⁻¹, held in the second memory: see spd.null_projector."""
    # Without a factor the projector is unknown: NaN, not a plausible wrong one.
    tau = tl.where(found, tau, float("nan"))
    v = put(plus_diagonal(-tau * get(v, N), 0.5, n), second)
    for _ in range(14):
        rest = put(plus_diagonal(-0.5 * product(v, v, N, PRECISION), 1.5, n), fourth)
        v = put(product(v, rest, N, PRECISION), second)
    return plus_diagonal(-0.5 * get(v, N), 0.5, n)


@triton.jit
def smith(
    v, found, mu, x, low, high, second, third, fourth, n, N: tl.constexpr, PRECISION: tl.constexpr
):
    """X of S X + X S = R, held in the third memory, for a spectrum of S in [low, high].

    Smith's squaring with one shift μ = √(low·high), where lyapunov_solvers.BySmith has two: here an
    inverse takes as long as several products. V = (S + μ)⁻¹, X₀ = 2μ V R V, W = I − 2μ V;
    X ← X + W X W, W ← W².

    Args:
        v: V, held in the second memory.
        found: whether S + μ has a Cholesky factor.
        mu: μ.
        x: R, held in the third memory.
        low: above 0.
        high: at least low.
        fourth: memory for one matrix.
        n: rows.
    """
    # S + μ has no factor only where S is far from semi-definite.
    p, twice = v, 2.0 * tl.where(found, mu, float("nan"))
    # |w| ≤ (1 − t)/(1 + t) = exp(−2 artanh t), t² = low/high; |w|^(2^(q + 1)) < eps.
    t = tl.minimum(tl.sqrt(low / high), 0.9).to(tl.float32)
    rate = 0.5 * tl.log((1.0 + t) / (1.0 - t))
    always = DOUBLINGS_IN_DOUBLE if mu.dtype == tl.float64 else DOUBLINGS
    doublings = tl.maximum(tl.ceil(-tl.log2(rate) + always), 1.0).to(tl.int32)
    # X ← keep X + add P X P, first with V, then with W.
    one = tl.cast(1.0, mu.dtype)
    keep, add = tl.cast(0.0, mu.dtype), twice
    for step in range(doublings + 1):
        left = put(product(p, x, N, PRECISION), fourth)
        x = put(keep * get(x, N) + add * product(left, p, N, PRECISION), third)
        keep, add = one, one
        if step == 0:
            p = put(plus_diagonal(-twice * get(p, N), 1.0, n), second)
        elif step < doublings:
            p = put(product(p, p, N, PRECISION), second)
    return x


@triton.jit
def sign(b, c, steps, first, second, third, fourth, n, N: tl.constexpr, PRECISION: tl.constexpr):
    """Newton–Schulz steps of the matrix sign function from B and C: see lyapunov_solvers.BySign.

    Five products a step, for a symmetric C: C B = (B C)ᵀ. The last step does not update B.

    Args:
        b: B, held in the first memory.
        c: C, held in the third memory, in which X is returned.
        steps: how many.
        first: memory for one matrix, as are the next three.
        n: rows.
    """
    c = put(hermitian_part(get(c, N)), third)
    for step in range(steps):
        bc = product(b, c, N, PRECISION)
        commutator = put(bc - tl.trans(bc), fourth)
        taken = put(product(b, commutator, N, PRECISION), fourth)
        rest = put(plus_diagonal(-product(b, b, N, PRECISION), 3.0, n), second)
        new = product(c, rest, N, PRECISION) - get(taken, N)
        c = put(hermitian_part(0.5 * new), third)
        if step < steps - 1:
            b = put(0.5 * product(b, rest, N, PRECISION), first)
    return put(0.5 * get(c, N), third)


@kernel
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
    sqrt,
    inv,
    regular,
    known,
    N: tl.constexpr,
    SIGN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """X of S X + X S = G_S − Z G_Z Z, Hermitian, (b, n, n).

    Args:
        memory_ptr: four matrices N×N a program, if N is above IN_REGISTERS.
        batch: b.
        n: rows.
        s_ptr: S = A^{1/2}.
        z_ptr: Z = A^{-1/2}, read if ``inv`` is 1.
        constants_ptr: see gradients.Lyapunov.prepare, read if ``known``: bounds of the spectrum of
            S, (b, 2), or, if SIGN, √‖A‖_F, (b,).
        g_sqrt_ptr: G_S, read if ``sqrt``.
        g_inv_ptr: G_Z, read if ``inv`` is 1.
        x_ptr: X.
        share: eigenvalues of S up to this share of the largest are zero.
        steps: of the matrix sign function, used if SIGN.
        sqrt: 1 if there is G_S, else 0.
        inv: 1 if there is G_Z, else 0.
        regular: 1 if A is known to be regular, as it is where there is G_Z, else 0.
        known: 1 if there are constants, else 0.
        N: the power of 2, at least 16, that n is padded to.
        SIGN: take steps of the matrix sign function instead of solving to rounding.
        PRECISION: of products, as tl.dot names it.
    """
    # The scratch matrices hold: S; P of products P X P; R and X; intermediate results.
    first = memory_of(memory_ptr, N, 4)
    second, third, fourth = first + N * N, first + 2 * N * N, first + 3 * N * N
    end, stride = span(batch, N)
    zero = tl.cast(0.0, s_ptr.dtype.element_ty)
    share = tl.cast(share, zero.dtype)
    for index in range(tl.program_id(0), end, stride):
        matrix = tl.cast(index, tl.int64)
        s = load(s_ptr, matrix, n, N)
        largest = max_abs(s)
        finite = largest <= largest_of(largest.dtype)
        k = exponent(tl.where(finite, largest, 0.0))
        unit = 1.0
        if SIGN:
            if known:
                nu = times_power_of_two(tl.load(constants_ptr + matrix), -k)
            else:
                nu = norm(scaled_root(s_ptr, matrix, finite, k, 1.0, n, N))
            unit = reciprocal(positive_or_one(nu))
        s = put(scaled_root(s_ptr, matrix, finite, k, unit, n, N), first)

        # The stages share one piece of code for X − P X P and one for an inverse.
        # RIGHT_SIDE: R = G_S − Z G_Z Z; (S − share)⁻¹ or S⁻¹ shows whether S may be singular.
        # NULL_SPACE: where it may, (S + τ)⁻¹ gives the projector N on its null space.
        # SOLUTION: there R becomes R − N R N; (S + μ)⁻¹ or steps solve the equation.
        # LEFT_OVER: there X becomes X − N X N, without what rounding has left on null × null space,
        # where it was divided by nearly 0.
        x = put(tl.zeros((N, N), zero.dtype), third)
        if inv == 1:
            x = put(unit * hermitian_part(load(g_inv_ptr, matrix, n, N)), third)
        wanted, low, high = inv == 1, zero, zero + 1.0
        for stage in range(STAGES):
            if wanted & (stage != NULL_SPACE):
                # N is kept where the result will be written.
                p = load(tl.where(stage > RIGHT_SIDE, x_ptr, z_ptr), matrix, n, N)
                p = put(p, second)
                left = put(product(p, x, N, PRECISION), fourth)
                taken = product(left, p, N, PRECISION)
                rest = tl.where(stage == RIGHT_SIDE, 0.0, get(x, N)) - taken
                if SIGN:
                    if stage == SOLUTION:
                        # The steps give R/(2 s_i) on range × null space, where X is R/s_i:
                        # R ← R + N R + R N.
                        rest += 2.0 * (hermitian_part(get(left, N)) - taken)
                x = put(rest, third)
            if N <= IN_REGISTERS:
                # Loaded again, S takes no registers in between.
                s = scaled_root(s_ptr, matrix, finite, k, unit, n, N)
            needed, shift = False, zero
            if stage == RIGHT_SIDE:
                if sqrt:
                    g = unit * hermitian_part(load(g_sqrt_ptr, matrix, n, N))
                    x = put(get(x, N) + g, third)
                # The forward pass has decided that a matrix with an inverse root is regular.
                wanted = regular == 0
                if SIGN:
                    needed, shift = wanted, -share
                else:
                    needed = known == 0
            elif stage == NULL_SPACE:
                needed = wanted
                if needed:
                    shift = null_shift(s, share, fourth, N, PRECISION)
            elif stage == SOLUTION:
                if not SIGN:
                    # See lyapunov_solvers.BySmith._regular.
                    least = share / tl.sqrt(n * 1.0)
                    low = tl.where(low <= 0, share, tl.maximum(low / high, least)) * high
                    low = tl.minimum(low, high)
                    needed, shift = True, tl.sqrt(low * high)
            if needed:
                shifted = plus_diagonal(get(s, N), shift, n)
                v, found = inverse(shifted, second, n, PRECISION)
                if stage == RIGHT_SIDE:
                    if SIGN:
                        wanted = found == 0
                    else:
                        # See lyapunov_solvers._bounds.
                        high, at_least, _, _ = measured(get(s, N), n)
                        most, least, _, _ = measured(get(v, N), n)
                        found = (
                            found
                            & (most <= largest_of(most.dtype))
                            & (least <= largest_of(most.dtype))
                            & (least > 0)
                        )
                        clear = 1.0 / positive_or_one(least) > 2.0 * share * at_least
                        low = tl.where(found & clear, 1.0 / positive_or_one(most), 0.0)
                elif stage == NULL_SPACE:
                    null = null_projector(v, found, shift, second, fourth, n, N, PRECISION)
                    store(x_ptr, matrix, null, n)
                    tl.debug_barrier()
                else:
                    if not SIGN:
                        x = smith(
                            v, found, shift, x, low, high, second, third, fourth, n, N, PRECISION
                        )
            if SIGN:
                if stage == SOLUTION:
                    if N <= IN_REGISTERS:
                        s = scaled_root(s_ptr, matrix, finite, k, unit, n, N)
                    x = sign(s, x, steps, first, second, third, fourth, n, N, PRECISION)
            else:
                if stage == RIGHT_SIDE:
                    if known:
                        low = times_power_of_two(tl.load(constants_ptr + 2 * matrix), -k)
                        high = times_power_of_two(tl.load(constants_ptr + 2 * matrix + 1), -k)
                    high = positive_or_one(high)
                    wanted = wanted & (low <= 0)
        x = times_power_of_two(hermitian_part(get(x, N)), -k)
        store(x_ptr, matrix, tl.where(finite, x, float("nan")), n)
