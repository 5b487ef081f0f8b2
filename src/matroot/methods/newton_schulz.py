"""Coupled Newton–Schulz iteration, the baseline of iSQRT-COV (Li, Xie, Wang, Gao; CVPR 2018).

With Y₀ = A/c, Z₀ = I and T = (3I − ZY)/2:  Y ← YT,  Z ← TZ;  A^{1/2} ≈ √c Y, A^{-1/2} ≈ Z/√c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from matroot import checks, spd
from matroot.methods.coupled import diverged
from matroot.methods.method import Method
from matroot.roots import Functions, roots_in_order, wanted_roots
from matroot.solution import Solution


@dataclass(frozen=True)
class NewtonSchulz(Method):
    """Coupled Newton–Schulz iteration.

    It is quadratic near the solution, but an eigenvalue x of A/c far below 1 grows only 2.25-fold a
    step: ``steps=5`` reach down to about x = 0.02.

    Where A is singular to rounding, many steps (from about 20 in float32) blow up the negative
    eigenvalues that rounding left of zeros; such a matrix is reported as diverged.

    The values are those of iSQRT-COV (the root) and IterNorm (the inverse root); their gradients
    are those of the loop, ``gradient="unrolled"``. ``"auto"`` is the gradient of a nearby exact
    root, which is another one while the iteration has not converged: on covariances of 64 features
    the two differed by 17 % for the root and 187 % for the inverse root at 640 random samples
    (condition number 3), by 136 % and 616 % at 96 (condition number 82).

    Args:
        steps: number of steps, at least 1; the published choice is 5.
        normalize: c, ``"trace"`` (published) or ``"frobenius"`` (tighter, so more accurate).

    Note:
        Products of n×n matrices: 3·steps − 3 for one root (12 at 5 steps), one more for both.
    """

    steps: int = 5
    normalize: Literal["trace", "frobenius"] = "trace"
    summary = "coupled Newton–Schulz iteration (iSQRT-COV's values)"

    def __post_init__(self) -> None:
        checks.count(self, "steps", least=1)
        checks.one_of("NewtonSchulz(normalize=…)", self.normalize, ("trace", "frobenius"))

    def solve(self, a: Tensor, functions: Functions) -> Solution:
        """The roots after ``steps`` steps; ``diverged`` where rounding has blown up."""
        wanted = wanted_roots(functions)
        c = self._normalizer(a)
        y = a / spd.positive_or_one(c)
        trace = spd.trace(y.detach())
        identity = spd.identity_like(a)
        t = 1.5 * identity - 0.5 * y
        z = t  # From Z = I the first step needs no product for Z or ZY.
        if self.steps > 1 or wanted.sqrt:
            y = torch.bmm(y, t)
        for step in range(2, self.steps + 1):
            last = step == self.steps
            t = torch.baddbmm(1.5 * identity, z, y, alpha=-0.5)
            if not last or wanted.inv_sqrt:
                z = torch.bmm(t, z)
            if not last or wanted.sqrt:
                y = torch.bmm(y, t)
        return Solution(
            functions,
            roots_in_order(
                functions,
                y * spd.sqrt_or_zero(c) if wanted.sqrt else None,
                z / spd.positive_or_one(c).sqrt() if wanted.inv_sqrt else None,
            ),
            steps=self.steps,
            diverged=diverged(y.detach(), z.detach(), trace, wanted),
        )

    def _normalizer(self, a: Tensor) -> Tensor:
        if self.normalize == "frobenius":
            return spd.frobenius_norm(a)
        # A slightly negative trace belongs to a zero matrix up to rounding, or to no SPD matrix.
        return spd.trace(a)[..., None, None].clamp(min=0)
