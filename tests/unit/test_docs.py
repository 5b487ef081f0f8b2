"""What the page on distances says runs, and agrees with the packages that it speaks of."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import matroot
import matroot.compat.torchmetrics
from matroot.compat.pytorch_fid import calculate_frechet_distance

PAGE = Path(__file__).parents[2] / "docs/distances.md"


def test_the_blocks_of_the_page_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 7
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["w"].grad.isfinite().all()


def test_the_function_names_of_the_page_are_there():
    named = re.findall(r"`(?:matroot\.)?((?:nn|compat)\.[\w.]+|\w+)\(", PAGE.read_text())
    own = [name for name in named if name in matroot.__all__ or name.startswith(("nn.", "compat."))]
    assert {"barycenter", "transport_map", "frechet_distance_from_features"} <= {*own}
    for name in own:
        found = matroot
        for part in name.split("."):
            found = getattr(found, part)


def test_a_stand_in_shows_its_name_alone():
    assert dir(matroot.compat.torchmetrics) == ["FrechetDistance"]


def published(mu1, sigma1, mu2, sigma2):
    """The formula of pytorch-fid, with eigenvalues in the place of SciPy's root."""
    trace = np.sqrt(np.linalg.eigvals(sigma1 @ sigma2).astype(complex)).real.sum()
    return np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * trace


def statistics(count, seed, n=12):
    x = np.random.default_rng(seed).normal(size=(count, n)) * np.linspace(0.5, 2, n) + seed
    return x.mean(0), np.cov(x, rowvar=False)


def test_the_function_of_pytorch_fid():
    arguments = *statistics(40, 0), *statistics(50, 1)
    for array in arguments:
        array.setflags(write=False)  # As from numpy.load with mmap_mode.
    copies = [array.copy() for array in arguments]
    found = calculate_frechet_distance(*arguments, eps=1e-6)
    assert type(found) is float
    assert found == pytest.approx(published(*arguments), rel=1e-12)
    assert calculate_frechet_distance(*map(torch.tensor, copies)) == found
    assert calculate_frechet_distance(*arguments[:2], *arguments[:2]) == 0.0
    assert calculate_frechet_distance(3.0, 4.0, 1, 1) == 4.0 + 1.0
    # Fewer samples than features: no ridge.
    few = *statistics(5, 0), *statistics(6, 1)
    samples = [np.random.default_rng(s).normal(size=(c, 12)) for s, c in ((0, 5), (1, 6))]
    scaled = [torch.tensor(x * np.linspace(0.5, 2, 12) + s) for s, x in enumerate(samples)]
    expected = matroot.frechet_distance_from_features(*scaled)
    assert calculate_frechet_distance(*few) == pytest.approx(expected.item(), rel=1e-7)


def test_single_precision_is_known_as_such():
    (mu1, sigma1), (mu2, sigma2) = statistics(5, 0), statistics(50, 1)
    sigma = sigma1.astype(np.float32)
    assert np.linalg.eigvalsh(sigma.astype(float))[0] < -1e-12  # By rounding.
    found = calculate_frechet_distance(mu1, sigma, mu2, sigma2)
    assert found == pytest.approx(published(mu1, sigma1, mu2, sigma2), rel=1e-4)


def test_what_the_function_of_pytorch_fid_refuses():
    mu, sigma = statistics(40, 0)
    with pytest.raises(ValueError, match=r"got mu1 \(11,\), sigma1 \(12, 12\), mu2 \(12,\)"):
        calculate_frechet_distance(mu[1:], sigma, mu, sigma)
    with pytest.raises(ValueError, match=r"sigma2 \(2, 12, 12\)"):
        calculate_frechet_distance(mu, sigma, mu, np.stack([sigma, sigma]))
    with pytest.raises(torch.linalg.LinAlgError, match="indefinite"):
        calculate_frechet_distance(mu, sigma, mu, -sigma)
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        calculate_frechet_distance(mu, sigma, mu * np.nan, sigma)


def test_fid_of_mixed_precision_keeps_the_means():
    one = np.eye(3)
    single = one.astype("float32")
    far = np.full(3, 1e9)
    assert calculate_frechet_distance(far, single, far + 1, one) == 3.0
    near = calculate_frechet_distance(far * 1e-5, single, far * 1e-5 + 1e-3, single)
    assert abs(near - 3e-6) < 1e-14


def test_fid_takes_whatever_numpy_has():
    one = np.eye(3)
    zero = np.zeros(3, np.longdouble)
    assert abs(calculate_frechet_distance(zero[::-1], one[::-1, ::-1], zero, 4 * one) - 3) < 1e-14
    with pytest.raises(TypeError, match="sigma1 must be real"):
        calculate_frechet_distance(zero, one + 0j, zero, one)
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        calculate_frechet_distance(zero + np.nan, one, zero, one)
