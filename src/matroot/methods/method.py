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

        The caller screens matrices before and after. Those that are not finite or not Hermitian do
        not come here: the identity stands in for them. Those that are indefinite, singular or zero
        do, and are told afterwards, by ``spectrum``, ``bounds`` or a factorisation. Where such a
        matrix has no result the caller puts NaN, whatever was returned. So

        - nothing raises for the values of a matrix: there are good ones beside it;
        - the values of a matrix change no bit of the results of its neighbours;
        - of an indefinite matrix, and for the inverse root of a singular one, results may be
          anything, NaN and infinity as well;
        - the root of a singular matrix is a result as any other, and that of zero is exactly 0;
        - where the method fails on any other matrix it sets ``diverged``; the caller puts NaN, and
          raises where errors are checked. NaN without it would be returned as a result. To be
          inaccurate, as polynomials of low degree are, is no failure: ``converged`` tells that;
        - values are looked at on the host only where ``context.host_reads_are_free(a)``, so that
          nothing waits for a device and torch.compile and torch.func can trace it;
        - ``a`` is left as it is.

        Args:
            a: shape (b, n, n), exactly Hermitian and finite, its largest entry about 1 in magnitude
                where it is not zero, float32, float64 or the complex dtypes.
            functions: what is wanted, one or both of the roots. Spectral methods are given () where
                other functions are: the caller makes those of the eigenpairs.

        Returns:
            The values in the order of ``functions``, in the dtype of ``a``, Hermitian to rounding,
            by plain differentiable operations throughout; of spectral methods always with the
            eigenpairs.
        """

    def supports(self, function: SpectralFunction) -> bool:
        """Whether ``solve`` knows this function: any by eigenpairs, else the two roots."""
        return self.spectral or only_roots((function,))
