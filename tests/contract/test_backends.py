"""Every family of kernels does what the reference does: the compiled ones, and those for GPUs.

Those for GPUs run on one if it is there, else in Triton's interpreter, which runs a kernel's
operations one after the other in NumPy. It shows that the arithmetic and the addresses are right,
and nothing of races, registers or speed. Fresh memory is full of NaN here: see conftest.py.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

import matroot
from instances import CONVERGING, INEXACT, marks, runs
from matroot.gradients import Lyapunov
from matroot.kernels import FAMILIES
from matroot.methods import METHODS, Eigh, Minimax, Pade, Taylor
from matroot.testing import exact, exact_gradient, random_spd, relative_error, tolerance

FUNCTIONS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}
F32, F64 = torch.float32, torch.float64
HALVES = (torch.float16, torch.bfloat16)


class Sizes(NamedTuple):
    """What a family of kernels is tested on.

    Attributes:
        dtypes: what it computes in.
        count: how many matrices at a time.
        sizes: n, every way to hold a matrix and to pad it.
        more_sizes: the same, among the slow tests.
        conds: condition numbers.
        more_conds: the same, among the slow tests.
        two_sizes: n where something else is tested.
        methods: those that something else is tested with, of those that have a kernel; None: all.
    """

    dtypes: tuple[torch.dtype, ...]
    count: int = 2
    sizes: tuple[int, ...] = (1, 5, 17)
    more_sizes: tuple[int, ...] = ()
    conds: tuple[float, ...] = (1e1,)
    more_conds: tuple[float, ...] = ()
    two_sizes: tuple[int, ...] = (8, 33)
    methods: tuple[type, ...] | None = None


# See native/matrix.hpp, and kernels/triton/arithmetic.py.
TABLE = {
    "native": Sizes(
        (F32, F64),
        count=19,
        sizes=(1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 48, 64, 65, 100, 129, 255, 256),
        conds=(1e1, 1e4),
        two_sizes=(8, 20),
    ),
    "triton": Sizes(
        (F32,),
        sizes=(1, 2, 3, 8, 15, 16, 17, 31, 32, 33),
        more_sizes=(48, 64, 65, 100, 128),
        conds=(1e4,),
        more_conds=(1e1,),
        two_sizes=(8, 40),
    ),
    "triton-double": Sizes(
        (F64,),
        sizes=(1, 5, 17, 33),
        more_sizes=(64, 100, 128),
        conds=(1e2, 1e12),
        more_conds=(1e7,),
        methods=(Minimax,),
    ),
}
BOTH = (F32, F64)
# Families of kernels that are not in the table are tested as well.
BACKENDS = {
    name: TABLE.get(name) or Sizes(BOTH)
    for name in FAMILIES
    if name != "torch" and name not in INEXACT
}
# The paper's, with options for which the kernels are programs of their own, and its gradient.
PUBLISHED = {
    "native": [
        *((Taylor(degree), steps) for degree, steps in ((1, 1), (2, 8), (5, 8), (10, 8), (16, 12))),
        *((Pade(order), steps) for order, steps in ((1, 12), (2, 1), (3, 8), (4, None), (5, 8))),
    ],
    "triton": [
        *((Taylor(degree), steps) for degree, steps in ((1, 1), (3, None), (10, 8))),
        *((Pade(order), steps) for order, steps in ((1, 2), (4, None), (5, 8))),
    ],
    "triton-double": [(Taylor(3), None), (Pade(5), 8)],
}
PUBLISHED_SIZES = {
    "native": (1, 2, 3, 7, 8, 9, 16, 17, 24, 25, 33, 64, 100),
    "triton": (1, 5, 17, 33, 65),
}


def device(backend):
    """Where the tensors of a backend are."""
    return "cuda" if backend.startswith("triton") and torch.cuda.is_available() else "cpu"


def case(backend, *values, slow=False):
    name = "-".join(map(str, (backend, *values))).replace("torch.", "")
    slowly = [pytest.mark.slow] if slow else []
    return pytest.param(backend, *values, id=name, marks=[*marks(backend), *slowly])


def kernels(published=True, everything=False):
    """(backend, dtype, method with its default options) of all that have a kernel.

    Args:
        published: whether methods come that have not converged by default.
        everything: whether methods come that the table leaves out.
    """
    for backend, tested in BACKENDS.items():
        methods = METHODS.values() if everything else tested.methods or METHODS.values()
        for dtype in tested.dtypes:
            for cls in methods:
                wanted = published or cls not in CONVERGING
                if wanted and runs(backend, cls(), dtype, device(backend)):
                    yield backend, dtype, cls()


def rule_for(method):
    return Lyapunov(steps=8) if type(method) in (Taylor, Pade) else "auto"


def bound_for(method, dtype, cond):
    """Powers lose a factor cond(P) = 4^m, in the reference too."""
    return tolerance(dtype, max(cond, 4.0 ** getattr(method, "order", 0)), "gradient")


def cotangent(a):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(a.shape, dtype=a.dtype, generator=generator).to(a.device)


def run(a, g, quantity, method, rule, backend, **options):
    x = a.clone().requires_grad_()
    root = FUNCTIONS[quantity](x, method=method, gradient=rule, backend=backend, **options)
    return root.detach(), torch.autograd.grad(root, x, g)[0]


@pytest.mark.parametrize(
    ("backend", "dtype", "method", "n", "cond"),
    [
        case(backend, dtype, method, n, cond, slow=n in t.more_sizes or cond in t.more_conds)
        for backend, dtype, method in kernels(published=False)
        for t in [BACKENDS[backend]]
        for n in (*t.sizes, *t.more_sizes)
        for cond in (*t.conds, *t.more_conds)
    ],
)
def test_values_and_gradients(backend, dtype, method, n, cond):
    count = BACKENDS[backend].count
    a = random_spd(n, min(count, 3) if n > 64 else count, cond=cond, dtype=dtype)
    a = a.to(device(backend))
    g = cotangent(a)
    x = a.clone().requires_grad_()
    roots = matroot.sqrtm_pair(x, method=method, backend=backend)
    (of_both,) = torch.autograd.grad(roots, x, (g, g))
    expected = 0
    for quantity, of_pair in zip(FUNCTIONS, roots, strict=True):
        root, gradient = run(a, g, quantity, method, "auto", backend)
        assert relative_error(root, exact(a, quantity)).max() < tolerance(dtype, cond, quantity)
        error = relative_error(gradient, exact_gradient(a, g, quantity)).max()
        assert error < tolerance(dtype, cond, "gradient")
        assert torch.equal(root, root.mT)
        assert torch.equal(gradient, gradient.mT)
        assert torch.equal(root, of_pair)
        expected = expected + gradient
    assert relative_error(of_both, expected).max() < tolerance(dtype, cond, "gradient")
    assert torch.equal(matroot.sqrtm(a, method=method, backend=backend), roots[0])


def published():
    for backend, tested in BACKENDS.items():
        others = [(m, None) for b, _, m in kernels() if b == backend and type(m) in CONVERGING]
        for dtype in tested.dtypes:
            for method, steps in PUBLISHED.get(backend) or dict.fromkeys(others):
                if runs(backend, method, dtype, device(backend)):
                    for n in PUBLISHED_SIZES.get(backend, (5,)):
                        for cond in (1e1, 1e4) if backend == "native" else (20.0,):
                            slow = n > 17 and backend != "native"
                            yield case(backend, dtype, method, steps, n, cond, slow=slow)


@pytest.mark.parametrize(("backend", "dtype", "method", "steps", "n", "cond"), list(published()))
def test_published(backend, dtype, method, steps, n, cond):
    count = BACKENDS[backend].count
    a = random_spd(n, min(count, 3) if n > 64 else count, cond=cond, dtype=dtype)
    a = a.to(device(backend))
    g, rule = cotangent(a), Lyapunov(steps=steps)
    bound = bound_for(method, dtype, cond)
    x = a.clone().requires_grad_()
    options = {"method": method, "backend": backend}
    pairs = (
        matroot.sqrtm_pair(a, **options),
        matroot.sqrtm_pair(x, gradient=rule, **options) if backend == "native" else None,
    )
    for i, quantity in enumerate(FUNCTIONS):
        found = run(a, g, quantity, method, rule, backend)
        expected = run(a, g, quantity, method, rule, "torch")
        for ours, reference in zip(found, expected, strict=True):
            assert relative_error(ours, reference).max() < bound
            assert torch.equal(ours, ours.mT)
        assert all(torch.equal(pair[i], found[0]) for pair in pairs if pair is not None)


# Sizes, how many of each condition number, these, and the root.
BITS = {
    "native": ((3, 8, 17, 40, 130), 20, (3.0, 1e3, 1e5), "sqrt"),
    "triton": ((5, 20, 40), 3, (3.0, 1e5), "sqrt"),
    "triton-double": ((5, 33), 2, (3.0, 1e11), "inv_sqrt"),
}
OTHERS = ((5,), 3, (3.0, 1e3), "sqrt")


@pytest.mark.parametrize(
    ("backend", "dtype", "method", "n"),
    [
        case(backend, dtype, method, n)
        for backend, dtype, method in kernels()
        if not (backend == "triton" and type(method) in CONVERGING)
        for n in BITS.get(backend, OTHERS)[0]
    ],
)
def test_bits_do_not_depend_on_batch_or_position(backend, dtype, method, n):
    _, count, conds, quantity = BITS.get(backend, OTHERS)
    a = torch.cat([random_spd(n, count, cond=k, dtype=dtype) for k in conds]).to(device(backend))
    g, rule, last = cotangent(a), rule_for(method), len(a) - 1
    root, gradient = run(a, g, quantity, method, rule, backend)
    some = ([0], [last], [last, 0, last // 2])
    if backend == "native":
        some = (*some, [1], [19], [33], [59, 3, 40], list(range(7, 40)))
    for rows in some:
        few = run(a[rows], g[rows], quantity, method, rule, backend)
        assert torch.equal(few[0], root[rows])
        assert torch.equal(few[1], gradient[rows])


@pytest.mark.parametrize("quantity", FUNCTIONS)
@pytest.mark.parametrize(
    ("backend", "dtype", "method", "n"),
    [
        case(backend, dtype, method, n, slow=n > 33)
        for backend, dtype, method in kernels()
        for n in BACKENDS[backend].two_sizes
    ],
)
def test_bad_and_singular_matrices_beside_good_ones(backend, dtype, method, n, quantity):
    count = 64 if backend == "native" else 8
    regular = random_spd(n, count, cond=20, dtype=dtype)
    a = regular.clone()
    a[1], a[2], a[3] = torch.nan, -a[2], torch.inf
    a[4, 0, 1] += 1
    a[5, :3], a[5, :, :3] = 0, 0  # singular
    a[6] = 0
    a, regular = a.to(device(backend)), regular.to(device(backend))
    good = [0, *range(7, count)]
    options = {"root": quantity, "method": method}
    found, expected = (matroot.sqrtm_ex(a, backend=name, **options) for name in (backend, "torch"))
    x, y = getattr(found, quantity), getattr(expected, quantity)
    assert torch.equal(x.isnan(), y.isnan())
    zero = quantity == "inv_sqrt"
    assert x.isnan().all((1, 2)).tolist()[:8] == [False, *4 * [True], zero, zero, False]
    assert relative_error(x[good], y[good]).max() < bound_for(method, dtype, 20)
    if backend == "native":
        alone = run(regular, cotangent(regular), quantity, method, rule_for(method), backend)
        assert torch.equal(x[good], alone[0][good])
    if quantity == "sqrt":
        close = 1e-4 if dtype == F32 else 1e-8
        torch.testing.assert_close(x[[5, 6]], y[[5, 6]], rtol=close, atol=close)
        if backend == "native":
            few = a[[0, 5, 7]]
            first, second = (
                run(few, cotangent(few), quantity, method, "auto", name)[1]
                for name in (backend, "torch")
            )
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        FUNCTIONS[quantity](a, method=method, backend=backend, check_errors=True)


@pytest.mark.parametrize(
    ("backend", "dtype", "method", "steps", "n", "bound"),
    # The null space is known to the square root of rounding.
    [
        *(case("native", F64, Eigh(), 8, n, 1e-6) for n in (8, 40)),
        *(case("triton", F32, Minimax(), steps, n, 1e-3) for steps in (None, 8) for n in (6, 40)),
        *(case("triton-double", F64, Minimax(), None, n, 1e-7) for n in (6, 33)),
    ],
)
def test_gradient_where_the_root_is_singular(backend, dtype, method, steps, n, bound):
    """Minimum norm: 0 on null × null space; at A = 0 altogether."""
    a = random_spd(n, 4, cond=20, dtype=dtype)
    if backend == "native":
        a[0] = random_spd(n, cond=20, spectrum="half_zero", dtype=dtype)
        a[3] = random_spd(n, cond=20, spectrum="half_zero", seed=1, dtype=dtype)
    else:
        a[0, : n // 2], a[0, :, : n // 2] = 0, 0
    a[1] = 0
    g, rule = cotangent(a), Lyapunov(steps=steps)
    _, gradient = run(a.to(device(backend)), g.to(device(backend)), "sqrt", method, rule, backend)
    _, expected = run(a.double(), g.double(), "sqrt", Eigh(), rule, "torch")
    assert not gradient[1].any()
    if backend != "native":
        assert not gradient[0, : n // 2, : n // 2].abs().max() > 1e-4
    assert relative_error(gradient.cpu(), expected).max() < bound


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("backend", "method", "n"),
    [
        case(backend, cls(), n, slow=n > 33)
        for backend, tested in BACKENDS.items()
        if F32 in tested.dtypes
        for cls in METHODS.values()
        if runs(backend, cls(), torch.bfloat16, device(backend))
        if not (backend == "triton" and cls is Taylor)
        for n in ((12, 40) if backend == "triton" else (12,))
    ],
)
def test_half_precision(backend, method, n, dtype):
    a = random_spd(n, 5, cond=20, dtype=F32)
    a[1, :4], a[1, :, :4] = 0, 0
    # Below zero once rounded.
    a[2] = random_spd(n, cond=1e7, spectrum="clustered", dtype=F32)
    a[3] = -a[3]
    a[4] = random_spd(n, cond=1e5, dtype=F32)
    a = a.to(dtype).to(device(backend))
    assert torch.linalg.eigvalsh(a[2].double())[0] < 0
    found, expected = (
        matroot.sqrtm(a, method=method, backend=name, check_errors=False)
        for name in (backend, "torch")
    )
    assert found.dtype == dtype
    assert torch.equal(found.isnan(), expected.isnan())
    assert found[3].isnan().all()
    unit, kept = torch.finfo(dtype).eps, [0, 1, 2, 4]
    assert relative_error(found[kept].float(), expected[kept].float()).max() < 2 * unit
    _, gradient = run(a[:1], cotangent(a[:1]), "sqrt", method, "auto", backend)
    assert gradient.dtype == dtype


@pytest.mark.parametrize(
    ("backend", "dtype", "method"),
    [case(*one) for one in kernels(everything=True)],
)
def test_scales_eps_and_strides(backend, dtype, method):
    a = random_spd(6, 2, cond=50, dtype=dtype).to(device(backend))
    options = {"method": method, "backend": backend}
    root, inverse = matroot.sqrtm_pair(a, **options)
    for power in (-60, -2, 2, 60):
        scaled = matroot.sqrtm_pair(a * 2.0**power, **options)
        assert torch.equal(scaled[0], root * 2.0 ** (power // 2))
        assert torch.equal(scaled[1], inverse * 2.0 ** (-power // 2))
    ridged = matroot.inv_sqrtm(a, eps=0.1, **options)
    shifted = a.double() + 0.1 * torch.eye(6, dtype=torch.float64, device=a.device)
    expected, bound = exact(shifted, "inv_sqrt"), 1e-6
    if type(method) in CONVERGING:
        expected = matroot.inv_sqrtm(shifted, method=method)
        bound = bound_for(method, dtype, 1.0)
    assert relative_error(ridged, expected).max() < bound
    wide = torch.randn(2, 6, 12, dtype=dtype, device=a.device)
    wide[..., ::2] = a
    assert torch.equal(matroot.sqrtm(wide[..., ::2], **options), root)
    found = matroot.sqrtm(a[:1].expand(3, 2, 6, 6), **options)
    assert torch.equal(found[2, 1], root[0])
    assert matroot.sqrtm(a[:0], **options).shape == (0, 6, 6)


@pytest.mark.parametrize("root", ["sqrt", "inv_sqrt", "both"])
@pytest.mark.parametrize(
    ("backend", "dtype", "method", "n"),
    [
        case(backend, dtype, method, n)
        for backend, dtype, method in kernels()
        if not backend.startswith("triton")
        if dtype == F32 and type(method) in CONVERGING
        for n in (8, 40)
    ],
)
def test_told_what_the_reference_tells(backend, dtype, method, n, root):
    a = random_spd(n, 8, cond=20, dtype=dtype)
    a[1], a[2], a[3] = 0, 1, -a[3]
    a[4, 0, 1] += 1
    a[5] = torch.nan
    a[6] = random_spd(n, cond=1e6, dtype=dtype)
    found, expected = (
        matroot.sqrtm_ex(a, root=root, method=method, backend=name) for name in (backend, "torch")
    )
    assert torch.equal(found.steps, expected.steps)
    assert torch.equal(found.converged, expected.converged)
    for x, y in zip(found[:2], expected[:2], strict=True):
        assert x is y is None or torch.equal(x.isnan(), y.isnan())


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [case(b, dtype) for b, dtype, m in kernels(everything=True) if type(m) is Minimax],
)
def test_options_of_minimax(backend, dtype):
    a = random_spd(9, 2, cond=100, dtype=dtype).to(device(backend))
    for method in (Minimax(tol=1e-2), Minimax(max_steps=2)):
        found, expected = (
            matroot.sqrtm_ex(a, root="both", method=method, backend=name)
            for name in (backend, "torch")
        )
        text = f"{backend} does not follow {method}: it must, or decline the call"
        assert torch.equal(found.steps, expected.steps), text
        assert torch.equal(found.converged, expected.converged), text
        for x, y in zip(found[:2], expected[:2], strict=True):
            assert relative_error(x, y).max() < 1e-5, text


@pytest.mark.parametrize(
    ("backend", "dtype", "method"),
    [case(*one) for one in kernels(published=False) if one[:2] != ("native", F32)],
)
def test_transforms_and_higher_derivatives(backend, dtype, method):
    a = random_spd(4, 2, cond=5, dtype=dtype).to(device(backend))
    close = {"rtol": 1e-3, "atol": 1e-4} if dtype == F32 else {"rtol": 1e-7, "atol": 1e-8}

    def total(a, backend=backend):
        root = matroot.sqrtm((a + a.mT) / 2, method=method, backend=backend)
        return root.sin().sum()

    calls = {
        "vmap": lambda f: torch.func.vmap(f)(a),
        "grad of vmap": lambda f: torch.func.grad(lambda a: torch.func.vmap(f)(a).sum())(a),
        "jvp": lambda f: torch.func.jvp(f, (a,), (cotangent(a),))[1],
        "hessian": lambda f: torch.func.hessian(f)(a[0]),
    }
    for name, call in calls.items():
        found, expected = call(total), call(lambda a: total(a, "torch"))
        torch.testing.assert_close(found, expected, **close, msg=name)
    x = a.clone().requires_grad_()
    (first,) = torch.autograd.grad(total(x), x, create_graph=True)
    assert first.square().sum().backward() is None
    y = a.clone().requires_grad_()
    (other,) = torch.autograd.grad(total(y, "torch"), y, create_graph=True)
    other.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, **close)
    unrolled = matroot.sqrtm(x, method=method, gradient="unrolled", backend=backend)
    assert torch.autograd.grad(unrolled.sum(), x)[0].isfinite().all()
