"""Whitening and coloring against its definition."""

import pytest
import torch

from matroot.nn import WhiteningColoring2d
from matroot.nn.functional import whiten_and_color
from matroot.testing import exact

DOUBLE = torch.float64


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(shape[1], shape[1], dtype=DOUBLE, generator=generator)
    x = torch.randn(*shape, dtype=DOUBLE, generator=generator)
    return torch.einsum("ij,nj...->ni...", mix, x) + seed + 1


def covariance(x):
    return torch.cov(x.flatten(1), correction=0)


def test_the_result_has_the_statistics_of_the_style():
    content, style = features(2, 5, 6, 7), features(2, 5, 4, 9, seed=1)
    y = whiten_and_color(content, style, eps=0.0)
    for one, other in zip(y, style, strict=True):
        torch.testing.assert_close(covariance(one), covariance(other))
        torch.testing.assert_close(one.flatten(1).mean(1), other.flatten(1).mean(1))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("blending", [0.0, 0.3, 1.0])
def test_by_hand(groups, blending):
    content, style = features(2, 6, 6, 7), features(2, 6, 4, 9, seed=1)
    y = whiten_and_color(content, style, groups=groups, blending=blending, eps=1e-2)
    eye, size = torch.eye(6 // groups, dtype=DOUBLE), 6 // groups
    for i in range(groups):
        part = slice(i * size, (i + 1) * size)
        x, s = content[1, part].flatten(1), style[1, part].flatten(1)
        whitening = exact(covariance(x) + 1e-2 * eye, "inv_sqrt")
        coloring = exact(covariance(s) + 1e-2 * eye)
        moved = coloring @ whitening @ (x - x.mean(1, keepdim=True)) + s.mean(1, keepdim=True)
        expected = blending * moved + (1 - blending) * x
        torch.testing.assert_close(y[1, part].flatten(1), expected)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 1.0])
def test_content_as_its_own_style_is_unchanged(eps):
    x = features(2, 5, 6, 7)
    torch.testing.assert_close(whiten_and_color(x, x, eps=eps), x)
    single = x.float()
    torch.testing.assert_close(
        whiten_and_color(single, single, eps=eps), single, rtol=1e-3, atol=1e-3
    )


def test_one_style_for_all_and_any_number_of_dimensions():
    content, style = features(3, 4, 30), features(1, 4, 5, 6, 2, seed=1)
    y = whiten_and_color(content, style)
    for i in range(3):
        torch.testing.assert_close(y[i], whiten_and_color(content[i : i + 1], style)[0])


def test_constant_content_takes_the_mean_and_stays_finite():
    content = torch.ones(1, 3, 4, 4, requires_grad=True)
    style = features(1, 3, 4, 4).float()
    y = whiten_and_color(content, style)
    (g,) = torch.autograd.grad(y.sum(), content)
    torch.testing.assert_close(y, style.mean((2, 3), keepdim=True).expand_as(y))
    assert g.isfinite().all()


def test_channels_that_do_not_vary_stay_finite_without_a_ridge():
    content, style = features(1, 4, 6, 6).float(), features(1, 4, 6, 6, seed=1).float()
    content[:, 1] = 3.0
    y = whiten_and_color(content, style, eps=0.0)
    assert y.isfinite().all()
    assert y.abs().max() < 100


def test_fewer_pixels_than_channels_stay_finite():
    content, style = features(1, 32, 3, 3).float().requires_grad_(), features(1, 32, 20, 20).float()
    y = whiten_and_color(content, style)
    (g,) = torch.autograd.grad(y.square().sum(), content)
    assert y.isfinite().all()
    assert g.isfinite().all()
    assert y.abs().max() < 100


def test_the_layer_learns_its_blending():
    content, style = features(2, 4, 5, 5), features(2, 4, 5, 5, seed=1)
    layer = WhiteningColoring2d(4, blending=0.25, learn_blending=True, dtype=DOUBLE)
    expected = whiten_and_color(content, style, blending=0.25)
    torch.testing.assert_close(layer(content, style), expected)
    layer(content, style).square().sum().backward()
    assert layer.blending.grad != 0
    assert [name for name, _ in layer.named_parameters()] == ["blending"]
    assert list(WhiteningColoring2d(4, group_size=2).parameters()) == []
    assert WhiteningColoring2d(4, group_size=2).groups == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: whiten_and_color(x, x[:, :2]), r"same N \(or 1\) and C.*\(2, 2, 5, 5\)"),
        (lambda x: whiten_and_color(x[:1], x), "same N"),
        (lambda x: whiten_and_color(x, x[:0]), "same N"),
        (lambda x: whiten_and_color(x, x[..., :0]), "have channels and pixels"),
        (lambda x: whiten_and_color(x[0, 0], x), r"shape \(N, C, ...\), got \(5, 5\)"),
        (lambda x: whiten_and_color(x, x, groups=3), "groups=3 does not divide the 4 channels"),
        (lambda x: WhiteningColoring2d(4)(x, x[0]), r"expected style .* got \(4, 5, 5\)"),
        (lambda x: WhiteningColoring2d(5)(x, x), r"expected content .* got \(2, 4, 5, 5\)"),
        (lambda x: WhiteningColoring2d(4, groups=3), "groups=3 does not divide"),
        (lambda x: WhiteningColoring2d(4, eps=-1.0), "got -1.0"),
        (lambda x: WhiteningColoring2d(4, shrinkage="x"), "got 'x'"),
        (lambda x: WhiteningColoring2d(0), "num_features must be at least 1, got 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(features(2, 4, 5, 5))


def test_dtypes_must_agree():
    x = features(2, 4, 5, 5)
    with pytest.raises(TypeError, match=r"one dtype, got torch.float64, torch.float32"):
        whiten_and_color(x, x.float())
