"""The applications: names, configurations, layouts of own data. Importing it loads no other."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from importlib import resources
from types import ModuleType

APPLICATIONS = ("dbn", "sovit", "gcp", "video", "style")

_CLASSES = (
    "a folder with train/CLASS/ and val/CLASS/ (or test/CLASS/), a folder of pictures a class: "
    "--set data=folder --data-root DIR"
)
OWN_DATA = {
    "dbn": _CLASSES,
    "sovit": _CLASSES,
    "gcp": _CLASSES,
    "video": "videos and lists laid out as UCF101 is (UCF-101/CLASS/NAME.avi and "
    "ucfTrainTestlist/) or HMDB51: --set data=ucf101 --data-root DIR",
    "style": "a folder with trainA/ and testA/ (photographs), trainB/ and testB/ (styles): "
    "--set data=folder --data-root DIR",
}
"""How a user's own data are laid out, by application."""


def application(name: str) -> ModuleType:
    """The module of an application: ``Settings``, ``datasets`` and ``build`` or ``Learner``.

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


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'epochs'?"``, or nothing where no known name is near."""
    found = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {found[0]!r}?" if found else ""
