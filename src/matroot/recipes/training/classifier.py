"""What is trained by most applications: a network, its cross entropy, its optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from matroot.recipes.training.configuration import Config


class Classifier(lightning.LightningModule):
    """A network, cross entropy, and its accuracy on the test set after each epoch."""

    def __init__(self, model: nn.Module, config: Config, classes: int, seed: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.seed = seed
        self.accuracy: torchmetrics.Metric = torchmetrics.Accuracy(
            "multiclass", num_classes=classes
        )
        kinds = ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
        mixes = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
        # One of them, drawn anew for each batch.
        self.mix: v2.RandomChoice | None = v2.RandomChoice(mixes) if mixes else None

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.model(x)
        return logits

    def on_train_batch_start(self, _batch: Any, _index: int) -> None:
        """Seed by the step, so that dropout and mixing do not depend on what ran before."""
        seed = self.seed + (self.global_rank << 32)
        torch.manual_seed(hash((seed, self.global_step)) % 2**63)

    def training_step(self, batch: Any, _index: int) -> Tensor:
        """The loss of a batch."""
        x, y = batch if self.mix is None else self.mix(*batch)
        loss = F.cross_entropy(self(x), y, label_smoothing=self.config.label_smoothing)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, _index: int) -> None:
        """Log loss and accuracy on the test set."""
        x, y = batch
        logits = self(x)
        self.accuracy(logits, y)
        self.log("test_loss", F.cross_entropy(logits, y), sync_dist=True)
        self.log("accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """As configured; the learning rate changes at every step."""
        c = self.config
        # Neither biases nor the scales of normalisation decay.
        groups = [
            {
                "params": [p for p in self.parameters() if p.ndim > 1],
                "weight_decay": c.weight_decay,
            },
            {"params": [p for p in self.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if c.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, c.learning_rate, momentum=c.momentum)
        else:
            optimizer = torch.optim.AdamW(groups, c.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        # By the step alone: a run that is given more epochs follows the new schedule.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_schedule(c, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def rate_schedule(config: Config, steps: int) -> Callable[[int], float]:
    """The learning rate at a step, as a share of the highest.

    A linear warm-up from a thousandth; then half a cosine, or a tenth of the rate after each
    milestone.

    Args:
        config: ``schedule``, ``warmup_epochs``, ``milestones``.
        steps: of all epochs.
    """
    epoch = max(steps // config.epochs, 1)
    warmup = config.warmup_epochs * epoch
    drops = [m * epoch for m in config.milestones]

    def share(step: int) -> float:
        if step < warmup:
            return 1e-3 + (1 - 1e-3) * step / warmup
        if config.schedule == "steps":
            return 0.1 ** sum(step >= drop for drop in drops)
        done = (step - warmup) / max(steps - warmup, 1)
        return (1 + math.cos(math.pi * min(done, 1.0))) / 2

    return share
