"""benchmarks/gpu_check.sh without a GPU: all its parts run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from matroot.kernels import triton

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu_check.sh"


@pytest.mark.slow
@pytest.mark.skipif(not triton._INSTALLED, reason="Triton is not installed")
def test_every_part_runs_dry(tmp_path):
    environment = os.environ | {"PYTHON": sys.executable, "TOTAL": "500"}
    command = [SCRIPT, "--dry", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "all parts done" in (tmp_path / "log.txt").read_text()
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    kinds = {"variant", "errors", "speed", "overhead", "ceiling", "accuracy"}
    assert {row["kind"] for row in rows} == kinds
    names = {"commit", "device_name", "torch", "triton", "cuda", "driver"}
    assert all(names <= row.keys() for row in rows)


def test_help_says_what_it_does():
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "rows.jsonl" in done.stdout
    assert "set -uo" not in done.stdout
    assert subprocess.run([SCRIPT, "--nonsense"], capture_output=True).returncode == 2
