"""Data sets that come with installed packages, so that every application trains without downloads.

``digits``: scanned digits (scikit-learn). ``textures``: patches of scikit-image's pictures, train
and test from separate regions. ``motions``: clips that a moving camera takes of a photograph, train
and test from different photographs. ``photos``: photographs, and styles for them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from matroot.recipes.images import STYLES, picture

Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")

TEXTURES = (
    "brick",
    "grass",
    "gravel",
    "coins",
    "moon",
    "hubble_deep_field",
    "retina",
    "immunohistochemistry",
    "cell",
    "page",
)
MOTIONS = (
    "still",
    "pan left",
    "pan right",
    "pan up",
    "pan down",
    "zoom in",
    "zoom out",
    "turn left",
    "turn right",
    "shear",
)
SCENES: dict[Part, tuple[str, ...]] = {
    "train": (
        "astronaut",
        "coffee",
        "brick",
        "hubble_deep_field",
        "grass",
        "immunohistochemistry",
        "rocket",
    ),
    "test": ("chelsea", "coins", "gravel", "camera"),
}


CONTENTS: dict[Part, tuple[str, ...]] = {
    "train": ("astronaut", "coffee"),
    "test": ("chelsea", "rocket"),
}


def photos(part: Part) -> tuple[list[Tensor], list[Tensor]]:
    """Photographs, and pictures whose style they are given: bricks, grass, gravel, galaxies.

    Photographs of train and test differ; styles are the upper 55 % and the lower 45 % of a picture.

    Returns:
        Photographs and styles, uint8 (3, H, W).
    """
    styles = []
    for name in STYLES:
        whole = picture(name)
        height = int(0.55 * whole.shape[1])
        styles.append(whole[:, :height] if part == "train" else whole[:, height:])
    return [picture(name) for name in CONTENTS[part]], styles


def digits(part: Part, size: int = 16) -> TensorDataset:
    """1,797 handwritten digits of 8×8 pixels, every fourth of them for test.

    Args:
        part: ``"train"`` or ``"test"``.
        size: pixels that they are scaled up to.

    Returns:
        Pictures, float32 (3, size, size) in [0, 1], and classes 0 … 9.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.from_numpy(data.images).float()[:, None] / 16
    y = torch.from_numpy(data.target).long()
    test = torch.arange(len(x)) % 4 == 3
    chosen = test if part == "test" else ~test
    return TensorDataset(_enlarged(x[chosen], size), y[chosen])


def as_digit(image: Tensor, size: int = 32) -> Tensor:
    """A picture of a light digit on black, uint8 (3, H, W), as one of ``digits``."""
    grey = image.float().mean(0)[None, None] / 255
    return _enlarged(F.interpolate(grey, (8, 8), mode="area"), size)[0]


def _enlarged(x: Tensor, size: int) -> Tensor:
    """Grey pictures (N, 1, 8, 8) as (N, 3, size, size)."""
    return F.interpolate(x, (size, size), mode="bilinear").expand(-1, 3, -1, -1)


def textures(part: Part, size: int = 32, count: int = 200) -> TensorDataset:
    """Grey patches of ten pictures; the class is the picture.

    Train and test patches lie in the upper 60 % and the lower 35 % of a picture.

    Args:
        part: ``"train"`` or ``"test"``.
        size: pixels of a patch.
        count: patches of each picture.

    Returns:
        Patches, float32 (3, size, size) of equal channels, each with mean 0 and standard deviation
        1, so that brightness and contrast do not give the class away; and classes 0 … 9.
    """
    generator = torch.Generator().manual_seed(0 if part == "train" else 1)
    x, y = [], []
    for label, name in enumerate(TEXTURES):
        grey = (picture(name).float() / 255).mean(0)
        height = len(grey)
        region = grey[: int(0.6 * height)] if part == "train" else grey[int(0.65 * height) :]
        for _ in range(count):
            i, j = (int(torch.randint(s - size, (), generator=generator)) for s in region.shape)
            x.append(_standardised(region[i : i + size, j : j + size]))
            y.append(label)
    return TensorDataset(torch.stack(x)[:, None].expand(-1, 3, -1, -1), torch.tensor(y))


def as_texture(image: Tensor, size: int = 32) -> Tensor:
    """The middle of a picture, uint8 (3, H, W), as one of ``textures``; its shape (3, size, size).

    Raises:
        ValueError: the picture is smaller.
    """
    height, width = image.shape[1:]
    if min(height, width) < size:
        raise ValueError(f"{width} x {height} pixels; a texture takes {size} x {size}")
    i, j = (height - size) // 2, (width - size) // 2
    grey = image[:, i : i + size, j : j + size].float().mean(0) / 255
    return _standardised(grey).expand(3, -1, -1)


def _standardised(patch: Tensor) -> Tensor:
    return (patch - patch.mean()) / patch.std().clamp(min=0.02)


def motions(part: Part, frames: int = 8, size: int = 32, count: int | None = None) -> TensorDataset:
    """Clips that a moving camera takes of photographs; the class is its motion.

    Each is a window of a photograph that moves, grows, turns or slants at a speed drawn at random.
    Windows without enough edges to show it are drawn again.

    Args:
        part: ``"train"`` or ``"test"``, of different photographs.
        frames: pictures of a clip.
        size: pixels of a picture.
        count: clips of each motion; None: 180 for training, 60 for test.

    Returns:
        Clips, float32 (3, frames, size, size) in [0, 1], and classes 0 … 9.
    """
    generator = torch.Generator().manual_seed(0 if part == "train" else 1)

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    scenes = [picture(name).float() / 255 for name in SCENES[part]]
    if count is None:
        count = {"train": 180, "test": 60}[part]
    x, y = [], []
    for label, name in enumerate(MOTIONS):
        for i in range(count):
            scene = scenes[i % len(scenes)]
            matrices = _camera(name, frames, between(0.6, 1.4))
            height, width = scene.shape[1:]
            while True:
                # A window of some 100 pixels, with room to move on every side.
                half = between(45, 60)
                middle = between(2 * half, width - 2 * half), between(2 * half, height - 2 * half)
                clip = _clip(scene, matrices, half, middle, size)
                if _shows_motion(clip):
                    break
            x.append(clip)
            y.append(label)
    return TensorDataset(torch.stack(x), torch.tensor(y))


def _shows_motion(clip: Tensor) -> bool:
    """Whether the middle picture has edges in all directions, unlike sky or a mast."""
    middle = clip[:, clip.shape[1] // 2].mean(0)
    edges = torch.stack(torch.gradient(middle)).flatten(1)
    return bool(torch.linalg.eigvalsh(edges @ edges.T / edges.shape[1])[0] > 0.02**2)


def _camera(motion: str, frames: int, speed: float) -> Tensor:
    """The window in each frame, as affine maps of [−1, 1]², shape (frames, 2, 3)."""
    t = torch.linspace(-0.5, 0.5, frames) * speed
    zero, one = torch.zeros_like(t), torch.ones_like(t)
    turn = t * (math.pi / 3)
    scale = {"zoom in": torch.exp(-0.7 * t), "zoom out": torch.exp(0.7 * t)}.get(motion, one)
    angle = {"turn left": turn, "turn right": -turn}.get(motion, zero)
    slant = 0.8 * t if motion == "shear" else zero
    right = {"pan left": -0.8 * t, "pan right": 0.8 * t}.get(motion, zero)
    down = {"pan up": -0.8 * t, "pan down": 0.8 * t}.get(motion, zero)
    rows = [
        torch.stack([scale * angle.cos(), slant - angle.sin(), right], -1),
        torch.stack([angle.sin(), scale * angle.cos(), down], -1),
    ]
    return torch.stack(rows, 1)


def _clip(
    scene: Tensor, matrices: Tensor, half: float, middle: tuple[float, float], size: int
) -> Tensor:
    """The pictures in the windows, (3, frames, size, size)."""
    grid = F.affine_grid(matrices, [len(matrices), 1, size, size], align_corners=False)
    height, width = scene.shape[1:]
    place = grid * half + torch.tensor(middle)
    place = 2 * place / torch.tensor([width, height]) - 1
    shown = F.grid_sample(
        scene.expand(len(matrices), -1, -1, -1),
        place,
        padding_mode="reflection",
        align_corners=False,
    )
    return shown.transpose(0, 1)
