"""Models and checkpoints of batch normalisation, of PyTorch and of timm."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from matroot.nn import (
    DecorrelatedBatchNorm,
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNormAct,
    convert_batchnorm,
    whitening,
)
from nn.layers import correlated, randomize


def with_statistics(model):
    """The model with statistics and weights unlike the initial ones."""
    generator = torch.Generator().manual_seed(3)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                m.running_mean.copy_(0.1 * torch.randn(m.running_mean.shape, generator=generator))
                m.running_var.copy_(torch.rand(m.running_var.shape, generator=generator) + 0.5)
                m.weight.copy_(torch.rand(m.weight.shape, generator=generator) + 0.5)
            m.num_batches_tracked.fill_(7)
    return model.eval()


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))


def close(found, expected):
    assert (found - expected).norm() < 1e-5 * expected.norm()


def trained_model():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4)
    )
    for seed in range(3):
        model(correlated(4, 3, 9, 9, seed=seed, dtype=torch.float32))
    return randomize(model)


@pytest.mark.parametrize(
    ("which", "converted"),
    [("first", [1]), ("all", [1, 4]), (lambda name, layer: layer.num_features == 4, [4])],
)
@pytest.mark.parametrize("running", ["covariance", "whitening"])
def test_a_converted_model_computes_the_same(which, converted, running):
    model = trained_model().eval()
    x = correlated(4, 3, 9, 9, seed=7, dtype=torch.float32)
    expected = model(x)
    weight = model[1].weight
    assert convert_batchnorm(model, which, group_size=4, running=running) is model
    found = [i for i, m in enumerate(model) if isinstance(m, DecorrelatedBatchNorm2d)]
    assert found == converted
    torch.testing.assert_close(model(x), expected)
    assert model[1].weight is weight
    assert not model[1].training
    model.train()(x).sum().backward()


def test_a_layer_used_twice_is_converted_once():
    plain = nn.BatchNorm1d(4)
    model = nn.Sequential(plain, nn.Sequential(nn.Linear(4, 4), plain), nn.BatchNorm1d(4))
    convert_batchnorm(model)
    assert isinstance(model[0], DecorrelatedBatchNorm1d)
    assert model[1][1] is model[0]
    assert type(model[2]) is nn.BatchNorm1d


def test_options_of_the_old_layer_can_be_changed():
    model = nn.Sequential(nn.BatchNorm1d(4, eps=1e-3), nn.BatchNorm1d(4))
    convert_batchnorm(model, "all", eps=0.1, track_running_stats=False, affine=False)
    assert (model[0].eps, model[0].running_mean, model[1].weight) == (0.1, None, None)
    model(correlated(9, 4, dtype=torch.float32))


def test_a_layer_alone_is_converted_too():
    plain = nn.BatchNorm1d(4, affine=False, momentum=None, dtype=torch.float64).eval()
    ours = convert_batchnorm(plain)
    assert isinstance(ours, DecorrelatedBatchNorm1d)
    x = correlated(5, 4)
    torch.testing.assert_close(ours(x), plain(x))
    assert ours.momentum is None
    with pytest.raises(ValueError, match="no layer of batch normalisation"):
        convert_batchnorm(ours)


@pytest.mark.parametrize("running", ["covariance", "whitening"])
@pytest.mark.parametrize(
    "variances", [[1e-6, 100.0], [0.0, 20.0], torch.logspace(-6, 5, 64).tolist()]
)
def test_conversion_keeps_variances_far_apart(variances, running):
    plain = nn.BatchNorm2d(len(variances)).eval()
    plain.running_var.copy_(torch.tensor(variances))
    x = correlated(2, len(variances), 4, 4, dtype=torch.float32)
    expected = plain(x)
    found = convert_batchnorm(nn.Sequential(plain), running=running)(x)
    scale = expected.abs().amax((0, 2, 3), keepdim=True)
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=5e-6)


def test_missing_parts_of_batch_normalisation_stay_missing():
    x = correlated(9, 3, dtype=torch.float32)
    without_statistics, switched_off = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    without_statistics.running_mean = without_statistics.running_var = None
    switched_off(x)
    switched_off.track_running_stats = False
    without_bias = nn.BatchNorm1d(3)
    without_bias.register_parameter("bias", None)
    nn.init.constant_(without_bias.weight, 5.0)
    for plain in (without_statistics, switched_off, without_bias):
        ours = convert_batchnorm(copy.deepcopy(plain), group_size=1)
        torch.testing.assert_close(ours.eval()(x), plain.eval()(x))
        torch.testing.assert_close(ours.train()(x), plain.train()(x))
    layer = DecorrelatedBatchNorm1d(3, bias=False)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_a_conversion_that_fails_changes_nothing():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(6)))
    with pytest.raises(ValueError, match=r"1\.0: .*group_size=4 does not divide the 6"):
        convert_batchnorm(model, "all", group_size=4)
    assert type(model[0]) is nn.BatchNorm2d

    class Ghost(nn.BatchNorm2d):
        pass

    mixed = nn.Sequential(Ghost(4), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="0 is a Ghost; only BatchNorm1d"):
        convert_batchnorm(mixed)
    convert_batchnorm(mixed, lambda name, layer: type(layer) is nn.BatchNorm2d)
    assert isinstance(mixed[1], DecorrelatedBatchNorm2d)


@pytest.mark.parametrize("running", ["covariance", "whitening"])
@pytest.mark.parametrize("which", ["first", "all"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_from_before_conversion_loads(running, which, assign):
    old, x = with_statistics(small()), torch.randn(2, 3, 9, 9)
    new = convert_batchnorm(small(), which, groups=2, running=running).eval()
    state = old.state_dict()
    with pytest.warns(UserWarning, match="has loaded") as found:
        new.load_state_dict(state, assign=assign)
    layers = ["1"] if which == "first" else ["1", "3"]
    assert [str(w.message).partition(":")[0] for w in found] == layers
    assert f"running_{running} is the diagonal matrix" in str(found[0].message)
    close(new(x), old(x))
    assert new[1].num_batches_tracked == 7
    assert "1.running_var" in state  # The caller's state is unchanged.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new.load_state_dict(copy.deepcopy(new.state_dict()))


def test_checkpoints_that_do_not_fit_are_errors():
    new = convert_batchnorm(small())
    state = small().state_dict()
    state["1.running_var"] = torch.ones(5)
    with pytest.raises(RuntimeError, match=r"1\.running_covariance"):
        new.load_state_dict(state)
    untracked = DecorrelatedBatchNorm2d(8, track_running_stats=False)
    with pytest.raises(RuntimeError, match="running_var"):
        untracked.load_state_dict(nn.BatchNorm2d(8).state_dict())


def test_checkpoints_from_before_batches_were_counted():
    plain = with_statistics(nn.BatchNorm2d(4))
    state = dict(plain.state_dict())  # Without PyTorch's metadata: no version.
    del state["num_batches_tracked"]
    new, x = DecorrelatedBatchNorm2d(4).eval(), torch.randn(2, 4, 3, 3)
    with pytest.warns(UserWarning, match="the module: a DecorrelatedBatchNorm2d has loaded"):
        new.load_state_dict(state)
    close(new(x), plain(x))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 3, 2), (2, 4, 3, 2, 2)])
def test_synchronised_batch_normalisation_converts(shape):
    model = with_statistics(nn.Sequential(nn.SyncBatchNorm(4)))
    x = torch.randn(shape)
    expected = model(x)
    convert_batchnorm(model)
    assert type(model[0]) is DecorrelatedBatchNorm
    close(model(x), expected)
    with pytest.warns(UserWarning, match="0: "):
        model.load_state_dict(with_statistics(nn.Sequential(nn.SyncBatchNorm(4))).state_dict())
    close(model(x), expected)
    with pytest.raises(ValueError, match=r"got shape \(4,\)"):
        model(torch.ones(4))


TIMM = ["mobilenetv3_small_050", "regnetx_002", "resnetv2_18", "resnet10t", "mobilenetv2_035"]


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("which", ["first", "all"])
def test_models_of_timm(name, which):
    timm = pytest.importorskip("timm")
    model = with_statistics(timm.create_model(name, pretrained=False))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        state = copy.deepcopy(model.state_dict())
        convert_batchnorm(model, which)
        close(model(x), expected)
        other = convert_batchnorm(timm.create_model(name, pretrained=False), which).eval()
        with pytest.warns(UserWarning, match="has loaded the state of batch normalisation"):
            other.load_state_dict(state)
        close(other(x), expected)
    left = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert bool(left) == (which == "first")
    assert model.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("synchronised", [False, True])
def test_the_activation_is_kept(synchronised):
    layers = pytest.importorskip("timm.layers")
    options = {"act_layer": nn.LeakyReLU, "drop_layer": lambda: nn.Dropout(0.5)}
    plain = with_statistics(layers.BatchNormAct2d(4, **options))
    if synchronised:
        plain = layers.convert_sync_batchnorm(plain)
    x = torch.randn(3, 4, 5, 5)
    ours = convert_batchnorm(plain, group_size=2)
    assert type(ours) is DecorrelatedBatchNormAct
    assert (ours.act, ours.drop, ours.weight) == (plain.act, plain.drop, plain.weight)
    assert (ours.num_features, ours.training) == (4, False)
    close(ours(x), plain(x))
    y = ours.train()(x)
    assert y.eq(0).sum() > 10  # Dropped.
    y.sum().backward()
    assert ours.weight.grad is not None


def test_statistics_of_one_of_several_processes_are_warned_of_once(monkeypatch):
    whitening._warn_of_processes.cache_clear()
    two = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_world_size=lambda: 2
    )
    monkeypatch.setattr(whitening, "distributed", two)
    x = torch.randn(9, 3)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        DecorrelatedBatchNorm(3).eval()(x)
        assert not found

        class Summed(DecorrelatedBatchNorm):
            def statistics(self, x):
                return super().statistics(x)

        Summed(3)(x)
        torch.compile(DecorrelatedBatchNorm(3), fullgraph=True, backend="eager")(x)
        assert not [w for w in found if "process" in str(w.message)]
        for _ in range(3):
            DecorrelatedBatchNorm(3)(x)
    (warning,) = (w for w in found if "process" in str(w.message))
    assert warning.category is UserWarning
    assert "take mean and covariance of this process's samples" in str(warning.message)
    whitening._warn_of_processes.cache_clear()
