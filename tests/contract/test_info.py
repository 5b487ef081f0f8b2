"""What sqrtm_ex and explain say is so."""

import dataclasses

import pytest
import torch

import matroot
from instances import CONVERGED, INEXACT, PUBLISHED, calls, marks
from matroot import kernels, plan
from matroot.gradients import GRADIENTS, Lyapunov, Spectral
from matroot.methods import METHODS, Eigh, Minimax, NewtonSchulz
from matroot.testing import random_spd

ROOTS = ("sqrt", "inv_sqrt", "both")
F32 = torch.float32
DTYPES = (F32, torch.float64, torch.bfloat16, torch.complex128)


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize(
    ("method", "backend", "dtype"),
    calls(CONVERGED, torch.float16, torch.float32, torch.float64, torch.complex64),
)
def test_converged_methods(method, backend, root, dtype):
    a = random_spd(6, 2, 3, cond=5, dtype=dtype)
    result = matroot.sqrtm_ex(a, root=root, method=method, backend=backend)
    assert result.converged.shape == result.steps.shape == (2, 3)
    assert result.converged.all()
    assert (result.steps >= 1).all()
    for x, residual, wanted in (
        (result.sqrt, result.residual, root != "inv_sqrt"),
        (result.inv_sqrt, result.inv_residual, root != "sqrt"),
    ):
        assert (x is not None) == (residual is not None) == wanted
        if wanted:
            assert residual.shape == (2, 3)
            assert not residual.is_complex()
            assert (residual < 100 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("method", PUBLISHED, ids=repr)
def test_published_methods_say_that_they_have_not_converged(method):
    a = random_spd(16, 3, cond=1e3)
    result = matroot.sqrtm_ex(a, root="both", method=method)
    assert not result.converged.any()
    assert (result.residual > 1e-3).all()
    assert (result.inv_residual > 1e-2).all()


def test_residuals_are_what_they_are_called():
    a = random_spd(8, 3, cond=1e3)
    s, z, residual, inv_residual, _, _, steps, _ = matroot.sqrtm_ex(
        a, root="both", eps=0.1, method=NewtonSchulz(3)
    )
    ridged, identity = a + 0.1 * torch.eye(8), torch.eye(8)
    norm = torch.linalg.matrix_norm
    torch.testing.assert_close(residual, norm(s @ s - ridged) / norm(ridged))
    torch.testing.assert_close(inv_residual, norm(z @ ridged @ z - identity) / 8**0.5)
    assert steps.tolist() == [3, 3, 3]


@pytest.mark.parametrize("method", ["auto", "minimax", "pade"])
def test_never_raises_for_a_hard_matrix(method):
    good = random_spd(6, 5, cond=4, dtype=torch.float32)
    a = good.clone()
    a[1], a[2] = torch.nan, -a[2]
    a[3, 0], a[3, :, 0] = 0, 0
    result = matroot.sqrtm_ex(a, root="both", method=method)
    clean = matroot.sqrtm_ex(good, root="both", method=method)
    for x, y in zip(result[:4], clean[:4], strict=True):
        assert x[[1, 2, 3]].isnan().all()
        assert torch.equal(x[[0, 4]], y[[0, 4]])
    assert not result.converged[[1, 2, 3]].any()
    assert torch.equal(result.converged[[0, 4]], clean.converged[[0, 4]])
    assert matroot.sqrtm_ex(a, method=method).sqrt[3].isfinite().all()


def test_steps_and_residual_do_not_depend_on_neighbours():
    a = torch.cat([random_spd(8, 2, cond=10), random_spd(8, 2, cond=1e6)])
    together = matroot.sqrtm_ex(a, root="both", method=Minimax())
    assert together.steps[0] < together.steps[2]
    for i in range(4):
        alone = matroot.sqrtm_ex(a[i], root="both", method=Minimax())
        assert alone.steps == together.steps[i]
        assert alone.converged


def test_a_broken_promise_is_told():
    a = random_spd(16, 4, cond=1e4)
    kept = matroot.sqrtm_ex(a, root="both", method=Minimax(max_cond=1.1e4))
    assert kept.converged.all()
    broken = matroot.sqrtm_ex(a, root="both", method=Minimax(max_cond=1e3))
    assert not broken.converged.any()
    one = torch.stack([a[0], random_spd(16, cond=100)])
    assert matroot.sqrtm_ex(one, method=Minimax(max_cond=1e3)).converged.tolist() == [False, True]
    assert not matroot.sqrtm_ex(a, method=Minimax(max_steps=3)).converged.any()


def test_the_pseudo_inverse_root_and_scales():
    v = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(1))
    for scale in (1e-36, 1.0, 1e36):
        result = matroot.sqrtm_ex(scale * (v @ v.mT), root="both", singular="pinv")
        assert result.converged.all()
        assert (result.inv_residual < 1e-4).all()
    zero = matroot.sqrtm_ex(torch.zeros(2, 3, 3), root="both", singular="pinv")
    assert zero.converged.all()
    assert (zero.residual == 0).all()


@pytest.mark.parametrize("shape", [(0, 3, 3), (2, 0, 0), (0, 0)])
def test_empty(shape):
    result = matroot.sqrtm_ex(torch.empty(shape), root="both")
    assert result.sqrt.shape == result.inv_sqrt.shape == shape
    assert result.converged.shape == result.residual.shape == shape[:-2]


def test_differentiates_and_transforms():
    a = random_spd(5, 3, cond=5)
    g = torch.randn_like(a)

    def total(a):
        result = matroot.sqrtm_ex(a, root="both")
        return (result.sqrt * g).sum() + (result.inv_sqrt * g).sum()

    def expected(a):
        s, z = matroot.sqrtm_pair(a)
        return (s * g).sum() + (z * g).sum()

    torch.testing.assert_close(torch.func.grad(total)(a), torch.func.grad(expected)(a))
    mapped = torch.func.vmap(lambda a: matroot.sqrtm_ex(a).converged)(a)
    assert mapped.tolist() == [True] * 3
    compiled = torch.compile(
        lambda a: matroot.sqrtm_ex(a, root="both", method="minimax"),
        fullgraph=True,
        backend="aot_eager",
    )
    for x, y in zip(compiled(a), matroot.sqrtm_ex(a, root="both", method="minimax"), strict=True):
        torch.testing.assert_close(x, y)


def test_arguments():
    with pytest.raises(ValueError, match="root must be one of 'sqrt', 'inv_sqrt', 'both'"):
        matroot.sqrtm_ex(torch.eye(2), root="cube")
    with pytest.raises(TypeError):
        matroot.sqrtm_ex(torch.eye(2), check_errors=True)
    with pytest.raises(ValueError, match="shape"):
        matroot.sqrtm_ex(torch.ones(2, 3))
    with pytest.raises(ValueError, match="root must be one of"):
        matroot.explain(torch.eye(2), root="cube")


@pytest.fixture
def recorder(monkeypatch):
    """What kernels have done, as (direction, family, kernel), by recorders in their tables."""
    done = []

    def recording(direction, family, kernel):
        def run(*arguments):
            found = kernel.run(*arguments)
            done.append((direction, family.name, kernel.name, found is not None))
            return found

        return dataclasses.replace(kernel, run=run)

    for family in kernels.FAMILIES.values():
        for direction, table in (("forward", family.values), ("backward", family.gradients)):
            for kind, entries in list(table.items()):
                found = tuple(recording(direction, family, kernel) for kernel in entries)
                monkeypatch.setitem(table, kind, found)
    # Plans that were made before, and those made here, know other tables.
    monkeypatch.setattr(plan, "_PLANS", {})
    return done


def ran(done, direction):
    """The family whose kernel did it, "torch" if none did."""
    found = [family for way, family, _, success in done if way == direction and success]
    return found[-1] if found else "torch"


def asked_for():
    """Backends and roots; one of the latter where Triton's interpreter takes its time."""
    for backend in ("auto", *kernels.FAMILIES):
        if backend not in INEXACT and any(takes(backend, dtype) for dtype in DTYPES):
            for root in ("both",) if backend.startswith("triton") else ROOTS:
                yield pytest.param(backend, root, marks=marks(backend))


def takes(backend, dtype):
    """Whether the backend takes such tensors."""
    return backend == "auto" or (
        kernels.FAMILIES[backend].declines(torch.empty(2, 2, dtype=dtype)) is None
    )


@pytest.mark.parametrize(("backend", "root"), list(asked_for()))
@pytest.mark.parametrize("rule", ["auto", *GRADIENTS])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_explain_tells_what_runs(method, rule, backend, root, recorder):
    options = {"method": method, "gradient": rule, "backend": backend}
    if rule in GRADIENTS and GRADIENTS[rule].needs_eigenpairs and not spectral(method, backend):
        return  # Refused: see test_errors.
    count = 1 if backend.startswith("triton") else 2
    for dtype in [dtype for dtype in DTYPES if takes(backend, dtype)]:
        for singular in ("raise", "pinv"):
            if singular == "pinv" and not spectral(method, backend):
                continue
            large = count > 1 and (dtype, rule, singular) == (F32, "auto", "raise")
            for n in (4, 260) if large else (4,):
                a = random_spd(n, count, cond=5, dtype=dtype)
                for derivative in (False, True):
                    x = a.clone().requires_grad_(derivative)
                    explained = matroot.explain(x, root=root, singular=singular, **options)
                    recorder.clear()
                    roots = matroot.sqrtm_ex(x, root=root, singular=singular, **options)
                    assert ran(recorder, "forward") == explained.backend, (dtype, derivative)
                    if derivative:
                        total = sum(t.real.sum() for t in roots[:2] if t is not None)
                        torch.autograd.grad(total, x)
                        assert ran(recorder, "backward") == explained.gradient_backend, dtype


def spectral(method, backend):
    """Whether the method has eigenpairs; of "auto" that of the backend decides."""
    if method == "auto":
        best = None if backend == "auto" else kernels.FAMILIES[backend].method
        return best is None or best.spectral
    return METHODS[method].spectral


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_auto_is_the_backend_that_it_says(method, dtype):
    a = random_spd(6, 3, cond=5, dtype=dtype)
    named = matroot.explain(a, method=method).backend
    for function in (matroot.sqrtm, matroot.inv_sqrtm):
        found = function(a, method=method)
        assert torch.equal(found, function(a, method=method, backend=named))


def test_explain_reads_well():
    text = str(matroot.explain(torch.eye(3), method="newton_schulz"))
    assert "forward   torch\n" in text
    assert "no kernel for that method" in text
    text = str(matroot.explain(torch.eye(3), method="pade"))
    assert "Pade(order=5): asked for" in text
    assert "Lyapunov(steps=None): products only" in text
    assert "backend 'torch' takes" in text
    assert matroot.explain(torch.eye(3)).method == Eigh()
    assert matroot.explain(torch.eye(3)).gradient == Spectral()
    elsewhere = matroot.explain(torch.eye(3, device="meta"))
    assert (elsewhere.method, elsewhere.gradient) == (Minimax(), Lyapunov())
    assert matroot.explain(torch.eye(3, device="meta"), singular="pinv").method == Eigh()
    assert "float32: wider sums" in str(matroot.explain(torch.eye(3).half()))
    with pytest.raises(ValueError, match="unknown method"):
        matroot.explain(torch.eye(3), method="padé")


def test_export_takes_products_only():
    class Root(torch.nn.Module):
        def forward(self, a):
            return matroot.sqrtm(a)

    a = random_spd(6, 2, cond=50, dtype=torch.float32)
    program = torch.export.export(Root(), (a,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("eigh" in name for name in names)
    found = program.module()(a)
    torch.testing.assert_close(found, matroot.sqrtm(a, method=Minimax()), rtol=1e-5, atol=1e-6)
