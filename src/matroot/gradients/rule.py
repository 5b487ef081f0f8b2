"""What a gradient rule is, and the derivatives of both roots from one Lyapunov solve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from matroot import spd
from matroot.backends import Backend
from matroot.lyapunov import Solver, lyapunov
from matroot.solution import Solution


@dataclass(frozen=True)
class Roots:
    """What the forward pass keeps for the derivative.

    Attributes:
        sqrt: S = A^{1/2}, shape (..., n, n); None where a rule does without.
        inv_sqrt: Z = A^{-1/2}, shape (..., n, n); None where it was not asked for.
        constants: what the rule's ``prepare`` returned, batch dimensions first.
        pseudo: whether Z is the pseudo-inverse root.
    """

    sqrt: Tensor | None
    inv_sqrt: Tensor | None
    constants: tuple[Tensor, ...]
    pseudo: bool


class GradientRule(ABC):
    """A backward rule: a frozen dataclass of options.

    Attributes:
        summary: one line for tables and help texts.
        max_derivative: the highest order of derivative, None for any.
        needs_eigenpairs: whether only spectral methods (eigh, svd) can feed it.
    """

    summary: ClassVar[str]
    max_derivative: ClassVar[int | None] = None
    needs_eigenpairs: ClassVar[bool] = False


class ExplicitRule(GradientRule):
    """A rule that gives the derivative by a formula instead of by differentiating the loop.

    The Fréchet derivative of either root is self-adjoint, so one formula serves both directions.

    Attributes:
        needs_sqrt: whether the derivative of the inverse root is made from the root too.
        takes_eigenpairs: whether those of a spectral method stand in for the root.
    """

    needs_sqrt: ClassVar[bool] = False
    takes_eigenpairs: ClassVar[bool] = False

    @abstractmethod
    def prepare(
        self, a: Tensor, solution: Solution, scale: Tensor, ops: Backend
    ) -> tuple[Tensor, ...]:
        """The constants of the derivative, batch first.

        Args:
            a: the scaled matrices A/scale², shape (b, n, n), finite everywhere.
            solution: their roots, finite everywhere.
            scale: the power of two that the roots are still to be multiplied by, shape (b,).
            ops: the arithmetic.
        """

    @abstractmethod
    def vjp(
        self, roots: Roots, g_sqrt: Tensor | None, g_inv: Tensor | None, ops: Backend
    ) -> Tensor:
        """The gradient by A, Hermitian, from the cotangents of S and Z."""

    @abstractmethod
    def jvp(self, roots: Roots, e: Tensor, ops: Backend) -> tuple[Tensor | None, Tensor | None]:
        """(dS, dZ) in the Hermitian direction E of A; None for a root that was not asked for."""


class ImplicitRule(ExplicitRule):
    """A rule made of the Lyapunov solve alone, differentiable to any order.

    S = A^{1/2} satisfies S dS + dS S = dA, and Z = S⁻¹ gives dZ = −Z dS Z. So

        VJP:  Ā = lyap(S, G_S − Z G_Z Z)        JVP:  dS = lyap(S, E), dZ = −Z dS Z
    """

    needs_sqrt = True

    @property
    @abstractmethod
    def solver(self) -> Solver:
        """How the Lyapunov equation is solved."""

    def _solver(self, roots: Roots) -> Solver:
        """The solver, told that a matrix which has an inverse root has no null space.

        Else the backward pass would decide again, by numbers of its own, what the forward pass has
        decided.
        """
        regular = roots.inv_sqrt is not None and not roots.pseudo
        return replace(self.solver, regular=True) if regular else self.solver

    def prepare(
        self, a: Tensor, solution: Solution, scale: Tensor, ops: Backend
    ) -> tuple[Tensor, ...]:
        """See ExplicitRule.prepare."""
        return ()

    def vjp(
        self, roots: Roots, g_sqrt: Tensor | None, g_inv: Tensor | None, ops: Backend
    ) -> Tensor:
        """See ExplicitRule.vjp."""
        assert roots.sqrt is not None
        right = None if g_sqrt is None else spd.hermitian_part(g_sqrt)
        if g_inv is not None:
            by_inverse = _by_inverse(roots, spd.hermitian_part(g_inv))
            right = by_inverse if right is None else right + by_inverse
        assert right is not None
        x = lyapunov(self._solver(roots), ops, roots.sqrt, right, *roots.constants)
        return spd.hermitian_part(x)

    def jvp(self, roots: Roots, e: Tensor, ops: Backend) -> tuple[Tensor | None, Tensor | None]:
        """See ExplicitRule.jvp."""
        assert roots.sqrt is not None
        d_sqrt = spd.hermitian_part(
            lyapunov(self._solver(roots), ops, roots.sqrt, spd.hermitian_part(e), *roots.constants)
        )
        d_inv = None if roots.inv_sqrt is None else _by_inverse(roots, d_sqrt)
        return d_sqrt, d_inv


def _by_inverse(roots: Roots, g: Tensor) -> Tensor:
    """The derivative of Z = S⁻¹ by S applied to G: −Z G Z, self-adjoint.

    For the pseudo-inverse, with N = I − S Z the projector on the null space, + Z² G N + N G Z²
    (Golub and Pereyra 1973), exact along directions that keep the rank.
    """
    s, z = roots.sqrt, roots.inv_sqrt
    assert s is not None
    assert z is not None
    result = -(z @ g @ z)
    if roots.pseudo:
        null = spd.hermitian_part(spd.identity_like(s) - s @ z)
        across = z @ (z @ g @ null)
        result = result + across + across.mH
    return spd.hermitian_part(result)
