"""Covariance pooling of video: a ResNet on every frame, one covariance over the clip.

As published (temporal-attentive covariance pooling, with TEA's motion excitation in the network):
2048 channels of each frame are reduced to 256 and then 128, frames attend to those before them, and
the upper triangle of the root of the covariance over all frames and positions is classified.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import Field
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from matroot.nn import TemporalCovariancePooling
from matroot.recipes import clips, embedded
from matroot.recipes.data import Split, Transformed, crops, need_root, no_root
from matroot.recipes.training.configuration import Config


class Settings(Config):
    """``data``: ``"motions"`` (embedded), ``"hmdb51"`` or ``"ucf101"``, their ``split`` 1 to 3.

    ``layers``: blocks of each stage, None for those of the backbone. ``excitation``: whether its
    blocks see the frame before and the frame after. ``differences``: the first convolution is
    given each frame and its change to the next; not published, meant for shallow networks.
    ``small_pictures``: three 3×3 convolutions at the start, without pooling after them.
    """

    data: Literal["motions", "hmdb51", "ucf101"]
    split: Literal[1, 2, 3] = 1
    # A name of timm's; "hf-hub:…" and "local-dir:…" would read models of anyone.
    backbone: str = Field("resnet50", pattern=r"^[\w.]+$")
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    layers: tuple[int, int, int, int] | None = None
    small_pictures: bool = False
    excitation: bool = True
    differences: bool = False
    pooling: Literal["covariance", "average"] = "covariance"
    reduced: tuple[int, ...] = (256, 128)
    frames: int = 8
    size: int = 224
    pretrained: bool = False

    def without_effect(self) -> dict[str, str]:
        """See ``Common``."""
        found = super().without_effect()
        if self.pooling == "average":
            found |= dict.fromkeys(("eps", "reduced"), "pooling=average")
        if self.data == "motions":
            found["split"] = "data=motions"
        return found


def datasets(config: Settings, root: Path | None) -> Split:
    """Training set, test set, number of classes."""
    if config.data == "motions":
        no_root(config, root)
        train, test = (embedded.motions(p, config.frames, config.size) for p in embedded.PARTS)
        return Transformed(train, _recoloured), Transformed(test, _equal), len(embedded.MOTIONS)
    read = clips.hmdb51 if config.data == "hmdb51" else clips.ucf101
    folder = need_root(config.data, root)
    return read(folder, config.frames, config.split, *crops(config.size, least=0.25))


def _equal(clip: Tensor) -> Tensor:
    """Mean 0 and deviation 1: brightness and contrast do not give the class away."""
    return (clip - clip.mean()) / clip.std()


def _recoloured(clip: Tensor) -> Tensor:
    """Variety from few photographs: channels in random order, perhaps as a negative."""
    sign = 1 - 2 * torch.randint(2, ())
    return sign * _equal(clip)[torch.randperm(3)]


class Excitation(nn.Module):
    """Give a network of single frames access to motion.

    Channels are weighed by the change from each frame to the next, averaged over the positions:
    x + x·(2σ(w) − 1). Then a convolution over time, channel by channel, adds up three frames; it
    starts as a shift: an eighth of the channels comes from the frame before, an eighth from the
    frame after.

    Args:
        channels: C.
        frames: T; the input holds the frames of a clip one after the other.
        reduction: the change is computed in C / reduction channels.
    """

    def __init__(self, channels: int, frames: int, reduction: int = 16) -> None:
        super().__init__()
        self.frames = frames
        few = max(channels // reduction, 1)
        self.reduce: nn.Sequential = nn.Sequential(
            nn.Conv2d(channels, few, 1, bias=False), nn.BatchNorm2d(few)
        )
        self.follow: nn.Conv2d = nn.Conv2d(few, few, 3, padding=1, groups=few, bias=False)
        self.expand: nn.Linear = nn.Linear(few, channels)
        time = torch.zeros(3, channels, 1, 1)
        eighth = channels // 8
        time[0, :eighth] = 1
        time[2, eighth : 2 * eighth] = 1
        time[1, 2 * eighth :] = 1
        self.time: nn.Parameter = nn.Parameter(time)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N·T, C, H, W) in and out."""
        clips = (-1, self.frames)
        less = self.reduce(x)
        now, following = (y.unflatten(0, clips).mean((3, 4)) for y in (less, self.follow(less)))
        # Nothing follows the last frame.
        change = F.pad(following[:, 1:] - now[:, :-1], (0, 0, 0, 1))
        weight = 2 * torch.sigmoid(self.expand(change)).flatten(0, 1)[..., None, None]
        y = torch.unflatten(x * weight, 0, clips)
        around = F.pad(y, (0, 0, 0, 0, 0, 0, 1, 1))
        mixed = sum(w * around[:, i : i + self.frames] for i, w in enumerate(self.time))
        assert isinstance(mixed, Tensor)
        return mixed.flatten(0, 1)


class VideoNetwork(nn.Module):
    """A network of pictures on every frame, pooling over the clip, and a linear layer."""

    def __init__(
        self, frame_network: Any, pooling: nn.Module, fc: nn.Linear, differences: bool
    ) -> None:
        super().__init__()
        self.differences = differences
        self.frame_network = frame_network
        self.pooling = pooling
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, 3, T, H, W) to logits."""
        pictures = _with_differences(x) if self.differences else x
        pictures = pictures.transpose(1, 2).flatten(0, 1)
        features = self.frame_network.forward_features(pictures)
        clips = features.unflatten(0, (-1, x.shape[2])).transpose(1, 2)
        logits: Tensor = self.fc(self.pooling(clips))
        return logits


def _with_differences(x: Tensor) -> Tensor:
    """(N, 3, T, H, W) to (N, 6, T, H, W); the last frame does not change."""
    return torch.cat([x, F.pad(x.diff(dim=2), (0, 0, 0, 0, 0, 1))], 1)


def build(config: Settings, classes: int, options: dict[str, Any]) -> nn.Module:
    """The network; ``options`` are those of the pooling layer."""
    shape: dict[str, Any] = {"channels": config.widths, "in_chans": 6 if config.differences else 3}
    if config.small_pictures:
        shape |= {"stem_type": "deep", "stem_width": config.widths[0]}  # 3×3, not 7×7.
    if config.layers is not None:
        shape["layers"] = config.layers
    network: Any = timm.create_model(config.backbone, config.pretrained, num_classes=0, **shape)
    if config.small_pictures:
        network.maxpool = nn.Identity()
    if config.excitation:
        for block in list(network.modules()):
            if isinstance(block, (BasicBlock, Bottleneck)):
                inner: Any = block.conv2
                motion = Excitation(inner.in_channels, config.frames)
                block.set_submodule("conv2", nn.Sequential(motion, inner))
    width = network.num_features
    if config.pooling == "average":
        average = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
        return VideoNetwork(network, average, nn.Linear(width, classes), config.differences)
    if options.get("normalization") == "power":
        options = options | {"eps": 0.0}  # No root, no ridge.
    pooling = TemporalCovariancePooling(width, config.reduced, **options)
    fc = nn.Linear(pooling.out_features, classes)
    return VideoNetwork(network, pooling, fc, config.differences)
