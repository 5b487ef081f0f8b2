"""``matroot train`` and ``matroot compare``: the applications on the command line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

# What both commands take.
_Application = Annotated[str, typer.Argument(help="dbn, sovit, gcp, video or style.")]
_Config = Annotated[str, typer.Option(help="A named configuration, or a YAML file of your own.")]
_Eps = Annotated[float | None, typer.Option(help="Ridge, if not that of the configuration.")]
_DataRoot = Annotated[Path | None, typer.Option(help="Folder of data that are not embedded.")]
_Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Another value for a field of the configuration: epochs=3."),
]
_Accelerator = Annotated[str, typer.Option(help="cpu, gpu … as Lightning knows them.")]
_Devices = Annotated[str, typer.Option(help="How many, or which.")]
_Precision = Annotated[str, typer.Option(help="32-true, bf16-mixed, 16-mixed …")]


def train(
    application: _Application,
    config: _Config = "small",
    method: Annotated[
        str, typer.Option(help="How the roots are found: auto, mpa, mtp, ns, pi, svd, svd-pade …")
    ] = "auto",
    gradient: Annotated[
        str | None, typer.Option(help="Gradient rule, if not the method's own.")
    ] = None,
    eps: _Eps = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    data_root: _DataRoot = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; resumed if it holds one."),
    ] = None,
    change: _Changes = None,
    accelerator: _Accelerator = "auto",
    devices: _Devices = "auto",
    precision: _Precision = "32-true",
    progress: Annotated[bool, typer.Option(help="Show a bar.")] = True,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's logs, too.")
    ] = False,
) -> None:
    """Train an application of the paper; ends with one line: result {json}.

    Without further words it trains a small configuration on embedded data. The same command again
    goes on where an interrupted run has stopped.
    """
    need_recipes()
    _no_small_talk()
    from matroot.recipes.training import load_config, say
    from matroot.recipes.training import train as run

    settings = load_config(application, config, _changes(change, eps))
    if output is None:
        output = Path("runs") / application / f"{Path(config).stem}-{method}-{seed}"
    with _interruptible():
        result = run(
            application,
            settings,
            output,
            method=method,
            gradient=gradient,
            seed=seed,
            root=data_root,
            progress=progress,
            tensorboard=tensorboard,
            accelerator=accelerator,
            devices=devices,
            precision=precision,
        )
    say("result " + json.dumps(result))


def compare(
    application: _Application,
    methods: Annotated[
        str, typer.Option(help="Names with commas between them.")
    ] = "svd,svd-clip,svd-taylor,svd-pade,svd-pi,pi,ns,mtp,mpa,auto",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method: seeds 0, 1 …")] = 3,
    config: _Config = "small",
    gradient: Annotated[
        str | None, typer.Option(help="One gradient rule for all, if not to each its own.")
    ] = None,
    eps: _Eps = None,
    data_root: _DataRoot = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of all runs; resumed if it holds some."),
    ] = None,
    change: _Changes = None,
    accelerator: _Accelerator = "auto",
    devices: _Devices = "auto",
    precision: _Precision = "32-true",
    progress: Annotated[bool, typer.Option(help="Show which run is under way, and a bar.")] = True,
) -> None:
    """Train an application by several methods and print the paper's table for it.

    Time of the roots in a step, forward and backward, methods in turns; time of a whole step; error
    on the test set, mean and standard deviation over the seeds. Writes compare.md, compare.json and
    compare.png. The same command again goes on where an interrupted one has stopped.
    """
    need_recipes()
    _no_small_talk()
    from matroot.recipes.compare import compare as run
    from matroot.recipes.compare import table
    from matroot.recipes.training import load_config, say

    settings = load_config(application, config, _changes(change, eps))
    if output is None:
        output = Path("runs") / "compare" / f"{application}-{Path(config).stem}"
    names = [name.strip() for name in methods.split(",") if name.strip()]
    count = len(names) * seeds
    started = 0

    def tell(method: str, seed: int) -> None:
        nonlocal started
        started += 1
        if progress:
            say(f"run {started} of {count}: {method}, seed {seed}")

    with _interruptible():
        rows = run(
            application,
            settings,
            names,
            seeds,
            output,
            gradient=gradient,
            root=data_root,
            on_run=tell,
            progress=progress,
            accelerator=accelerator,
            devices=devices,
            precision=precision,
        )
    if rows:
        print(table(rows))
        print(f"written to {output}: compare.md, compare.json, compare.png")
        if not any(row["runs"] for row in rows):
            raise typer.Exit(1)


@contextmanager
def _interruptible() -> Iterator[None]:
    """One line after Ctrl-C or SIGTERM, which Lightning makes an exit without a word."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise SystemExit(
            "matroot: interrupted; the same command goes on after the last whole epoch"
        ) from None


def _no_small_talk() -> None:
    """Of Lightning only warnings: it tells of accelerators and other products at every fit."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


def need_recipes() -> None:
    """One line where what trains is not installed."""
    try:
        import matroot.recipes.training  # noqa: F401  (asked for here to name what is missing)
    except ModuleNotFoundError as missing:
        raise SystemExit(
            f"matroot: training needs {missing.name}; run: pip install 'matroot[cli,recipes]'"
        ) from None


def _changes(pairs: list[str] | None, eps: float | None) -> dict[str, Any]:
    """``["epochs=3"]`` as values, and the ridge."""
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set: expected FIELD=VALUE, got {pair!r}")
        try:
            found[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ValueError(f"--set {name}: {value!r} is no YAML value") from None
    return found if eps is None else found | {"eps": eps}
