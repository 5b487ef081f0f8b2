"""Rows of measurements: JSON lines that survive an interrupted run and say where they come from."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import matroot
from matroot.bench.hard_families import FAMILIES
from matroot.files import named

Row = dict[str, Any]
"""One candidate on one case: numbers, names, and the provenance of the measurement."""

# Rows are comparable where these agree; the rest of the provenance is for the reader.
ENVIRONMENT = ("matroot", "commit", "torch", "device_name", "threads")


def provenance(device: torch.device) -> Row:
    """Versions, machine and commit, for every row.

    The commit is that of matroot's own checkout, ``None`` where it runs from an installed package;
    "+" follows it where the sources have changes that are not committed.
    """
    return {
        "matroot": matroot.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    """The model of a GPU, or of the CPU where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    source = Path(matroot.__file__).parent

    def git(*arguments: str) -> subprocess.CompletedProcess[str] | None:
        try:
            return subprocess.run(
                ["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.TimeoutExpired):
            return None

    # A package installed inside some other project's checkout is not tracked there.
    tracked = git("ls-files", "--error-unmatch", "__init__.py")
    head = git("rev-parse", "--short", "HEAD")
    if tracked is None or tracked.returncode or head is None or head.returncode:
        return None
    clean = git("diff", "--quiet", "HEAD", "--", str(source))
    return head.stdout.strip() + ("" if clean is not None and clean.returncode == 0 else "+")


def append(path: Path, rows: Sequence[Row]) -> None:
    """Add rows in one write that has reached the disk when this returns.

    Numbers that ``load`` would refuse become null, control characters become �. An unfinished last
    line, of a run that was killed, is ended first, so that only that line is lost.
    """
    text = "".join(json.dumps(storable(row), ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("a+b") as file:
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise named(error, path) from None


def storable(value: Any) -> Any:
    """The value, with what ``strict`` would refuse as null or �."""
    # NaN as well: it is no number that is at most so large.
    if isinstance(value, float) and not abs(value) <= LARGEST:
        return None
    if isinstance(value, str):
        return _UNSHOWN.sub("�", value)
    if isinstance(value, dict):
        return {key: storable(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [storable(x) for x in value]
    return value


# A terminal would obey them; and halves of characters, which no text in UTF-8 has.
_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def load(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a file, the newest of each case and candidate, and what was wrong with it.

    Fields that a row does not have are None. A line that is no row is skipped; the second result
    names the file, the line and the reason.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; expected a file of rows")
    found: dict[tuple[str, str], Row] = {}
    complaints = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = strict(line.decode())
            _check(row)
        # Deeply nested brackets exhaust the parser's stack.
        except (ValueError, RecursionError) as error:
            complaints.append(f"{path}, line {number}: skipped, {error}")
            continue
        found.pop((row["case"], row["candidate"]), None)
        found[row["case"], row["candidate"]] = {**dict.fromkeys(FIELDS), **row}
    return list(found.values()), complaints


def strict(text: str) -> Any:
    """What JSON of a stranger holds: finite numbers, and texts that can be shown as they are.

    Raises:
        ValueError: it holds something else.
        RecursionError: it is nested too deep.
    """
    value = json.loads(
        text,
        parse_constant=_no_constant,
        parse_int=lambda digits: _in_range(int(digits)),
        parse_float=lambda digits: _in_range(float(digits)),
    )
    _check_texts(value)
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _in_range(x: float) -> float:
    """X; ValueError where it is no number of double precision, or nearly.

    A whole number that 64 bits do not hold, which NumPy would leave a Python object, as a float.
    """
    if abs(x) > LARGEST:
        raise ValueError(f"a number is beyond {LARGEST:.0e}")
    return x if abs(x) < 2**63 else float(x)


def _check_texts(value: object) -> None:
    """Raise ValueError for texts that cannot be shown as they are."""
    if isinstance(value, str) and _UNSHOWN.search(value):
        raise ValueError(f"control characters in {value!r:.60}")
    if isinstance(value, dict):
        for pair in value.items():
            _check_texts(list(pair))
    elif isinstance(value, list):
        for x in value:
            _check_texts(x)


def _check(row: object) -> None:
    """Raise ValueError unless this is a row that the report can rely on."""
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {type(row).__name__}")
    for name in ("case", "experiment", "candidate"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"field {name!r} must be a string, got {row.get(name)!r:.40}")
    if not whole(row.get("of")):
        raise ValueError(f"field 'of' must be a whole number, got {row.get('of')!r:.40}")
    for name in REQUIRED.get(row["experiment"], ()):
        if row.get(name) is None:
            raise ValueError(f"field {name!r} is missing from a row of {row['experiment']!r}")
    for name, (kinds, expected) in FIELDS.items():
        value = row.get(name)
        # In Python bool is a subclass of int.
        if value is not None and (
            not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool)
        ):
            raise ValueError(f"field {name!r} must be {expected} or null, got {value!r:.40}")
    # It is shown as a power of ten.
    if row.get("cond") is not None and row["cond"] < 1 / LARGEST:
        raise ValueError(f"field 'cond' must be positive, got {row['cond']!r:.40}")
    for phase, triple in (row.get("ms") or {}).items():
        if not numbers(triple) or len(triple) != 3 or min(triple) < 1 / LARGEST:
            raise ValueError(f"ms[{phase!r}] must be three positive numbers, got {triple!r:.60}")
    if row["experiment"] == "hard":
        _check_hard(row)
    if row["experiment"] in SCALED:
        _check_scaled(row)
    for kind, sent in (row.get("traffic") or {}).items():
        parts = [sent.get(name) for name in SENT] if isinstance(sent, dict) else None
        if not numbers(parts):
            raise ValueError(f"traffic[{kind!r}] must hold {', '.join(SENT)}, got {sent!r:.60}")
    if row.get("loads") is not None and not (numbers(row["loads"]) and row["loads"]):
        raise ValueError(f"loads must be numbers, got {row['loads']!r:.60}")
    curve = row.get("curve")
    if curve is not None:
        x, y = curve.get("x"), curve.get("y")
        if not (numbers(x) and numbers(y) and len(x) == len(y)):
            raise ValueError("curve must hold two lists of numbers, x and y, of one length")
        if row["experiment"] == "scalar" and min(x, default=1) < 1 / LARGEST:
            raise ValueError("curve must hold positive x, of which there are roots")


def _check_scaled(row: Row) -> None:
    """What the report and its model need of a row of several processes."""
    phase = "busiest" if row["experiment"] == "balance" else "call"
    if row.get("ms") and phase not in row["ms"]:
        raise ValueError(f"field 'ms' must have the phase {phase!r}")
    sent = row.get("traffic") or {}
    if unknown := set(sent) - set(COLLECTIVES):
        raise ValueError(f"traffic must be of {', '.join(COLLECTIVES)}, got {unknown!r:.60}")
    if row["experiment"] == "collectives" and row.get("operation") not in sent:
        raise ValueError(f"traffic must hold the operation, {row.get('operation')!r:.40}")


def _check_hard(row: Row) -> None:
    """What the report needs of a block of hard matrices: known names, counts, histograms."""
    for name, known in (("dtype", DTYPES), ("family", FAMILIES)):
        if row[name] not in known:
            raise ValueError(f"field {name!r} must be a known one, got {row[name]!r:.40}")
    # In rows of other experiments this is what the matrices are.
    if not whole(row["matrices"]):
        raise ValueError(f"field 'matrices' must be a whole number, got {row['matrices']!r:.40}")
    if not all(map(whole, row["violations"].values())):
        raise ValueError(f"violations must be whole numbers, got {row['violations']!r:.60}")
    for name, found in row["ratios"].items():
        if not _histogram(found):
            raise ValueError(
                f"ratios[{name!r}] must hold a count, the largest number (max) and bins that add "
                f"up to the count, got {found!r:.60}"
            )


def _histogram(found: object) -> bool:
    if not isinstance(found, dict):
        return False
    bins, most = found.get("bins"), found.get("max", "")
    return (
        isinstance(bins, dict)
        # Tenths of decades: powers of ten beyond these are no numbers.
        and all(re.fullmatch("-?[0-9]{1,3}", name) for name in bins)
        and all(map(whole, bins.values()))
        and whole(found.get("count"))
        and sum(bins.values()) == found["count"]
        and (most is None or (numbers([most]) and most >= 0))
    )


def whole(value: object) -> bool:
    """Whether it is a whole number, 0 or more; in Python bool is a subclass of int."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def numbers(value: object) -> bool:
    """Whether it is a list of numbers."""
    return isinstance(value, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in value
    )


# Of the numbers in rows.
LARGEST = 1e300
# In the order of tables.
DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")

# What a row says of each kind of collective.
SENT = ("calls", "messages", "bytes")
COLLECTIVES = ("all_reduce", "all_gather", "broadcast", "reduce")
# The experiments with several processes.
SCALED = ("collectives", "map", "whitening", "huge", "balance")

# Fields that the report needs of a row, by experiment.
REQUIRED: dict[str, tuple[str, ...]] = {
    "headline": ("application", "batch", "n", "root"),
    "batch": ("batch", "n", "root"),
    "size": ("n", "root"),
    "condition": ("cond", "n", "root"),
    "degree": ("x", "root"),
    "mae": ("n",),
    "scalar": ("curve", "root"),
    "convergence": ("curve", "cond"),
    "lyapunov": ("cond",),
    "capability": ("probe", "question", "answer"),
    "accuracy": ("cond", "root", "dtype"),
    "speed": ("batch", "n", "root"),
    "collectives": ("operation", "size", "ms", "traffic"),
    "map": ("ranks", "traffic"),
    "whitening": ("ranks", "traffic"),
    "huge": ("ranks", "traffic", "n"),
    "hard": ("family", "dtype", "method", "backend", "matrices", "ratios", "violations"),
    "balance": ("ranks", "loads", "spread", "spread_by_formula"),
}

_NUMBER = ((int, float), "a number")
_TEXT = (str, "a string")
# Fields that the report computes with; it shows others as text.
FIELDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("batch", "n", "cond", "x", "threads", "memory", "input"), _NUMBER),
    **dict.fromkeys(("error", "gradient_error", "gate", "mae"), _NUMBER),
    **dict.fromkeys(
        ("ranks", "size", "local_ms", "panel_ms", "spread", "spread_by_formula"), _NUMBER
    ),
    **dict.fromkeys(("block", "failed"), _NUMBER),
    **dict.fromkeys(("ms", "curve", "traffic", "ratios", "violations"), (dict, "an object")),
    "loads": (list, "a list"),
    **dict.fromkeys(("passed", "quick"), (bool, "true or false")),
    **dict.fromkeys(("why", "root", "dtype", "family", "application", "matroot", "commit"), _TEXT),
    **dict.fromkeys(("torch", "device_name", "measured"), _TEXT),
    **dict.fromkeys(("method", "backend", "operation"), _TEXT),
    **dict.fromkeys(("answer", "probe", "question", "version"), _TEXT),
}


def finished(rows: Iterable[Row]) -> set[str]:
    """The cases that are complete."""
    seen: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for row in rows:
        seen[row["case"]] = seen.get(row["case"], 0) + 1
        wanted[row["case"]] = row["of"]
    return {case for case, count in seen.items() if count >= wanted[case]}


def differences(rows: Iterable[Row], origin: Row) -> list[str]:
    """How the environment of these rows differs from the present one, one phrase each."""
    phrases = []
    for name in ENVIRONMENT:
        others = sorted({str(row.get(name)) for row in rows} - {str(origin.get(name))})
        if others:
            phrases.append(f"{name} {', '.join(others)} there, {origin.get(name)} here")
    return phrases


def pick(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """The rows with these fields."""
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]
