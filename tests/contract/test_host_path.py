"""The way to the fused kernels stays short: what it costs is counted, since times are noisy."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from matroot.kernels import triton

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
    # 150 with PyTorch 2.14, a third of them PyTorch's own, which another version may add to.
    assert int(found[1]) <= 160, done.stdout
