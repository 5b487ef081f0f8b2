"""Every method × gradient rule on given matrices: error, gradient error and time side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import matroot
from matroot import files
from matroot.bench.candidates import PHASES, forward_backward, once
from matroot.bench.measure import Problem, RootName, in_turns, milliseconds
from matroot.bench.rows import append, provenance
from matroot.gradients import GRADIENTS, GradientRule, Lyapunov
from matroot.methods import METHODS, Method
from matroot.registry import name_of
from matroot.testing import relative_error

ROOTS: dict[RootName, Callable[..., Tensor]] = {
    "sqrt": matroot.sqrtm,
    "inv_sqrt": matroot.inv_sqrtm,
}


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

    root: RootName
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
    labels = {(label(m), label(r)): (m, r) for m, r in combinations()}
    rows: list[Row] = []
    for done, root in enumerate(ROOTS):
        problem = Problem(a, g, root)
        functions = {
            names: partial(ROOTS[root], method=method, gradient=rule)
            for names, (method, rule) in labels.items()
        }
        errors = {}
        for names, function in functions.items():
            x, gradient = once(function, a, g)
            wrong = (relative_error(x, problem.value), relative_error(gradient, problem.gradient))
            errors[names] = tuple(float(error.max()) for error in wrong)
        samples = in_turns(
            {" ".join(names): forward_backward(f, a, g) for names, f in functions.items()},
            a.device,
            seconds=math.inf,
            most=repeats,
            on_turn=partial(_report_turn, progress, done * repeats, len(ROOTS) * repeats),
        )
        for names in functions:
            times = milliseconds(samples[" ".join(names)], PHASES)["total"]
            rows.append(Row(root, *names, *errors[names], *times))
    return rows


def _report_turn(
    progress: Callable[[int, int], None] | None, before: int, total: int, turn: int
) -> None:
    if progress is not None:
        progress(before + turn, total)


def save_rows(rows: Sequence[Row], path: Path, **where: object) -> None:
    """JSON lines, each row with its provenance; an existing file is replaced."""
    origin = {**provenance(torch.device("cpu")), **where}
    with files.replacing(path) as fresh:
        append(fresh, [{**asdict(row), **origin} for row in rows])


def save_markdown(rows: Sequence[Row], path: Path, caption: str) -> None:
    """A Markdown table, the most accurate first within each root."""
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
    files.replace(path, "\n".join(lines) + "\n")


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The root before the inverse, then by gradient error, infinity and NaN last."""

    def key(row: Row) -> tuple[bool, bool, float]:
        finite = math.isfinite(row.gradient_error)
        return row.root == "inv_sqrt", not finite, row.gradient_error if finite else 0.0

    return sorted(rows, key=key)


def save_plot(rows: Sequence[Row], path: Path, caption: str) -> None:
    """Error and gradient error against time, a panel for each root.

    The colour shows the method, the marker the rule.
    """
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
    # A legend, since a point has two names, its colour and its marker.
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize="small")
    with files.replacing(path) as fresh:
        figure.savefig(fresh, dpi=130)
