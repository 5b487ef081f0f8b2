"""What a gradient rule is, and the derivatives of both roots from one Lyapunov solve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from matroot import spd
from matroot.functions import InvSqrt, SpectralFunction, Sqrt
from matroot.lyapunov import lyapunov
from matroot.lyapunov_solvers import Solver
from matroot.roots import Functions, belonging, only_roots, root_pair, roots_in_order
from matroot.solution import Solution


@dataclass(frozen=True)
class Kept:
    """What the forward pass keeps for the derivative.

    Attributes:
        functions: what was computed.
        values: f(A) for each of them, shape (..., n, n); none where the derivative is not made of
            them.
        constants: what the rule's ``prepare`` returned, batch dimensions first.
        pseudo: whether null eigenvalues were left out.
        a: A, shape (..., n, n), where it is not.
    """

    functions: Functions
    values: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    pseudo: bool
    a: Tensor | None = None

    @property
    def sqrt(self) -> Tensor | None:
        """S = A^{1/2}; None where it was not computed."""
        return belonging(Sqrt, self.functions, self.values)

    @property
    def inv_sqrt(self) -> Tensor | None:
        """Z = A^{-1/2}; None where it was not computed."""
        return belonging(InvSqrt, self.functions, self.values)


# Cotangents of the functions, None where there is none.
Cotangents = tuple[Tensor | None, ...]


class GradientRule(ABC):
    """A backward rule: a frozen dataclass of options.

    Attributes:
        summary: one line for tables and help texts.
        max_derivative: the highest order of derivative, None for any.
        any_function: whether it knows functions other than the two roots.
        needs_eigenpairs: whether it needs those that spectral methods (eigh, svd) find.
    """

    summary: ClassVar[str]
    max_derivative: ClassVar[int | None] = None
    needs_eigenpairs: ClassVar[bool] = False
    any_function: ClassVar[bool] = False

    def supports(self, function: SpectralFunction) -> bool:
        """Whether the rule knows the derivative of this function."""
        return self.any_function or only_roots((function,))


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
    def prepare(self, a: Tensor, solution: Solution, scale: Tensor) -> tuple[Tensor, ...]:
        """The constants of the derivative, batch first.

        Args:
            a: the scaled matrices A/scale², shape (b, n, n), finite everywhere.
            solution: their roots, finite everywhere.
            scale: the power of two that the roots are still to be multiplied by, shape (b,).
        """

    @abstractmethod
    def vjp(self, kept: Kept, g: Cotangents) -> Tensor:
        """The gradient by A, Hermitian, from the cotangents of the functions, one at least."""

    @abstractmethod
    def jvp(self, kept: Kept, e: Tensor) -> tuple[Tensor, ...]:
        """The derivative of each function in the Hermitian direction E of A."""


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

    def _solver(self, kept: Kept) -> Solver:
        """The solver, with the knowledge that a matrix which has an inverse root has no null space.

        Else the backward pass would decide again, by numbers of its own, what the forward pass has
        decided.
        """
        regular = kept.inv_sqrt is not None and not kept.pseudo
        return replace(self.solver, regular=True) if regular else self.solver

    def prepare(self, a: Tensor, solution: Solution, scale: Tensor) -> tuple[Tensor, ...]:
        """No constants: the roots are all that the solve needs."""
        return ()

    def vjp(self, kept: Kept, g: Cotangents) -> Tensor:
        """The gradient by A, lyap(S, G_S − Z G_Z Z), Hermitian."""
        s = kept.sqrt
        assert s is not None
        g_sqrt, g_inv = root_pair(kept.functions, g)
        right = None if g_sqrt is None else spd.hermitian_part(g_sqrt)
        if g_inv is not None:
            by_inverse = _by_inverse(kept, spd.hermitian_part(g_inv))
            right = by_inverse if right is None else right + by_inverse
        assert right is not None
        x = lyapunov(self._solver(kept), s, right, *kept.constants)
        return spd.hermitian_part(x)

    def jvp(self, kept: Kept, e: Tensor) -> tuple[Tensor, ...]:
        """The derivatives dS = lyap(S, E) and dZ = −Z dS Z, of what was computed, in order."""
        s = kept.sqrt
        assert s is not None
        right = spd.hermitian_part(e)
        d_sqrt = spd.hermitian_part(lyapunov(self._solver(kept), s, right, *kept.constants))
        d_inv = None if kept.inv_sqrt is None else _by_inverse(kept, d_sqrt)
        return roots_in_order(kept.functions, d_sqrt, d_inv)


def _by_inverse(kept: Kept, g: Tensor) -> Tensor:
    """The derivative of Z = S⁻¹ by S applied to G: −Z G Z, self-adjoint.

    For the pseudo-inverse, with N = I − S Z the projector on the null space, + Z² G N + N G Z²
    (Golub and Pereyra 1973), exact along directions that keep the rank.
    """
    s, z = kept.sqrt, kept.inv_sqrt
    assert s is not None
    assert z is not None
    result = -(z @ g @ z)
    if kept.pseudo:
        null = spd.hermitian_part(spd.identity_like(s) - s @ z)
        across = z @ (z @ g @ null)
        result = result + across + across.mH
    return spd.hermitian_part(result)
