"""What is said of matrices that have no result."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from matroot import spd
from matroot.screen import Status, Thresholds


@dataclass(frozen=True)
class Named:
    """What an error text calls an argument, and the remedies that the function offers.

    Attributes:
        name: the argument's name in the function that the user called.
        ridge: how a ridge is added there: "add …".
        relative: how a ridge relative to the matrix is.
        otherwise: what else helps there, a clause.
        things: what a batch is made of.
        lacks: what a singular matrix does not have.
    """

    name: str
    ridge: str = "a multiple of the identity"
    relative: str = ""
    otherwise: str = ""
    things: str = "matrices"
    lacks: str = "inverse root"


def raise_if_bad(
    named: Named, status: Tensor, a: Tensor, limits: Thresholds, eps: float = 0.0
) -> None:
    """Raise LinAlgError if any matrix of the batch has a status other than OK.

    Args:
        named: the argument.
        status: shape (...), the Status of each matrix.
        a: the argument, shape (..., n, n).
        limits: what decided on the status.
        eps: the ridge that was added.

    Raises:
        torch.linalg.LinAlgError: with how many matrices are bad, the first few indices, why, by how
            much, and what helps.
    """
    worst = int(status.max()) if status.numel() else 0
    if worst == Status.OK:
        return
    bad = status == worst
    total, many = status.numel(), int(bad.sum())
    reason = _reason(worst, named, a.detach()[bad], limits, eps)
    if total == 1:
        raise torch.linalg.LinAlgError(f"{named.name} is {reason}")
    indices = [tuple(index) if len(index) > 1 else index[0] for index in bad.nonzero()[:4].tolist()]
    where = ", ".join(map(str, indices)) + (", …" if many > len(indices) else "")
    verb = "are" if many > 1 else "is"
    raise torch.linalg.LinAlgError(
        f"{many} of the {total} {named.things} in {named.name} {verb} {reason} "
        f"(batch index {where})"
    )


def _reason(status: int, named: Named, bad: Tensor, limits: Thresholds, eps: float) -> str:
    """What is wrong with matrices (b, n, n) or vectors, by how much, and what helps."""
    if status == Status.NONFINITE:
        return "not finite (NaN or infinity)"
    if status == Status.DIVERGED:
        return (
            "out of reach of this method, which diverged: too close to singular, or too badly "
            f"scaled; take fewer steps or another method, or add {named.ridge}{named.relative}"
        )
    first = "the first: " if len(bad) > 1 else ""
    ridge = f"add {named.ridge}{named.relative}"
    a = spd.in_double(bad[0])
    n = a.shape[-1]
    cancelled = "covariances summed as E[xxᵀ] − μμᵀ lose digits: centre the samples first"
    if status == Status.ASYMMETRIC:
        skew = float(torch.linalg.matrix_norm(a - a.mH) / 2 / torch.linalg.matrix_norm(a))
        return (
            f"not symmetric (Hermitian): {first}the skew part is {skew:.1e} of the norm, "
            f"tolerance {limits.skew:g}; if that is rounding, give (A + Aᴴ)/2 ({cancelled})"
        )
    try:
        values = torch.linalg.eigvalsh(spd.hermitian_part(a)) + eps
    except torch.linalg.LinAlgError:
        values = torch.full((n,), math.nan)
    if limits.indefinite is None:
        values = values.abs().sort().values
    ratio = float(values[0] / values[-1]) if values[-1] > 0 else -math.inf
    if status == Status.INDEFINITE:
        if ratio == -math.inf:
            return f"indefinite: {first}no eigenvalue is positive, λ_min = {float(values[0]):.1e}"
        assert limits.indefinite is not None
        tolerance = -limits.indefinite
        return (
            f"indefinite: {first}λ_min/λ_max = {ratio:.1e}, tolerance {tolerance:.1e}; if that "
            f"is rounding, {ridge}, here more than {-float(values[0]):.1e} in the units "
            f"of the matrix ({cancelled})"
        )
    share = limits.null
    rank = int((values > share * values[-1]).sum())
    how = f"λ_min/λ_max = {ratio:.1e}, zero up to {share:.1e}"
    if not values[-1] > 0:
        how, ridge = "no eigenvalue is above zero", f"add {named.ridge}"
    remedies = ridge + (f", {named.otherwise}" if named.otherwise else "")
    return (
        f"singular ({first}rank {rank} of {n}, {how}), so "
        f"{'they have' if len(bad) > 1 else 'it has'} no {named.lacks}; {remedies}"
    )
