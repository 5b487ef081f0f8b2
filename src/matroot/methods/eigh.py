"""Eigendecomposition A = Q diag(λ) Qᴴ:  A^{1/2} = Q diag(√λ) Qᴴ,  A^{-1/2} = Q diag(1/√λ) Qᴴ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matroot import spd, spectrum
from matroot.backends import Backend
from matroot.methods.method import Method
from matroot.solution import Root, Solution


@dataclass(frozen=True)
class Eigh(Method):
    """Symmetric eigendecomposition: exact to the rounding of the solver, at any condition number.

    Eigenvalues below zero count as zero. Eigenvalues that are zero to rounding are left out of the
    inverse root, which makes it the pseudo-inverse root.

    On a CPU compiled kernels do all of it for real matrices up to n = 256, with the eigenvalues
    found in double precision; without them single-precision matrices that may be singular are
    decomposed in double precision, see ``matroot.spectrum.eigh``.

    Note:
        One eigh (some 9 n³ flops at poor speed) and one product a root.
    """

    summary = "symmetric eigendecomposition"
    factorises = True
    spectral = True

    def solve(self, a: Tensor, root: Root, ops: Backend) -> Solution:
        """See Method.solve."""
        eigenvalues, vectors = spectrum.eigh(a)
        return from_eigenpairs(eigenvalues, vectors, root, ops)


@dataclass(frozen=True)
class Svd(Method):
    """Singular value decomposition, the baseline of the literature: A = U diag(σ) Vᴴ with U = ±V.

    The sign of an eigenvalue is that of the inner product of its two singular vectors.

    Note:
        One SVD, several times dearer than eigh, and one product a root.
    """

    summary = "singular value decomposition"
    factorises = True
    spectral = True

    def solve(self, a: Tensor, root: Root, ops: Backend) -> Solution:
        """See Method.solve."""
        u, sigma, vh = spectrum.svd(a)
        same = (u * vh.mT).sum(-2).real
        return from_eigenpairs(torch.where(same < 0, -sigma, sigma), u, root, ops)


def from_eigenpairs(eigenvalues: Tensor, vectors: Tensor, root: Root, ops: Backend) -> Solution:
    """The roots from λ, shape (b, n), and orthonormal columns, shape (b, n, n)."""
    sqrt = inv_sqrt = None
    # The double where keeps the derivative at zero eigenvalues finite when this is unrolled.
    positive = eigenvalues > 0
    roots = torch.where(positive, torch.where(positive, eigenvalues, 1.0).sqrt(), 0.0)
    if root != "inv_sqrt":
        sqrt = ops.matmul(vectors * roots[..., None, :], vectors.mH)
    if root != "sqrt":
        largest = eigenvalues.abs().amax(-1, keepdim=True)
        kept = eigenvalues > spd.null_share(eigenvalues.shape[-1], eigenvalues.dtype) * largest
        inverse = torch.where(kept, 1.0 / torch.where(kept, roots, 1.0), 0.0)
        inv_sqrt = ops.matmul(vectors * inverse[..., None, :], vectors.mH)
    found = torch.ones_like(eigenvalues[:, 0], dtype=torch.bool)
    return Solution(sqrt, inv_sqrt, 1, eigenvalues, vectors, converged=found)
