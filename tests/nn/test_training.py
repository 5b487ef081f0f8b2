"""A residual network whose first normalisation decorrelates learns from real pictures."""

import pytest
import sklearn.datasets
import timm
import torch
from torch import nn
from torch.nn import functional as F

from matroot.methods import METHODS
from matroot.nn import CovariancePooling2d, DecorrelatedBatchNorm2d, convert_batchnorm
from matroot.recipes.images import CONTENTS, photograph

STEPS = 50


def digits():
    """Handwritten digits, 8×8 scaled up to 32×32, and their classes."""
    data = sklearn.datasets.load_digits()
    x = torch.from_numpy(data.images).float()[:, None] / 16
    x = F.interpolate(x, (32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    return x, torch.from_numpy(data.target)


def patches():
    """Patches of photographs, 32×32, and the number of the photograph."""
    generator = torch.Generator().manual_seed(0)
    x, y = [], []
    for label, name in enumerate(CONTENTS):
        channels = photograph(name).float() / 255
        for _ in range(300):
            i, j = (
                int(torch.randint(size - 32, (), generator=generator))
                for size in channels.shape[1:]
            )
            x.append(channels[:, i : i + 32, j : j + 32])
            y.append(label)
    return torch.stack(x), torch.tensor(y)


DATA = {"digits": digits, "patches": patches}


def train(model, data, mode, rate=0.02):
    """The losses of 50 steps with 32 pictures each."""
    x, y = DATA[data]()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    step = torch.compile(model) if mode == "compiled" else model
    losses = []
    for _ in range(STEPS):
        index = torch.randint(len(x), (32,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            loss = F.cross_entropy(step(x[index]).float(), y[index])
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(loss.item())
    return losses


def falls(losses):
    assert all(loss == loss for loss in losses)
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < 0.6 * first, (first, last)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", ["auto", "pade"])
def test_a_residual_network_trains(method, data):
    # One block per stage, half as wide; the slow tests train the whole network.
    shape = {"layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256)}
    model = timm.create_model("resnet18", num_classes=10, **shape)
    convert_batchnorm(model, method=method)
    assert model.bn1.num_features == 64
    assert isinstance(model.bn1, DecorrelatedBatchNorm2d)
    falls(train(model, data, "single"))
    # The running statistics are fit for evaluation.
    x, y = DATA[data]()
    with torch.no_grad():
        loss = F.cross_entropy(model.eval()(x[:300]), y[:300])
    assert loss.isfinite()


@pytest.mark.slow
# PyTorch's compiler calls a function that PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:.*torch._prims_common.check:FutureWarning")
@pytest.mark.parametrize("mode", ["single", "autocast", "compiled"])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_every_method_and_precision(method, mode):
    torch._dynamo.reset()
    model = timm.create_model("resnet18", num_classes=10)
    falls(train(convert_batchnorm(model, method=method), "digits", mode))


@pytest.mark.parametrize("mode", ["single", "autocast"])
@pytest.mark.parametrize("method", ["auto", "newton_schulz"])
def test_a_small_network_with_covariance_pooling_trains(method, mode):
    model = nn.Sequential(
        nn.Conv2d(3, 24, 5, stride=2),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, stride=2),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        CovariancePooling2d(48, 24, method=method),
        nn.Linear(300, 10),
    )
    falls(train(model, "digits", mode, rate=0.3))
