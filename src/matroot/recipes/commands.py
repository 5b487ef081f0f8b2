"""``matroot train`` and ``matroot compare``: the applications on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    application: Annotated[str, typer.Argument(help="dbn, sovit, gcp, video or style.")],
    config: Annotated[
        str, typer.Option(help="A named configuration, or a YAML file of your own.")
    ] = "small",
    method: Annotated[
        str, typer.Option(help="How the roots are found: auto, mpa, mtp, ns, pi, svd, svd-pade …")
    ] = "auto",
    gradient: Annotated[
        str | None, typer.Option(help="Gradient rule, if not the method's own.")
    ] = None,
    eps: Annotated[
        float | None, typer.Option(help="Ridge, if not that of the configuration.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of data that are not embedded.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; resumed if it holds one."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value for a field of the configuration: epochs=3."),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="cpu, gpu … as Lightning knows them.")] = "auto",
    devices: Annotated[str, typer.Option(help="How many, or which.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed, 16-mixed …")] = "32-true",
    progress: Annotated[bool, typer.Option(help="Show a bar.")] = True,
) -> None:
    """Train an application of the paper; ends with one line: result {json}.

    Without further words it trains a small configuration on embedded data. The same command again
    goes on where an interrupted run has stopped.
    """
    need_recipes()
    from matroot.recipes.training import load_config
    from matroot.recipes.training import train as run

    changes = _changes(change or [])
    if eps is not None:
        changes["eps"] = eps
    settings = load_config(application, config, changes)
    if output is None:
        output = Path("runs") / application / f"{Path(config).stem}-{method}-{seed}"
    result = run(
        application,
        settings,
        output,
        method=method,
        gradient=gradient,
        seed=seed,
        root=data_root,
        progress=progress,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
    )
    print("result", json.dumps(result))


def compare(
    application: Annotated[str, typer.Argument(help="dbn, sovit, gcp, video or style.")],
    methods: Annotated[
        str, typer.Option(help="Names with commas between them.")
    ] = "svd,svd-clip,svd-taylor,svd-pade,svd-pi,pi,ns,mtp,mpa,auto",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method: seeds 0, 1 …")] = 3,
    config: Annotated[
        str, typer.Option(help="A named configuration, or a YAML file of your own.")
    ] = "small",
    gradient: Annotated[
        str | None, typer.Option(help="One gradient rule for all, if not to each its own.")
    ] = None,
    eps: Annotated[
        float | None, typer.Option(help="Ridge, if not that of the configuration.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of data that are not embedded.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of all runs; resumed if it holds some."),
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value for a field of the configuration: epochs=3."),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="cpu, gpu … as Lightning knows them.")] = "auto",
    devices: Annotated[str, typer.Option(help="How many, or which.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, bf16-mixed, 16-mixed …")] = "32-true",
    progress: Annotated[bool, typer.Option(help="Show which run is under way, and a bar.")] = True,
) -> None:
    """Train an application by several methods and print the paper's table for it.

    Time of the roots in a step, forward and backward, methods in turns; time of a whole step; error
    on the test set, mean and standard deviation over the seeds. Writes compare.md, compare.json and
    compare.png. The same command again goes on where an interrupted one has stopped.
    """
    need_recipes()
    from matroot.recipes.compare import compare as run
    from matroot.recipes.compare import table
    from matroot.recipes.training import load_config

    changes = _changes(change or [])
    if eps is not None:
        changes["eps"] = eps
    settings = load_config(application, config, changes)
    if output is None:
        output = Path("runs") / "compare" / f"{application}-{Path(config).stem}"
    names = [name.strip() for name in methods.split(",") if name.strip()]
    count = len(names) * seeds
    started = 0

    def tell(method: str, seed: int) -> None:
        nonlocal started
        started += 1
        if progress:
            print(f"run {started} of {count}: {method}, seed {seed}", flush=True)

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
    print(table(rows))
    print(f"written to {output}: compare.md, compare.json, compare.png")


def need_recipes() -> None:
    """One line where what trains is not installed."""
    try:
        import matroot.recipes.training  # noqa: F401  (asked for here to name what is missing)
    except ModuleNotFoundError as missing:
        raise SystemExit(
            f"matroot: training needs {missing.name}; run: pip install 'matroot[cli,recipes]'"
        ) from None


def _changes(pairs: list[str]) -> dict[str, Any]:
    """``["epochs=3"]`` as values."""
    import yaml

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set: expected FIELD=VALUE, got {pair!r}")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--set {name}: {value!r} is no YAML value") from None
    return found
