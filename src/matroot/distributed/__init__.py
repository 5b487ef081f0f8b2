"""Several processes: on torch.distributed's process groups and DTensors."""

from matroot.distributed.mapping import map as map
