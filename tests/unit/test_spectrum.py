"""Eigenvalues in single precision: which are recomputed, and how exactly."""

import pytest
import torch

import matroot
from matroot import spectrum
from matroot.kernels.native import tasks
from matroot.testing import random_spd

DOUBLE = torch.float64
UNIT = torch.finfo(torch.float32).eps


def of_eigenvalues(values, seed=0):
    n = len(values)
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE, generator=generator)).Q
    a = (q * torch.as_tensor(values, dtype=DOUBLE)) @ q.T
    return ((a + a.T) / 2).float()


def ones(count):
    return torch.ones(count, dtype=DOUBLE)


# Spectra near the thresholds: 4 units, 4 √n units more, and n units.
SPECTRA = {
    "one zero": lambda n: torch.cat([ones(n - 1), 0 * ones(1)]),
    "half zero": lambda n: torch.cat([ones(n - n // 2), 0 * ones(n // 2)]),
    "about null": lambda n: torch.cat([ones(n - 2), UNIT * torch.tensor([3.0, 6.0], dtype=DOUBLE)]),
    "about looked at": lambda n: torch.cat(
        [ones(n - 2), UNIT * (4 + 4 * n**0.5) * torch.tensor([0.9, 1.1], dtype=DOUBLE)]
    ),
    "about projected": lambda n: torch.cat(
        [
            ones(n // 2),
            1.05 * n * UNIT * ones(n - n // 2 - n // 8),
            UNIT * torch.linspace(0, 4 * n**0.5, n // 8, dtype=DOUBLE),
        ]
    ),
    "all small but one": lambda n: torch.cat([ones(1), 1e-6 * torch.linspace(0, 1, n - 1)]),
    "log 1e4": lambda n: torch.logspace(0, -4, n, dtype=DOUBLE),
    "log 1e8": lambda n: torch.logspace(0, -8, n, dtype=DOUBLE),
    "of both signs": lambda n: torch.cat([torch.linspace(-1, 1, n - 1), 0 * ones(1)]),
    "nearly indefinite": lambda n: torch.cat([ones(n - 1), -0.9 * n * UNIT * ones(1)]),
    "indefinite": lambda n: torch.cat([ones(n - 1), -1.1 * n * UNIT * ones(1)]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("n", [80, 300, pytest.param(1024, marks=pytest.mark.slow)])
def test_small_eigenvalues_are_told_from_zero(n, name):
    a = of_eigenvalues(SPECTRA[name](n))
    exact = torch.linalg.eigvalsh(a.double())
    values, q = spectrum.eigh(a)
    size = exact.abs().max()
    error = (values.double().sort().values - exact).abs() / (UNIT * size)
    assert error.max() <= 4 * n**0.5
    small = exact.abs() <= 8 * UNIT * size
    if name in ("nearly indefinite", "indefinite"):
        small |= exact < 0
    assert not small.any() or error[small].max() < 0.5
    wide = q.double()
    assert (wide.T @ wide - torch.eye(n)).abs().max() < 4 * n**0.5 * UNIT
    residual = a.double() @ wide - wide * values.double()
    assert residual.norm(dim=-2).max() < 4 * n**0.5 * UNIT * size


def test_the_bound_of_the_error_of_a_solver():
    """LAPACK's errors reach 2.5 √n units, for matrices with n − 1 equal eigenvalues."""
    for n in (64, 128, 300, 512):
        a = of_eigenvalues(SPECTRA["one zero"](n))
        error = torch.linalg.eigh(a)[0].double() - torch.linalg.eigvalsh(a.double())
        assert error.abs().max() < 4 * n**0.5 * UNIT


def calls(monkeypatch, name):
    found = []
    original = getattr(spectrum, name)
    monkeypatch.setattr(spectrum, name, lambda *a: found.append(name) or original(*a))
    return found


def test_only_what_can_be_wrong_is_done_again(monkeypatch):
    n = 300
    again, projected = calls(monkeypatch, "_repeat"), calls(monkeypatch, "_sharpen")
    regular = of_eigenvalues([1.0] * (n - 1) + [1.1 * (4 + 8 * n**0.5) * UNIT])
    spectrum.eigh(regular)
    assert not again
    assert not projected
    singular = of_eigenvalues(SPECTRA["half zero"](n))
    spectrum.eigh(singular, sharp=False)
    assert not again
    assert not projected
    spectrum.eigh(singular)
    assert projected
    assert not again
    spectrum.eigh(of_eigenvalues(SPECTRA["all small but one"](n)))
    assert again


@pytest.mark.skipif(not tasks.available(), reason="the package has no compiled kernels")
def test_a_root_without_a_derivative_takes_one_decomposition(monkeypatch):
    again, projected = calls(monkeypatch, "_repeat"), calls(monkeypatch, "_sharpen")
    a = of_eigenvalues(SPECTRA["half zero"](300))
    s = matroot.sqrtm(a)
    assert not again
    assert not projected
    # Errors of 2 √n units in the zeros are 2e-3 in a root.
    values, q = torch.linalg.eigh(a.double())
    expected = (q * values.clamp(min=0).sqrt()) @ q.T
    assert (s - expected).norm() < 2e-3 * s.norm()
    with pytest.raises(torch.linalg.LinAlgError, match="indefinite"):
        matroot.sqrtm(of_eigenvalues(SPECTRA["indefinite"](300)))
    matroot.sqrtm(of_eigenvalues(SPECTRA["nearly indefinite"](300)))
    with pytest.raises(torch.linalg.LinAlgError, match="singular"):
        matroot.inv_sqrtm(a)
    x = a.clone().requires_grad_()
    g = torch.autograd.grad(matroot.sqrtm(x).sum(), x)[0].double()
    null = torch.linalg.eigh(a.double())[1][:, :150]
    assert (null.T @ g @ null).norm() < 1e-4 * g.norm()


def test_bits_do_not_depend_on_neighbours_that_are_done_again():
    regular = random_spd(128, cond=10, dtype=torch.float32)
    singular = of_eigenvalues(SPECTRA["half zero"](128))
    batch = torch.stack([regular, singular, regular, singular])
    for whole, alone, other in zip(
        spectrum.eigh(batch), spectrum.eigh(regular), spectrum.eigh(singular), strict=True
    ):
        assert torch.equal(whole[0], alone)
        assert torch.equal(whole[2], alone)
        assert torch.equal(whole[1], other)
        assert torch.equal(whole[3], other)
