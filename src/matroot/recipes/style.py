"""Style transfer: a generator that whitens a photograph's features and colors them as a style's.

As published: the generator of GD-WCT (Cho et al., CVPR 2019) with the exact transforms in place of
learned matrices, five of them one after the other at a quarter of the size; trained on unpaired
pictures in both directions, with a least-squares GAN. Unlike there, the style encoder keeps its
map: pooled to one pixel, as published, a style has no covariance.

A small network that trains in a minute ends with ``sweeps`` instead of some of the transforms: the
picture goes through a learned filter bank of patches, is whitened and colored there, and comes back
(what ``matroot.recipes.stylize`` does with all of a patch's pixels).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import v2

from matroot import bures_wasserstein_distance
from matroot.nn import WhiteningColoring2d
from matroot.recipes import embedded
from matroot.recipes.data import Split, need_root, no_root
from matroot.recipes.images import contact_sheet, load_image
from matroot.recipes.methods import layer_options
from matroot.recipes.stylize import patch_covariance
from matroot.recipes.training import Common, read_checkpoint, read_json, settings
from matroot.statistics import moments

VGG = "vgg16-397923af.pth"
"""The file of torchvision's weights that LPIPS needs."""


DISTRIBUTED_STRATEGY = "ddp_find_unused_parameters_true"
"""Lightning's, of several processes: a step of the judges leaves the generators out."""


class Settings(Common):
    """``data``: ``"photos"`` (embedded) or ``"folder"``, with trainA, trainB, testA and testB.

    A are photographs, B styles. ``pairs``: those drawn for an epoch. ``size``: of crops in
    training; ``test_size``: of the shorter side before. ``width``: channels at full size, of which
    there are four times as many where the transforms stand. ``cycle``: train the way back, too, and
    that it leads back. The last four fields are weights of losses.
    """

    data: Literal["photos", "folder"]
    pairs: int = Field(ge=1)
    size: int = Field(216, multiple_of=4)
    test_size: int = Field(256, multiple_of=4)
    width: int = Field(64, ge=1)
    blocks: int = Field(4, ge=0)
    transforms: int = Field(5, ge=0)
    sweeps: int = Field(0, ge=0)
    filters: int = Field(48, ge=1)
    cycle: bool = True
    reconstruction: float = 10.0
    content: float = 1.0
    style: float = 10.0
    adversarial: float = 1.0

    def idle(self) -> dict[str, str]:
        """See ``Common``."""
        found = super().idle()
        if not self.sweeps:
            found["filters"] = "sweeps=0"
            if not self.transforms:
                found["eps"] = "transforms=0 and sweeps=0"
        return found


class Files(Sequence[Tensor]):
    """The pictures in a folder, read when asked for, uint8 (3, H, W)."""

    def __init__(self, folder: Path) -> None:
        known = Image.registered_extensions()
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        self.files = [file for file in found if file.suffix.lower() in known]
        if not self.files:
            raise ValueError(f"{folder}: expected a folder of pictures")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        return load_image(self.files[index])[0]


class Pairs(Dataset[Any]):
    """A photograph and a style for each index, float32 (3, size, size) in [−1, 1].

    The shorter side becomes ``test_size``. In training the style and both crops are drawn at
    random; in test each photograph meets each style.
    """

    def __init__(
        self,
        photographs: Sequence[Tensor],
        styles: Sequence[Tensor],
        config: Settings,
        training: bool,
    ) -> None:
        self.photographs, self.styles, self.training = photographs, styles, training
        self.length = config.pairs if training else len(photographs) * len(styles)
        crop = [v2.RandomCrop(config.size), v2.RandomHorizontalFlip()]
        if not training:
            crop = [v2.CenterCrop(config.test_size)]
        self.transform = v2.Compose([v2.Resize(config.test_size), *crop])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        which = divmod(index, len(self.styles))
        if self.training:
            which = index % len(self.photographs), int(torch.randint(len(self.styles), ()))
        pair = self.photographs[which[0]], self.styles[which[1]]
        x, y = (from_bytes(self.transform(picture)) for picture in pair)
        return x, y


def from_bytes(picture: Tensor) -> Tensor:
    """uint8 to float32 in [−1, 1]."""
    return picture.float() / 127.5 - 1


def to_bytes(x: Tensor) -> Tensor:
    """[−1, 1] to uint8."""
    return ((x + 1) * 127.5).round().to(torch.uint8)


def datasets(config: Settings, root: Path | None) -> Split:
    """Training pairs, test pairs, and 0: there are no classes."""
    found: list[tuple[Sequence[Tensor], Sequence[Tensor]]] = []
    if config.data == "photos":
        no_root(config, root)
        # Once, not at every crop.
        resize = v2.Resize(config.test_size)
        for part in embedded.PARTS:
            photographs, styles = embedded.photos(part)
            found.append(([resize(x) for x in photographs], [resize(x) for x in styles]))
    else:
        folder = need_root(config.data, root)
        found = [(Files(folder / f"{p}A"), Files(folder / f"{p}B")) for p in embedded.PARTS]
    training, test = (Pairs(*pictures, config, i == 0) for i, pictures in enumerate(found))
    return training, test, 0


def _convolution(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    padding = (size - 1) // 2
    return nn.Conv2d(before, after, size, stride, padding, padding_mode="reflect")


class Residual(nn.Module):
    """x + two convolutions of x, with instance normalisation or without."""

    def __init__(self, channels: int, normalized: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers.append(_convolution(channels, channels, 3))
            if normalized:
                layers.append(nn.InstanceNorm2d(channels, affine=True))
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """The shape of ``x``."""
        y: Tensor = x + self.layers(x)
        return y


class Generator(nn.Module):
    """Content of one picture, style of another: encoders, transforms, decoder."""

    def __init__(self, config: Settings, options: dict[str, Any]) -> None:
        super().__init__()
        w = config.width
        widths = (3, w, 2 * w, 4 * w)
        kernels = ((7, 1), (4, 2), (4, 2))
        content: list[nn.Module] = []
        style: list[nn.Module] = []
        for (before, after), (size, stride) in zip(
            itertools.pairwise(widths), kernels, strict=True
        ):
            content += [_convolution(before, after, size, stride)]
            content += [nn.InstanceNorm2d(after, affine=True), nn.ReLU()]
            style += [_convolution(before, after, size, stride), nn.LeakyReLU(0.2)]
        self.content = nn.Sequential(
            *content, *(Residual(4 * w, True) for _ in range(config.blocks))
        )
        # No normalisation, which would take out what style is; no pooling; no bend at the end.
        self.style = nn.Sequential(*style[:-1])
        self.looks = nn.ModuleList(nn.Conv2d(4 * w, 4 * w, 1) for _ in range(config.transforms))
        self.transforms = nn.ModuleList(
            WhiteningColoring2d(4 * w, learn_blending=True, **options)
            for _ in range(config.transforms)
        )
        self.mixers = nn.ModuleList(Residual(4 * w, False) for _ in range(config.transforms))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4 * w, 2 * w, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * w, w, 4, 2, 1),
            nn.ReLU(),
            _convolution(w, 3, 7),
        )
        self.analysis = self.synthesis = None
        if config.sweeps:
            self.analysis = _convolution(3, config.filters, 5)
            self.synthesis = _convolution(config.filters, 3, 5)
        self.sweeps = nn.ModuleList(
            WhiteningColoring2d(config.filters, learn_blending=True, **options)
            for _ in range(config.sweeps)
        )

    def decode(self, content: Tensor, style: Tensor, picture: Tensor) -> Tensor:
        """A picture of this content in this style, of shape (N, 3, H, W).

        Args:
            content: ``self.content`` of the photograph.
            style: ``self.style`` of the style.
            picture: the style itself, for the sweeps.
        """
        y: Tensor = content
        for look, transform, mixer in zip(self.looks, self.transforms, self.mixers, strict=True):
            y = mixer(transform(y, look(style)))
        y = self.decoder(y)
        if self.analysis is not None and self.synthesis is not None:
            goal = self.analysis(picture)
            for sweep in self.sweeps:
                y = self.synthesis(sweep(self.analysis(y), goal))
        return y


class Discriminator(nn.Module):
    """How real each patch looks, at the full size and at half of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.scales = nn.ModuleList()
        for _ in range(2):
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise(widths):
                layers += [_convolution(before, after, 4, 2), nn.LeakyReLU(0.2)]
            self.scales.append(nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 1)))

    def error(self, x: Tensor, wanted: float) -> Tensor:
        """The least-squares loss of LSGAN."""
        loss = x.new_zeros(())
        for scale in self.scales:
            loss = loss + (scale(x) - wanted).square().mean()
            x = F.avg_pool2d(x, 2)
        return loss


def _frozen(encoder: nn.Module, x: Tensor) -> Tensor:
    """Its features of ``x``; it does not learn from them to make its own errors small."""
    fixed = {name: value.detach() for name, value in encoder.named_parameters()}
    features: Tensor = functional_call(encoder, fixed, (x,))
    return features


def style_loss(x: Tensor, y: Tensor) -> Tensor:
    """The squared 2-Wasserstein distance of features as Gaussians, a channel."""
    # Half precision has too few digits for a covariance, and so has autocast.
    with torch.autocast(x.device.type, enabled=False):
        a, b = (moments(features.float().flatten(2)) for features in (x, y))
        means = (a.mean - b.mean).square().flatten(1).sum(1)
        spreads = bures_wasserstein_distance(a.covariance, b.covariance, eps=1e-4)
        return (means + spreads).mean() / x.shape[1]


class Way(NamedTuple):
    """From one domain to the other: from pictures ``x`` to the style of pictures ``y``."""

    maker: Generator
    """Of the domain of ``y``."""
    reader: Generator
    """Of the domain of ``x``, which reads the content."""
    judge: Discriminator
    x: Tensor
    y: Tensor


class Learner(lightning.LightningModule):
    """The generator of styles, with ``cycle`` that of photographs too, and what judges them."""

    def __init__(self, config: Settings, options: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.automatic_optimization = False
        ways = 2 if config.cycle else 1
        self.generators = nn.ModuleList(Generator(config, options) for _ in range(ways))
        self.judges = nn.ModuleList(Discriminator(config.width) for _ in range(ways))
        self.shown: list[tuple[Tensor, Tensor, Tensor]] = []
        self.ratios: list[float] = []
        self.lpips: tuple[Any] | None = None

    def on_fit_start(self) -> None:
        """LPIPS where its weights are; without them one line says that it is left out."""
        weights = Path(torch.hub.get_dir()) / "checkpoints" / VGG
        if weights.is_file():
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            # In a tuple it is no part of this module, whose checkpoint has no need of it.
            self.lpips = (LearnedPerceptualImagePatchSimilarity("vgg").to(self.device),)
        else:
            self.print(f"LPIPS is left out: {weights} is not there (torchvision's vgg16)")

    def forward(self, photograph: Tensor, style: Tensor) -> Tensor:
        """The photograph in this style: pictures (N, 3, H, W) in [−1, 1], sides multiples of 4."""
        return self._make(self._ways(photograph, style)[0]).clamp(-1, 1)

    def whole_step(self, x: Tensor, y: Tensor) -> Tensor:
        """The generators' loss: all that they do in a training step."""
        ways = self._ways(x, y)
        return self._losses(ways, [self._make(way) for way in ways])

    def _ways(self, x: Tensor, y: Tensor) -> list[Way]:
        makers: Any = self.generators
        judges: Any = self.judges
        # The only generator, or that of the other domain.
        ways = [Way(makers[0], makers[-1], judges[0], x, y)]
        if self.config.cycle:
            ways.append(Way(makers[1], makers[0], judges[1], y, x))
        return ways

    def _make(self, way: Way) -> Tensor:
        return way.maker.decode(way.reader.content(way.x), way.maker.style(way.y), way.y)

    def training_step(self, batch: Any, _index: int) -> None:
        """First the judges, then the generators."""
        optimizers: Any = self.optimizers()
        schedules: Any = self.lr_schedulers()
        ways = self._ways(*batch)
        made = [self._make(way) for way in ways]
        error = batch[0].new_zeros(())
        for way, picture in zip(ways, made, strict=True):
            error = error + way.judge.error(way.y, 1.0) + way.judge.error(picture.detach(), 0.0)
        self._step(optimizers[1], error)
        loss = self._losses(ways, made)
        self._step(optimizers[0], loss)
        for schedule in schedules:
            schedule.step()
        self.log_dict({"loss": loss.detach(), "judge": error.detach()}, prog_bar=True)

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def _losses(self, ways: list[Way], made: list[Tensor]) -> Tensor:
        pairs = zip(ways, made, strict=True)
        return torch.stack([self._loss(way, picture) for way, picture in pairs]).sum()

    def _loss(self, way: Way, made: Tensor) -> Tensor:
        """That of a generator."""
        c, maker = self.config, way.maker
        style = maker.style(way.y)
        again = maker.decode(maker.content(way.y), style, way.y)
        content = way.reader.content(way.x).detach()
        found = maker.content(made)
        loss = (
            c.adversarial * way.judge.error(made, 1.0)
            + c.reconstruction * F.l1_loss(again, way.y)
            + c.content * F.l1_loss(found, content)
            + c.style * style_loss(_frozen(maker.style, made), style.detach())
        )
        if c.cycle:
            back = way.reader.decode(found, way.reader.style(way.x), way.x)
            loss = loss + c.reconstruction * F.l1_loss(back, way.x)
        if maker.analysis is not None and maker.synthesis is not None:
            goal = maker.analysis(way.y)
            loss = loss + c.style * style_loss(_frozen(maker.analysis, made), goal.detach())
            loss = loss + c.reconstruction * F.l1_loss(maker.synthesis(goal), way.y)
        return loss

    def validation_step(self, batch: Any, _index: int) -> None:
        """How much nearer to the style the covariance of 5×5 patches has come, squared."""
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
            # Pictures that are flat or the same are at rounding's distance, not at none.
            least = 1e-6 * float((a + b).trace()) + 1e-12
            self.ratios.append(max(before, least) / max(after, least))
            self.shown.append((content, style, made))

    def on_validation_epoch_end(self) -> None:
        """The geometric mean of all pairs, and a sheet of the first sixteen."""
        # Of all processes, which then agree; without sync_dist Lightning warns that they may not.
        ratios: Any = self.all_gather(torch.tensor(self.ratios, device=self.device))
        self.log("improvement", ratios.log().mean().exp(), prog_bar=True, sync_dist=True)
        self.log("least_improvement", ratios.min(), sync_dist=True)
        if self.trainer.is_global_zero:
            rows = [
                [(content, "content"), (style, "style"), (made, f"squared distance / {ratio:.1f}")]
                for (content, style, made), ratio in zip(self.shown, self.ratios, strict=True)
            ][:16]
            sheet = contact_sheet(rows, side=192)
            sheet.save(Path(self.trainer.default_root_dir) / "pictures.png")
        self.shown, self.ratios = [], []

    def configure_optimizers(self) -> Any:
        """Adam as published, for the generators and for the judges; a warm-up, then a cosine."""
        optimizers = [
            torch.optim.Adam(networks.parameters(), self.config.learning_rate, (0.5, 0.999))
            for networks in (self.generators, self.judges)
        ]
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        schedules = [torch.optim.lr_scheduler.LambdaLR(o, course(steps)) for o in optimizers]
        return optimizers, schedules


def course(steps: int) -> Callable[[int], float]:
    """The learning rate at a step, as a share of the highest: that of torch's ``OneCycleLR``.

    Half a cosine up from 1/25 over 15 % of the steps, and half a cosine down to nothing. By the
    step alone, so that a run that is given more epochs takes the new course.
    """
    peak, least = 0.15 * steps - 1, 1e-4 / 25

    def between(start: float, end: float, done: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * done)) / 2

    def share(step: int) -> float:
        if step <= peak:
            return between(1 / 25, 1.0, step / peak)
        return between(1.0, least, min((step - peak) / (steps - 1 - peak), 1.0))

    return share


def load(run: Path) -> Learner:
    """The network that ``matroot train style`` has left in a folder.

    Raises:
        ValueError: the folder holds no run of this application.
    """
    told, checkpoint = run / "run.json", run / "last.ckpt"
    if not told.is_file() or not checkpoint.is_file():
        raise ValueError(
            f"{run}: expected run.json and last.ckpt of a run of 'matroot train style'"
        )
    values = read_json(told)
    if values.get("application") != "style":
        raise ValueError(f"{run}: expected a run of style, got one of {values.get('application')}")
    try:
        gradient = None if values["gradient"] == "auto" else values["gradient"]
        config: Any = settings("style", values["config"], str(told))
        network = Learner(config, layer_options(values["method"], gradient, config.eps))
        network.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
    except (KeyError, TypeError, RuntimeError):
        raise ValueError(f"{run}: run.json and last.ckpt do not go together") from None
    return network.eval()


@torch.no_grad()
def transfer(network: Learner, photograph: Tensor, style: Tensor) -> Tensor:
    """A photograph in a style by a trained network, uint8 (3, H, W) all three."""
    height, width = photograph.shape[1:]
    if min(height, width, *style.shape[1:]) < 16:
        raise ValueError(
            "expected pictures of at least 16×16 pixels, got "
            f"{height}×{width} and {style.shape[1]}×{style.shape[2]}"
        )
    x, y = (
        F.pad(from_bytes(t)[None], (0, -t.shape[2] % 4, 0, -t.shape[1] % 4), mode="reflect")
        for t in (photograph, style)
    )
    return to_bytes(network(x, y))[0, :, :height, :width]
