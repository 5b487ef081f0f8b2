"""What a forward method is, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from matroot.backends import Backend
from matroot.solution import Root, Solution


class Method(ABC):
    """A forward algorithm: a frozen dataclass of options and one function.

    Attributes:
        summary: one line for tables and help texts.
        factorises: whether ``solve`` needs a factorisation (Cholesky, eigenpairs).
        spectral: whether ``solve`` returns eigenpairs (and so knows the pseudo-inverse root).
    """

    summary: ClassVar[str]
    factorises: ClassVar[bool] = False
    spectral: ClassVar[bool] = False

    @abstractmethod
    def solve(self, a: Tensor, root: Root, ops: Backend) -> Solution:
        """The wanted roots of Hermitian matrices.

        Args:
            a: shape (b, n, n), exactly Hermitian, finite, largest entry about 1 in magnitude,
                float32, float64 or their complex kin.
            root: which roots are wanted.
            ops: the arithmetic to use.

        Returns:
            The wanted roots, symmetric to rounding; plain differentiable operations throughout.
        """
