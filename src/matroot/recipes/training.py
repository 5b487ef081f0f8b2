"""Training an application: its configuration, the loop, checkpoints, and the line with the result.

The loop is Lightning's. A run can be interrupted and resumed with the same result: pictures are
drawn and changed at random by seed, epoch and index alone, however many processes read them.
"""

from __future__ import annotations

import importlib
import json
import random
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import lightning
import torch
import torchmetrics
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import v2

from matroot.recipes.methods import layer_options

APPLICATIONS = ("dbn", "sovit", "gcp", "video", "style")
_UNREADABLE = "unreadable data"


class Common(BaseModel):
    """What every application is told. One YAML file a configuration, in ``recipes/configs``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    eps: float
    batch_size: int
    epochs: int
    learning_rate: float
    workers: int = 0


class Config(Common):
    """What is told to those that classify.

    ``average``: decay of an exponential moving average of the weights, which is tested and kept in
    place of the last ones; 0 is none.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["cosine", "steps"] = "cosine"
    milestones: tuple[int, ...] = ()
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    average: float = Field(0.0, ge=0, lt=1)


def application(name: str) -> ModuleType:
    """The module of an application: ``Settings``, ``datasets`` and ``build``.

    Raises:
        ValueError: an unknown name.
    """
    if name not in APPLICATIONS:
        raise ValueError(f"unknown application {name!r}; known: {', '.join(APPLICATIONS)}")
    return importlib.import_module(f"matroot.recipes.{name}")


def configurations(name: str) -> list[str]:
    """The named configurations of an application."""
    folder = resources.files("matroot.recipes") / "configs" / name
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_config(name: str, config: str, changes: dict[str, Any] | None = None) -> Common:
    """A named configuration or a YAML file, with changes.

    Raises:
        ValueError: no such configuration, or one that does not fit the application.
    """
    module = application(name)
    if config in configurations(name):
        file = resources.files("matroot.recipes") / "configs" / name / f"{config}.yaml"
        text = file.read_text(encoding="utf-8")
    elif Path(config).is_file():
        text = Path(config).read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"no configuration {config!r} of {name}, nor a file; known: "
            f"{', '.join(configurations(name))}"
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{config}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{config}: expected fields and values, got {type(values).__name__}")
    try:
        settings: Common = module.Settings(**(values | (changes or {})))
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}" for e in error.errors()
        )
        raise ValueError(f"configuration {config!r} of {name}: {wrong}") from None
    return settings


class _Keyed(Dataset[Any]):
    """Items by (epoch, index), with the random numbers that belong to them."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        seed = hash((self.seed, epoch, index)) % 2**63
        before = random.getstate(), torch.get_rng_state()
        random.seed(seed)
        # Of the CPU alone: torch.manual_seed takes longer than reading a small picture.
        torch.default_generator.manual_seed(seed)
        try:
            return self.dataset[index]
        except (OSError, ValueError) as error:
            raise ValueError(f"{_UNREADABLE}, item {index}: {error}") from None
        finally:
            random.setstate(before[0])
            torch.set_rng_state(before[1])


class _Order(DistributedSampler[Any]):
    """(epoch, index), shuffled by seed and epoch, shared out over the processes."""

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, index) for index in super().__iter__())


class Data(lightning.LightningDataModule):
    """The loaders."""

    def __init__(self, train: Dataset[Any], test: Dataset[Any], config: Common, seed: int) -> None:
        super().__init__()
        self.parts = {"train": train, "test": test}
        self.config, self.seed = config, seed

    def _loader(self, part: str) -> DataLoader[Any]:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        order = _Order(
            self.parts[part],
            num_replicas=torch.distributed.get_world_size() if distributed else 1,
            rank=torch.distributed.get_rank() if distributed else 0,
            shuffle=part == "train",
            seed=self.seed,
            drop_last=False,
        )
        return DataLoader(
            _Keyed(self.parts[part], self.seed),
            self.config.batch_size,
            sampler=order,
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


class Classifier(lightning.LightningModule):
    """A network, cross entropy, and its accuracy on the test set after each epoch."""

    def __init__(self, model: nn.Module, config: Config, classes: int, seed: int) -> None:
        super().__init__()
        self.model, self.config, self.seed = model, config, seed
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=classes)
        kinds = ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
        mixes = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
        # One of them, drawn anew for each batch.
        self.mix = v2.RandomChoice(mixes) if mixes else None

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.model(x)
        return logits

    def on_train_batch_start(self, _batch: Any, _index: int) -> None:
        """What is dropped or mixed at random depends on seed and step, not on what ran before."""
        torch.manual_seed(hash((self.seed, self.global_step)) % 2**63)

    def training_step(self, batch: Any, _index: int) -> Tensor:
        """One loss."""
        x, y = batch if self.mix is None else self.mix(*batch)
        loss = F.cross_entropy(self(x), y, label_smoothing=self.config.label_smoothing)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, _index: int) -> None:
        """Counts what is right."""
        x, y = batch
        logits = self(x)
        self.accuracy(logits, y)
        self.log("test_loss", F.cross_entropy(logits, y))
        self.log("accuracy", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """As configured; the rate changes at every step."""
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
        epoch = max(steps // c.epochs, 1)
        warmup = torch.optim.lr_scheduler.LinearLR(
            optimizer, 1e-3, total_iters=max(c.warmup_epochs * epoch, 1)
        )
        main: Any = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, max(steps - c.warmup_epochs * epoch, 1)
        )
        if c.schedule == "steps":
            places = [(m - c.warmup_epochs) * epoch for m in c.milestones]
            main = torch.optim.lr_scheduler.MultiStepLR(optimizer, places)
        if c.warmup_epochs:
            main = torch.optim.lr_scheduler.SequentialLR(
                optimizer, [warmup, main], [c.warmup_epochs * epoch]
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": main, "interval": "step"}}


class StepTimes(Callback):
    """Milliseconds of each training step."""

    def __init__(self) -> None:
        self.ms: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop it."""
        self.ms.append(1e3 * (time.perf_counter() - self.start))


def learner(
    module: ModuleType, config: Common, classes: int, options: dict[str, Any], seed: int
) -> lightning.LightningModule:
    """The network of an application with its losses: a Classifier, unless it has one of its own."""
    lightning.seed_everything(seed, workers=True, verbose=False)
    if hasattr(module, "Learner"):
        own: lightning.LightningModule = module.Learner(config, options)
        return own
    assert isinstance(config, Config)
    return Classifier(module.build(config, classes, options), config, classes, seed)


def train(
    name: str,
    config: Common,
    output: Path,
    *,
    method: str = "auto",
    gradient: str | None = None,
    seed: int = 0,
    root: Path | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    callbacks: Sequence[Callback] = (),
    **trainer: Any,
) -> dict[str, Any]:
    """Train an application, or go on where an earlier run in the same folder has stopped.

    Args:
        name: one of ``APPLICATIONS``.
        config: see ``load_config``.
        output: folder for checkpoints, logs and ``result.json``.
        method: see ``layer_options``.
        gradient: see ``layer_options``.
        seed: of the weights, the order and what is random in the data.
        root: folder of data that are not embedded.
        progress: whether to show a bar.
        tensorboard: whether to write TensorBoard's logs beside those in CSV.
        callbacks: more of Lightning's.
        trainer: options of ``lightning.Trainer``: ``accelerator``, ``devices``, ``precision`` …

    Returns:
        Metrics, seconds of training, and what was run.

    Raises:
        ValueError: what was asked for does not fit, or the folder holds another run.
    """
    module = application(name)
    options = layer_options(method, gradient, config.eps)
    told = {
        "application": name,
        "method": method,
        "gradient": gradient or "auto",
        "seed": seed,
        "config": config.model_dump(mode="json"),
    }
    _same_run(output, told)
    finished = output / "result.json"
    if finished.exists():
        known: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
        return known
    training, test, classes = module.datasets(config, root)
    model = learner(module, config, classes, options, seed)
    data = Data(training, test, config, seed)
    last = output / "last.ckpt"
    # After each epoch, over the one before. (``save_last`` alone saves at the end only.)
    checkpoint = ModelCheckpoint(
        output, last.stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    times = StepTimes()
    watching: list[Callback] = [checkpoint, times, *callbacks]
    if isinstance(config, Config) and config.average:
        watching.append(EMAWeightAveraging(decay=config.average))
    if progress:
        watching.append(RichProgressBar())
    # Each start has a folder of its own.
    loggers: list[Logger] = [CSVLogger(output, name="logs")]
    if tensorboard:
        loggers.append(TensorBoardLogger(output, name="tensorboard"))
    loop = lightning.Trainer(
        max_epochs=config.epochs,
        callbacks=watching,
        logger=loggers,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, min(50, len(data.train_dataloader()))),
        default_root_dir=output,
        **trainer,
    )
    if last.exists():
        print(f"going on from {last}")
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # Lightning's use of what PyTorch deprecates, and its advice on reading data and on
            # folders that are not empty: ours holds what the run is.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            warnings.filterwarnings("ignore", message="Checkpoint directory .* not empty")
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            loop.fit(
                model,
                data,
                ckpt_path=str(last) if last.exists() else None,
                weights_only=True,
            )
    except ValueError as error:
        # What a process that reads data has raised comes with its traceback.
        lines = [line for line in str(error).splitlines() if _UNREADABLE in line]
        raise ValueError(lines[-1].removeprefix("ValueError: ") if lines else error) from None
    seconds = time.perf_counter() - start
    metrics = {k: round(float(v), 5) for k, v in loop.callback_metrics.items()}
    result = {**told, "epochs": loop.current_epoch, "seconds": round(seconds, 1), **metrics}
    if times.ms:
        result["step_ms"] = round(statistics.median(times.ms), 2)
    if loop.current_epoch >= config.epochs:
        finished.write_text(json.dumps(result), encoding="utf-8")
    return result


def _same_run(output: Path, told: dict[str, Any]) -> None:
    """Write down what a folder is for, or raise ValueError if it is for something else."""
    file = output / "run.json"
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        different = sorted(k for k in told if known.get(k) != told[k])
        if different:
            raise ValueError(
                f"{output} holds a run with another {', '.join(different)}; choose another folder"
            )
    output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(told), encoding="utf-8")
