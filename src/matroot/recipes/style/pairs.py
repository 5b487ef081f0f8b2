"""Pairs of photographs and styles, and pictures as the network's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from matroot.recipes import embedded
from matroot.recipes.data import Split, need_root, no_root
from matroot.recipes.images import load_image
from matroot.recipes.style.settings import Settings


class Files(Sequence[Tensor]):
    """The pictures in a folder, read when asked for, uint8 (3, H, W)."""

    def __init__(self, folder: Path) -> None:
        known = Image.registered_extensions()
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        self.files: list[Path] = [file for file in found if file.suffix.lower() in known]
        if not self.files:
            raise ValueError(f"{folder}: expected a folder of pictures")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        return load_image(self.files[index])[0]


class Pairs(Dataset[Any]):
    """A photograph and a style for each index, float32 (3, size, size) in [−1, 1].

    The shorter side becomes ``test_size``. In training the style and both crops are drawn at
    random; in test each photograph meets each style.
    """

    def __init__(
        self,
        photographs: Sequence[Tensor],
        styles: Sequence[Tensor],
        config: Settings,
        training: bool,
    ) -> None:
        self.photographs = photographs
        self.styles = styles
        self.training = training
        self.length: int = config.pairs if training else len(photographs) * len(styles)
        crop = [v2.RandomCrop(config.size), v2.RandomHorizontalFlip()]
        if not training:
            crop = [v2.CenterCrop(config.test_size)]
        self.transform: v2.Compose = v2.Compose([v2.Resize(config.test_size), *crop])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        which = divmod(index, len(self.styles))
        if self.training:
            which = index % len(self.photographs), int(torch.randint(len(self.styles), ()))
        pair = self.photographs[which[0]], self.styles[which[1]]
        x, y = (from_bytes(self.transform(picture)) for picture in pair)
        return x, y


def from_bytes(picture: Tensor) -> Tensor:
    """uint8 to float32 in [−1, 1]."""
    return picture.float() / 127.5 - 1


def to_bytes(x: Tensor) -> Tensor:
    """[−1, 1] to uint8."""
    return ((x + 1) * 127.5).round().to(torch.uint8)


def datasets(config: Settings, root: Path | None) -> Split:
    """Training pairs, test pairs, and 0: there are no classes."""
    found: list[tuple[Sequence[Tensor], Sequence[Tensor]]] = []
    if config.data == "photos":
        no_root(config, root)
        # Once, not at every crop.
        resize = v2.Resize(config.test_size)
        for part in embedded.PARTS:
            photographs, styles = embedded.photos(part)
            found.append(([resize(x) for x in photographs], [resize(x) for x in styles]))
    else:
        folder = need_root(config.data, root)
        found = [(Files(folder / f"{p}A"), Files(folder / f"{p}B")) for p in embedded.PARTS]
    training, test = (Pairs(*pictures, config, i == 0) for i, pictures in enumerate(found))
    return training, test, 0
