"""Layers under DistributedDataParallel, two processes on the CPU."""

import copy
import warnings

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import processes
from nn.layers import INSTANCES

TRAINABLE = [i for i in INSTANCES if list(i.make().parameters())]


def _rank(rank):
    found = {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        TRAINABLE[0].make()(*TRAINABLE[0].inputs())
    found["told"] = [str(w.message) for w in told]
    for instance in TRAINABLE:
        layer = DistributedDataParallel(instance.make())
        inputs = instance.inputs(seed=rank)
        for _ in range(2):
            layer.zero_grad()
            layer(*inputs).square().mean().backward()
        found[str(instance)] = (
            [p.grad.clone() for p in layer.parameters()],
            {k: v.clone() for k, v in layer.module.named_buffers()},
        )
    with warnings.catch_warnings(record=True) as told:
        # The first layer warned at its first step, which happens once per process.
        warnings.simplefilter("always")
        TRAINABLE[0].make()(*TRAINABLE[0].inputs())
    found["told later"] = len(told)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return processes.run_once(_rank, 2, tmp_path_factory)


@pytest.mark.parametrize("instance", TRAINABLE, ids=str)
def test_gradients_are_the_means_of_both_processes(both, instance):
    (first, buffers), (second, _) = (one[str(instance)] for one in both)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # Buffers are those of the first process at the start of each step, as for batch normalisation.
    layers = [instance.make() for _ in range(2)]
    for step in range(2):
        if step:
            layers[1].load_state_dict(copy.deepcopy(layers[0].state_dict()))
        for rank, layer in enumerate(layers):
            layer.zero_grad()
            layer(*instance.inputs(seed=rank)).square().mean().backward()
    means = [
        (p.grad + q.grad) / 2
        for p, q in zip(layers[0].parameters(), layers[1].parameters(), strict=True)
    ]
    torch.testing.assert_close(first, means, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(buffers, dict(layers[0].named_buffers()), rtol=1e-5, atol=1e-6)


def test_each_process_warns_once_that_its_statistics_are_its_own(both):
    for found in both:
        (message,) = found["told"]
        assert message.startswith("whitening layers take mean and covariance of this process's")
        assert found["told later"] == 0
