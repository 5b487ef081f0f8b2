"""The Lyapunov equation by an eigendecomposition: division by s_i + s_j."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matroot.backends import Backend
from matroot.gradients.rule import ImplicitRule
from matroot.lyapunov import BySpectrum, Solver
from matroot.solution import Solution


@dataclass(frozen=True)
class Spectral(ImplicitRule):
    """Implicit gradient X = Q [(Qᴴ R Q) / (s_i + s_j)] Qᴴ, finite at repeated eigenvalues.

    The sum s_i + s_j never vanishes but on null × null space, where X is 0. Eigenpairs come from
    the forward method where it has them (eigh, svd), else from one eigh of the root. They serve as
    constants of the solve and are never differentiated, so every order is finite at ties.

    Note:
        4 products; the inverse root adds 2. Keeps the roots and eigenpairs for the backward pass.
    """

    summary = "division by s_i + s_j"

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
            roots, vectors = torch.linalg.eigh(solution.sqrt)
        return roots.clamp(min=0) * scale[:, None], vectors
