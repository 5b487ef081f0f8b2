"""Weights and masks of samples: as if samples were left out or repeated."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import matroot
from matroot.nn import (
    CovariancePooling2d,
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNormAct,
    SecondOrderHead,
    TemporalCovariancePooling,
    TokenCovariancePooling,
    WhiteningColoring2d,
    convert_batchnorm,
)
from matroot.statistics import Sums, moments
from nn.layers import correlated, randomize, settled

RULES = [None, 0.3, "ledoit_wolf", "oas"]


def masked(x, mask, value):
    """The samples with this value in all features where the mask (N, ...) is False."""
    return torch.where(mask.unsqueeze(1), x, value)


def some(*shape, seed=3):
    """A mask that keeps about two thirds."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.67


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("center", [True, False])
def test_moments_of_masked_and_weighted_samples(rule, center):
    x = correlated(1, 4, 30)[0]
    options = {"shrinkage": rule, "center": center}
    mask = some(30)
    expected = moments(x[:, mask], **options)
    for value in (0.0, 1e200, torch.nan, torch.inf):
        found = moments(torch.where(mask, x, value), sample_weight=mask, **options)
        torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(found.mean, expected.mean)
        torch.testing.assert_close(found.centered[:, mask], expected.centered)
        assert found.centered[:, ~mask].eq(0).all()
        assert found.samples.item() == mask.sum()
    counts = torch.arange(30) % 4
    repeated = moments(x.repeat_interleave(counts, 1), **options)
    for weight in (counts, counts.double(), counts.half()):
        found = moments(x, sample_weight=weight, **options)
        torch.testing.assert_close(found.covariance, repeated.covariance, rtol=1e-12, atol=1e-12)
    batch = x.view(4, 5, 6).movedim(1, 0)
    for weight in (mask.view(5, 6), mask[:6]):
        found = moments(batch, over_batch=True, sample_weight=weight, **options)
        expected = moments(x[:, weight.expand(5, 6).flatten()], **options)
        torch.testing.assert_close(found.covariance, expected.covariance)


@pytest.mark.parametrize("rule", RULES)
def test_derivatives_of_weighted_moments(rule):
    x = correlated(2, 3, 7).requires_grad_()
    weight = torch.rand(2, 7, dtype=torch.float64).requires_grad_()

    def function(x, weight):
        found = moments(x, shrinkage=rule, sample_weight=weight)
        return found.covariance, found.mean, found.centered

    assert torch.autograd.gradcheck(function, (x, weight))
    mask = some(2, 7)
    bad = masked(x.detach(), mask, torch.nan).requires_grad_()
    zeros = torch.where(mask, weight.detach(), 0.0).requires_grad_()
    function(bad, zeros)[0].sin().sum().backward()
    assert bad.grad.isfinite().all()
    assert bad.grad[~mask[:, None].expand_as(x)].eq(0).all()
    assert zeros.grad.isfinite().all()
    assert zeros.grad[~mask].eq(0).all()
    for i in range(2):
        kept = x.detach()[i, :, mask[i]].requires_grad_()
        function(kept, zeros.detach()[i, mask[i]])[0].sin().sum().backward()
        torch.testing.assert_close(bad.grad[i, :, mask[i]], kept.grad)


def test_sums_of_weighted_samples():
    x, counts = correlated(50, 3), torch.arange(50) % 3
    found, expected = Sums.of(x[:0]), Sums.of(x.repeat_interleave(counts, 0))
    for rows, weight in zip(x.split(20), counts.double().split(20), strict=True):
        found.include_(rows, weight)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-12)


@pytest.mark.parametrize(
    ("weight", "kind", "message"),
    [
        (torch.ones(4), ValueError, r"broadcast to \(2, 5\), .* got shape \(4,\)"),
        (torch.ones(2, 1, 5), ValueError, r"broadcast to \(2, 5\), .* got shape \(2, 1, 5\)"),
        (-torch.ones(5), ValueError, "finite and at least 0, got -1.0"),
        (torch.full((5,), torch.nan), ValueError, "got nan"),
        (torch.full((5,), torch.inf), ValueError, "got inf"),
        (torch.tensor([[True], [False]]), ValueError, r"leaves no sample \(batch index 1\)"),
        (torch.ones(5, device="meta"), ValueError, "sample_weight is on meta, the samples on cpu"),
        (torch.ones(5, dtype=torch.complex64), TypeError, "got torch.complex64"),
        ([1] * 5, TypeError, "got list"),
    ],
)
def test_what_is_no_weight(weight, kind, message):
    with pytest.raises(kind, match=message):
        moments(torch.randn(2, 3, 5), sample_weight=weight)


@pytest.mark.parametrize("weight", [-1.0, torch.nan, torch.inf, 0.0])
def test_where_errors_are_not_checked_bad_weights_give_nan(weight):
    x = torch.randn(2, 3, 5)
    weights = torch.ones(2, 5)
    weights[1] = weight
    found = torch.func.vmap(lambda x, w: moments(x, sample_weight=w)[:2])(x, weights)
    for part, expected in zip(found, moments(x[0])[:2], strict=True):
        torch.testing.assert_close(part[0], expected)
        assert part[1].isnan().all()


def gradients(layer, y, g, x):
    (y * g).sum().backward()
    return [x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DecorrelatedBatchNorm2d, {}),
        (DecorrelatedBatchNorm2d, {"groups": 2, "shrinkage": "ledoit_wolf", "momentum": None}),
        (DecorrelatedBatchNorm2d, {"running": "whitening", "affine": False}),
        (DecorrelatedBatchNormAct, {"act": nn.Hardswish(), "track_running_stats": False}),
    ],
)
@pytest.mark.parametrize("shape", [(5, 6, 4, 3), (30, 6, 2, 1)])
def test_whitening_of_masked_samples(kind, options, shape):
    x = correlated(*shape)
    mask = some(shape[0], *shape[2:])
    layer = randomize(kind(6, dtype=torch.float64, **options))
    # The samples that are kept, as pictures of one pixel each.
    kept = x.movedim(1, -1)[mask][:, :, None, None].requires_grad_()
    bad = masked(x, mask, torch.nan).requires_grad_()
    g = torch.randn_like(x)
    for training in (True, False):
        twin = copy.deepcopy(layer).train(training)
        alone = copy.deepcopy(layer).train(training)
        y, expected = twin(bad, mask), alone(kept)
        torch.testing.assert_close(y.movedim(1, -1)[mask], expected[..., 0, 0])
        if kind is DecorrelatedBatchNorm2d:
            assert y.movedim(1, -1)[~mask].eq(0).all()
        bad.grad = kept.grad = None
        found = gradients(twin, y, g, bad)
        wanted = gradients(alone, expected, g.movedim(1, -1)[mask][:, :, None, None], kept)
        torch.testing.assert_close(found[0].movedim(1, -1)[mask], wanted[0][..., 0, 0])
        assert found[0].movedim(1, -1)[~mask].eq(0).all()
        torch.testing.assert_close(found[1:], wanted[1:])
        torch.testing.assert_close(dict(twin.named_buffers()), dict(alone.named_buffers()))
        layer = copy.deepcopy(twin)


def test_whitening_of_weighted_samples():
    x, counts = correlated(12, 4), torch.arange(12) % 3
    weighted = randomize(DecorrelatedBatchNorm1d(4, dtype=torch.float64))
    repeating = copy.deepcopy(weighted)
    y = weighted(x, counts)
    torch.testing.assert_close(
        y.repeat_interleave(counts, 0), repeating(x.repeat_interleave(counts, 0))
    )
    torch.testing.assert_close(
        dict(weighted.named_buffers()), dict(repeating.named_buffers()), rtol=1e-12, atol=1e-12
    )
    with pytest.raises(ValueError, match="weights that sum to 1; a weight counts samples"):
        weighted(x, torch.full((12,), 1 / 12))
    with pytest.raises(ValueError, match=r"broadcast to \(5, 2, 3\), .* got shape \(5, 1, 2, 3\)"):
        DecorrelatedBatchNorm2d(4)(torch.randn(5, 4, 2, 3), torch.ones(5, 1, 2, 3))


@pytest.mark.parametrize("whitening", [False, True])
def test_pooling_of_masked_positions(whitening):
    x = correlated(3, 5, 4, 3)
    mask = some(3, 4, 3)
    layer = CovariancePooling2d(5, (4, 3), dtype=torch.float64)
    if whitening:
        convert_batchnorm(layer, "all", group_size=1)
    settled(layer, (x,))
    g = torch.randn(3, layer.out_features, dtype=torch.float64)
    for training in (True, False):
        twin, alone = (copy.deepcopy(layer).train(training) for _ in range(2))
        bad = masked(x, mask, torch.nan).requires_grad_()
        y = twin(bad, mask)
        found = gradients(twin, y, g, bad)
        # What is kept, reduced together as pictures of one pixel, and then each picture's apart.
        kept = x.movedim(1, -1)[mask].requires_grad_()
        reduced = alone.reduction(kept[:, :, None, None])[..., 0].split(mask.sum((1, 2)).tolist())
        last = CovariancePooling2d(3, dtype=torch.float64)
        expected = torch.cat([last(part.permute(2, 1, 0).unsqueeze(-1)) for part in reduced])
        torch.testing.assert_close(y, expected)
        wanted = gradients(alone, expected, g, kept)
        torch.testing.assert_close(found[0].movedim(1, -1)[mask], wanted[0])
        torch.testing.assert_close(found[1:], wanted[1:])
        torch.testing.assert_close(dict(twin.named_buffers()), dict(alone.named_buffers()))
    with pytest.raises(ValueError, match=r"leaves no sample \(batch index 1\)"):
        layer(x, torch.tensor([True, False, True]).view(3, 1, 1))


def test_pooling_of_padded_tokens():
    tokens = torch.randn(2, 9, 5, dtype=torch.float64)
    lengths = [9, 6]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    bad = torch.where(mask[..., None], tokens, torch.nan)
    for layer in (
        TokenCovariancePooling(5, 3, dtype=torch.float64),
        SecondOrderHead(5, 4, 3, prefix_tokens=2, dtype=torch.float64),
    ):
        y = layer.eval()(bad, mask.long())
        each = [layer(tokens[i : i + 1, :length]) for i, length in enumerate(lengths)]
        torch.testing.assert_close(y, torch.cat(each))


@pytest.mark.parametrize("blending", [1.0, 0.3])
def test_coloring_of_a_region_by_a_region(blending):
    content, style = correlated(2, 4, 5, 3), correlated(2, 4, 3, 6, seed=1)
    inside, of = some(2, 5, 3), some(2, 3, 6, seed=5)
    layer = WhiteningColoring2d(4, groups=2, blending=blending, learn_blending=True).double()
    bad = masked(content, inside, torch.nan).requires_grad_()
    styled = masked(style, of, torch.inf).requires_grad_()
    y = layer(bad, styled, inside, of)
    assert torch.equal(y.isnan(), bad.isnan())
    inner = inside.unsqueeze(1).expand_as(y)
    y[inner].square().sum().backward()
    by_blending, layer.blending.grad = layer.blending.grad, None
    for i in range(2):
        cut = content[i : i + 1, :, inside[i]].unsqueeze(-1).requires_grad_()
        by = style[i : i + 1, :, of[i]].unsqueeze(-1).requires_grad_()
        expected = layer(cut, by)
        torch.testing.assert_close(y[i, :, inside[i]], expected[0, ..., 0])
        expected.square().sum().backward()
        torch.testing.assert_close(bad.grad[i, :, inside[i]], cut.grad[0, ..., 0])
        torch.testing.assert_close(styled.grad[i, :, of[i]], by.grad[0, ..., 0])
    assert bad.grad[~inner].eq(0).all()
    torch.testing.assert_close(by_blending, layer.blending.grad)
    with pytest.raises(ValueError, match=r"style_weight must broadcast to \(2, 3, 6\)"):
        layer(content, style, style_weight=inside)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_in_half_precision(dtype):
    x, mask = correlated(3, 4, 5, 3, dtype=torch.float32), some(3, 5, 3)
    heavy = 1e5 * mask  # More than half precision can count.
    for layer in (DecorrelatedBatchNorm2d(4, eps=1e-2), CovariancePooling2d(4, 3)):
        expected = copy.deepcopy(layer)(x, mask)
        half = copy.deepcopy(layer).to(dtype)
        for weight in (mask, heavy):
            y = copy.deepcopy(half)(x.to(dtype), weight)
            assert y.dtype == dtype
            torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)
        with torch.autocast("cpu", dtype):
            y = copy.deepcopy(layer)(x, heavy)
        torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)


def test_what_takes_no_weights():
    x = torch.randn(2, 4, 3, 2, 2)
    with pytest.raises(ValueError, match="attention mixes positions and frames"):
        TemporalCovariancePooling(4, 2)(x, torch.ones(2, 3, 2, 2))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(CovariancePooling2d(4, 2))
    with pytest.raises(ValueError, match=r"convert_batchnorm\(…, group_size=1\)"):
        synchronised(x[:, :, 0], torch.ones(2, 2, 2))


LAYERS = pytest.mark.parametrize(
    "make",
    [lambda: DecorrelatedBatchNorm2d(4, momentum=None), lambda: CovariancePooling2d(4, 3)],
    ids=["whitening", "pooling"],
)


class Masked(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, mask):
        return self.layer(x, sample_weight=mask)


@LAYERS
def test_masks_are_recorded(make):
    x, mask = correlated(3, 4, 4, 3, dtype=torch.float32), some(3, 4, 3)
    model = Masked(make()).eval()
    assert torch.equal(torch.fx.symbolic_trace(model)(x, mask), model(x, mask))


@pytest.mark.slow
@LAYERS
def test_masks_compile_and_export(make):
    x, mask = correlated(3, 4, 4, 3, dtype=torch.float32), some(3, 4, 3)
    model = Masked(make())
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, mask), model(x, mask), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(twin.named_buffers()), dict(model.named_buffers()))
    model.eval()
    exported = torch.export.export(model, (x, mask)).module()
    torch.testing.assert_close(exported(x, mask), model(x, mask), rtol=1e-4, atol=1e-4)


def test_what_the_page_on_layers_says_of_them():
    page = (Path(__file__).parents[2] / "docs/layers.md").read_text()
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "padding" in b)
    names = {"torch": torch}
    exec(compile(block, "docs/layers.md", "exec"), names)
    assert names["pooled"].shape == (8, 136)
    a = moments(correlated(1, 4, 30)[0]).covariance
    eye, eps = torch.eye(4, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    assert "`matroot.inv_sqrtm(a + eps * torch.eye(n))`" in page
    ridged = lambda eps: matroot.inv_sqrtm(a + eps * eye)  # noqa: E731
    assert torch.autograd.gradcheck(ridged, (eps.requires_grad_(),))


def test_the_ridge_of_a_layer_may_change_between_steps():
    layer = DecorrelatedBatchNorm1d(4)
    x = correlated(20, 4, dtype=torch.float32)
    layer(x)
    layer.eval()
    for eps in (1e-2, 1.0):
        layer.eps = eps
        fresh = DecorrelatedBatchNorm1d(4, eps=eps).eval()
        fresh.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), fresh(x))
