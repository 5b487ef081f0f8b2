"""How functions of PyTorch, JAX and NumPy are called, differentiated and timed: tensors in and out.

A function takes matrices of its own library, shape (..., n, n), and returns the root, or a tuple
of both roots in the order S, Z.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Any], Any]
Thunk = Callable[[], Any]
"""One execution on converted inputs; ``Adapter.tensors`` takes its result."""


class Absent(Exception):
    """The library lacks what was asked for: a gradient, a compiler."""


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress other packages' warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Adapter:
    """How the functions of a library are called; what it lacks raises ``Absent``."""

    def forward(self, function: Function, a: Tensor) -> Thunk:
        """The roots, with nothing saved for a gradient."""
        raise NotImplementedError

    def both(self, function: Function, a: Tensor, cotangents: tuple[Tensor, ...]) -> Thunk:
        """The roots, and last the gradient for a cotangent of each."""
        raise Absent("no gradient")

    def tensors(self, found: Any) -> tuple[Tensor, ...]:
        """The result of a thunk as tensors."""
        raise NotImplementedError

    def value(self, function: Function, a: Tensor) -> tuple[Tensor, ...]:
        """The roots."""
        return self.tensors(self.forward(function, a)())

    def gradient(
        self, function: Function, a: Tensor, cotangents: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The roots and the gradient by A."""
        *roots, gradient = self.tensors(self.both(function, a, cotangents)())
        return tuple(roots), gradient

    def second(self, function: Function, a: Tensor, g: Tensor, e: Tensor) -> Tensor:
        """The gradient of ⟨∇φ, E⟩, φ(A) = ½ Σ_ij G_ij f(A)²_ij: its second derivative along E."""
        raise Absent("no gradient")

    def jvp(self, function: Function, a: Tensor, e: Tensor) -> Tensor:
        """The derivative along E by forward-mode differentiation."""
        raise Absent("no gradient")

    def vmapped(self, function: Function) -> Function:
        """The function mapped over the first dimension."""
        raise Absent("no vmap")

    def compiled(self, function: Function) -> Function:
        """The function as the library's compiler makes it, in one piece."""
        raise Absent("no compiler")


class TorchAdapter(Adapter):
    """PyTorch, on the device of its input."""

    def forward(self, function: Function, a: Tensor) -> Thunk:
        def thunk() -> Any:
            with torch.no_grad():
                return function(a)

        return thunk

    def both(self, function: Function, a: Tensor, cotangents: tuple[Tensor, ...]) -> Thunk:
        leaf = a.clone().requires_grad_()

        def thunk() -> Any:
            roots = _as_tuple(function(leaf))
            return (*roots, *torch.autograd.grad(roots, leaf, cotangents))

        return thunk

    def tensors(self, found: Any) -> tuple[Tensor, ...]:
        return tuple(x.detach() for x in _as_tuple(found))

    def second(self, function: Function, a: Tensor, g: Tensor, e: Tensor) -> Tensor:
        leaf = a.clone().requires_grad_()
        form = (g * function(leaf).square()).sum() / 2
        (first,) = torch.autograd.grad(form, leaf, create_graph=True)
        return torch.autograd.grad((first * e).sum(), leaf)[0]

    def jvp(self, function: Function, a: Tensor, e: Tensor) -> Tensor:
        derivative: Tensor = torch.func.jvp(function, (a,), (e,))[1]
        return derivative

    def vmapped(self, function: Function) -> Function:
        return torch.func.vmap(function)

    def compiled(self, function: Function) -> Function:
        # The compiler counts the versions of this one lambda, and gives up after eight.
        torch.compiler.reset()
        return torch.compile(lambda a: function(a), fullgraph=True, backend="aot_eager")


class JaxAdapter(Adapter):
    """JAX on a CPU, compiled; double precision is on for such tensors, during the call only."""

    def forward(self, function: Function, a: Tensor) -> Thunk:
        return _program(_jax_roots, function, a)

    def both(self, function: Function, a: Tensor, cotangents: tuple[Tensor, ...]) -> Thunk:
        return _program(_jax_gradient, function, a, *cotangents)

    def tensors(self, found: Any) -> tuple[Tensor, ...]:
        return tuple(to_torch(x) for x in _as_tuple(found))

    def second(self, function: Function, a: Tensor, g: Tensor, e: Tensor) -> Tensor:
        import jax

        with on_jax(a.dtype):
            weights, direction = to_jax(g), to_jax(e)
            first = jax.grad(lambda x: (weights * function(x) ** 2).sum() / 2)
            return to_torch(jax.grad(lambda x: (first(x) * direction).sum())(to_jax(a)))

    def jvp(self, function: Function, a: Tensor, e: Tensor) -> Tensor:
        import jax

        with on_jax(a.dtype):
            return to_torch(jax.jvp(function, (to_jax(a),), (to_jax(e),))[1])

    def vmapped(self, function: Function) -> Function:
        import jax

        return jax.vmap(function)

    def compiled(self, function: Function) -> Function:
        import jax

        return jax.jit(function)


class NumpyAdapter(Adapter):
    """NumPy: values only."""

    def forward(self, function: Function, a: Tensor) -> Thunk:
        x = a.numpy()
        return lambda: function(x)

    def tensors(self, found: Any) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(x) for x in _as_tuple(found))


@contextmanager
def on_jax(dtype: torch.dtype) -> Iterator[None]:
    """JAX on the CPU (the gradients of OTT-JAX need it) and in this precision, inside the block."""
    import jax

    double = dtype in (torch.float64, torch.complex128)
    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(double):
        yield


def to_jax(x: Tensor) -> Any:
    """A JAX array of the same numbers, within ``on_jax``."""
    import jax.numpy as jnp

    return jnp.from_dlpack(x.detach().contiguous().resolve_conj())


def to_torch(x: Any) -> Tensor:
    """A tensor of the same numbers."""
    return torch.utils.dlpack.from_dlpack(x)


def _program(run: Callable[..., Any], function: Function, *tensors: Tensor) -> Thunk:
    """``run(function, *arrays)``, compiled now; each call waits for its end."""
    import jax

    with on_jax(tensors[0].dtype):
        arrays = [to_jax(x) for x in tensors]
        program = _compiled(run, function, *((x.shape, x.dtype) for x in arrays))
    # JAX publishes no type of it.
    return lambda: jax.block_until_ready(program(*arrays))  # type: ignore[no-untyped-call]


# Cached, since compiling OTT-JAX takes seconds and the same shapes come in many cases. (JAX does
# not publish all its types.)
@lru_cache(maxsize=64)
def _compiled(run: Callable[..., Any], function: Function, *signature: Any) -> Any:
    import jax

    # JAX publishes no type of this either.
    shapes = [jax.ShapeDtypeStruct(*x) for x in signature]  # type: ignore[no-untyped-call]
    return jax.jit(lambda *arrays: run(function, *arrays)).lower(*shapes).compile()


def _jax_roots(function: Function, a: Any) -> Any:
    return function(a)


def _jax_gradient(function: Function, a: Any, *cotangents: Any) -> Any:
    import jax

    roots, vjp = jax.vjp(function, a)
    (gradient,) = vjp(cotangents if isinstance(roots, tuple) else cotangents[0])
    return (*_as_tuple(roots), gradient)


def _as_tuple(roots: Any) -> tuple[Any, ...]:
    return roots if isinstance(roots, tuple) else (roots,)


ADAPTERS: dict[str, Adapter] = {
    "torch": TorchAdapter(),
    "jax": JaxAdapter(),
    "numpy": NumpyAdapter(),
}
