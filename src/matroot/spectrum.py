"""The one guarded way to eigenvalues and singular values by LAPACK and other libraries.

A library's solver raises for a whole batch where it fails on one matrix, returns NaN without a word
for badly graded ones, and gives other bits in another batch. Here a matrix that it fails on is done
again by itself in double precision, and comes back as NaN if that fails too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from matroot import context, spd
from matroot.functions import OnRange, SpectralFunction

# A factorisation of matrices (b, n, n): its tensors, batch first.
Factorisation = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Spectrum:
    """Eigenpairs of Hermitian matrices A = Q diag(λ) Qᴴ.

    Attributes:
        values: the eigenvalues λ, shape (..., n).
        vectors: Q, orthonormal columns, shape (..., n, n).
        null: which eigenvalues are zero to rounding, see ``spd.null_share``, shape (..., n), bool.
    """

    values: Tensor
    vectors: Tensor
    null: Tensor

    @classmethod
    def from_pairs(cls, values: Tensor, vectors: Tensor) -> Spectrum:
        """Eigenpairs that something else has found, λ in that precision or a higher one."""
        share = spd.null_share(values.shape[-1], vectors.dtype)
        # Written so that NaN counts as null.
        kept = values.abs() > share * values.abs().amax(-1, keepdim=True)
        return cls(values, vectors, ~kept)

    @classmethod
    def of(cls, a: Tensor, *, sharp: bool = True) -> Spectrum:
        """By ``eigh``."""
        return cls.from_pairs(*eigh(a, sharp=sharp))

    @property
    def roots(self) -> Tensor:
        """√λ of semi-definite matrices, exactly 0 where λ is zero to rounding or below."""
        return torch.where(self.kept, self.values, 0.0).sqrt()

    @property
    def kept(self) -> Tensor:
        """Which eigenvalues of semi-definite matrices are not zero."""
        return ~self.null & (self.values > 0)

    def scaled(self, k: Tensor) -> Spectrum:
        """The eigenpairs of 2ᵏ A, k of shape (...)."""
        return replace(self, values=spd.times_power_of_two(self.values[..., None], k)[..., 0])

    def assembled(self, function: SpectralFunction) -> Tensor:
        """f(A) = Q diag(f(λ)) Qᴴ, shape (..., n, n), null eigenvalues left out where f has no f(0).

        Eigenvalues that rounding left below zero count as zero where f takes no negative ones.
        """
        zero, at_zero = self._zero(function), torch.zeros_like(self.values)
        if function.domain == "semidefinite":
            at_zero = function.values(at_zero)
        # The double where keeps the derivative at zero eigenvalues finite when this is unrolled.
        values = function.values(torch.where(zero, 1.0, self.values))
        values = torch.where(zero, at_zero, values)
        return (self.vectors * values[..., None, :]) @ self.vectors.mH

    def arguments(self, function: SpectralFunction) -> Tensor:
        """The eigenvalues as derivatives take them.

        Where f'(0) is infinite they are exactly 0 if they are zero to rounding.
        """
        zero = self._zero(function)
        return torch.where(zero if function.bounded_slope else zero | self.null, 0.0, self.values)

    def _zero(self, function: SpectralFunction) -> Tensor:
        """Which eigenvalues count as zero; of a function on all reals none does.

        Of functions of semi-definite matrices those below 0. Above, every eigenvalue counts: which
        of them are rounding cannot be told, and a small one may be most of xᵖ for a small p.
        """
        if isinstance(function, OnRange):
            on_reals = function.function.domain in ("real", "regular")
            return self.null if on_reals else ~self.kept
        if function.domain == "real":
            return torch.zeros_like(self.null)
        if function.domain == "semidefinite":
            return self.values <= 0
        return self.null if function.domain == "regular" else ~self.kept


def eigh(a: Tensor, *, sharp: bool = True) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and orthonormal eigenvectors of Hermitian matrices, A = Q diag(λ) Qᴴ.

    In single precision a solver is off by up to 3 √n units of rounding of the largest eigenvalue,
    which cannot tell one that is zero from a small one. So where one may be zero small eigenvalues
    are found again in double precision, with their vectors: those of A in the space that the
    vectors of all up to n units span (Rayleigh and Ritz), or in whole. Where values cannot be
    looked at (accelerators, torch.compile, torch.func) all is done in double precision.

    Args:
        a: shape (..., n, n), finite, of a real or complex dtype of single or double precision.
        sharp: whether zeros must be told from small eigenvalues, else only indefinite matrices from
            semi-definite ones: for a root without a derivative.

    Returns:
        λ, shape (..., n), and Q, shape (..., n, n), in the precision of ``a``; NaN where the solver
        fails.
    """
    if a.numel() == 0:
        return a.new_empty(a.shape[:-1], dtype=spd.real_dtype(a.dtype)), a.clone()
    looked_at = context.host_reads_are_free(a) and not a.requires_grad
    single = spd.real_dtype(a.dtype) == torch.float32
    # Apple's GPUs have no double precision.
    if single and not looked_at and a.device.type != "mps":
        values, vectors = _guarded(_eigh, spd.in_double(a))
        return values.to(torch.float32), vectors.to(a.dtype)
    values, vectors = _guarded(_eigh, a)
    if single and looked_at:
        n, size = a.shape[-1], values.abs()
        unit = spd.real_eps(a.dtype) * size.amax(-1)
        error, least = 4 * n**0.5 * unit, values[..., 0]
        near = (least >= -2 * n * unit) & (least <= error - n * unit)
        if sharp:
            near = near | (size.amin(-1) <= spd.null_units(n, a.dtype) * unit + error)
        flat = a.reshape(-1, n, n), values.view(-1, n), vectors.view(-1, n, n)
        for index in together(near.flatten(), n):
            if n <= _SMALL or not _sharpen(*(x[index[0]] for x in flat)):
                _repeat(*flat, index, near.flatten())
    return values, vectors


def _sharpen(a: Tensor, values: Tensor, vectors: Tensor) -> bool:
    """Find the small eigenvalues of one matrix again, in place; whether that was possible."""
    limit = a.shape[-1] * spd.real_eps(a.dtype) * values.abs().max()
    below, upto = (int(x) for x in torch.stack([values < -2 * limit, values <= limit]).sum(-1))
    if not below < upto <= below + a.shape[-1] // 2:
        return False
    # Made orthogonal first, as eigenvalues of the projected matrix are relative to that.
    v = spd.in_double(vectors[:, below:upto])
    v = 1.5 * v - 0.5 * (v @ (v.mH @ v))
    found, turn = _guarded(_eigh, spd.hermitian_part(v.mH @ (spd.in_double(a) @ v)))
    if not found.isfinite().all():
        return False
    values[below:upto], vectors[:, below:upto] = found, v @ turn
    return True


def _repeat(a: Tensor, values: Tensor, vectors: Tensor, index: Tensor, which: Tensor) -> None:
    """Decompose matrices of a batch in double precision and replace those of them, in place."""
    wide = _guarded(_eigh, spd.in_double(a[index]))
    for whole, part in zip((values, vectors), wide, strict=True):
        taken = which[index].reshape((-1,) + (1,) * (whole.ndim - 1))
        whole[index] = torch.where(taken, part.to(whole.dtype), whole[index])


# Up to this size a matrix takes less time than a call.
_SMALL = 64


def together(which: Tensor, n: int) -> list[Tensor]:
    """Indices of matrices of a batch to be done in one call, so that some of them are done again.

    The bits of a matrix must not depend on how many others need it. So small matrices are all done,
    in the places that they have anyway, and large ones one by one. Reads ``which`` on the host.

    Args:
        which: those that need it, shape (b,).
        n: their size.
    """
    if not which.any():
        return []
    if n <= _SMALL:
        return [torch.arange(len(which), device=which.device)]
    return list(which.nonzero())


def svd(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, σ (descending) and Vᴴ of A = U diag(σ) Vᴴ, min(m, n) of them for m×n matrices.

    NaN where the solver fails.
    """
    u, sigma, vh = _guarded(_svd, a)
    return u, sigma, vh


def eigenvalues(a: Tensor) -> Tensor:
    """Those of Hermitian matrices alone, ascending, (..., n); NaN where the solver fails."""
    return _guarded(lambda a: (torch.linalg.eigvalsh(a),), a)[0]


def singular_values(a: Tensor) -> Tensor:
    """Those of matrices alone, descending; NaN where the solver fails."""
    return _guarded(lambda a: (torch.linalg.svdvals(a),), a)[0]


def _eigh(a: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.linalg.eigh(a))


def _svd(a: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.linalg.svd(a, full_matrices=False))


def _guarded(factorise: Factorisation, a: Tensor) -> tuple[Tensor, ...]:
    if torch.compiler.is_compiling():
        return factorise(a)  # A program that is being traced cannot catch what it will raise.
    try:
        found = factorise(a)
    except torch.linalg.LinAlgError:
        flat = a.reshape(-1, *a.shape[-2:])
        each = [_alone(factorise, matrix) for matrix in flat]
        return tuple(
            torch.stack(parts).reshape(*a.shape[:-2], *parts[0].shape)
            for parts in zip(*each, strict=True)
        )
    if context.host_reads_are_free(a) and not a.requires_grad:
        failed = torch.stack([part.isnan().flatten(a.ndim - 2).any(-1) for part in found]).any(0)
        _again(factorise, a, failed, found)
    return found


def _again(factorise: Factorisation, a: Tensor, which: Tensor, found: tuple[Tensor, ...]) -> None:
    """Replace what was found of some matrices; reads ``which``, shape (...), on the host.

    One by one: the bits of a matrix must not depend on how many others need it.
    """
    for index in which.nonzero().tolist():
        place = tuple(index)
        for whole, part in zip(found, _alone(factorise, a.detach()[place]), strict=True):
            whole[place] = part


def _alone(factorise: Factorisation, a: Tensor) -> tuple[Tensor, ...]:
    """The factors of one matrix (n, n), found in double precision; NaN where that fails."""
    wide = spd.in_double(a) if a.device.type != "mps" else a.clone()
    size = spd.max_abs(wide.detach())
    # Entries below the square of rounding are nothing beside the largest, but their squares
    # underflow, which is what solvers fail on.
    flushed = torch.where(wide.abs() < spd.real_eps(wide.dtype) ** 2 * size, 0.0, wide)
    for matrix in (wide, flushed):
        try:
            found = factorise(matrix)
        except torch.linalg.LinAlgError:
            continue
        if not context.host_reads_are_free(a) or not any(part.isnan().any() for part in found):
            break
    else:
        like = factorise(torch.ones_like(wide))
        found = tuple(torch.full_like(part, torch.nan) for part in like)
    return tuple(
        part.to(a.dtype if part.is_complex() else spd.real_dtype(a.dtype)) for part in found
    )


def without_rounded_negatives(a: Tensor, dtype: torch.dtype) -> Tensor:
    """A with negative eigenvalues at the rounding level of the user's half dtype put to 0.

    They are far above the rounding of the computing dtype, where a rational or polynomial
    approximation of the root is nonsense on them. Only matrices that need it change.
    """
    seen = a.detach()
    shift = a.shape[-1] * spd.real_eps(a.dtype) * spd.positive_or_one(spd.upper_bound(seen))
    negative = ~spd.factorises(seen + shift * spd.identity_like(a))
    if context.host_reads_are_free(a) and not negative.any():
        return a
    values, q = eigh(seen)
    clipped = (q * values.clamp(min=0)[:, None, :]) @ q.mH
    # A negative matrix stays as it is, to be found indefinite.
    rounded = negative & (values[:, 0] >= -a.shape[-1] * spd.real_eps(dtype) * values[:, -1])
    return a + torch.where(rounded[:, None, None], spd.hermitian_part(clipped) - seen, 0.0)
