"""Differentiation of the forward algorithm itself."""

from __future__ import annotations

from dataclasses import dataclass

from matroot.gradients.rule import GradientRule


@dataclass(frozen=True)
class Unrolled(GradientRule):
    """Let autograd differentiate every operation of the method.

    The derivative of the approximation rather than of the root: exact for what the method computes,
    at any order, but wrong or not finite at repeated eigenvalues of eigh and svd and at singular A,
    and the memory grows with the steps.
    """

    any_function = True
    summary = "autograd through the method's own operations"
