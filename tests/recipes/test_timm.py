"""What docs/timm.md says of timm's models is so: its blocks and its tables."""

import pytest
import timm
import torch

import pages
from matroot.nn import DecorrelatedBatchNorm2d, DecorrelatedBatchNormAct, convert_batchnorm

PAGE = "timm.md"
MODELS = pages.table(PAGE, "model")


SMALL = ("resnet18", "regnety_002", "convnext_atto", "vit_tiny_patch16_224")


def cases(*found):
    """Those with another than a small model are slow."""
    return [
        pytest.param(*case, marks=() if case[0] in SMALL else pytest.mark.slow) for case in found
    ]


@pytest.fixture(scope="module")
def names():
    """What all blocks of the page define, one after the other."""
    found = {}
    for block in pages.blocks(PAGE):
        pages.run(PAGE, block, found)
    return found


def test_the_blocks_of_the_page_run(names):
    converted = [m for m in names["model"].modules() if isinstance(m, DecorrelatedBatchNorm2d)]
    assert [layer.eps for layer in converted] == [1e-2, 1e-2]
    assert [len(group["params"]) > 0 for group in names["optimizer"].param_groups] == [True, True]


@pytest.mark.parametrize(("model", "features", "backbone", "head"), cases(*MODELS))
def test_the_table_of_models(model, features, backbone, head, names):
    with torch.device("meta"):
        made = names["second_order"](model, 1000).eval()
        x = torch.randn(1, 3, 224, 224)
        y = made[0](x)
    assert "×".join(map(str, y.shape[1:])) == features
    counts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (made[0], made[1:])]
    assert [f"{count:.1f}" for count in counts] == [backbone, head]


@pytest.mark.parametrize("model", cases(*((name,) for name, *_ in MODELS)))
def test_forward_and_backward(model, names):
    tokens = "vit" in model or "swin" in model
    size = {"img_size": 64} if tokens else {}
    made = names["second_order"](model, 5, 16, **size)
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    logits = made(x)
    assert logits.shape == (2, 5)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    assert x.grad.isfinite().all()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    # 16·17/2 numbers of a covariance of 16 features.
    assert any(getattr(layer, "in_features", 0) == 136 for layer in made[1:].modules())


def test_other_token_layouts(names):
    made = names["second_order"]("vit_tiny_patch16_224", 5, 16, img_size=32, class_token=False)
    assert made(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert type(made[1]).__name__ == "TokenCovariancePooling"


FAMILIES = {
    "ResNet": "resnet18",
    "ResNeXt": "resnext50_32x4d",
    "EfficientNet": "efficientnet_b0",
    "MobileNetV3": "mobilenetv3_small_050",
    "RegNet": "regnety_002",
    "DenseNet": "densenet121",
    "ConvNeXt": "convnext_atto",
    "ViT": "vit_tiny_patch16_224",
    "DeiT": "deit_tiny_patch16_224",
    "Swin": "swin_tiny_patch4_window7_224",
}


@pytest.mark.parametrize(
    ("family", "layer"),
    [(family, layer) for cell, layer in pages.table(PAGE, "family") for family in cell.split(", ")],
)
def test_the_table_of_whitening(family, layer):
    with torch.device("meta"):
        model = timm.create_model(FAMILIES[family], num_classes=0)
        if layer.startswith("none"):
            with pytest.raises(ValueError, match="found no layer of batch normalisation"):
                convert_batchnorm(model)
            return
        kinds = DecorrelatedBatchNorm2d, DecorrelatedBatchNormAct
        converted = convert_batchnorm(model)
    assert [name for name, m in converted.named_modules() if isinstance(m, kinds)] == [layer]


@pytest.mark.parametrize(
    "model",
    cases(
        *((name,) for name in ("resnet18", "resnext50_32x4d", "convnext_atto", "efficientnet_b0"))
    ),
)
def test_the_last_stage_keeps_its_size(model, names):
    with torch.device("meta"):
        made = names["second_order"](model, 10, output_stride=16).eval()
        assert made[0](torch.randn(1, 3, 224, 224)).shape[2:] == (14, 14)
