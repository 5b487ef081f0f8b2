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


@pytest.fixture
def two_threads():
    """Two intra-op threads, as on a user's machine: batched LAPACK differs there."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
