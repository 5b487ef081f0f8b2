"""Covariances of real data in float32: no further from the truth than eigh.

The truth is that of the float32 matrix itself, computed in double precision.
"""

import functools

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import unfold

import matroot
from matroot.methods import Minimax
from matroot.recipes.images import CONTENTS, STYLES, photograph
from matroot.recipes.stylize import patch_covariance
from matroot.testing import by_eigh, exact, exact_gradient, relative_error

FUNCTIONS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}
OPTIONS = {"auto": {}, "minimax": {"method": Minimax()}}


def covariance(rows):
    return torch.cov(rows.T)


@functools.cache
def digits():
    """1797 scanned digits of 64 pixels in [0, 1], and which digit each is."""
    data = load_digits()
    return torch.from_numpy(data.data) / 16, torch.from_numpy(data.target)


def digits_of_each_class():
    """Singular: some pixels of the border are 0 in every picture."""
    pixels, classes = digits()
    return torch.stack([covariance(pixels[classes == k]) for k in range(10)])


def varying_pixels():
    pixels, _ = digits()
    return covariance(pixels[:, pixels.std(0) > 0])


def grey_patches(name):
    grey = photograph(name).double().mean(0) / 255
    return covariance(unfold(grey[None, None], kernel_size=8, stride=3)[0].T)


def photographs(measure):
    return torch.stack([measure(name) for name in CONTENTS + STYLES])


FULL_RANK = {
    "digits": varying_pixels,  # n = 61
    "digits of each class, ridge": lambda: digits_of_each_class() + 1e-3 * torch.eye(64),
    "grey patches": lambda: photographs(grey_patches),  # n = 64
    # n = 147
    "colour patches": lambda: photographs(lambda name: patch_covariance(photograph(name))),
    "colour patches, small ridge": lambda: photographs(
        lambda name: patch_covariance(photograph(name), eps=1e-5)
    ),
}


@functools.cache
def covariances(data):
    """Float32 (b, n, n), and the condition number of each."""
    a = FULL_RANK[data]().to(torch.float32)
    a = a.reshape(-1, *a.shape[-2:])
    return a, torch.linalg.cond(a.double())


def cotangent(a):
    return torch.randn(a.shape, generator=torch.Generator().manual_seed(0))


def by_matroot(a, g, quantity, options):
    leaf = a.clone().requires_grad_()
    root = FUNCTIONS[quantity](leaf, **options)
    return root.detach(), torch.autograd.grad(root, leaf, g)[0]


def errors(a, g, quantity, found):
    """The relative errors of the root and of its gradient, each of shape (b,)."""
    root, gradient = found
    return torch.stack(
        [
            relative_error(root, exact(a, quantity)),
            relative_error(gradient, exact_gradient(a, g, quantity)),
        ]
    )


@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize("data", FULL_RANK)
@pytest.mark.parametrize("method", OPTIONS)
def test_no_further_from_the_truth_than_eigh(method, data, quantity):
    a, cond = covariances(data)
    g = cotangent(a)
    ours = errors(a, g, quantity, by_matroot(a, g, quantity, OPTIONS[method]))
    eigh = errors(a, g, quantity, by_eigh(a, g, quantity))
    allowed = torch.full_like(ours, 1.1)
    if method == "minimax":
        allowed[1, cond >= 1e4] = 0.8
        if quantity == "inv_sqrt":
            allowed[0, cond >= 1e4] = 0.8
    ratio = ours / eigh
    print(data, quantity, method, [f"{k:.0e}" for k in cond])
    for name, i in (("root", 0), ("gradient", 1)):
        cells = zip(ours[i], eigh[i], ratio[i], strict=True)
        print(name, *(f"{x:.1e}/{y:.1e}={r:.3f}" for x, y, r in cells))
    assert (ratio <= allowed).all(), ratio


@pytest.mark.parametrize("method", OPTIONS)
def test_singular(method):
    a = digits_of_each_class().to(torch.float32)
    assert (torch.linalg.matrix_rank(a.double()) < 64).all()
    truth = exact(a)
    ours = relative_error(matroot.sqrtm(a, **OPTIONS[method]), truth)
    eigh = relative_error(by_eigh(a, cotangent(a))[0], truth)
    assert (ours <= 3 * eigh).all(), ours / eigh
    for matrix in a:
        with pytest.raises(torch.linalg.LinAlgError, match="singular"):
            matroot.inv_sqrtm(matrix, **OPTIONS[method])
    # With a ridge there is an inverse, well conditioned, with errors of ordinary rounding.
    z = matroot.inv_sqrtm(a, eps=1e-2, **OPTIONS[method])
    ridge = a.double() + 1e-2 * torch.eye(64)
    assert relative_error(z, exact(ridge, "inv_sqrt")).max() < 1e-4
