"""Several processes: on torch.distributed's process groups and DTensors."""
