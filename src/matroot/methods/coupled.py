"""What the coupled iterations share: telling when rounding has grown."""

from __future__ import annotations

from torch import Tensor

from matroot import autodiff, spd
from matroot.solution import Root


def grown(y: Tensor, z: Tensor, trace: Tensor, root: Root) -> Tensor:
    """Whether the iterates are no roots of A/c, shape (b,).

    Exact steps keep 0 ≤ Y² ≤ A/c but for the error that a step may leave. Where A is singular,
    negative eigenvalues that rounding left of zeros grow at every step and make Y indefinite, then
    large.

    Args:
        y: the iterate that goes to (A/c)^{1/2}, shape (b, n, n).
        z: the iterate that goes to (A/c)^{-1/2}.
        trace: tr A/c, times the square of what a step may leave, shape (b,).
        root: which of them are wanted.
    """
    finite: Tensor = (y if root == "sqrt" else z).isfinite().all(-1).all(-1)
    if root == "inv_sqrt":
        return ~finite
    if autodiff.exporting():
        # Exporters know no factorisation.
        return ~(finite & (spd.frobenius_norm(y).flatten().square() <= 1.1 * trace))
    slack = spd.real_eps(y.dtype) ** 0.5
    norm = spd.frobenius_norm(y)
    symmetric = spd.hermitian_part(y) + 2 * slack * norm * spd.identity_like(y)
    definite = spd.factorises(symmetric) | (norm.flatten() == 0)
    bounded: Tensor = norm.flatten().square() <= (1 + 20 * slack) * trace
    return ~(finite & definite & bounded)
