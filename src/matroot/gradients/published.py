"""Published gradients of the SVD root, for comparison only: each stands in for 1/(λ_i − λ_j).

The textbook derivative of A = Q diag(λ) Qᴴ gives for f(A) = Q diag(f(λ)) Qᴴ

    dF = Q [Φ ∘ (Qᴴ dA Q)] Qᴴ,    Φ_ii = f'(λ_i),    Φ_ij = (f(λ_i) − f(λ_j)) K_ij,    i ≠ j

with K_ij = 1/(λ_i − λ_j), which breaks down where eigenvalues meet. The published remedies change
K. With f the (inverse) root Φ needs no difference at all: the rule Spectral is exact. First order
only: their own derivative was never defined.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from matroot import autodiff, checks, spd
from matroot.functions import Sqrt
from matroot.gradients.rule import Cotangents, ExplicitRule, Kept
from matroot.solution import Solution


class PublishedRule(ExplicitRule):
    """A stand-in for 1/(λ_i − λ_j), applied to the root and the inverse root alike."""

    max_derivative: ClassVar[int | None] = 1
    needs_eigenpairs = True

    @abstractmethod
    def off_diagonal(
        self, large: Tensor, small: Tensor, f_large: Tensor, f_small: Tensor
    ) -> Tensor:
        """Φ_ij from λ_i ≥ λ_j > 0 and f at both, each (b, n, n); its diagonal is not used."""

    def weights(self, eigenvalues: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        """Φ, shape (b, n, n), from λ, f(λ) and f'(λ), each (b, n)."""
        row, column = eigenvalues[:, :, None], eigenvalues[:, None, :]
        f_row, f_column = values[:, :, None], values[:, None, :]
        ordered = row >= column
        phi = self.off_diagonal(
            torch.where(ordered, row, column),
            torch.where(ordered, column, row),
            torch.where(ordered, f_row, f_column),
            torch.where(ordered, f_column, f_row),
        )
        diagonal = torch.eye(values.shape[-1], dtype=torch.bool, device=values.device)
        return torch.where(diagonal, slopes[:, :, None], phi)

    def prepare(self, a: Tensor, solution: Solution, scale: Tensor) -> tuple[Tensor, ...]:
        """Q, and Φ of each root asked for."""
        assert solution.spectrum is not None
        # The published code raises eigenvalues to the rounding unit before it differentiates.
        # Here the unit is relative to the largest, so that the result does not depend on the scale.
        values = solution.spectrum.values
        largest = values.amax(-1, keepdim=True)
        floor = spd.real_eps(largest.dtype) * largest
        eigenvalues = torch.maximum(values, floor)
        roots = eigenvalues.sqrt()
        scale = scale[:, None, None]
        constants = [solution.spectrum.vectors]
        for function in solution.functions:
            if type(function) is Sqrt:
                constants.append(self.weights(eigenvalues, roots, 0.5 / roots) / scale)
            else:
                weights = self.weights(eigenvalues, 1 / roots, -0.5 / (roots * eigenvalues))
                constants.append(weights / scale / scale / scale)
        return tuple(constants)

    def vjp(self, kept: Kept, g: Cotangents) -> Tensor:
        """The gradient by A: Q [Φ ∘ (Qᴴ G Q)] Qᴴ, summed over the roots asked for."""
        q, *weights = kept.constants
        terms = [_weighted(q, phi, x) for phi, x in zip(weights, g, strict=True) if x is not None]
        return sum(terms[1:], terms[0])

    def jvp(self, kept: Kept, e: Tensor) -> tuple[Tensor, ...]:
        """Q [Φ ∘ (Qᴴ E Q)] Qᴴ for each root asked for."""
        q, *weights = kept.constants
        return tuple(_weighted(q, phi, e) for phi in weights)


def _weighted(q: Tensor, weights: Tensor, g: Tensor) -> Tensor:
    """Q [Φ ∘ (Qᴴ G Q)] Qᴴ for the Hermitian part of G, once differentiable in G alone."""
    refuse = autodiff.traceable(_FirstOrderOnly, _ForwardFirstOrderOnly)
    x = q @ (weights * (q.mH @ spd.hermitian_part(g) @ q)) @ q.mH
    result: Tensor = refuse.apply(spd.hermitian_part(x))
    return result


@dataclass(frozen=True)
class SpectralNaive(PublishedRule):
    """K = 1/(λ_i − λ_j) as it stands: infinite or NaN at repeated eigenvalues."""

    summary = "1/(λ_i − λ_j) as it stands (comparison only)"

    def off_diagonal(
        self, large: Tensor, small: Tensor, f_large: Tensor, f_small: Tensor
    ) -> Tensor:
        """(f(λ_i) − f(λ_j))/(λ_i − λ_j) as it stands."""
        return (f_large - f_small) / (large - small)


@dataclass(frozen=True)
class SpectralClipped(PublishedRule):
    """K = min(1/(λ_i − λ_j), limit/λ_max): 0 instead of f' at exact ties.

    Args:
        limit: the largest K, in units of 1/λ_max (the literature clips absolute numbers).
    """

    limit: float = 1e4
    summary = "1/(λ_i − λ_j) clipped (comparison only)"

    def __post_init__(self) -> None:
        checks.positive(self, "limit")

    def off_diagonal(
        self, large: Tensor, small: Tensor, f_large: Tensor, f_small: Tensor
    ) -> Tensor:
        """(f(λ_i) − f(λ_j)) K with K at most limit/λ_max."""
        largest = large.amax((-2, -1), keepdim=True)
        return (f_large - f_small) * torch.minimum(1 / (large - small), self.limit / largest)


@dataclass(frozen=True)
class SpectralTaylor(PublishedRule):
    """K = (1/λ_i) Σ_{k<terms} (λ_j/λ_i)^k, λ_i ≥ λ_j (Wang, Dang, Hu, Fua, Salzmann, 2021).

    Args:
        terms: number of terms of the geometric series, at least 1.
    """

    terms: int = 100
    summary = "geometric series for 1/(λ_i − λ_j) (comparison only)"

    def __post_init__(self) -> None:
        checks.count(self, "terms", least=1)

    def off_diagonal(
        self, large: Tensor, small: Tensor, f_large: Tensor, f_small: Tensor
    ) -> Tensor:
        """(f(λ_i) − f(λ_j)) K with K the sum of the first ``terms`` terms."""
        return (f_large - f_small) * geometric_sum(large, small, self.terms)


@dataclass(frozen=True)
class SpectralPade(PublishedRule):
    """K = (1/λ_i) p(x)/q(x), x = λ_j/λ_i, p/q the [m/m] Padé approximant of 1/(1 − x).

    From Song, Sebe and Wang (ICCV 2021). The system for q has rank one, since 1/(1 − x) is rational
    itself, so published coefficients are rounding errors of a solver. Taken here is the solution of
    least norm, q_k = −1/m and p_k = 1 − k/m. Either way p/q = 1/(1 − x) in exact arithmetic, with a
    pole at ties; q is kept at or above the rounding unit, so that K is finite and Φ is 0 there.

    Args:
        order: order m of the numerator and the denominator, at least 1.
    """

    order: int = 50
    summary = "Padé approximant of 1/(1 − x) (comparison only)"

    def __post_init__(self) -> None:
        checks.count(self, "order", least=1)

    def off_diagonal(
        self, large: Tensor, small: Tensor, f_large: Tensor, f_small: Tensor
    ) -> Tensor:
        """(f(λ_i) − f(λ_j)) K with K the Padé approximant over λ_i."""
        x, m = small / large, self.order
        p, q = torch.zeros_like(x), torch.full_like(x, -1 / m)
        for k in range(m - 1, 0, -1):
            p, q = p * x + (1 - k / m), q * x - 1 / m
        p, q = p * x + 1, q * x + 1
        return (f_large - f_small) * p / q.clamp(min=spd.real_eps(q.dtype)) / large


@dataclass(frozen=True)
class PowerIteration(PublishedRule):
    """The gradient of power iteration with deflation (Wang, Dang, Hu, Fua, Salzmann, 2019).

    Each eigenvector is taken as ``steps`` power iterations, started at itself, of the matrix from
    which larger eigenpairs λ v vᵀ have been subtracted; differentiating that loop gives, λ_i ≥ λ_j,

        Φ_ij = f(λ_i) K_steps − f(λ_j) K_{steps−1},    K_k = (1/λ_i) Σ_{l<k} (λ_j/λ_i)^l.

    Args:
        steps: number of power iterations, at least 1.
    """

    steps: int = 20
    summary = "power iteration with deflation (comparison only)"

    def __post_init__(self) -> None:
        checks.count(self, "steps", least=1)

    def off_diagonal(
        self, large: Tensor, small: Tensor, f_large: Tensor, f_small: Tensor
    ) -> Tensor:
        """f(λ_i) K_steps − f(λ_j) K_{steps−1}."""
        last = f_large * geometric_sum(large, small, self.steps)
        return last - f_small * geometric_sum(large, small, self.steps - 1)


def geometric_sum(large: Tensor, small: Tensor, terms: int) -> Tensor:
    """(1/λ_i) Σ_{k<terms} (λ_j/λ_i)^k = (1 − (λ_j/λ_i)^terms)/(λ_i − λ_j), without cancellation."""
    gap = (large - small) / large
    tie = gap == 0
    gap = torch.where(tie, 1.0, gap)
    total = -torch.expm1(terms * torch.log1p(-gap)) / gap
    return torch.where(tie, float(terms), total) / large


class _FirstOrderOnly(torch.autograd.Function):
    """The identity, refusing to be differentiated: a wrong second derivative must not pass."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise RuntimeError(_REFUSAL)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> tuple[Tensor, int | None]:
        return _FirstOrderOnly.apply(x), in_dims[0]


class _ForwardFirstOrderOnly(_FirstOrderOnly):
    """The same in forward mode, which torch.compile does not take."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        raise RuntimeError(_REFUSAL)


_REFUSAL = (
    "the published SVD gradients are defined to first order only; for higher derivatives use "
    "gradient=Lyapunov() or Spectral()"
)
