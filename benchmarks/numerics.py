"""Measure what docs/numerics.md says, and write its tables and plots.

python benchmarks/numerics.py measure    some five minutes on two cores; rows to benchmarks/results
python benchmarks/numerics.py write      tables into docs/numerics.md, plots into docs/images
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mpmath
import torch
from lyapunov_schemes import SCHEMES
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from rich.progress import Progress
from torch import Tensor

import matroot
from matroot.bench.measure import in_turns, milliseconds
from matroot.bench.plots import label_ends, plain_ticks
from matroot.bench.rows import Row, append, pick, provenance
from matroot.gradients import GradientRule, Lyapunov
from matroot.methods import Method, Minimax, NewtonSchulz, Pade, Taylor
from matroot.testing import (
    Products,
    by_eigh,
    exact,
    exact_gradient,
    random_spd,
    relative_error,
)

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks/results/numerics-cpu.jsonl"
PAGE = ROOT / "docs/numerics.md"
IMAGES = ROOT / "docs/images"

QUANTITIES = ("sqrt", "inv_sqrt", "gradient", "inv_gradient")
CHOICES: dict[str, tuple[Method | str, GradientRule | str] | None] = {
    "eigh": None,  # by hand: torch.linalg.eigh and division by s_i + s_j
    "default": ("auto", "auto"),
    "minimax": (Minimax(), Lyapunov()),
    "minimax, told κ ≤ 1e3": (Minimax(max_cond=1e3), Lyapunov()),
    "newton_schulz (as published)": (NewtonSchulz(), Lyapunov()),
    "pade (as published)": (Pade(), Lyapunov(steps=8)),
    "taylor (as published)": (Taylor(), Lyapunov(steps=8)),
}
MAIN = ("eigh", "default", "minimax")


def function(quantity: str) -> Callable[..., Tensor]:
    """``sqrtm`` or ``inv_sqrtm``."""
    return matroot.inv_sqrtm if quantity.startswith("inv") else matroot.sqrtm


def value_and_gradient(a: Tensor, g: Tensor, quantity: str, choice: str) -> tuple[Tensor, Tensor]:
    """The root and the gradient by A for the cotangent G; NaN where there is none."""
    options = CHOICES[choice]
    if options is None:
        kind: Any = quantity
        wide = a if a.dtype.itemsize >= 4 else a.float()
        return by_eigh(wide, g.to(wide.dtype), kind)
    method, rule = options
    x = a.clone().requires_grad_()
    backend = "auto" if choice == "default" else "torch"
    options = {"method": method, "gradient": rule, "backend": backend}
    y = function(quantity)(x, check_errors=False, **options)
    return y.detach(), torch.autograd.grad(y, x, g)[0]


def accuracy() -> Iterator[Row]:
    """Errors against double precision (for double precision, against 40 digits)."""
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    spectra = ("log", "clustered", "outlier", "half_zero")
    for dtype, n, spectrum in itertools.product(dtypes, (16, 64, 256), spectra):
        if dtype == torch.float64 and (n > 16 or spectrum == "half_zero"):
            continue  # 40 digits take too long; at zero eigenvalues they settle nothing.
        conds = (1e3,) if dtype.itemsize == 2 else (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
        for cond in conds:
            count = {16: 16, 64: 8, 256: 4}[n] if dtype != torch.float64 else 2
            a = random_spd(n, count, cond=cond, spectrum=spectrum, dtype=dtype)
            g = torch.randn(a.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            for quantity in ("sqrt", "inv_sqrt"):
                if spectrum == "half_zero" and quantity == "inv_sqrt":
                    continue
                truth = many_digits if dtype == torch.float64 else two_digits_more
                root, gradient = truth(a, g, quantity)
                for choice in CHOICES:
                    if choice not in MAIN and (dtype.itemsize != 4 or spectrum != "log"):
                        continue
                    x, dx = value_and_gradient(a, g, quantity, choice)
                    error, wrong = relative_error(x, root), relative_error(dx, gradient)
                    yield {
                        "kind": "accuracy",
                        "dtype": str(dtype).removeprefix("torch."),
                        "n": n,
                        "batch": count,
                        "spectrum": spectrum,
                        "cond": cond,
                        "root": quantity,
                        "choice": choice,
                        "error": float(error.mean()),
                        "gradient_error": None if spectrum == "half_zero" else float(wrong.mean()),
                    }


def two_digits_more(a: Tensor, g: Tensor, quantity: Any) -> tuple[Tensor, Tensor]:
    """Root and gradient in double precision."""
    return exact(a, quantity), exact_gradient(a, g, quantity)


def many_digits(a: Tensor, g: Tensor, quantity: str) -> tuple[Tensor, Tensor]:
    """Root and gradient with 40 digits, rounded to double precision."""
    found = [_many_digits(x, y, quantity) for x, y in zip(a.tolist(), g.tolist(), strict=True)]
    roots, gradients = zip(*found, strict=True)
    return torch.stack(roots), torch.stack(gradients)


def _many_digits(a: list, g: list, quantity: str) -> tuple[Tensor, Tensor]:
    with mpmath.workdps(40):
        values, q = mpmath.eigsy(mpmath.matrix(a))
        s, n = [mpmath.sqrt(x) for x in values], len(a)
        inverse = quantity == "inv_sqrt"
        root = q * mpmath.diag([1 / x if inverse else x for x in s]) * q.T
        rotated = q.T * (mpmath.matrix(g) + mpmath.matrix(g).T) * q / 2
        for i, j in itertools.product(range(n), repeat=2):
            rotated[i, j] /= (s[i] + s[j]) * (-s[i] * s[j] if inverse else 1)
        gradient = q * rotated * q.T
        return tuple(
            torch.tensor([[float(m[i, j]) for j in range(n)] for i in range(n)], dtype=torch.double)
            for m in (root, gradient)
        )


def products() -> Iterator[Row]:
    """Products of one call, forward and backward, where the condition number is 1e2 or 1e4."""
    for cond, choice, quantity in itertools.product((1e2, 1e4), CHOICES, ("sqrt", "inv_sqrt")):
        if choice == "minimax, told κ ≤ 1e3" and cond > 1e3:
            continue
        options = CHOICES[choice]
        if options is None:
            continue
        method, rule = options
        a = random_spd(64, 2, cond=cond, dtype=torch.float32).requires_grad_()
        with Products() as forward:
            y = function(quantity)(a, method=method, gradient=rule, backend="torch")
        with Products() as backward:
            torch.autograd.grad(y.sum(), a)
        yield {
            "kind": "products",
            "cond": cond,
            "choice": choice,
            "root": quantity,
            "forward": forward.count,
            "backward": backward.count,
        }


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list]:
    """Milliseconds of every candidate, in turns: 20th, 50th and 80th percentile."""
    runs = {name: partial(_as_run, f) for name, f in candidates.items()}
    samples = in_turns(runs, torch.device("cpu"), seconds=math.inf, most=repeats)
    found = {}
    for name, laps in samples.items():
        median, p20, p80 = milliseconds(laps, ("after others", "warm"))["warm"]
        found[name] = [p20, median, p80]
    return found


def _as_run(function: Callable[[], object], lap: Callable[[], None]) -> None:
    """Twice: the first meets caches that the others have filled, and is not counted."""
    function()
    lap()
    function()
    lap()


def lyapunov() -> Iterator[Row]:
    """Every scheme at its converged accuracy, S the root of a float32 matrix, n = 64."""
    for cond, spectrum in itertools.product((1e2, 1e4, 1e6), ("log", "clustered")):
        s = exact(random_spd(64, 64, cond=cond, spectrum=spectrum)).float()
        s = (s + s.mT) / 2
        r = torch.randn(s.shape, generator=torch.Generator().manual_seed(1)).float()
        r = r + r.mT
        values, q = torch.linalg.eigh(s.double())
        sums = values[:, :, None] + values[:, None, :]
        truth = q @ ((q.mT @ r.double() @ q) / sums) @ q.mT
        # Bounds as loose as they are in practice.
        low, high = float(values.min()) / 2, float(values.max()) * 2
        chosen, rows = {}, {}
        for name, scheme in SCHEMES.items():
            tried = []
            for steps in range(1, 20):
                x, count, inverses = scheme(s, r, low, high, steps)
                error = float(relative_error(x, truth).mean().nan_to_num(1e9))
                tried.append((error, count, inverses, steps))
            least = min(error for error, *_ in tried)
            error, count, inverses, steps = next(t for t in tried if t[0] <= 1.3 * least)
            chosen[name] = partial(scheme, s, r, low, high, steps)
            rows[name] = {"error": error, "products": count, "inverses": inverses}
        for name, (p20, median, p80) in interleaved(chosen, 7).items():
            yield {
                "kind": "lyapunov",
                "cond": cond,
                "spectrum": spectrum,
                "scheme": name,
                **rows[name],
                "ms": median,
                "p20": p20,
                "p80": p80,
            }


def record(path: Path, parts: dict[str, Callable[[], Iterator[Row]]]) -> None:
    """All rows, into one file; a part that is done is not measured again."""
    known, origin = load(path), provenance(torch.device("cpu"))
    with Progress() as progress:
        bar = progress.add_task("measuring", total=len(parts))
        for name, part in parts.items():
            progress.update(bar, description=name)
            if not any(row["kind"] == name for row in known):
                append(path, [{**row, **origin} for row in part()])
            progress.advance(bar)


PARTS = {"accuracy": accuracy, "products": products, "lyapunov": lyapunov}


def command(
    doc: str, path: Path, parts: dict[str, Callable[[], Iterator[Row]]], write: Callable[[], None]
) -> None:
    """The command line of a page: ``measure`` records its rows, ``write`` makes it from them."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("what", choices=("measure", "write"))
    if parser.parse_args().what == "write":
        write()
    else:
        record(path, parts)


def load(path: Path) -> list[Row]:
    """The recorded rows."""
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []


def fill(page: str, name: str, text: str) -> str:
    """The page with the table between its markers."""
    start, end = f"<!-- table: {name} -->", f"<!-- end of {name} -->"
    before, rest = page.split(start)
    return f"{before}{start}\n\n{text}\n\n{end}{rest.split(end)[1]}"


def table(head: list[str], body: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(x: float | None) -> str:
    """Two digits; a dash where there is none."""
    return "–" if x is None or x != x else f"{x:.1e}"


def accuracy_table(rows: list[Row]) -> str:
    """float32: eigh, the default and minimax side by side."""
    body = []
    for spectrum, n, cond in itertools.product(
        ("log", "clustered", "outlier"), (16, 64, 256), (1e1, 1e2, 1e4, 1e6)
    ):
        cells = []
        for root, field in itertools.product(("sqrt", "inv_sqrt"), ("error", "gradient_error")):
            found = [
                pick(
                    rows,
                    kind="accuracy",
                    dtype="float32",
                    spectrum=spectrum,
                    n=n,
                    cond=cond,
                    root=root,
                    choice=choice,
                )[0][field]
                for choice in MAIN
            ]
            cells.append(" / ".join(map(number, found)))
        body.append([spectrum, str(n), f"{cond:.0e}", *cells])
    head = ["spectrum", "n", "κ", "root", "gradient", "inverse root", "gradient of the inverse"]
    return table(head, body)


def other_dtypes_table(rows: list[Row]) -> str:
    """float64, the half types and singular matrices."""
    body, fields = [], ("error", "gradient_error")
    for row in pick(rows, kind="accuracy", choice="default"):
        singular = row["spectrum"] == "half_zero" and row["cond"] == 1e2
        double = row["dtype"] == "float64" and row["cond"] in (1e2, 1e4, 1e6)
        half = row["dtype"] in ("float16", "bfloat16") and row["spectrum"] == "log"
        if not (singular or double or half):
            continue
        same = {k: row[k] for k in ("kind", "dtype", "spectrum", "n", "cond", "root")}
        shown = ("default",) if half else MAIN
        found = [pick(rows, **same, choice=choice)[0] for choice in shown]
        cells = [" / ".join(number(x[field]) for x in found) for field in fields]
        names = [row["dtype"], row["spectrum"], str(row["n"]), f"{row['cond']:.0e}", row["root"]]
        body.append([*names, *cells])
    return table(["dtype", "spectrum", "n", "κ", "root", "error", "of the gradient"], body)


def products_table(rows: list[Row]) -> str:
    """Products, forward + backward."""
    body = []
    for choice in CHOICES:
        cells = []
        for cond, root in itertools.product((1e2, 1e4), ("sqrt", "inv_sqrt")):
            found = pick(rows, kind="products", choice=choice, cond=cond, root=root)
            cells.append(f"{found[0]['forward']} + {found[0]['backward']}" if found else "–")
        body.append([choice, *cells])
    return table(
        ["", "root, κ = 1e2", "inverse, κ = 1e2", "root, κ = 1e4", "inverse, κ = 1e4"], body
    )


def lyapunov_table(rows: list[Row]) -> str:
    """Schemes at equal accuracy."""
    body = []
    for name in SCHEMES:
        cells = []
        for cond in (1e2, 1e4, 1e6):
            row = pick(rows, kind="lyapunov", scheme=name, cond=cond, spectrum="log")[0]
            extra = f" + {row['inverses']}" if row["inverses"] else ""
            cells.append(
                f"{row['products']}{extra}, {number(row['error'])}, {row['ms']:.0f} ms"
                if row["error"] < 0.1
                else "no convergence"
            )
        body.append([name, *cells])
    return table(["", "κ = 1e2", "κ = 1e4", "κ = 1e6"], body)


def figure(width: float, height: float) -> Figure:
    """A figure of its own, away from matplotlib's global state."""
    result = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(result)
    return result


# Colours dark enough for letters.
COLORS = ("#1f77b4", "#d95f02", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#c2459a", "#6b6b6b")


def accuracy_plot(rows: list[Row], along: str, path: Path) -> None:
    """Errors against the condition number (all methods), or against n (the main ones)."""
    plot = figure(10, 7)
    fixed: Row = {"n": 64} if along == "cond" else {"cond": 1e4}
    titles = ("root", "gradient of the root", "inverse root", "gradient of the inverse root")
    for axes, title, (root, field) in zip(
        plot.subplots(2, 2, sharex=True, sharey=True).flat,
        titles,
        itertools.product(("sqrt", "inv_sqrt"), ("error", "gradient_error")),
        strict=True,
    ):
        ends = []
        for color, choice in zip(COLORS, CHOICES, strict=False):
            for spectrum, style in (("log", "-"), ("clustered", "--"), ("outlier", ":")):
                found = pick(
                    rows,
                    kind="accuracy",
                    dtype="float32",
                    spectrum=spectrum,
                    root=root,
                    choice=choice,
                    **fixed,
                )
                if (along == "n" and choice not in MAIN) or not found:
                    continue
                x, y = [row[along] for row in found], [row[field] for row in found]
                axes.plot(x, y, style, marker="o", ms=3, color=color)
                if spectrum == "log":
                    name = choice.removesuffix(" (as published)").replace("told ", "")
                    ends.append((name, color, x[-1], y[-1]))
        axes.set_title(title, size=11)
        axes.set(xscale="log", yscale="log", ylim=(1e-8, 30 if along == "cond" else 1e-2))
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        if along == "n":
            axes.set_xticks([16, 64, 256], ["16", "64", "256"])
        axes.set_xlabel("condition number κ" if along == "cond" else "n")
        axes.grid(alpha=0.3)
        label_ends(axes, ends, size=8.5)
    ours = pick(rows, kind="accuracy", dtype="float32", choice="default", **fixed)
    found = [row[key] for row in ours for key in ("error", "gradient_error")]
    most = number(max(error for error in found if error is not None))
    every, what = (
        ("condition number", "n = 64, Taylor, Padé and Newton–Schulz as published")
        if along == "cond"
        else ("size", "κ = 10⁴")
    )
    plot.suptitle(
        f"The default's relative errors are at most {most} at every {every}\n"
        f"float32, {what}\n"
        "eigenvalues log-spaced (solid), two clusters (dashed), one outlier (dotted)",
        size=11,
    )
    plot.savefig(path, metadata={"Date": None})


def lyapunov_plot(rows: list[Row], path: Path) -> None:
    """Error and cost in products of each scheme, inverses counting half a product."""
    plot = figure(10, 4.5)
    names = list(SCHEMES)[::-1]
    panels = plot.subplots(1, 3, sharey=True)
    for axes, cond in zip(panels, (1e2, 1e4, 1e6), strict=True):
        for place, name in enumerate(names):
            color = "#1b7f5c" if "library" in name else "0.35"
            for spectrum, marker, shift in (("log", "o", 0.15), ("clustered", "s", -0.15)):
                row = pick(rows, kind="lyapunov", scheme=name, cond=cond, spectrum=spectrum)[0]
                cost = row["products"] + row["inverses"] / 2
                if row["error"] > 0.1:
                    axes.text(1.2e-7, place + shift, "no convergence", size=7, va="center")
                    continue
                axes.plot([row["error"]], [place + shift], marker, color=color, ms=5)
                axes.annotate(
                    f"{cost:g}",
                    (row["error"], place + shift),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    size=8,
                    color=color,
                )
        axes.set(xscale="log", xlim=(1e-7, 5), xlabel="relative error of X")
        axes.set_title(f"κ = {cond:,.0f}", size=11)
        plain_ticks(axes.xaxis)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(names)), names, size=9)
    for label in panels[0].get_yticklabels():
        label.set_weight("bold" if "library" in label.get_text() else "normal")
    costs = {
        kind: [
            row["products"] + row["inverses"] / 2
            for row in pick(rows, kind="lyapunov")
            if row["scheme"].startswith(kind)
        ]
        for kind in ("squared Smith", "sign")
    }
    plot.suptitle(
        f"Squared Smith iterations take at most {max(costs['squared Smith']):g} products, "
        f"sign iterations at least {min(costs['sign']):g}\n"
        "S X + X S = R, float32, n = 64; the number beside a point is its cost in products; "
        "log-spaced (round), two clusters (square)",
        size=11,
    )
    plot.savefig(path, metadata={"Date": None})


def write() -> None:
    """The tables between their markers in docs/numerics.md, and the plots."""
    rows = load(ROWS)
    page = PAGE.read_text(encoding="utf-8")
    tables = {
        "accuracy": accuracy_table,
        "dtypes": other_dtypes_table,
        "products": products_table,
        "lyapunov": lyapunov_table,
    }
    for name, make in tables.items():
        page = fill(page, name, make(rows))
    PAGE.write_text(page, encoding="utf-8")
    accuracy_plot(rows, "cond", IMAGES / "accuracy_condition.svg")
    accuracy_plot(rows, "n", IMAGES / "accuracy_size.svg")
    lyapunov_plot(rows, IMAGES / "lyapunov_schemes.svg")


if __name__ == "__main__":
    command(__doc__, ROWS, PARTS, write)
