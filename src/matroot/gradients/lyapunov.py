"""The paper's gradient: the Lyapunov equation S X + X S = R by products of matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matroot import checks, spd
from matroot.gradients.rule import ImplicitRule
from matroot.lyapunov_solvers import BySign, BySmith, Solver
from matroot.solution import Solution


@dataclass(frozen=True)
class Lyapunov(ImplicitRule):
    """Implicit gradient by the Lyapunov equation, without eigenvectors.

    Args:
        steps: None solves to the rounding of the dtype, by two shifts of the alternating-direction
            iteration and Smith's squaring; a number takes so many Newton–Schulz steps of the matrix
            sign function, as the paper does with 8. Eight steps settle eigenvalues of S above some
            0.1 √‖A‖_F, which is all of them for ``Pade(order=5)`` and not for an exact root at
            condition numbers above 1e2.

    Note:
        Products: 3 + 3 a doubling (12 in float32 at a condition number of A of 1e2, 15 at 1e4)
        and two Cholesky inverses; 6·steps by the sign function; 2 more for the inverse root. Where
        A may be singular, an eigendecomposition of S on a CPU, elsewhere some 30 products more.
        The compiled kernels find the eigenpairs of S and take either on its eigenvalues. Keeps the
        roots for the backward pass.
    """

    steps: int | None = None
    summary = "Lyapunov equation by products (paper: steps=8)"

    def __post_init__(self) -> None:
        if self.steps is not None:
            checks.count(self, "steps", least=1)

    def prepare(self, a: Tensor, solution: Solution, scale: Tensor) -> tuple[Tensor, ...]:
        """√‖A‖_F for the published steps, else bounds of the spectrum of S, if they are known."""
        if self.steps is not None:
            return (spd.frobenius_norm(a).flatten().sqrt() * scale,)
        known = solution.bounds
        if known is None:
            return ()
        null = 2 * spd.null_share(a.shape[-1], a.dtype) * spd.largest_at_least(a).flatten()
        low = torch.where(known.low_at_most <= null, 0.0, known.low)
        return (torch.stack([low, known.high], -1).sqrt() * scale[:, None],)

    @property
    def solver(self) -> Solver:
        """By shifts and squaring, or so many ``steps`` of the sign function."""
        return BySmith() if self.steps is None else BySign(self.steps)
