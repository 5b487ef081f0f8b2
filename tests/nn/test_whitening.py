"""Decorrelated batch normalisation against its definition and against batch normalisation."""

import copy

import pytest
import torch
from torch import nn

import matroot
from matroot.methods import NewtonSchulz
from matroot.nn import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    convert_batchnorm,
)
from matroot.testing import exact
from nn.layers import correlated, randomize

SLOW = pytest.mark.slow
SHAPES = {
    DecorrelatedBatchNorm1d: [(20, 6), (4, 6, 9)],
    DecorrelatedBatchNorm2d: [(4, 6, 5, 3)],
    DecorrelatedBatchNorm3d: [(3, 6, 2, 3, 4)],
}
CASES = [(layer, shape) for layer, shapes in SHAPES.items() for shape in shapes]
PLAIN = {
    DecorrelatedBatchNorm1d: nn.BatchNorm1d,
    DecorrelatedBatchNorm2d: nn.BatchNorm2d,
    DecorrelatedBatchNorm3d: nn.BatchNorm3d,
}


def columns(x):
    """Channels × samples."""
    return x.transpose(0, 1).flatten(1)


@pytest.mark.parametrize(("layer", "shape"), CASES)
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_each_group_is_white(layer, shape, groups):
    x = correlated(*shape)
    y = columns(layer(6, groups=groups, eps=0.0, dtype=torch.float64)(x))
    c = y @ y.T / y.shape[1]
    size = 6 // groups
    for i in range(groups):
        block = c[i * size : (i + 1) * size, i * size : (i + 1) * size]
        torch.testing.assert_close(block, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(y.mean(1), torch.zeros(6, dtype=torch.float64))


def test_the_ridge_is_in_units_of_the_covariance():
    x = correlated(50, 4)
    y = DecorrelatedBatchNorm1d(4, eps=0.5, affine=False, dtype=torch.float64)(x)
    c = torch.cov(x.T, correction=0)
    z = exact(c + 0.5 * torch.eye(4, dtype=torch.float64), "inv_sqrt")
    torch.testing.assert_close(y.T, z @ (x.T - x.mean(0)[:, None]))


def test_zca_is_the_symmetric_choice():
    # Of all whitening maps W the symmetric one changes the samples least.
    x = correlated(200, 5)
    y = DecorrelatedBatchNorm1d(5, eps=0.0, affine=False, dtype=torch.float64)(x)
    w = torch.linalg.lstsq(x - x.mean(0), y).solution.T
    torch.testing.assert_close(w, w.T)
    q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    assert (y - (x - x.mean(0))).norm() < (y @ q.T - (x - x.mean(0))).norm()


@pytest.mark.parametrize(("layer", "shape"), CASES)
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
def test_groups_of_one_are_batch_normalisation(layer, shape, momentum, affine):
    options = {"momentum": momentum, "affine": affine, "dtype": torch.float64}
    ours, plain = layer(6, group_size=1, **options), PLAIN[layer](6, **options)
    randomize(ours), randomize(plain)
    for seed in range(3):
        x = correlated(*shape, seed=seed).requires_grad_()
        g = correlated(*shape, seed=9)
        outputs = [module(x) for module in (ours, plain)]
        torch.testing.assert_close(*outputs)
        found, expected = (
            torch.autograd.grad(y, [x, *m.parameters()], g)
            for y, m in zip(outputs, (ours, plain), strict=True)
        )
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(ours.running_mean, plain.running_mean)
        torch.testing.assert_close(ours.running_covariance.flatten(), plain.running_var)
        assert ours.num_batches_tracked == plain.num_batches_tracked
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("running", ["covariance", "whitening"])
def test_evaluation_by_hand(running):
    layer = randomize(DecorrelatedBatchNorm2d(6, groups=2, dtype=torch.float64, running=running))
    a, b = correlated(4, 6, 5, 3), correlated(4, 6, 5, 3, seed=1)
    layer(a), layer(b)
    eye = torch.eye(3, dtype=torch.float64)
    mean, state = torch.zeros(6, dtype=torch.float64), [eye, eye]
    for x in (columns(a), columns(b)):
        mean = 0.9 * mean + 0.1 * x.mean(1)
        for i, block in enumerate((x[:3], x[3:])):
            new = (
                torch.cov(block)
                if running == "covariance"
                else exact(torch.cov(block, correction=0) + 1e-5 * eye, "inv_sqrt")
            )
            state[i] = 0.9 * state[i] + 0.1 * new
    if running == "covariance":
        state = [exact(c + 1e-5 * eye, "inv_sqrt") for c in state]
    x = correlated(2, 6, 5, 3, seed=2)
    expected = torch.block_diag(*state) @ (columns(x) - mean[:, None])
    expected = layer.weight[:, None] * expected + layer.bias[:, None]
    torch.testing.assert_close(columns(layer.eval()(x)), expected)


def test_without_running_statistics_evaluation_uses_the_batch():
    layer = DecorrelatedBatchNorm1d(4, track_running_stats=False, dtype=torch.float64)
    x = correlated(30, 4)
    assert list(layer.buffers()) == []
    torch.testing.assert_close(layer.eval()(x), layer.train()(x))


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"shrinkage": "oas"}, {"shrinkage": 0.2}])
@pytest.mark.parametrize("training", [True, False])
def test_gradients(options, training):
    layer = DecorrelatedBatchNorm2d(4, eps=1e-2, dtype=torch.float64, momentum=0.0, **options)
    randomize(layer).train(training)
    x = correlated(3, 4, 2, 2).requires_grad_()

    def function(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)

    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    # With momentum 0 the running statistics do not change.
    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_and_out(dtype):
    x = correlated(16, 6, 8, 8, dtype=torch.float32)
    layer = DecorrelatedBatchNorm2d(6)
    expected = copy.deepcopy(layer)(x.to(dtype).float())
    y = layer(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, atol=2e-2, rtol=2e-2)
    assert layer.half()(x.half()).dtype == torch.float16
    assert (layer.running_mean.dtype, layer.running_covariance.dtype) == (
        torch.float16,
        torch.float32,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("running", ["covariance", "whitening"])
def test_singular_statistics_survive_half_precision(dtype, running):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(64, 27, generator=generator)
    layer = DecorrelatedBatchNorm2d(64, running=running, momentum=1.0, eps=1e-2)
    x = torch.einsum("ij,njhw->nihw", mix, torch.randn(8, 27, 6, 6, generator=generator))
    layer(x)
    expected = layer.eval()(x.to(dtype).float())
    half = copy.deepcopy(layer).to(dtype)
    found = half(x.to(dtype)).float()
    assert (found - expected).norm() < 8 * torch.finfo(dtype).eps * expected.norm()
    twin = DecorrelatedBatchNorm2d(64, running=running, dtype=dtype, eps=1e-2).eval()
    twin.load_state_dict(half.state_dict())
    assert torch.equal(twin(x.to(dtype)).float(), found)
    assert half.float().running_mean.dtype == torch.float32


def test_autocast_leaves_the_covariance_in_single_precision():
    x = correlated(16, 6, 8, 8, dtype=torch.float32)
    layer = DecorrelatedBatchNorm2d(6)
    expected = copy.deepcopy(layer)(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), expected)


def test_the_memory_format_stays():
    x = correlated(4, 6, 5, 3, dtype=torch.float32)
    layer = DecorrelatedBatchNorm2d(6)
    y = layer(x)
    last = layer(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, y)


@pytest.mark.parametrize("method", ["taylor", "pade", "newton_schulz", "minimax", "eigh", "svd"])
def test_every_method(method):
    x = torch.randn(64, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    y = columns(DecorrelatedBatchNorm2d(6, method=method, affine=False)(x))
    # Nearly white samples, for which the published approximations are accurate too.
    torch.testing.assert_close(y @ y.T / y.shape[1], torch.eye(6), atol=0.12, rtol=0)


def test_power_normalisation_divides_by_the_largest_deviation():
    x = correlated(50, 4)
    options = {"normalization": "power", "affine": False, "dtype": torch.float64}
    y = DecorrelatedBatchNorm1d(4, **options)(x)
    c = torch.cov(x.T, correction=0) + 1e-5 * torch.eye(4, dtype=torch.float64)
    v = nn.functional.normalize(c.sum(1), dim=0)
    torch.testing.assert_close(y, (x - x.mean(0)) / (v @ c @ v).sqrt())


def test_newton_schulz_is_iterative_normalisation():
    x = correlated(64, 6)
    y = DecorrelatedBatchNorm1d(6, method=NewtonSchulz(5), affine=False, dtype=torch.float64)(x)
    c = torch.cov(x.T, correction=0) + 1e-5 * torch.eye(6, dtype=torch.float64)
    p = torch.eye(6, dtype=torch.float64)
    for _ in range(5):
        p = 1.5 * p - 0.5 * p @ p @ p @ (c / c.trace())
    torch.testing.assert_close(y.T, p / c.trace().sqrt() @ (x.T - x.mean(0)[:, None]))


def test_the_gradient_of_iterative_normalisation_is_the_unrolled_one():
    x = correlated(64, 6).requires_grad_()
    g = torch.randn(64, 6, dtype=torch.float64)
    c = torch.cov(x.T, correction=0) + 1e-5 * torch.eye(6, dtype=torch.float64)
    p = torch.eye(6, dtype=torch.float64)
    for _ in range(5):
        p = 1.5 * p - 0.5 * p @ p @ p @ (c / c.trace())
    y = (p / c.trace().sqrt() @ (x.T - x.mean(0)[:, None])).T
    (expected,) = torch.autograd.grad(y, x, g)
    found = {}
    for gradient in ("unrolled", "auto"):
        options = {"method": NewtonSchulz(5), "gradient": gradient, "affine": False}
        layer = DecorrelatedBatchNorm1d(6, dtype=torch.float64, **options)
        (found[gradient],) = torch.autograd.grad(layer(x), x, g)
    torch.testing.assert_close(found["unrolled"], expected)
    # As documented: another gradient, until the iteration has converged.
    assert (found["auto"] - expected).norm() > 0.01 * expected.norm()


def test_the_names_in_the_state():
    assert set(DecorrelatedBatchNorm2d(6, groups=2).state_dict()) == {
        "weight",
        "bias",
        "running_mean",
        "running_covariance",
        "num_batches_tracked",
    }


def test_tracking_can_be_switched_off():
    for track in (True, False):
        ours, plain = DecorrelatedBatchNorm1d(3, group_size=1), nn.BatchNorm1d(3)
        for layer in (ours, plain):
            layer.track_running_stats = track
            layer(correlated(9, 3, dtype=torch.float32))
        torch.testing.assert_close(ours.running_mean, plain.running_mean)
        assert ours.num_batches_tracked == plain.num_batches_tracked == int(track)


def test_vmap_in_evaluation():
    layer = randomize(DecorrelatedBatchNorm2d(6)).eval()
    x = torch.stack([correlated(4, 6, 5, 3, seed=s, dtype=torch.float32) for s in range(3)])
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(one) for one in x]))


def test_single_positions_keep_their_strides():
    x = correlated(8, 6, 1, 1, dtype=torch.float32).contiguous()
    assert DecorrelatedBatchNorm2d(6, eps=0.1)(x).stride() == x.stride()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DecorrelatedBatchNorm2d(2.0), "num_features must be an int, got float"),
        (lambda: DecorrelatedBatchNorm2d(6, groups=2.0), "groups must be an int, got float"),
        (lambda: DecorrelatedBatchNorm2d(6, momentum="x"), "momentum must be a number, got str"),
        (lambda: DecorrelatedBatchNorm2d(6, method=None), "method must be a name"),
        (lambda: DecorrelatedBatchNorm1d(2)(torch.ones(3, 2).long()), "torch.int64"),
        (lambda: DecorrelatedBatchNorm1d(2)(torch.ones(3, 2) * 1j), "torch.complex64"),
    ],
)
def test_type_errors(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DecorrelatedBatchNorm2d(0), "num_features must be at least 1, got 0"),
        (lambda: DecorrelatedBatchNorm2d(6, groups=4), "groups=4 does not divide the 6 channels"),
        (lambda: DecorrelatedBatchNorm2d(6, group_size=4), "group_size=4 does not divide the 6"),
        (lambda: DecorrelatedBatchNorm2d(6, groups=2, group_size=3), "not both"),
        (
            lambda: DecorrelatedBatchNorm2d(6, eps=-1.0),
            "eps must be finite and at least 0, got -1.0",
        ),
        (lambda: DecorrelatedBatchNorm2d(6, running="root"), "got 'root'"),
        (lambda: DecorrelatedBatchNorm2d(6, shrinkage="best"), "'ledoit_wolf', 'oas', got 'best'"),
        (lambda: DecorrelatedBatchNorm2d(6)(torch.ones(2, 6)), r"expected 4-D .* \(2, 6\)"),
        (lambda: DecorrelatedBatchNorm1d(6)(torch.ones(2)), r"expected 2-D or 3-D .* \(2,\)"),
        (lambda: DecorrelatedBatchNorm1d(6)(torch.ones(2, 5)), r"expected 6 channels.* \(2, 5\)"),
        (lambda: DecorrelatedBatchNorm1d(6)(torch.ones(1, 6)), r"at least 2 samples.* \(1, 6\)"),
        (lambda: DecorrelatedBatchNorm1d(6)(torch.ones(0, 6)), r"at least 2 samples.* \(0, 6\)"),
        (lambda: DecorrelatedBatchNorm2d(6, eps=float("inf")), "must be finite"),
        (lambda: DecorrelatedBatchNorm2d(6, gradient="x"), "unknown gradient 'x'"),
        (
            lambda: DecorrelatedBatchNorm2d(6, method="pade", gradient="spectral_naive"),
            "needs the eigenpairs",
        ),
        (
            lambda: DecorrelatedBatchNorm1d(6, track_running_stats=False).eval()(torch.ones(1, 6)),
            r"at least 2 samples.* \(1, 6\)",
        ),
        (lambda: convert_batchnorm(nn.Linear(2, 2)), "no layer of batch normalisation"),
        (lambda: convert_batchnorm(nn.BatchNorm1d(2), "last"), "got 'last'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_methods_are_named():
    with pytest.raises(ValueError, match="newton_schulz"):
        DecorrelatedBatchNorm1d(3, method="lu")


def test_bad_input_is_an_error_not_a_number():
    with pytest.raises(torch.linalg.LinAlgError, match="NaN"):
        DecorrelatedBatchNorm1d(3)(torch.full((9, 3), torch.nan))
    assert matroot.nn.DecorrelatedBatchNorm1d is DecorrelatedBatchNorm1d


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: DecorrelatedBatchNorm1d(3)(torch.full((9, 3), torch.nan)),
            r"the covariance of the input of DecorrelatedBatchNorm1d is not finite",
        ),
        (
            lambda: DecorrelatedBatchNorm1d(3, eps=0.0)(torch.ones(9, 3)),
            "the covariance of the input of DecorrelatedBatchNorm1d is singular .*; "
            r"add a ridge with eps=, shrink with shrinkage=, or take more samples a batch",
        ),
        (
            lambda: matroot.nn.functional.whiten_and_color(
                torch.ones(1, 3, 9), torch.randn(1, 3, 9), eps=0.0
            ),
            "the covariance of content is singular .*; add a ridge with eps=, shrink",
        ),
        (
            lambda: matroot.nn.functional.whiten_and_color(
                torch.randn(1, 3, 9), torch.full((1, 3, 9), torch.inf)
            ),
            "the covariance of style is not finite",
        ),
        (
            lambda: matroot.nn.CovariancePooling1d(3)(torch.full((2, 3, 9), torch.nan)),
            "the covariance of the input of CovariancePooling1d are not finite",
        ),
        (
            lambda: matroot.nn.functional.inverse_root(torch.zeros(3, 3), 0.0),
            r"covariance is singular .*; add a ridge with eps=$",
        ),
    ],
)
def test_errors_of_matrices_are_in_words_of_the_layer(call, message):
    with pytest.raises(torch.linalg.LinAlgError, match=message) as found:
        call()
    assert "pinv" not in str(found.value)
