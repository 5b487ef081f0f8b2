"""Stand-ins for functions of other packages, each in a module with that package's name."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matroot.compat import pytorch_fid as pytorch_fid
    from matroot.compat import sklearn as sklearn
    from matroot.compat import torchmetrics as torchmetrics

# Loaded when they are asked for: the packages may not be installed.
_MODULES = ["pytorch_fid", "sklearn", "torchmetrics"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return _MODULES
