"""What the autograd functions share: forward mode, derivatives under tracers, vmap."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from matroot import context

F = TypeVar("F", bound=torch.autograd.Function)


def nested_forward_mode() -> AbstractContextManager[object]:
    """For the body of a jvp rule: PyTorch switches forward mode off there, at every level.

    Under nested torch.func.jvp the outer level would then see constants, and second derivatives
    would be silently wrong. Saved tensors must pass through ``primals`` inside.
    """
    # PyTorch has no public switch for this; torch.autograd.forward_ad exports this one.
    switch: AbstractContextManager[object] = forward_ad._set_fwd_grad_enabled(True)
    return switch


def primals(saved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Saved tensors without the tangent of the level that a jvp rule is computing."""
    return tuple(_unpack(t).primal for t in saved)


def tangent(a: Tensor) -> Tensor | None:
    """The tangent of a dual number of the innermost level, None for an ordinary tensor."""
    return _unpack(a).tangent


def _unpack(a: Tensor) -> forward_ad.UnpackedDualTensor:
    # unpack_dual has no annotations of its own.
    dual: forward_ad.UnpackedDualTensor = forward_ad.unpack_dual(a)  # type: ignore[no-untyped-call]
    return dual


def differentiated(*inputs: Tensor) -> bool:
    """Whether a derivative may be asked of what is made of these.

    Not of an exported program, which holds operations and no rules of ours.
    """
    if torch.compiler.is_compiling():
        return not context.exporting()
    if context.transforms_active():
        return True
    if torch.is_grad_enabled():
        for x in inputs:
            if x.requires_grad:
                return True
    # PyTorch offers no public question for whether forward mode is on.
    return forward_ad._current_level >= 0 and any(tangent(x) is not None for x in inputs)


def in_one_step(function: type[F]) -> type[F]:
    """The same autograd function without a ``setup_context``, which PyTorch calls in half the time.

    For where no torch.func transform is running.
    """

    class InOneStep(torch.autograd.Function):
        backward = staticmethod(function.backward)
        jvp = staticmethod(function.jvp)

        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

    InOneStep.__name__ = InOneStep.__qualname__ = function.__name__
    return InOneStep  # type: ignore[return-value]  # As a class it stands in for the other.


def traceable(function: type[F], forward_mode: type[F], eager: type[F] | None = None) -> type[F]:
    """The autograd function to apply: under torch.compile the one without a forward-mode rule.

    Args:
        function: without a forward-mode rule.
        forward_mode: the same with one.
        eager: that one ``in_one_step``, where there is one.

    Raises:
        NotImplementedError: under torch.compile within two gradients. The compiler takes the
            backward pass of every autograd function for a constant, and the second derivative
            would be wrong. (Without ``fullgraph=True`` it then runs the call uncompiled.)
    """
    if not torch.compiler.is_compiling():
        # PyTorch offers no public question for this; autograd.Function.apply asks the same way.
        if eager is None or torch._C._are_functorch_transforms_active():
            return forward_mode
        return eager
    if _gradient_levels() > 1:
        raise NotImplementedError(
            "second derivatives inside torch.compile, which takes the backward pass of autograd "
            "functions for a constant; take them outside of the compiled function"
        )
    return function


def _gradient_levels() -> int:
    """How many torch.func gradients are running, one inside the other."""
    # PyTorch offers no public question for this; its own transforms ask the same way.
    from torch._C._functorch import TransformType
    from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

    running = retrieve_all_functorch_interpreters()
    return sum(interpreter.key() == TransformType.Grad for interpreter in running)


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
_gradient_levels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def batch_first(
    size: int, in_dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]
) -> list[Tensor]:
    """The tensors of a vmap rule, each with the mapped dimension first."""
    return [
        t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for dim, t in zip(in_dims, tensors, strict=True)
    ]
