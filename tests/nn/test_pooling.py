"""Covariance pooling, second-order head and attention against their definitions."""

import pytest
import torch
from torch import nn

import matroot
from matroot.methods import NewtonSchulz
from matroot.nn import (
    CovariancePooling1d,
    CovariancePooling2d,
    CovariancePooling3d,
    SecondOrderHead,
    TemporalAttention,
    TemporalCovariancePooling,
    TokenCovariancePooling,
    pack_triangle,
    unpack_triangle,
)
from matroot.nn.functional import power_normalization
from matroot.testing import exact

DOUBLE = torch.float64


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(shape[1], shape[1], dtype=DOUBLE, generator=generator)
    x = torch.randn(*shape, dtype=DOUBLE, generator=generator)
    return torch.einsum("ij,nj...->ni...", mix, x) + 1


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (CovariancePooling1d, (3, 5, 11)),
        (CovariancePooling2d, (3, 5, 4, 3)),
        (CovariancePooling3d, (3, 5, 2, 3, 2)),
    ],
)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalization", ["sqrt", "power", "none"])
def test_definition(layer, shape, center, normalization):
    x = features(*shape)
    pooling = layer(5, center=center, normalization=normalization)
    found = unpack_triangle(pooling(x))
    for one, picture in zip(found, x.flatten(2), strict=True):
        middle = picture.mean(1, keepdim=True) if center else 0
        c = (picture - middle) @ (picture - middle).T / picture.shape[1]
        if normalization == "sqrt":
            c = exact(c)
        elif normalization == "power":
            v = nn.functional.normalize(c.sum(1), dim=0)
            c = c / (v @ c @ v).sqrt()
        torch.testing.assert_close(one, c)


def test_tokens_are_positions():
    x = features(3, 5, 11)
    torch.testing.assert_close(TokenCovariancePooling(5)(x.mT), CovariancePooling1d(5)(x))


def test_the_ridge_and_the_shrinkage():
    x = features(2, 5, 3, 3)
    (c, _) = (torch.cov(one.flatten(1), correction=0) for one in x)
    eye = torch.eye(5, dtype=DOUBLE)
    found = CovariancePooling2d(5, eps=0.3, shrinkage=0.2, triangle=False)(x)
    expected = exact(0.8 * c + 0.2 * c.trace() / 5 * eye + 0.3 * eye)
    torch.testing.assert_close(found[0], expected)


def test_the_reduction():
    pooling = CovariancePooling2d(6, (5, 4), dtype=DOUBLE, normalization="none", triangle=False)
    x = features(3, 6, 4, 3)
    y = x
    for i in (0, 3):
        weight = pooling.reduction[i].weight[:, :, 0, 0]
        y = torch.einsum("ij,njhw->nihw", weight, y)
        mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
        y = (y - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        y = y.relu()
    torch.testing.assert_close(pooling(x)[1], torch.cov(y[1].flatten(1), correction=0))
    assert (pooling.out_channels, pooling.out_features) == (4, 16)
    assert pooling.reduction[0].bias is None
    assert len(CovariancePooling2d(6).reduction) == 0


def test_scaled_triangles_keep_distances():
    x = features(2, 5, 3, 3)
    pooling = CovariancePooling2d(5, scaled=True)
    matrices = CovariancePooling2d(5, triangle=False)(x)
    vectors = pooling(x)
    assert vectors.shape[1] == pooling.out_features == 15
    torch.testing.assert_close((vectors[0] - vectors[1]).norm(), (matrices[0] - matrices[1]).norm())
    torch.testing.assert_close(unpack_triangle(vectors, scaled=True), matrices)
    torch.testing.assert_close(vectors, pack_triangle(matrices, scaled=True))


def test_newton_schulz_is_isqrt_cov():
    x = features(2, 5, 4, 4)
    found = CovariancePooling2d(5, method=NewtonSchulz(5), triangle=False)(x)[0]
    c = torch.cov(x[0].flatten(1), correction=0)
    eye = torch.eye(5, dtype=DOUBLE)
    y, z = c / c.trace(), eye
    for _ in range(5):
        t = 1.5 * eye - 0.5 * z @ y
        y, z = y @ t, t @ z
    torch.testing.assert_close(found, y * c.trace().sqrt())


@pytest.mark.parametrize("method", ["taylor", "pade", "newton_schulz", "minimax", "eigh", "svd"])
def test_fewer_positions_than_channels(method):
    x = features(3, 32, 3, 3).float().relu().requires_grad_()
    y = CovariancePooling2d(32, method=method, triangle=False)(x)
    (g,) = torch.autograd.grad(y.square().sum() + y.sum(), x)
    assert y.isfinite().all()
    assert g.isfinite().all()
    if method in ("minimax", "eigh", "svd"):
        c = torch.cov(x[0].detach().flatten(1), correction=0)
        torch.testing.assert_close(y[0] @ y[0], c, rtol=1e-4, atol=1e-5)


def test_the_gradient_where_the_covariance_is_singular_is_that_of_the_nuclear_norm():
    # tr C^{1/2} = ‖X_c‖_*/√m, whose gradient U Vᵀ/√m is defined at every rank-keeping point.
    x = features(1, 12, 2, 4).requires_grad_()
    y = CovariancePooling2d(12, triangle=False)(x)
    (g,) = torch.autograd.grad(y[0].trace(), x)
    centered = x[0].detach().flatten(1)
    centered = centered - centered.mean(1, keepdim=True)
    u, s, vh = torch.linalg.svd(centered, full_matrices=False)
    keep = s > 1e-9 * s[0]
    expected = (u[:, keep] @ vh[keep]) / 8**0.5
    torch.testing.assert_close(g[0].flatten(1), expected, rtol=1e-6, atol=1e-7)


def test_a_single_position_has_no_covariance():
    x = torch.randn(2, 4, 1, 1, requires_grad=True)
    y = CovariancePooling2d(4)(x)
    assert torch.equal(y, torch.zeros(2, 10))
    (g,) = torch.autograd.grad(y.sum(), x)
    assert g.isfinite().all()
    assert torch.equal(CovariancePooling2d(4, normalization="power")(x), torch.zeros(2, 10))


def test_power_normalization_fails_loudly_where_the_start_lies_in_the_null_space():
    v = torch.tensor([1.0, -1.0, 0.0])
    assert power_normalization(torch.outer(v, v)).isnan().any()


@pytest.mark.parametrize("normalization", ["sqrt", "power"])
@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1e6, 1e15])
def test_features_of_any_scale(normalization, scale):
    x = features(2, 5, 4, 4).float()
    pooling = CovariancePooling2d(5, normalization=normalization)
    torch.testing.assert_close(pooling(scale * x) / scale, pooling(x), rtol=1e-5, atol=1e-5)


def test_the_second_order_head():
    head = SecondOrderHead(5, 3, 4, prefix_tokens=2, dtype=DOUBLE).eval()
    tokens = features(2, 5, 9).mT.contiguous()
    visual = head.pooling(tokens[:, 2:])
    assert visual.shape == (2, 10)
    torch.testing.assert_close(head(tokens), head.class_fc(tokens[:, 0]) + head.visual_fc(visual))
    # Registers between class token and visual tokens have no effect.
    other = tokens.clone()
    other[:, 1] += 1
    assert torch.equal(head(other), head(tokens))
    assert SecondOrderHead(5, 3, None).pooling.out_features == 15


def test_attention_by_hand():
    attention = TemporalAttention(3, kernel_size=3, dtype=DOUBLE).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*attention.parameters(), attention.norm.running_mean):
            tensor.copy_(torch.randn(tensor.shape, dtype=DOUBLE, generator=generator))
    x = features(1, 3, 4, 2, 2)
    frames = list(x[0].flatten(2).unbind(1))
    before = [frames[max(t - 1, 0)] for t in range(4)]
    earlier = [frames[max(t - 2, 0)] for t in range(4)]

    def apply(layer, one):
        return layer.weight.flatten(1) @ one + layer.bias[:, None]

    weighed = []
    for t in range(4):
        q, k = apply(attention.query, before[t]), apply(attention.key, earlier[t])
        share = torch.softmax(q.T @ k / 3**0.5, 1)
        seen = apply(attention.value, frames[t]) @ share.T
        norm = attention.norm
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        seen = (seen - norm.running_mean[:, None]) * scale[:, None] + norm.bias[:, None]
        one = frames[t].mean(1)
        steps = one - before[t].mean(1), (one - earlier[t].mean(1)) / 2
        gate = sum(attention.gate(step) for step in steps) / 2
        weighed.append((frames[t] + seen) * gate[:, None])
    kernel = attention.mixing.weight[:, :, :, 0, 0]
    padded = [torch.zeros_like(weighed[0]), *weighed, torch.zeros_like(weighed[0])]
    expected = [
        (
            frames[t]
            + attention.mixing.bias[:, None]
            + sum(kernel[:, :, i] @ padded[t + i] for i in range(3))
        ).relu()
        for t in range(4)
    ]
    torch.testing.assert_close(attention(x)[0].flatten(2).unbind(1), tuple(expected))


def test_attention_starts_as_the_identity_and_parts_can_be_left_out():
    x = features(2, 3, 4, 2, 2).float().relu()
    torch.testing.assert_close(TemporalAttention(3)(x), x)
    bare = TemporalAttention(3, spatial=False, temporal=False, kernel_size=0)
    assert torch.equal(bare(x), x)
    assert len(list(bare.parameters())) == 0
    assert TemporalAttention(3)(x[:, :, :1]).shape == (2, 3, 1, 2, 2)


def test_temporal_pooling_is_pooling_of_what_attention_returns():
    pooling = TemporalCovariancePooling(6, (5, 4), dtype=DOUBLE, triangle=False).eval()
    x = features(2, 6, 3, 2, 2)
    y = pooling.attention(pooling.reduction(x))
    c = torch.cov(y[1].flatten(1), correction=0)
    torch.testing.assert_close(pooling(x)[1], matroot.sqrtm(c))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CovariancePooling2d(0), "in_channels must be at least 1, got 0"),
        (lambda: CovariancePooling2d(4, 0), "out_channels must be at least 1, got 0"),
        (lambda: CovariancePooling2d(4, (3, -1)), "out_channels must be at least 1, got -1"),
        (lambda: CovariancePooling2d(4, eps=-1), "eps must be finite and at least 0, got -1"),
        (
            lambda: CovariancePooling2d(4, eps=float("nan")),
            "eps must be finite and at least 0, got nan",
        ),
        (lambda: CovariancePooling2d(4, normalization="none", eps=0.1), "takes no eps, got 0.1"),
        (lambda: CovariancePooling2d(4, method="lu"), "unknown method 'lu'"),
        (lambda: TemporalAttention(3)(torch.ones(2, 3, 0, 4, 4)), r"got \(2, 3, 0, 4, 4\)"),
        (lambda: CovariancePooling2d(4, shrinkage=2), "got 2"),
        (
            lambda: CovariancePooling2d(4, normalization="root"),
            "'sqrt', 'power', 'none'; got 'root'",
        ),
        (lambda: CovariancePooling2d(4)(torch.ones(2, 4, 0, 3)), r"got \(2, 4, 0, 3\)"),
        (lambda: CovariancePooling2d(4)(torch.ones(2, 3, 3, 3)), r"\(N, 4, H, W\).*\(2, 3, 3, 3\)"),
        (lambda: TokenCovariancePooling(4)(torch.ones(2, 0, 4)), r"\(N, T, 4\).*\(2, 0, 4\)"),
        (lambda: SecondOrderHead(4, 0), "num_classes must be at least 1, got 0"),
        (lambda: SecondOrderHead(4, 2, prefix_tokens=0), "prefix_tokens must be at least 1, got 0"),
        (lambda: SecondOrderHead(4, 2, triangle=False), "triangle=False"),
        (lambda: SecondOrderHead(4, 2)(torch.ones(3, 1, 4)), r"\(N, 1 \+ T, 4\).*\(3, 1, 4\)"),
        (lambda: TemporalAttention(0), "got 0"),
        (lambda: TemporalAttention(3, kernel_size=2), "must be odd.* got 2"),
        (lambda: TemporalAttention(3)(torch.ones(2, 3, 4, 4)), r"got \(2, 3, 4, 4\)"),
        (lambda: TemporalCovariancePooling(3, 2)(torch.ones(2, 4, 1, 1, 1)), r"\(N, 3, D, H, W\)"),
        (lambda: power_normalization(torch.eye(2), rank=0), "rank must be at least 1, got 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CovariancePooling2d(4, 2.5), "out_channels must be an int, got float"),
        (lambda: CovariancePooling2d(4, eps="x"), "eps must be a number, got str"),
        (lambda: CovariancePooling2d(4)(torch.ones(1, 4, 2, 2).long()), "torch.int64"),
        (lambda: TemporalAttention(4)(torch.ones(1, 4, 2, 2, 2).long()), "torch.int64"),
    ],
)
def test_type_errors(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_misspelt_options_are_type_errors():
    with pytest.raises(TypeError, match="normalisation"):
        SecondOrderHead(4, 2, normalisation="sqrt")
