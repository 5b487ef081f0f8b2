"""Eigendecomposition A = Q diag(λ) Qᴴ:  f(A) = Q diag(f(λ)) Qᴴ."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from matroot import spd, spectrum
from matroot.methods.method import Method
from matroot.roots import Functions
from matroot.solution import Solution
from matroot.spectrum import Spectrum


@dataclass(frozen=True)
class Eigh(Method):
    """Symmetric eigendecomposition: exact to the rounding of the solver, at any condition number.

    Eigenvalues below zero count as zero. Eigenvalues that are zero to rounding are left out of the
    inverse root, which makes it the pseudo-inverse root.

    On a CPU compiled kernels do all of it for real matrices up to n = 1024 (512 in double
    precision), with the eigenvalues found in double precision; elsewhere single-precision matrices
    that may be singular are decomposed in double precision, since a solver in single precision
    cannot tell an eigenvalue that is zero from a small one.

    Note:
        One eigh (some 9 n³ flops at poor speed) and one product a root.
    """

    summary = "symmetric eigendecomposition"
    factorises = True
    spectral = True

    def solve(self, a: Tensor, functions: Functions) -> Solution:
        """Each function of the eigenvalues, and the eigenpairs."""
        return _solution(Spectrum.of(a), functions)


@dataclass(frozen=True)
class Svd(Method):
    """Singular value decomposition, the baseline of the literature: A = U diag(σ) Vᴴ with U = ±V.

    The sign of an eigenvalue is that of the inner product of its two singular vectors. Where λ and
    −λ are eigenvalues above rounding, as half precision may have them, it does not converge.

    Note:
        One SVD, several times slower than eigh, and one product a root.
    """

    summary = "singular value decomposition"
    factorises = True
    spectral = True

    def solve(self, a: Tensor, functions: Functions) -> Solution:
        """Each function of the eigenvalues, and the eigenpairs made of the singular vectors."""
        u, sigma, vh = spectrum.svd(a)
        same = (u * vh.mT).sum(-2).real
        found = _solution(Spectrum.from_pairs(torch.where(same < 0, -sigma, sigma), u), functions)
        # Of λ and −λ the singular vectors are any mixture, and tell no signs.
        rounding = max(8, a.shape[-1]) * spd.real_eps(a.dtype) * spd.upper_bound(a.detach())
        above_rounding = sigma.detach() > rounding[..., 0]
        mixed = above_rounding & (same.detach().abs() < 0.9)
        return replace(found, diverged=mixed.any(-1))


def _solution(spectrum: Spectrum, functions: Functions) -> Solution:
    values = tuple(spectrum.assembled(function) for function in functions)
    found = torch.ones_like(spectrum.null[:, 0])
    return Solution(functions, values, 1, spectrum, converged=found)
