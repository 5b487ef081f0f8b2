"""Second-order vision transformer: the class token and a covariance of the visual tokens.

So-ViT (arXiv 2104.10935) with the published depths, widths and head. Its first layers are simpler
than the published ones: 3×3 convolutions of stride 2, in place of blocks of a residual network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from matroot.nn import SecondOrderHead
from matroot.recipes import embedded
from matroot.recipes.data import Split, crops, need_root, read, textures
from matroot.recipes.layouts import image_folders
from matroot.recipes.training.configuration import Config


class Settings(Config):
    """``data``: ``"textures"`` (embedded) or ``"folder"``, pictures of one's own.

    ``features``: width of the visual tokens in the covariance. ``halvings``: convolutions of
    stride 2 before the transformer; four make 14×14 tokens of 224×224 pixels. ``head``:
    ``"class-token"`` trains the same transformer without the second-order part.
    """

    data: Literal["textures", "folder"]
    depth: int
    width: int
    heads: int
    mlp_ratio: float
    features: int
    halvings: int = 4
    positions: Literal["fixed", "learned"] = "fixed"
    head: Literal["second-order", "class-token"] = "second-order"
    drop_path: float = 0.0
    size: int = 224

    def without_effect(self) -> dict[str, str]:
        """See ``Common``."""
        plain = dict.fromkeys(("eps", "features"), "head=class-token")
        return super().without_effect() | (plain if self.head == "class-token" else {})


def datasets(config: Settings, root: Path | None) -> Split:
    """Training set, test set, names of the classes."""
    if config.data == "textures":
        return textures(config, root)
    return image_folders(need_root(config.data, root), *crops(config.size))


def reader(config: Settings) -> Callable[[Path], Tensor]:
    """What reads a picture as the network takes it in test."""
    if config.data == "textures":
        return lambda path: embedded.as_texture(read(path), config.size)
    _, test = crops(config.size)
    return lambda path: test(read(path))


def build(config: Settings, classes: int, options: dict[str, Any]) -> nn.Module:
    """The network; ``options`` are those of the pooling layer."""
    second_order = config.head == "second-order"
    model: Any = VisionTransformer(
        config.size,
        patch_size=1,  # Of the convolutions' output.
        num_classes=classes,
        global_pool="" if second_order else "token",
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        no_embed_class=True,
        drop_path_rate=config.drop_path,
        embed_layer=partial(HybridEmbed, backbone=_convolutions(config)),
    )
    if config.positions == "fixed":
        places = build_sincos2d_pos_embed(model.patch_embed.grid_size, config.width)
        model.pos_embed = nn.Parameter(places[None], requires_grad=False)
    if second_order:
        model.head = SecondOrderHead(config.width, classes, features=config.features, **options)
    result: nn.Module = model
    return result


def _convolutions(config: Settings) -> nn.Module:
    """Each halves the size; channels double up to half the width of a token."""
    widths = [3, *(config.width >> i for i in range(config.halvings, 0, -1))]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False))
        layers.append(nn.BatchNorm2d(after))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
