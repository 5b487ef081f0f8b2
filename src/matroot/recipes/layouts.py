"""Data of one's own: how a folder is laid out, which files are for training, what was found.

Pictures or videos lie in class folders, with a part for test or without, or are named in a list.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from matroot.recipes.data import Items, Listed, Split, Transform, inside
from matroot.recipes.images import FORMATS
from matroot.terminal import one_line

_ARCHIVES = {
    "dbn": {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"},
    "gcp": {"cub": "CUB_200_2011", "aircraft": "fgvc-aircraft-2013b", "cars": "stanford_cars"},
    "video": {"ucf101": "ucfTrainTestlist", "hmdb51": "testTrainMulti_7030_splits"},
}
"""Of each application: the data sets that it knows, and a folder that each of them has."""

_TEST_FOLDERS = ("val", "valid", "validation", "test")
_PARTS = {"train": "train"} | dict.fromkeys(_TEST_FOLDERS, "test")
"""What a list may call a part, and which it is."""

TEST_SHARE = 0.2
"""Share of each class that is kept for test where nothing says which files are."""


class Kind(NamedTuple):
    """What is looked for: its name, how its files end, and what helps where there are none."""

    things: str
    suffixes: frozenset[str]
    help: str


def _picture_suffixes() -> frozenset[str]:
    return frozenset(s for s, kind in Image.registered_extensions().items() if kind in FORMATS)


PICTURES: Kind = Kind("pictures", _picture_suffixes(), "save them as JPEG or PNG")
VIDEOS: Kind = Kind(
    "videos",
    frozenset({".avi"}),
    "only AVI is read: ffmpeg -i NAME.mp4 -c:v mpeg4 -q:v 3 NAME.avi converts a video",
)


class Found(NamedTuple):
    """Files of both parts with their classes as numbers, and in words how they are laid out."""

    training: list[tuple[Path, int]]
    test: list[tuple[Path, int]]
    classes: tuple[str, ...]
    layout: str


def data_in(name: str, root: Path) -> str:
    """The value of ``data`` that a folder is for an application: a known data set or ``folder``."""
    known = _ARCHIVES.get(name, {})
    return next((data for data, mark in known.items() if (root / mark).is_dir()), "folder")


def find(root: Path, kind: Kind) -> Found:
    """The files of a folder, their classes and their parts.

    In this order: ``train/CLASS/`` and ``val/CLASS/`` (or ``test/CLASS/``); one list ``*.csv``;
    ``CLASS/``. Where no part for test is named, a fifth of each class is kept for it.

    Args:
        root: an existing folder.
        kind: pictures or videos.

    Raises:
        ValueError: none of these, or one that does not fit.
    """
    test = next((name for name in _TEST_FOLDERS if (root / name).is_dir()), None)
    if (root / "train").is_dir() and test is not None:
        return _in_parts(root, test, kind)
    lists = sorted(root.glob("*.csv"))
    if len(lists) == 1:
        return _in_list(root, lists[0], kind)
    if len(lists) > 1:
        names = ", ".join(file.name for file in lists)
        raise ValueError(
            f"{root}: expected one list, got {names}; leave one, with a column 'part' of train "
            "and test"
        )
    if (root / "train").is_dir():
        raise ValueError(
            f"{root}: expected the folders 'train' and 'val' (or 'test'), got {content(root)}; add "
            f"one, or take {root / 'train'}, of which a fifth of each class is then kept for test"
        )
    return _in_class_folders(root, kind)


def _in_parts(root: Path, test: str, kind: Kind) -> Found:
    classes = [class_folders(root / part) for part in ("train", test)]
    for part, here, there in (("train", *classes), (test, *reversed(classes))):
        if missing := sorted(set(there) - set(here)):
            raise ValueError(
                f"{root}: 'train' and {test!r} have different classes; {part!r} lacks "
                f"{_some(missing)}"
            )
    if not classes[0]:
        raise ValueError(f"{root / 'train'}: expected class folders, got {content(root / 'train')}")
    training, test_items = (_of_classes(root / part, classes[0], kind) for part in ("train", test))
    layout = f"class folders in train/ and {test}/"
    return Found(training, test_items, tuple(classes[0]), layout)


def _in_class_folders(root: Path, kind: Kind) -> Found:
    classes = class_folders(root)
    if len(classes) < 2:
        raise ValueError(
            f"{root}: expected class folders in 'train' and 'val' (or 'test'), or class folders "
            f"alone, at least two, or a list (.csv); got {content(root)}"
        )
    items = _of_classes(root, classes, kind)
    layout = "class folders, a fifth of each kept for test"
    return Found(*_divided(root, items, classes), tuple(classes), layout)


def _in_list(root: Path, file: Path, kind: Kind) -> Found:
    """A list with the columns path, class and, if it has one, part."""
    rows = _rows(file)
    classes = sorted({row["class"] for row in rows})
    if len(classes) < 2:
        raise ValueError(f"{file}: expected at least two classes, got {_some(classes)}")
    number = {name: label for label, name in enumerate(classes)}
    items = [(inside(root, row["path"]), number[row["class"]]) for row in rows]
    twice = [path for path, count in Counter(path for path, _ in items).items() if count > 1]
    if twice:
        raise ValueError(f"{file}: {_some([str(p.relative_to(root)) for p in twice])} named twice")
    # Unlike Path.is_file it takes any name for one that may be missing.
    missing = next((path for path, _ in items if not os.path.isfile(path)), None)
    if missing is not None:
        name = one_line(str(missing))
        raise ValueError(f"{name}: named in {file}, but missing; paths are those from {root}")
    if "part" not in rows[0]:
        layout = f"the list {file.name}, a fifth of each class kept for test"
        return Found(*_divided(root, items, classes), tuple(classes), layout)
    training, test = (
        [item for item, row in zip(items, rows, strict=True) if _PARTS[row["part"]] == part]
        for part in ("train", "test")
    )
    if not test:
        raise ValueError(f"{file}: expected rows of both parts, train and test")
    if untrained := set(range(len(classes))) - {label for _, label in training}:
        names = _some([classes[label] for label in sorted(untrained)])
        raise ValueError(
            f"{file}: expected {kind.things} of each class for training, none of {names}"
        )
    return Found(training, test, tuple(classes), f"the list {file.name} with its parts")


def _rows(file: Path) -> list[dict[str, str]]:
    """The rows of a list, each value there and without blanks around it."""
    wanted = "expected the columns path, class and perhaps part, with commas between them"
    try:
        text = file.read_bytes().decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        names = [name.strip() for name in reader.fieldnames or []]
        if not {"path", "class"} <= set(names) or len(set(names)) < len(names):
            got = f"got {_some(names)}" if names else "got no line"
            raise ValueError(f"{file}: {wanted}; {got}; the first line names them")
        reader.fieldnames = names
        used: list[str] = [name for name in ("path", "class", "part") if name in names]
        rows: list[dict[str, str]] = []
        for row in reader:
            values = {name: (row[name] or "").strip() for name in used}
            if empty := next((name for name, value in values.items() if not value), None):
                raise ValueError(f"{file}, line {reader.line_num}: no {empty}")
            if values.get("part", "train") not in _PARTS:
                raise ValueError(
                    f"{file}, line {reader.line_num}: expected part train or test, got "
                    f"{values['part']!r}"
                )
            rows.append(values)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: expected a list as text in UTF-8 ({error})") from None
    if not rows:
        raise ValueError(f"{file}: {wanted}; got the first line alone")
    return rows


def _divided(
    root: Path, items: Sequence[tuple[Path, int]], classes: Sequence[str]
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    """Items for training and a fifth of each class for test, at least one.

    The order in which they are taken is that of hashes of their names: the same everywhere, for
    every ``--seed``, and hardly changed by a few more files.
    """

    def order(item: tuple[Path, int]) -> bytes:
        name = item[0].relative_to(root).as_posix()
        return hashlib.sha256(os.fsencode(name)).digest()

    by_class: list[list[tuple[Path, int]]] = [[] for _ in classes]
    for item in items:
        by_class[item[1]].append(item)
    training, test = [], []
    for name, own in zip(classes, by_class, strict=True):
        if len(own) < 2:
            raise ValueError(
                f"{root}: class {name!r} has one file; expected two at least, one of them for test"
            )
        own.sort(key=order)
        count = max(1, round(TEST_SHARE * len(own)))
        test += sorted(own[:count])
        training += sorted(own[count:])
    return training, test


def divided_files(folder: Path, kind: Kind) -> tuple[list[Path], list[Path]]:
    """The files of a folder for training and, a fifth of them, for test.

    Raises:
        ValueError: there are fewer than two.
    """
    items = [(file, 0) for file in files_in(folder, kind)]
    training, test = _divided(folder, items, [folder.name])
    return [file for file, _ in training], [file for file, _ in test]


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, without those that hold no data."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and _counts(path.name))


def _counts(name: str) -> bool:
    """Whether a file or folder counts: not a hidden one, nor what archives of macOS add."""
    return not name.startswith((".", "__MACOSX"))


def _of_classes(folder: Path, classes: Sequence[str], kind: Kind) -> list[tuple[Path, int]]:
    """The files in the folders of the classes, also those in folders within them."""
    items: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        found = _within(folder / name, kind)
        if not found:
            got = content(folder / name)
            raise ValueError(f"{folder / name}: no {kind.things} in it, but {got}; {kind.help}")
        items += [(file, label) for file in found]
    return items


def _within(folder: Path, kind: Kind) -> list[Path]:
    """The files of a kind in a folder and in folders within it, sorted."""

    def fail(error: OSError) -> None:  # os.walk would leave out a folder that it may not read.
        raise error

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = filter(_counts, folders)  # os.walk goes into these.
        found += [Path(place, file) for file in files if _is_of(file, kind)]
    return sorted(found)


def _is_of(name: str, kind: Kind) -> bool:
    """Whether a file is of a kind, by its name."""
    return _counts(name) and Path(name).suffix.lower() in kind.suffixes


def files_in(folder: Path, kind: Kind, *, within: bool = False) -> list[Path]:
    """The files of a kind that lie in a folder, or also in folders ``within`` it, sorted.

    Raises:
        ValueError: there are none, or it is no folder.
    """
    if within:
        found = _within(folder, kind)
    else:
        every = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [file for file in every if _is_of(file.name, kind)]
    if not found:
        got = content(folder) if folder.is_dir() else "nothing of that name"
        raise ValueError(f"{folder}: expected a folder of {kind.things}, got {got}")
    return found


def content(folder: Path) -> str:
    """What lies in a folder, in a few words."""
    folders = class_folders(folder)
    suffixes = Counter(path.suffix or "no suffix" for path in folder.iterdir() if path.is_file())
    said = []
    if folders:
        said.append(f"{_counted(len(folders), 'folder')} ({_some(folders)})")
    if suffixes:
        names = _some([name for name, _ in suffixes.most_common()])
        said.append(f"{_counted(sum(suffixes.values()), 'file')} ({names})")
    return " and ".join(said) or "nothing"


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(one_line, names[:most])) + more


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def image_folders(root: Path, training: Transform, test: Transform) -> Split:
    """Pictures of one's own, see ``find``.

    Args:
        root: an existing folder.
        training: applied to training pictures, uint8 (3, H, W).
        test: applied to test pictures.

    Raises:
        ValueError: see ``find``.
    """
    found = find(root, PICTURES)
    parts = Listed(found.training, training), Listed(found.test, test)
    return Split(*parts, found.classes, found.layout)


_LOOKED_AT = 200
_CLASSES_SHOWN = 20


def listing(split: Split, root: Path) -> list[str]:
    """What was found in a folder of data, in lines: layout, counts, classes, sizes of pictures.

    Raises:
        ValueError: one of the pictures whose size is looked at is none.
    """
    training, test = len(split.training), len(split.test)  # type: ignore[arg-type]
    lines = [f"data from {root}" + (f": {split.layout}" if split.layout else "")]
    if not (isinstance(split.training, Items) and isinstance(split.test, Items)):
        classes = f", {len(split.classes)} classes" if split.classes else ""
        return [*lines, f"  {training} items for training, {test} for test{classes}"]
    lines.append(f"  {training} files for training, {test} for test, {len(split.classes)} classes")
    lines.append(f"  {_sizes(split.training, split.test)}")
    counts = [Counter(label for _, label in part.items) for part in (split.training, split.test)]
    rows = [(name, counts[0][i], counts[1][i]) for i, name in enumerate(split.classes)]
    shown = rows[:_CLASSES_SHOWN]
    width = max(len(one_line(name)) for name, _, _ in shown)
    for name, for_training, for_test in shown:
        lines.append(f"  {one_line(name):<{width}}  {for_training:>7} training {for_test:>7} test")
    if rest := rows[_CLASSES_SHOWN:]:
        some = [for_training for _, for_training, _ in rest]
        lines.append(f"  and {len(rest)} more classes of {min(some)} to {max(some)} for training")
    return lines


def _sizes(*parts: Items) -> str:
    """Width × height of some of the files, by their headers."""
    files = [path for part in parts for path, _ in part.items]
    some = files[:: -(-len(files) // _LOOKED_AT)]
    sizes = [parts[0].size(path) for path in some]
    least, most = (what(sizes, key=lambda size: size[0] * size[1]) for what in (min, max))
    words = " to ".join(f"{w}×{h}" for w, h in dict.fromkeys((least, most)))
    return f"{words} pixels" + ("" if len(some) == len(files) else f" ({len(some)} looked at)")
