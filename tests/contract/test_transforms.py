"""torch.func and torch.compile: every method × rule × backend."""

import pytest
import torch
from torch._dynamo import testing

import matroot
from instances import DIFFERENTIATED, RULES, calls, pairs
from matroot.gradients import Lyapunov, Spectral
from matroot.methods import METHODS, Eigh, Minimax, NewtonSchulz, Pade, Svd, Taylor
from matroot.testing import random_spd, relative_error

ROOTS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}
FUNC = torch.func


@pytest.fixture(params=ROOTS)
def function(request):
    return ROOTS[request.param]


@pytest.mark.parametrize(("method", "rule", "backend"), calls(pairs(DIFFERENTIATED, RULES)))
def test_transforms_agree_with_autograd(method, rule, backend, function):
    a = random_spd(3, 2, cond=4)
    w = torch.randn(3, 3, dtype=torch.float64)
    direction = w + w.mT

    def root(a):
        return function(a, method=method, gradient=rule, backend=backend)

    def loss(a):
        return (root(a) * w).sum().sin()

    jacobian = torch.stack([torch.autograd.functional.jacobian(root, m) for m in a])
    gradient = torch.stack([torch.autograd.functional.jacobian(loss, m) for m in a])

    def agree(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)

    agree(FUNC.vmap(root)(a), root(a))
    agree(FUNC.vmap(root, in_dims=2, out_dims=2)(a.permute(1, 2, 0)), root(a).permute(1, 2, 0))
    agree(FUNC.vjp(root, a[0])[1](w)[0], torch.einsum("ij,ijkl->kl", w, jacobian[0]))
    agree(FUNC.jvp(loss, (a[0],), (direction,))[1], (gradient[0] * direction).sum())
    agree(FUNC.vmap(FUNC.jacrev(root))(a), jacobian)
    agree(FUNC.jacfwd(root)(a[0]), jacobian[0])
    if rule.max_derivative is None:
        hessian = torch.autograd.functional.hessian(loss, a[0])
        agree(FUNC.hessian(loss)(a[0]), hessian)
        agree(FUNC.jacrev(FUNC.jacrev(loss))(a[0]), hessian)
        # In nested forward mode PyTorch may drop tangents silently.
        agree(FUNC.jacfwd(FUNC.jacfwd(loss))(a[0]), hessian)
        agree(FUNC.vmap(FUNC.hessian(loss))(a)[0], hessian)


@pytest.mark.parametrize(
    "wanted", ["both", *(pytest.param(r, marks=pytest.mark.slow) for r in ROOTS)]
)
@pytest.mark.parametrize(
    ("method", "rule"), pairs([cls() for cls in METHODS.values()], RULES), ids=repr
)
def test_compile_fullgraph_forward_and_backward(method, rule, wanted):
    a = random_spd(4, 2, cond=4).requires_grad_()
    g = torch.randn(2, 4, 4, dtype=torch.float64)

    def root(a):
        if wanted == "both":
            return sum(matroot.sqrtm_pair(a, method=method, gradient=rule))
        return ROOTS[wanted](a, method=method, gradient=rule)

    torch._dynamo.reset()
    # Traces forward and backward without needing a C++ compiler.
    compiled = torch.compile(root, fullgraph=True, backend="aot_eager")
    expected = root(a)
    found = compiled(a)
    assert relative_error(found, expected).max() < 1e-13
    first = torch.autograd.grad((found * g).sum(), a)[0]
    second = torch.autograd.grad((expected * g).sum(), a)[0]
    assert relative_error(first, second).max() < 1e-12


@pytest.mark.parametrize("name", METHODS)
def test_compile_takes_names_and_returns_nan_for_a_bad_matrix(name):
    a = random_spd(4, 3, cond=4)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda a: matroot.sqrtm(a, method=name, eps=1e-3), fullgraph=True, backend="aot_eager"
    )
    # Under compilation PyTorch's operations run, not the kernels.
    assert torch.equal(compiled(a), matroot.sqrtm(a, method=name, eps=1e-3, backend="torch"))
    bad = a.clone()
    bad[1, 0, 0] = torch.nan
    found = compiled(bad)
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], compiled(a)[[0, 2]])


def test_third_order_forward_mode_is_right():
    """A careless jvp rule loses the tangents of the levels outside it."""
    a = random_spd(3, cond=4)
    v = torch.randn(3, 3, dtype=torch.float64)
    v = v + v.mT

    def along(f):
        return lambda t: FUNC.jvp(f, (t,), (torch.ones_like(t),))[1]

    def root(t):
        return matroot.sqrtm(a + t * v)

    t, h = torch.zeros((), dtype=torch.float64), 1e-4
    second = along(along(root))
    third = along(second)(t)
    torch.testing.assert_close(
        third, (second(t + h) - second(t - h)) / (2 * h), rtol=1e-5, atol=1e-5
    )


def test_vmap_over_one_argument_of_the_lyapunov_solve():
    s = random_spd(4, cond=4)
    g = torch.randn(3, 4, 4, dtype=torch.float64)
    found = FUNC.vmap(matroot.solve_lyapunov, in_dims=(None, 0))(s, g)
    expected = matroot.solve_lyapunov(s.expand(3, 4, 4), g)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


DISTANCES = {
    "bures_wasserstein_distance": matroot.bures_wasserstein_distance,
    "frechet_distance": lambda a, b: matroot.frechet_distance(
        a[..., 0], a, b[..., 0], b, squared=False
    ),
}
FUNCTIONS = {"solve_lyapunov": matroot.solve_lyapunov, **DISTANCES}
# Few steps, since tracing them is slow; the others are slow tests.
SIZED = [
    (Pade(3), Spectral()),
    (Minimax(tol=0.1, max_steps=3), Spectral()),
    (Eigh(), Lyapunov()),
    *(
        pytest.param(method, rule, marks=pytest.mark.slow)
        for method, rule in (
            (Taylor(5), Lyapunov(steps=3)),
            (Pade(6), Spectral()),
            (NewtonSchulz(4), Spectral()),
            (Minimax(), Lyapunov()),
            (Minimax(max_cond=10.0, tol=1e-3, max_steps=9, step_degree=3), Spectral()),
            (Svd(), Lyapunov()),
            *((Eigh(), rule) for rule in RULES if rule != Lyapunov()),
        )
    ),
]
DYNAMIC = [True, pytest.param(None, marks=pytest.mark.slow)]


def compiled_for_all_sizes(function, tensors, dynamic):
    """Checks values and gradients of one compiled function for four sizes."""
    counter = testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=dynamic)
    for n in (3, 4, 5, 8):
        inputs = [random_spd(n, 2, cond=4, seed=i).requires_grad_() for i in range(tensors)]
        found, expected = compiled(*inputs), function(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
        gradients = [torch.autograd.grad(x.square().sum(), inputs) for x in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)
    # One for the first size, one for all others; or one each for small and for large n.
    assert counter.frame_count <= 2


@pytest.mark.parametrize("dynamic", DYNAMIC)
@pytest.mark.parametrize(("method", "rule"), SIZED, ids=repr)
def test_one_compiled_program_serves_all_sizes(method, rule, dynamic):
    def roots(a):
        return torch.stack(matroot.sqrtm_pair(a, method=method, gradient=rule))

    if torch.__version__ < (2, 10) and method in (Pade(3), Minimax(tol=0.1, max_steps=3)):
        pytest.skip("PyTorch 2.8 and 2.9 pass no numbers to methods")
    compiled_for_all_sizes(roots, 1, dynamic)


@pytest.mark.parametrize("dynamic", DYNAMIC)
@pytest.mark.parametrize("name", ["solve_lyapunov", "frechet_distance"])
def test_one_compiled_program_of_two_arguments_serves_all_sizes(name, dynamic):
    compiled_for_all_sizes(FUNCTIONS[name], 2, dynamic)


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.complex64, marks=pytest.mark.slow), torch.complex128]
)
@pytest.mark.parametrize("name", ["eigh", "minimax", *FUNCTIONS])
def test_compile_takes_complex_matrices(name, dtype):
    def roots(a):
        return torch.stack(matroot.sqrtm_pair(a, method=name))

    function = FUNCTIONS.get(name, roots)
    count = 2 if name in FUNCTIONS else 1
    inputs = [random_spd(4, cond=4, dtype=dtype, seed=i).requires_grad_() for i in range(count)]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, expected = compiled(*inputs), function(*inputs)
    within = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.complex64 else {}
    torch.testing.assert_close(found, expected, **within)
    gradients = [torch.autograd.grad(x.abs().square().sum(), inputs) for x in (found, expected)]
    torch.testing.assert_close(*gradients, **within)


@pytest.mark.parametrize("name", ["sqrtm", "solve_lyapunov", "bures_wasserstein_distance"])
def test_second_derivatives_inside_compile_are_right_or_refused(name):
    # PyTorch's compiler treats the backward pass of an autograd function as a constant.
    b = random_spd(3, cond=5)
    functions = {
        "sqrtm": matroot.sqrtm,
        "solve_lyapunov": lambda a: matroot.solve_lyapunov(a, b),
        "bures_wasserstein_distance": lambda a: matroot.bures_wasserstein_distance(a, b),
    }
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    second = torch.func.jacrev(
        torch.func.jacrev(lambda x: functions[name](b + x @ x.mT).sin().sum())
    )
    torch._dynamo.reset()
    compiled = torch.compile(second, backend="aot_eager")
    torch.testing.assert_close(compiled(x), second(x))
    torch._dynamo.reset()
    # PyTorch 2.8 only reports that there is an exception.
    with pytest.raises(Exception, match=r"second derivatives inside torch\.compile|Observed exc"):
        torch.compile(second, backend="aot_eager", fullgraph=True)(x)


@pytest.mark.parametrize("method", [*METHODS])
@pytest.mark.parametrize("gradient", ["lyapunov", "unrolled"])
def test_the_compiler_finds_one_graph(method, gradient):
    # With fullgraph=True PyTorch captures scalars, which hides breaks that occur without it.
    def function(a):
        return matroot.sqrtm_pair(a, method=method, gradient=gradient)

    torch._dynamo.reset()
    a = random_spd(16, 2, dtype=torch.float32).requires_grad_()
    found = torch._dynamo.explain(function)(a)
    assert found.graph_break_count == 0, found.break_reasons
