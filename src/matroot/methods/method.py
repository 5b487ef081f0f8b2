"""What a forward method is, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from matroot.functions import SpectralFunction
from matroot.roots import Functions, only_roots
from matroot.solution import Solution


class Method(ABC):
    """A forward algorithm: a frozen dataclass of options and one function.

    Attributes:
        summary: one line for tables and help texts.
        factorises: whether ``solve`` needs a factorisation (Cholesky, eigenpairs).
        spectral: whether ``solve`` returns eigenpairs, from which every function and the
            pseudo-inverse root can be had.
    """

    summary: ClassVar[str]
    factorises: ClassVar[bool] = False
    spectral: ClassVar[bool] = False

    @abstractmethod
    def solve(self, a: Tensor, functions: Functions) -> Solution:
        """The functions of Hermitian matrices.

        Args:
            a: shape (b, n, n), exactly Hermitian, finite, largest entry about 1 in magnitude,
                float32, float64 or the complex dtypes.
            functions: what is wanted.

        Returns:
            The values, symmetric to rounding; plain differentiable operations throughout.
        """

    def supports(self, function: SpectralFunction) -> bool:
        """Whether ``solve`` knows this function: any by eigenpairs, else the two roots."""
        return self.spectral or only_roots((function,))
