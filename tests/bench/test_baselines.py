"""Baselines against their definitions: values and gradients."""

from functools import partial

import pytest
import torch

import matroot
from matroot.bench import baselines
from matroot.gradients import GRADIENTS, Lyapunov
from matroot.gradients.published import PublishedRule
from matroot.methods import NewtonSchulz, Svd
from matroot.nn.functional import power_normalization
from matroot.testing import Products, exact, exact_gradient, random_spd, relative_error

ROOTS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}
RULES = [cls() for cls in GRADIENTS.values() if issubclass(cls, PublishedRule)]


def symmetric(n, *batch, seed=5):
    g = torch.randn(
        *batch, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return g + g.mT


def value_and_gradient(function, a, g):
    leaf = a.clone().requires_grad_()
    root = function(leaf)
    return root.detach(), torch.autograd.grad(root, leaf, g)[0]


def gradcheck(function, a):
    """Numerical derivatives along symmetric directions."""
    leaf = a.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function((x + x.mT) / 2), (leaf,))


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_newton_schulz(root, published, steps):
    a = random_spd(5, 3, cond=20)

    def function(x):
        return baselines.newton_schulz(x, steps=steps, root=root, published=published)

    method = NewtonSchulz(steps, "trace")
    torch.testing.assert_close(function(a), ROOTS[root](a, method=method, backend="torch"))
    gradcheck(function, a)


@pytest.mark.parametrize(("published", "forward", "backward"), [(False, 12, 24), (True, 12, 38)])
def test_products_of_newton_schulz(published, forward, backward):
    a = random_spd(5, 3).requires_grad_()
    with Products() as products:
        root = baselines.newton_schulz(a, published=published)
    assert products.count == forward
    with Products() as products:
        torch.autograd.grad(root.sum(), a)
    assert products.count == backward


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("forward", ["pade", "taylor"])
def test_paper_is_the_published_method(root, forward):
    a, g = random_spd(6, 3, cond=50), symmetric(6, 3)
    found = value_and_gradient(lambda x: baselines.paper(x, forward=forward, root=root), a, g)
    options = {"method": forward, "gradient": Lyapunov(steps=8), "backend": "torch"}
    library = value_and_gradient(lambda x: ROOTS[root](x, **options), a, g)
    torch.testing.assert_close(found[0], library[0], rtol=1e-12, atol=1e-12)
    if root == "sqrt":
        torch.testing.assert_close(found[1], library[1], rtol=1e-11, atol=1e-11)
        return
    # The published gradient of the inverse solves Z X + X Z = −Z² G Z² by eight steps from Z/‖Z‖_F.
    z = found[0]
    b = z / torch.linalg.matrix_norm(z, keepdim=True)
    c = -z @ z @ g @ z @ z / torch.linalg.matrix_norm(z, keepdim=True)
    for _ in range(8):
        b, c = 1.5 * b - 0.5 * b @ b @ b, 1.5 * c - 0.5 * (b @ b @ c - b @ c @ b + c @ b @ b)
    torch.testing.assert_close(found[1], c / 2, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("forward", "count"), [("pade", 4), ("taylor", 9)])
def test_products_of_the_paper(forward, count):
    a = random_spd(6, 3).requires_grad_()
    with Products() as products:
        root = baselines.paper(a, forward=forward)
    assert products.count == count
    with Products() as products:
        torch.autograd.grad(root.sum(), a)
    assert products.count == 48


def test_a_gradient_does_not_depend_on_the_neighbours():
    # The published code divides the inverse's cotangent by the norm of the whole batch.
    a, g = random_spd(6, 4, cond=50), symmetric(6, 4)
    function = partial(baselines.paper, forward="pade", root="inv_sqrt")
    together = value_and_gradient(function, a, g)[1]
    alone = value_and_gradient(function, a[:1], g[:1])[1]
    torch.testing.assert_close(together[:1], alone)


@pytest.mark.parametrize("root", ROOTS)
def test_eigh_by_hand(root):
    a, g = random_spd(6, 3, cond=50), symmetric(6, 3)
    x, gradient = value_and_gradient(lambda x: baselines.eigh_by_hand(x, root), a, g)
    assert relative_error(x, exact(a, root)).max() < 1e-13
    assert relative_error(gradient, exact_gradient(a, g, root)).max() < 1e-13
    gradcheck(lambda x: baselines.eigh_by_hand(x, root), a)


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_svd_is_the_library_without_its_checks(root, rule):
    a, g = random_spd(6, 3, cond=50), symmetric(6, 3)
    found = value_and_gradient(lambda x: baselines.svd(x, rule, root), a, g)
    options = {"method": Svd(), "gradient": rule, "backend": "torch"}
    library = value_and_gradient(lambda x: ROOTS[root](x, **options), a, g)
    for x, y in zip(found, library, strict=True):
        assert relative_error(x, y).max() < 1e-11


def test_truncated_svd_keeps_the_largest():
    a = random_spd(6, 3, cond=50)
    values, q = torch.linalg.eigh(a)
    top = (q[..., 2:] * values[:, None, 2:].sqrt()) @ q[..., 2:].mT
    torch.testing.assert_close(baselines.truncated_svd(a, count=4), top)
    gradcheck(lambda x: baselines.truncated_svd(x, count=4), a)
    torch.testing.assert_close(baselines.truncated_svd(a, count=6), exact(a))
    with pytest.raises(ValueError, match="between 1 and n = 6, got 7"):
        baselines.truncated_svd(a, count=7)


@pytest.mark.parametrize("rank", [1, 2])
def test_power_normalization(rank):
    a = random_spd(5, 3, cond=1e3)
    values, q = torch.linalg.eigh(a)
    values, q = values.flip(-1), q.flip(-1)
    scaled = values / values[:, rank - 1 : rank].sqrt()
    scaled[:, :rank] = values[:, :rank].sqrt()
    converged = power_normalization(a, rank=rank, steps=60)
    torch.testing.assert_close(converged, (q * scaled[:, None, :]) @ q.mT)
    gradcheck(lambda x: power_normalization(x, rank=rank, steps=2), a)


def test_power_normalization_of_rank_one_is_a_division():
    a = random_spd(5, 3)
    v = torch.nn.functional.normalize(a.sum(-1), dim=-1)
    sigma = (v[:, None] @ a @ v[..., None]).sqrt()
    torch.testing.assert_close(power_normalization(a), a / sigma)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: baselines.newton_schulz(a, steps=0), "steps must be at least 1, got 0"),
        (lambda a: power_normalization(a, rank=0), "rank must be at least 1, got 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(random_spd(3, 1))
