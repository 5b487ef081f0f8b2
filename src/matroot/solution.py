"""What passes from a method to a gradient rule: the values of a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from matroot.functions import InvSqrt, Sqrt
from matroot.roots import Functions, belonging
from matroot.spd import Bounds
from matroot.spectrum import Spectrum


@dataclass(frozen=True)
class Solution:
    """The functions of a batch of matrices, and what was learnt on the way.

    Attributes:
        functions: what was asked for.
        values: f(A) for each of them, (b, n, n).
        steps: how many steps, terms or shifts were taken, one number or (b,); 1 for a direct
            method.
        spectrum: the eigenpairs of A, of methods that find them.
        bounds: of the spectrum of A, of methods that find them.
        converged: matrices on which the method reached what it aims at, (b,), of methods that can
            tell.
        diverged: matrices whose result is not to be trusted, (b,), of methods that can tell.
    """

    functions: Functions
    values: tuple[Tensor, ...]
    steps: int | Tensor
    spectrum: Spectrum | None = None
    bounds: Bounds | None = None
    converged: Tensor | None = None
    diverged: Tensor | None = None

    @property
    def sqrt(self) -> Tensor | None:
        """A^{1/2}, if it was asked for."""
        return belonging(Sqrt, self.functions, self.values)

    @property
    def inv_sqrt(self) -> Tensor | None:
        """A^{-1/2}, if it was asked for."""
        return belonging(InvSqrt, self.functions, self.values)

    def with_sqrt(self, sqrt: Tensor) -> Solution:
        """The same with another A^{1/2}."""
        pairs = zip(self.functions, self.values, strict=True)
        values = [sqrt if type(function) is Sqrt else value for function, value in pairs]
        return replace(self, values=tuple(values))
