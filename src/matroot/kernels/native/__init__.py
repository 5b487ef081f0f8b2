"""Whole solves on a CPU by compiled kernels, one matrix at a time in its caches."""

from __future__ import annotations

from matroot.gradients import Lyapunov, Spectral
from matroot.kernels.kernel import Family
from matroot.kernels.native import gradients, tasks, values
from matroot.methods import Eigh, Minimax, Pade, Taylor

NATIVE = Family(
    name="native",
    declines=tasks.declines,
    values={
        Eigh: values.EIGH,
        Minimax: values.MINIMAX,
        Pade: values.PUBLISHED,
        Taylor: values.PUBLISHED,
    },
    gradients={Spectral: gradients.SPECTRAL, Lyapunov: gradients.LYAPUNOV},
    method=Eigh(),
)
