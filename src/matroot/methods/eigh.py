"""Eigendecomposition A = Q diag(λ) Qᴴ:  A^{1/2} = Q diag(√λ) Qᴴ,  A^{-1/2} = Q diag(1/√λ) Qᴴ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from matroot import checks, spd
from matroot.backends import Backend
from matroot.methods.method import Method
from matroot.solution import Root, Solution


@dataclass(frozen=True)
class Eigh(Method):
    """Symmetric eigendecomposition: exact to the rounding of the solver, at any condition number.

    Eigenvalues below zero count as zero. Eigenvalues that are zero to rounding are left out of the
    inverse root, which makes it the pseudo-inverse root.

    In single precision an eigensolver knows a small eigenvalue to some √n units of rounding of the
    largest, which cannot tell a regular matrix from a singular one. On a CPU matrices with
    eigenvalues up to n units are therefore decomposed again in double precision.

    Note:
        One eigh (some 9 n³ flops at poor speed) and one product a root.
    """

    summary = "symmetric eigendecomposition"
    spectral = True

    def solve(self, a: Tensor, root: Root, ops: Backend) -> Solution:
        """See Method.solve."""
        eigenvalues, vectors = _refined(a, *torch.linalg.eigh(a))
        return from_eigenpairs(eigenvalues, vectors, root, ops)


def _refined(a: Tensor, eigenvalues: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenpairs, in single precision by way of double precision where that decides."""
    single = spd.real_dtype(a.dtype) == torch.float32
    if not single or not checks.host_reads_are_free(a) or eigenvalues.requires_grad:
        return eigenvalues, vectors
    least = a.shape[-1] * spd.real_eps(a.dtype) * eigenvalues[:, -1]
    (near,) = torch.where(eigenvalues[:, 0] <= torch.clamp(least, min=0))
    if len(near) == 0:
        return eigenvalues, vectors
    values, q = torch.linalg.eigh(a.detach()[near].to(torch.promote_types(a.dtype, torch.float64)))
    return (
        eigenvalues.index_copy(0, near, values.to(eigenvalues.dtype)),
        vectors.index_copy(0, near, q.to(a.dtype)),
    )


@dataclass(frozen=True)
class Svd(Method):
    """Singular value decomposition, the baseline of the literature: A = U diag(σ) Vᴴ with U = ±V.

    The sign of an eigenvalue is that of the inner product of its two singular vectors.

    Note:
        One SVD, several times dearer than eigh, and one product a root.
    """

    summary = "singular value decomposition"
    spectral = True

    def solve(self, a: Tensor, root: Root, ops: Backend) -> Solution:
        """See Method.solve."""
        u, sigma, vh = torch.linalg.svd(a)
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
        units = spd.null_units(eigenvalues.shape[-1], eigenvalues.dtype)
        kept = eigenvalues > units * spd.real_eps(eigenvalues.dtype) * largest
        inverse = torch.where(kept, 1.0 / torch.where(kept, roots, 1.0), 0.0)
        inv_sqrt = ops.matmul(vectors * inverse[..., None, :], vectors.mH)
    found = torch.ones(len(eigenvalues), dtype=torch.bool, device=eigenvalues.device)
    return Solution(sqrt, inv_sqrt, 1, eigenvalues, vectors, converged=found)
