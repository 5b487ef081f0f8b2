"""Configurations of the applications: YAML files as checked settings."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from matroot.recipes.catalogue import application, configurations, nearest


class Common(BaseModel):
    """The settings of every application. One YAML file a configuration, in ``recipes/configs``."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    data: str
    eps: float = Field(ge=0)
    batch_size: int = Field(ge=1)
    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    workers: int = Field(0, ge=0)

    def without_effect(self) -> dict[str, str]:
        """Fields that have no effect, each with the setting that makes it so: ``size=32``.

        ``eps`` among them means that the network takes no roots.
        """
        return {}


class Config(Common):
    """The settings of the applications that classify.

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

    def without_effect(self) -> dict[str, str]:
        """See ``Common``."""
        found = super().without_effect()
        if self.optimizer == "adamw":
            found["momentum"] = "optimizer=adamw"
        if self.schedule == "cosine":
            found["milestones"] = "schedule=cosine"
        return found


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
        text = read_text(Path(config))
    else:
        raise ValueError(
            f"no configuration {config!r} of {name}, nor a file; known: "
            f"{', '.join(configurations(name))}"
        )
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{config}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{config}: expected fields and values, got {type(values).__name__}")
    return settings(name, values | (changes or {}), f"configuration {config!r} of {name}")


def settings(name: str, values: dict[str, Any], source: str) -> Common:
    """These values as the settings of an application.

    Args:
        name: of the application.
        values: of the fields.
        source: where they come from; errors begin with it.

    Raises:
        ValueError: they do not fit.
    """
    kind: type[Common] = application(name).Settings
    try:
        return kind(**values)
    except ValidationError as error:
        wrong = "; ".join(_explained(e, kind.model_fields) for e in error.errors())
        raise ValueError(f"{source}: {wrong}") from None


def _explained(error: Any, fields: Iterable[str]) -> str:
    """One of pydantic's errors as a phrase."""
    name = ".".join(map(str, error["loc"])) or "configuration"
    if error["type"] == "extra_forbidden":
        return f"{name}: no such field{nearest(name, fields)} (fields: {', '.join(fields)})"
    return f"{name}: {' '.join(error['msg'].split())}"


def read_text(file: Path) -> str:
    """The text of a file; ValueError where it is not in UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{file}: expected text in UTF-8") from None
