"""``matroot predict`` and ``matroot evaluate``: a trained run on the command line."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from matroot.files import held, replace
from matroot.recipes.commands import need_recipes
from matroot.terminal import check_file, check_folder, console, one_line, progress, working

if TYPE_CHECKING:
    from matroot.recipes.trained import Evaluation, Prediction, Trained

_Run = Annotated[Path, typer.Argument(help="Folder of a run of 'matroot train'.")]
_Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps … as PyTorch knows them.")]
_Bar = Annotated[bool, typer.Option("--progress/--no-progress", help="Show a bar.")]

_CLASSES_SHOWN = 40


def predict(
    run: _Run,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Pictures (of a run of video: AVI), or folders; all in them and within count."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A .csv or .json with all probabilities; of style a folder."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes to print of each file.")] = 3,
    style: Annotated[
        Path | None, typer.Option(help="Of a run of style: the picture whose style they are given.")
    ] = None,
    device: _Device = "auto",
    bar: _Bar = True,
) -> None:
    """Classify files with a trained run, or paint them in a style.

    Prints the most probable classes of each file. A file that cannot be read is named, left out,
    and makes the exit status 1.

    matroot train gcp --data-root PHOTOS -o RUN

    matroot predict RUN new.jpg FOLDER -o classes.csv

    matroot predict runs/style/small-auto-0 photo.jpg --style painting.jpg -o painted
    """
    need_recipes()
    from matroot.recipes.layouts import PICTURES, VIDEOS
    from matroot.recipes.trained import files_of, load
    from matroot.recipes.trained import predict as classify

    with working(f"loading {run}"):
        trained = load(run, device)
    if (style is not None) != (trained.name == "style"):
        does = "needs --style PICTURE" if style is None else "takes no --style"
        raise ValueError(f"{run}: a run of {trained.name} {does}")
    if style is not None:
        painted = Path("painted") if output is None else output
        _paint(trained, files_of(files, PICTURES, painted), style, painted, bar)
        return
    paths = files_of(files, VIDEOS if trained.name == "video" else PICTURES)
    if output is not None:
        if output.suffix not in (".csv", ".json"):
            raise ValueError(f"{output}: expected a name that ends with .csv or .json")
        if not output.parent.is_dir():
            raise ValueError(f"{output}: there is no folder {output.parent}")
        check_file(output)
    found: list[Prediction] = []
    with progress() as bars:
        task = bars.add_task("files", total=len(paths), visible=bar)
        for prediction in classify(trained, paths):
            found.append(prediction)
            bars.advance(task)
    _show_predictions(found, trained, top)
    if output is not None:
        from matroot.recipes.trained import write_predictions

        write_predictions(found, trained.classes, output)
        console().print(f"{output} written", markup=False)
    unreadable = [p for p in found if p.unreadable]
    for p in unreadable:
        print(f"matroot: left out: {p.unreadable}", file=sys.stderr)
    if unreadable:
        raise typer.Exit(1)


def _show_predictions(found: list[Prediction], trained: Trained, top: int) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("file", "class and probability")
    for p in found:
        if not p.unreadable:
            best = p.best(trained.classes, top)
            said = ", ".join(f"{one_line(name)} {share:.1%}" for name, share in best)
            # Text: a name in square brackets is no markup.
            table.add_row(Text(one_line(str(p.path)), overflow="fold"), Text(said))
    if table.row_count:
        console().print(table)


def _paint(trained: Trained, paths: list[Path], style: Path, output: Path, bar: bool) -> None:
    """Each photograph in the style, as FOLDER/PHOTOGRAPH-STYLE.png."""
    from matroot.recipes.images import load_image, save_image
    from matroot.recipes.style.transfer import transfer

    names = [f"{path.stem}-{style.stem}.png" for path in paths]
    if len(set(names)) < len(names):
        raise ValueError("two photographs have one name, and their pictures would, too")
    check_folder(output)
    goal, _ = load_image(style)
    output.mkdir(parents=True, exist_ok=True)
    with progress() as bars:
        task = bars.add_task("painting", total=len(paths), visible=bar)
        for path, name in zip(paths, names, strict=True):
            pixels, alpha = load_image(path)
            save_image(transfer(trained.network, pixels, goal), output / name, alpha)
            bars.advance(task)
    console().print(f"{output}/: {len(names)} written, {', '.join(names[:3])} …", markup=False)


def evaluate(
    run: _Run,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Other data of the same classes, laid out as for 'matroot train'."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All files of the folder, not its part for test alone.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the results; RUN/evaluation if left out."),
    ] = None,
    device: _Device = "auto",
    bar: _Bar = True,
) -> None:
    """Measure a trained run on its test set, or on other data.

    Prints how many files are classified rightly, in all and of each class. Writes evaluation.json
    (counts, recall and precision of each class, the confusion matrix, the loss) and confusion.png;
    of style how many times nearer to the style each picture has come, and pictures.png.

    matroot evaluate RUN

    matroot evaluate RUN --data-root OTHER --all
    """
    need_recipes()
    from matroot.recipes.layouts import listing
    from matroot.recipes.trained import load, split_of

    folder = run / "evaluation" if output is None else output
    with working(f"loading {run}"):
        trained = load(run, device)
        split = split_of(trained, data_root)
    check_folder(folder)
    place = trained.data_root if data_root is None else data_root
    said = (
        listing(split, place) if place is not None else [f"data: {trained.config.data} (embedded)"]
    )
    console().print("\n".join(said), markup=False, highlight=False, soft_wrap=True)
    about = {
        "run": str(run.resolve()),
        "epochs": trained.epochs,
        "data": trained.config.data,
        "data_root": None if place is None else str(place.resolve()),
        "all": everything,
    }
    with held(folder, folder / ".lock"), progress() as bars:
        task = bars.add_task("test set", total=None, visible=bar)

        def advance(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        if trained.name == "style":
            from matroot.recipes.trained import evaluate_style

            if everything:
                raise ValueError("--all is for runs that classify, not for style")
            ratios = evaluate_style(trained, split, folder, advance)
            mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
            measured: dict[str, Any] = {
                "count": len(ratios),
                "improvement": mean,
                "least_improvement": min(ratios),
                "pairs": ratios,
            }
        else:
            from matroot.recipes.trained import draw_confusion
            from matroot.recipes.trained import evaluate as measure

            found = measure(trained, split, everything=everything, progress=advance)
            measured = found.summary()
            drawn = draw_confusion(found, folder / "confusion.png")
        replace(folder / "evaluation.json", json.dumps(about | measured, indent=1) + "\n")
    if trained.name == "style":
        console().print(
            f"squared distance to the style: falls by {mean:.1f} (geometric mean of {len(ratios)} "
            f"pairs; the least {min(ratios):.1f})"
        )
        console().print(f"{folder}: evaluation.json, pictures.png", markup=False)
        return
    _show_evaluation(found)
    drawing = ", confusion.png" if drawn else ""
    console().print(f"{folder}: evaluation.json{drawing}", markup=False)


def _show_evaluation(found: Evaluation) -> None:
    from rich.table import Table
    from rich.text import Text

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}"

    rows = sorted(
        found.per_class(), key=lambda row: 2.0 if row["recall"] is None else row["recall"]
    )
    if len(rows) <= _CLASSES_SHOWN:
        rows = found.per_class()
    table = Table("class", "files", "right", "recall", "precision", "most taken for")
    for column in table.columns[1:5]:
        column.justify = "right"
    for row in rows[:_CLASSES_SHOWN]:
        numbers = (str(row["count"]), str(row["right"]), share(row["recall"]))
        other = Text(one_line(row["most_taken_for"] or ""))
        table.add_row(Text(one_line(row["class"])), *numbers, share(row["precision"]), other)
    console().print(table)
    if len(rows) > _CLASSES_SHOWN:
        console().print(f"the {_CLASSES_SHOWN} of {len(rows)} classes that are found least often")
    summary = found.summary()
    console().print(
        f"{found.right} of {found.count} right: accuracy {summary['accuracy']:.2%}, mean recall "
        f"{summary['mean_recall']:.2%}, loss {found.loss:.4f}"
    )
