"""Build the program that feeds the compiled kernels with bytes: python tests/fuzz/build.py FOLDER.

Arguments after the folder are CMake's, such as -DMATROOT_SANITIZE=address,undefined or
-DCMAKE_CXX_COMPILER=clang++.
"""

import subprocess
import sys
from pathlib import Path

import torch

from matroot.schedules import schedules

SOURCE = Path(__file__).parents[2] / "native"


def build(folder: Path, *options: str) -> Path:
    """The program, with the schedules of the coupled iteration beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for dtype in (torch.float32, torch.float64):
        table = schedules(5, dtype, torch.device("cpu"))
        (folder / str(dtype).removeprefix("torch.")).write_bytes(table.numpy().tobytes())
    configure = ["cmake", "-S", str(SOURCE), "-B", str(folder), "-DMATROOT_FUZZ=ON", *options]
    for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2"]):
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder / "fuzz_kernels"


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), *sys.argv[2:]))
