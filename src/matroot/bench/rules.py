"""Every method × gradient rule on given matrices: error, gradient error and time side by side."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

import matroot
from matroot.gradients import GRADIENTS, GradientRule, Lyapunov
from matroot.methods import METHODS, Method
from matroot.registry import name_of
from matroot.testing import exact, exact_gradient, relative_error

ROOTS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}


@dataclass(frozen=True)
class Row:
    """One method × rule × root on one batch of matrices.

    Attributes:
        root: ``"sqrt"`` or ``"inv_sqrt"``.
        method: the name of the method, with the options that are not its defaults.
        gradient: the same of the gradient rule.
        error: largest relative error ‖X − X₀‖_F/‖X₀‖_F over the batch, X₀ by eigh in float64.
        gradient_error: the same of the gradient for one random cotangent.
        milliseconds: median time of forward and backward for the batch.
        p20: 20th percentile of that time.
        p80: 80th percentile.
    """

    root: Literal["sqrt", "inv_sqrt"]
    method: str
    gradient: str
    error: float
    gradient_error: float
    milliseconds: float
    p20: float
    p80: float


# Beside each registered default, the paper's own gradient.
RULES: tuple[GradientRule, ...] = (*(cls() for cls in GRADIENTS.values()), Lyapunov(steps=8))


def combinations() -> list[tuple[Method, GradientRule]]:
    """All method × rule that work together, with default options, and the paper's gradient."""
    methods = [cls() for cls in METHODS.values()]
    return [(m, r) for m in methods for r in RULES if m.spectral or not r.needs_eigenpairs]


def label(choice: Method | GradientRule) -> str:
    """``pade`` for ``Pade()``, ``lyapunov(steps=8)`` for ``Lyapunov(steps=8)``."""
    default = type(choice)()
    changed = [
        f"{f.name}={getattr(choice, f.name)!r}"
        for f in fields(choice)  # type: ignore[arg-type]  # every choice is a dataclass
        if getattr(choice, f.name) != getattr(default, f.name)
    ]
    return name_of(choice) + (f"({', '.join(changed)})" if changed else "")


def measure(
    a: Tensor, *, repeats: int = 7, progress: Callable[[int, int], None] | None = None
) -> list[Row]:
    """Rows for all combinations and both roots, timed in turns within one process.

    Args:
        a: symmetric positive definite matrices, shape (b, n, n).
        repeats: how often each candidate is timed.
        progress: called with (steps done, steps in all).
    """
    g = torch.randn(a.shape, dtype=a.dtype, generator=torch.Generator().manual_seed(0))
    candidates = combinations()
    rows: list[Row] = []
    for done, root in enumerate(ROOTS):
        timers, errors = [], []
        for method, rule in candidates:
            forward_backward = _forward_backward(a, g, root, method, rule)
            x, gradient = forward_backward()
            kind: Literal["sqrt", "inv_sqrt"] = "sqrt" if root == "sqrt" else "inv_sqrt"
            error = relative_error(x, exact(a, kind)).max()
            gradient_error = relative_error(gradient, exact_gradient(a, g, kind)).max()
            errors.append((float(error), float(gradient_error)))
            timers.append(
                Timer("f()", globals={"f": forward_backward}, num_threads=torch.get_num_threads())
            )
        times = torch.zeros(repeats, len(candidates), dtype=torch.float64)
        for i in range(repeats):
            for j, timer in enumerate(timers):
                times[i, j] = timer.timeit(1).median * 1e3
            if progress is not None:
                progress(done * repeats + i + 1, len(ROOTS) * repeats)
        levels = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
        for (method, rule), (wrong, gradient_wrong), column in zip(
            candidates, errors, times.quantile(levels, dim=0).T.tolist(), strict=True
        ):
            rows.append(Row(kind, label(method), label(rule), wrong, gradient_wrong, *column))
    return rows


def _forward_backward(
    a: Tensor, g: Tensor, root: str, method: Method, rule: GradientRule
) -> Callable[[], tuple[Tensor, Tensor]]:
    def run() -> tuple[Tensor, Tensor]:
        x = a.clone().requires_grad_()
        y = ROOTS[root](x, method=method, gradient=rule)
        return y.detach(), torch.autograd.grad(y, x, g)[0]

    return run


def save_rows(rows: Sequence[Row], path: Path, **where: object) -> None:
    """JSON lines, each row with the versions and the machine's thread count."""
    provenance = {
        "matroot": matroot.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": "cpu",
        **where,
    }
    path.write_text("".join(json.dumps({**asdict(row), **provenance}) + "\n" for row in rows))


def save_markdown(rows: Sequence[Row], path: Path, caption: str) -> None:
    """A table a person reads, most accurate first within each root."""
    lines = [
        caption,
        "",
        "| root | method | gradient | error | gradient error | ms | 20–80 % |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.root} | {r.method} | {r.gradient} | {r.error:.1e} | {r.gradient_error:.1e} "
        f"| {r.milliseconds:.1f} | {r.p20:.1f}–{r.p80:.1f} |"
        for r in in_order(rows)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The root before the inverse, then by gradient error, what is not finite last."""

    def key(row: Row) -> tuple[bool, bool, float]:
        finite = math.isfinite(row.gradient_error)
        return row.root == "inv_sqrt", not finite, row.gradient_error if finite else 0.0

    return sorted(rows, key=key)


def save_plot(rows: Sequence[Row], path: Path, caption: str) -> None:
    """Error and gradient error against time, one panel a root; colour a method, marker a rule."""
    # The object interface keeps matplotlib's global state (and any display) out of it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    lost = {f"{r.method} × {r.gradient}" for r in rows if not math.isfinite(r.gradient_error)}
    if lost:
        caption += f"\ngradient not finite, not shown: {', '.join(sorted(lost))}"
    figure.suptitle(caption, fontsize="medium")
    axes = figure.subplots(2, 2, sharex=True, sharey="row")
    colours = {name: f"C{i}" for i, name in enumerate(METHODS)}
    markers = dict(zip(map(label, RULES), "osDv<>^P*", strict=True))
    for row in rows:
        column = list(ROOTS).index(row.root)
        style = {"color": colours[row.method], "alpha": 0.8, "linestyle": "none"}
        time = [row.milliseconds]
        axes[0, column].plot(time, [row.error], marker="o", **style)
        marker = markers[row.gradient]
        axes[1, column].plot(time, [row.gradient_error], marker=marker, **style)
    for i, what in enumerate(("error of the root", "error of the gradient")):
        for j, root in enumerate(ROOTS):
            axes[i, j].set(xscale="log", yscale="log", title=f"{root}: {what}")
            axes[i, j].grid(alpha=0.3)
        axes[i, 0].set_ylabel("relative error")
        axes[1, i].set_xlabel("forward + backward, ms")
    handles = [Line2D([], [], color=c, marker="o", ls="", label=m) for m, c in colours.items()]
    handles += [Line2D([], [], color="k", marker=m, ls="", label=r) for r, m in markers.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(path, dpi=130)
