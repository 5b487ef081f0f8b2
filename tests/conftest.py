import os

import pytest
import torch

if not torch.cuda.is_available():
    # Kernels in Triton then run on the CPU. It has to be said before one is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# What PyTorch wants before it multiplies on a GPU with use_deterministic_algorithms(True).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _kernels_as_they_are(request, monkeypatch):
    """Of one backend: kernels without their self-test, and fresh memory is NaN, which shows."""
    callspec = getattr(request.node, "callspec", None)
    backend = callspec.params.get("backend", "torch") if callspec else "torch"
    if backend in ("auto", "torch"):
        yield
        return
    if not torch.cuda.is_available():
        # The interpreter's self-tests take seconds: see test_selftest.py.
        monkeypatch.setenv("MATROOT_TRITON", "on")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def two_threads():
    """Two intra-op threads, as on a user's machine: batched LAPACK differs there."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
