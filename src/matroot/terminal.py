"""What all commands share: missing packages, progress bars, places to write, interruption."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

INTERRUPTED, TERMINATED = 130, 143
"""What a shell gives a program that SIGINT or SIGTERM has ended."""

_coming, _ending = threading.Event(), threading.Event()
"""Whether a dropped Ctrl-C is about to come again, and whether one has already been told."""


def missing(what: str, error: ModuleNotFoundError, extras: str) -> SystemExit:
    """The exit to raise where a package is missing: one line that says how to install it."""
    return SystemExit(
        f"matroot: {what} needs {error.name}; in a clone of matroot run: pip install '.[{extras}]'"
    )


def interrupted(more: str = "", code: int = INTERRUPTED) -> SystemExit:
    """The exit to raise after Ctrl-C or SIGTERM: one line on stderr, and the shell's status."""
    _ending.set()
    print("matroot: interrupted" + (f"; {more}" if more else ""), file=sys.stderr, flush=True)
    return SystemExit(code)


def repeat_lost_interruptions() -> None:
    """Let Ctrl-C come again where Python has dropped it; several at once come as one.

    An exception that rises in ``__del__``, or in the callback of a weak reference, is printed and
    then ignored; the program would go on as if nothing had been pressed. Those that come while it
    ends, after `interrupted`, have nothing left to stop.
    """
    sys.unraisablehook = _unraisable


def _unraisable(dropped: sys.UnraisableHookArgs) -> None:
    if not issubclass(dropped.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(dropped)
    elif not (_coming.is_set() or _ending.is_set()):
        _coming.set()
        # Later, and from another thread: raised in here it would be dropped as well.
        again = threading.Timer(0.05, _interrupt)
        again.daemon = True
        again.start()


def _interrupt() -> None:
    _coming.clear()
    if not _ending.is_set():
        os.kill(os.getpid(), signal.SIGINT)


def one_line(text: str) -> str:
    """A text on one line, control characters written out: files of strangers may name things so."""
    flat = " ".join(text.split())
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], flat)


@functools.cache
def console() -> Console:
    """Where results go: stdout, with tables and colours on a terminal."""
    from rich.console import Console

    # A file or a pipe has no width; rich would fold tables into 80 columns.
    return Console() if sys.stdout.isatty() else Console(width=160)


@contextmanager
def progress(*, clock: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr; stdout holds only results.

    Args:
        clock: show the elapsed time, and a percentage instead of a count.
    """
    from rich import progress as bars
    from rich.console import Console

    columns: tuple[bars.ProgressColumn, ...] = (
        bars.TextColumn("{task.description:<32}" if clock else "{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn() if clock else bars.MofNCompleteColumn(),
    )
    if clock:
        columns += (bars.TimeElapsedColumn(), bars.TextColumn("left"))
    with bars.Progress(*columns, bars.TimeRemainingColumn(), console=Console(stderr=True)) as shown:
        yield shown


@contextmanager
def working(what: str) -> Iterator[None]:
    """Say on stderr what is being done; on a terminal the line disappears afterwards."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{what} …", markup=False, soft_wrap=True)
        yield
        return
    with console.status(f"{what} …"):
        yield


def check_folder(folder: Path) -> None:
    """Check that results can be written into a folder, before a long computation; create nothing.

    Args:
        folder: where it does not exist, its lowest existing parent is checked.

    Raises:
        ValueError: no file can be written there.
    """
    lowest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        # By trying: permissions say nothing of disks that are full or read-only.
        with tempfile.TemporaryFile(dir=lowest):
            pass
    except OSError as error:
        raise ValueError(f"{folder}: cannot be written ({lowest}: {error.strerror})") from None


def check_file(path: Path) -> None:
    """The same for a file; an existing one is not changed."""
    if not path.exists():
        check_folder(path.parent)
        return
    if not path.is_file():
        # A pipe, which opening would wait for, a device or a folder.
        raise ValueError(f"{path}: cannot be written (not a regular file)")
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from None
