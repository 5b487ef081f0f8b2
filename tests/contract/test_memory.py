"""Kernels read memory: tensors that have none, have a lazy sign, or are observed by a mode."""

import dataclasses
import warnings

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import matroot
from matroot.functions import Sqrt
from matroot.gradients import Spectral
from matroot.kernels import native
from matroot.methods import METHODS, Method
from matroot.testing import random_spd, relative_error

NATIVE = ["eigh", "minimax", "pade", "taylor"]


def negative_view(a):
    """A with PyTorch's negative bit: its memory holds −A."""
    lazy = torch.complex(torch.zeros_like(a), -a).conj().imag
    assert lazy.is_neg()
    return lazy


@pytest.mark.parametrize("n", [1, 3, 40, 260])
@pytest.mark.parametrize("method", NATIVE)
def test_a_lazy_sign_is_read(method, n):
    a = random_spd(n, 2, cond=5)
    g = torch.randn_like(a)
    lazy = negative_view(a)
    assert torch.equal(
        matroot.sqrtm(lazy, method=method), matroot.sqrtm(a.contiguous(), method=method)
    )
    with pytest.raises(torch.linalg.LinAlgError):
        matroot.sqrtm(negative_view(-a), method=method)
    for function in (matroot.sqrtm, matroot.inv_sqrtm):
        x = a.clone().requires_grad_()
        root = function(x, method=method)
        expected = torch.autograd.grad(root, x, g, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(root, x, negative_view(g))[0], expected)
    x = matroot.solve_lyapunov(lazy, negative_view(g))
    assert relative_error(x, matroot.solve_lyapunov(a, g)).max() < 1e-14


@pytest.mark.parametrize("n", [3, 260])
def test_a_cotangent_without_memory_is_zero(n):
    a = random_spd(n, cond=5).requires_grad_()
    s, z = matroot.sqrtm_pair(a)
    for root in (s, z):
        zero = torch._efficientzerotensor(root.shape, dtype=root.dtype)
        (found,) = torch.autograd.grad(root, a, zero, retain_graph=True)
        assert torch.equal(found, torch.zeros_like(a))


@pytest.mark.parametrize("method", METHODS)
def test_traced_by_make_fx_a_root_is_a_function_of_its_input(method):
    a, b = random_spd(4, 2, cond=4), random_spd(4, 2, cond=3, seed=1)

    def gradient(a):
        return torch.func.grad(lambda a: matroot.inv_sqrtm(a, method=method).sin().sum())(a)

    for function in (lambda a: matroot.sqrtm(a, method=method), gradient):
        program = make_fx(function)(a)
        torch.testing.assert_close(program(b), function(b), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("mode", ["fake", "symbolic"])
def test_traced_by_make_fx_without_values(mode):
    a, b = random_spd(4, 2, cond=4), random_spd(4, 2, cond=3, seed=1)
    program = make_fx(lambda a: matroot.sqrtm_pair(a), tracing_mode=mode)(a)
    for found, expected in zip(program(b), matroot.sqrtm_pair(b), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_traced_by_make_fx_functions_of_two_arguments():
    a, b, c = (random_spd(4, 2, cond=4, seed=seed) for seed in range(3))
    for function in (
        lambda a, b: matroot.solve_lyapunov(a, b),
        lambda a, b: matroot.bures_wasserstein_distance(a, b),
    ):
        program = make_fx(function)(a, b)
        torch.testing.assert_close(program(b, c), function(b, c), rtol=1e-9, atol=1e-10)


class Watcher(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_modes_see_operations():
    a = random_spd(8, 2, cond=5)
    expected = matroot.sqrtm(a)
    with FlopCounterMode(display=False) as counter:
        found = matroot.sqrtm(a)
    assert counter.get_total_flops() > 0
    assert relative_error(found, expected).max() < 1e-14
    x = a.clone().requires_grad_()
    root = matroot.sqrtm(x)
    with Watcher() as watcher:
        root.sum().backward()
    assert "bmm" in watcher.seen
    with Watcher():
        if native.tasks.available():
            assert "TorchDispatchMode" in str(matroot.explain(a))
        # Errors are still raised.
        with pytest.raises(torch.linalg.LinAlgError, match="indefinite"):
            matroot.sqrtm(-a)


@pytest.mark.parametrize("method", NATIVE)
def test_subclasses_that_stand_for_other_tensors(method):
    a, b = random_spd(5, 2, cond=5), random_spd(5, 2, cond=4, seed=1)
    two = TwoTensor(a, b)
    found = matroot.sqrtm(two, method=method)
    assert relative_error(found.a, matroot.sqrtm(a, method=method)).max() < 1e-13
    assert relative_error(found.b, matroot.sqrtm(b, method=method)).max() < 1e-13
    x = matroot.solve_lyapunov(two, two)
    torch.testing.assert_close(x.b, torch.eye(5, dtype=a.dtype).expand_as(b) / 2)


class Named(torch.Tensor):
    pass


def test_plain_subclasses_and_parameters():
    a = random_spd(5, 2, cond=5)
    found = matroot.sqrtm(a.as_subclass(Named))
    assert type(found) is Named
    assert relative_error(found.as_subclass(torch.Tensor), matroot.sqrtm(a)).max() < 1e-14
    parameter = torch.nn.Parameter(a)
    assert torch.equal(matroot.sqrtm(parameter), matroot.sqrtm(a))
    assert matroot.explain(parameter).backend == matroot.explain(a).backend


@pytest.mark.parametrize("name", ["Eigh", "Minimax", "Pade", "Taylor"])
def test_a_method_of_the_users_with_a_known_name_is_asked(name):
    asked = []

    def solve(self, a, functions):
        asked.append(functions)
        return METHODS["svd"]().solve(a, functions)

    members = {"summary": "mine", "solve": solve, "spectral": True, "polynomials": None}
    for base in (Method, METHODS["eigh"]):
        mine = dataclasses.dataclass(frozen=True)(type(name, (base,), dict(members)))
        a = random_spd(4, cond=5)
        found = matroot.sqrtm(a, method=mine())
        assert asked.pop() == (Sqrt(),)
        assert relative_error(found, matroot.sqrtm(a)) < 1e-13


def test_a_rule_of_the_users_with_a_known_name_is_asked():
    class Spectral2(Spectral):
        def vjp(self, kept, g):
            return torch.full_like(g[0], 7.0)

    Spectral2.__name__ = "Spectral"
    a = random_spd(4, cond=5).requires_grad_()
    (found,) = torch.autograd.grad(matroot.sqrtm(a, gradient=Spectral2()).sum(), a)
    assert (found == 7).all()


def test_anomaly_detection_finds_none_in_good_matrices():
    a = random_spd(4, 2, cond=5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
        anomalies = torch.autograd.detect_anomaly()
    with anomalies:
        for method in METHODS:
            for rule in ("auto", "unrolled", "lyapunov"):
                x = a.clone().requires_grad_()
                s, z = matroot.sqrtm_pair(x, method=method, gradient=rule, eps=1e-3)
                torch.autograd.grad(s.sum() + z.sum(), x)
            if not METHODS[method].spectral and method != "minimax":
                x = torch.zeros_like(a).requires_grad_()
                root = matroot.sqrtm(x, method=method, gradient="unrolled")
                (found,) = torch.autograd.grad(root.square().sum(), x)
                assert torch.equal(found, torch.zeros_like(a))
        x, g = a.clone().requires_grad_(), torch.randn_like(a).requires_grad_()
        torch.autograd.grad(matroot.solve_lyapunov(x, g).sum(), (x, g))
        torch.autograd.grad(matroot.bures_wasserstein_distance(x, 2 * a).sum(), x)
        mu = torch.ones(2, 4, dtype=a.dtype, requires_grad=True)
        torch.autograd.grad(matroot.frechet_distance(mu, x, 2 * mu, a).sum(), (mu, x))
        torch.autograd.grad(
            matroot.inv_sqrtm(x, singular="pinv", rtol=0.5, relative_eps=0.01).sum(), x
        )
