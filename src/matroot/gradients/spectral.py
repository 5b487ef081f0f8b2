"""The Lyapunov equation by an eigendecomposition: division by s_i + s_j."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from matroot import spd, spectrum
from matroot.backends import Backend
from matroot.gradients.rule import ImplicitRule, Roots
from matroot.lyapunov import BySpectrum, Solver
from matroot.solution import Solution


@dataclass(frozen=True)
class Spectral(ImplicitRule):
    """Implicit gradient X = Q [(Qᴴ R Q) / (s_i + s_j)] Qᴴ, finite at repeated eigenvalues.

    The sum s_i + s_j never vanishes but on null × null space, where X is 0. Eigenpairs come from
    the forward method where it has them (eigh, svd), else from one eigh of the root. They serve as
    constants of the solve and are never differentiated, so every order is finite at ties.

    Note:
        4 products; a pair, and second derivatives of the inverse root, take 2 more. Keeps the roots
        that were asked for and the eigenpairs for the backward pass.
    """

    summary = "division by s_i + s_j"

    takes_eigenpairs = True

    @property
    def solver(self) -> Solver:
        """See ImplicitRule.solver."""
        return BySpectrum()

    def prepare(
        self, a: Tensor, solution: Solution, scale: Tensor, ops: Backend
    ) -> tuple[Tensor, ...]:
        """See ExplicitRule.prepare."""
        if solution.eigenvalues is not None and solution.eigenvectors is not None:
            roots, vectors = solution.eigenvalues.clamp(min=0).sqrt(), solution.eigenvectors
        else:
            assert solution.sqrt is not None
            roots, vectors = spectrum.eigh(solution.sqrt)
        return roots.clamp(min=0) * scale[:, None], vectors

    def vjp(
        self, roots: Roots, g_sqrt: Tensor | None, g_inv: Tensor | None, ops: Backend
    ) -> Tensor:
        """See ExplicitRule.vjp; first derivatives of the inverse stay in the basis of eigenvectors.

        There −Z G Z is −(Qᴴ G Q)_ij/(s_i s_j), which saves two products and their rounding.
        """
        if g_inv is None or roots.pseudo or torch.is_grad_enabled():
            return super().vjp(_with_sqrt(roots), g_sqrt, g_inv, ops)
        s, q = roots.constants
        rows, columns = s[..., :, None], s[..., None, :]
        # No eigenvalue is null: such a matrix has no inverse root, and came back as NaN.
        x = -(q.mH @ spd.hermitian_part(g_inv) @ q) / (rows * columns)
        if g_sqrt is not None:
            x = x + q.mH @ spd.hermitian_part(g_sqrt) @ q
        x = q @ (x / (rows + columns)) @ q.mH
        bad = s.isnan().any(-1)[..., None, None]
        return torch.where(bad, torch.nan, spd.hermitian_part(x))

    def jvp(self, roots: Roots, e: Tensor, ops: Backend) -> tuple[Tensor | None, Tensor | None]:
        """See ExplicitRule.jvp."""
        d_sqrt, d_inv = super().jvp(_with_sqrt(roots), e, ops)
        return (None if roots.sqrt is None else d_sqrt), d_inv


def _with_sqrt(roots: Roots) -> Roots:
    """The roots with S = Z⁻¹ where it was not kept: a function of Z, to be differentiated again."""
    if roots.sqrt is not None:
        return roots
    z = roots.inv_sqrt
    assert z is not None
    inverse, _ = spd.inverse_by_cholesky(z.reshape(-1, *z.shape[-2:]))
    return replace(roots, sqrt=inverse.reshape(z.shape))
