"""The Fréchet distance of sets of samples."""

import functools

import pytest
import torch

import matroot
from matroot import statistics

DOUBLE = torch.float64
of_samples = matroot.frechet_distance_from_features


def samples(count, n, *batch, seed=0, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, count, n, dtype=DOUBLE, generator=generator)
    if dtype.is_complex:
        x = torch.complex(x, torch.randn(x.shape, dtype=DOUBLE, generator=generator))
    return (x * torch.linspace(0.5, 2, n, dtype=DOUBLE) + seed).to(dtype)


def moments(x, correction=1):
    mean = x.mean(-2)
    centered = x - mean[..., None, :]
    return mean, centered.mT @ centered.conj() / (x.shape[-2] - correction)


def expected(x, y, correction=1, **options):
    parts = [m for z in (x, y) for m in moments(z, correction)]
    return matroot.frechet_distance(*parts, **options)


SIZES = [(5, 7, 12), (2, 2, 9), (12, 12, 12), (5, 40, 12), (40, 5, 12), (60, 50, 12), (13, 12, 12)]


@pytest.mark.parametrize(("first", "second", "n"), SIZES)
@pytest.mark.parametrize("dtype", [DOUBLE, torch.complex128], ids=str)
@pytest.mark.parametrize("squared", [True, False])
def test_the_distance_is_that_of_the_moments(first, second, n, dtype, squared):
    x, y = samples(first, n, 3, dtype=dtype), samples(second, n, dtype=dtype, seed=1)
    for options in ({}, {"correction": 0}, {"eps": 0.1}):
        found = of_samples(x, y, squared=squared, **options)
        torch.testing.assert_close(
            found, expected(x, y, squared=squared, **options), rtol=1e-7, atol=0
        )
        torch.testing.assert_close(of_samples(y, x, squared=squared, **options), found)


@pytest.mark.parametrize(("first", "second", "n"), SIZES)
@pytest.mark.parametrize("squared", [True, False])
def test_gradients(first, second, n, squared):
    x = samples(first, n, 2).requires_grad_()
    y = samples(second, n, seed=1).requires_grad_()
    check = functools.partial(torch.autograd.gradcheck, fast_mode=True)  # There are many samples.
    assert check(lambda x, y: of_samples(x, y, squared=squared), (x, y))
    assert check(lambda x: of_samples(x, y.detach(), squared=squared), (x,))


def test_a_gradient_does_not_need_the_other():
    """With a side of many samples, of which the triangle of a QR factorisation is enough."""
    x, y = samples(4, 6).requires_grad_(), samples(50, 6, seed=1)
    (one,) = torch.autograd.grad(of_samples(x, y), x)
    (other,) = torch.autograd.grad(of_samples(x, y.requires_grad_()), x)
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("count", [5, 30])
def test_the_same_samples_are_at_no_distance(dtype, count):
    x = samples(count, 8, dtype=dtype).requires_grad_()
    y = x.detach().clone().requires_grad_()
    for squared in (True, False):
        d = of_samples(x, y, squared=squared)
        assert d.dtype == (DOUBLE if dtype == DOUBLE else torch.float32)
        assert d == 0
        for g in torch.autograd.grad(d, (x, y)):
            assert not g.any()


@pytest.mark.parametrize("step", [1e-3, 1e-6])
def test_near_samples_keep_their_digits(step):
    x = samples(6, 20)
    y = x * (1 + step)
    mean, covariance = moments(x)
    exact = step**2 * (mean.square().sum() + covariance.trace())
    torch.testing.assert_close(of_samples(x, y), exact, rtol=1e-13 / step, atol=0)


def test_single_precision_is_summed_in_double():
    x, y = samples(9, 20, dtype=torch.float32), samples(7, 20, seed=1, dtype=torch.float32)
    found = of_samples(x, y)
    assert found.dtype == torch.float32
    assert found == of_samples(x.double(), y.double()).float()
    # Far from 0 the second moment has no digits left; centred sums have.
    shifted = of_samples(x + 1000, y + 1000)
    torch.testing.assert_close(shifted, found, rtol=1e-3, atol=0)


def test_many_samples_are_taken_in_parts(monkeypatch):
    x, y = samples(50, 6), samples(70, 6, seed=1)
    whole = of_samples(x, y)
    monkeypatch.setattr(statistics, "_ROWS", 16)
    torch.testing.assert_close(of_samples(x, y), whole, rtol=1e-12, atol=0)


def test_features_that_do_not_vary():
    x, y = samples(30, 8), samples(40, 8, seed=1)
    x[:, 2], y[:, 2], x[:, 5] = 0.0, 0.0, 3.0
    torch.testing.assert_close(of_samples(x, y), expected(x, y))
    one = samples(1, 5)
    torch.testing.assert_close(
        of_samples(one, one + 2, correction=0), torch.tensor(20.0, dtype=DOUBLE)
    )


def test_transforms():
    x, y = samples(4, 9, 3), samples(5, 9, 3, seed=1)
    each = torch.func.vmap(of_samples)(x, y)
    torch.testing.assert_close(each, of_samples(x, y))
    by = torch.func.vmap(torch.func.grad(of_samples))(x, y)
    z = x.clone().requires_grad_()
    torch.testing.assert_close(by, torch.autograd.grad(of_samples(z, y).sum(), z)[0])


def test_what_is_refused():
    x = samples(4, 9)
    for wrong, error, text in (
        (lambda: of_samples(x, x[:, :5]), ValueError, "x and y must have one n"),
        (lambda: of_samples(x[0], x), ValueError, r"x must have shape \(..., samples, features\)"),
        (lambda: of_samples(x, x[:1]), ValueError, "y must have more than 1 samples"),
        (lambda: of_samples(x, x, correction=-1), ValueError, "correction"),
        (lambda: of_samples(x, x, correction=True), TypeError, "correction"),
        (lambda: of_samples(x, x.float()), TypeError, "dtype"),
        (lambda: of_samples(x, x.tolist()), TypeError, "y must be a torch.Tensor"),
        (lambda: of_samples(x, x / 0), torch.linalg.LinAlgError, "y is not finite"),
        (lambda: of_samples(x, x, eps=-1.0), ValueError, "eps"),
    ):
        with pytest.raises(error, match=text):
            wrong()
    z = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(of_samples(z, samples(5, 9, seed=1)), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        g.sum().backward()
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.func.jacrev(torch.func.jacrev(lambda z: of_samples(z, x)))(samples(4, 9, seed=1))
