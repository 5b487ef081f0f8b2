"""A network whose parameters are sharded over two processes, by FSDP2."""

import copy

import torch
from torch.distributed.fsdp import fully_shard

import processes
from matroot.recipes import sovit
from matroot.recipes.training.configuration import load_config
from recipes.short import QUICK


def network():
    torch.manual_seed(0)
    config = load_config("sovit", "small", QUICK["sovit"] | {"depth": 2})
    return sovit.build(config, 5, {})


def step(model, *batches):
    """A step of SGD by the mean gradient of these batches."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for seed in batches:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(8, 3, 16, 16, generator=generator)
        labels = torch.randint(5, (8,), generator=generator)
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        (loss / len(batches)).backward()
    optimizer.step()


def _rank(rank):
    model = network()
    for block in (*model.blocks, model.head):
        fully_shard(block)
    fully_shard(model)
    parts = {name: p.to_local().numel() for name, p in model.named_parameters()}
    step(model, rank)
    return parts, {name: p.full_tensor() for name, p in model.named_parameters()}


def test_a_sharded_step_of_sovit_equals_one_that_is_not(tmp_path):
    (parts, whole), (parts1, whole1) = processes.run(_rank, 2, tmp_path)
    expected = network()
    before = {k: p.clone() for k, p in copy.deepcopy(expected).named_parameters()}
    step(expected, 0, 1)
    for name, p in expected.named_parameters():
        assert parts[name] + parts1[name] == p.numel()
        assert torch.equal(whole[name], whole1[name])
        moved = (p - before[name]).norm()
        assert (whole[name] - p).norm() <= 1e-4 * moved + 1e-7 * p.norm(), name
    assert max(parts.values()) < max(p.numel() for p in expected.parameters())
