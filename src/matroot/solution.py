"""What passes from a method to a gradient rule: the roots of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from matroot.spd import Bounds

Root = Literal["sqrt", "inv_sqrt", "both"]


@dataclass(frozen=True)
class Solution:
    """The roots of a batch, and what was learnt on the way.

    Attributes:
        sqrt: A^{1/2}, (b, n, n); None where it was not asked for.
        inv_sqrt: A^{-1/2}, (b, n, n); None where it was not asked for.
        steps: how many steps, terms or shifts were taken, one number or (b,); 1 for a direct
            method.
        eigenvalues: the eigenvalues of A, (b, n), of methods that find them.
        eigenvectors: the matching orthonormal columns, (b, n, n).
        bounds: of the spectrum of A, of methods that find them.
        converged: matrices on which the method reached what it aims at, (b,), of methods that can
            tell.
        diverged: matrices whose result is not to be trusted, (b,), of methods that can tell.
    """

    sqrt: Tensor | None
    inv_sqrt: Tensor | None
    steps: int | Tensor
    eigenvalues: Tensor | None = None
    eigenvectors: Tensor | None = None
    bounds: Bounds | None = None
    converged: Tensor | None = None
    diverged: Tensor | None = None
