"""A trained run: load it, classify files with it, measure it on a test set."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from matroot.files import replace, replacing
from matroot.recipes.catalogue import APPLICATIONS, EMBEDDED, application
from matroot.recipes.data import Items, Split
from matroot.recipes.layouts import Kind, files_in
from matroot.recipes.methods import layer_options
from matroot.recipes.training.configuration import Common, settings
from matroot.recipes.training.folder import RunFolder, read_checkpoint
from matroot.recipes.training.loop import network
from matroot.terminal import one_line

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trained:
    """What ``matroot train`` has left in a folder, ready to use.

    Attributes:
        name: of the application.
        config: its settings.
        classes: names of the classes, of style none.
        data_root: the folder that it was trained on; None for embedded data.
        epochs: how many are done.
        network: in evaluation mode, on ``device``.
        device: where it computes.
    """

    name: str
    config: Any
    classes: tuple[str, ...]
    data_root: Path | None
    epochs: int
    network: Any
    device: torch.device


def load(run: Path, device: str = "auto", wanted: Sequence[str] = APPLICATIONS) -> Trained:
    """Load a run; nothing in its files is executed.

    Args:
        run: the folder of the run.
        device: see ``choose_device``.
        wanted: applications that it may be of.

    Raises:
        ValueError: the folder holds no run, or one of another application, or a broken one.
    """
    where = choose_device(device)
    folder = RunFolder(run)
    if not folder.description.is_file() or not folder.checkpoint.is_file():
        of = f" {wanted[0]}" if len(wanted) == 1 else ""
        raise ValueError(f"{run}: expected run.json and last.ckpt of a run of 'matroot train{of}'")
    values = folder.described()
    name: Any = values.get("application")
    if name not in wanted:
        raise ValueError(f"{run}: expected a run of {' or '.join(wanted)}, got one of {name}")
    count = values["items"][2]
    root = None if values["data_root"] is None else Path(values["data_root"])
    try:
        gradient = None if values["gradient"] == "auto" else values["gradient"]
        config: Any = settings(name, values["config"], str(folder.description))
        options = layer_options(values["method"], gradient, config.eps)
        checkpoint = read_checkpoint(folder.checkpoint)
        made = network(name, application(name), _untrained(config), count, options, seed=0)
        made.load_state_dict(checkpoint["state_dict"])
        epochs = checkpoint["epoch"] + 1
    except (KeyError, TypeError, RuntimeError):
        raise ValueError(f"{run}: run.json and last.ckpt do not go together") from None
    # Runs of before the names were recorded have none.
    classes = tuple(values.get("classes", map(str, range(count))))
    return Trained(name, config, classes, root, epochs, made.eval().to(where), where)


def _untrained(config: Common) -> Common:
    """Settings that download no weights: the checkpoint has them."""
    pretrained = hasattr(config, "pretrained")
    return config.model_copy(update={"pretrained": False}) if pretrained else config


def choose_device(name: str) -> torch.device:
    """``"auto"``, the accelerator if there is one; or any name of PyTorch's, ``"cuda:1"``.

    Raises:
        ValueError: no such device.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # A device that is not there fails here at the latest.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {name!r} is none that can be used here ({reason}); auto takes what there is"
        ) from None
    return device


class Prediction(NamedTuple):
    """A file, and the probability of each class; or why it could not be read."""

    path: Path
    probabilities: list[float]
    unreadable: str = ""

    def best(self, classes: Sequence[str], count: int) -> list[tuple[str, float]]:
        """The most probable classes, the first first."""
        pairs = zip(classes, self.probabilities, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])[:count]


def predict(trained: Trained, files: Sequence[Path]) -> Iterator[Prediction]:
    """Probabilities of all classes for each file, in order.

    Each file is read as one of the test set. One that cannot be read is reported and passed over.

    Raises:
        FloatingPointError: the network gives NaN or infinity.
    """
    read = application(trained.name).reader(trained.config)
    size = trained.config.batch_size
    for start in range(0, len(files), size):
        some = files[start : start + size]
        inputs: list[Tensor] = []
        reasons = []
        for path in some:
            try:
                inputs.append(read(path))
                reasons.append("")
            except (OSError, ValueError) as error:
                reasons.append(one_line(str(error)))
        found = iter(_logits(trained, torch.stack(inputs)).softmax(1).tolist() if inputs else [])
        for path, reason in zip(some, reasons, strict=True):
            yield Prediction(path, [] if reason else next(found), reason)


@torch.no_grad()
def _logits(trained: Trained, x: Tensor) -> Tensor:
    """The logits of a batch, on the CPU in double precision."""
    logits: Tensor = trained.network(x.to(trained.device)).cpu().double()
    if not logits.isfinite().all():
        raise FloatingPointError(
            "the network gives NaN or infinity, which is no class; were the epochs before fine?"
        )
    return logits


def write_predictions(found: Sequence[Prediction], classes: Sequence[str], path: Path) -> None:
    """Write predictions as CSV or JSON, by the suffix; those without an unreadable file.

    CSV has the columns path, class, probability, and one ``p(CLASS)`` for each class; JSON a list
    of objects with path, class, probability and probabilities by class.
    """
    readable = [(p, p.best(classes, 1)[0]) for p in found if not p.unreadable]
    if path.suffix == ".json":
        rows = [
            {
                "path": str(p.path),
                "class": name,
                "probability": probability,
                "probabilities": dict(zip(classes, p.probabilities, strict=True)),
            }
            for p, (name, probability) in readable
        ]
        replace(path, json.dumps(rows, indent=1) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", "probability", *(f"p({name})" for name in classes)])
    for p, (name, probability) in readable:
        writer.writerow([p.path, name, probability, *p.probabilities])
    replace(path, text.getvalue())


@dataclass(frozen=True)
class Evaluation:
    """What a test set says of a network.

    Attributes:
        classes: their names.
        confusion: counts, shape (classes, classes), by true class and by answer.
        loss: mean cross entropy.
    """

    classes: tuple[str, ...]
    confusion: Tensor
    loss: float

    @property
    def count(self) -> int:
        """How many files were classified."""
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        """How many of them rightly."""
        return int(self.confusion.trace())

    def per_class(self) -> list[dict[str, Any]]:
        """Of each class: ``count``, ``right``; ``recall`` and ``precision``, None where 0/0.

        Recall is the share of the class that is found, precision the share of such answers that are
        right; ``most_taken_for`` is the other class that is answered most often.
        """
        rows = []
        for i, name in enumerate(self.classes):
            count, answers = int(self.confusion[i].sum()), int(self.confusion[:, i].sum())
            right = int(self.confusion[i, i])
            wrong = self.confusion[i].clone()
            wrong[i] = 0
            rows.append(
                {
                    "class": name,
                    "count": count,
                    "right": right,
                    "recall": right / count if count else None,
                    "precision": right / answers if answers else None,
                    "most_taken_for": self.classes[int(wrong.argmax())] if wrong.any() else None,
                }
            )
        return rows

    def summary(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        rows = self.per_class()
        recalls = [row["recall"] for row in rows if row["recall"] is not None]
        return {
            "count": self.count,
            "right": self.right,
            "accuracy": self.right / self.count,
            "mean_recall": sum(recalls) / len(recalls),
            "loss": self.loss,
            "classes": rows,
            "confusion": self.confusion.tolist(),
        }


def split_of(trained: Trained, root: Path | None) -> Split:
    """The data to evaluate a run on.

    Args:
        trained: see ``load``.
        root: another folder, laid out as that of training may be; None: the same data.

    Raises:
        ValueError: the folder does not fit, or was not given and is no longer there.
    """
    place = trained.data_root if root is None else root
    if place is not None and trained.config.data == EMBEDDED[trained.name]:
        raise ValueError(
            f"the run was trained on the embedded data {trained.config.data!r}, {place} would go "
            "unused; leave out --data-root"
        )
    if root is None and place is not None and not place.is_dir():
        raise ValueError(f"{place}, which the run was trained on, is gone; give it by --data-root")
    split: Split = application(trained.name).datasets(trained.config, place)
    if unknown := sorted(set(split.classes) - set(trained.classes)):
        raise ValueError(
            f"{place}: classes that the run does not know: {', '.join(map(one_line, unknown))}; it "
            f"knows {', '.join(map(one_line, trained.classes))}"
        )
    return split


def evaluate(
    trained: Trained, split: Split, *, everything: bool = False, progress: Progress | None = None
) -> Evaluation:
    """Classify a test set.

    Args:
        trained: a run that classifies.
        split: see ``split_of``.
        everything: both parts, read as those for test are.
        progress: called with the files done and their number.

    Raises:
        ValueError: a file cannot be read; or ``everything`` of data that are no files in folders.
        FloatingPointError: the network gives NaN or infinity.
    """
    test: Any = split.test
    if everything:
        if not (isinstance(split.training, Items) and isinstance(test, Items)):
            raise ValueError(f"--all is for files in folders, not for {trained.config.data!r}")
        test = copy.copy(test)
        test.items = [*split.training.items, *test.items]
    classes = trained.classes
    label = torch.tensor([classes.index(name) for name in split.classes])
    confusion = torch.zeros(len(classes), len(classes), dtype=torch.long)
    losses, done = [], 0
    for x, y in DataLoader(test, trained.config.batch_size, num_workers=trained.config.workers):
        logits, wanted = _logits(trained, x), label[y]
        losses += F.cross_entropy(logits, wanted, reduction="none").tolist()
        confusion.index_put_((wanted, logits.argmax(1)), torch.ones_like(wanted), accumulate=True)
        done += len(wanted)
        if progress is not None:
            progress(done, len(test))
    return Evaluation(classes, confusion, math.fsum(losses) / len(losses))


_MOST_SHOWN = 40
"""Classes of which a drawing still has legible names."""


def draw_confusion(found: Evaluation, file: Path) -> bool:
    """Draw which class is taken for which, unless there are too many; whether it was."""
    count = len(found.classes)
    if count > _MOST_SHOWN:
        return False
    from matplotlib.figure import Figure

    side = 2.5 + 0.4 * count
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = found.confusion / found.confusion.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(found.confusion.tolist()):
        for j, number in enumerate(row):
            if number:
                color = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, number, ha="center", va="center", color=color, fontsize=8)
    # As they are: a name between two dollar signs is no formula.
    names = [one_line(name).replace("$", r"\$") for name in found.classes]
    axes.set_xticks(range(count), names, rotation=90)
    axes.set_yticks(range(count), names)
    axes.set(xlabel="answer", ylabel="class")
    axes.set_title(f"{found.right} of {found.count} right", loc="left")
    with replacing(file) as fresh, warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; evaluation.json has the whole name.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        figure.savefig(fresh, dpi=120)
    return True


@torch.no_grad()
def evaluate_style(
    trained: Trained, split: Split, output: Path, progress: Progress | None = None
) -> list[float]:
    """How many times nearer to the style each test pair has come; writes ``pictures.png``.

    Args:
        trained: a run of style.
        split: see ``split_of``.
        output: an existing folder.
        progress: called with the pairs done and their number.
    """
    from matroot.recipes.images import contact_sheet
    from matroot.recipes.style.learner import improvement, sheet_row
    from matroot.recipes.style.pairs import to_bytes

    test: Any = split.test
    ratios, rows = [], []
    for i in range(len(test)):
        x, y = (t[None].to(trained.device) for t in test[i])
        content, style, made = (to_bytes(t).cpu()[0] for t in (x, y, trained.network(x, y)))
        ratios.append(improvement(content, style, made))
        rows.append(sheet_row(content, style, made, ratios[-1]))
        if progress is not None:
            progress(i + 1, len(test))
    with replacing(output / "pictures.png") as fresh:
        contact_sheet(rows[:16], side=192).save(fresh)
    return ratios


def files_of(arguments: Iterable[Path], kind: Kind, results: Path | None = None) -> list[Path]:
    """Files, and those of a kind in folders and in folders within them.

    Args:
        arguments: files and folders.
        kind: pictures or videos.
        results: a folder that does not count within another one: what the last run has painted.

    Raises:
        ValueError: a folder without one, or a file that does not exist.
    """
    found: list[Path] = []
    own = None if results is None else results.resolve()
    for path in arguments:
        if path.is_dir():
            inside = files_in(path, kind, within=True)
            if own is not None and own != path.resolve():
                inside = [file for file in inside if own not in file.resolve().parents]
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"{path}: there is no such file or folder")
    return found
