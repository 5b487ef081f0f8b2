"""PyTorch's operations: on an accelerator whole calls in few of them, else what methods are."""

from __future__ import annotations

from matroot.gradients import Lyapunov
from matroot.kernels import large
from matroot.kernels.kernel import Family
from matroot.kernels.passes import ByOperations
from matroot.methods import Minimax

_PASSES = ByOperations()
_VALUES, _GRADIENT = large.kernels(lambda a: _PASSES)

TORCH = Family(
    name="torch",
    declines=lambda a: None,
    values={Minimax: (_VALUES,)},
    gradients={Lyapunov: (_GRADIENT,)},
)
