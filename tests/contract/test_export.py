"""torch.export and ONNX: only products, one schedule, and NaN instead of wrong results."""

import pytest
import torch
from torch import nn

import matroot
from matroot.methods import METHODS, Minimax, NewtonSchulz, Taylor
from matroot.testing import exact, random_spd, relative_error, tolerance
from onnx_runtime import by_onnx_runtime

ROOTS = {"sqrt": matroot.sqrtm, "inv_sqrt": matroot.inv_sqrtm}


class Root(nn.Module):
    def __init__(self, root="sqrt", **options):
        super().__init__()
        self.root, self.options = root, options

    def forward(self, a):
        return ROOTS[self.root](a, **self.options)


def exported(a, root="sqrt", **options):
    batch = torch.export.Dim("batch")
    program = torch.export.export(Root(root, **options), (a,), dynamic_shapes=({0: batch},))
    return program.module()


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exported_programs_are_as_accurate_as_the_iteration(root, dtype):
    program = exported(random_spd(12, 3, dtype=dtype), root)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [n for n in names if any(f in n for f in ("eigh", "cholesky", "linalg_solve"))]
    unit = torch.finfo(dtype).eps
    for cond in (1e0, 1e2, 1e4, 1e6):
        for spectrum in ("log", "clustered", "outlier"):
            a = 37 * random_spd(12, 5, cond=cond, spectrum=spectrum, dtype=dtype)
            if root == "inv_sqrt" and cond * unit > 0.01:
                continue
            error = relative_error(program(a), exact(a, root)).max()
            # In double precision the steps for a condition number of 1e14 amplify rounding.
            bound = max(tolerance(dtype, cond, root), 1e-10 if dtype == torch.float64 else 0)
            assert error <= bound, (cond, spectrum)


def test_singular_and_zero_matrices_have_roots():
    program = exported(random_spd(12, 3, dtype=torch.float32))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, 5, generator=generator)
    a = x @ x.mT
    assert relative_error(program(a) @ program(a), a).max() < 2e-4
    assert torch.equal(program(torch.zeros(2, 12, 12)), torch.zeros(2, 12, 12))


@pytest.mark.parametrize("power", [-50, -11, 13, 60])
def test_powers_of_four_scale_exactly(power):
    a = random_spd(6, 2, dtype=torch.float32)
    program = exported(a)
    assert torch.equal(program(a * 4.0**power), program(a) * 2.0**power)


@pytest.mark.parametrize("root", ROOTS)
def test_bad_matrices_are_nan_and_their_neighbours_intact(root):
    good = random_spd(6, dtype=torch.float32)
    program = exported(good.expand(4, 6, 6), root)
    bad = {
        "nan": good.clone().index_fill_(0, torch.tensor([1]), torch.nan),
        "infinite": good * torch.inf,
        "asymmetric": good + torch.eye(6).roll(1, 0) * 0.1,
        "negative": -good,
        "indefinite": good - 0.5 * torch.eye(6),
    }
    if root == "inv_sqrt":
        bad["singular"] = random_spd(6, spectrum="half_zero", dtype=torch.float32)
        bad["zero"] = torch.zeros(6, 6)
    found = program(torch.stack([good, *bad.values(), good]))
    assert [bool(x.isnan().all()) for x in found] == [False, *(True for _ in bad), False]
    alone = program(good[None])
    assert torch.equal(found[0], found[-1])
    torch.testing.assert_close(found[0], alone[0])


def test_a_told_condition_number_takes_fewer_steps():
    a = random_spd(16, 2, cond=50, dtype=torch.float32)
    count = {}
    for cond in (None, 1e2):
        program = exported(a, method=Minimax(max_cond=cond))
        count[cond] = sum(
            "matmul" in str(n.target) or "bmm" in str(n.target) for n in program.graph.nodes
        )
        assert relative_error(program(a), exact(a)).max() < 2e-6
    assert count[1e2] < count[None]
    # Beyond max_cond the eigenvalues of the result are capped, as without export.
    program = exported(a, "inv_sqrt", method=Minimax(max_cond=1e2))
    beyond = random_spd(16, 2, cond=1e5, dtype=torch.float32)
    largest = torch.linalg.eigvalsh(program(beyond))[:, -1]
    assert (largest < 0.5 * 1e5**0.5).all()
    assert (largest > 5).all()


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_every_method_exports_as_it_computes(method):
    a = random_spd(6, 2, cond=20, dtype=torch.float32)
    for root, function in ROOTS.items():
        found = exported(a, root, method=method)(a)
        torch.testing.assert_close(found, function(a, method=method), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    ["auto", Minimax(max_cond=1e3), Minimax(step_degree=3), Taylor(), NewtonSchulz()],
    ids=str,
)
@pytest.mark.parametrize("root", ROOTS)
def test_onnx_runtime_agrees(method, root):
    a = 5 * random_spd(6, 3, cond=20, dtype=torch.float32)
    found = by_onnx_runtime(Root(root, method=method, eps=0.1), (a,))
    torch.testing.assert_close(found, ROOTS[root](a, method=method, eps=0.1), rtol=1e-4, atol=1e-5)


def test_onnx_runtime_tells_bad_matrices():
    a = random_spd(6, 3, cond=20, dtype=torch.float32)
    a[1] -= 0.5 * torch.eye(6)
    found = by_onnx_runtime(Root(), (a,))
    assert found.isnan().all(-1).all(-1).tolist() == [False, True, False]


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].factorises])
def test_what_factorises_says_that_onnx_cannot(method):
    a = random_spd(4, 2, dtype=torch.float32)
    with pytest.raises(torch.onnx.OnnxExporterError) as caught:
        by_onnx_runtime(Root(method=method), (a,))
    assert f"method '{method}' factorises matrices, for which ONNX has no operator" in str(
        caught.value
    )


# PyTorch deprecates both ways, and its tracer warns of numbers that become constants.
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning"
)
def test_the_old_ways_of_tracing_are_right_or_refused(tmp_path):
    a = random_spd(4, dtype=torch.float32)
    traced = torch.jit.trace(matroot.sqrtm, a)
    other = random_spd(4, dtype=torch.float32, seed=1)
    torch.testing.assert_close(traced(other), matroot.sqrtm(other), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="dynamo=True"):
        torch.onnx.export(Root(), (a,), str(tmp_path / "a.onnx"), dynamo=False)
