"""Loaders of training and test data, with random numbers independent of the reading process.

A sample is drawn and changed at random by seed, epoch and index alone, however many processes read
the data: an interrupted run that is resumed sees what it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from matroot.recipes.training.configuration import Common

UNREADABLE = "unreadable data"
"""How the error begins that an unreadable item raises."""


class _Seeded(Dataset[Any]):
    """Items by (epoch, index), each with random numbers of its own."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        seed = hash((self.seed, epoch, index)) % 2**63
        before = random.getstate(), torch.get_rng_state()
        random.seed(seed)
        # Only the CPU's: torch.manual_seed takes longer than reading a small picture.
        torch.default_generator.manual_seed(seed)
        try:
            return self.dataset[index]
        except (OSError, ValueError) as error:
            raise ValueError(f"{UNREADABLE}, item {index}: {error}") from None
        finally:
            random.setstate(before[0])
            torch.set_rng_state(before[1])


class _Sampler(DistributedSampler[Any]):
    """(epoch, index), shuffled by seed and epoch, divided among the processes."""

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, index) for index in super().__iter__())


class Data(lightning.LightningDataModule):
    """The loaders of training and test data."""

    def __init__(self, train: Dataset[Any], test: Dataset[Any], config: Common, seed: int) -> None:
        super().__init__()
        self.parts: dict[str, Dataset[Any]] = {"train": train, "test": test}
        self.config = config
        self.seed = seed

    def _loader(self, part: str) -> DataLoader[Any]:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        sampler = _Sampler(
            self.parts[part],
            num_replicas=torch.distributed.get_world_size() if distributed else 1,
            rank=torch.distributed.get_rank() if distributed else 0,
            shuffle=part == "train",
            seed=self.seed,
            drop_last=False,
        )
        return DataLoader(
            _Seeded(self.parts[part], self.seed),
            self.config.batch_size,
            sampler=sampler,
            num_workers=self.config.workers,
            drop_last=part == "train",
            persistent_workers=self.config.workers > 0,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled; a last batch that is not full is left out."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """In order."""
        return self._loader("test")
