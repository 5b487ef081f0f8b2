"""The command line: ``matroot demo``, ``stylize``, ``train``, ``predict``, ``bench``, ``info``.

PyTorch, and what else takes long to load, is imported where a command needs it.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from matroot import __version__
from matroot.files import held, replacing
from matroot.terminal import (
    check_folder,
    console,
    interrupted,
    missing,
    one_line,
    progress,
    repeat_lost_interruptions,
    working,
)

try:
    import typer
    from typer.core import TyperGroup
except ModuleNotFoundError as _error:
    raise missing("the command line", _error, "cli") from None
except KeyboardInterrupt:
    raise interrupted() from None

from matroot.bench import commands as bench
from matroot.recipes import commands as recipes
from matroot.recipes import trained_commands as trained

if TYPE_CHECKING:
    from torch import Tensor

    from matroot.methods import MethodName
    from matroot.recipes.stylize import StyleResult


class _Interruptible(TyperGroup):
    """Ends in the same way after Ctrl-C with every version of typer."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise interrupted() from None


app: typer.Typer = typer.Typer(
    cls=_Interruptible,
    help="Square roots and inverse square roots of symmetric positive semi-definite matrices.",
    no_args_is_help=True,
    add_completion=False,
    # Paragraphs that fit the window, and brackets as they stand.
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.add_typer(bench.app, name="bench")
app.command(cls=recipes.ApplicationCommand)(recipes.train)
app.command(cls=recipes.ApplicationCommand)(recipes.compare)
app.command()(trained.predict)
app.command()(trained.evaluate)


# Modules that the extra "cli" installs.
_EXTRA = ("PIL", "matplotlib", "numpy", "rich", "skimage")


def main() -> None:
    """Run the command line; a mistake of the user is one line, without a traceback."""
    repeat_lost_interruptions()
    try:
        app()
    except KeyboardInterrupt:
        raise interrupted() from None
    except ModuleNotFoundError as error:
        if error.name in _EXTRA:
            raise missing("this command", error, "cli") from None
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"matroot: {one_line(str(error))}") from None
    except RuntimeError as error:
        from torch.linalg import LinAlgError

        if isinstance(error, LinAlgError):
            raise SystemExit(f"matroot: {one_line(str(error))}") from None
        raise


def _version(wanted: bool) -> None:
    if wanted:
        try:
            torch = version("torch")
        except PackageNotFoundError:
            torch = "not installed"
        print(f"matroot {__version__}, torch {torch}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions.")
    ] = False,
) -> None:
    pass


def _known_method(name: str) -> str:
    """Check a name against the registry, which is loaded only when a name is given."""
    if name != "auto":
        from matroot.methods import METHODS

        if name not in METHODS:
            known = ", ".join(["auto", *METHODS])
            raise typer.BadParameter(f"unknown method {name!r}; known: {known}")
    return name


@app.command()
def stylize(
    ctx: typer.Context,
    content: Annotated[Path, typer.Argument(help="The photograph to change.")],
    style: Annotated[Path, typer.Argument(help="The photograph whose texture it takes on.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the result.")],
    strength: Annotated[
        float, typer.Option(min=0, max=1, help="0 keeps the content, 1 is the full effect.")
    ] = 1.0,
    method: Annotated[
        str,
        typer.Option(
            callback=_known_method,
            help="How the matrix roots are computed: auto, taylor, pade, newton_schulz, minimax, "
            "eigh or svd.",
        ),
    ] = "auto",
    eps: Annotated[
        float, typer.Option(help="Ridge on both covariances of pixels in [0, 1]; more is softer.")
    ] = 3e-4,
    patch: Annotated[int, typer.Option(min=2, max=16, help="Patch width in pixels.")] = 7,
    texture: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of style laid into flat regions."),
    ] = 0.8,
    network: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a run of 'matroot train style': its network paints the picture; the "
            "other options go unused."
        ),
    ] = None,
) -> None:
    """Give a photograph the colours and textures of another: whitening, then coloring.

    Prints the Bures-Wasserstein distance between the covariances of multi-scale patches of the
    result and of the style, before and after, measured on other patches than those used.
    """
    from matroot.recipes.images import check_output, load_image, save_image

    pixels, alpha = load_image(content)
    target, _ = load_image(style)
    check_output(output, alpha is not None, sources=(content, style))
    if network is not None:
        for option in ("strength", "method", "eps", "patch", "texture"):
            if _given(ctx, option):
                raise ValueError(f"--{option} does nothing with --network; leave one of them out")
        save_image(_painted(pixels, target, network), output, alpha)
        console().print(f"{output} written by the network of {network}", markup=False)
        return
    from matroot.recipes.stylize import stylize as recipe

    with progress() as bar:
        task = bar.add_task("whitening and coloring", total=None)
        result = recipe(
            pixels,
            target,
            strength=strength,
            method=cast("MethodName", method),
            eps=eps,
            patch=patch,
            texture=texture,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    save_image(result.image, output, alpha)
    _report(result, output, strength)


def _report(result: StyleResult, output: Path, strength: float) -> None:
    """Say how near to the style the picture has come, and warn where it has not."""
    before, after = result.distance_before, result.distance_after
    console().print(
        f"{output} written; the step across patch borders is {result.seam_ratio:.2f} of "
        "the step inside",
        markup=False,
    )
    console().print(
        f"Bures-Wasserstein distance to the style: {before:.4f} before, {after:.4f} after "
        f"({_ratio(before, after)})"
    )
    if strength > 0 and after >= before > 0:
        print(
            "matroot: warning: the picture is no nearer to the style than before; "
            "--eps, --patch, --method and larger pictures make a difference",
            file=sys.stderr,
        )


def _painted(content: Tensor, style: Tensor, network: Path) -> Tensor:
    """The picture that the network of a run makes."""
    recipes.need_recipes()
    from matroot.recipes.style.transfer import transfer
    from matroot.recipes.trained import load

    with working(f"painting by the network of {network}"):
        return transfer(load(network, "cpu", ["style"]).network, content, style)


def _given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _ratio(before: float, after: float) -> str:
    return f"{before / after:.1f}×" if after > 0 else "equal"


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a report of an error needs: versions, machine, kernels and why they are not used."""
    from matroot.info import collect, text

    with working("asking PyTorch and its devices"):
        report = collect()
    print(json.dumps(report, indent=2, ensure_ascii=False) if as_json else text(report))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "demo"
    ),
) -> None:
    """Stylise scikit-image's photographs, then compare every method and gradient rule on them.

    Writes contact_sheet.png and the sixteen pictures, and methods.md, methods.png and
    methods.jsonl: error, gradient error and time on the photographs' own patch covariances.
    """
    check_folder(output)
    start = time.perf_counter()
    with held(output, output / ".lock"):
        photographs = _demo_pictures(output)
        _demo_methods(photographs, output)
    console().print(
        f"{output}/ written in {time.perf_counter() - start:.0f} s: contact_sheet.png, methods.md, "
        "methods.png and 16 pictures"
    )


def _demo_pictures(output: Path) -> list[Tensor]:
    """Every photograph in every style, and the contact sheet; returns photographs and styles."""
    from rich.table import Table

    from matroot.recipes import images
    from matroot.recipes.stylize import stylize as recipe

    contents = {name: images.photograph(name) for name in images.CONTENTS}
    styles = {name: images.sheet_style(name) for name in images.SHEET_STYLES}
    table = Table("content", "style", "distance before", "after", "ratio", "seams")
    corner = [(picture, name) for name, picture in styles.items()]
    grid: list[list[tuple[Tensor, str] | None]] = [[None, *corner]]
    with progress() as bar:
        task = bar.add_task("pictures", total=len(contents) * len(styles))
        for content, photograph in contents.items():
            grid.append([(photograph, content)])
            for style, goal in styles.items():
                result = recipe(photograph, goal)
                images.save_image(result.image, output / f"{content}-{style}.png")
                ratio = _ratio(result.distance_before, result.distance_after)
                numbers = (f"{result.distance_before:.3f}", f"{result.distance_after:.4f}", ratio)
                table.add_row(content, style, *numbers, f"{result.seam_ratio:.3f}")
                grid[-1].append((result.image, f"{ratio[:-1]} times nearer to {style}"))
                bar.advance(task)
    with replacing(output / "contact_sheet.png") as fresh:
        images.contact_sheet(grid).save(fresh)
    console().print(table)
    return [*contents.values(), *styles.values()]


def _demo_methods(photographs: list[Tensor], output: Path) -> None:
    """Every method and gradient rule on the photographs' patch covariances."""
    import torch
    from rich.table import Table

    from matroot.bench import rules
    from matroot.recipes.stylize import patch_covariance

    covariances = torch.stack([patch_covariance(photo) for photo in photographs]).float()
    values = torch.linalg.eigvalsh(covariances.double())
    cond = values[:, -1] / values[:, 0]
    caption = (
        f"Patch covariances of {len(photographs)} photographs, n = {covariances.shape[-1]}, "
        f"float32, condition numbers {cond.min():.0f} to {cond.max():.0f}, "
        f"{torch.get_num_threads()} threads"
    )
    with progress() as bar:
        task = bar.add_task("methods", total=None)
        rows = rules.measure(
            covariances,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    rules.save_rows(rows, output / "methods.jsonl", matrices=caption)
    rules.save_markdown(rows, output / "methods.md", caption)
    rules.save_plot(rows, output / "methods.png", caption)
    table = Table(title=caption)
    for heading in ("root", "method", "gradient", "error", "gradient error", "ms"):
        table.add_column(heading, overflow="fold")
    for row in rules.in_order(rows):
        errors = (f"{row.error:.1e}", f"{row.gradient_error:.1e}", f"{row.milliseconds:.1f}")
        table.add_row(row.root, row.method, row.gradient, *errors)
    console().print(table)
