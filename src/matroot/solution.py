"""What passes from a method to a gradient rule: the roots of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Root = Literal["sqrt", "inv_sqrt", "both"]


@dataclass(frozen=True)
class Solution:
    """The roots of a batch, and what was learnt on the way.

    Attributes:
        sqrt: A^{1/2}, (b, n, n); None where it was not asked for.
        inv_sqrt: A^{-1/2}, (b, n, n); None where it was not asked for.
        steps: how many steps, terms or shifts were taken; 1 for a direct method.
        eigenvalues: the eigenvalues of A, (b, n), of methods that find them.
        eigenvectors: the matching orthonormal columns, (b, n, n).
        diverged: matrices whose result is not to be trusted, (b,), of methods that can tell.
    """

    sqrt: Tensor | None
    inv_sqrt: Tensor | None
    steps: int
    eigenvalues: Tensor | None = None
    eigenvectors: Tensor | None = None
    diverged: Tensor | None = None
