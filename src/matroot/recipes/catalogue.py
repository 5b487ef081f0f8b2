"""The applications: names, configurations, layouts of own data. Importing it loads no other."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from importlib import resources
from types import ModuleType

APPLICATIONS = ("dbn", "sovit", "gcp", "video", "style")

EMBEDDED: dict[str, str] = {
    "dbn": "digits",
    "sovit": "textures",
    "gcp": "textures",
    "video": "motions",
    "style": "photos",
}
"""The ``data`` of each application that need no folder."""

OWN_DATA = {
    "dbn": "pictures by class; CIFAR-10 and CIFAR-100 as they are unpacked",
    "sovit": "pictures by class",
    "gcp": "pictures by class; CUB-200-2011, FGVC-Aircraft, Stanford Cars as they are unpacked",
    "video": "videos (AVI) by class; UCF101 and HMDB51 as they are unpacked",
    "style": "pictures in photographs/ and styles/, of which a fifth is kept for test; or in "
    "trainA/, testA/ (photographs), trainB/, testB/ (styles)",
}
"""What ``--data-root`` may hold, by application."""

BY_CLASS = (
    "By class: train/CLASS/ and val/CLASS/ (or test/CLASS/); or a list *.csv with the columns "
    "path, class and perhaps part (train or test); or CLASS/ alone, of which a fifth is kept for "
    "test."
)
"""The layouts of pictures and videos by class."""


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
