"""What is measured of matrices and their roots, by the compiled kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from matroot import spd
from matroot.kernels.native import tasks


def measure(
    a: Tensor, sqrt: Tensor | None, inv_sqrt: Tensor | None, eps: float, shift: float
) -> Tensor | None:
    """See MeasureTask in native/isa.hpp.

    Args:
        a: shape (..., n, n), the argument of a call, as its results.
        sqrt: None where there is none, as the inverse root.
        inv_sqrt: …
        eps: the ridge.
        shift: with which S is inverted, relative to ‖S‖_F.

    Returns:
        Shape (..., MEASURES), double precision; None where no kernel takes such matrices.
    """
    if a.shape[-1] > tasks.LARGEST or tasks.declines(a) is not None:
        return None
    if not tasks.have_memory(a, sqrt, inv_sqrt):
        return None
    x, s, z = (None if value is None else _in_memory(value) for value in (a, sqrt, inv_sqrt))
    assert x is not None
    found = x.new_empty((*x.shape[:-2], tasks.MODULE.MEASURES), dtype=torch.float64)
    task = tasks.MODULE.MeasureTask(
        batch=tasks.batch(x),
        a=x.data_ptr(),
        sqrt=tasks.address(s),
        inv_sqrt=tasks.address(z),
        numbers=found.data_ptr(),
        eps=eps,
        shift=shift,
    )
    tasks.MODULE.measure(task)
    return found


def _in_memory(a: Tensor) -> Tensor:
    """A with its numbers one after the other, half precision as float32."""
    return tasks.in_memory(a.to(spd.computing_dtype(a.dtype)))
