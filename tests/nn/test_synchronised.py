"""Whitening over the samples of several processes against one process that has them all."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import processes
from matroot.nn import DecorrelatedBatchNorm1d, convert_batchnorm, convert_sync_whitening
from nn import together
from nn.together import CASES, CHANNELS, FAR

SLOW = pytest.mark.slow


def by_spawn(world, factory):
    return processes.run_once(together.everything, world, factory, world)


def by_torchrun(world, factory):
    folder = factory.mktemp("torchrun")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = [str(Path(together.__file__)), str(folder)]
    tests = str(Path(together.__file__).parents[1])
    subprocess.run(
        [*launch, "--nproc-per-node", str(world), *program],
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": tests},
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


STARTS = {
    "2": (by_spawn, 2),
    "torchrun": (by_torchrun, 2),
    "3": (by_spawn, 3),
    "4": (by_spawn, 4),
    "8": (by_spawn, 8),
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(k, marks=() if k == "2" else SLOW) for k in STARTS],
)
def ranks(request, tmp_path_factory):
    """What each process has found."""
    start, world = STARTS[request.param]
    return start(world, tmp_path_factory)


def alone(case, world, dtype=None):
    """The same in one process that has all samples."""
    layer = case.make(dtype)
    for seed in range(2):
        x, g = (t.to(dtype or case.dtype) for t in case.samples(world, seed))
        layer.zero_grad()
        y, gradient, *_ = together.step(layer, x, g)
    with torch.no_grad():
        evaluated = layer.eval()(case.samples(world)[0].to(dtype or case.dtype))
    return {
        "y": y,
        "gradient": gradient,
        "parameters": {k: p.grad for k, p in layer.named_parameters()},
        "buffers": dict(layer.named_buffers()),
        "evaluated": evaluated,
    }


def distance(found, expected):
    """Relative, by norms."""
    if expected.numel() == 0:
        assert found.shape == expected.shape
        return 0.0
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def together_of(ranks, name):
    """What all processes have found, in the form of ``alone``."""
    each = [found[name] for found in ranks]
    return {
        "y": torch.cat([one["y"] for one in each]),
        "gradient": torch.cat([one["gradient"] for one in each]),
        "parameters": {k: sum(one["parameters"][k] for one in each) for k in each[0]["parameters"]},
        "buffers": each[0]["buffers"],
        "evaluated": each[0]["evaluated"],
    }


def pairs(found, expected):
    for key, value in expected.items():
        if isinstance(value, dict):
            assert found[key].keys() == value.keys()
            yield from ((f"{key}.{k}", found[key][k], v) for k, v in value.items())
        else:
            yield key, found[key], value


@pytest.mark.parametrize("name", CASES)
def test_it_equals_one_process_with_all_samples(ranks, name):
    case = CASES[name]
    tolerance = 1e-6 if case.dtype == torch.float32 else 1e-12
    samples = case.samples(len(ranks), 1)[0].double().transpose(0, 1).flatten(1)
    assert torch.linalg.cond(torch.cov(samples)) < 100
    expected = alone(case, len(ranks))
    for key, a, b in pairs(together_of(ranks, name), expected):
        assert distance(a, b) < tolerance, key


@pytest.mark.parametrize("name", together.WEIGHTED)
def test_weights_of_all_processes_count(ranks, name):
    case = CASES[name]
    each = [found["weighted"][name] for found in ranks]
    samples = together.weighted_samples(case, len(ranks))
    expected = together.weighted_step(case.make(), *samples)
    tolerance = 1e-11 if case.dtype == torch.float64 else 2e-6
    for parts, wanted in zip(zip(*(one[0] for one in each), strict=True), expected[0], strict=True):
        assert distance(torch.cat(parts), wanted) < tolerance
    for key, wanted in expected[1].items():
        assert distance(sum(one[1][key] for one in each), wanted) < tolerance
    for key, wanted in expected[2].items():
        assert distance(each[0][2][key], wanted) < tolerance


def test_wrong_and_missing_weights_of_some_processes(ranks):
    *others, own = (found["weighted"]["negative"] for found in ranks)
    assert own == (
        "ValueError",
        "DecorrelatedBatchNorm1d: sample_weight must be finite and at least 0, got -1.0",
    )
    assert all("see the error there" in other for _, other in others)
    for found in ranks:
        assert "in all processes together, got 0.9" in found["weighted"]["few"][1]
    x = [torch.randn(9, 8, generator=torch.Generator().manual_seed(r)) for r in range(len(ranks))]
    weight = torch.ones(len(ranks), 9)
    weight[-1] = torch.arange(9) % 2
    expected = DecorrelatedBatchNorm1d(8)(torch.cat(x), weight.flatten())
    assert distance(torch.cat([found["weighted"]["some"] for found in ranks]), expected) < 1e-6


@pytest.mark.parametrize("name", FAR)
def test_features_far_from_zero_lose_no_more_than_their_own_rounding(ranks, name):
    # Against the truth in float64, or for samples in float64 beside their rounding of the mean.
    case = FAR[name]
    expected = alone(case, len(ranks), torch.float64)
    unit = torch.finfo(case.dtype).eps
    for key, a, b in pairs(together_of(ranks, name), expected):
        assert distance(a, b) < 8 * unit * case.mean, key


@pytest.mark.parametrize("name", CASES | FAR)
def test_running_statistics_are_the_same_bits_everywhere(ranks, name):
    first = ranks[0][name]["buffers"]
    for found in ranks[1:]:
        torch.testing.assert_close(found[name]["buffers"], first, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES | FAR)
def test_collectives_and_their_bytes_are_as_documented(ranks, name):
    case, world = (CASES | FAR)[name], len(ranks)
    k = case.options.get("groups", 1)
    n = CHANNELS // k
    packed, counts = k * (n * (n + 1) // 2 + n), 1 + world
    forward, backward = [packed + counts], [packed + counts]
    if case.dtype == torch.float64:
        forward, backward = [k * n + counts, packed], [packed]
    if case.options.get("shrinkage") == "ledoit_wolf":
        forward, backward = [k * n + counts, packed + k], [packed + k, k * n + counts]
    for found in ranks:
        assert found[name]["forward"] == [("all_reduce", 8 * x) for x in forward]
        assert found[name]["backward"] == [("all_reduce", 8 * x) for x in backward]
        assert found[name]["in evaluation"] == []


def test_no_process_warns(ranks):
    assert not [text for found in ranks for text in found["told"]]


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.float64"])
@pytest.mark.parametrize("value", ["nan", "infinity"])
def test_numbers_that_are_not_finite_are_the_same_error_everywhere(ranks, value, dtype):
    expected = (
        "_LinAlgError",
        "the covariance of the input of DecorrelatedBatchNorm1d is not finite (NaN or infinity): "
        f"the input in rank {len(ranks) - 1}",
    )
    assert [found["errors"][f"{value}, {dtype}"] for found in ranks] == [expected] * len(ranks)


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.float64"])
@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("channels", "ValueError", "expected 8 channels, got shape (9, 7)"),
        ("dimensions", "ValueError", "expected 2-D or 3-D input, got shape (8,)"),
        ("dtype", "TypeError", "got torch.int64"),
        ("no tensor", "TypeError", "got list"),
    ],
)
def test_an_invalid_input_of_one_process_is_an_error_in_all(ranks, what, kind, message, dtype):
    *others, (own_kind, own) = (found["errors"][f"{what}, {dtype}"] for found in ranks)
    assert own_kind == kind
    assert message in own
    expected = (
        f"DecorrelatedBatchNorm1d: the input in rank {len(ranks) - 1} has a wrong shape or dtype"
    )
    for other_kind, other in others:
        assert other_kind == "ValueError"
        assert other.startswith(expected)
    assert ranks[0]["errors"]["bare"][1].startswith(expected)
    assert "torch.int64" in ranks[-1]["errors"]["bare"][1]


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.float64"])
def test_after_an_error_training_can_go_on(ranks, dtype):
    x = [torch.randn(9, 8, generator=torch.Generator().manual_seed(r)) for r in range(len(ranks))]
    layer = DecorrelatedBatchNorm1d(8, dtype=getattr(torch, dtype.removeprefix("torch.")))
    expected = layer(torch.cat(x).to(layer.weight.dtype))
    found = torch.cat([one["errors"][f"afterwards, {dtype}"] for one in ranks])
    assert distance(found, expected) < 1e-6
    assert all(one["errors"][f"unchanged, {dtype}"] for one in ranks)


def test_processes_may_have_samples_of_different_dtypes(ranks):
    last = len(ranks) - 1
    x = [torch.randn(9, 8, generator=torch.Generator().manual_seed(r)) for r in range(len(ranks))]
    x = [t if r == last else t.to(torch.bfloat16) for r, t in enumerate(x)]
    expected = DecorrelatedBatchNorm1d(8)(torch.cat([t.float() for t in x])).split(9)
    for rank, found in enumerate(ranks):
        y = found["errors"]["mixed dtypes"]
        assert y.dtype == (torch.float64 if rank == last else torch.bfloat16)
        assert distance(y, expected[rank]) < (1e-6 if rank == last else 1e-2)


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.float64"])
def test_samples_are_counted_over_all_processes(ranks, dtype):
    for name, count in (("no sample", 0), ("one sample", 1)):
        expected = (
            "ValueError",
            "DecorrelatedBatchNorm1d: expected at least 2 samples a channel in all processes "
            f"together, got {count}",
        )
        assert [one["errors"][f"{name}, {dtype}"] for one in ranks] == [expected] * len(ranks)


def test_where_errors_are_not_checked_nan_stays_in_its_group(ranks):
    for found in ranks:
        y, gradient = found["errors"]["unchecked"]
        for values in (y, gradient):
            assert values[:, :4].isnan().all()
            assert values[:, 4:].isfinite().all()
        assert found["errors"]["unchecked, one sample"].isnan().all()
    assert "channels" in ranks[-1]["errors"]["unchecked, invalid"][1]
    for found in ranks[:-1]:
        assert found["errors"]["unchecked, invalid"].isnan().all()


def test_shared_roots_are_the_same_bits(ranks):
    for found in ranks:
        roots = found["roots"]
        (y, gradient, forward, backward), running = roots["shared"]
        (y1, gradient1, forward1, backward1), running1 = roots["not shared"]
        assert torch.equal(y, y1)
        assert torch.equal(running, running1)
        assert distance(gradient, gradient1) < 1e-6
        extra = [("all_reduce", 8 * 5 * 4 * 4)]
        assert (forward, backward) == (forward1 + extra, extra + backward1)
        few, few1 = (roots[f"{k}, fewer than processes"] for k in ("shared", "not shared"))
        assert torch.equal(few[0], few1[0])
        assert distance(few[1], few1[1]) < 1e-6


def test_shared_roots_go_by_what_all_processes_know(ranks):
    for found in ranks:
        roots = found["roots"]
        for options in (0, 2):
            y, y1 = (roots[f"{k}, dtypes {options}"] for k in ("shared", "not shared"))
            # Of covariances that are rounded to another dtype in another process.
            assert distance(y, y1) < 1e-5


def test_an_error_in_a_shared_root_is_that_of_all(ranks):
    told = {found["roots"][f"{k}, singular"] for found in ranks for k in ("shared", "not shared")}
    ((kind, text),) = told
    assert kind == "_LinAlgError"
    assert "1 of the 5 matrices in the covariance of the input" in text
    assert "(batch index 3)" in text


def test_any_error_in_a_shared_root_is_that_of_all(ranks):
    told = {found["roots"][f"{k}, odd"] for found in ranks for k in ("shared", "not shared")}
    ((kind, text),) = told
    assert kind == "ValueError"
    assert "needs a spectral method" in text


def test_a_subclass_with_its_own_statistics_is_left_alone(ranks):
    for rank, found in enumerate(ranks):
        y, collectives, error = found["own"]
        x = torch.randn(20, 20, generator=torch.Generator().manual_seed(rank))
        assert torch.equal(y, together.Own(20, group_size=4)(x))
        assert collectives == []
        assert (error is not None) == (rank == 0)


@pytest.fixture(scope="module")
def one_step():
    """Gradients and buffers of one process with all pictures, by the number of processes."""

    def found(world, autocast=False):
        model = together.Network()
        model.load_state_dict(together.network().state_dict())
        x, labels = (torch.cat(t) for t in zip(*map(together.pictures, range(world)), strict=True))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        return {k: p.grad for k, p in model.named_parameters()}, dict(model.named_buffers())

    return found


@pytest.mark.parametrize(
    ("way", "tolerance"),
    [
        ("ddp", 5e-6),
        ("fsdp2", 5e-6),
        ("checkpointed", 5e-6),
        ("compiled", 5e-6),
        ("autocast", 0.05),
    ],
)
def test_every_way_of_training_is_that_of_one_process(ranks, one_step, way, tolerance):
    gradients, buffers = one_step(len(ranks), way == "autocast")
    for found in ranks:
        own, kept = found["ways"][way]
        for name, expected in gradients.items():
            name = name if name in own else f"module.{name}"
            if name.endswith("first.bias"):
                # Whitening takes it off again: 0 but for rounding.
                assert own[name].abs().max() < 1e-2 if way == "autocast" else 1e-6
                continue
            assert distance(own[name], expected) < tolerance, name
        if way == "checkpointed":
            # Which runs the layer again in the backward pass, as with batch normalisation.
            assert all(v == 2 for k, v in kept.items() if "tracked" in k)
            continue
        for name, expected in buffers.items():
            name = name if name in kept else f"module.{name}"
            assert distance(kept[name], expected) < tolerance, name


def test_compiled_in_double_precision(ranks):
    case = CASES["float64, groups"]
    x, g = case.samples(len(ranks))
    y, gradient, *_ = together.step(case.make(), x, g)
    found = [one["ways"]["compiled, float64"] for one in ranks]
    assert distance(torch.cat([one[0] for one in found]), y) < 1e-12
    assert distance(torch.cat([one[1] for one in found]), gradient) < 1e-12


def test_statistics_move_without_gradients_and_copies_are_synchronised(ranks):
    model = together.Network()
    model.load_state_dict(together.network().state_dict())
    with torch.no_grad():
        y = model(torch.cat([together.pictures(rank)[0] for rank in range(len(ranks))]))
    for name in ("no_grad", "deepcopy", "pickle", "deepcopy of a group"):
        assert distance(torch.cat([one["ways"][name] for one in ranks]), y) < 2e-6
    buffers = dict(model.named_buffers())
    assert (
        distance(
            ranks[0]["ways"]["no_grad buffers"]["whitening.running_covariance"],
            buffers["whitening.running_covariance"],
        )
        < 1e-6
    )


def test_second_derivatives(ranks):
    case = CASES["float64"]
    x = case.samples(len(ranks))[0].requires_grad_()
    (g,) = torch.autograd.grad(case.make()(x).pow(3).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(g.square().sum(), x)
    assert distance(torch.cat([one["second"] for one in ranks]), expected) < 1e-10


def test_groups_of_some_of_the_processes(ranks):
    world = len(ranks)
    x = [torch.randn(9, 3, generator=torch.Generator().manual_seed(r)) for r in range(world)]
    for begin in range(0, world, 2):
        expected = DecorrelatedBatchNorm1d(3)(torch.cat(x[begin : begin + 2]))
        found = torch.cat([one["part"]["y"] for one in ranks[begin : begin + 2]])
        assert distance(found, expected) < 1e-6
    hears = range(world - 1 - (world - 1) % 2, world)
    for rank, found in enumerate(ranks):
        told = found["part"]["nan"]
        assert (told is not None) == (rank in hears)
        if told and len(hears) > 1:
            assert told[1].endswith(f"the input in rank {world - 1}")
    for found in ranks[1:]:
        assert found["part"]["strange"] == (
            "ValueError",
            "DecorrelatedBatchNorm1d: process_group is a group that this process does not belong "
            "to",
        )


def test_fifty_steps_follow_the_curve_of_one_process(ranks):
    world = len(ranks)
    model = together.Network()
    model.load_state_dict(together.network().state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses = []
    for i in range(50):
        x, labels = (
            torch.cat(t)
            for t in zip(*(together.pictures(r, seed=i) for r in range(world)), strict=True)
        )
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    expected = torch.stack(losses)
    found = torch.stack([one["curve"][0] for one in ranks]).mean(0)
    assert expected[-1] < 0.7 * expected[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    buffers = dict(model.named_buffers())
    for one in ranks:
        torch.testing.assert_close(one["curve"][1], ranks[0]["curve"][1], rtol=0, atol=0)
        torch.testing.assert_close(one["curve"][1], buffers, rtol=1e-3, atol=1e-3)


def test_one_process_computes_as_before():
    model = nn.Sequential(nn.Linear(3, 4), DecorrelatedBatchNorm1d(4))
    x = torch.randn(9, 3)
    expected = copy.deepcopy(model)(x)
    assert convert_sync_whitening(model) is model
    assert torch.equal(model(x), expected)
    assert model[1].process_group == "world"
    assert "process_group='world'" in str(model)
    assert "process_group" not in str(DecorrelatedBatchNorm1d(4))
    for one in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert one[1].process_group == "world"
        assert torch.equal(one(x), model(x))
    plain = nn.Linear(2, 2)
    assert convert_sync_whitening(plain) is plain


def test_synchronised_batch_normalisation_stays_synchronised():
    model = nn.Sequential(nn.SyncBatchNorm(4), nn.BatchNorm1d(4))
    convert_batchnorm(model, "all")
    assert [layer.process_group for layer in model] == ["world", None]
    (layer,) = convert_batchnorm(nn.Sequential(nn.SyncBatchNorm(4)), process_group=None)
    assert layer.process_group is None


@pytest.mark.parametrize("group", ["all", 2, [0, 1]])
def test_what_is_no_group_is_an_error(group):
    kind = ValueError if isinstance(group, str) else TypeError
    with pytest.raises(kind, match="process_group must be None, 'world' or a ProcessGroup, got"):
        DecorrelatedBatchNorm1d(4, process_group=group)
    with pytest.raises(kind, match="convert_sync_whitening: process_group must be"):
        convert_sync_whitening(DecorrelatedBatchNorm1d(4), group)
