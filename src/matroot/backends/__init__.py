"""The seam between the algorithms and whoever multiplies: records of arithmetic."""

from __future__ import annotations

from torch import Tensor

from matroot.backends.backend import Backend, FusedRoots, GradientProblem, RootProblem
from matroot.backends.native import NATIVE
from matroot.backends.torch_ops import TORCH
from matroot.backends.triton import TRITON, TRITON_DOUBLE, TRITON_TF32

__all__ = [
    "NATIVE",
    "TORCH",
    "TRITON",
    "TRITON_DOUBLE",
    "TRITON_TF32",
    "Backend",
    "FusedRoots",
    "GradientProblem",
    "RootProblem",
    "reasons",
    "select",
]

_BACKENDS = {
    backend.name: backend for backend in (TORCH, NATIVE, TRITON, TRITON_TF32, TRITON_DOUBLE)
}


def select(name: str, a: Tensor) -> Backend:
    """The backend called ``name``; ``"auto"`` is the first with kernels that takes ``a`` unasked.

    Raises:
        ValueError: no such backend, or the named one declines this tensor.
    """
    if name == "auto":
        for backend in (NATIVE, TRITON):
            if backend.declines(a) is None and backend.on_request(a) is None:
                return backend
        return TORCH
    if name not in _BACKENDS:
        known = ", ".join(map(repr, ("auto", *_BACKENDS)))
        raise ValueError(f"unknown backend {name!r}; known: {known}")
    reason = _BACKENDS[name].declines(a)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run this: {reason}")
    return _BACKENDS[name]


def reasons(a: Tensor) -> dict[str, str]:
    """Every known backend, with ``"takes it"`` or the reason why it declines ``a``."""
    return {name: _reason(backend, a) for name, backend in _BACKENDS.items()}


def _reason(backend: Backend, a: Tensor) -> str:
    why = backend.declines(a)
    if why is not None:
        return f"declines: {why}"
    asked = backend.on_request(a)
    notes = [f"if asked for: {asked}"] if asked else []
    if backend.note is not None:
        notes.append(backend.note(a))
    return "takes it" + (f" ({'; '.join(notes)})" if notes else "")
