"""Global covariance pooling: a ResNet that ends with the root of a covariance, not an average.

As published: the last stage of a ResNet-50 keeps its size (stride 1), a 1×1 convolution reduces
2048 channels to 256 (64 for fine-grained data), and the upper triangle of the root of their
covariance goes into the linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import timm
from pydantic import Field
from torch import Tensor, nn

from matroot.nn import CovariancePooling2d
from matroot.recipes import embedded
from matroot.recipes.data import Split, aircraft, cars, crops, cub, need_root, read, textures
from matroot.recipes.layouts import image_folders
from matroot.recipes.training.configuration import Config


class Settings(Config):
    """Global covariance pooling.

    ``data``: ``"textures"`` (embedded), ``"folder"``, pictures of one's own, or fine-grained:
    ``"cub"`` (birds), ``"aircraft"``, ``"cars"``.

    ``layers``: blocks in the four stages, if not those of the backbone; ``keep_size``: the stages,
    of 2 to 4, whose stride becomes 1.
    """

    data: Literal["textures", "folder", "cub", "aircraft", "cars"]
    # A name of timm's; "hf-hub:…" and "local-dir:…" would read models of anyone.
    backbone: str = Field("resnet50", pattern=r"^[\w.]+$")
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    layers: tuple[int, int, int, int] | None = None
    small_pictures: bool = False
    keep_size: tuple[int, ...] = (4,)
    pooling: Literal["covariance", "average"] = "covariance"
    reduced: int = 256
    size: int = 224
    pretrained: bool = False

    def without_effect(self) -> dict[str, str]:
        """See ``Common``."""
        average = dict.fromkeys(("eps", "reduced"), "pooling=average")
        return super().without_effect() | (average if self.pooling == "average" else {})


def datasets(config: Settings, root: Path | None) -> Split:
    """Training set, test set, names of the classes."""
    if config.data == "textures":
        return textures(config, root)
    readers = {"folder": image_folders, "cub": cub, "aircraft": aircraft, "cars": cars}
    return readers[config.data](need_root(config.data, root), *crops(config.size))


def reader(config: Settings) -> Callable[[Path], Tensor]:
    """What reads a picture as the network takes it in test."""
    if config.data == "textures":
        return lambda path: embedded.as_texture(read(path), config.size)
    _, test = crops(config.size)
    return lambda path: test(read(path))


def build(config: Settings, classes: int, options: dict[str, Any]) -> nn.Module:
    """The network; ``options`` are those of the pooling layer."""
    layers: dict[str, Any] = {} if config.layers is None else {"layers": config.layers}
    model: Any = timm.create_model(
        config.backbone,
        num_classes=classes,
        channels=config.widths,
        pretrained=config.pretrained,
        **layers,
    )
    if config.small_pictures:
        model.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False)
        model.maxpool = nn.Identity()
    for stage in config.keep_size:
        for layer in model.get_submodule(f"layer{stage}").modules():
            if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
                layer.stride = (1, 1)
    if config.pooling == "covariance":
        model.global_pool = CovariancePooling2d(model.num_features, config.reduced, **options)
        model.fc = nn.Linear(model.global_pool.out_features, classes)
    result: nn.Module = model
    return result
