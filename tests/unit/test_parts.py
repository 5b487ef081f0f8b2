"""The basic helpers, and the matrices that everything is tested on."""

import pytest
import torch

import matroot
from matroot import spd, testing
from matroot.gradients import GRADIENTS, Lyapunov
from matroot.lyapunov_solvers import BySign, BySmith, BySpectrum, null_share
from matroot.methods import METHODS, Pade
from matroot.registry import name_of

SPECTRA = ["log", "clustered", "outlier", "half_zero"]


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_random_spd_has_the_spectrum_it_promises(spectrum, n):
    a = testing.random_spd(n, 2, cond=100, spectrum=spectrum)
    assert torch.equal(a, a.mH)
    expected = testing.eigenvalues(n, 100, spectrum).flip(0).expand(2, n)
    torch.testing.assert_close(torch.linalg.eigvalsh(a), expected, rtol=1e-12, atol=1e-13)


def test_random_spd_is_reproducible_and_refuses_unknown_spectra():
    assert torch.equal(testing.random_spd(4, seed=3), testing.random_spd(4, seed=3))
    assert not torch.equal(testing.random_spd(4, seed=3), testing.random_spd(4, seed=4))
    with pytest.raises(ValueError, match="'half_zero', got 'flat'"):
        testing.random_spd(4, spectrum="flat")


def test_assert_root_fails_for_a_wrong_root_and_for_nan():
    a = testing.random_spd(4, 2, cond=10)
    testing.assert_root(a, matroot.sqrtm(a), cond=10)
    for wrong in (matroot.sqrtm(a) * (1 + 1e-10), matroot.sqrtm(a) * torch.nan):
        with pytest.raises(AssertionError, match="relative error"):
            testing.assert_root(a, wrong, cond=10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("n", [1, 2, 16, 200])
def test_bounds_of_the_largest_eigenvalue(n, spectrum, dtype):
    a = testing.random_spd(n, 3, cond=1e4, spectrum=spectrum, dtype=dtype)
    largest = torch.linalg.eigvalsh(a.to(torch.complex128))[:, -1]
    upper = spd.upper_bound(a).flatten().double()
    assert (upper >= largest).all()
    assert (upper <= largest * n**0.5 * 1.001).all()
    assert (spd.largest_at_least(a).flatten().double() <= largest * (1 + 1e-5)).all()


def test_hermitian_parts_are_hermitian_below_the_normal_numbers():
    units = torch.randint(9, (16, 16), generator=torch.Generator().manual_seed(0))
    x = spd.hermitian_part(units.double() * 5e-324)
    assert torch.equal(x, x.mT)
    assert x.any()


@pytest.mark.parametrize("value", [0.0, 1e-44, 1e-20, 0.3, 1.0, 4.0, 1e30, 3e38])
def test_scaling_by_powers_of_four_is_exact(value):
    a = torch.tensor([[[value, 0.0], [0.0, value / 3]]])
    k = spd.even_exponent(a)
    scaled = spd.times_power_of_two(a, -k)
    assert k.item() % 2 == 0
    assert value == 0 or 0.25 <= scaled.abs().max() < 1
    assert torch.equal(spd.times_power_of_two(scaled, k), a)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("cond", [1, 1e2, 1e3])
def test_the_solvers_agree_on_general_right_hand_sides(n, dtype, cond):
    s = testing.random_spd(n, 2, cond=cond, dtype=dtype)
    r = torch.randn_like(s)
    values, q = torch.linalg.eigh(s)
    by_spectrum = BySpectrum().solve(s, r, (values, q))
    assert testing.relative_error(s @ by_spectrum + by_spectrum @ s, r).max() < 1e-4
    tolerance = 100 * cond * torch.finfo(dtype).eps
    assert testing.relative_error(BySmith().solve(s, r, ()), by_spectrum).max() < tolerance
    by_sign = BySign(50).solve(s, r, ())
    assert testing.relative_error(by_sign, by_spectrum).max() < 10 * tolerance


def test_small_eigenvalues_that_are_not_rounding_are_kept():
    """Just above the threshold a matrix is regular: its large derivative must not be cut off."""
    for dtype in (torch.float32, torch.float64):
        smallest = 1.5 * null_share(torch.eye(3, dtype=dtype), of_rounded_matrix=True)
        s = torch.diag(torch.tensor([1.0, 0.5, smallest], dtype=dtype))[None]
        x = BySmith().solve(s, torch.ones_like(s), ())
        torch.testing.assert_close(x[0, 2, 2].item(), 1 / (2 * smallest), rtol=1e-2, atol=0)


def test_names():
    known = ["taylor", "pade", "newton_schulz", "minimax", "eigh", "svd"]
    assert [name for name in METHODS if name in known] == known
    assert all(name_of(cls()) == name for name, cls in METHODS.items())
    assert all(name_of(cls()) == name for name, cls in GRADIENTS.items())
    assert METHODS.resolve("pade") == Pade(order=5)
    assert GRADIENTS.resolve(Lyapunov(3)) == Lyapunov(steps=3)


def test_importing_matroot_brings_in_nothing_but_torch():
    import subprocess
    import sys

    # Without the modules that torch itself imports.
    code = (
        "import sys, torch; before = set(sys.modules); import matroot; "
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert set(eval(found)) - set(sys.stdlib_module_names) <= {"matroot", "torch"}
