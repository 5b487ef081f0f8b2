"""The generator of pictures in a style, and the discriminator."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from matroot.nn import WhiteningColoring2d
from matroot.recipes.style.settings import Settings


def _convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    padding = (size - 1) // 2
    return nn.Conv2d(before, after, size, stride, padding, padding_mode="reflect")


class Residual(nn.Module):
    """x + two convolutions of x, with instance normalisation or without."""

    def __init__(self, channels: int, normalized: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers.append(_convolution(channels, channels, 3))
            if normalized:
                layers.append(nn.InstanceNorm2d(channels, affine=True))
            layers.append(nn.ReLU())
        self.layers: nn.Sequential = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """The shape of ``x``."""
        y: Tensor = x + self.layers(x)
        return y


class Generator(nn.Module):
    """Make a picture with the content of one and the style of another."""

    def __init__(self, config: Settings, options: dict[str, Any]) -> None:
        super().__init__()
        w = config.width
        widths = (3, w, 2 * w, 4 * w)
        kernels = ((7, 1), (4, 2), (4, 2))
        content: list[nn.Module] = []
        style: list[nn.Module] = []
        for (before, after), (size, stride) in zip(
            itertools.pairwise(widths), kernels, strict=True
        ):
            content += [_convolution(before, after, size, stride)]
            content += [nn.InstanceNorm2d(after, affine=True), nn.ReLU()]
            style += [_convolution(before, after, size, stride), nn.LeakyReLU(0.2)]
        self.content: nn.Sequential = nn.Sequential(
            *content, *(Residual(4 * w, True) for _ in range(config.blocks))
        )
        # No normalisation, which would remove the style; no pooling; no activation at the end.
        self.style: nn.Sequential = nn.Sequential(*style[:-1])
        self.looks: nn.ModuleList = nn.ModuleList(
            nn.Conv2d(4 * w, 4 * w, 1) for _ in range(config.transforms)
        )
        self.transforms: nn.ModuleList = nn.ModuleList(
            WhiteningColoring2d(4 * w, learn_blending=True, **options)
            for _ in range(config.transforms)
        )
        self.mixers: nn.ModuleList = nn.ModuleList(
            Residual(4 * w, False) for _ in range(config.transforms)
        )
        self.decoder: nn.Sequential = nn.Sequential(
            nn.ConvTranspose2d(4 * w, 2 * w, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * w, w, 4, 2, 1),
            nn.ReLU(),
            _convolution(w, 3, 7),
        )
        self.analysis: nn.Module | None = None
        self.synthesis: nn.Module | None = None
        if config.sweeps:
            self.analysis = _convolution(3, config.filters, 5)
            self.synthesis = _convolution(config.filters, 3, 5)
        self.sweeps: nn.ModuleList = nn.ModuleList(
            WhiteningColoring2d(config.filters, learn_blending=True, **options)
            for _ in range(config.sweeps)
        )

    def decode(self, content: Tensor, style: Tensor, picture: Tensor) -> Tensor:
        """A picture of this content in this style, of shape (N, 3, H, W).

        Args:
            content: ``self.content`` of the photograph.
            style: ``self.style`` of the style.
            picture: the style itself, for the sweeps.
        """
        y: Tensor = content
        for look, transform, mixer in zip(self.looks, self.transforms, self.mixers, strict=True):
            y = mixer(transform(y, look(style)))
        y = self.decoder(y)
        if self.analysis is not None and self.synthesis is not None:
            goal = self.analysis(picture)
            for sweep in self.sweeps:
                y = self.synthesis(sweep(self.analysis(y), goal))
        return y


class Discriminator(nn.Module):
    """How real each patch looks, at the full size and at half of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.scales: nn.ModuleList = nn.ModuleList()
        for _ in range(2):
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise(widths):
                layers += [_convolution(before, after, 4, 2), nn.LeakyReLU(0.2)]
            self.scales.append(nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 1)))

    def error(self, x: Tensor, wanted: float) -> Tensor:
        """The least-squares loss of LSGAN."""
        loss = x.new_zeros(())
        for scale in self.scales:
            loss = loss + (scale(x) - wanted).square().mean()
            x = F.avg_pool2d(x, 2)
        return loss
