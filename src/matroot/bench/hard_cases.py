"""Violations as small files: saved with every bit, minimised, and examined again."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from matroot import files
from matroot.bench.hard import METHOD_OPTIONS, Findings, Subject, compute, examine
from matroot.bench.rows import DTYPES, numbers, storable, strict, whole

# Of one rule in one block; more of a kind tell nothing more.
SAVED = 2
# Seconds that minimising one may take.
_SECONDS = 10.0


@dataclass(frozen=True)
class Case:
    """Matrices that break a rule.

    Attributes:
        kind: the rule: see ``examine``.
        a: shape (b, n, n); more than one where only company shows it.
        subject: what they were given to.
        origin: seed, block, index and family; the size before minimising.
        seen: quantities of the first matrix, by name.
    """

    kind: str
    a: Tensor
    subject: Subject
    origin: dict[str, Any]
    seen: dict[str, float]


def cases(a: Tensor, subject: Subject, seen: Findings, origin: dict[str, Any]) -> Iterator[Case]:
    """The first violations of each kind of a block, minimised."""
    for kind, bad in seen.violations.items():
        for index in bad.nonzero().flatten()[:SAVED].tolist():
            small = minimised(a, index, subject, kind)
            found = examine(small, subject)
            yield Case(
                kind,
                small,
                subject,
                {**origin, "index": index, "n": a.shape[-1]},
                {name: float(x[0]) for name, x in found.quantities.items()},
            )


def minimised(a: Tensor, index: int, subject: Subject, kind: str) -> Tensor:
    """Fewer, smaller and simpler matrices that break the same rule, shape (b, n, n)."""
    end = time.monotonic() + _SECONDS

    def fails(x: Tensor) -> bool:
        if time.monotonic() > end or not torch.isfinite(x).all():
            return False
        found = examine(x, subject).violations.get(kind)
        return found is not None and bool(found.any())

    found = a[index : index + 1]
    if not fails(found):
        # It takes company: halve that while it still fails.
        found = a
        while len(found) > 2:
            half = len(found) // 2
            smaller = next((x for x in (found[:half], found[half:]) if fails(x)), None)
            if smaller is None:
                break
            found = smaller
    for step in (_smaller, _simpler):
        while (better := next((x for x in step(found) if fails(x)), None)) is not None:
            found = better
    return found.clone()


def _smaller(a: Tensor) -> Iterator[Tensor]:
    """Leading and trailing principal submatrices."""
    n = a.shape[-1]
    for m in dict.fromkeys((n // 2, 3 * n // 4, n - 1)):
        if 0 < m < n:
            yield a[:, :m, :m]
            yield a[:, n - m :, n - m :]


def _simpler(a: Tensor) -> Iterator[Tensor]:
    """Entries of few bits; small ones as zero; the diagonal alone. Each only where it changes A."""
    attempts: list[Callable[[Tensor], Tensor]] = [
        lambda x: torch.diag_embed(x.diagonal(dim1=-2, dim2=-1)),
        *(lambda x, bits=bits: _few_bits(x, bits) for bits in (2, 4, 8, 12, 16, 24, 32)),
    ]
    for attempt in attempts:
        x = attempt(a)
        if not torch.equal(x, a):
            yield x


def _few_bits(a: Tensor, bits: int) -> Tensor:
    """Entries rounded to so many bits."""
    if a.is_complex():
        return torch.complex(_few_bits(a.real, bits), _few_bits(a.imag, bits))
    mantissa, exponent = torch.frexp(a.double())
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent).to(a.dtype)


def save(case: Case, folder: Path) -> Path:
    """Write the file; its name tells the rule, the block and the matrix."""
    words = "-".join("".join(c for c in case.kind if c.isalnum() or c == " ").split())
    origin = case.origin
    path = folder / f"{words}-{origin['seed']}-{origin['block']}-{origin['index']}.json"
    raw = bytes(case.a.contiguous().reshape(-1).view(torch.uint8).tolist())
    content = {
        "kind": case.kind,
        "dtype": str(case.a.dtype).removeprefix("torch."),
        "shape": list(case.a.shape),
        "bits": raw.hex(),
        "method": case.subject.method,
        "backend": case.subject.backend,
        "cotangent": case.subject.seed,
        "origin": origin,
        "seen": case.seen,
    }
    folder.mkdir(parents=True, exist_ok=True)
    files.replace(path, json.dumps(storable(content), indent=1) + "\n")
    return path


def load(path: Path) -> Case:
    """The case of a file.

    Raises:
        ValueError: the file holds no case.
    """
    try:
        return _case(strict(path.read_text(encoding="utf-8")))
    # Deeply nested brackets exhaust the parser's stack.
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise ValueError(f"{path} holds no violation of matroot bench hard: {error}") from None


def _case(content: object) -> Case:
    """The case that is written so; ValueError where it is none."""
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, got {type(content).__name__}")
    for name, (fits, expected) in _FIELDS.items():
        if not fits(content.get(name)):
            raise ValueError(f"{name!r} must be {expected}, got {content.get(name)!r:.40}")
    dtype, shape = getattr(torch, content["dtype"]), content["shape"]
    raw, size = bytearray.fromhex(content["bits"]), math.prod(shape) * dtype.itemsize
    if len(raw) != size:
        raise ValueError(f"'bits' must be {size} bytes, got {len(raw)}")
    a = torch.frombuffer(raw, dtype=dtype).view(shape).clone()
    if not a.isfinite().all():
        raise ValueError("'bits' must be finite numbers")
    subject = Subject(content["method"], content["backend"], content["cotangent"])
    return Case(content["kind"], a, subject, content["origin"], content["seen"])


def _is_shape(x: object) -> bool:
    return (
        isinstance(x, list) and len(x) == 3 and all(map(whole, x)) and min(x) > 0 and x[1] == x[2]
    )


# Of a file. Lists, since what is looked for in them may be anything.
_METHODS, _BACKENDS = list(METHOD_OPTIONS), ["native", "torch"]
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (lambda x: isinstance(x, str), "a string"),
    "dtype": (lambda x: x in DTYPES, f"one of {', '.join(DTYPES)}"),
    "shape": (_is_shape, "[matrices, n, n]"),
    "bits": (lambda x: isinstance(x, str), "a string"),
    "method": (lambda x: x in _METHODS, f"one of {', '.join(_METHODS)}"),
    "backend": (lambda x: x in _BACKENDS, " or ".join(_BACKENDS)),
    # The seed of a generator.
    "cotangent": (whole, "a whole number of 63 bits"),
    "origin": (lambda x: isinstance(x, dict), "an object"),
    "seen": (
        lambda x: isinstance(x, dict) and numbers([y for y in x.values() if y is not None]),
        "an object of numbers",
    ),
}


@dataclass(frozen=True)
class Replay:
    """What is seen of a case now.

    Attributes:
        findings: of every matrix.
        certified: bounds of the relative errors of both roots of the first matrix, by balls; None
            without python-flint, for n > 32, or where A is not certified to be positive definite.
    """

    findings: Findings
    certified: dict[str, tuple[float, float]] | None


def replay(case: Case) -> Replay:
    """Examine the matrices of a case again."""
    certified = None
    if case.a.shape[-1] <= 32:
        try:
            from matroot.bench.hard_balls import enclosed

            truth = enclosed(case.a[0])
            found = compute(case.a[:1], case.subject)
            roots = {"sqrt": found.sqrt[0], "inv_sqrt": found.inv_sqrt[0]}
            certified = {k: truth.error(x, k) for k, x in roots.items() if x.isfinite().all()}
        except (ImportError, ValueError, ZeroDivisionError):
            certified = None
    return Replay(examine(case.a, case.subject), certified)
