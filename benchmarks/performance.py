"""Measure what docs/performance.md says, and write its tables and plot.

python benchmarks/performance.py measure   some five minutes; rows to benchmarks/results
python benchmarks/performance.py write     tables into docs/performance.md, plot into docs/images
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from numerics import (
    COLORS,
    IMAGES,
    ROOT,
    command,
    figure,
    fill,
    function,
    interleaved,
    load,
    table,
)
from torch import Tensor

import matroot
from matroot.bench import baselines
from matroot.bench.plots import label_ends
from matroot.bench.rows import Row, pick
from matroot.gradients import Lyapunov, Spectral
from matroot.kernels import native
from matroot.methods import Eigh, Minimax, Pade
from matroot.testing import by_eigh, exact, exact_gradient, random_spd, relative_error

ROWS = ROOT / "benchmarks/results/performance-cpu.jsonl"
PAGE = ROOT / "docs/performance.md"

SIZES = [
    (1024, 8),
    (1024, 16),
    (256, 32),
    (64, 48),
    (256, 64),
    (64, 128),
    (16, 256),
    (1, 32),
    (1, 64),
    (1, 128),
    (1, 256),
    (1, 512),
    (1, 1024),
]
PAPER = "paper, PyTorch's operations"
AS_PUBLISHED = partial(baselines.paper, forward="pade")
CHOICES: dict[str, dict[str, Any] | None] = {
    "eigh by hand": None,
    "default": {},
    "the same with autograd": None,
    "torch.linalg.matrix_sqrth": None,
    PAPER: None,
    "paper, kernels": {"method": Pade(), "gradient": Lyapunov(steps=8), "backend": "native"},
}
BACKENDS: dict[str, dict[str, Any]] = {
    f"{name}, {backend}": {"method": method, "gradient": rule, "backend": backend}
    for name, method, rule in (("eigh", Eigh(), Spectral()), ("minimax", Minimax(), Lyapunov()))
    for backend in ("native", "torch")
}


def both(a: Tensor, g: Tensor, wanted: str, options: dict[str, Any]) -> tuple[Tensor, ...]:
    """A root, or the pair, and the gradient for the cotangent G of each."""
    x = a.clone().requires_grad_()
    if wanted == "both":
        roots = matroot.sqrtm_pair(x, **options)
        return (*roots, *torch.autograd.grad(roots, x, (g, g)))
    root = function(wanted)(x, **options)
    return root, *torch.autograd.grad(root, x, g)


def with_gradient(function: Callable[[Tensor], Tensor], a: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """A root and its gradient by autograd."""
    x = a.clone().requires_grad_()
    root = function(x)
    return root, *torch.autograd.grad(root, x, g)


def case(n: int, batch: int, cond: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Matrices and a cotangent."""
    a = random_spd(n, batch, cond=cond, dtype=dtype)
    g = torch.randn(a.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return a, g + g.mT


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> Iterator[tuple[str, Row]]:
    """Every candidate in turns."""
    for name, (p20, median, p80) in interleaved(runs, repeats).items():
        yield name, {"ms": median, "p20": p20, "p80": p80}


def speed() -> Iterator[Row]:
    """Root and its gradient, float32, beside what else a user could write."""
    for (batch, n), cond in itertools.product(SIZES, (1e2, 1e4)):
        a, g = case(n, batch, cond, torch.float32)
        runs: dict[str, Callable[[], Any]] = {
            name: partial(both, a, g, "sqrt", options)
            for name, options in CHOICES.items()
            if options is not None
        }
        runs["eigh by hand"] = partial(by_eigh, a, g)
        functions = {"the same with autograd": baselines.eigh_by_hand, PAPER: AS_PUBLISHED}
        if hasattr(torch.linalg, "matrix_sqrth"):
            functions["torch.linalg.matrix_sqrth"] = torch.linalg.matrix_sqrth
        runs |= {name: partial(with_gradient, f, a, g) for name, f in functions.items()}
        for name, row in timed(runs, 11):
            root, gradient = runs[name]()
            yield {
                "kind": "speed",
                "batch": batch,
                "n": n,
                "cond": cond,
                "choice": name,
                **row,
                "error": float(relative_error(root, exact(a)).mean()),
                "gradient_error": float(relative_error(gradient, exact_gradient(a, g)).mean()),
            }


def choice() -> Iterator[Row]:
    """What auto chooses between, per dtype, size and wanted roots; forward and backward."""
    sizes = [(4096, 4), (1024, 8), (512, 16), (256, 32), (64, 64), (16, 128), (4, 256), (2, 512)]
    dtypes = (torch.float32, torch.float64)
    for dtype, (batch, n), wanted in itertools.product(dtypes, sizes, ("sqrt", "inv_sqrt", "both")):
        a, g = case(n, batch, 1e2, dtype)
        runs = {name: partial(both, a, g, wanted, options) for name, options in BACKENDS.items()}
        for name, row in timed(runs, 5):
            yield {
                "kind": "choice",
                "dtype": str(dtype).removeprefix("torch."),
                "batch": batch,
                "n": n,
                "wanted": wanted,
                "choice": name,
                **row,
            }


def rate() -> Iterator[Row]:
    """GFLOP/s of the products that the kernels are made of, beside a large product of PyTorch's."""
    big = torch.randn(2048, 2048)
    runs: dict[str, Callable[[], Any]] = {"torch.mm, n = 2048": partial(torch.mm, big, big)}
    flops = {"torch.mm, n = 2048": 2.0 * 2048**3}
    repeats, batch, operands = 200, 32, []  # kept while their addresses are in use
    for n, symmetric in itertools.product((8, 16, 32, 64, 128, 256), (False, True)):
        a = torch.randn(batch, n, n)
        b, c = a.mT.contiguous(), torch.empty_like(a)
        name = f"{'symmetric' if symmetric else 'general'}, n = {n}"
        task = native.tasks.MODULE.ProductTask(
            batch=native.tasks.MODULE.Batch(
                is_double=False, count=batch, n=n, threads=torch.get_num_threads()
            ),
            a=a.data_ptr(),
            b=b.data_ptr(),
            c=c.data_ptr(),
            symmetric=symmetric,
            repeats=repeats,
        )
        operands.append((a, b, c))
        runs[name] = partial(native.tasks.MODULE.product, task)
        # A symmetric product has n²(n + 1) useful flops, a general one 2n³.
        flops[name] = repeats * batch * (n**2 * (n + 1.0) if symmetric else 2.0 * n**3)
    for name, row in timed(runs, 7):
        yield {"kind": "rate", "choice": name, **row, "gflops": flops[name] / row["ms"] / 1e6}


def call() -> Iterator[Row]:
    """One small matrix: what a call costs in all."""
    a = random_spd(4, 1, cond=1e1, dtype=torch.float32)

    def by_hand() -> Tensor:
        values, q = torch.linalg.eigh(a)
        return (q * values.clamp(min=0).sqrt()[:, None, :]) @ q.mT

    def ours() -> Tensor:
        return matroot.sqrtm(a)

    repeats = 200
    runs = {
        name: (lambda f=f: [f() for _ in range(repeats)])
        for name, f in (("eigh by hand", by_hand), ("default", ours))
    }
    for name, row in timed(runs, 15):
        yield {"kind": "call", "choice": name, "us": row["ms"] * 1e3 / repeats}


def speed_table(rows: list[Row], cond: float) -> str:
    """Times, ratios and errors."""
    body = []
    for batch, n in SIZES:
        found = {
            row["choice"]: row for row in pick(rows, kind="speed", batch=batch, n=n, cond=cond)
        }
        ours, hand = found["default"], found["eigh by hand"]
        cells = [f"{ours['ms']:.3g}", f"{hand['ms'] / ours['ms']:.1f}×"]
        for name in list(CHOICES)[2:]:
            cells.append(f"{found[name]['ms'] / ours['ms']:.1f}×" if name in found else "–")
        for field in ("error", "gradient_error"):
            paper = found[PAPER]
            cells.append(f"{ours[field]:.0e} / {hand[field]:.0e} / {paper[field]:.0e}")
        body.append([f"{batch}×{n}", *cells])
    head = [
        "batch×n",
        "default, ms",
        "eigh by hand",
        *list(CHOICES)[2:],
        "error",
        "of the gradient",
    ]
    return table(head, body)


def choice_table(rows: list[Row]) -> str:
    """Milliseconds; the fastest in bold."""
    body = []
    known = pick(rows, kind="choice")
    cases = list(dict.fromkeys((r["dtype"], r["batch"], r["n"], r["wanted"]) for r in known))
    for dtype, batch, n, wanted in cases:
        found = {
            row["choice"]: row["ms"]
            for row in pick(known, dtype=dtype, batch=batch, n=n, wanted=wanted)
        }
        least = min(found.values())
        cells = [
            f"**{found[name]:.3g}**" if found[name] == least else f"{found[name]:.3g}"
            for name in BACKENDS
        ]
        body.append([dtype, f"{batch}×{n}", wanted, *cells])
    return table(["dtype", "batch×n", "wanted", *BACKENDS], body)


def rate_table(rows: list[Row]) -> str:
    """Rates, and their share of a large product's."""
    known = {row["choice"]: row["gflops"] for row in pick(rows, kind="rate")}
    large = known["torch.mm, n = 2048"]
    body = [[name, f"{x:.0f}", f"{x / large:.0%}"] for name, x in known.items()]
    return table(["product", "GFLOP/s", "of the large one"], body)


def call_table(rows: list[Row]) -> str:
    """Microseconds a call."""
    return table(
        ["1×4×4, no gradient", "µs"],
        [[row["choice"], f"{row['us']:.0f}"] for row in pick(rows, kind="call")],
    )


def plot(rows: list[Row]) -> None:
    """How many times faster the default is, against the size: in batches, and one matrix."""
    drawing = figure(10, 4.5)
    names = [name for name in CHOICES if name != "default"]
    panels = {
        "in batches as in the table": [size for size in SIZES if size[0] > 1],
        "one matrix": [size for size in SIZES if size[0] == 1],
    }
    least = {}
    for axes, (title, sizes) in zip(
        drawing.subplots(1, 2, sharey=True), panels.items(), strict=True
    ):
        ends = []
        for cond, style in ((1e2, "-"), (1e4, "--")):
            for color, name in zip(COLORS, names, strict=False):
                points = []
                for batch, n in sizes:
                    found = {
                        r["choice"]: r["ms"]
                        for r in pick(rows, kind="speed", batch=batch, n=n, cond=cond)
                    }
                    if name in found:
                        points.append((n, found[name] / found["default"]))
                axes.plot(*zip(*points, strict=True), style, marker="o", ms=4, color=color)
                least[title] = min(least.get(title, math.inf), *(ratio for _, ratio in points))
                if cond == 1e2:
                    ends.append((name.replace("the same with", "eigh and"), color, *points[-1]))
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="n")
        axes.set_title(title, size=11)
        ticks = sorted({n for _, n in sizes})
        axes.set_xticks(ticks, [str(n) for n in ticks])
        axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        label_ends(axes, ends, size=8.5)
    drawing.axes[0].set_ylabel("time / time of the default")
    batches, single = least.values()
    drawing.suptitle(
        f"Others take at least {batches:.1f} times as long as the default in batches, "
        f"{single:.1f} times for one matrix\n"
        "Root and gradient, float32, two cores; κ = 1e2, dashed 1e4",
        size=11,
    )
    drawing.savefig(IMAGES / "performance.svg", metadata={"Date": None})


def write() -> None:
    """Tables and plot."""
    rows = load(ROWS)
    text = PAGE.read_text(encoding="utf-8")
    text = fill(text, "speed at 1e2", speed_table(rows, 1e2))
    text = fill(text, "speed at 1e4", speed_table(rows, 1e4))
    text = fill(text, "choice", choice_table(rows))
    text = fill(text, "rate", rate_table(rows))
    text = fill(text, "call", call_table(rows))
    PAGE.write_text(text, encoding="utf-8")
    plot(rows)


PARTS = {"speed": speed, "choice": choice, "rate": rate, "call": call}

if __name__ == "__main__":
    command(__doc__, ROWS, PARTS, write)
