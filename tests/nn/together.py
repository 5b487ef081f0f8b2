"""What each process does in test_synchronised.py: run by spawn, or by torchrun as a program.

torchrun --nproc-per-node 2 tests/nn/together.py FOLDER
"""

import copy
import os
import pickle
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import processes
from matroot import context
from matroot.nn import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    convert_sync_whitening,
    synchronised,
)

CHANNELS = 8


@dataclass(frozen=True)
class Case:
    """A layer, its samples, and how they are dealt out."""

    layer: type = DecorrelatedBatchNorm2d
    options: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    positions: tuple[int, ...] = (4, 3)
    dealt: str = "uneven"
    mean: float = 0.5

    def sizes(self, world):
        """How many samples each process has."""
        return {
            "even": [4] * world,
            "uneven": [2 + 3 * rank for rank in range(world)],
            "empty": [0] + [6] * (world - 1),
            "alone": [1] + [30] * (world - 1),
        }[self.dealt]

    def make(self, dtype=None):
        layer = self.layer(CHANNELS, dtype=dtype or self.dtype, **self.options)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in layer.parameters():
                new = torch.rand(p.shape, dtype=torch.float64, generator=generator) + 0.5
                # The same numbers whatever the dtype of the layer.
                p.copy_(new.to(self.dtype))
        return layer

    def samples(self, world, seed=0):
        """All samples, covariances of condition 50, and cotangents of their results."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        q = torch.linalg.qr(normal(CHANNELS, CHANNELS)).Q
        mix = q * torch.logspace(0, -0.85, CHANNELS, dtype=torch.float64) @ q.T
        shape = (sum(self.sizes(world)), CHANNELS, *self.positions)
        x = torch.einsum("ij,nj...->ni...", mix, normal(*shape))
        x = x + self.mean * (1 + normal(CHANNELS).abs()).view(-1, *[1] * len(self.positions))
        return x.to(self.dtype), normal(*shape).to(self.dtype)

    def part(self, x, rank, world):
        return x.split(self.sizes(world))[rank]


DOUBLE = {"dtype": torch.float64}
CASES = {
    "plain": Case(),
    "even": Case(dealt="even"),
    "groups": Case(options={"groups": 2}),
    "empty": Case(dealt="empty"),
    "a sample alone": Case(dealt="alone"),
    "few positions": Case(positions=(2, 1), dealt="alone"),
    "no positions": Case(DecorrelatedBatchNorm1d, positions=(), dealt="alone"),
    "volumes": Case(DecorrelatedBatchNorm3d, positions=(2, 3, 2)),
    "no bias": Case(options={"bias": False}),
    "neither": Case(options={"affine": False, "momentum": None}),
    "whitening": Case(options={"running": "whitening"}),
    "untracked": Case(options={"track_running_stats": False}),
    "oas": Case(options={"shrinkage": "oas"}),
    "ledoit-wolf": Case(options={"shrinkage": "ledoit_wolf", "groups": 2}),
    "ledoit-wolf, empty": Case(options={"shrinkage": "ledoit_wolf"}, dealt="empty"),
    "power": Case(options={"normalization": "power"}),
    "float64": Case(**DOUBLE),
    "float64, groups": Case(options={"groups": 4}, **DOUBLE),
    "float64, empty": Case(dealt="empty", **DOUBLE),
    "float64, alone": Case(DecorrelatedBatchNorm1d, positions=(), dealt="alone", **DOUBLE),
    "float64, oas": Case(options={"shrinkage": "oas"}, **DOUBLE),
    "float64, ledoit-wolf": Case(options={"shrinkage": "ledoit_wolf"}, **DOUBLE),
}
# What rounding of the samples allows is less than the tolerances of the others.
FAR = {
    "far": Case(mean=1e3),
    "far, in turns": Case(mean=1e3, dealt="alone"),
    "float64, far": Case(mean=1e6, **DOUBLE),
}


class Counted(TorchDispatchMode):
    """Counts collectives: their names and bytes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("_c10d_functional", "c10d", "c10d_functional"):
            name = func._schema.name.partition("::")[2]
            if name not in ("wait_tensor", "_wrap_tensor_autograd"):
                x = next(a for a in args if isinstance(a, torch.Tensor))
                self.found.append((name, x.numel() * x.element_size()))
        return func(*args, **(kwargs or {}))


def step(layer, x, g):
    """Result, gradient by the samples, collectives forward and backward."""
    x = x.clone().requires_grad_()
    with Counted() as forward:
        y = layer(x)
    with Counted() as backward:
        y.backward(g)
    return y.detach(), x.grad, forward.found, backward.found


def run(case, rank, world):
    """Two steps and an evaluation of a synchronised layer."""
    layer = convert_sync_whitening(case.make())
    found = {}
    for seed in range(2):
        x, g = (case.part(t, rank, world) for t in case.samples(world, seed))
        layer.zero_grad()
        y, gradient, forward, backward = step(layer, x, g)
    found |= {"y": y, "gradient": gradient, "forward": forward, "backward": backward}
    found["parameters"] = {k: p.grad for k, p in layer.named_parameters()}
    found["buffers"] = dict(layer.named_buffers())
    with Counted() as counted, torch.no_grad():
        found["evaluated"] = layer.eval()(case.samples(world)[0])
    return found | {"in evaluation": counted.found}


def error_of(function):
    """Kind and text of the error that it raises; None if it raises none."""
    try:
        function()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def errors(rank, world):
    """What each process is told where the last one has a bad input."""
    last = rank == world - 1
    x = torch.randn(9, CHANNELS, generator=torch.Generator().manual_seed(rank))
    bad = {
        "nan": torch.where(x == x[0, 0], torch.nan, x),
        "infinity": torch.where(x == x[0, 0], torch.inf, x),
        "channels": x[:, :-1],
        "dimensions": x[0],
        "dtype": x.long(),
        "no tensor": x.tolist(),
    }
    found = {}
    for dtype in (torch.float32, torch.float64):
        layer = DecorrelatedBatchNorm1d(CHANNELS, dtype=dtype, process_group="world")
        before = copy.deepcopy(layer.state_dict())
        for name, value in bad.items():
            given = value if last else x
            if isinstance(given, torch.Tensor) and given.is_floating_point():
                given = given.to(dtype)
            found[f"{name}, {dtype}"] = error_of(lambda layer=layer, given=given: layer(given))
        state = layer.state_dict()
        found[f"unchanged, {dtype}"] = all(torch.equal(before[k], state[k]) for k in before)
        for name, count in (("no sample", 0), ("one sample", int(last))):
            given = x[:count].to(dtype)
            found[f"{name}, {dtype}"] = error_of(lambda layer=layer, given=given: layer(given))
        found[f"afterwards, {dtype}"] = layer(x.to(dtype)).detach()
    layer = DecorrelatedBatchNorm1d(CHANNELS, process_group="world")
    found["mixed dtypes"] = layer(x.to(torch.float64 if last else torch.bfloat16)).detach()
    bare = DecorrelatedBatchNorm1d(
        CHANNELS, affine=False, track_running_stats=False, process_group="world"
    )
    found["bare"] = error_of(lambda: bare(bad["dtype"] if last else x))
    # As on a device whose values cannot be looked at for free.
    layer = DecorrelatedBatchNorm1d(CHANNELS, groups=2, process_group="world")
    y = x.clone()
    y[0, 0] = torch.nan if last else y[0, 0]
    y.requires_grad_()
    with context.pretended_accelerator():
        z = layer(y)
        z.square().sum().backward()
        found["unchecked"] = z.detach(), y.grad
        layer.reset_running_stats()
        found["unchecked, invalid"] = error_of(lambda: layer(bad["channels"])) if last else layer(x)
        found["unchecked, one sample"] = layer(x[: int(last)]).detach()
    return found


@contextmanager
def sharing_from(number):
    before = synchronised._SHARED_FROM
    synchronised._SHARED_FROM = number
    try:
        yield
    finally:
        synchronised._SHARED_FROM = before


def roots(rank, world):
    """Roots shared by the processes and not, of 5 groups of 4 channels; and an error in one."""
    found = {}
    for name, number in (("shared", 0), ("not shared", 2**24)):
        with sharing_from(number):
            generator = torch.Generator().manual_seed(rank)
            x, g = torch.randn(2, 12, 20, generator=generator)
            layer = DecorrelatedBatchNorm1d(20, group_size=4, process_group="world", eps=0.0)
            found[name] = step(layer, x, g), layer.running_covariance
            x = torch.where(torch.arange(20) // 4 == 3, 1.0, x)
            found[f"{name}, singular"] = error_of(lambda layer=layer, x=x: layer(x))
            # It has no eigenvalues to leave out, which is found out where the root is taken.
            odd = DecorrelatedBatchNorm1d(
                20, group_size=4, process_group="world", rtol=1e-3, method="pade"
            )
            found[f"{name}, odd"] = error_of(lambda odd=odd, x=x: odd(x))
            two = DecorrelatedBatchNorm1d(8, group_size=4, process_group="world")
            found[f"{name}, fewer than processes"] = step(two, x[:, :8], g[:, :8])
            # By what all processes know, not by an input's dtype.
            own = x[:, :8].double() if rank == 0 else x[:, :8]
            bare = {"affine": False, "track_running_stats": False}
            for options in ({}, bare):
                layer = DecorrelatedBatchNorm1d(8, groups=2, process_group="world", **options)
                found[f"{name}, dtypes {len(options)}"] = layer(own)
    return found


class Own(DecorrelatedBatchNorm1d):
    """With its own statistics: of the first half of the samples."""

    def statistics(self, x):
        half = super().statistics(x[..., : x.shape[-1] // 2])
        return half._replace(centered=x - half.mean)


# Of these cases also with weights.
WEIGHTED = ["plain", "groups", "few positions", "ledoit-wolf", "float64", "float64, ledoit-wolf"]


def weighted_samples(case, world):
    """All samples, cotangents and weights; what has none is NaN, all of the first process too."""
    x, g = case.samples(world)
    generator = torch.Generator().manual_seed(2)
    weight = 2 * torch.rand(len(x), *case.positions, generator=generator)
    weight = torch.where(weight < 0.5, 0.0, weight).to(case.dtype)
    weight[: case.sizes(world)[0]] = 0.0
    return torch.where(weight.unsqueeze(1) == 0, torch.nan, x), g, weight


def weighted_step(layer, x, g, weight):
    """Result, gradients by samples and weights, parameters' gradients and buffers."""
    x, weight = (t.clone().requires_grad_() for t in (x, weight))
    y = layer(x, weight)
    y.backward(g)
    parameters = {k: p.grad for k, p in layer.named_parameters()}
    return [y.detach(), x.grad, weight.grad], parameters, dict(layer.named_buffers())


def weighted(rank, world):
    found = {}
    for name in WEIGHTED:
        case = CASES[name]
        parts = (case.part(t, rank, world) for t in weighted_samples(case, world))
        found[name] = weighted_step(convert_sync_whitening(case.make()), *parts)
    layer = DecorrelatedBatchNorm1d(CHANNELS, process_group="world")
    x = torch.randn(9, CHANNELS, generator=torch.Generator().manual_seed(rank))
    last = rank == world - 1
    found["negative"] = error_of(lambda: layer(x, -torch.ones(9) if last else None))
    found["few"] = error_of(lambda: layer(x, torch.full((9,), 0.1 / world)))
    found["some"] = layer(x, torch.arange(9) % 2 if last else None).detach()
    return found


def own_statistics(rank, world):
    """A layer that communicates nothing, whatever its process group is."""
    x = torch.randn(20, 20, generator=torch.Generator().manual_seed(rank))
    layer = convert_sync_whitening(Own(20, group_size=4))
    with Counted() as counted, sharing_from(0):
        y = layer(x).detach()
    return y, counted.found, error_of(lambda: layer(x[0])) if rank == 0 else None


class Network(nn.Module):
    """A convolution, whitening, and a classifier."""

    def __init__(self, groups=2):
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3)
        self.whitening = DecorrelatedBatchNorm2d(CHANNELS, groups=groups, eps=1e-3)
        self.last = nn.Linear(CHANNELS, 4)

    def forward(self, x, checkpointed=False):
        x = self.first(x)
        x = (
            checkpoint(self.whitening, x, use_reentrant=False)
            if checkpointed
            else self.whitening(x)
        )
        return self.last(x.relu().mean((2, 3)))


def network(groups=2):
    torch.manual_seed(1)
    return convert_sync_whitening(Network(groups))


def pictures(rank, seed=0, count=6):
    generator = torch.Generator().manual_seed(100 * seed + rank)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    labels = torch.randint(4, (count,), generator=generator)
    # So that there is something to learn.
    return x + labels.view(-1, 1, 1, 1) * torch.linspace(-1, 1, 8), labels


def trained_once(model, rank, **options):
    """Loss, gradients and buffers of a step; gradients summed over processes if not already."""
    x, labels = pictures(rank)
    nn.functional.cross_entropy(model(x, **options), labels).backward()
    found = {k: p.grad for k, p in model.named_parameters()}
    return {k: getattr(g, "full_tensor", lambda g=g: g)() for k, g in found.items()}, {
        k: v.clone() for k, v in model.named_buffers()
    }


def ways(rank, world):
    """One step of one network in all the ways in which networks are trained."""
    found = {"ddp": trained_once(DistributedDataParallel(network()), rank)}
    sharded = network()
    for part in (sharded.first, sharded):
        fully_shard(part)
    found["fsdp2"] = trained_once(sharded, rank)
    wrapped = DistributedDataParallel(network())
    found["checkpointed"] = trained_once(wrapped, rank, checkpointed=True)
    compiled = network()
    # By itself, since DistributedDataParallel cuts graphs where its buckets end.
    compiled.whitening.compile(backend="aot_eager", fullgraph=True)
    found["compiled"] = trained_once(DistributedDataParallel(compiled), rank)
    case = CASES["float64, groups"]
    layer = convert_sync_whitening(case.make())
    layer.compile(backend="aot_eager", fullgraph=True)
    x, g = (case.part(t, rank, world) for t in case.samples(world))
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(g)
    found["compiled, float64"] = y.detach(), x.grad
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = trained_once(DistributedDataParallel(network()), rank)
    model = network()
    with torch.no_grad():
        found["no_grad"] = model(pictures(rank)[0])
    found["no_grad buffers"] = dict(model.named_buffers())
    copies = {"deepcopy": copy.deepcopy(model), "pickle": pickle.loads(pickle.dumps(model))}
    grouped = convert_sync_whitening(network(), dist.group.WORLD)
    copies["deepcopy of a group"] = copy.deepcopy(grouped)
    assert copies["deepcopy of a group"].whitening.process_group is dist.group.WORLD
    for name, one in copies.items():
        found[name] = one.train()(pictures(rank)[0]).detach()
    return found


def second_derivatives(rank, world):
    case = CASES["float64"]
    layer = convert_sync_whitening(case.make())
    x = case.part(case.samples(world)[0], rank, world).clone().requires_grad_()
    (g,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), x)[0]


def part_of_all(rank, world):
    """With groups of two processes."""
    groups = [dist.new_group(list(range(i, min(i + 2, world)))) for i in range(0, world, 2)]
    strange = dist.new_group([0])
    found = {"strange": error_of(lambda: DecorrelatedBatchNorm1d(2, process_group=strange))}
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(rank))
    layer = convert_sync_whitening(DecorrelatedBatchNorm1d(3), groups[rank // 2])
    found["y"] = layer(x).detach()
    bad = torch.where(x == x[0, 0], torch.nan, x) if rank == world - 1 else x
    found["nan"] = error_of(lambda: layer(bad))
    return found


def curve(rank, world, steps=50):
    """Losses of 50 steps under DistributedDataParallel; of this process's pictures."""
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    losses = []
    for i in range(steps):
        x, labels = pictures(rank, seed=i)
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), dict(model.module.named_buffers())


def everything(rank, world):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = {name: run(case, rank, world) for name, case in (CASES | FAR).items()}
    found["told"] = [str(w.message) for w in told]
    found["errors"] = errors(rank, world)
    found["roots"] = roots(rank, world)
    found["weighted"] = weighted(rank, world)
    found["own"] = own_statistics(rank, world)
    found["ways"] = ways(rank, world)
    found["second"] = second_derivatives(rank, world)
    found["part"] = part_of_all(rank, world)
    found["curve"] = curve(rank, world)
    return found


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    found = everything(rank, int(os.environ["WORLD_SIZE"]))
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
    processes.leave()
