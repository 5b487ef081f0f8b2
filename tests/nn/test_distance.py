"""The Fréchet distance of samples that come batch by batch, by itself and as a metric."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.image.fid import FrechetInceptionDistance

import matroot
import processes
from matroot import statistics
from matroot.compat import torchmetrics as compat
from matroot.nn import FrechetDistance

DOUBLE = torch.float64
BOTH = [FrechetDistance, compat.FrechetDistance]
either = pytest.mark.parametrize("cls", BOTH, ids=["module", "metric"])


def samples(count, n=6, seed=0, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, n, dtype=DOUBLE, generator=generator)
    return (x * torch.linspace(0.5, 2, n, dtype=DOUBLE) + seed).to(dtype)


def fed(distance, x, y, sizes=(10,)):
    for real, z in ((True, x), (False, y)):
        for part in torch.split(z, [*sizes, len(z) - sum(sizes)]):
            distance.update(part, real)
    return distance


@either
@pytest.mark.parametrize("sizes", [(), (10,), (0, 1, 2, 0, 17), (1,) * 25])
@pytest.mark.parametrize("options", [{}, {"squared": False, "eps": 0.1, "correction": 0}])
def test_batches_are_as_all_samples_at_once(cls, sizes, options):
    x, y = samples(40), samples(30, seed=1)
    found = fed(cls(6, **options), x, y, sizes).compute()
    expected = matroot.frechet_distance_from_features(x, y, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_dtype_is_summed_in_double(dtype):
    x, y = samples(40, dtype=dtype), samples(30, seed=1, dtype=dtype)
    with torch.autocast("cpu"):
        found = fed(FrechetDistance(6), x, y)
    assert torch.equal(found.moments, fed(FrechetDistance(6), x.double(), y.double()).moments)
    assert found.compute().dtype == DOUBLE


@either
def test_a_large_mean_takes_no_digits(cls):
    x, y = samples(400), samples(300, seed=1)
    expected = matroot.frechet_distance_from_features(x, y)
    shift = 2.0**40
    x, y = ((z + shift) - shift for z in (x, y))  # What is left of them so far from 0.
    exact = matroot.frechet_distance_from_features(x, y)
    torch.testing.assert_close(exact, expected, rtol=1e-3, atol=0)
    found = fed(cls(6), x + shift, y + shift, (7,) * 40).compute()
    # Second moments of 1e24 would leave nothing of variances of 1.
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=0)
    x, y = ((z + 2.0**20) - 2.0**20 for z in (samples(400), samples(300, seed=1)))
    found = fed(cls(6), x + 2.0**20, y + 2.0**20, (7,) * 40).compute()
    exact = matroot.frechet_distance_from_features(x, y)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)


def test_a_large_batch_is_taken_in_parts(monkeypatch):
    x, y = samples(50), samples(70, seed=1)
    whole = fed(FrechetDistance(6), x, y, ())
    monkeypatch.setattr(statistics, "_ROWS", 16)
    torch.testing.assert_close(fed(FrechetDistance(6), x, y, ()).moments, whole.moments)


@either
def test_shards_are_merged(cls):
    x, y = samples(40), samples(30, seed=1) + 1e3
    whole = fed(cls(6), x, y).compute()
    first, second, empty = cls(6), cls(6), cls(6)
    first.update(x[:7], real=True)
    for z, real in ((x[7:], True), (y, False)):
        second.update(z, real)
    for other in (empty, second):
        first.merge_state(other)
    torch.testing.assert_close(first.compute(), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(second.moments[1, 0, 0], torch.tensor(30.0, dtype=DOUBLE))
    if cls is FrechetDistance:
        third = FrechetDistance(6)
        third.merge_state(*(fed(FrechetDistance(6), z[:9], z[9:], ()) for z in (x, y)))
        assert third.moments[:, 0, 0].tolist() == [18, 52]


@either
def test_reset(cls):
    x, y = samples(40), samples(30, seed=1)
    distance = fed(cls(6), x, y)
    distance.reset()
    assert not distance.moments.any()
    distance = fed(cls(6, reset_real_features=False), x, y)
    before = distance.compute()
    distance.reset()
    assert distance.moments[:, 0, 0].tolist() == [40, 0]
    distance.update(y, real=False)
    torch.testing.assert_close(distance.compute(), before)


@either
def test_copies_and_casts_keep_every_bit(cls):
    x, y = samples(40), samples(30, seed=1)
    distance = fed(cls(6), x, y)
    moments, found = distance.moments.clone(), distance.compute()
    for other in (copy.deepcopy(distance), pickle.loads(pickle.dumps(distance))):
        assert torch.equal(other.compute(), found)
        other.update(x, real=True)
        assert torch.equal(distance.moments, moments)
    for cast in (
        lambda d: nn.Sequential(d).half()[0],
        lambda d: nn.Sequential(d).to(torch.bfloat16)[0],
        lambda d: d.to(torch.float32),
        lambda d: d.set_dtype(torch.float16) if hasattr(d, "set_dtype") else d.half(),
    ):
        assert torch.equal(cast(distance).moments, moments)
    distance.reset()
    assert fed(distance, x, y).moments.dtype == DOUBLE
    assert torch.equal(distance.moments, moments)
    assert cls(6).to("meta").moments.is_meta


def test_state_dict():
    x, y = samples(40), samples(30, seed=1)
    model = nn.Sequential(nn.Linear(2, 2), fed(FrechetDistance(6), x, y))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = nn.Sequential(nn.Linear(2, 2), FrechetDistance(6))
    other.load_state_dict(state)
    assert torch.equal(other[1].compute(), model[1].compute())
    other.load_state_dict(model.state_dict())
    other[1].update(x, real=True)
    assert model[1].moments[:, 0, 0].tolist() == [40, 30]
    with pytest.raises(ValueError, match=r"num_features=5, shape \(2, 6, 6\), got \(2, 7, 7\)"):
        nn.Sequential(nn.Linear(2, 2), FrechetDistance(5)).load_state_dict(state)
    # DistributedDataParallel would make buffers those of the first process.
    assert not [*model[1].buffers()]


def test_the_state_of_the_metric_is_checked_too():
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    metric, other = compat.FrechetDistance(5), compat.FrechetDistance(5)
    for m in (metric, other, wide := compat.FrechetDistance(6)):
        m.persistent(True)
    metric.update(x, real=True)
    other.load_state_dict({k: v.half() for k, v in metric.state_dict().items()})
    assert other.moments.dtype == torch.float64
    other.load_state_dict(metric.state_dict())
    assert torch.equal(other.moments, metric.moments)
    with pytest.raises(ValueError, match="num_features=6"):
        wide.load_state_dict(metric.state_dict())
    with pytest.raises(ValueError, match="got NoneType"):
        FrechetDistance(5).load_state_dict({"_extra_state": None})


@either
def test_inference_mode(cls):
    x, y = samples(40), samples(30, seed=1)
    distance = cls(6)
    with torch.inference_mode():
        distance.reset()
        fed(distance, x, y)
    fed(distance, x, y)
    assert distance.moments[:, 0, 0].tolist() == [80, 60]


@either
def test_a_network_extracts_the_features(cls):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6)).eval()
    x, y = torch.randn(40, 3, 4), torch.rand(30, 3, 4)
    distance = fed(cls(6, network), x, y)
    with torch.no_grad():
        expected = matroot.frechet_distance_from_features(network(x).double(), network(y).double())
    torch.testing.assert_close(distance.compute(), expected)
    assert not distance.moments.requires_grad
    # A training loop that switches its modules to training does not reach the network.
    nn.Sequential(distance).train()
    assert not any(module.training for module in network.modules())
    with pytest.raises(ValueError, match=r"features\(x\) must have shape \(samples, 6\)"):
        cls(6, lambda x: x[:, :5]).update(samples(3), real=True)


@either
def test_what_is_refused(cls):
    x = samples(8)
    distance = cls(6)
    for wrong, error, text in (
        (lambda: cls(0), ValueError, "num_features must be at least 1"),
        (lambda: cls(6.0), TypeError, "num_features"),
        (lambda: cls(6, "inception"), TypeError, "features must be None or callable, got str"),
        (lambda: cls(6, eps=-1.0), ValueError, "eps"),
        (lambda: cls(6, squared=1), TypeError, "squared"),
        (lambda: cls(6, correction=-1), ValueError, "correction"),
        (lambda: cls(6, reset_real_features=None), TypeError, "reset_real_features"),
        (lambda: distance.update(x, real=1), TypeError, "real must be a bool, got int"),
        (lambda: distance.update(x[:, :5], True), ValueError, r"\(samples, 6\), got \(8, 5\)"),
        (lambda: distance.update(x[0], True), ValueError, r"\(samples, 6\), got \(6,\)"),
        (lambda: distance.update(x.cfloat(), True), TypeError, "x must be of real floating-point"),
        (lambda: distance.update(x.long(), True), TypeError, "x must be of real floating-point"),
        (lambda: distance.update([[1.0]], True), TypeError, "x must be a torch.Tensor"),
    ):
        with pytest.raises(error, match=text):
            wrong()
    distance.update(x, real=True)
    before = distance.moments.clone()
    bad = x.clone()
    bad[3, 2] = torch.nan
    with pytest.raises(torch.linalg.LinAlgError, match=r"1 of the 8 samples in x is not finite"):
        distance.update(bad, real=True)
    assert torch.equal(distance.moments, before)
    distance.update(x[:1], real=False)
    with pytest.raises(RuntimeError, match=r"more than 1 samples .* got 8 real and 1 generated"):
        distance.compute()


def test_on_an_accelerator_too_few_samples_are_nan():
    from matroot.context import pretended_accelerator

    distance = FrechetDistance(3)
    distance.update(samples(8, 3), real=True)
    with pretended_accelerator():
        assert distance.compute().isnan()


def test_what_cannot_be_merged():
    with pytest.raises(ValueError, match="others must have num_features=6, got 5"):
        FrechetDistance(6).merge_state(FrechetDistance(5))
    with pytest.raises(TypeError, match="others must be FrechetDistance, got Tensor"):
        FrechetDistance(6).merge_state(torch.eye(3))
    with pytest.raises(TypeError, match="sync_on_compute"):
        FrechetDistance(6, sync_on_compute="yes")


class Extractor(nn.Module):
    num_features = 6

    def forward(self, x):
        return x.float().flatten(1)[:, :6].sin()


def test_the_metric_stands_in_for_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 255, (50, 3, 4, 4), dtype=torch.uint8, generator=generator)
    y = torch.randint(0, 200, (70, 3, 4, 4), dtype=torch.uint8, generator=generator)
    theirs = FrechetInceptionDistance(feature=Extractor())
    ours = compat.FrechetDistance(6, Extractor())
    for metric in (ours, theirs):
        for part in x.split(20):
            metric.update(part, real=True)
        for part in y.split(20):
            metric.update(part, real=False)
    torch.testing.assert_close(ours.compute().float(), theirs.compute(), rtol=1e-5, atol=0)


def test_the_metric_among_others():
    x, y = samples(40), samples(30, seed=1)
    squared, root = compat.FrechetDistance(6), compat.FrechetDistance(6, squared=False)
    both = MetricCollection({"squared": squared, "root": root}, compute_groups=True)
    fed(both, x, y)
    found = both.compute()
    torch.testing.assert_close(found["root"].square(), found["squared"])
    torch.testing.assert_close(
        found["squared"], matroot.frechet_distance_from_features(x, y), rtol=1e-12, atol=0
    )
    assert len(both.compute_groups) == 1
    before = squared.moments.clone()
    with pytest.raises(NotImplementedError, match="a batch of one side has no distance"):
        both(x, real=True)
    assert torch.equal(squared.moments, before)


def _rank(rank):
    pair = dist.new_group([0, 1])
    found = {}
    for cls in BOTH:
        for group, name in ((None, "three"), (pair, "two")):
            if rank == 2 and group is pair:
                continue
            distance = cls(6, process_group=group)
            for z, real in zip(shards()[rank], (True, False), strict=True):
                if len(z):
                    distance.update(z, real)
            # Twice: merging leaves what this process has seen as it was.
            once = distance.compute()
            distance.update(samples(0), real=False)
            found[f"{cls.__module__} {name}"] = torch.stack([once, distance.compute()])
    alone = FrechetDistance(6, sync_on_compute=False)
    if rank == 0:
        found["alone"] = fed(alone, samples(9), samples(8, seed=1), ()).compute()
    return found


def shards():
    """What each process sees of both sides: unequal parts, and nothing."""
    x, y = samples(40), samples(30, seed=1) + 1e3
    return [(x[:7], y[:0]), (x[7:20], y[:30]), (x[20:], y[30:])]


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_processes_are_merged(tmp_path):
    found = processes.run(_rank, 3, tmp_path)
    for name, ranks in (("three", 3), ("two", 2)):
        x, y = (torch.cat(parts) for parts in zip(*shards()[:ranks], strict=True))
        expected = matroot.frechet_distance_from_features(x, y).expand(2)
        for cls in BOTH:
            values = [one[f"{cls.__module__} {name}"] for one in found[:ranks]]
            for value in values:
                torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
                assert torch.equal(value, values[0])
    torch.testing.assert_close(
        found[0]["alone"],
        matroot.frechet_distance_from_features(samples(9), samples(8, seed=1)),
        rtol=1e-10,
        atol=0,
    )
