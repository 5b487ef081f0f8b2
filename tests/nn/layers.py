"""The table of layers for the tests of their common behaviour."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from matroot.nn import (
    CovariancePooling1d,
    CovariancePooling2d,
    CovariancePooling3d,
    DecorrelatedBatchNorm,
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    DecorrelatedBatchNormAct,
    SecondOrderHead,
    TemporalAttention,
    TemporalCovariancePooling,
    TokenCovariancePooling,
    WhiteningColoring2d,
)


@dataclass(frozen=True)
class Instance:
    """How to make a layer, and the shapes of its inputs."""

    name: str
    make: Callable[..., nn.Module]
    shapes: tuple[tuple[int, ...], ...]

    def __str__(self):
        return self.name

    def inputs(self, dtype=torch.float32, seed=0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            (torch.randn(shape, dtype=torch.float64, generator=generator) + 0.3).to(dtype)
            for shape in self.shapes
        )


def _instance(cls, arguments, *shapes, name="", **options):
    def make(**more):
        torch.manual_seed(1)
        return cls(*arguments, **(options | more))

    return Instance(f"{cls.__name__}{name}", make, shapes)


INSTANCES = [
    _instance(DecorrelatedBatchNorm1d, (6,), (20, 6), eps=1e-2),
    _instance(DecorrelatedBatchNorm1d, (6,), (4, 6, 9), eps=1e-2, name="-of-sequences"),
    _instance(DecorrelatedBatchNorm2d, (6,), (4, 6, 5, 3), groups=2, eps=1e-2),
    _instance(DecorrelatedBatchNorm2d, (6,), (9, 6, 2, 2), eps=1e-2, name="-of-few-positions"),
    _instance(
        DecorrelatedBatchNorm2d,
        (6,),
        (4, 6, 3, 3),
        running="whitening",
        eps=1e-2,
        name="-whitening",
    ),
    _instance(DecorrelatedBatchNorm2d, (4,), (4, 4, 3, 3), normalization="power", name="-power"),
    _instance(DecorrelatedBatchNorm3d, (6,), (3, 6, 2, 3, 4), affine=False, eps=1e-2),
    _instance(DecorrelatedBatchNorm, (6,), (4, 6, 9), groups=2, eps=1e-2),
    _instance(
        DecorrelatedBatchNormAct,
        (6,),
        (4, 6, 5, 3),
        groups=2,
        eps=1e-2,
        act=nn.Hardswish(),
        drop=nn.Identity(),
    ),
    _instance(CovariancePooling1d, (4,), (3, 4, 9)),
    _instance(CovariancePooling2d, (4,), (3, 4, 4, 3)),
    _instance(CovariancePooling2d, (5, (4, 3)), (3, 5, 4, 3), name="-reduced"),
    _instance(CovariancePooling2d, (4,), (3, 4, 4, 3), normalization="power", name="-power"),
    _instance(CovariancePooling2d, (4,), (3, 4, 4, 3), normalization="none", name="-none"),
    _instance(CovariancePooling2d, (4,), (3, 4, 2, 3), shrinkage="oas", scaled=True, name="-oas"),
    _instance(CovariancePooling3d, (4,), (3, 4, 2, 2, 3), center=False, triangle=False, eps=1e-3),
    _instance(TokenCovariancePooling, (4,), (3, 10, 4)),
    _instance(SecondOrderHead, (5, 3, 4), (3, 12, 5), prefix_tokens=2, eps=1e-3),
    _instance(TemporalAttention, (4,), (2, 4, 5, 3, 2), kernel_size=3),
    _instance(TemporalCovariancePooling, (5, 4), (2, 5, 4, 3, 2), eps=1e-3),
    _instance(WhiteningColoring2d, (4,), (2, 4, 4, 3), (1, 4, 3, 5), eps=1e-2),
    _instance(
        WhiteningColoring2d,
        (4,),
        (2, 4, 4, 3),
        (1, 4, 3, 5),
        normalization="power",
        name="-power",
    ),
    _instance(
        WhiteningColoring2d,
        (4,),
        (2, 4, 4, 3),
        (2, 4, 3, 5),
        groups=2,
        eps=1e-2,
        blending=0.6,
        learn_blending=True,
        name="-learned",
    ),
]


def quick(*names: str):
    """The table as parameters, these layers in every run, the others only in the slow tests."""
    assert set(names) <= {str(instance) for instance in INSTANCES}
    return [
        pytest.param(i, id=str(i), marks=() if str(i) in names else pytest.mark.slow)
        for i in INSTANCES
    ]


def settled(layer: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The layer with parameters unlike the initial ones and statistics of a few batches."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.rand(p.shape, dtype=torch.float64, generator=generator))
        layer.train()
        for _ in range(3):
            layer(*inputs)
    return layer


def correlated(*shape, seed=0, dtype=torch.float64):
    """Random features, mixed over the channels (dimension 1) and shifted."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(shape[1], shape[1], dtype=torch.float64, generator=generator)
    x = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return (torch.einsum("ij,nj...->ni...", mix, x) + 2).to(dtype)


def randomize(layer, seed=1):
    """The layer with parameters between 0.5 and 1.5."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.rand(p.shape, dtype=torch.float64, generator=generator) + 0.5)
    return layer
