"""The applications: names, configurations, layouts of own data. Importing it loads no other."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from importlib import resources
from types import ModuleType

APPLICATIONS = ("dbn", "sovit", "gcp", "video", "style")

EMBEDDED = {
    "dbn": "digits",
    "sovit": "textures",
    "gcp": "textures",
    "video": "motions",
    "style": "photos",
}
"""The ``data`` of each application that need no folder."""

_CLASSES = (
    "train/CLASS/ and val/CLASS/ (or test/CLASS/), or CLASS/ alone, of which a fifth is kept for "
    "test, or a list .csv with the columns path, class and perhaps part"
)
OWN_DATA = {
    "dbn": f"pictures in {_CLASSES}; CIFAR as it is unpacked",
    "sovit": f"pictures in {_CLASSES}",
    "gcp": f"pictures in {_CLASSES}; CUB-200-2011, FGVC-Aircraft, Stanford Cars as they are "
    "unpacked",
    "video": f"videos (AVI) in {_CLASSES}; UCF101, HMDB51 as they are unpacked",
    "style": "pictures in photographs/ and styles/, of which a fifth is kept for test, or in "
    "trainA/ and testA/ (photographs), trainB/ and testB/ (styles)",
}
"""How the data in ``--data-root`` may be laid out, by application."""


def application(name: str) -> ModuleType:
    """The module of an application: ``Settings``, ``datasets``, ``build`` and so on.

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
