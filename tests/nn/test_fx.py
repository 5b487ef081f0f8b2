"""Layers and functions under torch.fx: recorded as one call, as those of PyTorch are."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import matroot
from matroot.nn import convert_batchnorm, functional
from matroot.statistics import moments, pack_triangle, unpack_triangle
from nn.layers import INSTANCES, settled


class Model(nn.Module):
    """A layer in a model, with operations before and after."""

    def __init__(self, layer):
        super().__init__()
        self.body = nn.ModuleDict({"layer": layer})

    def forward(self, x, *rest):
        return 2 * self.body["layer"](x + 1, *rest)


class ModelOfTwo(Model):
    def forward(self, x, y):
        return 2 * self.body["layer"](x + 1, y)


class ModelOfOne(Model):
    def forward(self, x):
        return 2 * self.body["layer"](x + 1)


@pytest.fixture(params=INSTANCES, ids=str)
def case(request):
    inputs = request.param.inputs()
    layer = settled(request.param.make(), inputs)
    return layer, (ModelOfOne if len(inputs) == 1 else ModelOfTwo)(layer), inputs


def assert_the_same(one, other, inputs, result=lambda y: y):
    assert torch.equal(one(*inputs), result(other(*inputs)))
    for x, y in zip(one.buffers(), other.buffers(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("training", [True, False])
def test_symbolic_trace(case, training):
    layer, model, inputs = case
    for whole in (model, layer):
        whole.train(training)
        traced = torch.fx.symbolic_trace(copy.deepcopy(whole))
        traced.graph.lint()
        assert [n.op for n in traced.graph.nodes].count("call_module") == 1
        assert_the_same(whole, traced, inputs)
        assert len(list(traced.parameters())) == len(list(whole.parameters()))
        # The trace calls the layer itself, which follows the mode of the trace.
        assert_the_same(whole.train(not training), traced.train(not training), inputs)


@pytest.mark.parametrize("training", [True, False])
def test_feature_extraction(case, training):
    _, model, inputs = case
    model.train(training)
    twin = copy.deepcopy(model)
    extractor = create_feature_extractor(twin, {"body.layer": "found"}).train(training)
    assert torch.equal(2 * extractor(*inputs)["found"], model(*inputs))
    for x, y in zip(model.buffers(), extractor.buffers(), strict=True):
        assert torch.equal(x, y)


def test_a_converted_model_of_torchvision():
    torchvision = pytest.importorskip("torchvision")
    model = convert_batchnorm(torchvision.models.resnet18(weights=None)).eval()
    extractor = create_feature_extractor(model, {"bn1": "white", "fc": "logits"})
    x = torch.randn(1, 3, 32, 32)
    found = extractor(x)
    assert torch.equal(found["logits"], model(x))
    # ResNet applies ReLU in place.
    assert torch.equal(found["white"], model.relu(model.bn1(model.conv1(x))))


def pair(x):
    s, z = matroot.sqrtm_pair(x)
    return s + z


@pytest.mark.parametrize(
    "function",
    [
        lambda a: matroot.sqrtm(a, eps=0.1),
        lambda a: matroot.inv_sqrtm(a=a),
        pair,
        lambda a: matroot.sqrtm_ex(a).sqrt,
        lambda a: matroot.solve_lyapunov(a, torch.eye(3)),
        lambda a: matroot.solve_lyapunov(torch.eye(3), g=a),
        lambda a: matroot.bures_wasserstein_distance(a, torch.eye(3)),
        lambda a: matroot.frechet_distance(torch.zeros(3), torch.eye(3), torch.ones(3), a),
        lambda a: functional.inverse_root(a, 0.1),
        lambda a: functional.power_normalization(a),
        lambda a: functional.whiten_and_color(a[None], torch.eye(3)[None]),
        lambda a: moments(a).covariance,
        lambda a: unpack_triangle(pack_triangle(a, scaled=True), scaled=True),
    ],
)
def test_functions_of_a_proxy_are_recorded(function):
    a = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 3.0]])
    traced = torch.fx.symbolic_trace(function)
    assert torch.equal(traced(a), function(a))
    calls = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    assert any(getattr(f, "__module__", "").startswith("matroot") for f in calls)


def test_every_public_function_takes_a_proxy():
    named = {name: getattr(matroot, name) for name in matroot.__all__ if name != "explain"}
    functions = {k: v for k, v in named.items() if callable(v) and not isinstance(v, type)}
    assert functions
    for name, function in functions.items():
        assert hasattr(function, "__wrapped__"), f"{name} is not overridable"


def test_subclasses_of_tensors_are_not_asked():
    class Logged(torch.Tensor):
        asked = ()

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.asked += (func,)
            return super().__torch_function__(func, types, args, kwargs)

    a = torch.eye(3).as_subclass(Logged)
    assert torch.equal(matroot.sqrtm(a).as_subclass(torch.Tensor), torch.eye(3))
    assert matroot.sqrtm not in Logged.asked
    with torch.device("cpu"):  # A mode must not get the functions, either.
        assert torch.equal(matroot.sqrtm(torch.eye(3)), torch.eye(3))


def test_errors_stay_errors():
    with pytest.raises(TypeError, match="got list"):
        matroot.sqrtm([[1.0]])
