"""The Lyapunov equation by an eigendecomposition: division by s_i + s_j."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from matroot import spd, spectrum
from matroot.frechet import frechet
from matroot.functions import SpectralFunction
from matroot.gradients.rule import Cotangents, ImplicitRule, Kept
from matroot.lyapunov_solvers import BySpectrum, Solver
from matroot.roots import SQRT, only_roots, root_pair
from matroot.solution import Solution
from matroot.spectrum import Spectrum


@dataclass(frozen=True)
class Spectral(ImplicitRule):
    """Implicit gradient X = Q [(Qᴴ R Q) / (s_i + s_j)] Qᴴ, finite at repeated eigenvalues.

    The sum s_i + s_j never vanishes but on null × null space, where X is 0. Eigenpairs come from
    the forward method where it has them (eigh, svd), else from one eigh of the root. They serve as
    constants of the solve and are never differentiated, so every order is finite at ties.

    Note:
        4 products; a pair, and second derivatives of the inverse root, take 2 more. Keeps the roots
        that were asked for and the eigenpairs for the backward pass.
    """

    summary = "division by s_i + s_j"
    takes_eigenpairs = True
    any_function = True

    @property
    def solver(self) -> Solver:
        """By division by s_i + s_j."""
        return BySpectrum()

    def prepare(self, a: Tensor, solution: Solution, scale: Tensor) -> tuple[Tensor, ...]:
        """The eigenvalues of S, or for other functions those of A, and the eigenvectors."""
        if not only_roots(solution.functions):
            assert solution.spectrum is not None
            return solution.spectrum.values, solution.spectrum.vectors
        if solution.spectrum is not None:
            roots, vectors = solution.spectrum.values.clamp(min=0).sqrt(), solution.spectrum.vectors
        else:
            assert solution.sqrt is not None
            roots, vectors = spectrum.eigh(solution.sqrt)
        return roots.clamp(min=0) * scale[:, None], vectors

    def vjp(self, kept: Kept, g: Cotangents) -> Tensor:
        """The gradient by A; first derivatives of the inverse root in the basis of eigenvectors.

        There −Z G Z is −(Qᴴ G Q)_ij/(s_i s_j), which saves two products and their rounding.
        """
        if kept.a is not None:
            return _daleckii_krein_vjp(kept, g)
        g_sqrt, g_inv = root_pair(kept.functions, g)
        if g_inv is None or kept.pseudo or torch.is_grad_enabled():
            kept, added = _with_sqrt(kept)
            return super().vjp(kept, (*g, None) if added else g)
        s, q = kept.constants
        rows, columns = s[..., :, None], s[..., None, :]
        # No eigenvalue is null: such a matrix has no inverse root, and came back as NaN.
        x = -(q.mH @ spd.hermitian_part(g_inv) @ q) / (rows * columns)
        if g_sqrt is not None:
            x = x + q.mH @ spd.hermitian_part(g_sqrt) @ q
        x = q @ (x / (rows + columns)) @ q.mH
        bad = s.isnan().any(-1)[..., None, None]
        return torch.where(bad, torch.nan, spd.hermitian_part(x))

    def jvp(self, kept: Kept, e: Tensor) -> tuple[Tensor, ...]:
        """The derivative of each function in the direction E: −Z dS Z of the inverse root."""
        if kept.a is not None:
            right, pairs = spd.hermitian_part(e), _pairs(kept)
            return tuple(spd.hermitian_part(_along(kept, pairs, f, right)) for f in kept.functions)
        kept, added = _with_sqrt(kept)
        derivatives = super().jvp(kept, e)
        return derivatives[:-1] if added else derivatives


def _pairs(kept: Kept) -> Spectrum:
    """The eigenpairs that were kept."""
    return Spectrum.from_pairs(*kept.constants)


def _along(kept: Kept, pairs: Spectrum, function: SpectralFunction, e: Tensor) -> Tensor:
    """The derivative of a function in the direction E, to be differentiated once more."""
    assert kept.a is not None
    return frechet(function, kept.a, pairs.arguments(function), pairs.vectors, e)


def _daleckii_krein_vjp(kept: Kept, g: Cotangents) -> Tensor:
    """Σ L_f(A)[G_f] over the functions that have a cotangent: L is self-adjoint."""
    pairs, total = _pairs(kept), None
    for function, cotangent in zip(kept.functions, g, strict=True):
        if cotangent is not None:
            x = _along(kept, pairs, function, spd.hermitian_part(cotangent))
            total = x if total is None else total + x
    assert total is not None
    return spd.hermitian_part(total)


def _with_sqrt(kept: Kept) -> tuple[Kept, bool]:
    """With S = Z⁻¹ as last value where it was not kept, and whether that is so.

    It is a function of Z, to be differentiated again.
    """
    z = kept.inv_sqrt
    if kept.sqrt is not None or z is None:
        return kept, False
    inverse, _ = spd.inverse_by_cholesky(z.reshape(-1, *z.shape[-2:]))
    functions, values = (*kept.functions, SQRT), (*kept.values, inverse.reshape(z.shape))
    return replace(kept, functions=functions, values=values), True
