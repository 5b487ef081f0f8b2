"""The seam between the algorithms and whoever multiplies: records of arithmetic."""

from __future__ import annotations

from torch import Tensor

from matroot.backends.backend import Backend, FusedRoots, GradientProblem, RootProblem
from matroot.backends.native import NATIVE
from matroot.backends.torch_ops import TORCH

__all__ = [
    "NATIVE",
    "TORCH",
    "Backend",
    "FusedRoots",
    "GradientProblem",
    "RootProblem",
    "reasons",
    "select",
]

_BACKENDS = {backend.name: backend for backend in (TORCH, NATIVE)}


def select(name: str, a: Tensor) -> Backend:
    """The backend called ``name``; ``"auto"`` is ``"native"`` where that takes ``a``.

    Raises:
        ValueError: no such backend, or the named one declines this tensor.
    """
    if name == "auto":
        return TORCH if NATIVE.declines(a) else NATIVE
    if name not in _BACKENDS:
        known = ", ".join(map(repr, ("auto", *_BACKENDS)))
        raise ValueError(f"unknown backend {name!r}; known: {known}")
    reason = _BACKENDS[name].declines(a)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run this: {reason}")
    return _BACKENDS[name]


def reasons(a: Tensor) -> dict[str, str]:
    """Every known backend, with ``"takes it"`` or the reason why it declines ``a``."""
    found = {name: backend.declines(a) for name, backend in _BACKENDS.items()}
    return {name: "takes it" if why is None else f"declines: {why}" for name, why in found.items()}
