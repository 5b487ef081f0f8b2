"""Roots of one matrix that is divided among processes, two of them on the CPU; more where slow."""

import operator
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import matroot
import processes
from matroot.methods import Minimax

PROMISE = Minimax(max_cond=4e4)
SIZES = (1, 2, 7, 90)

CALLS = {
    "sqrtm": lambda a, **o: [matroot.sqrtm(a, **o)],
    "inv_sqrtm": lambda a, **o: [matroot.inv_sqrtm(a, **o)],
    "sqrtm_pair": lambda a, **o: list(matroot.sqrtm_pair(a, **o)),
    "powm(1/4)": lambda a, **o: [matroot.powm(a, 0.25, **o)],
    "powm(-1/4)": lambda a, **o: [matroot.powm(a, -0.25, **o)],
    "powm(-1/8)": lambda a, **o: [matroot.powm(a, -0.125, **o)],
}


def matrix(n, cond=1e4, dtype=torch.float64, scale=1.0):
    q = torch.linalg.qr(
        torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    ).Q
    values = torch.logspace(0, -torch.tensor(cond).log10().item(), n, dtype=torch.float64)
    a = scale * (q * values) @ q.T
    return ((a + a.T) / 2).to(dtype)


def relative(x, y):
    return float((x.double() - y).norm() / y.norm())


def of_blocks(mesh, placements):
    """Errors of every function, beside those of the same method in one process."""
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for n in SIZES if dtype != torch.bfloat16 else (7,):
            # Far from 1 all must be scaled.
            for scale in (1.0, 1e-30, 1e30) if n == 7 else (1.0,):
                a = matrix(n, 1e2 if dtype == torch.bfloat16 else 1e4, dtype, scale)
                there = distribute_tensor(a, mesh, placements)
                for name, call in CALLS.items():
                    blocks, one = call(there, method=PROMISE), call(a, method=PROMISE)
                    right = call(a.double())
                    kept = all(
                        tuple(x.placements) == tuple(placements) and x.dtype == dtype
                        for x in blocks
                    )
                    blocks = [x.full_tensor() for x in blocks]
                    kept = kept and all(torch.equal(x, x.mT) for x in blocks)
                    found[f"{name} {dtype} {n} {scale}"] = [
                        max(map(relative, blocks, right)),
                        max(map(relative, one, right)),
                        kept,
                    ]
    return found


def check(found):
    for key, (error, one, kept) in found.items():
        unit = {"float64": 2e-16, "float32": 1e-7, "bfloat16": 8e-3}[key.split()[1][6:]]
        # Small matrices: a few units either way.
        assert error <= 1.5 * one + 10 * unit, (key, error, one)
        assert kept, key


def two_processes(rank):
    mesh = init_device_mesh("cpu", (2,))
    found = {"rows": of_blocks(mesh, [Shard(0)]), "columns": of_blocks(mesh, [Shard(1)])}

    a = matrix(40, 1e3)
    there = distribute_tensor(a, mesh, [Shard(0)])
    result = matroot.sqrtm_ex(there, root="both", eps=1e-3)
    wanted = matroot.sqrtm_ex(a, root="both", eps=1e-3, method="minimax")
    found["ex"] = [float(getattr(result, name).to_local()) for name in wanted._fields[2:]]
    found["ex of one"] = [float(getattr(wanted, name)) for name in wanted._fields[2:]]
    found["ridge"] = relative(result.sqrt.full_tensor(), matroot.sqrtm(a, eps=1e-3))
    found["relative ridge"] = relative(
        matroot.sqrtm(there, relative_eps=1e-3).full_tensor(), matroot.sqrtm(a, relative_eps=1e-3)
    )
    zero = distribute_tensor(torch.zeros(5, 5), mesh, [Shard(0)])
    found["zero"] = matroot.sqrtm(zero, method=PROMISE).full_tensor()
    with Sent() as sent:
        matroot.sqrtm(there, eps=1e-3)
    found["sent"] = sent.largest

    def error(x, call=matroot.sqrtm, **options):
        x = distribute_tensor(x, mesh, [Shard(0)])
        return processes.error(lambda: call(x, **(options or {"method": PROMISE})))

    bad = a.clone()
    bad[30, 3] = torch.nan
    found["nan"] = error(bad)
    found["unchecked"] = float(
        matroot.sqrtm(distribute_tensor(bad, mesh, [Shard(0)]), method=PROMISE, check_errors=False)
        .full_tensor()
        .isnan()
        .double()
        .mean()
    )
    q = torch.linalg.eigh(a).eigenvectors
    found["indefinite"] = error(a - 1e-2 * torch.outer(q[:, 0], q[:, 0]))
    found["slightly indefinite"] = error(a - 1.1e-3 * torch.outer(q[:, 0], q[:, 0]))
    found["promise"] = error(a, method=Minimax(max_cond=50.0))
    broken = matroot.sqrtm_ex(there, method=Minimax(max_cond=50.0))
    found["broken"] = [
        bool(broken.converged.to_local()),
        bool(broken.sqrt.to_local().isnan().all()),
    ]
    found["skew"] = error(a + torch.ones(40, 40).triu())
    found["inverse of zero"] = error(torch.zeros(5, 5), matroot.inv_sqrtm)
    found["no bound"] = error(a, check_errors=True)
    found["eigh"] = error(a, method="eigh", eps=1.0)
    found["pinv"] = error(a, matroot.inv_sqrtm, singular="pinv", eps=1.0)
    found["native"] = error(a, backend="native", eps=1.0)
    found["power"] = error(a, lambda x, **o: matroot.powm(x, 0.3, **o))
    found["complex"] = error(a.to(torch.complex128))
    found["batch"] = processes.error(
        lambda: matroot.sqrtm(distribute_tensor(a[None], mesh, [Shard(1)]), eps=1.0)
    )
    found["gradient"] = processes.error(
        lambda: matroot.sqrtm(there.detach().requires_grad_(), eps=1.0)
    )
    wide = torch.randn(800, 1600, generator=torch.Generator().manual_seed(0))
    wide = distribute_tensor(wide @ wide.T / 800, mesh, [Shard(0)])
    found["held"] = [
        held(lambda: matroot.sqrtm_pair(wide, eps=1e-2), 800, 2),
        held(lambda: matroot.powm(wide, -0.25, eps=1e-2), 800, 2),
        held(lambda: matroot.sqrtm_ex(wide, root="both", eps=1e-2), 800, 2),
    ]
    found["alone"] = processes.error(
        lambda: matroot.sqrtm(there.detach().requires_grad_(rank == 0), eps=1.0)
    )
    found["one step"] = error(a, method=Minimax(max_cond=1e4, max_steps=1))
    none = distribute_tensor(torch.zeros(0, 0), mesh, [Shard(0)])
    found["none"] = [matroot.sqrtm(none, eps=1.0), *matroot.sqrtm_ex(none, eps=1.0, root="both")]
    found["none"] = [list(x.shape) for x in found["none"]]
    # Near the rounding of single precision promises are still kept, beyond it is an error.
    hard, beyond = (matrix(60, cond, torch.float32) for cond in (3e6, 1e9))
    right = matroot.sqrtm(hard.double())
    there = distribute_tensor(hard, mesh, [Shard(0)])
    found["hard"] = [
        relative(matroot.sqrtm(there, method=Minimax(max_cond=promised)).full_tensor(), right)
        for promised in (6e6, 1e12)
    ]
    found["beyond"] = error(beyond, method=Minimax(max_cond=2e9))
    turned = DeviceMesh("cpu", [1, 0])
    part = a[20 * (1 - rank) : 20 * (2 - rank)].contiguous()
    turned = DTensor.from_local(part, turned, [Shard(0)], run_check=False)
    root = matroot.sqrtm(turned, eps=1e-3).to_local()
    wanted = matroot.sqrtm(a, eps=1e-3)[20 * (1 - rank) : 20 * (2 - rank)]
    found["turned"] = relative(root, wanted)
    there = distribute_tensor(a, mesh, [Shard(0)])
    compiled = torch.compile(lambda x: matroot.sqrtm(x, eps=1e-3) * 2, backend="eager")(there)
    found["compiled"] = relative(compiled.full_tensor(), 2 * matroot.sqrtm(a, eps=1e-3))
    found["unchanged"] = torch.equal(there.full_tensor(), a)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return processes.run_once(two_processes, 2, tmp_path_factory)


@pytest.fixture(scope="module")
def two(both):
    first, second = both
    for name in first:
        if isinstance(first[name], str) and name != "alone":
            assert first[name] == second[name]
    return first


@pytest.mark.parametrize("placed", ["rows", "columns"])
def test_errors_are_those_of_one_process(two, placed):
    assert len(two[placed]) == (2 * len(SIZES) + 7) * len(CALLS)
    check(two[placed])


def test_ridges_and_zero(two):
    assert two["ridge"] < 1e-13
    assert two["relative ridge"] < 1e-13
    assert two["zero"].eq(0).all()
    assert two["unchanged"]


def test_residuals_are_those_of_one_process(two):
    residual, inv_residual, bound, inv_bound, _, converged = two["ex"]
    assert bound != bound  # NaN: nothing is said of blocks.
    assert inv_bound != inv_bound
    assert residual <= 2 * two["ex of one"][0]
    assert inv_residual <= 2 * two["ex of one"][1]
    assert converged == two["ex of one"][5] == 1


def test_panels_are_sent_and_numbers_gathered(two):
    # Two panels, of 20 rows each. Sums and largest numbers are three at most.
    assert two["sent"]["broadcast_"] == two["sent"]["reduce_"] == 20 * 40
    assert two["sent"]["allgather_"] <= 3
    # The largest row: a sum for each.
    assert two["sent"].get("allreduce_", 0) <= 1024 + 2


def test_hard_promises(two):
    assert max(two["hard"]) < 3e-5
    assert two["beyond"].endswith("what helps: a larger eps=, or double precision")


def test_other_meshes_and_none(two):
    assert two["turned"] < 1e-13
    assert two["compiled"] < 1e-13
    assert two["none"] == [[0, 0], [0, 0], [0, 0], [], [], [], [], [], []]


def test_an_argument_that_is_wrong_in_one_process_is_an_error_in_all(both):
    assert all("does not go with requires_grad" in found["alone"] for found in both)
    assert both[1]["alone"].startswith("ValueError: rank 0: ")


def test_six_blocks_are_held_at_most(two):
    # The argument's, five more, and some rows.
    for blocks, rows in two["held"]:
        assert 3 < blocks <= 6
        assert rows < 150


def test_a_bad_matrix_is_the_same_error_in_every_process(two):
    assert two["nan"].startswith("_LinAlgError: a is not finite (NaN or infinity), first in")
    assert two["nan"].endswith("rank 1")
    assert two["unchecked"] == 1
    for name in ("indefinite", "slightly indefinite", "promise"):
        assert two[name].startswith("_LinAlgError: a is not a positive definite matrix of the cond")
    assert two["broken"] == [False, True]
    assert two["skew"].startswith("_LinAlgError: a is not symmetric")
    assert two["inverse of zero"].startswith("_LinAlgError: a is zero")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("no bound", "add a ridge with eps= or relative_eps=, or promise a bound of λ_max/λ_min"),
        ("eigh", "does not go with method=Eigh()"),
        ("pinv", "does not go with singular='pinv'"),
        ("native", "does not go with backend='native'"),
        ("power", "the powers ±1/2, ±1/4 and ±1/8 are made of products alone, got 0.3"),
        ("complex", "must be real, got torch.complex128"),
        ("batch", "must be one of shape (n, n), got (1, 40, 40)"),
        ("one step", "does not go with max_steps=1"),
        ("gradient", "does not go with requires_grad"),
    ],
)
def test_what_blocks_do_not_go_with_is_one_clear_error(two, key, text):
    assert text in two[key]


MESHES = {
    3: [((3,), [Shard(0)])],
    4: [
        ((2, 2), [Shard(0), Shard(1)]),
        ((2, 2), [Shard(1), Shard(0)]),
        ((2, 2), [Replicate(), Shard(0)]),
        ((2, 2), [Shard(1), Replicate()]),
    ],
    8: [((8,), [Shard(1)]), ((2, 4), [Shard(0), Shard(1)])],
}


def many_processes(rank, count):
    found = {}
    for shape, placements in MESHES[count]:
        found[f"{shape} {placements}"] = of_blocks(init_device_mesh("cpu", shape), placements)
    if count == 4:
        mesh = init_device_mesh("cpu", (2, 2))
        twice = distribute_tensor(matrix(8), mesh, [Shard(0), Shard(0)])
        found["twice"] = processes.error(lambda: matroot.sqrtm(twice, method=PROMISE))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("count", MESHES)
def test_more_processes(tmp_path, count):
    for found in processes.run(many_processes, count, tmp_path, count):
        twice = found.pop("twice", None)
        assert (twice is None) == (count != 4)
        assert twice is None or "sharded once by rows and once by columns" in twice
        for one in found.values():
            check(one)


class Sent(TorchDispatchMode):
    """The largest tensor, in numbers, of each kind of collective."""

    def __init__(self):
        super().__init__()
        self.largest = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            name = function._schema.name.removeprefix("c10d::")
            numbers = [x.numel() for x in tree_leaves(args) if isinstance(x, torch.Tensor)]
            self.largest[name] = max([self.largest.get(name, 0), *numbers])
        return function(*args, **(kwargs or {}))


class Held(TorchDispatchMode):
    """The most numbers of float32, in bytes, that tensors made inside hold at a time."""

    def __init__(self):
        super().__init__()
        self.tensors, self.most = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.device.type == "cpu":
                self.tensors.append(weakref.ref(x))
        alive = [x for x in (ref() for ref in self.tensors) if x is not None]
        self.tensors = [weakref.ref(x) for x in alive]
        storages = [x.untyped_storage() for x in alive]
        held = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.most = max(self.most, sum(held.values()))
        return result


def held(call, n, processes):
    """Blocks of n²/R numbers beside the argument's, and how many n numbers are more than five."""
    with Held() as held:
        call()
    block = 4 * n**2 / processes
    return [held.most / block, (held.most - 5 * block) / (4 * n)]


LARGE = 3000


def large(rank, shape, placements, path):
    """Numbers that are held, and the roots."""
    mesh = init_device_mesh("cpu", shape)
    a = torch.load(path / "a.pt", mmap=True)
    rows, columns = (len(mesh.mesh), 1) if len(shape) == 1 else shape
    i, j = divmod(rank, columns)
    block = a.chunk(rows)[i].chunk(columns, 1)[j].contiguous()
    there = DTensor.from_local(block, mesh, placements, run_check=False)
    roots = []
    used = held(
        lambda: roots.extend(matroot.sqrtm_pair(there, method=Minimax(max_cond=2e6))), LARGE, 4
    )
    return [used, *(root.full_tensor() for root in roots)]


@pytest.mark.slow
def test_a_large_matrix_on_four_processes(tmp_path):
    a = matrix(LARGE, 1e6, torch.float32)
    torch.save(a, tmp_path / "a.pt")
    values, vectors = torch.linalg.eigh(a.double())
    right = [(vectors * values**p) @ vectors.T for p in (0.5, -0.5)]
    one = matroot.sqrtm_pair(a, method=Minimax(max_cond=2e6))
    one_errors = list(map(relative, one, right))
    for shape, placements in (((4,), [Shard(0)]), ((2, 2), [Shard(0), Shard(1)])):
        folder = tmp_path / str(len(shape))
        folder.mkdir()
        for used, *found in processes.run(large, 4, folder, shape, placements, tmp_path):
            print(shape, used, *map(relative, found, right), *one_errors)
            assert all(map(operator.le, map(relative, found, right), one_errors))
            assert used[0] <= 5


def interrupted(rank):
    mesh = init_device_mesh("cpu", (4,))
    there = distribute_tensor(matrix(600), mesh, [Shard(0)])
    matroot.sqrtm(there, method=PROMISE)
    start = time.perf_counter()
    if rank == 2:
        threading.Timer(0.3, os._exit, (9,)).start()

    def many():
        while True:
            matroot.sqrtm(there, method=PROMISE)

    return [processes.error(many), time.perf_counter() - start]


@pytest.mark.slow
def test_a_process_that_is_lost_is_an_error_in_the_others(tmp_path):
    for error, seconds in processes.run(interrupted, 4, tmp_path, lost=(2,), timeout=20):
        assert error
        assert seconds < 30


EXAMPLE = Path(__file__).parents[2] / "examples/several_processes.py"


@pytest.mark.slow
@pytest.mark.skipif(not EXAMPLE.exists(), reason="the wheel has no examples")
@pytest.mark.parametrize("count", [2, 3])
def test_the_example_by_torchrun(count):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launch, "--nproc-per-node", str(count), str(EXAMPLE)]
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 4
    assert "converged: True" in done.stdout
