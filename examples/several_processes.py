"""
Several processes
=================

The ways in which several processes share the work, on the CPUs of one machine: whitening by the
samples of all, a batch in shares, a list of matrices, and one matrix in blocks. Start it by
``torchrun --nproc-per-node 4 examples/several_processes.py``.
"""

import functools

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import matroot
from matroot.nn import DecorrelatedBatchNorm1d, convert_sync_whitening


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    mesh = init_device_mesh("cpu", (processes,))
    torch.manual_seed(0)  # The same matrices in all processes.
    x = torch.randn(64, 32, 96)
    covariances = x @ x.mT / 96

    # Every process whitens its samples by the statistics of all, uneven as they are.
    layer = convert_sync_whitening(DecorrelatedBatchNorm1d(8))
    samples = torch.randn(16 + rank, 8) @ torch.randn(8, 8)
    y = layer(samples)
    total = torch.cat([y.T @ y, torch.full((1, 8), float(len(y)))])
    distributed.all_reduce(total)
    covariance = total[:8] / total[8, 0]
    error = distance(covariance, torch.eye(8))
    say(f"samples of {processes} processes whitened: covariance {error:.0e} from the identity")

    # A batch in shares, with its gradient.
    batch = distribute_tensor(covariances, mesh, [Shard(0)]).requires_grad_()
    roots = matroot.inv_sqrtm(batch, eps=1e-3)
    (gradient,) = torch.autograd.grad(roots.square().sum(), batch)
    wanted = matroot.inv_sqrtm(covariances, eps=1e-3)
    error = distance(roots.full_tensor(), wanted)
    say(
        f"64 matrices, {len(roots.to_local())} in this process: error {error:.0e}, "
        f"the gradient is {gradient.placements}"
    )

    # Matrices of different sizes, each computed by one process for all.
    statistics = [covariances[0, :n, :n] for n in (32, 24, 24, 8, 3)]
    power = functools.partial(matroot.powm, p=-1 / 4, eps=1e-6)
    found = matroot.distributed.map(power, statistics)
    error = max(distance(a, power(s)) for a, s in zip(found, statistics, strict=True))
    say(f"{len(found)} powers: error {error:.0e}")

    # One matrix in blocks of rows, which no process has to hold whole.
    x = torch.randn(256, 1024)
    a = x @ x.T / 1024
    result = matroot.sqrtm_ex(distribute_tensor(a, mesh, [Shard(0)]), eps=1e-3)
    say(
        f"a root in blocks of {len(result.sqrt.to_local())} rows: residual "
        f"{result.residual.to_local():.0e}, converged: {bool(result.converged.to_local())}"
    )
    distributed.barrier()
    distributed.destroy_process_group()


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).detach().norm() / y.norm())


def say(text: str) -> None:
    if distributed.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
