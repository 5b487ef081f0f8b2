"""The fused GPU kernels beside everything else, from the source tree:

python benchmarks/gpu.py verify    every variant in processes of its own: errors, bits, memory
python benchmarks/gpu.py measure   time of every case beside the goals, ceilings, accuracy
python benchmarks/gpu.py summary   what the rows say, beside goals and model
python benchmarks/gpu.py tune      warps and resident programs: which are the fastest
python benchmarks/gpu.py plot      the rows as a picture
python benchmarks/gpu.py compile   registers, spills, instructions of every kernel; needs no GPU

benchmarks/gpu_check.sh runs all that matters, in eight minutes. Rows go to a file as they are
made; what it holds of the same commit and GPU is not measured again. --dry walks through a command
without a GPU, in Triton's interpreter, on tiny matrices. PyTorch 2.11 and Triton 3.6 or newer.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import machine_code  # noqa: E402
import torch  # noqa: E402  (the source tree comes first)
import typer  # noqa: E402
from torch import Tensor  # noqa: E402

import matroot  # noqa: E402
from matroot.bench import baselines  # noqa: E402
from matroot.bench.measure import (  # noqa: E402
    APPROXIMATE,
    Problem,
    Run,
    describe,
    gate,
    in_turns,
    milliseconds,
    percentiles,
)
from matroot.bench.rows import Row, append, pick, provenance  # noqa: E402
from matroot.gradients import Lyapunov  # noqa: E402
from matroot.kernels import triton as kernels  # noqa: E402
from matroot.kernels.triton import launch, selftest  # noqa: E402
from matroot.methods import Minimax, Pade  # noqa: E402
from matroot.testing import (  # noqa: E402
    exact,
    exact_gradient,
    random_spd,
    relative_error,
    tolerance,
)

ROWS = ROOT / "benchmarks/results/gpu.jsonl"
PLOT = ROOT / "docs/images/gpu.svg"
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


class Goal(NamedTuple):
    """How many times faster than others one root with its gradient is to be.

    Attributes:
        eager: than the paper's algorithm as a file of PyTorch operations.
        graph: the same, ours replayed as a CUDA graph. The paper's asks the host whether its
            factorisation succeeded, which no graph can hold, as eigh does.
        ns: than Newton–Schulz in 5 steps.
        eigh: than the fastest batched eigh.
    """

    eager: float
    graph: float
    ns: float
    eigh: float


# batch, n; the most important first.
GOALS = {
    (64, 48): Goal(5, 10, 4, 5),
    (64, 64): Goal(5, 10, 4, 5),
    (256, 64): Goal(8, 10, 6, 5),
    (4096, 16): Goal(8, 10, 6, 3),
    (100_000, 8): Goal(10, 10, 6, 3),
    (64, 128): Goal(5, 6, 4, 5),
    (16, 256): Goal(2, 3, 2, 5),
    (256, 256): Goal(2, 2, 1.5, 5),
    (1, 1024): Goal(2, 2, 1.5, 3),
}
MOST_MS = {(500, 100): 0.8}
# Batches that fill the device; there the products of a root and its gradient are to run at this
# share of the rate of a large product of the same accuracy.
FULL, SHARE = {64: 4096, 128: 1024}, 0.5
# What a dry run takes instead.
TINY, TINY_FULL = [(2, 3), (1, 2)], {3: 2}
PAPER, NS, EIGH = "paper", "Newton–Schulz, 5 steps", "eigh by hand"
OURS, OPERATIONS = "matroot", "matroot, PyTorch's operations"
TRUNCATED = {PAPER, NS, "paper, fused"}
GRAPHED = (OURS, NS)


def graphed(name: str) -> str:
    """The name of a candidate in a CUDA graph."""
    return f"{name}, in a graph"


# What a model says before anything is measured.

DISPATCH, LAUNCH = 5e-6, 2e-6
"""Seconds an operation: on the host (149 of the paper's took 724 µs), and on the device."""
HOST = 200e-6
"""Of one root with its gradient by the kernels, nearly all of it PyTorch's: derived, ± 50 %."""
BANDWIDTH = 3.0e12
"""Bytes a second, read and written: a large copy on an H100."""
RATE = {"float32": 50e12, "tf32x3": 130e12}
"""Operations a second of a large product: three quarters of an H100's data sheet; a third of what
TF32 reaches."""
ALONE = {16: 13e-6, 32: 28e-6, 64: 105e-6, 128: 290e-6}
"""Seconds of both kernels for one matrix, alone: instructions counted in the machine code for
compute capability 9.0, cycles estimated, 1.75 GHz; ± 50 %."""
AT_ONCE = {16: 9, 32: 4, 64: 2, 128: 1}
"""Programs that a multiprocessor holds: ``compile 90``."""
MULTIPROCESSORS = 132
BETWEEN = "matroot, kernels between products"
OPERATIONS_OF = {PAPER: 29 + 94, NS: 32 + 60, OPERATIONS: 96 + 44, BETWEEN: 54 + 39}
"""Operations dispatched, without views, forward and backward: testing.count_launches."""
PRODUCTS_OF = {PAPER: 5 + 48, NS: 12 + 24}


def predicted(name: str, batch: int, n: int, products: float, *, graph: bool) -> float | None:
    """Milliseconds of a root with its gradient: launches, bytes over bandwidth, flops over rate.

    A kernel takes a program's whole time as often as the device must be filled; eager calls take
    what the host takes, if that is longer.

    Args:
        name: of the candidate; None comes back where there is no model.
        batch: matrices.
        n: their rows.
        products: of matrices n×n that matroot's own candidates make.
        graph: whether it is replayed as a CUDA graph.
    """
    fused = name == OURS and n <= kernels.LARGEST
    name = BETWEEN if name == OURS and not fused else name
    if not fused and name not in OPERATIONS_OF:
        return None
    launches = 2 if fused else OPERATIONS_OF[name]
    # Each reads and writes about a matrix or two; the kernels A, S, G, X and S again.
    words = batch * n**2 * (5 if fused else 2.5 * launches)
    flops = 2.0 * n**3 * batch * PRODUCTS_OF.get(name, products)
    seconds = launches * LAUNCH + 4 * words / BANDWIDTH
    seconds += flops / RATE["tf32x3" if fused else "float32"]
    if fused:
        size = max(16, 1 << (n - 1).bit_length())
        seconds += ALONE[size] * math.ceil(batch / (AT_ONCE[size] * MULTIPROCESSORS))
    host = HOST if fused else launches * DISPATCH
    return 1e3 * (seconds if graph else max(seconds, host))


# Rows, and what is there already.


class Rows:
    """The file that rows go to, each at once, and those of this commit and device in it."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.origin = provenance(device) | _versions()
        # Sources that are not committed may be others than those of the rows.
        known = self.origin["commit"] is not None and not self.origin["commit"].endswith("+")
        self.found = of_one_place(read(path), self.origin) if known else []

    def add(self, row: Row) -> None:
        row = self.origin | row
        append(self.path, [row])
        self.found.append(row)

    def hold(self, **wanted: object) -> bool:
        return bool(pick(self.found, **wanted))


def of_one_place(rows: Iterable[Row], origin: Row) -> list[Row]:
    """The rows of that commit, device and environment."""
    names = ("commit", "device_name", "torch", "triton")
    return pick(rows, **{name: origin.get(name) for name in names})


def read(path: Path) -> list[Row]:
    """The rows of a file, without a line that a killed run did not finish."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _versions() -> Row:
    import triton

    driver = None
    if torch.cuda.is_available():
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
            driver = (done.stdout.split() or [None])[0]
        except (OSError, subprocess.TimeoutExpired):
            pass
    return {"triton": triton.__version__, "cuda": torch.version.cuda, "driver": driver}


def _device(dry: bool) -> torch.device:
    if dry:
        # Before Triton is imported.
        os.environ["TRITON_INTERPRET"] = "1"
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("gpu.py: this needs a CUDA GPU, and PyTorch sees none; see --dry")
    return torch.device("cuda")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Problems and candidates.


@dataclass(frozen=True)
class Repeated(Problem):
    """A problem again and again, with the answers that were computed once."""

    few: Problem
    batch: int
    device: torch.device

    def __post_init__(self) -> None:
        times = -(-self.batch // len(self.few.a))
        for name in ("a", "g", "value", "gradient"):
            whole = getattr(self.few, name).to(self.device).repeat(times, 1, 1)[: self.batch]
            object.__setattr__(self, name, whole)
        object.__setattr__(self, "cond", self.few.cond)


def made(batch: int, n: int, cond: float, device: torch.device, distinct: int = 64) -> Problem:
    """Matrices and a cotangent; the same ones again and again in a large batch."""
    a = random_spd(n, min(batch, distinct), cond=cond, dtype=torch.float32)
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    few = Problem(a, g + g.mT, "sqrt")
    return Repeated(few.a, few.g, "sqrt", few=few, batch=batch, device=device)


def default(n: int) -> dict[str, Any]:
    """What is measured as ours: told nothing up to n = 128, a promise of 1e3 beyond."""
    if n <= kernels.LARGEST:
        return {"method": Minimax(), "gradient": Lyapunov(), "backend": "triton"}
    return {"method": Minimax(max_cond=1e3), "gradient": Lyapunov(), "backend": "triton"}


def candidates(n: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions that return the root."""
    operations = default(n) | {"backend": "torch"}
    found: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: partial(matroot.sqrtm, **default(n)),
        PAPER: partial(baselines.paper, forward="pade"),
        NS: baselines.newton_schulz,
        EIGH: baselines.eigh_by_hand,
    }
    if n <= kernels.LARGEST:
        fused = {"method": Pade(), "gradient": Lyapunov(steps=8), "backend": "triton"}
        found[OPERATIONS] = partial(matroot.sqrtm, **operations)
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


def replayed(run: Run, times: int = 1) -> Run:
    """So many executions captured once and replayed: without what the calls themselves cost."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # The stream is set here, so that a capture that fails leaves the old one behind.
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(_nothing)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(times):
                run(_nothing)
    torch.cuda.current_stream().wait_stream(stream)

    def replay(lap: Callable[[], None]) -> None:
        graph.replay()
        lap()

    return replay


def _nothing() -> None:
    pass


def timed(runs: dict[str, Run], device: torch.device, seconds: float) -> dict[str, Row]:
    """[median, p20, p80] in milliseconds of every candidate, all in turns.

    By the device's events "forward", "backward" and "total"; by the wall clock "wall", a whole
    execution out of many without a wait between them. Inputs are in the caches if they fit, as they
    are behind the layer that made them.
    """
    if device.type == "cuda":
        # Up to the clock that the device has under load.
        large = torch.randn(8192, 8192, device=device)
        for _ in range(10):
            large @ large
    found: dict[str, Row] = {}
    clocked: dict[str, Run] = {}
    many: dict[str, int] = {}
    for name, samples in in_turns(runs, device, seconds=seconds).items():
        names = ("forward", "backward") if len(samples[0]) == 2 else ("total",)
        found[name] = milliseconds(samples, names)
        many[name] = max(1, min(20, int(10 / max(found[name]["total"][0], 1e-3))))

        def whole(lap: Callable[[], None], run: Run = runs[name], count: int = many[name]) -> None:
            _wait(device)
            for _ in range(count):
                run(_nothing)
            _wait(device)
            lap()

        clocked[name] = whole
    for name, samples in in_turns(clocked, torch.device("cpu"), seconds=seconds).items():
        found[name]["wall"] = percentiles(sample[0] / many[name] for sample in samples)
    return found


def errors(function: Callable[[Tensor], Tensor], problem: Problem) -> Row:
    """Largest relative errors of the root and the gradient against float64."""
    a = problem.a.clone().requires_grad_()
    root = function(a)
    (gradient,) = torch.autograd.grad(root, a, problem.g)
    return {
        "error": float(relative_error(root, problem.value).max()),
        "gradient_error": float(relative_error(gradient, problem.gradient).max()),
    }


# Parts of measure: each yields rows, and leaves out what is there.


def speed(device: torch.device, rows: Rows, seconds: float, dry: bool) -> Iterator[Row]:
    """Every case: errors at once, then times of forward and backward, candidates in turns."""
    for batch, n in TINY if dry else [*GOALS, *MOST_MS]:
        told = {"batch": batch, "n": n, "cond": 1e2}
        if rows.hold(kind="speed", candidate=OURS, **told):
            continue
        problem = made(batch, n, 1e2, device)
        products = 0.0
        found: dict[str, Row] = {}
        runs: dict[str, Run] = {}
        for name, function in candidates(n).items():
            row: Row = {"candidate": name, **told}
            try:
                row |= errors(function, problem)
                runs[name] = forward_and_backward(function, problem)
                if name == OURS:
                    products = sum(products_of(problem))
            except Exception as error:  # Whatever a peer raises is told, and the rest goes on.
                yield {"kind": "errors", **row, "why": describe(error)}
                continue
            row["passed"] = row["error"] <= gate(problem, truncated=name in TRUNCATED)
            found[name] = row
            yield {"kind": "errors", **row}
        for name in () if dry else GRAPHED:
            # A capture that failed may have broken the process; another run goes on without it.
            failed = rows.hold(kind="errors", candidate=graphed(name), **told)
            if name not in runs or failed:
                continue
            try:
                runs[graphed(name)] = replayed(runs[name])
                found[graphed(name)] = found[name] | {"candidate": graphed(name)}
            except Exception as error:
                row = {"candidate": graphed(name), **told, "why": describe(error)}
                yield {"kind": "errors", **row}
        for name, ms in timed(runs, device, seconds).items():
            usual = name.removesuffix(graphed(""))
            model = predicted(usual, batch, n, products, graph=name != usual)
            yield {"kind": "speed", **found[name], "ms": ms, "model": model}


def accuracy(device: torch.device, rows: Rows, dry: bool) -> Iterator[Row]:
    """Errors of the kernels beside eigh by hand, in float32 against float64."""
    spectra = ("log",) if dry else ("log", "clustered", "outlier")
    sizes, conds = ((3,), (1e2,)) if dry else ((8, 16, 48, 64, 128), (1e1, 1e2, 1e4, 1e6))
    for n, cond, spectrum in itertools.product(sizes, conds, spectra):
        told = {"n": n, "cond": cond, "spectrum": spectrum}
        if rows.hold(kind="accuracy", candidate="triton-tf32", **told):
            continue
        a = random_spd(n, 16, cond=cond, spectrum=spectrum, dtype=torch.float32)
        g = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
        few = Problem(a, g + g.mT, "sqrt")
        problem = Repeated(few.a, few.g, "sqrt", few=few, batch=16, device=device)
        for name in (OURS, EIGH, "triton-tf32"):
            function = candidates(n).get(name) or partial(
                matroot.sqrtm, method="minimax", backend="triton-tf32"
            )
            yield {"kind": "accuracy", **told, "candidate": name, **errors(function, problem)}


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


def ceilings(device: torch.device, rows: Rows, seconds: float, dry: bool) -> Iterator[Row]:
    """What a launch costs, what the device gives at most, what the kernels reach of it."""
    full = TINY_FULL if dry else FULL
    if rows.hold(kind="ceiling", n=max(full)):
        return
    yield from overheads(device, seconds, dry)
    side = 64 if dry else 8192
    big = torch.randn(side, side, device=device)
    half = big.bfloat16()
    memory = torch.randn(2**12 if dry else 2**29, device=device)
    other = torch.empty_like(memory)

    def tf32() -> None:
        torch.set_float32_matmul_precision("high")
        big @ big
        torch.set_float32_matmul_precision("highest")

    moved, flops = 8.0 * memory.numel(), 2.0 * side**3
    known = {
        "copy, bytes read and written": (lambda: other.copy_(memory), moved, "GB/s"),
        f"float32 product, n = {side}": (lambda: big @ big, flops, "GFLOP/s"),
        f"TF32 product, n = {side}": (tf32, flops, "GFLOP/s"),
        f"bfloat16 product, n = {side}": (lambda: half @ half, flops, "GFLOP/s"),
    }
    runs = {name: _once(function) for name, (function, _, _) in known.items()}
    problems = {n: made(batch, n, 1e2, device) for n, batch in full.items()}
    for n, problem in problems.items():
        runs[f"n = {n}"] = forward_and_backward(candidates(n)[OURS], problem)
    found = in_turns(runs, device, seconds=seconds)
    peak = 0.0
    for name, (_, amount, unit) in known.items():
        rate = amount / percentiles(sample[0] for sample in found[name])[0] / 1e6
        peak = rate if name.startswith("float32") else peak
        yield {"kind": "ceiling", "candidate": name, "rate": rate, "unit": unit}
    for n, problem in problems.items():
        batch = len(problem.a)
        forward, backward = products_of(problem)
        halves = list(zip(*found[f"n = {n}"], strict=True))
        for phase, products, samples in (
            ("forward", forward, halves[0]),
            ("backward", backward, halves[1]),
            ("both", forward + backward, [sum(sample) for sample in found[f"n = {n}"]]),
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


def _once(function: Callable[[], object]) -> Run:
    def run(lap: Callable[[], None]) -> None:
        function()
        lap()

    return run


def overheads(device: torch.device, seconds: float, dry: bool) -> Iterator[Row]:
    """A launch that does nothing, eager and as one of a hundred in a graph."""
    import triton

    @triton.jit
    def empty_kernel(x_ptr):
        pass

    x = torch.zeros(1, device=device)
    runs = {
        "empty kernel in Triton": _once(lambda: empty_kernel[(1,)](x)),
        "smallest operation of PyTorch": _once(lambda: x.zero_()),
    }
    for name, run in {} if dry else dict(runs).items():
        runs[graphed(name)] = replayed(run, times=100)
    for name, ms in timed(runs, device, seconds).items():
        count = 100 if name.endswith(graphed("")) else 1
        each = {clock: [t / count for t in triple] for clock, triple in ms.items()}
        yield {"kind": "overhead", "candidate": name, "ms": each}


@app.command()
def measure(
    output: Annotated[Path, typer.Option(help="Rows are added to this file.")] = ROWS,
    seconds: Annotated[float, typer.Option(help="At most, a candidate and case.")] = 0.5,
    part: Annotated[
        list[str] | None, typer.Option(help="speed, ceilings, accuracy; all if left out.")
    ] = None,
    budget: Annotated[float, typer.Option(help="No row is begun after so many seconds.")] = 600.0,
    dry: Annotated[bool, typer.Option(help="Tiny sizes, without a GPU.")] = False,
) -> None:
    """Times beside the goals, ceilings, accuracy: each row written as soon as it is known.

    Times are medians of samples taken in turns, after a warm-up, by events of the device and by the
    wall clock, of eager calls and of a CUDA graph.
    """
    device, start = _device(dry), time.perf_counter()
    seconds = 0.01 if dry else seconds
    rows = Rows(output, device)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "speed": lambda: speed(device, rows, seconds, dry),
        "ceilings": lambda: ceilings(device, rows, seconds, dry),
        "accuracy": lambda: accuracy(device, rows, dry),
    }
    for name in part or parts:
        if name not in parts:
            raise SystemExit(f"gpu.py: unknown part {name!r}; known: {', '.join(parts)}")
        for row in parts[name]():
            rows.add(row)
            spent = time.perf_counter() - start
            print(f"{spent:.0f} s: {_line(row)}", flush=True)
            if spent > budget:
                print("the time is over; the same command goes on from here", flush=True)
                return


def _line(row: Row) -> str:
    """A row for who watches."""
    names = ("kind", "batch", "n", "cond", "spectrum", "candidate")
    parts = [" ".join(str(row[k]) for k in names if row.get(k) is not None)]
    if "error" in row:
        parts.append(f"errors {_short(row['error'])}, {_short(row['gradient_error'])}")
    if row.get("ms"):
        parts += [f"{name} {triple[0]:.4f}" for name, triple in row["ms"].items()]
    if row.get("model"):
        parts.append(f"model {row['model']:.3f} ms")
    if row.get("rate"):
        parts.append(f"{row['rate']:.0f} {row['unit']}")
    if row.get("passed") is False or row.get("why"):
        parts.append(f"FAILED {row.get('why') or ''}")
    return ", ".join(parts)


# Every variant of the kernels.


class Variant(NamedTuple):
    """One call that takes kernels of its own."""

    n: int
    root: str = "sqrt"
    gradient: bool = True
    method: str = "minimax"
    dtype: str = "float32"
    backend: str = "triton"

    @property
    def kernels(self) -> tuple[Any, ...]:
        """What is compiled for it: one program serves all roots, with or without a gradient."""
        return (launch.size_of(self.n), self.method, self.dtype, self.backend)

    @property
    def programs(self) -> list[launch.Variant]:
        """The same as the self-test calls them."""
        size, method, dtype, _ = self.kernels
        half, published = dtype == "float16", method == "pade"
        precision = {"triton-tf32": "tf32", "triton-double": launch.DOUBLE}
        end = precision.get(self.backend, "tf32x3")
        root = launch.Variant("minimax", size, (half,), end)
        if published:
            root = launch.Variant("published", size, (half, True), end)
        return [root, launch.Variant("lyapunov", size, (published,), end)]


def variants(sizes: Iterable[int], more: Iterable[int]) -> list[Variant]:
    """Calls of the default at all sizes, of everything else at few; the largest first."""
    roots = ("sqrt", "inv_sqrt", "both")
    found = [Variant(n, root) for n, root in itertools.product(sizes, roots)]
    for n in more:
        found += [Variant(n, root, gradient=False) for root in roots]
        for root in ("sqrt", "inv_sqrt"):
            found.append(Variant(n, root, method="pade"))
            found.append(Variant(n, root, dtype="float16"))
        found.append(Variant(n, backend="triton-tf32"))
        found.append(Variant(n, "inv_sqrt", dtype="float64", backend="triton-double"))
    return sorted(found, key=lambda variant: -variant.n)


SIZES, MORE = (8, 16, 31, 48, 64, 100, 128), (16, 31, 64, 128)


@app.command()
def verify(
    output: Annotated[Path, typer.Option(help="Rows are added to this file.")] = ROWS,
    workers: Annotated[int, typer.Option(help="Processes at once.")] = 15,
    budget: Annotated[float, typer.Option(help="None is begun after so many seconds.")] = 600.0,
    of: Annotated[str | None, typer.Option(help="Only these: used for the processes.")] = None,
    dry: Annotated[bool, typer.Option(help="Tiny sizes, without a GPU.")] = False,
) -> None:
    """Compile every variant of the kernels, and check each: errors, 50 times the same bits, memory.

    Each runs in a process of its own, so that one that breaks the device breaks no other; Triton
    keeps what they compile in one folder, TRITON_CACHE_DIR.
    """
    device, start = _device(dry), time.perf_counter()
    rows = Rows(output, device)
    wanted = variants((3,), ())[:2] if dry else variants(SIZES, MORE)
    groups: dict[str, list[Variant]] = {}
    for variant in wanted:
        groups.setdefault("/".join(map(str, variant.kernels)), []).append(variant)
    if of is not None:
        _verify_here(groups[of], rows, device, dry)
        return
    left_over = [
        name
        for name, group in groups.items()
        if not all(rows.hold(kind="variant", **variant._asdict()) for variant in group)
    ]

    def run(name: str) -> None:
        left = budget - (time.perf_counter() - start)
        if left <= 0:
            print(f"{name}: no time left", flush=True)
            return
        command = [sys.executable, __file__, "verify", "--of", name, "--output", str(output)]
        # The kernels themselves, whatever their own test says of them.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MATROOT_TRITON": "on"}
        try:
            done = subprocess.run(
                [*command, *(["--dry"] if dry else [])],
                capture_output=True,
                text=True,
                timeout=left + 30,
                env=environment,
            )
            text, broken = done.stdout, done.returncode
            why = "" if not broken else (done.stderr.strip().splitlines() or [""])[-1]
        except subprocess.TimeoutExpired as error:
            text = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else ""
            broken, why = 1, "not ready in time"
        spent = time.perf_counter() - start
        print(f"{spent:.0f} s: {name}\n{text}", end="", flush=True)
        if broken:
            print(f"  FAILED: {why}", flush=True)
            rows.add({"kind": "broken", "candidate": name, "why": why})

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(run, left_over))
    there = _checks(of_one_place(read(output), rows.origin))
    tests = pick(of_one_place(read(output), rows.origin), kind="self-test")
    bad = [row for row in (*there, *tests) if not row["passed"]]
    print(f"{len(there)} variants checked of {len(wanted)}, {len(bad)} failed")
    raise SystemExit(1 if bad or len(there) < len(wanted) else 0)


def _verify_here(group: Iterable[Variant], rows: Rows, device: torch.device, dry: bool) -> None:
    """Check variants that take the same kernels, then these kernels' own test, in this process."""
    for variant in group:
        if not rows.hold(kind="variant", **variant._asdict()):
            row = {"kind": "variant", **variant._asdict(), **checked(variant, device, dry)}
            rows.add(row)
            print(_verdict(row), flush=True)
    for program in () if dry else next(iter(group)).programs:
        row = {"kind": "self-test", **_self_tested(program, device)}
        rows.add(row)
        print(f"  self-test of {row['program']}: {row['said']}, {row['ms']:.0f} ms", flush=True)


def _self_tested(program: launch.Variant, device: torch.device) -> Row:
    """What the self-test of a program says, and how long it takes once that is compiled."""
    selftest._verdict(program, device)
    start = time.perf_counter()
    verdict = selftest._verdict(program, device)
    ms = 1e3 * (time.perf_counter() - start)
    return {"program": "/".join(map(str, program)), **verdict._asdict(), "ms": ms}


def _checks(rows: Iterable[Row]) -> list[Row]:
    """The newest of each variant."""
    found = pick(rows, kind="variant")
    return list({tuple(row[name] for name in Variant._fields): row for row in found}.values())


def _short(error: float | None) -> str:
    # What is not finite is null in a file.
    return "not finite" if error is None else f"{error:.1e}"


def _verdict(row: Row) -> str:
    words = [str(row[name]) for name in Variant._fields if row[name] != Variant(0)._asdict()[name]]
    verdict = "passed" if row["passed"] else f"FAILED {row['why']}"
    return f"  {' '.join(words)}: {verdict}, error {_short(row['error'])}, {row['seconds']:.0f} s"


@functools.cache
def _answers(n: int, cond: float, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Matrices, a cotangent, roots and gradients in float64: few, all different."""
    a = random_spd(n, 60, cond=cond, dtype=torch.float32).to(dtype)
    g = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    g = (g + g.mT).to(dtype)
    found = {"a": a, "g": g}
    for root in ("sqrt", "inv_sqrt"):
        found[root] = exact(a, root)
        found["gradient of " + root] = exact_gradient(a, g, root)
    return {name: x.to(device) for name, x in found.items()}


class Calls(NamedTuple):
    """A variant as it is called by ``checked``.

    Attributes:
        few: see ``_answers``.
        a: matrices, the few ones again and again.
        run: the roots and the gradient of all of them, or of some, or by another backend.
        call: the public function with its options but for the backend.
        names: of the roots.
    """

    few: dict[str, Tensor]
    a: Tensor
    run: Callable[..., list[Tensor]]
    call: Callable[..., Any]
    names: tuple[str, ...]


def _condition(variant: Variant) -> float:
    rough = variant.backend == "triton-tf32"
    # What half precision rounds is no longer definite at a larger condition number.
    return 20.0 if variant.dtype == "float16" or variant.method == "pade" or rough else 1e4


def _calls(variant: Variant, device: torch.device, dry: bool) -> Calls:
    published = variant.method == "pade"
    few = _answers(variant.n, _condition(variant), getattr(torch, variant.dtype), device)
    # More than the device holds at once: a program takes several matrices.
    batch = 3 if dry else 1200
    times = -(-batch // 60)
    a, g = (few[name].repeat(times, 1, 1)[:batch] for name in "ag")
    call = partial(
        {
            "sqrt": matroot.sqrtm,
            "inv_sqrt": matroot.inv_sqrtm,
            "both": matroot.sqrtm_pair,
        }[variant.root],
        method=variant.method,
        gradient=Lyapunov(steps=8) if published else "auto",
    )
    names = ("sqrt", "inv_sqrt") if variant.root == "both" else (variant.root,)

    def run(of: Any = slice(None), backend: str = variant.backend) -> list[Tensor]:
        x = a[of].clone().requires_grad_(variant.gradient)
        found = call(x, backend=backend)
        found = list(found) if variant.root == "both" else [found]
        if variant.gradient:
            found += torch.autograd.grad(found, x, [g[of]] * len(names))
        return [y.detach() for y in found]

    return Calls(few, a, run, call, names)


def checked(variant: Variant, device: torch.device, dry: bool) -> Row:
    """Whether the errors are small, the bits always the same, and what is kept for the gradient."""
    start = time.perf_counter()
    calls = _calls(variant, device, dry)
    first = calls.run()
    worst, wrong = _errors(variant, calls, first)
    wrong += _other_bits(calls, first, dry)
    kept = _kept(variant, calls) if device.type == "cuda" and variant.gradient else None
    return {
        "error": worst,
        "passed": not wrong,
        "why": "; ".join(wrong) or None,
        "matrices_kept": kept,
        "seconds": time.perf_counter() - start,
    }


def _errors(variant: Variant, calls: Calls, first: list[Tensor]) -> tuple[float, list[str]]:
    """The largest error, and which are larger than allowed."""
    published, rough = variant.method == "pade", variant.backend == "triton-tf32"
    batch, wrong, worst = len(calls.a), [], 0.0
    answers = {name: calls.few[name] for name in calls.names}
    if variant.gradient:
        answers["gradient"] = sum(calls.few["gradient of " + name] for name in calls.names)
    if published:
        # Far from the root; what is right is what PyTorch's operations make of it.
        answers = dict(zip(answers, calls.run(slice(60), "torch"), strict=True))
    for (name, answer), x in zip(answers.items(), first, strict=True):
        expected = answer.repeat(-(-batch // 60), 1, 1)[:batch]
        error = float(relative_error(x, expected).max())
        dtype = getattr(torch, variant.dtype)
        allowed = APPROXIMATE if rough else tolerance(dtype, _condition(variant), name)
        if published:  # Its powers lose a factor cond(P) = 4⁵ there, too.
            allowed = tolerance(dtype, 4.0**5, "gradient")
        # Written so that NaN fails.
        if not error <= allowed:
            wrong.append(f"error {error:.1e} of {name}, allowed {allowed:.1e}")
        worst = worst if error <= worst else error
    return worst, wrong


def _other_bits(calls: Calls, first: list[Tensor], dry: bool) -> list[str]:
    """Where the bits differ from those of the first run: again, or in another batch."""
    wrong, batch, repeats = [], len(calls.a), 2 if dry else 50
    if not all(all(map(torch.equal, first, calls.run())) for _ in range(repeats)):
        wrong.append(f"other bits in one of {repeats} runs")
    places = [[0], [batch - 1], [2, 0]]
    if not dry:
        places += [[17, 250, 3], list(range(100, 264))]
    for place in places:
        if not all(torch.equal(x[place], y) for x, y in zip(first, calls.run(place), strict=True)):
            wrong.append(f"other bits in the batch {place[:3]}")
    return wrong


def _kept(variant: Variant, calls: Calls) -> float:
    """Memory that a call keeps for its gradient, in matrices for each matrix."""
    device = calls.a.device
    x = calls.a.clone().requires_grad_()
    _wait(device)
    before = torch.cuda.memory_allocated(device)
    found = calls.call(x, backend=variant.backend)
    kept = (torch.cuda.memory_allocated(device) - before) / (x.numel() * x.element_size())
    del found
    return kept


@app.command()
def summary(
    rows: Annotated[Path, typer.Argument(help="What measure has written.")] = ROWS,
) -> None:
    """The newest rows: how many times faster than others, beside the goals and the model."""
    found = read(rows)
    if not found:
        raise SystemExit(f"gpu.py: no rows in {rows}; run measure on a machine with a GPU")
    print(table(found))


def table(rows: list[Row]) -> str:
    """Times, ratios with their goals in brackets, errors, ceilings, what failed."""
    last = rows[-1]
    rows = of_one_place(rows, last)
    names = ("device_name", "commit", "torch", "triton", "cuda", "driver")
    lines = [", ".join(f"{name} {last.get(name)}" for name in names)]
    found: dict[tuple[int, int], dict[str, Row]] = {}
    for row in pick(rows, kind="speed"):
        found.setdefault((row["batch"], row["n"]), {})[row["candidate"]] = row
    for clock, title in (("total", "the device's events"), ("wall", "the wall clock")):
        lines += [f"By {title}, ms; times faster (goal), ✗ where it is missed:"]
        head = "ours, in a graph | paper, ours in a graph | NS-5, both in a graph | eigh"
        lines += [f"batch×n | {head} | errors ours, paper, eigh"]
        lines += [
            " | ".join([f"{batch}×{n}", *_cells(case, GOALS.get((batch, n)), clock)])
            for (batch, n), case in found.items()
            if OURS in case
        ]
    lines += ["Model beside measurement, ms:"]
    for (batch, n), case in found.items():
        parts = [
            f"{name} {row['model']:.3f} / {row['ms']['total'][0]:.3f}"
            for name, row in case.items()
            if row.get("model")
        ]
        lines.append(f"{batch}×{n}: {'; '.join(parts)}")
    for case, most in MOST_MS.items():
        if OURS in found.get(case, {}):
            ms = found[case][OURS]["ms"]["total"][0]
            missed = "" if ms <= most else " ✗"
            lines.append(f"{case[0]}×{case[1]}: {ms:.3f} ms (at most {most}{missed})")
    for row in _latest(pick(rows, kind="overhead")):
        parts = [f"{name} {1e3 * triple[0]:.2f}" for name, triple in row["ms"].items()]
        lines.append(f"{row['candidate']}, µs: {', '.join(parts)}")
    for row in _latest(pick(rows, kind="ceiling")):
        share = f", {row['share']:.0%} of float32 ({SHARE:.0%})" if row.get("share") else ""
        lines.append(f"{row['candidate']}: {row['rate']:.0f} {row['unit']}{share}")
    checks = _checks(rows)
    if checks:
        passed = sum(row["passed"] for row in checks)
        kept = max((row["matrices_kept"] or 0.0 for row in checks), default=0.0)
        lines.append(f"variants passed: {passed} of {len(checks)}; matrices kept: {kept:.2f}")
    lines += [_verdict(row) for row in checks if not row["passed"]]
    for row in [*pick(rows, kind="broken"), *pick(rows, kind="errors")]:
        if row.get("why") or row.get("passed") is False:
            lines.append(_line(row))
    return "\n".join(lines)


def _latest(rows: Iterable[Row]) -> list[Row]:
    return list({row["candidate"]: row for row in rows}.values())


def _cells(case: dict[str, Row], goal: Goal | None, clock: str) -> list[str]:
    """One line of the table."""
    ms = {name: row["ms"][clock][0] for name, row in case.items()}
    own, graph = ms[OURS], ms.get(graphed(OURS), math.nan)
    eigh = min((ms[name] for name in (EIGH, "eigh of CuPy") if name in ms), default=math.nan)
    paper, ns = ms.get(PAPER, math.nan), ms.get(NS, math.nan)

    def times(other: float, ours: float, wanted: float | None) -> str:
        if wanted is None or math.isnan(other / ours):
            return f"{other / ours:.1f}"
        return f"{other / ours:.1f} ({wanted:g}{'' if other / ours >= wanted else ' ✗'})"

    goals = goal or (None,) * 4
    both = ms.get(graphed(NS), math.nan) / graph
    cells = [
        f"{own:.3f}, {graph:.3f}",
        f"{times(paper, own, goals[0])}, {times(paper, graph, goals[1])}",
        f"{times(ns, own, goals[2])}, {both:.1f}",
        times(eigh, own, goals[3]),
    ]
    known = [case[name]["error"] for name in (OURS, PAPER, EIGH) if name in case]
    return [*cells, ", ".join(map(_short, known))]


@app.command()
def tune(
    output: Annotated[Path, typer.Option(help="Rows are added to this file.")] = ROWS,
    seconds: Annotated[float, typer.Option(help="At most, a candidate and case.")] = 0.5,
) -> None:
    """Every number of warps and resident programs for every padded size, timed in turns."""
    device = _device(False)
    rows = Rows(output, device)
    for size, batch in ((16, 4096), (32, 2048), (64, 256), (64, 4096), (128, 64), (128, 1024)):
        problem, usual = made(batch, size, 1e2, device), launch.LAUNCHES[size]
        memory = (None,) if usual.resident is None else (1, 2, 4, 8)
        runs = {}
        for warps, resident in itertools.product((1, 2, 4, 8, 16), memory):
            tried = launch.Launch(warps, resident)
            run = forward_and_backward(candidates(size)[OURS], problem)

            def changed(lap: Any, run: Any = run, tried: Any = tried, size: int = size) -> None:
                launch.LAUNCHES[size] = tried
                run(lap)

            try:
                changed(_nothing)
                _wait(device)
            except Exception as error:  # Too many registers or too much shared memory.
                print(f"{size}, {tried}: {type(error).__name__}")
                continue
            runs[f"{warps} warps, {resident} resident"] = changed
        found = []
        for name, samples in in_turns(runs, device, seconds=seconds).items():
            ms = milliseconds(samples, ("forward", "backward"))
            told = {"batch": batch, "n": size, "candidate": name, "ms": ms}
            found.append({"kind": "launch", **told})
            rows.add(found[-1])
        launch.LAUNCHES[size] = usual
        for row in sorted(found, key=lambda row: row["ms"]["total"][0])[:4]:
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

    latest = {(r["batch"], r["n"], r["candidate"]): r for r in pick(read(rows), kind="speed")}
    if not latest:
        raise SystemExit(f"gpu.py: no rows in {rows}; run measure on a machine with a GPU")
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


@app.command(name="compile")
def compile_kernels(
    capability: Annotated[int, typer.Argument(help="80, 90, 100 …")] = 90,
    size: Annotated[list[int] | None, typer.Option(help="Padded sizes; all if left out.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes; 0 is one a core.")] = 0,
    double: Annotated[bool, typer.Option(help="In float64 instead of float32.")] = False,
) -> None:
    """Compile every kernel for a GPU that need not be there, and print what it takes."""
    if launch.interpreting():
        raise SystemExit("gpu.py: TRITON_INTERPRET=1 is set; without it there is a compiler")
    wanted = [(name, n) for n in size or launch.LAUNCHES for name in machine_code.KERNELS]
    names, sizes = zip(*wanted, strict=True)
    spawn = multiprocessing.get_context("spawn")
    of_each = (names, sizes, itertools.repeat(capability), itertools.repeat(double))
    with ProcessPoolExecutor(min(jobs or os.cpu_count() or 1, len(wanted)), spawn) as pool:
        for found in pool.map(machine_code.compiled, *of_each):
            print(found, flush=True)


if __name__ == "__main__":
    app()
