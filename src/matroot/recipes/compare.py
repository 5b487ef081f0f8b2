"""The paper's table for an application: every method trained, its roots timed, in one folder."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from matroot import sqrtm
from matroot.files import replace, replacing
from matroot.nn import (
    CovariancePooling1d,
    CovariancePooling2d,
    CovariancePooling3d,
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    WhiteningColoring2d,
)
from matroot.nn.functional import inverse_root, power_normalization
from matroot.recipes.catalogue import application
from matroot.recipes.methods import layer_options
from matroot.recipes.training.configuration import Common
from matroot.recipes.training.folder import RunFolder, read_checkpoint
from matroot.recipes.training.loaders import Data
from matroot.recipes.training.loop import learner, one_run, train
from matroot.statistics import moments
from matroot.terminal import check_folder, working

Row = dict[str, Any]
_POOLING = (CovariancePooling1d, CovariancePooling2d, CovariancePooling3d)
_WHITENING = (DecorrelatedBatchNorm1d, DecorrelatedBatchNorm2d, DecorrelatedBatchNorm3d)
_TURNS = 7
# The options of ``train`` that are Lightning's and say which processes there are.
_LAUNCHING = ("accelerator", "devices", "num_nodes", "strategy")


@dataclass(frozen=True)
class Root:
    """A root that a layer takes in a step, of covariances of shape (..., n, n)."""

    kind: Literal["sqrt", "inv_sqrt"]
    covariance: Tensor
    eps: float

    def run(self, options: dict[str, Any]) -> None:
        """Forward and backward."""
        a = self.covariance.clone().requires_grad_()
        if "normalization" in options:
            y = power_normalization(a, root=self.kind)
        elif self.kind == "sqrt":
            y = sqrtm(a, eps=self.eps, **options)
        else:
            y = inverse_root(a, self.eps, **options)
        torch.autograd.grad(y, a, y.detach())


def roots(network: nn.Module, step: Callable[[], object]) -> list[Root]:
    """The roots that the layers of ``network`` take while ``step`` runs."""
    found: list[Root] = []

    def record(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        inputs = tuple(x.float() for x in inputs)
        if isinstance(layer, _WHITENING):
            samples = inputs[0].transpose(0, 1).reshape(layer.groups, layer.group_size, -1)
            found.append(Root("inv_sqrt", moments(samples).covariance, layer.eps))
        elif isinstance(layer, _POOLING):
            features = layer.features(inputs[0]).flatten(2)
            found.append(Root("sqrt", moments(features).covariance, layer.eps))
        elif isinstance(layer, WhiteningColoring2d):
            content, style = (
                moments(x.reshape(len(x), layer.groups, -1, x[0, 0].numel())).covariance
                for x in inputs
            )
            found.append(Root("inv_sqrt", content, layer.eps))
            found.append(Root("sqrt", style, layer.eps))

    handles = [layer.register_forward_pre_hook(record) for layer in network.modules()]
    try:
        with torch.no_grad():
            step()
    finally:
        for handle in handles:
            handle.remove()
    return found


def root_times(taken: Sequence[Root], methods: Sequence[str], gradient: str | None) -> list[float]:
    """Milliseconds of all these roots, forward and backward: medians, methods in turns.

    Returns:
        One number a method, NaN where it raises an error.
    """
    timers: list[Timer | None] = []
    for method in methods:
        options = layer_options(method, gradient)

        def run(options: dict[str, Any] = options) -> None:
            for root in taken:
                root.run(options)

        try:
            run()
        except torch.linalg.LinAlgError:
            timers.append(None)
            continue
        timers.append(Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads()))
    samples: list[list[float]] = [[] for _ in timers]
    for _ in range(_TURNS):
        for timer, times in zip(timers, samples, strict=True):
            if timer is not None:
                times.append(1e3 * timer.timeit(1).median)
    return [statistics.median(times) if times else math.nan for times in samples]


def compare(
    name: str,
    config: Common,
    methods: Sequence[str],
    seeds: int,
    output: Path,
    *,
    gradient: str | None = None,
    root: Path | None = None,
    on_run: Callable[[str, int], None] = lambda method, seed: None,
    **options: Any,
) -> list[Row]:
    """Train an application with each method and seed, and time its roots.

    Finished runs are not trained again, an interrupted one is continued.

    Args:
        name: one of ``catalogue.APPLICATIONS``.
        config: see ``training.configuration.load_config``.
        methods: names, see ``layer_options``.
        seeds: how many: 0, 1 …
        output: folder; a run is a folder in it.
        gradient: one rule for all methods; None: each method's own.
        root: folder of data that are not embedded.
        on_run: called with method and seed before each run.
        options: others of ``training.loop.train``.

    Returns:
        A row a method: ``root_ms`` and ``step_ms``, the latter the median over its runs; mean and
        standard deviation over the seeds of ``error`` (%), ``test_loss`` or ``improvement``; and
        ``failed``, the error of a run that did not reach the end. Written to ``compare.json``,
        ``compare.md`` and ``compare.png``. Of several processes only the first returns rows.

    Raises:
        ValueError: an unknown method, or what ``training.loop.train`` raises.
    """
    if not methods:
        raise ValueError("no methods to compare; give names as in 'auto,mpa,ns'")
    if len(set(methods)) < len(methods):
        raise ValueError(f"a method is named twice: {', '.join(methods)}")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    for method in methods:
        layer_options(method, gradient)
    check_folder(output)
    results: dict[str, list[Row]] = {method: [] for method in methods}
    failed: dict[str, str] = {}
    launching = {k: options[k] for k in _LAUNCHING if k in options}
    with one_run(output, launching):
        for seed in range(seeds):
            for method in methods:
                on_run(method, seed)
                asked: Row = {"method": method, "gradient": gradient, "seed": seed, "root": root}
                folder = _folder(output, method, seed)
                try:
                    results[method].append(train(name, config, folder, **asked, **options))
                except (torch.linalg.LinAlgError, FloatingPointError) as error:
                    failed[method] = str(error).splitlines()[0]
        return _rows(name, config, results, failed, output, gradient, root) or []


def _folder(output: Path, method: str, seed: int) -> Path:
    """The folder of one run."""
    return output / f"{method}-{seed}"


@rank_zero_only
def _rows(
    name: str,
    config: Common,
    results: dict[str, list[Row]],
    failed: dict[str, str],
    output: Path,
    gradient: str | None,
    root: Path | None,
) -> list[Row]:
    """The rows of ``compare``, also written to files. Timed and written by one process."""
    methods = list(results)
    with working("timing the roots"):
        times = _times(name, config, methods, results, output, gradient, root)
    rows = []
    for method, ms in zip(methods, times, strict=True):
        row: Row = {"application": name, "method": method, "runs": len(results[method])}
        row |= {"root_ms": ms, "failed": failed.get(method)}
        for key, values in _measures(results[method]).items():
            row[key] = statistics.fmean(values)
            row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else math.nan
        rows.append(row)
    text = json.dumps([{k: _json(v) for k, v in row.items()} for row in rows], indent=1)
    replace(output / "compare.json", text)
    replace(output / "compare.md", table(rows) + "\n")
    _plot(rows, output / "compare.png")
    return rows


def _json(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _times(
    name: str,
    config: Common,
    methods: Sequence[str],
    results: dict[str, list[Row]],
    output: Path,
    gradient: str | None,
    root: Path | None,
) -> list[float]:
    """Milliseconds of the roots in one step of the first network that was trained."""
    trained = next((method for method in methods if results[method]), None)
    if trained is None:
        return [math.nan] * len(methods)
    module = application(name)
    training, test, classes, _ = module.datasets(config, root)
    options = layer_options(trained, gradient, config.eps)
    network = learner(module, config, len(classes), options, 0)
    folder = RunFolder(_folder(output, trained, results[trained][0]["seed"]))
    network.load_state_dict(read_checkpoint(folder.checkpoint)["state_dict"])
    batch = next(iter(Data(training, test, config, 0).train_dataloader()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = [x.to(device) for x in batch]
    network.to(device)
    inputs = batch if isinstance(batch[1], Tensor) and batch[1].is_floating_point() else batch[:1]
    # A network whose step is more than one forward pass has a method for it.
    step = getattr(network, "whole_step", network)
    return root_times(roots(network, lambda: step(*inputs)), methods, gradient)


def _measures(results: list[Row]) -> dict[str, list[float]]:
    """The values to compare, of every run."""
    found: dict[str, list[float]] = {}
    for result in results:
        measures: Row = {
            k: result[k] for k in ("step_ms", "test_loss", "improvement") if k in result
        }
        if "accuracy" in result:
            measures["error"] = 100 * (1 - result["accuracy"])
        for key, value in measures.items():
            found.setdefault(key, []).append(value)
    return found


COLUMNS = (
    ("error", "error, %", 2),
    ("test_loss", "loss", 3),
    ("improvement", "squared distance to the style, falls by", 1),
)


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    shown = [column for column in COLUMNS if any(column[0] in row for row in rows)]
    heads = ["method", "roots, ms a step", "step, ms", *(title for _, title, _ in shown)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["method"], _number(row["root_ms"], 2), _number(row.get("step_ms"), 0)]
        for key, _, digits in shown:
            cell = _number(row.get(key), digits)
            spread = row.get(f"{key}_std", math.nan)
            cells.append(cell if math.isnan(spread) else f"{cell} ± {spread:.{digits}f}")
        if row["failed"]:
            cells[-1] += f" (failed: {row['failed']})"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _plot(rows: list[Row], file: Path) -> None:
    """The first measure against the time of the roots."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    key, title, _ = next((c for c in COLUMNS if any(c[0] in row for row in rows)), COLUMNS[0])
    for row in rows:
        if key not in row or math.isnan(row["root_ms"]):
            continue
        spread = row[f"{key}_std"]
        axes.errorbar(
            row["root_ms"], row[key], None if math.isnan(spread) else spread, fmt="o", capsize=3
        )
        axes.annotate(row["method"], (row["root_ms"], row[key]), (5, 5), textcoords="offset points")
    axes.set(xscale="log", xlabel="roots, forward and backward, ms a step", ylabel=title)
    axes.set_title(rows[0]["application"])
    # Plain numbers, and room for the last name.
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter())
    axes.margins(x=0.18)
    axes.grid(alpha=0.3)
    with replacing(file) as fresh:
        figure.savefig(fresh, dpi=150)
