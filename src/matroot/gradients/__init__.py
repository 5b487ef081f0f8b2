"""Backward rules, one file each; any of them goes with any method that can feed it."""

from matroot.gradients.lyapunov import Lyapunov
from matroot.gradients.published import (
    PowerIteration,
    SpectralClipped,
    SpectralNaive,
    SpectralPade,
    SpectralTaylor,
)
from matroot.gradients.rule import ExplicitRule, GradientRule, ImplicitRule, Kept
from matroot.gradients.spectral import Spectral
from matroot.gradients.unrolled import Unrolled
from matroot.registry import Registry

__all__ = [
    "GRADIENTS",
    "ExplicitRule",
    "GradientRule",
    "ImplicitRule",
    "Kept",
    "Lyapunov",
    "PowerIteration",
    "Spectral",
    "SpectralClipped",
    "SpectralNaive",
    "SpectralPade",
    "SpectralTaylor",
    "Unrolled",
]

GRADIENTS: Registry[GradientRule] = Registry(
    "gradient",
    GradientRule,
    Lyapunov,
    Spectral,
    Unrolled,
    SpectralNaive,
    SpectralClipped,
    SpectralTaylor,
    SpectralPade,
    PowerIteration,
)
