"""Training an application: its configuration, the loop, checkpoints, and the line with the result.

The loop is Lightning's. A run can be interrupted and resumed with the same result: pictures are
drawn and changed at random by seed, epoch and index alone, however many processes read them.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import pickle
import random
import statistics
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import lightning
import torch
import torchmetrics
import yaml
from lightning.fabric.utilities import rank_zero_only
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import v2

from matroot.recipes.catalogue import APPLICATIONS, configurations, nearest
from matroot.recipes.methods import layer_options
from matroot.terminal import check_folder

_UNREADABLE = "unreadable data"


class Common(BaseModel):
    """What every application is told. One YAML file a configuration, in ``recipes/configs``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    eps: float = Field(ge=0)
    batch_size: int = Field(ge=1)
    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    workers: int = Field(0, ge=0)

    def idle(self) -> dict[str, str]:
        """Fields that nothing comes of as others are, and why; ``eps``: there are no roots."""
        return {}


class Config(Common):
    """What is told to those that classify.

    ``average``: decay of an exponential moving average of the weights, which is tested and kept in
    place of the last ones; 0 is none.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "steps"] = "cosine"
    milestones: tuple[PositiveInt, ...] = ()
    warmup_epochs: int = Field(0, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)
    average: float = Field(0.0, ge=0, lt=1)

    def idle(self) -> dict[str, str]:
        """See ``Common``."""
        found = super().idle()
        if self.optimizer == "adamw":
            found["momentum"] = "optimizer=adamw"
        if self.schedule == "cosine":
            found["milestones"] = "schedule=cosine"
        return found


def application(name: str) -> ModuleType:
    """The module of an application: ``Settings``, ``datasets`` and ``build``.

    Raises:
        ValueError: an unknown name.
    """
    if name not in APPLICATIONS:
        raise ValueError(f"unknown application {name!r}; known: {', '.join(APPLICATIONS)}")
    return importlib.import_module(f"matroot.recipes.{name}")


def load_config(name: str, config: str, changes: dict[str, Any] | None = None) -> Common:
    """A named configuration or a YAML file, with changes.

    Raises:
        ValueError: no such configuration, or one that does not fit the application.
    """
    application(name)  # An unknown one has no folder of configurations.
    if config in configurations(name):
        file = resources.files("matroot.recipes") / "configs" / name / f"{config}.yaml"
        text = file.read_text(encoding="utf-8")
    elif Path(config).is_file():
        text = _text(Path(config))
    else:
        raise ValueError(
            f"no configuration {config!r} of {name}, nor a file; known: "
            f"{', '.join(configurations(name))}"
        )
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{config}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{config}: expected fields and values, got {type(values).__name__}")
    return settings(name, values | (changes or {}), f"configuration {config!r} of {name}")


def settings(name: str, values: dict[str, Any], source: str) -> Common:
    """Values as what an application is told.

    Raises:
        ValueError: they do not fit; begins with ``source``.
    """
    kind: type[Common] = application(name).Settings
    try:
        return kind(**values)
    except ValidationError as error:
        wrong = "; ".join(_wrong(e, kind.model_fields) for e in error.errors())
        raise ValueError(f"{source}: {wrong}") from None


def _wrong(error: Any, fields: Iterable[str]) -> str:
    """What pydantic says of a field, in a phrase."""
    name = ".".join(map(str, error["loc"])) or "configuration"
    if error["type"] == "extra_forbidden":
        return f"{name}: no such field{nearest(name, fields)} (fields: {', '.join(fields)})"
    return f"{name}: {' '.join(error['msg'].split())}"


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
        seed = self.seed + (self.global_rank << 32)
        torch.manual_seed(hash((seed, self.global_step)) % 2**63)

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
        self.log("test_loss", F.cross_entropy(logits, y), sync_dist=True)
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
        # By the step alone, so that a run that is given more epochs takes the new course.
        main = torch.optim.lr_scheduler.LambdaLR(optimizer, course(c, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": main, "interval": "step"}}


def course(config: Config, steps: int) -> Callable[[int], float]:
    """The learning rate at a step, as a share of the highest.

    A warm-up on a line from a thousandth; then half a cosine, or a tenth of the rate after each
    milestone.

    Args:
        config: ``schedule``, ``warmup_epochs``, ``milestones``.
        steps: of all epochs.
    """
    epoch = max(steps // config.epochs, 1)
    warmup = config.warmup_epochs * epoch
    places = [m * epoch for m in config.milestones]

    def share(step: int) -> float:
        if step < warmup:
            return 1e-3 + (1 - 1e-3) * step / warmup
        if config.schedule == "steps":
            return 0.1 ** sum(step >= place for place in places)
        done = (step - warmup) / max(steps - warmup, 1)
        return (1 + math.cos(math.pi * min(done, 1.0))) / 2

    return share


class Record(Callback):
    """Milliseconds of the last steps, seconds of all, the last metrics: kept in the checkpoint."""

    def __init__(self) -> None:
        # As many as a median needs: each checkpoint holds them, and a large run has millions.
        self.ms: deque[float] = deque(maxlen=1000)
        self.metrics: dict[str, float] = {}
        self.seconds = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Start the clock, or go on."""
        self.start = time.perf_counter() - self.seconds

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock of a step."""
        self.step_start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop it."""
        self.ms.append(1e3 * (time.perf_counter() - self.step_start))

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """What has been measured."""
        self.seconds = time.perf_counter() - self.start
        self.metrics = {k: round(float(v), 5) for k, v in trainer.callback_metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return {"ms": list(self.ms), "metrics": self.metrics, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As it was."""
        self.ms.extend(state["ms"])
        self.metrics, self.seconds = state["metrics"], state["seconds"]


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
        ValueError: what was asked for does not fit, or nothing can be written to ``output``, or it
            holds another run: one that differs in more than a larger number of epochs.
        FloatingPointError: a metric is no longer finite.
        torch.linalg.LinAlgError: the method ended the training.
    """
    module = application(name)
    options = layer_options(method, gradient, config.eps)
    told = {
        "application": name,
        "method": method,
        "gradient": gradient or "auto",
        "seed": seed,
        "precision": str(trainer.get("precision", "32-true")),
        "config": config.model_dump(mode="json"),
    }
    if (why := config.idle().get("eps")) and (method != "auto" or gradient is not None):
        raise ValueError(f"method and gradient do nothing with {why}, where no root is taken")
    check_folder(output)
    last, finished = output / "last.ckpt", output / "result.json"
    known = _known_run(output, told) if last.exists() or finished.exists() else {}
    place = None if root is None else str(root.resolve())
    moved = known.get("data_root", place) != place
    complete = finished.exists() and known["config"]["epochs"] == config.epochs
    if complete and not moved:
        say(f"{output}: finished before")
        return read_json(finished)
    if last.exists():
        # Lightning reads it again; what it raises of a broken one is not told from other errors.
        read_checkpoint(last)
    training, test, classes = module.datasets(config, root)
    items = [len(training), len(test), classes]
    if known.get("items", items) != items:
        raise ValueError(
            f"{output} holds a run with other data: {_counted(known['items'])} in "
            f"{known['data_root']}, {_counted(items)} in {place}; choose another folder"
        )
    if moved:
        say(f"data are read from {place}, before from {known['data_root']}")
    if complete:
        say(f"{output}: finished before")
        return read_json(finished)
    if last.exists():
        say(f"going on from {last}" + (f" to {config.epochs} epochs" if finished.exists() else ""))
    try:
        model = learner(module, config, classes, options, seed)
    except (RuntimeError, TypeError, IndexError, AssertionError, ArithmeticError) as error:
        # What timm and PyTorch say of sizes that do not go together.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"no network of {name} can be built like this: {reason}") from None
    data = Data(training, test, config, seed)
    batches = len(data.train_dataloader())
    if not batches:
        raise ValueError(f"{len(training)} items for training make no batch of {config.batch_size}")
    # After each epoch, over the one before. (``save_last`` alone saves at the end only.)
    checkpoint = ModelCheckpoint(
        output, last.stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    record = Record()
    watching: list[Callback] = [checkpoint, record, *callbacks]
    if isinstance(config, Config) and config.average:
        watching.append(EMAWeightAveraging(decay=config.average))
    if progress:
        watching.append(RichProgressBar())
    # Each start has a folder of its own.
    loggers: list[Logger] = [CSVLogger(output, name="logs")]
    if tensorboard:
        loggers.append(TensorBoardLogger(output, name="tensorboard"))
    build = functools.partial(
        lightning.Trainer,
        max_epochs=config.epochs,
        callbacks=watching,
        logger=loggers,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=min(50, batches),
        default_root_dir=output,
    )
    try:
        loop = build(**trainer)
        if loop.world_size > 1 and hasattr(module, "DISTRIBUTED_STRATEGY"):
            loop = build(strategy=module.DISTRIBUTED_STRATEGY, **trainer)
    except (MisconfigurationException, TypeError, RuntimeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    if loop.is_global_zero:
        output.mkdir(parents=True, exist_ok=True)
        text = json.dumps(told | {"data_root": place, "items": items})
        (output / "run.json").write_text(text, encoding="utf-8")
        # Of fewer epochs.
        finished.unlink(missing_ok=True)
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
    except torch.linalg.LinAlgError as error:
        raise torch.linalg.LinAlgError(
            f"method {method!r} ended the training, as a gradient that is infinite where "
            f"eigenvalues repeat does, or too high a learning rate: {error}"
        ) from None
    wrong = {k: v for k, v in record.metrics.items() if not math.isfinite(v)}
    if wrong:
        raise FloatingPointError(
            f"{output}: after {loop.current_epoch} epochs by method {method!r} "
            + ", ".join(f"{k} is {v}" for k, v in wrong.items())
        )
    result = {**told, "epochs": loop.current_epoch, "seconds": round(record.seconds, 1)}
    result |= record.metrics
    if record.ms:
        result["step_ms"] = round(statistics.median(record.ms), 2)
    if loop.current_epoch >= config.epochs and loop.is_global_zero:
        finished.write_text(json.dumps(result), encoding="utf-8")
    return result


@rank_zero_only
def say(line: str) -> None:
    """Print, of several processes in the first alone."""
    print(line, flush=True)


def _known_run(output: Path, told: dict[str, Any]) -> dict[str, Any]:
    """What ``run.json`` says; ValueError, with both values, if it is of something else.

    More epochs are no other run: they go on with it.
    """
    known = read_json(output / "run.json")
    pairs = [(name, known.get(name), told[name]) for name in told if name != "config"]
    old, new = known.get("config"), told["config"]
    if not isinstance(old, dict):
        raise ValueError(f"{output / 'run.json'}: expected what 'matroot train' has written there")
    pairs += [(name, old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())]
    different = [
        f"{name} ({there} there, {asked} asked for)"
        for name, there, asked in pairs
        if there != asked and not (name == "epochs" and isinstance(there, int) and there < asked)
    ]
    if different:
        raise ValueError(
            f"{output} holds a run with another {', '.join(different)}; choose another folder"
        )
    return known


def _counted(items: list[int]) -> str:
    return "{} items for training, {} for test, {} classes".format(*items)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: expected text in UTF-8") from None


def read_json(file: Path) -> dict[str, Any]:
    """What a run has written down.

    Raises:
        ValueError: the file is not there, or holds something else.
    """
    try:
        found = json.loads(_text(file))
    except (FileNotFoundError, json.JSONDecodeError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected what 'matroot train' has written there")
    return found


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint of ``train``, on the CPU; nothing in it is run.

    Raises:
        ValueError: it is none, or broken.
    """
    try:
        found: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        if found.keys() >= {"state_dict", "epoch", "loops", "pytorch-lightning_version"}:
            return found
    except (OSError, EOFError, RuntimeError, AttributeError, pickle.UnpicklingError):
        pass
    raise ValueError(f"{file}: expected a checkpoint of 'matroot train'; delete it to start anew")
