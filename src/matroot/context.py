"""What goes on around a call: tracers, transforms, dispatch modes, devices, autocast."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from matroot import _process

_pretending = False
_AS_IT_IS = nullcontext()


def on_accelerator(a: Tensor) -> bool:
    """Whether looking at values of ``a`` would wait for a device: this is no CPU's."""
    return _pretending or a.device.type != "cpu"


def pretending() -> bool:
    """Whether tensors on the CPU are taken for an NVIDIA GPU's."""
    return _pretending


@contextmanager
def pretended_accelerator() -> Iterator[None]:
    """Takes the code paths of an NVIDIA GPU on the CPU, to count and to test what they do."""
    global _pretending
    before, _pretending = _pretending, True
    try:
        yield
    finally:
        _pretending = before


def no_autocast(a: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off for a's device: a root in half products is not a root."""
    device = a.device.type
    # Autocast knows no meta device and raises when asked.
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return _AS_IT_IS


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's operations on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread_in_a_fork() -> Iterator[None]:
    """PyTorch's operations on one thread, if this process was forked from one that had matroot.

    The threads of that one do not exist here, and an operation that waits for them never ends.
    """
    if os.getpid() == _process.PID:
        yield
        return
    with one_thread():
        yield


def exporting() -> bool:
    """Whether torch.export is tracing, as opposed to torch.compile."""
    return torch.compiler.is_exporting()


# As torch.compiler.assume_constant_result does: asked while tracing, not traced. Traced, PyTorch
# 2.11 says yes inside every torch.compile.
exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def refuse_capture(device: torch.device) -> None:
    """Raise RuntimeError if a CUDA graph is being captured: what is made once cannot be made there.

    (Programs are compiled and tested, tables copied to the device.)
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "matroot's first call of its kind on this GPU lies inside a CUDA graph capture, where "
            "kernels cannot be compiled and tested: run it once before the capture, forward and "
            "backward, as PyTorch's own graphs need it (a warm-up)"
        )


def constant(count: int) -> int:
    """The number itself, as one that torch.compile knows.

    With ``dynamic=True`` it takes the option of a method or rule for a number that may change, but
    not how often a loop was run.
    """
    return len(range(count))


def number(x: float) -> float:
    """The number itself, as one that torch.compile knows: it may take an argument for a symbol."""
    if torch.compiler.is_compiling():
        # Loaded by the compiler, and slow to load by itself.
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        known: float = guard_scalar(x)
        return known
    return x


def host_reads_are_free(a: Tensor) -> bool:
    """Whether values of ``a`` can be looked at without a device synchronisation or graph break.

    Tensors that torch.func transforms have wrapped have no values; what an autograd function is
    given once a transform has been dealt with has. Subclasses that stand for other tensors
    (DTensor, fake tensors) may have none, or ask other processes for them.
    """
    if on_accelerator(a) or torch.compiler.is_compiling() or jit_tracing():
        return False
    if stands_for_others(a):
        return False
    # PyTorch offers no public question for these; its own transforms ask the same way.
    if torch._C._len_torch_dispatch_stack() and _tracing_mode_active():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(a)


# Types whose memory is their values.
PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(a: Tensor) -> bool:
    """Whether this is an ordinary tensor whose values PyTorch computes here and now.

    Nobody traces, watches or has wrapped it, and it stands for nothing else.
    """
    return (
        type(a) in PLAIN
        and not torch.compiler.is_compiling()
        and a.layout is torch.strided
        and not _pretending
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_tracing()
        and not torch._C._functorch.is_functorch_wrapped_tensor(a)
    )


def is_dtensor(a: object) -> bool:
    """Whether this is a tensor that is distributed over processes."""
    if type(a) in PLAIN or not isinstance(a, Tensor) or not torch.distributed.is_available():
        return False
    # Slow to load, and asked of subclasses alone.
    from torch.distributed.tensor import DTensor

    return isinstance(a, DTensor)


def stands_for_others(a: Tensor) -> bool:
    """Whether this is of a subclass that says itself what operations do, such as DTensor."""
    if type(a) in PLAIN:
        return False
    return type(a).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def _tracing_mode_active() -> bool:
    """Whether a dispatch mode records operations (make_fx) or has no values (fake tensors)."""
    keys = torch._C._TorchDispatchModeKey
    modes = (keys.PROXY, keys.FAKE, keys.FUNCTIONAL)
    return any(torch._C._get_dispatch_mode(key) is not None for key in modes)


def fake_mode_active() -> bool:
    """Whether tensors are made without values: within tracers a fake tensor may be wrapped."""
    fake = torch._C._TorchDispatchModeKey.FAKE
    return bool(torch._C._len_torch_dispatch_stack()) and (
        torch._C._get_dispatch_mode(fake) is not None
    )


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
fake_mode_active._dynamo_marked_constant = True  # type: ignore[attr-defined]


def operations_are_watched(*tensors: Tensor) -> str | None:
    """Why PyTorch's operations must run and no plain function; None where nothing watches them.

    A TorchDispatchMode (make_fx, FlopCounterMode) sees operations alone, and a tensor subclass may
    be made of other tensors and have no memory of its own.
    """
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode is active, which sees PyTorch's operations alone"
    for a in tensors:
        if type(a) not in PLAIN:
            return f"its kernels take plain tensors, not the subclass {type(a).__name__}"
    return None


def onnx_export_running() -> bool:
    """Whether torch.onnx.export is tracing."""
    return torch.onnx.is_in_onnx_export()


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
onnx_export_running._dynamo_marked_constant = True  # type: ignore[attr-defined]


def jit_tracing() -> bool:
    """Whether torch.jit.trace is recording operations."""
    # As torch.jit.is_tracing asks, after more questions.
    return torch._C._is_tracing()


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
jit_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def transforms_active() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp …) is running."""
    # PyTorch offers no public question for this; autograd.Function.apply asks the same way.
    return bool(torch._C._are_functorch_transforms_active())
