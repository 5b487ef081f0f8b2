"""The published names of methods, as options of the layers."""

from __future__ import annotations

from typing import Any

from matroot.gradients import (
    GRADIENTS,
    Lyapunov,
    PowerIteration,
    SpectralClipped,
    SpectralNaive,
    SpectralPade,
    SpectralTaylor,
    Unrolled,
)
from matroot.methods import METHODS, NewtonSchulz, Pade, Svd, Taylor

PUBLISHED: dict[str, dict[str, Any]] = {
    "svd": {"method": Svd(), "gradient": SpectralNaive()},
    "svd-clip": {"method": Svd(), "gradient": SpectralClipped()},
    "svd-taylor": {"method": Svd(), "gradient": SpectralTaylor()},
    "svd-pade": {"method": Svd(), "gradient": SpectralPade()},
    "svd-pi": {"method": Svd(), "gradient": PowerIteration()},
    "pi": {"normalization": "power"},
    "ns": {"method": NewtonSchulz(), "gradient": Unrolled()},
    "mtp": {"method": Taylor(), "gradient": Lyapunov(steps=8)},
    "mpa": {"method": Pade(), "gradient": Lyapunov(steps=8)},
}
NAMES = ("auto", *PUBLISHED, *(name for name in METHODS if name not in PUBLISHED))


def layer_options(
    method: str, gradient: str | None = None, eps: float | None = None
) -> dict[str, Any]:
    """What ``--method``, ``--gradient`` and ``--eps`` mean to a layer of ``matroot.nn``.

    Args:
        method: a published name (``"mpa"``, ``"svd-pi"`` …), ``"auto"``, or a name from
            ``matroot.methods.METHODS``.
        gradient: a name from ``matroot.gradients.GRADIENTS``; None: the method's own.
        eps: ridge; None: that of the application.

    Raises:
        ValueError: an unknown name, or a gradient for ``"pi"``, which is not a root.
    """
    if method not in NAMES:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(NAMES)}")
    options = dict(PUBLISHED.get(method, {"method": method}))
    if gradient is not None:
        if gradient not in GRADIENTS:
            raise ValueError(f"unknown gradient {gradient!r}; known: {', '.join(GRADIENTS)}")
        if "normalization" in options:
            raise ValueError(f"method {method!r} is not a root and takes no gradient rule")
        options["gradient"] = gradient
    if eps is not None:
        options["eps"] = eps
    return options
