"""What Triton's compiler and NVIDIA's assembler make of each kernel: needs no GPU."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matroot.kernels.triton import launch

# Every binary for a dtype and a size: the kernel's module and name, and what is compiled into it.
KERNELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "minimax": ("minimax", "minimax_kernel", {"HALF": False}),
    "Padé": ("published", "published_kernel", {"HALF": False, "PADE": True}),
    "Taylor": ("published", "published_kernel", {"HALF": False, "PADE": False}),
    "gradient": ("gradients", "lyapunov_kernel", {"SIGN": False}),
    "gradient by steps": ("gradients", "lyapunov_kernel", {"SIGN": True}),
}


@dataclass(frozen=True)
class Compiled:
    """What the assembler reports of one kernel.

    Attributes:
        spilled: bytes of registers that the kernel writes to memory.
        shared: bytes.
        instructions: without padding.
        seconds: how long compiling took.
    """

    kernel: str
    size: int
    warps: int
    registers: int
    spilled: int
    shared: int
    instructions: int
    barriers: int
    shuffles: int
    seconds: float

    @property
    def resident(self) -> int:
        """Programs that one multiprocessor of an H100 or H200 holds at once."""
        by_registers = 65536 // (32 * self.warps * self.registers)
        return min(by_registers, 64 // self.warps, 228 * 1024 // (self.shared + 1024), 32)

    def __str__(self) -> str:
        return (
            f"{self.kernel}, N = {self.size}, {self.warps} warps: {self.registers} registers, "
            f"{self.spilled} bytes spilled, {self.shared} bytes shared, "
            f"{self.instructions} instructions, {self.barriers} barriers, "
            f"{self.shuffles} shuffles, {self.resident} programs a multiprocessor, "
            f"compiled in {self.seconds:.0f} s"
        )


def kernel(name: str, double: bool) -> tuple[Any, dict[str, Any]]:
    """One of KERNELS, and what is compiled into it whatever the size."""
    module, function, constants = KERNELS[name]
    found = importlib.import_module(f"matroot.kernels.triton.{module}")
    return getattr(found, function), {**constants, "PRECISION": "ieee" if double else "tf32x3"}


def compiled(name: str, n: int, capability: int, double: bool) -> Compiled:
    """One of KERNELS for matrices padded to n×n, compiled and assembled for a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    start = time.perf_counter()
    function, constants = kernel(name, double)
    constants["N"] = n
    floats = {
        "eps",
        "skew_limit",
        "indefinite_limit",
        "singular_limit",
        "null_limit",
        "tol",
        "share",
    }
    signature, values = {}, {}
    for i, parameter in enumerate(function.params):
        kind = "fp32" if parameter.name in floats else "i32"
        if parameter.name in constants:
            kind, values[(i,)] = "constexpr", constants[parameter.name]
        elif parameter.name.endswith("_ptr"):
            numbers = "*fp64" if double else "*fp32"
            kind = "*i64" if parameter.name == "info_ptr" else numbers
        signature[parameter.name] = kind
    source = ASTSource(fn=function, signature=signature, constexprs=values)
    target = GPUTarget("cuda", capability, 32)
    launches = launch.DOUBLE_LAUNCHES if double else launch.LAUNCHES
    warps = launches[n].warps
    built = triton.compile(source, target=target, options={"num_warps": warps})
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    # Triton 3.5 and before brings one assembler. Which of two is for which GPU changes with its
    # releases, so that the choice is left to it.
    one = not (tools / "ptxas-blackwell").exists()
    assembler = (get_ptxas() if one else get_ptxas(capability)).path
    architecture = re.search(r"\.target (\w+)", built.asm["ptx"])
    assert architecture is not None
    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        text.write_text(built.asm["ptx"])
        said = _output(assembler, "-v", "-arch", architecture[1], text, "-o", binary)
        listing = _output(tools / "nvdisasm", "-c", binary)
    counted = Counter(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\w+)", listing))
    registers = re.search(r"Used (\d+) registers", said)
    spilled = re.search(r"(\d+) bytes spill stores", said)
    assert registers is not None
    assert spilled is not None
    return Compiled(
        kernel=name,
        size=n,
        warps=warps,
        registers=int(registers[1]),
        spilled=int(spilled[1]),
        shared=built.metadata.shared,
        instructions=counted.total() - counted["NOP"],
        barriers=counted["BAR"],
        shuffles=counted["SHFL"],
        seconds=time.perf_counter() - start,
    )


def _output(*command: str | Path) -> str:
    """What a command writes, to either output."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
