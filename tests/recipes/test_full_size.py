"""The published sizes: one optimizer step with every method, on random pictures."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from matroot.recipes.catalogue import application
from matroot.recipes.compare import roots
from matroot.recipes.methods import NAMES, layer_options
from matroot.recipes.training.configuration import load_config

pytestmark = pytest.mark.slow

# The networks see two pictures; their covariance layers as many as the published batch has.
NETWORKS = {
    ("dbn", "cifar10-resnet18"): ((3, 32, 32), (1, 64, 64)),
    ("dbn", "cifar100-resnet50"): ((3, 32, 32), (1, 64, 64)),
    ("sovit", "imagenet-7"): ((3, 224, 224), (2, 48, 48)),
    ("sovit", "imagenet-14"): ((3, 224, 224), (2, 64, 64)),
    ("sovit", "imagenet-19"): ((3, 224, 224), (2, 96, 96)),
    ("gcp", "imagenet-resnet50"): ((3, 224, 224), (2, 256, 256)),
    ("gcp", "cub-resnet50"): ((3, 448, 448), (2, 64, 64)),
    ("video", "hmdb51-resnet50"): ((3, 8, 224, 224), (2, 128, 128)),
}
LAYERS = {
    ("dbn", "cifar10-resnet18"): ("bn1", (128, 64, 32, 32)),
    ("sovit", "imagenet-7"): ("head.pooling", (64, 196, 256)),
    ("gcp", "imagenet-resnet50"): ("global_pool", (256, 2048, 14, 14)),
    ("video", "hmdb51-resnet50"): ("pooling", (16, 2048, 8, 7, 7)),
}


def build(name, config, method, **changes):
    settings = load_config(name, config, changes)
    options = layer_options(method, None, settings.eps)
    torch.manual_seed(0)
    return application(name).build(settings, 51, options)


def step(module, loss):
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    before = [p.detach().clone() for p in module.parameters()]
    loss.backward()
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert any(changed)
    if not all(p.isfinite().all() for p in module.parameters()):
        raise torch.linalg.LinAlgError("after the step parameters are not finite")


def singular(method, run):
    """The textbook gradient is infinite where eigenvalues repeat, as zeros may do here."""
    try:
        run()
    except torch.linalg.LinAlgError as error:
        if method != "svd" or "not finite" not in str(error):
            raise


def untrained(name):
    return {"pretrained": False} if name in ("gcp", "video") else {}


@pytest.mark.parametrize("case", NETWORKS, ids="-".join)
@pytest.mark.parametrize("method", NAMES)
def test_one_step_of_the_network(case, method):
    shape, matrices = NETWORKS[case]
    network = build(*case, method, **untrained(case[0]))
    x = torch.randn(2, *shape)
    taken = roots(network, lambda: network(x))
    assert [tuple(root.covariance.shape) for root in taken] == [matrices]
    singular(method, lambda: step(network, F.cross_entropy(network(x), torch.tensor([3, 7]))))


@pytest.mark.parametrize("case", LAYERS, ids="-".join)
@pytest.mark.parametrize("method", NAMES)
def test_one_step_of_the_layer_at_the_published_batch(case, method):
    name, shape = LAYERS[case]
    layer = build(*case, method, **untrained(case[0])).get_submodule(name)
    settings = load_config(*case)
    assert shape[0] == settings.batch_size
    head = nn.LazyLinear(5)
    module = nn.Sequential(layer, nn.Flatten(), head)
    x = torch.randn(shape).relu_()

    def run():
        logits = module(x)
        step(module, F.cross_entropy(logits, torch.arange(shape[0]) % 5))

    module(x[:4])  # Gives the linear layer its size.
    singular(method, run)


@pytest.mark.parametrize("method", NAMES)
def test_one_step_of_style_at_the_published_size(method):
    config = load_config("style", "artworks")
    torch.manual_seed(0)
    learner = application("style").Learner(config, layer_options(method, None, config.eps))
    x, y = torch.rand(2, config.batch_size, 3, config.size, config.size) * 2 - 1
    taken = roots(learner, lambda: learner(x, y))
    assert [tuple(r.covariance.shape) for r in taken] == [(4, 1, 256, 256)] * 10
    generator = learner.generators[0]

    def run():
        made = generator.decode(generator.content(x), generator.style(y), y)
        step(generator, F.l1_loss(made, y) + learner.judges[0].error(made, 1.0))

    singular(method, run)
