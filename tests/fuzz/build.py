"""The program that feeds the compiled kernels with bytes (kernels.cpp), built by CMake."""

import subprocess
import sys
from pathlib import Path

import torch

from matroot.schedules import schedules

SOURCE = Path(__file__).parents[2] / "native"


def build(folder: Path, *options: str) -> Path:
    """The program, with the schedules of the coupled iteration beside it.

    Args:
        folder: to build in.
        options: CMake's, such as -DMATROOT_SANITIZE=address,undefined; see native/CMakeLists.txt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for dtype in (torch.float32, torch.float64):
        table = schedules(5, dtype, torch.device("cpu"))
        (folder / str(dtype).removeprefix("torch.")).write_bytes(table.numpy().tobytes())
    known = ["-DMATROOT_FUZZ=ON", "-DCMAKE_BUILD_TYPE=Debug"]
    configure = ["cmake", "-S", str(SOURCE), "-B", str(folder), *known, *options]
    for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2"]):
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder / "fuzz_kernels"


def environment(program: Path) -> dict[str, str]:
    """What the program wants in its environment."""
    return {
        "MATROOT_TABLES": str(program.parent),
        # Threads even where there are fewer processors, that sleep where they wait.
        "OMP_NUM_THREADS": "4",
        "OMP_WAIT_POLICY": "passive",
        # Fresh memory is NaN.
        "ASAN_OPTIONS": "max_malloc_fill_size=1073741824:malloc_fill_byte=255",
        # LLVM's OpenMP runtime is not instrumented. Archer, which comes with it, tells the
        # sanitizer how its threads wait for each other; what happens inside it is its own affair.
        "TSAN_OPTIONS": "ignore_noninstrumented_modules=1",
    }
