"""Data on disk: the folders that the published experiments read, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's channels."""


class Transformed(Dataset[Any]):
    """A data set with its pictures changed."""

    def __init__(self, dataset: Dataset[Any], transform: Callable[[Any], Any]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset does not say that it has one.

    def __getitem__(self, index: int) -> Any:
        x, y = self.dataset[index]
        return self.transform(x), y


def need_root(name: str, root: Path | None) -> Path:
    """The folder of a data set that is not embedded.

    Raises:
        ValueError: none was given, or it is no folder.
    """
    if root is None:
        raise ValueError(f"data {name!r} is read from a folder; give it with --data-root")
    if not root.is_dir():
        raise ValueError(f"data {name!r}: {root} is no folder")
    return root


def to_numbers(*before: Any, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Any:
    """Pictures to normalised float32, after other changes."""
    numbers = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    return v2.Compose([*before, *numbers])


def image_folders(
    root: Path, training: Callable[[Any], Any], test: Callable[[Any], Any]
) -> tuple[ImageFolder, ImageFolder, int]:
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
            found.append(ImageFolder(str(root / part), transform))
        except FileNotFoundError as error:
            raise ValueError(f"{root / part}: {error}") from None
    if found[0].classes != found[1].classes:
        raise ValueError(f"{root}: 'train' and {other!r} have different classes")
    return found[0], found[1], len(found[0].classes)
