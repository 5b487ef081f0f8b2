"""``matroot train`` and ``matroot compare``: the applications on the command line."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

from matroot.recipes.catalogue import (
    APPLICATIONS,
    BY_CLASS,
    EMBEDDED,
    OWN_DATA,
    application,
    configurations,
)
from matroot.terminal import INTERRUPTED, TERMINATED, interrupted, missing, working

# What both commands take.
_Application = Annotated[str, typer.Argument(help=", ".join(APPLICATIONS))]
_Config = Annotated[str, typer.Option(help="A named configuration, or a YAML file of your own.")]
_Eps = Annotated[float | None, typer.Option(help="Ridge, if not that of the configuration.")]
_DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder of data of your own (see below), or of a known data set."),
]
_Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Another value for a field of the configuration: epochs=3."),
]
_Accelerator = Annotated[str, typer.Option(help="cpu, gpu … as Lightning knows them.")]
_Devices = Annotated[str, typer.Option(help="How many on each machine, or which.")]
_Nodes = Annotated[int, typer.Option(min=1, help="How many machines.")]
_SyncWhitening = Annotated[
    bool | None,
    typer.Option(
        "--sync-whitening/--no-sync-whitening",
        help="Whitening statistics of all devices together or of each; together by default.",
    ),
]
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
    num_nodes: _Nodes = 1,
    sync_whitening: _SyncWhitening = None,
    precision: _Precision = "32-true",
    progress: Annotated[bool, typer.Option(help="Show a bar.")] = True,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's logs, too.")
    ] = False,
) -> None:
    """Train an application of the paper; ends with one line: result {json}.

    Without options it trains a small configuration on embedded data. With --data-root DIR it says
    what it has found there, and trains on that. The same command again continues where an
    interrupted run has stopped. "matroot evaluate" and "matroot predict" use the run.
    """
    need_recipes()
    _only_warnings()
    from matroot.recipes.layouts import listing
    from matroot.recipes.training.configuration import load_config
    from matroot.recipes.training.loop import say
    from matroot.recipes.training.loop import train as run

    changes = _changes(change, eps)
    changes = _with_data(application, config, changes, data_root)
    settings: Any = load_config(application, config, changes)
    _refuse_without_effect(settings.without_effect(), changes)
    if method == "pi" and eps is not None:
        raise ValueError("--eps does nothing with --method pi, which is not a root; leave it out")
    if output is None:
        output = Path("runs") / application / f"{Path(config).stem}-{method}-{seed}"

    def announce(data: Any) -> None:
        if data_root is not None:
            say("\n".join(listing(data, data_root)))
            if changes.get("data") == "folder":
                say(f"  read as {settings.size}×{settings.size} pixels (--set size=)")

    with _interruptible():
        result = run(
            application,
            settings,
            output,
            method=method,
            gradient=gradient,
            seed=seed,
            root=data_root,
            on_data=announce,
            progress=progress,
            tensorboard=tensorboard,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            sync_whitening=sync_whitening,
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
        str | None, typer.Option(help="One gradient rule for all, if not each method's own.")
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
    num_nodes: _Nodes = 1,
    sync_whitening: _SyncWhitening = None,
    precision: _Precision = "32-true",
    progress: Annotated[bool, typer.Option(help="Show which run is under way, and a bar.")] = True,
) -> None:
    """Train an application by several methods and print the paper's table for it.

    Time of the roots in a step, forward and backward, the methods in turns; time of a whole step;
    error on the test set, mean and standard deviation over the seeds. Writes compare.md,
    compare.json and compare.png. The same command again continues where an interrupted one has
    stopped.
    """
    need_recipes()
    _only_warnings()
    from matroot.recipes.compare import compare as run
    from matroot.recipes.compare import table
    from matroot.recipes.training.configuration import load_config
    from matroot.recipes.training.loop import say

    changes = _changes(change, eps)
    changes = _with_data(application, config, changes, data_root)
    settings = load_config(application, config, changes)
    _refuse_without_effect(settings.without_effect(), changes)
    if output is None:
        output = Path("runs") / "compare" / f"{application}-{Path(config).stem}"
    names = [name.strip() for name in methods.split(",") if name.strip()]
    numbers = itertools.count(1)

    def announce(method: str, seed: int) -> None:
        if progress:
            say(f"run {next(numbers)} of {len(names) * seeds}: {method}, seed {seed}")

    with _interruptible():
        rows = run(
            application,
            settings,
            names,
            seeds,
            output,
            gradient=gradient,
            root=data_root,
            on_run=announce,
            progress=progress,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            sync_whitening=sync_whitening,
            precision=precision,
        )
    if rows:
        print(table(rows))
        print(f"written to {output}: compare.md, compare.json, compare.png")
        if not any(row["runs"] for row in rows):
            raise typer.Exit(1)


class ApplicationCommand(TyperCommand):
    """A command whose help also lists the applications, or the fields of the one named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does; remembers the application that is named."""
        ctx.meta["application"] = next((a for a in args if a in APPLICATIONS), None)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As typer does, then the applications or fields."""
        super().format_help(ctx, formatter)
        name = ctx.meta.get("application")
        if name is None:
            _overview(ctx.command_path, formatter)
        else:
            _about(name, formatter)


def _overview(command: str, formatter: Any) -> None:
    with formatter.section("Applications and their configurations (--config)"):
        formatter.write_dl([(name, ", ".join(configurations(name))) for name in APPLICATIONS])
    with formatter.section("Your own data (--data-root DIR), whose layout is found and listed"):
        formatter.write_dl([(name, OWN_DATA[name]) for name in APPLICATIONS])
    for text in (BY_CLASS, f"{command} gcp --help lists the fields of gcp for --set, and so on."):
        formatter.write_paragraph()
        formatter.write_text(text)


def _about(name: str, formatter: Any) -> None:
    need_recipes()
    from matroot.recipes.training.configuration import load_config

    kind = application(name).Settings
    small = load_config(name, "small")
    head = ("field", "values", "default", "in small")
    table = [head]
    for field, info in kind.model_fields.items():
        default = "(none)" if info.is_required() else _value(info.default)
        limits = ", ".join(_limit(m) for m in info.metadata)
        values = _values(info.annotation) + (f", {limits}" if limits else "")
        table.append((field, values, default, _value(getattr(small, field))))
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    formatter.write_text(f"Configurations of {name} (--config): {', '.join(configurations(name))}")
    formatter.write_paragraph()
    formatter.write_text(f"Your own data (--data-root DIR): {OWN_DATA[name]}")
    if "by class" in OWN_DATA[name]:
        formatter.write_text(BY_CLASS)
    formatter.write_paragraph()
    lines = [f"Fields of {name} (--set FIELD=VALUE):", ""]
    for line in table:
        cells = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        lines.append("  " + "  ".join(cells).rstrip())
    lines += ["", *(kind.__doc__ or "").replace("``", "").splitlines()]
    formatter.write("\n".join(lines).rstrip() + "\n")


def _value(value: Any) -> str:
    """As ``--set`` takes it."""
    return "null" if value is None else json.dumps(value).strip('"')


def _values(annotation: Any) -> str:
    """A field's type in words of YAML."""
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    if get_origin(annotation) is not None:
        text = re.sub(r"(typing\.)?Annotated\[(\w+), .*?\)\]", r"\2", str(annotation))
    return text.replace("NoneType", "null").replace("None", "null")


def _limit(constraint: Any) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "a multiple of"}
    return ", ".join(
        f"{sign} {getattr(constraint, name):g}"
        for name, sign in signs.items()
        if hasattr(constraint, name)
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Print one line after Ctrl-C or SIGTERM, at which Lightning exits silently."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:
        # After Ctrl-C Lightning's exit has KeyboardInterrupt as its context, after SIGTERM none.
        by_hand = isinstance(end, KeyboardInterrupt) or isinstance(
            end.__context__, KeyboardInterrupt
        )
        code = INTERRUPTED if by_hand else TERMINATED
        # Of several processes only the first prints it.
        if os.environ.get("LOCAL_RANK", "0") != "0":
            raise SystemExit(code) from None
        raise interrupted("the same command goes on after the last whole epoch", code) from None


def _only_warnings() -> None:
    """Only warnings from Lightning, which reports accelerators and its products at every fit."""
    for module in ("utilities.rank_zero", "trainer.connectors.signal_connector"):
        logging.getLogger(f"lightning.pytorch.{module}").setLevel(logging.WARNING)


def need_recipes() -> None:
    """Load the training code, which takes seconds; one line where a package is missing."""
    try:
        with working("loading PyTorch and Lightning"):
            import matroot.recipes.training.loop  # noqa: F401  (to name what is missing)
    except ModuleNotFoundError as error:
        raise missing("training", error, "cli,recipes") from None


def _with_data(
    name: str, config: str, changes: dict[str, Any], root: Path | None
) -> dict[str, Any]:
    """The changes, with the kind of data in a folder where neither they nor a file say it."""
    from matroot.recipes.layouts import data_in
    from matroot.recipes.training.configuration import load_config

    if root is None or "data" in changes:
        return changes
    if load_config(name, config, changes).data != EMBEDDED[name]:
        return changes
    return changes | {"data": data_in(name, root)}


def _refuse_without_effect(without_effect: dict[str, str], changes: dict[str, Any]) -> None:
    """Raise ValueError for a changed field that has no effect."""
    for field in changes:
        if field in without_effect:
            why = without_effect[field]
            raise ValueError(f"--set {field} does nothing with {why}; leave one of them out")


def _changes(pairs: list[str] | None, eps: float | None) -> dict[str, Any]:
    """``["epochs=3"]`` as values of fields, with the ridge."""
    import yaml

    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set: expected FIELD=VALUE, got {pair!r}")
        try:
            found[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ValueError(f"--set {name}: {value!r} is not a YAML value") from None
    if eps is None:
        return found
    if "eps" in found:
        raise ValueError("--eps and --set eps say the same; leave one of them out")
    return found | {"eps": eps}
