"""The path to the fused kernels stays short: calls are counted, since times are noisy."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import matroot
from matroot.kernels import native, triton
from matroot.testing import random_spd

HOST_TIME = Path(__file__).parents[2] / "benchmarks/host_time.py"


@pytest.mark.skipif(not triton._INSTALLED, reason="Triton is not installed")
def test_python_calls_of_a_forward_and_backward():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(HOST_TIME), "--repeats", "20"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"(\d+) Python function calls", done.stdout)
    # 121 with PyTorch 2.14, a third of them PyTorch's own, which may be more in another version.
    assert int(found[1]) <= 130, done.stdout


def python_calls(function):
    """Call events of sys.setprofile."""
    count = 0

    def seen(frame, event, argument):
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.skipif(not native.tasks.available(), reason="no C++ compiler at installation")
def test_python_calls_on_a_cpu():
    a = random_spd(16, 8, cond=10, dtype=torch.float32).requires_grad_()
    g, small = torch.ones_like(a), torch.eye(4)[None]

    def both():
        torch.autograd.grad(matroot.sqrtm(a), a, g)

    both(), matroot.sqrtm(small)
    # 149 and 51 with PyTorch 2.14, a quarter of the first PyTorch's own.
    assert python_calls(both) <= 160
    assert python_calls(lambda: matroot.sqrtm(small)) <= 60
