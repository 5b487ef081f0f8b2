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


def test_fewer_samples_than_channels_stay_finite():
    x = correlated(3, 16, dtype=torch.float32).requires_grad_()
    y = DecorrelatedBatchNorm1d(16)(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert y.isfinite().all()
    assert gradient.isfinite().all()
    # Three samples have rank two: two directions are white.
    values = torch.linalg.eigvalsh(torch.cov(y.T, correction=0))
    torch.testing.assert_close(values[-2:], torch.ones(2), atol=1e-3, rtol=0)
    assert values[:-2].abs().max() < 1e-3


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


@pytest.mark.parametrize("size", [2, 16])
def test_channels_of_very_different_scale_are_as_exact_as_in_double_precision(size):
    x = correlated(64, size, 8, 8)
    x[:, 0] *= 1e-3
    x[:, 1] *= 30
    options = {"affine": False}
    expected = DecorrelatedBatchNorm2d(size, dtype=torch.float64, **options)(x)
    found = DecorrelatedBatchNorm2d(size, **options)(x.float())
    for one, other in zip(found.transpose(0, 1), expected.transpose(0, 1), strict=True):
        assert (one - other).norm() < 1e-3 * other.norm()


@pytest.mark.parametrize("momentum", [None, 1.0])
@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1e3])
def test_statistics_do_not_cancel(momentum, scale):
    x = scale * correlated(64, 3, 8, 8, dtype=torch.float32)
    ours = DecorrelatedBatchNorm2d(3, group_size=1, momentum=momentum)
    plain = nn.BatchNorm2d(3, momentum=momentum)
    ours(x), plain(x)
    torch.testing.assert_close(
        ours.running_covariance.flatten(), plain.running_var, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize(
    ("seed", "batches"), [(101, 1400), *(pytest.param(s, 6000, marks=SLOW) for s in (0, 1))]
)
def test_a_long_cumulative_average_of_singular_covariances_can_be_evaluated(seed, batches):
    # Rounding adds up on the zeros, with either sign: some 30 units after 6000 batches. With this
    # seed they would be negative beyond one batch's rounding from batch 1200 on.
    torch.manual_seed(seed)
    layer = DecorrelatedBatchNorm1d(3, momentum=None, affine=False)
    weights = torch.tensor([100.0, 70.0, 130.0])
    with torch.no_grad():
        for i in range(batches):
            x = torch.randn(8, 1) * weights
            layer.train()(x)
            if i % 50 == 0:
                assert layer.eval()(x).isfinite().all()


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


def far_apart(samples, exponents, dtype=torch.float64, seed=0):
    """Samples of features with these decimal exponents of their deviations."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, len(exponents), dtype=torch.float64, generator=generator)
    return (x * 10.0**exponents).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decades", [1, 4, 7])
@pytest.mark.parametrize("center", [-10, 0, 10])
@pytest.mark.parametrize("compiled", [False, True])
def test_few_samples_of_features_of_very_different_variance(dtype, decades, center, compiled):
    exponents = torch.linspace(-decades / 2, decades / 2, 64, dtype=torch.float64) + center
    x = far_apart(32, exponents, dtype).requires_grad_()
    # Under vmap values cannot be read, as on an accelerator: errors would show as NaN.
    context = torch.func.vmap if compiled else lambda f: lambda *a: f(*(t[0] for t in a))[None]
    whiten = DecorrelatedBatchNorm1d(
        64, eps=0.0, affine=False, track_running_stats=False, dtype=dtype
    )
    y = context(whiten)(x[None])[0]
    (gradient,) = torch.autograd.grad((y * torch.randn(y.shape, dtype=dtype)).sum(), x)
    assert gradient.isfinite().all()
    values = torch.linalg.eigvalsh(torch.cov(y.double().T, correction=0))
    # Samples of rank 31: as many directions are white, the others are zero.
    assert values[:33].abs().max() < 1e-3
    assert values[33:].max() < 1 + 1e-4
    if decades < 7:
        assert values[33:].min() > 0.99
    # (Σ⁺)^{1/2} X = √m U Vᵀ of X = U Σ Vᵀ: every feature has it, those of small variance too.
    centered = (x.detach().double() - x.detach().double().mean(0)).T
    u, _, vh = torch.linalg.svd(centered, full_matrices=False)
    expected = 32**0.5 * u[:, :31] @ vh[:31]
    error = (y.detach().double().T - expected).norm(dim=1) / expected.norm(dim=1)
    if dtype == torch.float64:
        assert error.max() < 1e-4


@pytest.mark.parametrize("exponents", [(0.0, 0.0), (6.0, 0.0), (-3.0, 2.5, -1.0)])
def test_a_regular_covariance_takes_no_ridge_of_others(exponents):
    x = far_apart(200, torch.tensor(exponents, dtype=torch.float64))
    n = len(exponents)
    y = DecorrelatedBatchNorm1d(n, eps=0.0, affine=False, dtype=torch.float64)(x)
    c = torch.cov(x.T, correction=0)
    expected = exact(c, "inv_sqrt") @ (x - x.mean(0)).T
    torch.testing.assert_close(y.T, expected, rtol=1e-3, atol=1e-3)
    white = torch.cov(y.T, correction=0)
    torch.testing.assert_close(white, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-3)


def test_a_feature_that_does_not_vary_beside_large_ones():
    for dtype in (torch.float32, torch.float64):
        x = far_apart(256, torch.full((64,), 6.0), dtype)
        x[:, 0] = 1e5
        y = DecorrelatedBatchNorm1d(64, dtype=dtype)(x)
        assert y.isfinite().all()
        values = torch.linalg.eigvalsh(torch.cov(y.double().T, correction=0))[1:]
        torch.testing.assert_close(values, torch.ones_like(values), atol=1e-3, rtol=0)


def test_features_of_very_different_variance_are_coloured():
    content = far_apart(32, torch.linspace(10, 11, 64, dtype=torch.float64)).T[None]
    style = torch.randn(1, 64, 300, dtype=torch.float64)
    y = matroot.nn.functional.whiten_and_color(content, style, eps=0.0)
    assert y.isfinite().all()
    values = torch.linalg.eigvalsh(torch.cov(y[0], correction=0))
    assert int((values > 0.1).sum()) == 31


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


def test_a_cut_off_leaves_noise_out():
    """A signal of rank 3 in noise of 1e-3: what is left out is 0, the signal is whitened."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(500, 3, generator=generator) @ torch.randn(3, 16, generator=generator)
    x = signal + 1e-3 * torch.randn(500, 16, generator=generator)
    kept = DecorrelatedBatchNorm1d(16, eps=0.0, affine=False, rtol=1e-4)(x)
    values = torch.linalg.eigvalsh(torch.cov(kept.mT, correction=0))
    torch.testing.assert_close(values[-3:], torch.ones(3), rtol=0, atol=1e-4)
    assert values[:-3].abs().max() < 1e-6
    everything = DecorrelatedBatchNorm1d(16, eps=0.0, affine=False)(x.double())
    assert torch.linalg.eigvalsh(torch.cov(everything.mT))[0] > 0.5
    evaluated = DecorrelatedBatchNorm1d(16, eps=0.0, rtol=1e-4, momentum=1.0)
    evaluated(x)
    first = evaluated.eval()(x)
    evaluated.rtol = None
    assert not torch.allclose(evaluated(x), first, rtol=0.01)
    with pytest.raises(ValueError, match="rtol must be below 1"):
        DecorrelatedBatchNorm1d(16, rtol=2.0)
    with pytest.raises(ValueError, match="pinv"):
        DecorrelatedBatchNorm1d(16, rtol=0.1, method="pade")(x)


@pytest.mark.parametrize("samples", [32, 64, 100])
def test_the_gradient_without_a_ridge_is_that_of_the_output(samples):
    """With so few samples the covariance is singular, up to the ridge for rounding."""
    generator = torch.Generator().manual_seed(0)
    x, direction, weight = (
        torch.randn(samples, 64, dtype=torch.float64, generator=generator) for _ in range(3)
    )
    layer = DecorrelatedBatchNorm1d(
        64, eps=0.0, affine=False, track_running_stats=False, dtype=torch.float64
    )

    def loss(x):
        return (layer(x) * weight).sum()

    found = (torch.func.grad(loss)(x) * direction).sum()
    step = 1e-5
    difference = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    torch.testing.assert_close(found, difference, rtol=1e-3, atol=0)


def test_a_cut_off_below_single_precision_counts_in_double():
    """A covariance in float32 is computed in float64, where 1e-8 of a variance is no rounding."""
    covariance = torch.diag(torch.tensor([1.0, 1e-8, 1e-4]))
    found = matroot.nn.functional.inverse_root(covariance, 0.0, rtol=1e-10)
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.0, 1e4, 1e2])))
    found = matroot.nn.functional.inverse_root(covariance, 0.0, rtol=1e-6)
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.0, 0.0, 1e2])))
