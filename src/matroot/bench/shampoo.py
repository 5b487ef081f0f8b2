"""Sizes of the preconditioners that Shampoo keeps of a ResNet-50 and of a small transformer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

BLOCK = 512
"""Rows of the largest preconditioner: larger tensors are cut into blocks."""


def sizes(count: int, seed: int = 0) -> list[int]:
    """So many, drawn from those of both networks without replacement, in random order."""
    found = [
        n for shape in itertools.chain(resnet50(), vit_small()) for n in preconditioners(shape)
    ]
    return random.Random(seed).sample(found, count)


def preconditioners(shape: tuple[int, ...]) -> list[int]:
    """Rows of the matrices for one parameter: one a dimension of each of its blocks.

    References:
        V. Gupta, T. Koren, Y. Singer, Shampoo, arXiv 1802.09568 (one a dimension); R. Anil et al.,
        Scalable second order optimization for deep learning, arXiv 2002.09018 (blocks).
    """
    parts = [[min(BLOCK, d - begin) for begin in range(0, d, BLOCK)] for d in shape]
    return [n for block in itertools.product(*parts) for n in block]


def resnet50() -> Iterator[tuple[int, ...]]:
    """Shapes of the parameters, as in torchvision's ``resnet50``.

    References:
        K. He et al., Deep residual learning for image recognition, CVPR 2016, table 1.
    """

    def convolution(outputs: int, inputs: int, kernel: int) -> Iterator[tuple[int, ...]]:
        yield outputs, inputs, kernel, kernel
        yield from [(outputs,)] * 2  # Weight and bias of the normalisation after it.

    yield from convolution(64, 3, 7)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(width, inputs, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, inputs, 1)
            inputs = 4 * width
    yield from [(1000, inputs), (1000,)]


def vit_small(width: int = 384, depth: int = 12) -> Iterator[tuple[int, ...]]:
    """Shapes of the parameters of ViT-S/16, as in timm's ``vit_small_patch16_224``.

    References:
        H. Touvron et al., Training data-efficient image transformers, ICML 2021, table 1 (DeiT-S).
    """
    yield from [(1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,)]
    for _ in range(depth):
        yield from [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
        yield from [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width)]
        yield (width,)
    yield from [(width,), (width,), (1000, width), (1000,)]
