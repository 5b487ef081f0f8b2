"""Layers in evaluation: torch.export and ONNX."""

import pytest
import torch

from matroot.nn import DecorrelatedBatchNorm2d, WhiteningColoring2d
from nn.layers import quick, settled
from onnx_runtime import by_onnx_runtime


@pytest.mark.parametrize(
    "instance",
    quick(
        "DecorrelatedBatchNorm2d",
        "DecorrelatedBatchNorm2d-power",
        "CovariancePooling2d",
        "TemporalAttention",
        "WhiteningColoring2d-power",
    ),
)
def test_exported_layers_agree(instance):
    inputs = instance.inputs()
    layer = settled(instance.make(), inputs).eval()
    expected = layer(*inputs)
    program = torch.export.export(layer, inputs)
    torch.testing.assert_close(program.module()(*inputs), expected, rtol=1e-4, atol=1e-4)
    # Other inputs than the traced ones.
    others = instance.inputs(seed=5)
    found = by_onnx_runtime(layer, inputs, others)
    torch.testing.assert_close(found, layer(*others).detach(), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    "instance",
    quick(
        "DecorrelatedBatchNorm1d",
        "DecorrelatedBatchNorm2d-of-few-positions",
        "DecorrelatedBatchNorm2d-whitening",
        "CovariancePooling2d-oas",
        "TemporalCovariancePooling",
        "SecondOrderHead",
        "WhiteningColoring2d",
    ),
)
def test_the_batch_may_be_dynamic(instance):
    inputs = instance.inputs()
    layer = settled(instance.make(), inputs).eval()
    batch = torch.export.Dim("batch", min=2)
    shapes = tuple({0: batch} if len(x) > 1 else None for x in inputs)
    program = torch.export.export(layer, inputs, dynamic_shapes=shapes)
    more = [torch.cat([x, x + 1]) if len(x) > 1 else x for x in inputs]
    torch.testing.assert_close(program.module()(*more), layer(*more), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [64, pytest.param(128, marks=pytest.mark.slow)])
def test_covariances_of_low_rank_export(size):
    """A first layer has 27 inputs per output and 64 channels, and the default ridge of 1e-5."""
    generator = torch.Generator().manual_seed(0)
    whitening = DecorrelatedBatchNorm2d(size).eval()
    mix = torch.randn(size, 27, generator=generator)
    whitening.running_covariance.copy_(mix @ mix.mT / 27)
    x = torch.einsum("ij,njhw->nihw", mix, torch.randn(2, 27, 4, 4, generator=generator))
    content, style = (torch.randn(1, size, k, k, generator=generator) for k in (5, 9))
    for layer, inputs in ((whitening, (x,)), (WhiteningColoring2d(size).eval(), (content, style))):
        expected = layer(*inputs)
        found = torch.export.export(layer, inputs).module()(*inputs)
        assert (found - expected).norm() < 1e-3 * expected.norm()
