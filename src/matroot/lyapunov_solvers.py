"""Ways to solve the Lyapunov equation S X + X S = R for a batch: see lyapunov.py."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from matroot import context, spd, spectrum


@dataclass(frozen=True)
class Solver(ABC):
    """One way to solve S X + X S = R: a frozen dataclass of options and one function.

    Args:
        regular: whether S is known to be regular, so that no eigenvalue is null.
    """

    regular: bool = field(default=False, kw_only=True)

    @abstractmethod
    def solve(self, s: Tensor, r: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        """X, shape (b, n, n).

        Where S is singular the block of X on null × null space is 0 (minimum norm).

        Args:
            s: Hermitian positive semi-definite, shape (b, n, n); a NaN matrix gives a NaN X.
            r: any square matrices, shape (b, n, n).
            constants: what the solver was prepared with, batch first; never differentiated.
        """


@dataclass(frozen=True)
class BySpectrum(Solver):
    """X = Q [(Qᴴ R Q) / (s_i + s_j)] Qᴴ from ``constants = (s, Q)``, the eigenpairs of S.

    Args:
        of_rounded_matrix: see BySmith.
    """

    of_rounded_matrix: bool = True

    def solve(self, s: Tensor, r: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        """See Solver.solve. Four products."""
        roots, q = constants
        share = 0.0 if self.regular else null_share(s, self.of_rounded_matrix)
        return _divided(roots, q, r, share)


def _divided(roots: Tensor, q: Tensor, r: Tensor, share: float) -> Tensor:
    """X = Q [(Qᴴ R Q) / (s_i + s_j)] Qᴴ, 0 where both are up to ``share`` of the largest."""
    rotated = torch.bmm(torch.bmm(q.mH, r), q)
    null = roots <= share * roots.amax(-1, keepdim=True)
    both = null[:, :, None] & null[:, None, :]
    sums = torch.where(both, 1.0, roots[:, :, None] + roots[:, None, :])
    x = torch.where(both, 0.0, rotated / sums)
    return torch.bmm(torch.bmm(q, x), q.mH)


def _by_eigenvalues(s: Tensor, r: Tensor, share: float) -> Tensor:
    """X from the eigenpairs of S, in double precision and rounded once."""
    values, q = spectrum.eigh(spd.in_double(s))
    return _divided(values.clamp(min=0), q, spd.in_double(r), share).to(r.dtype)


@dataclass(frozen=True)
class BySign(Solver):
    """The matrix sign function of [[S, R], [0, −S]] by Newton–Schulz steps, as in the paper.

    B₀ = S/ν, C₀ = R/ν;  B ← ½ B (3I − B²),  C ← ½ (C (3I − B²) − B² C + B C B);  X ≈ C/2.

    ν is ``constants = (√‖A‖_F,)`` of the A that S is a root of, as published, else ‖S‖_F. It
    converges where B reaches I: after 8 steps, for eigenvalues of S above some 0.1 ν. (A Padé
    approximant of order 5 has none below ν/11.)
    """

    steps: int = 8

    def solve(self, s: Tensor, r: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        """See Solver.solve. Six products a step."""
        k = spd.exponent(s)
        s = spd.times_power_of_two(s, -k)
        if constants:
            norm = spd.times_power_of_two(constants[0][:, None, None], -k)
            norm = spd.positive_or_one(norm)
        else:
            norm = spd.norm_or_one(s)
        b, c = s / norm, r / norm
        share = null_share(s, of_rounded_matrix=True)
        singular = ~spd.factorises(b - share * spd.identity_like(s))
        null = None if self.regular else _null_space(b, singular, share)
        c = spd.minimum_norm(c, null)
        if null is not None:
            # The steps give R/(2 s_i) on range × null space, where the solution is R/s_i.
            c = c + torch.bmm(null, c) + torch.bmm(c, null)
        for _ in range(self.steps):
            b, c = sign_step(b, c)
        return spd.times_power_of_two(spd.minimum_norm(c * 0.5, null), -k)


def sign_step(b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One Newton–Schulz step of the sign iteration: (B, C) to the next (B, C)."""
    rest = 3.0 * spd.identity_like(b) - torch.bmm(b, b)
    bc = torch.bmm(b, c)
    # −B² C + B C B = −B (BC − CB)
    commutator = torch.baddbmm(bc, c, b, alpha=-1.0)
    c = torch.baddbmm(torch.bmm(b, commutator), c, rest, beta=-0.5, alpha=0.5)
    return torch.bmm(b, rest) * 0.5, c


@dataclass(frozen=True)
class BySmith(Solver):
    """Two shifts of the alternating-direction iteration, then Smith's squaring of both together.

    With V_i = (S + μ_i)⁻¹ and the function w(s) = Π (s − μ_i)/(s + μ_i) = 1 + Σ r_i/(s + μ_i),

        X₀ = Σ_ij r_i r_j/(μ_i + μ_j) V_i R V_j,  W = w(S) = I + Σ r_i V_i;
        X ← X + W X W,  W ← W².

    On eigenvalues X_k solves the equation up to the factor 1 − (w(s_i) w(s_j))^{2^k}. The shifts
    that make |w| smallest on [s_min, s_max] (Wachspress 1963) are known in closed form for two:
    μ₁ μ₂ = s_min s_max and μ₁ + μ₂ = √(2 (s_min + s_max) √(s_min s_max)). The number of doublings
    is found for each matrix: 2 to 4 in float32, 3 to 5 in float64 up to a condition number of A of
    1e6.

    ``constants = (bounds,)``, shape (b, 2), are bounds of the spectrum of S, the lower one 0 where
    S may be singular; without them they are found by a Cholesky factorisation.

    Args:
        of_rounded_matrix: whether S is the root of a matrix known to rounding, so that its own
            eigenvalues are known to the square root of rounding only.
    """

    of_rounded_matrix: bool = True

    def solve(self, s: Tensor, r: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
        """See Solver.solve. Six products, three a further doubling, two Cholesky inverses.

        The null space of a given S is known only to the rounding of S, where a factorisation shows
        little.
        Where values can be looked at, those that may be singular are solved by their eigenvalues.
        Elsewhere all are: on a CPU by eigenvalues, on an accelerator, where an eigendecomposition
        would wait for the device, by products in double precision.
        """
        k = spd.exponent(s)
        s = spd.times_power_of_two(s, -k)
        share = null_share(s, self.of_rounded_matrix)
        free = context.host_reads_are_free(s)
        if free or self.of_rounded_matrix or s.device.type == "mps":
            x = self._solved(s, r, constants, k, share, free)
        elif not context.on_accelerator(s):
            finite = spd.max_abs(s).isfinite()[:, None, None]
            safe = torch.where(finite, s, spd.identity_like(s))
            exact = _by_eigenvalues(safe, r, 0.0 if self.regular else share)
            x = torch.where(finite, exact, torch.nan)
        else:
            wide = self._solved(spd.in_double(s), spd.in_double(r), constants, k, share, free)
            x = wide.to(r.dtype)
        return spd.times_power_of_two(x, -k)

    def _solved(
        self,
        s: Tensor,
        r: Tensor,
        constants: tuple[Tensor, ...],
        k: Tensor,
        share: float,
        free: bool,
    ) -> Tensor:
        """X for S/2ᵏ; the constants are those of S."""
        if constants:
            found = spd.times_power_of_two(constants[0][:, :, None].to(spd.real_dtype(s.dtype)), -k)
            low, high = found[:, :1], found[:, 1:]
        else:
            low, high = _bounds(s, share)
        high = spd.positive_or_one(high)
        singular = (low == 0).flatten()
        if not free:
            # Before and after: what rounding leaves on null × null space is divided by nearly 0.
            null = None if self.regular else _null_space(s, singular, share)
            x = self._regular(s, spd.minimum_norm(r, null), low, high, share)
            return spd.minimum_norm(x, null)
        x = self._regular(s, r, low, high, share)
        finite = spd.max_abs(s).isfinite()
        which = singular & finite
        for index in spectrum.together(which, s.shape[-1]):
            safe = torch.where(finite[index][:, None, None], s[index], spd.identity_like(s))
            exact = _by_eigenvalues(safe, r[index], 0.0 if self.regular else share)
            x[index] = torch.where(which[index][:, None, None], exact, x[index])
        return x

    def _regular(self, s: Tensor, r: Tensor, low: Tensor, high: Tensor, share: float) -> Tensor:
        """The iteration; low is 0 for a singular S, whose range begins above the share."""
        # A bound may exceed s_max √n times, so that a regular matrix may come close to that part of
        # the share. And the closer the shifts are, the larger are r_1 and r_2, which cancel.
        least = share / s.shape[-1] ** 0.5
        low = torch.where(low == 0, share * high, torch.maximum(low, least * high))
        low = torch.minimum(low, high / 8)
        x, w = _two_shifts(s, r, low, high)
        # A NaN matrix gives a NaN X whatever is done.
        needed = _doublings(s.dtype, low / high).flatten().nan_to_num(1.0)
        if context.host_reads_are_free(s):
            always, most = int(needed.min()), int(needed.max())
        else:
            n = s.shape[-1]
            if torch.compiler.is_compiling():
                # One program for many n: nine times as many cost half a doubling.
                n = 100 if n <= 100 else 1000 if n <= 1000 else 10**6
            always, most = 1, _most_doublings(s.dtype, n, self.of_rounded_matrix)
        for step in range(most):
            new_x = torch.baddbmm(x, torch.bmm(w, x), w)
            # Converged matrices stay fixed: what others need makes no difference to them.
            x = new_x if step < always else torch.where((needed > step)[:, None, None], new_x, x)
            if step < most - 1:
                w = torch.bmm(w, w)
        return x


def null_share(s: Tensor, of_rounded_matrix: bool) -> float:
    """Eigenvalues of S up to this share of the largest are zero to rounding.

    An eigenvalue s of S = A^{1/2} is the root of one of A, so the unit of rounding is that of s²;
    the eigenvalues of a given S are themselves known to rounding.
    """
    share = spd.null_share(s.shape[-1], s.dtype)
    return math.sqrt(share) if of_rounded_matrix else share


def _two_shifts(s: Tensor, r: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """X₀ and W of BySmith, four products, for the spectrum of S in [low, high], (b, 1, 1)."""
    geometric, arithmetic = (low * high).sqrt(), (low + high) / 2
    first = (geometric * arithmetic).sqrt() + (geometric * (arithmetic - geometric)).sqrt()
    second = geometric.square() / first
    identity = spd.identity_like(s)
    v_first, _ = spd.inverse_by_cholesky(s + first * identity)
    # S + μ has no factor only where S is far from semi-definite.
    v_second, found = spd.inverse_by_cholesky(s + second * identity)
    v_second = torch.where(found[:, None, None], v_second, torch.nan)
    ratio = (first + second) / (first - second)
    r_first, r_second = -2 * first * ratio, 2 * second * ratio
    both = r_first * r_second / (first + second)
    x = torch.bmm(torch.bmm(v_first, r), r_first.square() / (2 * first) * v_first + both * v_second)
    x = torch.baddbmm(
        x,
        torch.bmm(v_second, r),
        both * v_first + r_second.square() / (2 * second) * v_second,
    )
    return x, spd.add_to_diagonal_(r_first * v_first + r_second * v_second, 1.0)


def _doublings(dtype: torch.dtype, ratio: Tensor) -> Tensor:
    """Doublings q that leave |w|^{2^{q+1}} < eps for ρ = s_min/s_max.

    |w| ≤ (1 − t)/(1 + t) = exp(−2 artanh t) with t² = 2√ρ/(1 + ρ).
    """
    rate = (2 * ratio.sqrt() / (1 + ratio)).sqrt().atanh()
    return (-math.log(spd.real_eps(dtype)) / (4 * rate)).log2().ceil().clamp(min=1)


def _most_doublings(dtype: torch.dtype, n: int, of_rounded_matrix: bool) -> int:
    """What no n×n matrix needs more than: see BySmith._regular."""
    s = torch.empty(n, n, dtype=dtype, device="meta")
    least = null_share(s, of_rounded_matrix) / n**0.5
    rate = math.atanh(math.sqrt(2 * math.sqrt(least) / (1 + least)))
    return max(1, math.ceil(math.log2(-math.log(spd.real_eps(dtype)) / (4 * rate))))


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
_most_doublings._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _bounds(s: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Bounds of the spectrum of S, shape (b, 1, 1), the lower one 0 where S may be singular.

    It may be where s_min is not clearly above ``share`` of s_max, or above what rounding makes of
    the pivots of a singular matrix: some √n units, which pass for a regular one's.
    """
    found = spd.bounds(s)
    share = max(2 * share, (s.shape[-1] + 16) * spd.real_eps(s.dtype))
    singular = found.low_at_most <= share * spd.largest_at_least(s).flatten()
    low = torch.where(singular, 0.0, found.low)
    return low[:, None, None], found.high[:, None, None]


def _null_space(s: Tensor, singular: Tensor, share: float) -> Tensor | None:
    """The projector N on the null space of matrices that may be singular, 0 for the others.

    None where it is known without a device synchronisation that there are none.

    Args:
        s: the matrix S, scaled, shape (b, n, n).
        singular: which matrices may be singular, shape (b,).
        share: eigenvalues up to this share of the largest are zero.
    """
    if context.host_reads_are_free(s) and not singular.any():
        return None
    return torch.where(singular[:, None, None], spd.null_projector(s, share), 0.0)
