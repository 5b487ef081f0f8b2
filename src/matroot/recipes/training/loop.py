"""The training loop: Lightning's, with checkpoints, and the line with the result."""

from __future__ import annotations

import io
import json
import math
import statistics
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities import rank_zero_only
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from matroot.files import held, replace
from matroot.nn import convert_sync_whitening
from matroot.recipes.catalogue import application
from matroot.recipes.methods import layer_options
from matroot.recipes.training.classifier import Classifier
from matroot.recipes.training.configuration import Common, Config
from matroot.recipes.training.folder import RunFolder, read_checkpoint, read_json
from matroot.recipes.training.loaders import UNREADABLE, Data
from matroot.terminal import check_folder, one_line


class _Checkpoints(TorchCheckpointIO):
    """Writes checkpoints beside the last one, and on the same disk, before they take its place."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        """See ``CheckpointIO``."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace(Path(path), buffer.getbuffer())


class Record(Callback):
    """Milliseconds of the last steps, seconds of all, the last metrics: kept in the checkpoint."""

    def __init__(self) -> None:
        # Enough for a median: each checkpoint holds them, and a large run has millions of steps.
        self.ms: deque[float] = deque(maxlen=1000)
        self.metrics: dict[str, float] = {}
        self.start: float = 0.0
        self.step_start: float = 0.0
        self.seconds: float = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Start the clock, or continue."""
        self.start = time.perf_counter() - self.seconds

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock of a step."""
        self.step_start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop it."""
        self.ms.append(1e3 * (time.perf_counter() - self.step_start))

    def on_train_epoch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Record the seconds so far and the metrics."""
        self.seconds = time.perf_counter() - self.start
        self.metrics = {k: round(float(v), 5) for k, v in trainer.callback_metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded."""
        return {"ms": list(self.ms), "metrics": self.metrics, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a record."""
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
    sync_whitening: bool | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    callbacks: Sequence[Callback] = (),
    **trainer: Any,
) -> dict[str, Any]:
    """Train an application, or continue where an earlier run in the same folder has stopped.

    A run that was interrupted and resumed has the result of one that was not.

    Args:
        name: one of ``APPLICATIONS``.
        config: see ``load_config``.
        output: folder for checkpoints, logs and ``result.json``.
        method: see ``layer_options``.
        gradient: see ``layer_options``.
        seed: of the weights, the order and what is random in the data.
        root: folder of data that are not embedded.
        sync_whitening: whether whitening layers take the statistics of all processes together, see
            ``matroot.nn.convert_sync_whitening``; None: yes.
        progress: whether to show a bar.
        tensorboard: whether to write TensorBoard's logs in addition to those in CSV.
        callbacks: more of Lightning's.
        trainer: options of ``lightning.Trainer``: ``accelerator``, ``devices``, ``num_nodes``,
            ``precision`` …

    Returns:
        Metrics, seconds of training, and what was asked for.

    Raises:
        ValueError: what was asked for does not fit, or nothing can be written to ``output``, or it
            holds another run: one that differs in more than a larger number of epochs.
        FloatingPointError: a metric is no longer finite.
        torch.linalg.LinAlgError: the method ended the training.
    """
    module = application(name)
    options = layer_options(method, gradient, config.eps)
    precision = str(trainer.get("precision", "32-true"))
    asked = _asked(name, config, method, gradient, seed, precision)
    processes = _processes(trainer)
    asked["sync_whitening"] = _synchronised(name, module, sync_whitening, processes)
    check_folder(output)
    with one_run(output, trainer):
        folder = RunFolder(output)
        known = folder.earlier_run(asked)
        if asked["sync_whitening"] is None:
            # One process goes on with a run of several.
            asked["sync_whitening"] = known.get("sync_whitening")
        finished, resumed = folder.result.exists(), folder.checkpoint.exists()
        complete = finished and known["config"].get("epochs") == config.epochs
        place = None if root is None else str(root.resolve())
        moved = known.get("data_root", place) != place
        if complete and not moved:
            return _finished_before(folder)
        if resumed:
            # Lightning reads it again, but its errors about a broken file are not recognisable.
            read_checkpoint(folder.checkpoint)
        training, test, classes = module.datasets(config, root)
        items = [len(training), len(test), classes]
        folder.check_data(known, items, place)
        if moved:
            say(f"data are read from {place}, before from {one_line(str(known['data_root']))}")
        if complete:
            return _finished_before(folder)
        if resumed:
            more = f" to {config.epochs} epochs" if finished else ""
            say(f"going on from {folder.checkpoint}{more}")
        model = _network(name, module, config, classes, options, seed)
        if asked["sync_whitening"]:
            convert_sync_whitening(model)
        data = Data(training, test, config, seed)
        batches = len(data.train_dataloader())
        if not batches:
            raise ValueError(
                f"{len(training)} items for training make no batch of {config.batch_size}"
            )
        record = Record()
        if processes > 1 and hasattr(module, "DISTRIBUTED_STRATEGY"):
            trainer.setdefault("strategy", module.DISTRIBUTED_STRATEGY)
        loop = _trainer(
            config,
            folder,
            [record, *callbacks],
            batches=max(1, batches // processes),
            progress=progress,
            tensorboard=tensorboard,
            options=trainer,
        )
        if loop.is_global_zero:
            folder.start(asked | {"data_root": place, "items": items})
        _fit(loop, model, data, folder, method)
        result = _result(asked, record, loop.current_epoch, output)
        if loop.current_epoch >= config.epochs and loop.is_global_zero:
            replace(folder.result, json.dumps(result))
        return result


@contextmanager
def one_run(output: Path, options: dict[str, Any]) -> Iterator[None]:
    """Keep other runs out of a folder; the first of its processes does it for all of them.

    Args:
        output: the folder.
        options: of ``lightning.Trainer``, which say how many processes there are.

    Raises:
        ValueError: another run is writing there.
    """
    _processes(options)  # Lightning then knows which of them this is.
    lock = output / ".lock"
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # An attribute of a function.
    with held(output, lock) if first else nullcontext():
        yield


def _asked(
    name: str, config: Common, method: str, gradient: str | None, seed: int, precision: str
) -> dict[str, Any]:
    """What is asked for, as ``run.json`` describes it.

    Raises:
        ValueError: a method or a gradient for a network without roots.
    """
    why = config.without_effect().get("eps")
    if why and (method != "auto" or gradient is not None):
        raise ValueError(f"method and gradient do nothing with {why}, where no root is taken")
    return {
        "application": name,
        "method": method,
        "gradient": gradient or "auto",
        "seed": seed,
        "precision": precision,
        "config": config.model_dump(mode="json"),
    }


def _finished_before(folder: RunFolder) -> dict[str, Any]:
    say(f"{folder.path}: finished before")
    return read_json(folder.result)


def _network(
    name: str, module: ModuleType, config: Common, classes: int, options: dict[str, Any], seed: int
) -> lightning.LightningModule:
    """``learner``; errors of timm and PyTorch about sizes that do not match become a ValueError."""
    try:
        return learner(module, config, classes, options, seed)
    except (RuntimeError, TypeError, IndexError, AssertionError, ArithmeticError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"no network of {name} can be built like this: {reason}") from None


def _synchronised(
    name: str, module: ModuleType, wanted: bool | None, processes: int
) -> bool | None:
    """Whether whitening statistics are those of all processes; None where it is all the same.

    Raises:
        ValueError: wanted or not for a network that does not whiten.
    """
    if not hasattr(module, "WHITENS"):
        if wanted is not None:
            option = "--sync-whitening" if wanted else "--no-sync-whitening"
            raise ValueError(f"{option} does nothing with {name}, which has no whitening layer")
        return None
    return None if processes == 1 else wanted is not False


def _trainer(
    config: Common,
    folder: RunFolder,
    callbacks: Sequence[Callback],
    *,
    batches: int,
    progress: bool,
    tensorboard: bool,
    options: dict[str, Any],
) -> lightning.Trainer:
    """Lightning's, as configured."""
    # After each epoch, over the one before. (``save_last`` alone saves at the end only.)
    checkpoint = ModelCheckpoint(
        folder.path,
        folder.checkpoint.stem,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    watching: list[Callback] = [checkpoint, *callbacks]
    if isinstance(config, Config) and config.average:
        watching.append(EMAWeightAveraging(decay=config.average))
    if progress:
        watching.append(RichProgressBar())
    # Each start has a folder of its own.
    loggers: list[Logger] = [CSVLogger(folder.path, name="logs")]
    if tensorboard:
        loggers.append(TensorBoardLogger(folder.path, name="tensorboard"))
    return _built(
        max_epochs=config.epochs,
        callbacks=watching,
        plugins=[_Checkpoints(), *options.pop("plugins", [])],
        logger=loggers,
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=min(50, batches),
        default_root_dir=folder.path,
        **options,
    )


def _processes(options: dict[str, Any]) -> int:
    """How many processes Lightning's options mean, on all nodes."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return _built(**quiet, enable_progress_bar=False, **options).world_size


def _built(**options: Any) -> lightning.Trainer:
    """Lightning's trainer; ValueError where its options do not fit."""
    try:
        return lightning.Trainer(**options)
    except (MisconfigurationException, TypeError, RuntimeError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _fit(
    loop: lightning.Trainer,
    model: lightning.LightningModule,
    data: Data,
    folder: RunFolder,
    method: str,
) -> None:
    """Train, from the checkpoint if there is one; errors of data and method in one line."""
    resumed = str(folder.checkpoint) if folder.checkpoint.exists() else None
    try:
        with warnings.catch_warnings():
            # Lightning's use of what PyTorch deprecates, and its advice on reading data and on
            # folders that are not empty: ours is checked.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            warnings.filterwarnings("ignore", message="Checkpoint directory .* not empty")
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            loop.fit(model, data, ckpt_path=resumed, weights_only=True)
    except ValueError as error:
        # An error from a process that reads data comes with its traceback.
        lines = [line for line in str(error).splitlines() if UNREADABLE in line]
        raise ValueError(lines[-1].removeprefix("ValueError: ") if lines else error) from None
    except torch.linalg.LinAlgError as error:
        raise torch.linalg.LinAlgError(
            f"method {method!r} ended the training, as a gradient that is infinite where "
            f"eigenvalues repeat does, or too high a learning rate: {error}"
        ) from None


def _result(asked: dict[str, Any], record: Record, epochs: int, output: Path) -> dict[str, Any]:
    """What ``train`` returns; FloatingPointError where a metric is not finite."""
    wrong = {k: v for k, v in record.metrics.items() if not math.isfinite(v)}
    if wrong:
        raise FloatingPointError(
            f"{output}: after {epochs} epochs by method {asked['method']!r} "
            + ", ".join(f"{k} is {v}" for k, v in wrong.items())
        )
    result = {**asked, "epochs": epochs, "seconds": round(record.seconds, 1), **record.metrics}
    if record.ms:
        result["step_ms"] = round(statistics.median(record.ms), 2)
    return result


@rank_zero_only
def say(line: str) -> None:
    """Print, of several processes in the first alone."""
    print(line, flush=True)
