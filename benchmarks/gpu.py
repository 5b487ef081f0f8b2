"""The fused GPU kernels beside everything else, from the source tree:

python benchmarks/gpu.py measure   accuracy and time of every case, ceilings, memory, bits: minutes
python benchmarks/gpu.py tune      warps and resident programs: which are the fastest
python benchmarks/gpu.py plot      the rows as a picture
python benchmarks/gpu.py compile   registers, spills, instructions of every kernel; needs no GPU

PyTorch 2.11 and Triton 3.6 or newer. Rows go to benchmarks/results/gpu.jsonl.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402  (the source tree comes first)
import typer  # noqa: E402
from torch import Tensor  # noqa: E402

import matroot  # noqa: E402
from matroot.backends import triton as kernels  # noqa: E402
from matroot.bench import baselines  # noqa: E402
from matroot.bench.measure import (  # noqa: E402
    Problem,
    Run,
    gate,
    in_turns,
    milliseconds,
    percentiles,
)
from matroot.bench.rows import Row, append, pick, provenance  # noqa: E402
from matroot.gradients import Lyapunov  # noqa: E402
from matroot.methods import Minimax, Pade  # noqa: E402
from matroot.testing import random_spd, relative_error  # noqa: E402

ROWS = ROOT / "benchmarks/results/gpu.jsonl"
PLOT = ROOT / "docs/images/gpu.svg"
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)

# batch, n, and how many times faster the default is to be than: the paper, NS-5, eigh.
GOALS = {
    (64, 48): (10, 6, 5),
    (64, 64): (10, 6, 5),
    (256, 64): (10, 6, 5),
    (4096, 16): (10, 6, 3),
    (100_000, 8): (10, 6, 3),
    (64, 128): (6, 4, 5),
    (16, 256): (3, 2, 5),
    (256, 256): (2, 1.5, 5),
    (1, 1024): (2, 1.5, 3),
}
# Batches that fill the device.
FULL = {64: 4096, 128: 1024}
PAPER, NS, EIGH = "paper", "Newton–Schulz, 5 steps", "eigh by hand"
TRUNCATED = {PAPER, NS, "paper, fused"}


def default(n: int) -> dict[str, Any]:
    """What is measured as ours: told nothing up to n = 128, a promise of 1e3 beyond."""
    if n <= kernels.LARGEST:
        return {"method": Minimax(), "gradient": Lyapunov(), "backend": "triton"}
    return {"method": Minimax(max_cond=1e3), "gradient": Lyapunov(), "backend": "torch"}


def candidates(n: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions that return the root."""
    operations = default(n) | {"backend": "torch"}
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "matroot": partial(matroot.sqrtm, **default(n)),
        PAPER: partial(baselines.paper, forward="pade"),
        NS: baselines.newton_schulz,
        EIGH: baselines.eigh_by_hand,
    }
    if n <= kernels.LARGEST:
        fused = {"method": Pade(), "gradient": Lyapunov(steps=8), "backend": "triton"}
        found["matroot, PyTorch's operations"] = partial(matroot.sqrtm, **operations)
        found["paper, fused"] = partial(matroot.sqrtm, **fused)
    try:
        import cupy  # noqa: F401  (asked for to see whether it is there)
    except ImportError:
        return found
    found["eigh of CuPy"] = _EighOfCuPy.apply
    return found


class _EighOfCuPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        import cupy

        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            values, q = map(torch.from_dlpack, cupy.linalg.eigh(cupy.from_dlpack(a.detach())))
        s = values.clamp(min=0).sqrt()
        ctx.save_for_backward(s, q)
        return (q * s[..., None, :]) @ q.mH

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        s, q = ctx.saved_tensors
        sums = s[..., :, None] + s[..., None, :]
        return q @ ((q.mH @ ((g + g.mH) / 2) @ q) / sums) @ q.mH


def forward_and_backward(function: Callable[[Tensor], Tensor], problem: Problem) -> Run:
    """One execution, with a lap after each half."""
    a = problem.a.clone().requires_grad_()

    def run(lap: Callable[[], None]) -> None:
        root = function(a)
        lap()
        torch.autograd.grad(root, a, problem.g)
        lap()

    return run


def in_a_graph(function: Callable[[Tensor], Tensor], problem: Problem) -> Run:
    """The same, captured once and replayed: without what the calls themselves cost."""
    a = problem.a.clone().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(function(a), a, problem.g)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.autograd.grad(function(a), a, problem.g)

    def run(lap: Callable[[], None]) -> None:
        graph.replay()
        lap()

    return run


def made(batch: int, n: int, cond: float, device: torch.device) -> Problem:
    """Matrices and a cotangent; the same ones again and again in a large batch."""
    few = min(batch, 64)
    a = random_spd(n, few, cond=cond, dtype=torch.float32)
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    repeats = -(-batch // few)
    a, g = (x.repeat(repeats, 1, 1)[:batch].to(device) for x in (a, g + g.mT))
    return Problem(a, g, "sqrt")


def errors(function: Callable[[Tensor], Tensor], problem: Problem) -> Row:
    """Largest relative errors of the root and the gradient against float64."""
    a = problem.a.clone().requires_grad_()
    root = function(a)
    (gradient,) = torch.autograd.grad(root, a, problem.g)
    return {
        "error": float(relative_error(root, problem.value).max()),
        "gradient_error": float(relative_error(gradient, problem.gradient).max()),
    }


def speed(device: torch.device, seconds: float) -> Iterator[Row]:
    """Every case of GOALS: errors, then time of forward and backward, candidates in turns."""
    for batch, n in GOALS:
        problem = made(batch, n, 1e2, device)
        functions, rows, runs = candidates(n), {}, {}
        for name, function in functions.items():
            row: Row = {"candidate": name, "batch": batch, "n": n, "cond": 1e2}
            try:
                row |= errors(function, problem)
            except Exception as error:  # Whatever a peer raises is told, and the rest goes on.
                yield {"kind": "speed", **row, "why": f"{type(error).__name__}: {error}"[:200]}
                continue
            row["passed"] = row["error"] <= gate(problem, truncated=name in TRUNCATED)
            rows[name], runs[name] = row, forward_and_backward(function, problem)
        graphed = "matroot, in a graph"
        if n <= kernels.LARGEST:
            rows[graphed] = rows["matroot"] | {"candidate": graphed}
            runs[graphed] = in_a_graph(functions["matroot"], problem)
        phases = ("forward", "backward")
        for name, samples in in_turns(runs, device, seconds=seconds).items():
            names = ("total",) if name == graphed else phases
            yield {"kind": "speed", **rows[name], "ms": milliseconds(samples, names)}


def accuracy(device: torch.device) -> Iterator[Row]:
    """Errors of the kernels beside eigh by hand, in float32 against float64."""
    spectra = ("log", "clustered", "outlier")
    for n, cond, spectrum in itertools.product((8, 16, 48, 64, 128), (1e1, 1e2, 1e4, 1e6), spectra):
        a = random_spd(n, 16, cond=cond, spectrum=spectrum, dtype=torch.float32).to(device)
        g = torch.randn(a.shape, generator=torch.Generator().manual_seed(1)).to(device)
        problem = Problem(a, g + g.mT, "sqrt")
        for name in ("matroot", EIGH, "triton-tf32"):
            function = candidates(n).get(name) or partial(
                matroot.sqrtm, method="minimax", backend="triton-tf32"
            )
            told = {"n": n, "cond": cond, "spectrum": spectrum, "candidate": name}
            yield {"kind": "accuracy", **told, **errors(function, problem)}


def products_of(problem: Problem) -> tuple[float, float]:
    """Products of n×n matrices a matrix, forward and backward; an inverse counts as one."""
    result = matroot.sqrtm_ex(problem.a[:1], **default(problem.a.shape[-1]))
    steps = int(result.steps.max())
    s = torch.linalg.eigvalsh(problem.value[0])
    # See gradients.smith: bounds that are as good as exact.
    t = float(s[0] / s[-1]) ** 0.5
    rate = torch.atanh(torch.tensor(t))
    doublings = max(1, int(torch.ceil(torch.log2(15.94 / (4 * rate)))))
    return 1 + 2 + 4 * (steps - 1) - 1, 1 + 2 + 3 * doublings - 1


def ceilings(device: torch.device, seconds: float) -> Iterator[Row]:
    """What the device gives at most, and what the kernels reach in a batch that fills it."""
    big = torch.randn(8192, 8192, device=device)
    memory = torch.empty(2**29, device=device)
    other = torch.empty_like(memory)

    def once(function: Callable[[], object]) -> Run:
        def run(lap: Callable[[], None]) -> None:
            function()
            lap()

        return run

    known = {
        "copy, bytes read and written": (lambda: other.copy_(memory), 8.0 * memory.numel(), "GB/s"),
        "float32 product, n = 8192": (lambda: big @ big, 2.0 * 8192**3, "GFLOP/s"),
    }
    runs = {name: once(function) for name, (function, _, _) in known.items()}
    problems = {n: made(batch, n, 1e2, device) for n, batch in FULL.items()}
    for n, problem in problems.items():
        runs[f"n = {n}"] = forward_and_backward(candidates(n)["matroot"], problem)
    found = in_turns(runs, device, seconds=seconds)
    peak = 0.0
    for name, (_, amount, unit) in known.items():
        median, *_ = percentiles(sample[0] for sample in found[name])
        rate = amount / median / 1e6
        peak = rate if unit == "GFLOP/s" else peak
        yield {"kind": "ceiling", "candidate": name, "rate": rate, "unit": unit}
    for n, problem in problems.items():
        batch = len(problem.a)
        for phase, products, samples in zip(
            ("forward", "backward"),
            products_of(problem),
            zip(*found[f"n = {n}"], strict=True),
            strict=True,
        ):
            rate = 2.0 * n**3 * batch * products / percentiles(samples)[0] / 1e6
            yield {
                "kind": "ceiling",
                "candidate": f"{phase}, {batch}×{n}",
                "n": n,
                "products": products,
                "rate": rate,
                "unit": "GFLOP/s",
                "share": rate / peak,
            }


def promises(device: torch.device) -> Iterator[Row]:
    """The same bits on every run and in any batch; memory kept for the backward pass."""
    for n in (8, 16, 31, 48, 64, 100, 128):
        problem = made(300, n, 1e4, device)
        function = candidates(n)["matroot"]

        def both(rows: Any = slice(None), f: Any = function, p: Problem = problem) -> list[Tensor]:
            a = p.a[rows].clone().requires_grad_()
            root = f(a)
            return [root.detach(), torch.autograd.grad(root, a, p.g[rows])[0]]

        whole = both()
        same = [all(map(torch.equal, whole, both())) for _ in range(10)]
        places = ([0], [299], [17, 250, 3], list(range(100, 264)))
        few = [
            all(torch.equal(x[rows], y) for x, y in zip(whole, both(rows), strict=True))
            for rows in places
        ]
        a = problem.a.clone().requires_grad_()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        root = function(a)
        kept = torch.cuda.memory_allocated(device) - before
        yield {
            "kind": "promise",
            "n": n,
            "same_bits_every_run": all(same),
            "same_bits_in_any_batch": all(few),
            "matrices_kept": kept / (a.numel() * a.element_size()),
        }
        del root


@app.command()
def measure(
    output: Annotated[Path, typer.Option(help="Rows are added to this file.")] = ROWS,
    seconds: Annotated[float, typer.Option(help="At most, a candidate and case.")] = 1.0,
) -> None:
    """Accuracy, speed, ceilings, promises; prints how many times faster, beside the goals."""
    device = _gpu()
    origin = provenance(device) | {"triton": _triton_version()}
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "promises": lambda: promises(device),
        "accuracy": lambda: accuracy(device),
        "speed": lambda: speed(device, seconds),
        "ceilings": lambda: ceilings(device, seconds),
    }
    rows = []
    for name, part in parts.items():
        start, found = time.perf_counter(), list(part())
        append(output, [row | origin for row in found])
        rows += found
        print(f"{name}: {len(found)} rows, {time.perf_counter() - start:.0f} s", flush=True)
    print(summary(rows))


def _gpu() -> torch.device:
    if not torch.cuda.is_available():
        raise SystemExit("gpu.py: this command needs a CUDA GPU, and PyTorch sees none")
    return torch.device("cuda")


def _triton_version() -> str:
    import triton

    return str(triton.__version__)


def summary(rows: Iterable[Row]) -> str:
    """How many times faster than the paper, NS-5 and the fastest eigh, with the goals; the rest."""
    rows = list(rows)
    lines = ["batch×n | ours, ms (in a graph) | paper | NS-5 | eigh | errors ours, paper, eigh"]
    for (batch, n), goals in GOALS.items():
        case = {
            row["candidate"]: row
            for row in pick(rows, kind="speed", batch=batch, n=n)
            if row.get("ms")
        }
        if "matroot" not in case:
            continue
        ms = {name: row["ms"]["total"][0] for name, row in case.items()}
        fastest = min(v for k, v in ms.items() if k in (EIGH, "eigh of CuPy"))
        times = [ms[PAPER], ms[NS], fastest]
        ratios = [f"{t / ms['matroot']:.1f} ({g})" for t, g in zip(times, goals, strict=True)]
        graph = ms.get("matroot, in a graph")
        own = f"{ms['matroot']:.3f}" + (f" ({graph:.3f})" if graph else "")
        found = ", ".join(f"{case[k]['error']:.0e}" for k in ("matroot", PAPER, EIGH))
        lines.append(" | ".join([f"{batch}×{n}", own, *ratios, found]))
    for row in pick(rows, kind="ceiling"):
        share = f", {row['share']:.0%} of the product" if row.get("share") else ""
        lines.append(f"{row['candidate']}: {row['rate']:.0f} {row['unit']}{share}")
    for row in pick(rows, kind="promise"):
        lines.append(
            f"n = {row['n']}: bits every run {row['same_bits_every_run']}, in any batch "
            f"{row['same_bits_in_any_batch']}, {row['matrices_kept']:.2f} matrices kept"
        )
    return "\n".join(lines)


@app.command()
def tune(
    output: Annotated[Path, typer.Option(help="Rows are added to this file.")] = ROWS,
    seconds: Annotated[float, typer.Option(help="At most, a candidate and case.")] = 0.5,
) -> None:
    """Every number of warps and resident programs for every padded size, timed in turns."""
    device = _gpu()
    origin = provenance(device) | {"triton": _triton_version()}
    for size, batch in ((16, 4096), (32, 2048), (64, 256), (64, 4096), (128, 64), (128, 1024)):
        problem, usual = made(batch, size, 1e2, device), kernels.launch.LAUNCHES[size]
        memory = (None,) if usual.resident is None else (1, 2, 4, 8)
        runs = {}
        for warps, resident in itertools.product((1, 2, 4, 8, 16), memory):
            launch = kernels.launch.Launch(warps, resident)
            run = forward_and_backward(candidates(size)["matroot"], problem)

            def changed(lap: Any, run: Any = run, launch: Any = launch, size: int = size) -> None:
                kernels.launch.LAUNCHES[size] = launch
                run(lap)

            try:
                changed(lambda: None)
                torch.cuda.synchronize(device)
            except Exception as error:  # Too many registers or too much shared memory.
                print(f"{size}, {launch}: {type(error).__name__}")
                continue
            runs[f"{warps} warps, {resident} resident"] = changed
        rows = []
        for name, samples in in_turns(runs, device, seconds=seconds).items():
            ms = milliseconds(samples, ("forward", "backward"))
            told = {"batch": batch, "n": size, "candidate": name, "ms": ms}
            rows.append({"kind": "launch", **told})
        kernels.launch.LAUNCHES[size] = usual
        append(output, [row | origin for row in rows])
        for row in sorted(rows, key=lambda row: row["ms"]["total"][0])[:4]:
            forward, backward = row["ms"]["forward"][0], row["ms"]["backward"][0]
            print(f"{batch}×{size}: {row['candidate']}: {forward:.3f} + {backward:.3f} ms")


@app.command()
def plot(
    rows: Annotated[Path, typer.Option(help="What measure has written.")] = ROWS,
    output: Annotated[Path, typer.Option(help="The picture.")] = PLOT,
) -> None:
    """Time of every case and candidate, the latest rows."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    if not rows.exists():
        raise SystemExit(f"gpu.py: no rows in {rows}; run measure on a machine with a GPU")
    latest = {(r["batch"], r["n"], r["candidate"]): r for r in _speed_rows(rows)}
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    for name in dict.fromkeys(key[2] for key in latest):
        found = [(i, latest.get((*case, name))) for i, case in enumerate(GOALS)]
        points = [(i, row["ms"]["total"]) for i, row in found if row and row.get("ms")]
        if points:
            places, times = zip(*points, strict=True)
            axes.plot(places, [t[0] for t in times], "o-", label=name)
    axes.set(yscale="log", ylabel="forward and backward, ms")
    axes.set_xticks(range(len(GOALS)), [f"{batch}×{n}" for batch, n in GOALS])
    axes.set_title(next(iter(latest.values()))["device_name"])
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(output)
    print(f"written to {output}")


def _speed_rows(path: Path) -> list[Row]:
    import json

    lines = path.read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "speed"]


@dataclass(frozen=True)
class Compiled:
    """What the assembler says of one kernel.

    Attributes:
        spilled: bytes of registers that it writes to memory.
        shared: bytes.
        instructions: without padding.
        seconds: that compiling took.
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


@app.command(name="compile")
def compile_kernels(
    capability: Annotated[int, typer.Argument(help="80, 90, 100 …")] = 90,
    size: Annotated[list[int] | None, typer.Option(help="Padded sizes; all if left out.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes; 0 is one a core.")] = 0,
    double: Annotated[bool, typer.Option(help="In float64 instead of float32.")] = False,
) -> None:
    """Compile every kernel for a GPU that need not be there, and print what it takes."""
    if kernels._interpreting():
        raise SystemExit("gpu.py: TRITON_INTERPRET=1 is set; without it there is a compiler")
    wanted = [(name, n) for n in size or kernels.launch.LAUNCHES for name in KERNELS]
    names, sizes = zip(*wanted, strict=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs or os.cpu_count() or 1, len(wanted)), spawn) as pool:
        for found in pool.map(
            _compiled, names, sizes, itertools.repeat(capability), itertools.repeat(double)
        ):
            print(found, flush=True)


# Every binary for a dtype and a size: the kernel's module and name, and what is compiled into it.
KERNELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "minimax": ("roots", "minimax_kernel", {"HALF": False}),
    "Padé": ("roots", "published_kernel", {"HALF": False, "PADE": True}),
    "Taylor": ("roots", "published_kernel", {"HALF": False, "PADE": False}),
    "gradient": ("gradients", "lyapunov_kernel", {"SIGN": False}),
    "gradient by steps": ("gradients", "lyapunov_kernel", {"SIGN": True}),
}


def _kernel(name: str, double: bool) -> tuple[Any, dict[str, Any]]:
    """One of KERNELS, and what is compiled into it whatever the size."""
    module, function, constants = KERNELS[name]
    found = importlib.import_module(f"matroot.backends.triton.{module}")
    return getattr(found, function), {**constants, "PRECISION": "ieee" if double else "tf32x3"}


def _compiled(name: str, n: int, capability: int, double: bool) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    start = time.perf_counter()
    function, constants = _kernel(name, double)
    constants["N"] = n
    floats = {"eps", "max_skew", "below", "tol", "share"}
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
    launches = kernels.launch.DOUBLE_LAUNCHES if double else kernels.launch.LAUNCHES
    warps = launches[n].warps
    built = triton.compile(source, target=target, options={"num_warps": warps})
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    assembler = tools / ("ptxas-blackwell" if capability >= 100 else "ptxas")
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


if __name__ == "__main__":
    app()
