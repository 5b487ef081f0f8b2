"""``matroot.distributed.map``: the same bits in every process and for every number of them."""

import functools
import hashlib
import os
import re
import time

import pytest
import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.distributed.tensor.debug import CommDebugMode

import matroot
import processes
from matroot.bench import shampoo
from matroot.distributed import map as over_ranks
from matroot.distributed import mapping
from matroot.kernels import native
from matroot.testing import exact, random_spd, relative_error

quarter = functools.partial(matroot.powm, p=-1 / 4, eps=1e-6)


def gram(n, seed=0, dtype=torch.float32):
    """The statistics of a few gradients."""
    x = torch.randn(n, n + 8, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return x @ x.mH / n


def shampoo_matrices():
    return [gram(n, seed) for seed, n in enumerate(shampoo.sizes(300))]


def mixed():
    """All dtypes, odd sizes, none and one row, memory that is not contiguous."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128)
    made = [random_spd(n, dtype=d, seed=n) for n in (7, 1, 33) for d in dtypes]
    wide = torch.zeros(10, 20)
    wide[:, ::2] = random_spd(10, dtype=torch.float32)
    return [*made, torch.empty(0, 0), wide[:, ::2], torch.nn.Parameter(torch.eye(3), False)]


def digests(matrices):
    return [hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest() for x in matrices]


def told(function, matrices, **options):
    try:
        over_ranks(function, matrices, **options)
    except Exception as error:
        return type(error).__name__, str(error)
    return "no error", ""


def only_on(rank, error):
    def function(a):
        if dist.get_rank() == rank:
            raise error
        return a

    return function


def skewed(a):
    return a + torch.triu(torch.ones_like(a), 1)


# Each process has work of its own: matrices of two sizes, each size in one batch.
PAIR = [torch.eye(12), torch.eye(9), torch.eye(9)]
NAN = [torch.eye(12), torch.full((9, 9), torch.nan), torch.eye(9)]
INDEFINITE = [torch.eye(12), torch.eye(9), torch.diag(torch.tensor([1.0] * 8 + [-1.0]))]


def errors(rank):
    """What each process was told, one case after the other in one group."""
    other = rank == 1
    differing = [torch.eye(12), torch.eye(9), torch.eye(10 if other else 9)]
    gradient = [torch.eye(4, requires_grad=other)]
    return {
        "nan": told(matroot.sqrtm, NAN),
        "indefinite": told(matroot.sqrtm, INDEFINITE),
        "function of rank 1": told(only_on(1, ZeroDivisionError("no way")), PAIR),
        "long": told(only_on(1, ValueError("ü" * 5000)), PAIR),
        "both": told(lambda a: 1 / 0, PAIR),
        "shape": told(lambda a: a[:, :-1], PAIR),
        "dtype": told(torch.Tensor.double, PAIR),
        "type": told(torch.Tensor.tolist, PAIR),
        "skew": told(skewed, PAIR),
        "other shapes": told(matroot.sqrtm, differing),
        "other number": told(matroot.sqrtm, PAIR[: 2 + other]),
        "other dtypes": told(matroot.sqrtm, [torch.eye(3, dtype=torch.float64 if other else None)]),
        "no tensor": told(matroot.sqrtm, [[[1.0]]] if other else [torch.eye(1)]),
        "gradient": told(matroot.sqrtm, gradient),
        "not square": told(matroot.sqrtm, [torch.ones(3, 3 - other)]),
    }


def _everything(rank):
    found = {"shampoo": digests(over_ranks(quarter, shampoo_matrices()))}
    found["mixed"] = over_ranks(matroot.sqrtm, mixed())
    found["errors"] = errors(rank)
    found["one NaN"] = over_ranks(functools.partial(matroot.sqrtm, check_errors=False), NAN)
    calls = []
    found["called"] = over_ranks(lambda a: calls.append(a.shape[0]) or a, PAIR)
    found["calls"] = calls
    found["empty"] = over_ranks(matroot.sqrtm, [])
    with torch.no_grad():
        found["parameter"] = over_ranks(matroot.sqrtm, [torch.nn.Parameter(torch.eye(2))])
    with CommDebugMode() as counted:
        over_ranks(matroot.sqrtm, PAIR)
    found["collectives"] = {str(op): n for op, n in counted.get_comm_counts().items()}
    alone = dist.new_group([1])
    found["alone"] = told(matroot.sqrtm, PAIR, process_group=alone)
    swapped = dist.new_group([0, 1])
    found["named"] = told(only_on(1, ValueError("no")), PAIR, process_group=swapped)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return processes.run_once(_everything, 2, tmp_path_factory)


@pytest.fixture(scope="module")
def bits():
    """The results of one process, by one thread as in the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield digests(over_ranks(quarter, shampoo_matrices()))
    torch.set_num_threads(before)


def test_two_processes_find_the_bits_of_one(both, bits):
    assert len(bits) == 300
    for found in both:
        assert found["shampoo"] == bits


def _shampoo(rank):
    return digests(over_ranks(quarter, shampoo_matrices()))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4, 8])
def test_more_processes_find_the_bits_of_one(tmp_path, bits, ranks):
    for found in processes.run(_shampoo, ranks, tmp_path):
        assert found == bits


def test_every_dtype_and_size(both):
    matrices = mixed()
    for found in both:
        assert len(found["mixed"]) == len(matrices)
        for a, x, y in zip(
            matrices, found["mixed"], over_ranks(matroot.sqrtm, mixed()), strict=True
        ):
            assert x.dtype == a.dtype
            torch.testing.assert_close(x, y, rtol=0, atol=0)
            assert torch.equal(x, x.mH)
            if len(a):
                assert relative_error(x, exact(a)) < 30 * torch.finfo(a.dtype).eps


@pytest.mark.parametrize(
    ("case", "kind", "text"),
    [
        (
            "nan",
            "LinAlgError",
            r"map: rank [01]: matrices\[1, 2\] \(9×9, a batch of 2\): .*index 0",
        ),
        ("indefinite", "LinAlgError", r"rank [01]: matrices\[1, 2\] .*indefinite.*index 1"),
        ("function of rank 1", "RuntimeError", r"map: rank 1: .*: ZeroDivisionError: no way"),
        ("long", "ValueError", "map: rank 1: matrices.*üüü"),
        ("both", "RuntimeError", r"rank 0 \(and 1 failed\): .*ZeroDivisionError"),
        ("shape", "ValueError", r"expected shape \(2, 9, 9\).*got \(2, 8, 9\)|\(1, 12, 12\)"),
        ("dtype", "TypeError", "expected torch.float32 from the function, got torch.float64"),
        ("type", "TypeError", "expected a tensor from the function, got list"),
        ("skew", "ValueError", "not symmetric.*tolerance 0.001"),
        ("other shapes", "ValueError", "rank 0 holds 3 .*9×9.*, rank 1 3 .*10×10 float32"),
        ("other number", "ValueError", "rank 0 holds 2 .*, rank 1 3 "),
        ("other dtypes", "ValueError", r"rank 0 holds 1 \(3×3 float32\), rank 1 1 \(3×3 float64\)"),
        ("no tensor", "TypeError", r"map: rank 1: matrices\[0\] must be a plain tensor.*got list"),
        ("gradient", "ValueError", r"map: rank 1: matrices\[0\] requires a gradient"),
        ("not square", "ValueError", r"map: rank 1: .*shape \(n, n\), got \(3, 2\)"),
    ],
)
def test_an_error_of_one_process_is_raised_in_all(both, case, kind, text):
    first, second = (found["errors"][case] for found in both)
    assert first == second
    assert first[0].strip("_") == kind
    assert re.search(text, first[1]), first[1]


def test_without_checks_one_bad_matrix_is_nan_and_the_others_are_right(both):
    for found in both:
        good, bad, other = found["one NaN"]
        assert bad.isnan().all()
        assert torch.equal(good, torch.eye(12))
        assert torch.equal(other, torch.eye(9))


def test_each_batch_is_computed_once(both):
    assert sorted(both[0]["calls"] + both[1]["calls"]) == [1, 2]
    for found in both:
        assert all(map(torch.equal, found["called"], PAIR))
        assert found["empty"] == []
        assert torch.equal(found["parameter"][0], torch.eye(2))
        assert not found["parameter"][0].requires_grad


def test_two_collectives(both):
    for found in both:
        assert found["collectives"] == {"c10d.allgather_": 2}


def test_groups(both):
    assert both[0]["alone"][0] == "ValueError"
    assert "not in the process group" in both[0]["alone"][1]
    assert both[1]["alone"] == ("no error", "")
    for found in both:
        assert found["named"][1].startswith("matroot.distributed.map: rank 1: ")


def _lost(rank, how):
    def function(a):
        if rank == 1:
            time.sleep(60 if how == "hanging" else 0)
            os._exit(9)
        return a

    start = time.monotonic()
    message = told(function, [torch.eye(n) for n in (5, 6, 7)])
    return [*message, time.monotonic() - start]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_the_others_end_when_a_process_is_lost(tmp_path, how):
    for name, _, seconds in processes.run(_lost, 3, tmp_path, how, lost=(1,), timeout=20):
        assert name != "no error"
        assert seconds < 30


# In one process.


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_the_work_is_spread_evenly(ranks):
    work = mapping.batches([torch.empty(n, n) for n in shampoo.sizes(300)])
    loads = [sum(batch.cost for batch in share) for share in mapping.assigned(work, ranks)]
    assert max(loads) <= 1.1 * sum(loads) / ranks


def test_batches_are_of_one_kind_and_hold_everything_once():
    matrices = [torch.empty(n, n) for n in shampoo.sizes(300)]
    matrices += [torch.empty(64, 64, dtype=torch.float64), torch.empty(2000, 2000)]
    work = mapping.batches(matrices)
    assert sorted(i for batch in work for i in batch.indices) == list(range(302))
    for batch in work:
        kinds = {(len(matrices[i]), matrices[i].dtype) for i in batch.indices}
        assert kinds == {(batch.n, batch.dtype)}
        assert batch.n <= native.tasks.LARGEST_BY_EIGENPAIRS[batch.dtype] or len(batch.indices) == 1
    assert len([batch for batch in work if batch.n == 1]) == 1
    assert len(work) < 200
    shares = mapping.assigned(work, 5)
    assert sorted(batch.indices for share in shares for batch in share) == sorted(
        batch.indices for batch in work
    )


@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_few_matrices_for_many_processes(ranks):
    assert mapping.assigned([], ranks) == [[]] * ranks
    work = mapping.batches([torch.empty(3, 3), torch.empty(4, 4)])
    assert sum(map(len, mapping.assigned(work, ranks))) == 2


def test_costs_grow_with_size_and_precision():
    costs = [mapping.cost(n, torch.float32) for n in range(1, 600)]
    assert costs == sorted(costs)
    assert mapping.cost(64, torch.float16) == mapping.cost(64, torch.float32)
    assert mapping.cost(64, torch.float64) > mapping.cost(64, torch.float32)
    assert mapping.cost(64, torch.complex64) == 4 * mapping.cost(64, torch.float32)


@pytest.mark.skipif(not native.tasks.available(), reason="kernels were not built")
def test_a_batch_has_the_bits_of_its_matrices():
    matrices = [gram(n, seed) for n in (5, 16, 33, 64) for seed in range(6)]
    for a, x in zip(matrices, over_ranks(quarter, matrices), strict=True):
        assert torch.equal(x, quarter(a))


def test_results_have_memory_of_their_own():
    a = torch.eye(4)
    x, y = over_ranks(lambda batch: batch, [a, a])
    x.zero_()
    assert torch.equal(y, a)
    assert torch.equal(a, torch.eye(4))
    assert x.untyped_storage().nbytes() == 16 * 4


def test_a_compiled_program_calls_it_as_it_is():
    compiled = torch.compile(lambda a: over_ranks(matroot.sqrtm, [4 * a])[0] + 1)
    assert torch.equal(compiled(torch.eye(2)), 2 * torch.eye(2) + 1)


def test_rounding_is_averaged_away():
    (x,) = over_ranks(torch.linalg.inv, [gram(40)])
    assert torch.equal(x, x.mT)


def test_errors_of_one_process():
    with pytest.raises(torch.linalg.LinAlgError, match=r"map: matrices\[1, 2\] \(9×9.*indefinite"):
        over_ranks(matroot.sqrtm, INDEFINITE)
    with pytest.raises(ValueError, match="requires a gradient"):
        over_ranks(matroot.sqrtm, [torch.eye(2, requires_grad=True)])
    with pytest.raises(ValueError, match=r"torch\.func transform"):
        torch.func.jvp(
            lambda a: over_ranks(matroot.sqrtm, [a])[0], (torch.eye(2),), (torch.eye(2),)
        )
    with forward_ad.dual_level(), pytest.raises(ValueError, match="no derivative"):
        over_ranks(matroot.sqrtm, [forward_ad.make_dual(torch.eye(2), torch.eye(2))])
    with pytest.raises(TypeError, match=r"must be real or complex, got torch\.int64"):
        over_ranks(matroot.sqrtm, [torch.eye(2, dtype=torch.int64)])
    with pytest.raises(TypeError, match=r"layout torch\.sparse_coo"):
        over_ranks(matroot.sqrtm, [torch.eye(2).to_sparse()])
    with pytest.raises(ValueError, match=r"matrices\[0\] must have shape \(n, n\), got \(3,\)"):
        over_ranks(matroot.sqrtm, torch.eye(3))
