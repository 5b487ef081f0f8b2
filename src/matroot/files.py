"""Files of results: whole, or as they were before; and written by one run at a time."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file beside ``path``, which takes its place when all is written.

    A full disk, an error or a killed process leaves ``path`` as it was. A link of that name is
    replaced; what it leads to is not written.

    Raises:
        OSError: it cannot be written; the error names ``path``.
    """
    fresh = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
    try:
        for left in path.parent.glob(f".{escape(path.stem)}.*.part{escape(path.suffix)}"):
            left.unlink(missing_ok=True)  # By a process that was killed.
        # Made here, and not opened where something of that name is: it might be a link.
        fresh.touch(exist_ok=False)
        yield fresh
        with fresh.open("r+b") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(fresh)):
            raise named(error, path) from None
        raise


def replace(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file anew, text in UTF-8; see ``replacing``."""
    with replacing(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


def named(error: OSError, path: Path) -> OSError:
    """The error, saying which file it is about: a write to a full disk does not."""
    return error if error.errno is None else OSError(error.errno, error.strerror, str(path))


@contextmanager
def held(results: Path, lock: Path) -> Iterator[None]:
    """Keep every other run away from a file or a folder of results.

    The operating system holds the lock, and lets go of it however this process ends. Folders that
    are made for it are removed again where nothing else has been written into them.

    Args:
        results: what is kept.
        lock: an empty file for it.

    Raises:
        ValueError: another run holds it.
    """
    from filelock import FileLock, Timeout

    made = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = FileLock(lock)
    try:
        try:
            holder.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"{results}: another run is writing there; wait for it, or choose another --output"
            ) from None
        except NotImplementedError:
            pass  # Some network file systems have no locks.
        yield
    finally:
        with suppress(OSError):
            if made and list(lock.parent.iterdir()) == [lock]:
                lock.unlink()
                for folder in made:
                    folder.rmdir()
        holder.release()
