"""Training for style transfer: the generators, the discriminators, and their losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from matroot import bures_wasserstein_distance
from matroot.files import replacing
from matroot.recipes.images import contact_sheet
from matroot.recipes.style.networks import Discriminator, Generator
from matroot.recipes.style.pairs import to_bytes
from matroot.recipes.style.settings import Settings
from matroot.recipes.stylize import patch_covariance
from matroot.statistics import moments

VGG = "vgg16-397923af.pth"
"""The file of torchvision's weights that LPIPS needs."""

DISTRIBUTED_STRATEGY = "ddp_find_unused_parameters_true"
"""Lightning's, for several processes: a step of the judges does not use the generators."""


def _frozen(encoder: nn.Module, x: Tensor) -> Tensor:
    """Features of ``x`` without gradients of the encoder, which could make its own loss small."""
    fixed = {name: value.detach() for name, value in encoder.named_parameters()}
    features: Tensor = functional_call(encoder, fixed, (x,))
    return features


def style_loss(x: Tensor, y: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance of the features as Gaussians, per channel."""
    # Half precision has too few digits for a covariance, and so has autocast.
    with torch.autocast(x.device.type, enabled=False):
        a, b = (moments(features.float().flatten(2)) for features in (x, y))
        means = (a.mean - b.mean).square().flatten(1).sum(1)
        spreads = bures_wasserstein_distance(a.covariance, b.covariance, eps=1e-4)
        return (means + spreads).mean() / x.shape[1]


class Direction(NamedTuple):
    """From one domain to the other: from pictures ``x`` to the style of pictures ``y``."""

    generator: Generator
    """Of the domain of ``y``."""
    source: Generator
    """Of the domain of ``x``: its encoder gives the content."""
    judge: Discriminator
    x: Tensor
    y: Tensor


class Learner(lightning.LightningModule):
    """The generator of styles, with ``cycle`` that of photographs too, and their discriminators."""

    def __init__(self, config: Settings, options: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.automatic_optimization = False
        count = 2 if config.cycle else 1
        self.generators: nn.ModuleList = nn.ModuleList(
            Generator(config, options) for _ in range(count)
        )
        self.judges: nn.ModuleList = nn.ModuleList(
            Discriminator(config.width) for _ in range(count)
        )
        self.shown: list[tuple[Tensor, Tensor, Tensor]] = []
        self.ratios: list[float] = []
        self.lpips: tuple[Any] | None = None

    def on_fit_start(self) -> None:
        """Load LPIPS where its weights are; elsewhere say that it is left out."""
        weights = Path(torch.hub.get_dir()) / "checkpoints" / VGG
        if weights.is_file():
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            # In a tuple it is no submodule, so that checkpoints do not hold its weights.
            self.lpips = (LearnedPerceptualImagePatchSimilarity("vgg").to(self.device),)
        else:
            self.print(f"LPIPS is left out: {weights} is not there (torchvision's vgg16)")

    def forward(self, photograph: Tensor, style: Tensor) -> Tensor:
        """The photograph in this style: pictures (N, 3, H, W) in [−1, 1], sides multiples of 4."""
        return self._make(self._directions(photograph, style)[0]).clamp(-1, 1)

    def whole_step(self, x: Tensor, y: Tensor) -> Tensor:
        """The generators' loss, with everything that they compute in a training step."""
        directions = self._directions(x, y)
        return self._losses(directions, [self._make(d) for d in directions])

    def _directions(self, x: Tensor, y: Tensor) -> list[Direction]:
        generators: Any = self.generators
        judges: Any = self.judges
        # The source is the only generator, or that of the other domain.
        directions = [Direction(generators[0], generators[-1], judges[0], x, y)]
        if self.config.cycle:
            directions.append(Direction(generators[1], generators[0], judges[1], y, x))
        return directions

    def _make(self, d: Direction) -> Tensor:
        return d.generator.decode(d.source.content(d.x), d.generator.style(d.y), d.y)

    def training_step(self, batch: Any, _index: int) -> None:
        """First the discriminators, then the generators."""
        optimizers: Any = self.optimizers()
        schedules: Any = self.lr_schedulers()
        directions = self._directions(*batch)
        made = [self._make(d) for d in directions]
        error = batch[0].new_zeros(())
        for d, picture in zip(directions, made, strict=True):
            error = error + d.judge.error(d.y, 1.0) + d.judge.error(picture.detach(), 0.0)
        self._step(optimizers[1], error)
        loss = self._losses(directions, made)
        self._step(optimizers[0], loss)
        for schedule in schedules:
            schedule.step()
        self.log_dict({"loss": loss.detach(), "judge": error.detach()}, prog_bar=True)

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def _losses(self, directions: list[Direction], made: list[Tensor]) -> Tensor:
        pairs = zip(directions, made, strict=True)
        return torch.stack([self._loss(d, picture) for d, picture in pairs]).sum()

    def _loss(self, d: Direction, made: Tensor) -> Tensor:
        """The loss of the generator of one direction.

        Args:
            d: the direction.
            made: the pictures that it made of ``d.x``.
        """
        c, generator = self.config, d.generator
        style = generator.style(d.y)
        again = generator.decode(generator.content(d.y), style, d.y)
        content = d.source.content(d.x).detach()
        found = generator.content(made)
        loss = (
            c.adversarial * d.judge.error(made, 1.0)
            + c.reconstruction * F.l1_loss(again, d.y)
            + c.content * F.l1_loss(found, content)
            + c.style * style_loss(_frozen(generator.style, made), style.detach())
        )
        if c.cycle:
            back = d.source.decode(found, d.source.style(d.x), d.x)
            loss = loss + c.reconstruction * F.l1_loss(back, d.x)
        if generator.analysis is not None and generator.synthesis is not None:
            goal = generator.analysis(d.y)
            loss = loss + c.style * style_loss(_frozen(generator.analysis, made), goal.detach())
            loss = loss + c.reconstruction * F.l1_loss(generator.synthesis(goal), d.y)
        return loss

    def validation_step(self, batch: Any, _index: int) -> None:
        """Log how much the squared distance of 5×5 patch covariances to the style has fallen."""
        x, y = batch
        z = self(x, y)
        if self.lpips is not None:
            (lpips,) = self.lpips
            self.log("lpips_to_content", lpips(z, x))
            self.log("lpips_to_style", lpips(z, y))
        pictures = [to_bytes(t).cpu() for t in (x, y, z)]
        for content, style, made in zip(*pictures, strict=True):
            a, b, c = (patch_covariance(t, patch=5, eps=0.0) for t in (content, style, made))
            before, after = (float(bures_wasserstein_distance(t, b)) for t in (a, c))
            # Between equal or flat pictures it is rounding, and must not make a ratio of 0 or ∞.
            least = 1e-6 * float((a + b).trace()) + 1e-12
            self.ratios.append(max(before, least) / max(after, least))
            self.shown.append((content, style, made))

    def on_validation_epoch_end(self) -> None:
        """The geometric mean of all pairs, and a sheet of the first sixteen."""
        # The same in all processes; without sync_dist Lightning warns that it may not be.
        ratios: Any = self.all_gather(torch.tensor(self.ratios, device=self.device))
        self.log("improvement", ratios.log().mean().exp(), prog_bar=True, sync_dist=True)
        self.log("least_improvement", ratios.min(), sync_dist=True)
        if self.trainer.is_global_zero:
            rows = [
                [(content, "content"), (style, "style"), (made, f"squared distance / {ratio:.1f}")]
                for (content, style, made), ratio in zip(self.shown, self.ratios, strict=True)
            ][:16]
            sheet = contact_sheet(rows, side=192)
            with replacing(Path(self.trainer.default_root_dir) / "pictures.png") as fresh:
                sheet.save(fresh)
        self.shown, self.ratios = [], []

    def configure_optimizers(self) -> Any:
        """Adam as published, for the generators and for the judges; a warm-up, then a cosine."""
        optimizers = [
            torch.optim.Adam(networks.parameters(), self.config.learning_rate, (0.5, 0.999))
            for networks in (self.generators, self.judges)
        ]
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate_schedule(steps)) for o in optimizers]
        return optimizers, schedules


def rate_schedule(steps: int) -> Callable[[int], float]:
    """The learning rate at a step, as a share of the highest: that of torch's ``OneCycleLR``.

    Half a cosine up from 1/25 over 15 % of the steps, and half a cosine down to 4e-6. By the step
    alone: a run that is given more epochs follows the new schedule.
    """
    peak, least = 0.15 * steps - 1, 1e-4 / 25

    def between(start: float, end: float, done: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * done)) / 2

    def share(step: int) -> float:
        if step <= peak:
            return between(1 / 25, 1.0, step / peak)
        return between(1.0, least, min((step - peak) / (steps - 1 - peak), 1.0))

    return share
