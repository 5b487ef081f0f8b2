"""The networks of the applications: published sizes, and their parts."""

import pytest
import torch

from matroot.nn import CovariancePooling2d, DecorrelatedBatchNorm2d
from matroot.recipes import dbn, gcp, sovit, video
from matroot.recipes.methods import layer_options
from matroot.recipes.training.configuration import load_config


def test_the_published_networks():
    options = layer_options("mpa", None, 1e-2)
    network = dbn.build(load_config("dbn", "cifar10-resnet18"), 10, options)
    assert isinstance(network.bn1, DecorrelatedBatchNorm2d)
    assert (network.bn1.groups, network.bn1.eps) == (1, 1e-2)
    assert network.conv1.stride == (1, 1)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    network = gcp.build(load_config("gcp", "imagenet-resnet50"), 1000, layer_options("mpa"))
    assert isinstance(network.global_pool, CovariancePooling2d)
    assert network.fc.in_features == 256 * 257 // 2
    features = network.eval().forward_features(torch.randn(1, 3, 224, 224))
    assert features.shape == (1, 2048, 14, 14)


@pytest.mark.parametrize(("depth", "features"), [(7, 48), (10, 48), (14, 64), (19, 96)])
def test_the_published_sovit(depth, features):
    config = load_config("sovit", f"imagenet-{depth}")
    network = sovit.build(config, 10, layer_options("mpa")).eval()
    assert len(network.blocks) == depth
    assert network.patch_embed.grid_size == (14, 14)
    pooling = network.head.pooling
    x = torch.randn(1, 3, 224, 224)
    assert pooling.features(network.forward_features(x)[:, 1:]).shape == (1, features, 196)
    assert network.head.visual_fc.in_features == features * (features + 1) // 2
    assert network(x).shape == (1, 10)


def test_sovit_without_its_second_order_part():
    """The same transformer: only the covariance and its linear layer are gone."""
    whole, plain = (
        sovit.build(load_config("sovit", "small", {"head": head}), 10, {}).state_dict()
        for head in ("second-order", "class-token")
    )
    assert {k: v.shape for k, v in whole.items() if not k.startswith("head.")} == {
        k: v.shape for k, v in plain.items() if not k.startswith("head.")
    }
    assert plain["head.weight"].shape == whole["head.class_fc.weight"].shape


def test_positions_of_sovit_are_fixed_or_learned():
    for positions, learned in (("fixed", False), ("learned", True)):
        config = load_config("sovit", "small", {"positions": positions})
        assert sovit.build(config, 10, {}).pos_embed.requires_grad == learned


def small_video(**changes):
    torch.manual_seed(0)
    config = load_config("video", "small", {"differences": False} | changes)
    network = video.build(config, 10, {}).eval()
    # timm initialises residual blocks as the identity.
    for layer in network.frame_network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(layer.weight)
    return network


@torch.no_grad()
def test_without_motion_parts_a_video_is_the_mean_of_its_frames():
    network = small_video(pooling="average", excitation=False)
    x = torch.randn(2, 3, 6, 32, 32)
    frames = [network.fc(network.frame_network(x[:, :, t])) for t in range(6)]
    torch.testing.assert_close(network(x), torch.stack(frames).mean(0))
    torch.testing.assert_close(network(x.flip(2)), network(x))


@torch.no_grad()
@pytest.mark.parametrize("part", ["excitation", "differences"])
def test_the_order_of_frames_matters(part):
    network = small_video(pooling="average", **({"excitation": False} | {part: True}))
    x = torch.randn(2, 3, 6, 32, 32)
    assert (network(x.flip(2)) - network(x)).abs().max() > 1e-4
    # Clips of a batch are independent.
    torch.testing.assert_close(network(x)[:1], network(x[:1]))


def test_excitation_starts_as_a_shift_where_nothing_changes():
    layer = video.Excitation(16, 4).eval()
    torch.nn.init.zeros_(layer.expand.weight)
    torch.nn.init.zeros_(layer.expand.bias)
    x = torch.randn(8, 16, 5, 5)
    y, x = layer(x).unflatten(0, (2, 4)), x.unflatten(0, (2, 4))
    assert torch.equal(y[:, 1:, :2], x[:, :-1, :2])
    assert torch.equal(y[:, :-1, 2:4], x[:, 1:, 2:4])
    assert torch.equal(y[:, :, 4:], x[:, :, 4:])


@pytest.mark.parametrize("name", ["hmdb51", "ucf101"])
def test_the_published_video_network(name, tmp_path, monkeypatch):
    def read(root, frames, split, training, test):
        clip = torch.randint(256, (frames, 3, 48, 64), dtype=torch.uint8)
        return *([(change(clip).transpose(0, 1), 0)] for change in (training, test)), split

    monkeypatch.setattr(video.clips, name, read)
    changes = {"size": 32, "pretrained": False, "split": 2}
    config = load_config("video", f"{name}-resnet50", changes)
    training, test, classes, *_ = video.datasets(config, tmp_path)
    assert classes == 2
    for ((x, _),) in (training, test):
        assert (x.shape, x.dtype) == ((3, 8, 32, 32), torch.float32)
    network = video.build(config, 51, layer_options("mpa")).eval()
    assert network.fc.in_features == 128 * 129 // 2
    assert sum(isinstance(m, video.Excitation) for m in network.modules()) == 16
    assert network(x[None]).shape == (1, 51)
