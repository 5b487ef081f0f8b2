"""The whitening matrix that evaluation caches: computed once, and never out of date."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
from torch.func import functional_call

from matroot.methods import NewtonSchulz
from matroot.nn import DecorrelatedBatchNorm2d, whitening

X = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def layer():
    layer = DecorrelatedBatchNorm2d(6, groups=2, eps=1e-3)
    mix = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1))
    layer.running_covariance.copy_(mix @ mix.mT)
    return layer.eval()


@pytest.fixture
def roots():
    """The number of roots that layers have computed."""
    with mock.patch.object(whitening, "_inverse_root", wraps=whitening._inverse_root) as function:
        yield lambda: function.call_count


def fresh(layer):
    """The result of a copy of the layer without a cached matrix."""
    twin = copy.deepcopy(layer)
    assert twin._kept is None
    return twin(X)


def test_the_root_is_computed_once(layer, roots):
    first = layer(X)
    assert roots() == 1
    assert torch.equal(layer(X), first)
    with torch.no_grad(), torch.inference_mode():
        assert torch.equal(layer(X), first)
    assert roots() == 1
    assert torch.equal(fresh(layer), first)


def replaced(layer):
    layer.running_covariance = 2 * layer.running_covariance


def trained(layer):
    layer.train()(X)
    layer.eval()


def in_inference_mode(layer):
    with torch.inference_mode():
        layer.running_covariance.mul_(2)


def by_numpy(layer):
    layer.running_covariance.numpy()[...] *= 2


def loaded(layer, assign=False):
    state = {k: 2 * v if k == "running_covariance" else v for k, v in layer.state_dict().items()}
    layer.load_state_dict(state, assign=assign)


CHANGES = {
    "in place": lambda layer: layer.running_covariance.mul_(2),
    "data": lambda layer: layer.running_covariance.data.mul_(2),
    "a view": lambda layer: layer.running_covariance[1].mul_(2),
    "numpy": by_numpy,
    "replaced": replaced,
    "inference mode": in_inference_mode,
    "loaded": loaded,
    "assigned": lambda layer: loaded(layer, assign=True),
    "trained": trained,
    "reset": lambda layer: layer.reset_running_stats(),
    "half": lambda layer: layer.half().float(),
    "double": lambda layer: layer.double(),
    "eps": lambda layer: setattr(layer, "eps", 0.5),
    "method": lambda layer: setattr(layer, "method", NewtonSchulz(2)),
    "momentum": lambda layer: (setattr(layer, "momentum", 1e-7), setattr(layer, "eps", 0.0)),
    "normalization": lambda layer: setattr(layer, "normalization", "power"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_any_change_recomputes_the_root(layer, change):
    layer(X)
    change(layer)
    for _ in range(2):
        assert torch.equal(layer(X), fresh(layer))


def test_a_cumulative_average_knows_its_batches(roots):
    layer = DecorrelatedBatchNorm2d(6, momentum=None).eval()
    layer(X)
    layer.num_batches_tracked.fill_(10**6)
    assert torch.equal(layer(X), fresh(layer))
    assert roots() == 3


def test_alternating_dtypes(layer):
    for x in (X, X.double(), X):
        assert torch.equal(layer(x), copy.deepcopy(layer)(x))


def test_the_cached_matrix_is_not_saved(layer):
    before = pickle.dumps(layer)
    layer(X)
    assert layer._kept is not None
    assert len(pickle.dumps(layer)) == len(before)
    assert "_kept" not in layer.state_dict()
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._kept is None
        assert torch.equal(twin(X), layer(X))
    layer.to(torch.float64)
    assert layer._kept is None


def test_buffers_of_a_call(layer, roots):
    layer(X)
    other = {"running_covariance": 3 * layer.running_covariance}
    expected = copy.deepcopy(layer)
    expected.load_state_dict(layer.state_dict() | other)
    assert torch.equal(functional_call(layer, other, X), expected(X))
    assert torch.equal(layer(X), fresh(layer))


def test_derivatives_by_the_covariance(layer):
    plain = layer(X).detach()
    covariance = layer.running_covariance.clone().requires_grad_()
    for _ in range(2):
        y = functional_call(layer, {"running_covariance": covariance}, X)
        (gradient,) = torch.autograd.grad(y.square().sum(), covariance)
        assert gradient.abs().sum() > 0
    _, tangent = torch.func.jvp(
        lambda c: functional_call(layer, {"running_covariance": c}, X),
        (covariance.detach(),),
        (covariance.detach(),),
    )
    assert tangent.abs().sum() > 0
    many = torch.stack([covariance.detach(), 2 * covariance.detach()])
    found = torch.vmap(lambda c: functional_call(layer, {"running_covariance": c}, X))(many)
    torch.testing.assert_close(found[0], plain)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(layer(X), plain)


def test_gradients_after_inference(layer):
    with torch.inference_mode():
        layer(X)
    x = X.clone().requires_grad_()
    layer(x).sum().backward()
    with torch.inference_mode():
        inside = DecorrelatedBatchNorm2d(6).eval()
        inside(X)
        inside.running_covariance.mul_(4)
        torch.testing.assert_close(inside(X), DecorrelatedBatchNorm2d(6).eval()(X) / 2)


def test_tracers_see_the_root(layer):
    layer(X)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    program = torch.export.export(layer, (X,)).module()
    for found in (compiled, program):
        torch.testing.assert_close(found(X), layer(X), rtol=1e-4, atol=1e-4)
    layer.running_covariance.mul_(2)
    torch.testing.assert_close(compiled(X), fresh(layer), rtol=1e-4, atol=1e-4)
    with torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer(mode.from_tensor(X))
    assert torch.equal(layer(X), fresh(layer))


def test_bad_statistics_stay_errors(layer):
    layer(X)
    layer.running_covariance[0, 0, 0] = torch.nan
    for _ in range(2):
        with pytest.raises(torch.linalg.LinAlgError, match="the running covariance of Decorr"):
            layer(X)


def test_threads(layer):
    other = copy.deepcopy(layer)
    other.running_covariance.mul_(2)
    expected = [fresh(layer), fresh(other)]
    states = [layer.running_covariance.clone(), other.running_covariance.clone()]

    def evaluated(i):
        # With a copy, since functional_call temporarily replaces the buffers of its layer.
        return functional_call(
            copy.deepcopy(layer), {"running_covariance": states[i % 2]}, X
        ), i % 2

    def repeated(_):
        return layer(X)

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, expected[0]) for y in pool.map(repeated, range(40)))
        assert all(torch.equal(y, expected[i]) for y, i in pool.map(evaluated, range(40)))
