"""Functions of DTensors: batches over processes, two of them on the CPU; more where slow."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import matroot
import processes

N = 4


def spd_matrices(*batch, seed=0):
    x = torch.randn(*batch, N, 2 * N, generator=torch.Generator().manual_seed(seed)).double()
    return x @ x.mT / N


def vectors(*batch, seed=0):
    return torch.randn(*batch, N, generator=torch.Generator().manual_seed(seed)).double()


# By public function: the call, and its arguments for a batch.
CALLS = {
    "sqrtm": (matroot.sqrtm, lambda *b: [spd_matrices(*b)]),
    "inv_sqrtm": (matroot.inv_sqrtm, lambda *b: [spd_matrices(*b)]),
    "sqrtm_pair": (matroot.sqrtm_pair, lambda *b: [spd_matrices(*b)]),
    "sqrtm_ex": (
        lambda a: matroot.sqrtm_ex(a, root="both", method="minimax"),
        lambda *b: [spd_matrices(*b)],
    ),
    "powm": (lambda a: matroot.powm(a, 0.3), lambda *b: [spd_matrices(*b)]),
    "logm": (matroot.logm, lambda *b: [spd_matrices(*b)]),
    "expm": (matroot.expm, lambda *b: [spd_matrices(*b)]),
    "solve_lyapunov": (
        matroot.solve_lyapunov,
        lambda *b: [spd_matrices(*b), spd_matrices(*b, seed=1)],
    ),
    "geometric_mean": (
        matroot.geometric_mean,
        lambda *b: [spd_matrices(*b), spd_matrices(*b, seed=1)],
    ),
    "transport_map": (
        matroot.transport_map,
        lambda *b: [spd_matrices(*b), spd_matrices(*b, seed=1)],
    ),
    "bures_wasserstein_distance": (
        matroot.bures_wasserstein_distance,
        lambda *b: [spd_matrices(*b), spd_matrices(*b, seed=1)],
    ),
    "frechet_distance": (
        matroot.frechet_distance,
        lambda *b: [
            vectors(*b),
            spd_matrices(*b),
            vectors(*b, seed=1),
            spd_matrices(*b, seed=1),
        ],
    ),
    "frechet_distance_from_features": (
        matroot.frechet_distance_from_features,
        lambda *b: [vectors(*b, 9), vectors(*b, 11, seed=1)],
    ),
    "gradient_error_bound": (
        # Of A + 1 %, where A is right: S A + A S = 2 A^{3/2}.
        lambda a: matroot.gradient_error_bound(a, 1.01 * a, g_sqrt=2 * matroot.powm(a, 1.5)),
        lambda *b: [spd_matrices(*b)],
    ),
    "barycenter": (matroot.barycenter, lambda *b: [spd_matrices(*b, 3)]),
}
LAYERS = {
    "inverse_root": (lambda a: matroot.nn.functional.inverse_root(a, 1e-3), CALLS["sqrtm"][1]),
    "power_normalization": (matroot.nn.functional.power_normalization, CALLS["sqrtm"][1]),
    "pack_triangle": (matroot.nn.pack_triangle, CALLS["sqrtm"][1]),
    "unpack_triangle": (matroot.nn.unpack_triangle, lambda *b: [vectors(*b, 10)[..., 0]]),
    "whiten_and_color": (
        matroot.nn.functional.whiten_and_color,
        lambda *b: [vectors(*b, N, 3), vectors(*b, N, 3, seed=1)],
    ),
    "whiten_and_color of weighted pixels": (
        lambda x, y, w: matroot.nn.functional.whiten_and_color(x, y, content_weight=w),
        lambda *b: [*LAYERS["whiten_and_color"][1](*b), 1 + vectors(*b, N, 3)[:, 0].detach().abs()],
    ),
}
# No tensor function of matrices.
MODULES = {
    "compat",
    "distributed",
    "functions",
    "gradients",
    "methods",
    "nn",
    "statistics",
    "testing",
}
OTHER = {"SqrtmResult", "explain", *MODULES}


def test_the_table_has_every_public_function():
    assert set(CALLS) == set(matroot.__all__) - OTHER


def parts(result):
    """The tensors that a call has returned."""
    return [result] if isinstance(result, torch.Tensor) else list(result)


def derivatives(result, inputs, second=True):
    """Gradients of a number made of the result, and of a number made of these."""
    roots = [x for x in parts(result) if x.requires_grad]
    if not roots:
        return []
    first = torch.autograd.grad(
        sum((x.sin() * x).sum() for x in roots), inputs, create_graph=second
    )
    if not second:
        return first
    return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)]


def compare(name, batch, mesh, placements):
    """The largest error of values and derivatives against one process, and the placements."""
    function, make = (CALLS | LAYERS)[name]
    here = [a.requires_grad_() for a in make(*batch)]
    there = [distribute_tensor(a.detach(), mesh, placements).requires_grad_() for a in here]
    result, wanted = function(*there), function(*here)
    kept = all(tuple(x.placements) == tuple(placements) for x in parts(result))
    twice = name != "barycenter"  # It has one derivative.
    found = [*parts(result), *derivatives(result, there, twice)]
    right = [*parts(wanted), *derivatives(wanted, here, twice)]
    errors = [
        float((x.full_tensor() - y).detach().abs().max() / y.detach().abs().max().clamp(min=1e-30))
        if y.is_floating_point()
        else float(not torch.equal(x.full_tensor(), y))
        for x, y in zip(found, right, strict=True)
    ]
    return [max(errors), kept]


def two_processes(rank):
    mesh = init_device_mesh("cpu", (2,))
    flat = init_device_mesh("cpu", (1, 2))
    found = {}
    for name in CALLS:
        # Five in two shares; three by the second dimension; none in the second share.
        found[name, "shard 0"] = compare(name, (5,), mesh, [Shard(0)])
        found[name, "shard 1"] = compare(name, (2, 3), mesh, [Shard(1)])
        found[name, "replicate"] = compare(name, (2,), mesh, [Replicate()])
        found[name, "empty"] = compare(name, (1,), mesh, [Shard(0)])
        found[name, "2-D"] = compare(name, (4, 3), flat, [Shard(1), Shard(0)])
    for name in LAYERS:
        found[name] = compare(name, (5,), mesh, [Shard(0)])

    a, b = spd_matrices(5), spd_matrices(seed=1).requires_grad_()
    # One matrix for all, whose gradient is the sum of the shares'.
    one = distribute_tensor(b.detach(), mesh, [Replicate()]).requires_grad_()
    shares = distribute_tensor(a, mesh, [Shard(0)])
    result, wanted = matroot.geometric_mean(shares, one), matroot.geometric_mean(a, b)
    found["broadcast"] = [
        float((x - y).detach().abs().max())
        for x, y in zip(
            [result.full_tensor(), *(g.full_tensor() for g in derivatives(result, [one]))],
            [wanted, *derivatives(wanted, [b])],
            strict=True,
        )
    ]

    bad = a.clone()
    bad[4] = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0]))
    indefinite = distribute_tensor(bad, mesh, [Shard(0)])
    bad[4, 0, 0] = torch.nan
    nan = distribute_tensor(bad, mesh, [Shard(0)])
    found["indefinite"] = processes.error(lambda: matroot.sqrtm(indefinite))
    found["nan"] = processes.error(lambda: matroot.sqrtm(nan))
    found["not finite features"] = processes.error(
        lambda: matroot.bures_wasserstein_distance(nan, shares)
    )
    unchecked = matroot.sqrtm(nan, check_errors=False).full_tensor()
    found["unchecked"] = unchecked.isnan().all(-1).all(-1)
    found["neighbours"] = torch.equal(unchecked[:4], matroot.sqrtm(a[:4]))
    partial = DTensor.from_local(a, mesh, [Partial()], run_check=False)
    found["partial"] = processes.error(lambda: matroot.sqrtm(partial))
    found["rows"] = processes.error(lambda: matroot.logm(distribute_tensor(a[0], mesh, [Shard(0)])))
    found["mixed"] = processes.error(lambda: matroot.geometric_mean(shares, a))
    found["different"] = processes.error(
        lambda: matroot.geometric_mean(
            distribute_tensor(spd_matrices(2, 3), mesh, [Shard(0)]),
            distribute_tensor(spd_matrices(2, 3), mesh, [Shard(1)]),
        )
    )
    found["batches"] = processes.error(
        lambda: matroot.geometric_mean(
            distribute_tensor(spd_matrices(2), mesh, [Replicate()]),
            distribute_tensor(spd_matrices(3), mesh, [Replicate()]),
        )
    )
    compiled = torch.compile(matroot.sqrtm, fullgraph=True, backend="eager")(shares)
    found["compiled"] = float((compiled.full_tensor() - matroot.sqrtm(a)).abs().max())
    return {str(key): value for key, value in found.items()}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    first, second = processes.run_once(two_processes, 2, tmp_path_factory)
    for name in first:
        if isinstance(first[name], str):
            assert first[name] == second[name]
    return first


@pytest.mark.parametrize("placed", ["shard 0", "shard 1", "replicate", "empty", "2-D"])
@pytest.mark.parametrize("name", CALLS)
def test_values_derivatives_and_placements_are_those_of_one_process(two, name, placed):
    error, kept = two[str((name, placed))]
    assert error < 1e-11
    assert kept


@pytest.mark.parametrize("name", LAYERS)
def test_functions_of_layers(two, name):
    error, kept = two[name]
    assert error < 1e-10
    assert kept


def test_one_matrix_for_all_has_the_sum_of_the_gradients(two):
    assert max(two["broadcast"]) < 1e-11


def test_an_error_in_one_process_is_raised_in_all(two):
    assert two["indefinite"].startswith("_LinAlgError: rank 1: 1 of the 2 matrices in a is indef")
    for key in ("nan", "not finite features"):
        assert two[key].startswith("_LinAlgError: rank 1: 1 of the 2 matrices in a is not finite")


def test_unchecked_a_bad_matrix_is_nan_alone(two):
    assert two["unchecked"].tolist() == [False] * 4 + [True]
    assert two["neighbours"]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("partial", "must be placed as Shard(dim) or Replicate(), got (Partial(sum),)"),
        ("rows", "logm: a, shape (4, 4), is sharded on dimension 0, which is none of its batch"),
        ("mixed", "a and b must be DTensors on one mesh, got DeviceMesh"),
        ("different", "a and b are sharded on different batch dimensions, -2 and -1"),
        ("batches", "batch dimensions must be equal or 1, got (2,) and (3,)"),
    ],
)
def test_what_does_not_go_together_has_one_clear_error(two, key, text):
    assert two[key].startswith("ValueError")
    assert text in two[key]


def test_compiled_without_a_graph_break(two):
    assert two["compiled"] < 1e-12


MESHES = {
    2: [((2,), [Shard(0)])],
    3: [((3,), [Shard(0)]), ((3,), [Shard(1)])],
    4: [((4,), [Shard(0)]), ((2, 2), [Shard(0), Shard(1)]), ((2, 2), [Replicate(), Shard(0)])],
    8: [((2, 4), [Shard(1), Shard(0)]), ((4, 2), [Shard(0), Shard(0)])],
}


def many_processes(rank, count):
    found = {}
    for shape, placements in MESHES[count]:
        mesh = init_device_mesh("cpu", shape)
        for name in CALLS:
            found[f"{name} {shape} {placements}"] = compare(name, (7, 5), mesh, placements)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("count", MESHES)
def test_more_processes(tmp_path, count):
    for found in processes.run(many_processes, count, tmp_path, count):
        assert len(found) == len(CALLS) * len(MESHES[count])
        for key, (error, kept) in found.items():
            assert error < 1e-11, key
            assert kept, key
