"""What the compiler makes of the GPU kernels: it needs no GPU. How fast they are it does not tell.

``python benchmarks/gpu.py compile`` prints all of it.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from matroot.kernels import triton

GPU = Path(__file__).parents[2] / "benchmarks/gpu.py"
pytestmark = [
    pytest.mark.skipif(not triton._INSTALLED, reason="Triton is not installed"),
    pytest.mark.skipif(
        importlib.util.find_spec("typer") is None or not GPU.exists(),
        reason="benchmarks/gpu.py is not here, or typer not installed",
    ),
]
# At most, for sm_90 by Triton 3.6 and 3.8: instructions and bytes spilled, and a tenth more.
NAMES = ("minimax", "Padé", "Taylor", "gradient", "gradient by steps")
INSTRUCTIONS = {
    16: (4300, 3700, 2900, 4700, 4800),
    32: (5200, 5700, 3900, 7700, 9000),
    64: (8900, 10000, 7100, 11000, 12600),
    128: (14200, 16400, 12000, 18000, 21000),
}
SPILLED = {
    16: (0, 16, 0, 16, 0),
    32: (0, 0, 24, 160, 350),
    64: (100, 100, 100, 100, 100),
    128: (600, 950, 300, 600, 600),
}


def without_interpreter(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "size", [16, *(pytest.param(n, marks=pytest.mark.slow) for n in (32, 64, 128))]
)
def test_registers_suffice_and_code_stays_short(size):
    lines = without_interpreter(str(GPU), "compile", "90", "--size", str(size), "--jobs", "1")
    found = {line.split(",")[0]: line for line in lines.splitlines()}
    assert tuple(found) == NAMES
    for line, instructions, spilled in zip(
        found.values(), INSTRUCTIONS[size], SPILLED[size], strict=True
    ):
        assert int(re.search(r"(\d+) instructions", line)[1]) <= instructions, line
        assert int(re.search(r"(\d+) bytes spilled", line)[1]) <= spilled, line


# Calls that differ in what no result may depend on, and the keys of Triton's cache for them.
KEYS = """
import itertools, sys
sys.path.insert(0, sys.argv[1])
import gpu, torch
from matroot import screen
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

backend = make_backend(GPUTarget("cuda", 90, 32))
memory = {"info_ptr": torch.zeros(8, dtype=torch.int64)}
floats = {"eps", "tol", "share", *(f"{x}_limit" for x in screen.Thresholds._fields)}
binaries = 0
for size, name in itertools.product(gpu.launch.LAUNCHES, gpu.machine_code.KERNELS):
    kernel, constants = gpu.machine_code.kernel(name, False)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    keys = set()
    for first, number in enumerate((0, 1, 16, 17)):
        values = {}
        for p in kernel.params:
            values[p.name] = float(number) if p.name in floats else number
            if p.name.endswith("_ptr"):
                values[p.name] = memory.get(p.name, torch.zeros(8))[first:]
        _, key, _ = bind(**(values | constants | {"N": size}))
        keys.add(str(key))
    assert len(keys) == 1, keys
    binaries += 1
print(binaries)
"""


def test_one_binary_for_all_batches_sizes_and_addresses():
    """All binaries for float32 are five for each of four padded sizes."""
    assert int(without_interpreter("-c", KEYS, str(GPU.parent))) == 20
