"""Whitening by covariances that are singular, badly scaled or known to rounding only."""

import pytest
import torch
from torch import nn

import matroot
from matroot.nn import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
)
from matroot.testing import exact
from nn.layers import correlated

SLOW = pytest.mark.slow


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
