"""Running cases one by one, resuming a run, and writing rows as soon as they are measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from matroot.bench import rows
from matroot.bench.rows import Row


@dataclass(frozen=True)
class Settings:
    """The user's choices.

    Attributes:
        device: where it runs.
        dtype: of the matrices, where the experiment does not prescribe one.
        quick: fewer and smaller cases, less time for each: a first look, not a result.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    quick: bool = False

    @property
    def seconds(self) -> float:
        """Time for one candidate in one case."""
        return 0.1 if self.quick else 1.0

    @property
    def dtype_name(self) -> str:
        """``"float32"``."""
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Case:
    """All candidates on one problem, measured side by side.

    Attributes:
        experiment: the one it belongs to.
        fields: what distinguishes it from other cases of the experiment; part of each row.
        measure: makes the rows, each with a ``"candidate"``.
        weight: expected cost in seconds, for the time left.
    """

    experiment: str
    fields: Row
    measure: Callable[[], list[Row]]
    weight: float

    @property
    def title(self) -> str:
        """A few words, for a progress bar."""
        return " ".join([self.experiment, *map(str, self.fields.values())])[:32]

    def key(self, settings: Settings) -> str:
        """One line that names the case in the file."""
        fields = {"dtype": settings.dtype_name, **self.fields, "device": settings.device.type}
        parts = [f"{name}={value}" for name, value in fields.items()]
        return " ".join([self.experiment, *parts, *(["quick"] if settings.quick else [])])


@dataclass(frozen=True)
class Step:
    """The progress of a run: the case that starts, and the weights done and in all."""

    title: str
    done: float
    total: float


def run(cases: Sequence[Case], path: Path, settings: Settings) -> Iterator[Step]:
    """Measure what the file does not hold yet; yields before each case, and once at the end.

    Stopping the iteration, or killing the process, loses the case in progress and nothing else.

    Raises:
        ValueError: the file holds rows of another environment, with which these must not mix.
    """
    origin = rows.provenance(settings.device)
    known = recorded(path, origin)
    done = rows.finished(known)
    total = sum(case.weight for case in cases)
    passed = sum(case.weight for case in cases if case.key(settings) in done)
    for case in cases:
        key = case.key(settings)
        if key in done:
            continue
        yield Step(case.title, passed, total)
        found = case.measure()
        shared = {"case": key, "of": len(found), "experiment": case.experiment}
        settled = {"dtype": settings.dtype_name, "quick": settings.quick}
        rows.append(path, [{**shared, **settled, **case.fields, **r, **origin} for r in found])
        passed += case.weight
    yield Step("done", total, total)


def recorded(path: Path, origin: Row) -> list[Row]:
    """The rows that a file holds, none where there is no file.

    Raises:
        ValueError: they are of another environment, with which new ones must not mix.
    """
    known = rows.load(path)[0] if path.exists() else []
    phrases = rows.differences(known, origin)
    if phrases:
        raise ValueError(
            f"{path} was measured elsewhere ({'; '.join(phrases)}): name another file with "
            "--output, or start it anew with --fresh"
        )
    return known


def set_aside(path: Path) -> Path | None:
    """Rename an existing file of rows to the first of NAME.1.jsonl, NAME.2.jsonl, … not taken."""
    if not path.exists():
        return None
    count = 1
    while (other := path.with_suffix(f".{count}{path.suffix}")).exists():
        count += 1
    return path.rename(other)
