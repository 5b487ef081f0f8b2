"""Names to classes: how a string such as ``"pade"`` becomes the object ``Pade()``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, type[T]], Generic[T]):
    """The known classes of one kind, by snake-case name, in the order of registration.

    Args:
        kind: what messages call them.
        base: what all of them are.
        names: the names of a module: all concrete subclasses of ``base`` among them are registered,
            in this order.
    """

    def __init__(self, kind: str, base: type[T], names: Mapping[str, object]) -> None:
        self._kind = kind
        self._base = base
        self._classes = {
            _snake_case(cls.__name__): cls
            for cls in names.values()
            if isinstance(cls, type) and issubclass(cls, base) and cls is not base
            if not inspect.isabstract(cls)
        }
        # Made once: they cannot change.
        self._defaults = {name: cls() for name, cls in self._classes.items()}

    def __getitem__(self, name: str) -> type[T]:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def resolve(self, spec: str | T) -> T:
        """The object that ``spec`` means: itself, or the named class with its default options.

        Raises:
            ValueError: ``spec`` is a string that names no registered class.
            TypeError: ``spec`` is neither a string nor an instance of the registry's base class.
        """
        if isinstance(spec, str):
            if spec in self._defaults:
                return self._defaults[spec]
            known = ", ".join(repr(name) for name in ("auto", *self._classes))
            raise ValueError(f"unknown {self._kind} {spec!r}; known: {known}")
        if isinstance(spec, self._base):
            return spec
        if isinstance(spec, type) and issubclass(spec, self._base):
            raise TypeError(
                f"{self._kind} must be an object, got the class {spec.__name__}; "
                f"write {spec.__name__}()"
            )
        raise TypeError(
            f"{self._kind} must be a name or a {self._base.__name__} object, "
            f"got {type(spec).__name__}"
        )


def name_of(obj: object) -> str:
    """The registered name of an object's class, ``Pade(order=3)`` to ``"pade"``."""
    return _snake_case(type(obj).__name__)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
