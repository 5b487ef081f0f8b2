"""Decorrelated batch normalisation: the first normalisation of a ResNet whitens.

As published: ResNet-18 or -50 for small pictures, whose first convolution is 3×3 with stride 1 and
whose first stage keeps the size; its first batch normalisation becomes ZCA whitening of all
64 channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import timm
from torch import Tensor, nn
from torchvision import datasets as tv
from torchvision.transforms import v2

from matroot.nn import convert_batchnorm
from matroot.recipes import embedded
from matroot.recipes.data import (
    Split,
    Transformed,
    crops,
    need_root,
    no_root,
    read,
    to_numbers,
)
from matroot.recipes.layouts import image_folders
from matroot.recipes.training.configuration import Config

WHITENS = True
"""That there are whitening layers, whose statistics several processes may share."""


class Settings(Config):
    """``data``: ``"digits"`` (embedded), ``"cifar10"``, ``"cifar100"``, or ``"folder"``.

    A folder holds pictures of one's own. ``size`` is that of crops; CIFAR's pictures are 32 wide.
    """

    data: Literal["digits", "folder", "cifar10", "cifar100"]
    depth: Literal[18, 50] = 18
    size: int = 32
    group_size: int | None = None

    def without_effect(self) -> dict[str, str]:
        """See ``Common``."""
        fixed = self.data in ("cifar10", "cifar100")
        return super().without_effect() | ({"size": f"data={self.data}"} if fixed else {})


def datasets(config: Settings, root: Path | None) -> Split:
    """Training set, test set, names of the classes."""
    if config.data == "folder":
        return image_folders(need_root(config.data, root), *crops(config.size))
    if config.data == "digits":
        no_root(config, root)
        # Digits are shifted but not mirrored.
        shift = v2.RandomCrop(config.size, padding=config.size // 8)
        train, test = (embedded.digits(part, config.size) for part in embedded.PARTS)
        return Split(Transformed(train, shift), test, tuple("0123456789"))
    kind = tv.CIFAR10 if config.data == "cifar10" else tv.CIFAR100
    folder = need_root(config.data, root)
    changed = to_numbers(v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip())
    try:
        train = kind(folder, train=True, transform=changed, download=True)
        test = kind(folder, train=False, transform=to_numbers(), download=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{config.data}: not in {folder}, and cannot be downloaded: {error}"
        ) from None
    layout = f"CIFAR-{len(train.classes)}, its own parts"
    return Split(train, test, tuple(train.classes), layout)


def reader(config: Settings) -> Callable[[Path], Tensor]:
    """What reads a picture as the network takes it in test."""
    if config.data == "digits":
        return lambda path: embedded.as_digit(read(path), config.size)
    _, test = crops(config.size)
    if config.data != "folder":
        test = to_numbers(v2.Resize(32), v2.CenterCrop(32))
    return lambda path: test(read(path))


def build(config: Settings, classes: int, options: dict[str, Any]) -> nn.Module:
    """The network; ``options`` are those of the whitening layer."""
    model: nn.Module = timm.create_model(f"resnet{config.depth}", num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return convert_batchnorm(model, group_size=config.group_size, **options)
