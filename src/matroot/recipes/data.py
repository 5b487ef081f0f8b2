"""Data sets on disk, laid out as the published experiments read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import FGVCAircraft, ImageFolder, StanfordCars
from torchvision.transforms import v2

from matroot.recipes import embedded
from matroot.recipes.images import load_image

Transform = Callable[[Any], Any]
Split = tuple[Dataset[Any], Dataset[Any], int]
"""Training set, test set, number of classes."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels."""


class Transformed(Dataset[Any]):
    """A data set whose pictures are transformed."""

    def __init__(self, dataset: Dataset[Any], transform: Transform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset does not say that it has one.

    def __getitem__(self, index: int) -> Any:
        x, y = self.dataset[index]
        return self.transform(x), y


def need_root(name: str, root: Path | None) -> Path:
    """The folder of a data set that is not embedded.

    Raises:
        ValueError: none was given, or it is not a folder.
    """
    if root is None:
        raise ValueError(f"data {name!r} is read from a folder; give it with --data-root")
    if not root.is_dir():
        raise ValueError(f"data {name!r}: {root} is not a folder")
    return root


def no_root(config: Any, root: Path | None) -> None:
    """Refuse a folder that would not be used.

    Args:
        config: settings of an application whose ``data`` are embedded.
        root: what was given as a folder of data.

    Raises:
        ValueError: one was given.
    """
    if root is not None:
        kinds = get_args(type(config).model_fields["data"].annotation)
        others = " or ".join(kind for kind in kinds if kind != config.data)
        raise ValueError(
            f"data {config.data!r} are embedded, {root} would go unused; say what it holds "
            f"(--set data={others}), or leave out --data-root"
        )


def to_numbers(*before: Any, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Any:
    """Pictures to normalised float32, after other changes."""
    numbers = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([*before, *numbers])


def crops(size: int, least: float = 0.08) -> tuple[Transform, Transform]:
    """The usual transforms of photographs: random crops, mirrored at random; for test the middle.

    Args:
        size: pixels of a side.
        least: smallest share of the picture that a random crop covers.
    """
    changed = to_numbers(v2.RandomResizedCrop(size, (least, 1.0)), v2.RandomHorizontalFlip())
    return changed, to_numbers(v2.Resize(size * 8 // 7), v2.CenterCrop(size))


def textures(config: Any, root: Path | None) -> Split:
    """``embedded.textures`` of ``config.size``, mirrored at random for training.

    Raises:
        ValueError: a folder is given.
    """
    no_root(config, root)
    turn = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()])
    train, test = (embedded.textures(part, config.size) for part in embedded.PARTS)
    return Transformed(train, turn), test, len(embedded.TEXTURES)


def read(path: str | Path) -> Tensor:
    """The colours of a picture, uint8 (3, H, W); ValueError for any other file."""
    return load_image(path)[0]


def lines(file: Path, count: int) -> list[list[str]]:
    """The words of each line that is not empty.

    Args:
        file: the list.
        count: how many words each must have.

    Raises:
        ValueError: there is no such text file, or a line has another number of words.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected a list of the data set ({error})") from None
    found = [line.split() for line in text.splitlines() if line.strip()]
    if wrong := next((words for words in found if len(words) != count), None):
        raise ValueError(f"{file}: line {' '.join(wrong)[:80]!r}; expected {count} words")
    return found


def inside(folder: Path, name: str) -> Path:
    """``folder/name``.

    Raises:
        ValueError: the name, which a file gave, leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"{name!r} in a list of {folder} leads out of it")
    return folder / path


class Listed(Dataset[Any]):
    """Pictures given by their paths."""

    def __init__(self, items: Sequence[tuple[Path, int]], transform: Transform) -> None:
        self.items = items
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.items[index]
        return self.transform(read(path)), label


def cub(root: Path, training: Transform, test: Transform) -> Split:
    """CUB-200-2011 as it is unpacked: ``CUB_200_2011/images/CLASS/NAME.jpg`` and four lists.

    Args:
        root: that folder, or the one it lies in.
        training: applied to training pictures, uint8 (3, H, W).
        test: applied to test pictures.

    Raises:
        ValueError: a list is missing or does not fit the others.
    """
    folder = root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root
    names, labels, parts, classes = (
        dict(lines(folder / f"{name}.txt", 2))
        for name in ("images", "image_class_labels", "train_test_split", "classes")
    )
    if not names.keys() == labels.keys() == parts.keys():
        raise ValueError(f"{folder}: images, labels and split name different pictures")
    if unknown := set(labels.values()) - classes.keys():
        raise ValueError(f"{folder}: classes.txt has no class {', '.join(sorted(unknown))}")
    if not set(parts.values()) <= {"0", "1"}:
        raise ValueError(f"{folder / 'train_test_split.txt'}: expected lines 'NUMBER 0' or 1")
    pictures = need_root("cub", folder / "images")
    order = {key: i for i, key in enumerate(classes)}
    items = {
        part: [
            (inside(pictures, name), order[labels[key]])
            for key, name in names.items()
            if parts[key] == part
        ]
        for part in ("1", "0")
    }
    if not all(items.values()):
        raise ValueError(f"{folder / 'train_test_split.txt'}: expected pictures of both parts")
    return Listed(items["1"], training), Listed(items["0"], test), len(classes)


def aircraft(root: Path, training: Transform, test: Transform) -> Split:
    """FGVC-Aircraft's variants, from ``root/fgvc-aircraft-2013b`` as it is unpacked.

    It is not downloaded: there is no published checksum. Arguments and errors are those of ``cub``.
    """
    name = "fgvc-aircraft-2013b"
    sets = _torchvision(FGVCAircraft, root, name, ("trainval", "test"))
    need_root("aircraft", root / name / "data/images")
    for dataset, transform in zip(sets, (training, test), strict=True):
        dataset.transform = transform
        for path in dataset._image_files:
            inside(root, Path(path).relative_to(root).as_posix())
    return sets[0], sets[1], len(sets[0].classes)


def cars(root: Path, training: Transform, test: Transform) -> Split:
    """Stanford Cars, from ``root/stanford_cars``, with the labels of the test set.

    Arguments and errors are those of ``cub``.
    """
    sets = _torchvision(StanfordCars, root, "stanford_cars", ("train", "test"))
    classes = len(sets[0].classes)
    for dataset, transform in zip(sets, (training, test), strict=True):
        dataset.transform = transform
        # torchvision does not check what these files name.
        for path, label in dataset._samples:
            inside(root, Path(path).relative_to(root).as_posix())
            if not 0 <= label < classes:
                raise ValueError(f"{path}: class {label + 1}; expected 1 to {classes}")
    return sets[0], sets[1], classes


def _torchvision(kind: Any, root: Path, folder: str, parts: tuple[str, str]) -> list[Any]:
    """The two parts of one of torchvision's data sets."""
    try:
        sets = [kind(root, split=part, loader=read) for part in parts]
    except Exception as error:  # The reader of .mat files raises many kinds.
        message = " ".join(str(error).split())
        raise ValueError(f"{root}: expected {folder} in it as it is unpacked ({message})") from None
    if not all(len(part) for part in sets):
        raise ValueError(f"{root / folder}: expected pictures in both {' and '.join(parts)}")
    return sets


def image_folders(root: Path, training: Transform, test: Transform) -> Split:
    """``root/train/CLASS/*.jpg`` and ``root/val/CLASS/*.jpg`` (or ``test``), as ImageNet is kept.

    Raises:
        ValueError: a part is missing or empty, or their classes differ.
    """
    other = "val" if (root / "val").is_dir() else "test"
    found = []
    for part, transform in (("train", training), (other, test)):
        if not (root / part).is_dir():
            raise ValueError(f"{root}: expected the folders 'train' and 'val' (or 'test')")
        try:
            found.append(ImageFolder(str(root / part), transform, loader=read))
        except FileNotFoundError as error:
            raise ValueError(f"{root / part}: {error}") from None
    if found[0].classes != found[1].classes:
        raise ValueError(f"{root}: 'train' and {other!r} have different classes")
    return found[0], found[1], len(found[0].classes)
