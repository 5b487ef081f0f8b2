"""Whether the kernels can be trusted on this machine: each compiled program is tested at first use.

A compiler or a driver of another version, or a GPU of another kind, may break what was right
elsewhere. So a program that runs on a device for the first time solves a few matrices whose answers
are known: κ = 1e2 to 1e6 (in float64 to 1e12), repeated eigenvalues, a singular, an
indefinite, a skew one and one with a NaN. Statuses must be as expected, roots and gradients as
close to known answers in float64 as the numerics page promises, and the bits the same a second
time. It takes some ten launches and one synchronisation, once a process.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _disable_current_modes

from matroot import context
from matroot.kernels.triton.answers import TESTS
from matroot.kernels.triton.launch import Variant

SWITCH = "MATROOT_TRITON"
PASSES = 144
"""The size at which the passes between the products of a library are tested: beyond all strips."""


def switch() -> str:
    """``"off"``, ``"test"`` or ``"on"``: what the environment variable says at this call.

    Raises:
        ValueError: it has another value.
    """
    said = os.environ.get(SWITCH, "test")
    if said not in ("off", "test", "on"):
        raise ValueError(
            f"{SWITCH} must be 'off' (never the fused GPU kernels), 'test' (after a self-test, the "
            f"default) or 'on' (without it), got {said!r}"
        )
    return said


class Verdict(NamedTuple):
    """What a self-test has found.

    Attributes:
        passed: whether the program may be used.
        said: the figures, or what was wrong.
    """

    passed: bool
    said: str


_VERDICTS: dict[tuple[Variant, torch.device], Verdict] = {}
_ONE_AT_A_TIME = threading.RLock()


def passed(
    kernel: str, size: int, option: tuple[bool, ...], precision: str, device: torch.device
) -> bool:
    """Whether this program may be used: see launch.Variant. At first use it is tested.

    Raises:
        RuntimeError: it would have to be tested while a CUDA graph is captured.
    """
    variant = Variant(kernel, size, option, precision)
    key = (variant, device)
    verdict = _VERDICTS.get(key)
    if verdict is not None and verdict.passed:
        return True
    if context.pretending() or switch() == "on":
        return True
    if verdict is None:
        context.refuse_capture(device)
        with _ONE_AT_A_TIME:
            verdict = _VERDICTS.get(key)
            if verdict is None:
                verdict = _VERDICTS[key] = _verdict(*key)
                if not verdict.passed:
                    warnings.warn(
                        f"matroot's fused GPU kernel {variant.kernel!r} for matrices up to "
                        f"{variant.size}×{variant.size} fails its self-test on {_name(device)}: "
                        f"{verdict.said}. PyTorch's operations are used in its place: slower, "
                        "and right. Please report it",
                        RuntimeWarning,
                        stacklevel=2,
                    )
    return verdict.passed


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
passed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def failure(
    kernel: str, size: int, option: tuple[bool, ...], precision: str, device: torch.device
) -> str | None:
    """Why this program is not used, if it has failed its test."""
    verdict = _VERDICTS.get((Variant(kernel, size, option, precision), device))
    if verdict is None or verdict.passed or context.pretending() or switch() == "on":
        return None
    return f"its kernel {kernel!r} failed its self-test: {verdict.said}"


# As torch.compiler.assume_constant_result does: asked while tracing, not traced.
failure._dynamo_marked_constant = True  # type: ignore[attr-defined]


def verdicts(device: torch.device) -> str:
    """What the self-tests on this device have found so far, a clause for ``matroot.explain``."""
    if switch() == "on":
        return f"without a self-test ({SWITCH}=on)"
    found = {key[0]: verdict for key, verdict in _VERDICTS.items() if key[1] == device}
    if not found:
        return "after a self-test, which comes with the first call"
    return "; ".join(
        f"self-test of {v.kernel!r} up to {v.size}×{v.size} "
        f"{'passed' if verdict.passed else 'FAILED'}: {verdict.said}"
        for v, verdict in found.items()
    )


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _triton() -> str:
    return getattr(sys.modules.get("triton"), "__version__", "of unknown version")


def _verdict(variant: Variant, device: torch.device) -> Verdict:
    """Run the test of a program, outside all modes and transforms that are active."""
    test = TESTS[variant.kernel]
    sync = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else 0
    try:
        if sync:
            torch.cuda.set_sync_debug_mode(0)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            _disable_current_modes(),
            torch._C._DisableFuncTorch(),
        ):
            worst = 0.0
            for what, error, allowed in test(variant, device):
                # Written so that NaN fails too.
                if not error <= allowed:
                    return Verdict(False, f"{what} is off by {error:.1e}, {allowed:.1e} is allowed")
                worst = max(worst, error / allowed if allowed else 0.0)
        return Verdict(True, f"errors up to {worst:.0%} of what is promised")
    except Exception as error:  # Whatever a compiler or a driver may raise.
        reason = " ".join(str(error).split())[:300]
        return Verdict(False, f"{type(error).__name__}: {reason} (Triton {_triton()})")
    finally:
        if sync:
            torch.cuda.set_sync_debug_mode(sync)
