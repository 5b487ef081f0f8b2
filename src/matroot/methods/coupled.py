"""What the coupled iterations share: telling when rounding errors have grown."""

from __future__ import annotations

from torch import Tensor

from matroot import context, spd
from matroot.roots import Wanted


def diverged(y: Tensor, z: Tensor, trace: Tensor, wanted: Wanted) -> Tensor:
    """Whether the iterates are no roots of A/c, shape (b,).

    Exact steps keep 0 ≤ Y² ≤ A/c but for the error that a step may leave. Where A is singular,
    negative eigenvalues that rounding left of zeros grow at every step and make Y indefinite, then
    large.

    Args:
        y: the iterate that goes to (A/c)^{1/2}, shape (b, n, n).
        z: the iterate that goes to (A/c)^{-1/2}.
        trace: tr A/c, times the square of what a step may leave, shape (b,).
        wanted: which of them are.
    """
    finite: Tensor = (z if wanted.inv_sqrt else y).isfinite().all(-1).all(-1)
    if not wanted.sqrt:
        return ~finite
    if context.exporting():
        # Exporters know no factorisation.
        return ~(finite & (spd.frobenius_norm(y).flatten().square() <= 1.1 * trace))
    slack = spd.real_eps(y.dtype) ** 0.5
    norm = spd.frobenius_norm(y)
    symmetric = spd.hermitian_part(y) + 2 * slack * norm * spd.identity_like(y)
    definite = spd.factorises(symmetric) | (norm.flatten() == 0)
    bounded: Tensor = norm.flatten().square() <= (1 + 20 * slack) * trace
    return ~(finite & definite & bounded)
