"""Distances by the compiled kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from matroot.kernels.native import tasks
from matroot.screen import Thresholds


def squared_distances(
    a: Tensor, b: Tensor, limits: Thresholds, eps: float, *, gradients: bool
) -> tuple[Tensor, ...] | None:
    """The squared Bures–Wasserstein distances of pairs, and if asked for their two gradients.

    See DistanceTask in native/isa.hpp.

    Args:
        a: shape (..., n, n), in the computing dtype.
        b: shape (..., n, n), as many dimensions; those of the batch broadcast.
        limits: the thresholds.
        eps: the ridge on both.
        gradients: whether they are wanted.

    Returns:
        The squares in double precision, shape (...), and the gradients, twice (..., n, n). A square
        is NaN, and its gradients mean nothing, where a matrix has no root or may be singular. None
        where no kernel takes such matrices.
    """
    n = a.shape[-1]
    # Of matrices of double precision the kernel would lose half the digits.
    if a.dtype != torch.float32 or n > tasks.LARGEST:
        return None
    if tasks.declines(a) is not None or not tasks.have_memory(a, b):
        return None
    # PyTorch's function has no annotations.
    pairs = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
    first, second = map(tasks.in_memory, pairs)
    square = first.new_empty(first.shape[:-2], dtype=torch.float64)
    by = (torch.empty_like(first), torch.empty_like(first)) if gradients else ()
    task = tasks.MODULE.DistanceTask(
        batch=tasks.batch(first),
        a=first.data_ptr(),
        b=second.data_ptr(),
        square=square.data_ptr(),
        by_a=by[0].data_ptr() if by else 0,
        by_b=by[1].data_ptr() if by else 0,
        eps=eps,
        thresholds=tasks.thresholds(limits),
    )
    tasks.MODULE.distance(task)
    return (square, *by)
