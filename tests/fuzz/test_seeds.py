"""Bytes that fuzzing found or started from: what they reach works, or is refused in one line."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fuzz import build, targets

CORPUS = Path(__file__).parent / "corpus"
SEEDS = sorted(path for name in targets.TARGETS for path in (CORPUS / name).iterdir())


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed.parent.name}-{seed.name[:12]}")
def test_seed(seed):
    targets.TARGETS[seed.parent.name](seed.read_bytes())


@pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("c++") is None, reason="no C++ compiler"
)
@pytest.mark.parametrize(
    "sanitizers", ["", pytest.param("address,undefined", marks=pytest.mark.slow)]
)
def test_seeds_of_the_kernels(tmp_path, sanitizers):
    """On the instruction set that every CPU has, which takes the least time to compile."""
    program = build.build(
        tmp_path, "-DMATROOT_BASELINE_ONLY=ON", f"-DMATROOT_SANITIZE={sanitizers}"
    )
    seeds = [str(path) for path in sorted((CORPUS / "kernels").iterdir())]
    environment = os.environ | build.environment(program)
    found = subprocess.run([program, *seeds], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout == f"{len(seeds)} inputs\n"
