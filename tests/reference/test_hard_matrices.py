"""Ten thousand hard matrices: every result is right or NaN, never wrong but plausible."""

import pytest
import torch

import matroot
from matroot.methods import Eigh, Method, Minimax

UNIT = torch.finfo(torch.float32).eps
SIZES = {1: 1600, 2: 1600, 3: 1600, 5: 1600, 8: 1600, 16: 1600, 33: 600, 64: 400}


def hard_matrices(n: int, count: int) -> torch.Tensor:
    """Symmetric float32 matrices of eight kinds and of scales from 4^-8 to 4^8."""
    generator = torch.Generator().manual_seed(n)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    k = count // 8
    values = uniform(count, n).split(k)
    small = 10 ** (-8 * uniform(k, 1))
    kinds = [
        values[0] * (uniform(k, n) < 0.5),  # rank-deficient
        10 ** (-16 * values[1]),  # graded to far below rounding
        torch.where(uniform(k, n) < 0.5, 1.0, 2 * n * UNIT * (values[2] - 0.5)),  # rounded zeros
        torch.where(uniform(k, n) < 0.1, 1.0, small),  # outliers
        torch.where(uniform(k, n) < 0.5, 1.0, small),  # two clusters
        1 + 1e-6 * values[5],  # nearly repeated
        10 ** (-4 * values[6]),  # regular
        10 ** (-8 * values[7]) * (uniform(k, n) > 0.3),  # some zeros, the rest graded
    ]
    spectrum = torch.cat(kinds)
    normal = torch.randn(count, n, n, dtype=torch.float64, generator=generator)
    q = torch.linalg.qr(normal).Q
    a = (q * spectrum[:, None, :]) @ q.mT
    badly_scaled = (uniform(count) < 0.2)[:, None, None]
    d = 10 ** (6 * (uniform(count, n) - 0.5))
    a = torch.where(badly_scaled, a * d[:, :, None] * d[:, None, :], a)
    a = a * 4.0 ** torch.randint(-8, 9, (count, 1, 1), generator=generator).double()
    return ((a + a.mT) / 2).float()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("method", [Minimax(), Minimax(step_degree=3), Eigh()], ids=repr)
def test_every_answer_is_right_or_not_a_number(method: Method, n: int) -> None:
    a = hard_matrices(n, SIZES[n])
    values, q = torch.linalg.eigh(a.double())
    known = max(n, 4) * UNIT * values[:, -1:]  # how far rounding may move an eigenvalue
    positive = values.clamp(min=0)

    sqrt = matroot.sqrtm_ex(a, method=method).sqrt.double()
    error = (sqrt - (q * positive.sqrt()[:, None, :]) @ q.mT).norm(dim=(1, 2))
    bound = ((positive + known).sqrt() - positive.sqrt()).norm(dim=1)
    found = sqrt.isfinite().all(-1).all(-1)
    assert (error <= 4 * bound)[found].all()
    # All but the indefinite have a root; at the threshold, n·u, rounding decides.
    assert found[values[:, 0] >= -0.1 * known[:, 0]].all()
    assert not found[values[:, 0] < -4 * known[:, 0]].any()

    inverse = matroot.sqrtm_ex(a, root="inv_sqrt", method=method).inv_sqrt.double()
    found = inverse.isfinite().all(-1).all(-1)
    assert (values[found, 0] > 0).all()
    values, q, known = values[found], q[found], known[found]
    error = (inverse[found] - (q * values.rsqrt()[:, None, :]) @ q.mT).norm(dim=(1, 2))
    # Where rounding exceeds an eigenvalue, its inverse root is exact to a factor of two at best.
    moved = torch.maximum(values - known, values / 4)
    assert (error <= 4 * (moved.rsqrt() - values.rsqrt()).norm(dim=1)).all()
    assert found.sum() > len(a) / 4


def test_hilbert_matrix() -> None:
    i = torch.arange(12, dtype=torch.float64)
    hilbert = 1 / (i[:, None] + i + 1)
    for dtype in (torch.float32, torch.float64):
        a = hilbert.to(dtype)
        values, q = torch.linalg.eigh(a.double())
        exact = (q * values.clamp(min=0).sqrt()) @ q.mT
        unit = torch.finfo(dtype).eps
        for method in ("auto", "minimax"):
            s = matroot.sqrtm(a, method=method).double()
            assert (s - exact).norm() <= 4 * (12 * unit * values[-1]).sqrt()
            z = matroot.inv_sqrtm(a, eps=1e-3, method=method).double()
            ridged = a.double() + 1e-3 * torch.eye(12, dtype=torch.float64)
            assert (z @ ridged @ z - torch.eye(12, dtype=torch.float64)).norm() <= 1e5 * unit
            if dtype == torch.float32:
                with pytest.raises(torch.linalg.LinAlgError, match=r"singular \(rank . of 12"):
                    matroot.inv_sqrtm(a, method=method)


@pytest.mark.parametrize("method", ["auto", "minimax"])
def test_covariances_of_fewer_samples_than_dimensions(method: str) -> None:
    x = torch.randn(3, 256, 196, generator=torch.Generator().manual_seed(0))
    a = (x @ x.mT / 196).requires_grad_()
    s = matroot.sqrtm(a, method=method)
    values, q = torch.linalg.eigh(a.detach().double())
    exact = (q * values.clamp(min=0).sqrt()[:, None, :]) @ q.mT
    assert (s.detach() - exact).norm(dim=(1, 2)).max() <= 1e-3 * exact.norm(dim=(1, 2)).min()
    assert matroot.sqrtm_ex(a, method=method).converged.all()
    g = torch.autograd.grad(s.square().sum(), a)[0]  # tr S² = tr A, so G = I on the range
    torch.testing.assert_close(g @ a.detach(), a.detach(), rtol=1e-3, atol=1e-3)
    assert g.isfinite().all()
    with pytest.raises(torch.linalg.LinAlgError, match=r"rank 196 of 256"):
        matroot.inv_sqrtm(a, method=method)
    assert matroot.inv_sqrtm(a, eps=1e-3, method=method).isfinite().all()


@pytest.mark.parametrize("method", ["auto", "minimax"])
def test_exactly_zero_blocks(method: str) -> None:
    a = torch.block_diag(torch.tensor([[4.0, 2.0], [2.0, 3.0]]), torch.zeros(3, 3))
    s = matroot.sqrtm(a, method=method)
    torch.testing.assert_close(s @ s, a, rtol=1e-5, atol=1e-5)
    # Null eigenvalues have an error of the rounding of A, their roots one of its square root.
    assert s[2:].abs().max() <= (4 * UNIT * 6) ** 0.5
    zero = torch.zeros(4, 4, requires_grad=True)
    s = matroot.sqrtm(zero, method=method)
    assert torch.equal(s.detach(), torch.zeros(4, 4))
    assert torch.equal(torch.autograd.grad(s.sum(), zero)[0], torch.zeros(4, 4))
