"""What is fed with bytes: each target takes any, and ends, or raises what no user should see.

An error that is documented is not one of these: it is caught here, and must be one line. See
``engine.py``, which looks for bytes that break a target, and ``test_seeds.py``.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

import matroot
from matroot import cli
from matroot.bench import cases, compare, report  # noqa: F401  (so that an engine can watch them)
from matroot.recipes import clips, commands, data, images, layouts, stylize, trained
from matroot.recipes import compare as comparison
from matroot.recipes.catalogue import APPLICATIONS
from matroot.recipes.training import loop
from matroot.recipes.training.configuration import load_config
from matroot.recipes.training.folder import RunFolder, read_checkpoint, read_json


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """An empty folder to work in; what is printed, or warned of, is not shown."""
    before = Path.cwd()
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


@contextlib.contextmanager
def _one_line(*kinds: type[Exception]) -> Iterator[None]:
    """Catches errors of these kinds."""
    try:
        yield
    except kinds as error:
        if "\n" in str(error) or not str(error):
            raise AssertionError(f"an error of {str(error).count(chr(10)) + 1} lines") from error


def _command(*arguments: str) -> None:
    """``matroot …``, which ends with a status or one line."""
    sys.argv = ["matroot", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        if isinstance(end.code, str) and ("\n" in end.code or not end.code.startswith("matroot: ")):
            raise AssertionError("not one line of matroot's") from end


def rows(given: bytes) -> None:
    """Rows of a benchmark, reported and compared."""
    # Plots are laid out, but drawing them would take most of the time.
    with _folder() as folder, mock.patch("matplotlib.figure.Figure.savefig"):
        (folder / "a.jsonl").write_bytes(given)
        _command("bench", "report", "a.jsonl", "-o", "report")
        _command("bench", "compare", "a.jsonl", "a.jsonl", "--all")


def configurations(given: bytes) -> None:
    """The configuration of an application, and a change by ``--set``, the last line."""
    with _folder() as folder, _one_line(ValueError):
        name = APPLICATIONS[given[0] % len(APPLICATIONS)] if given else "dbn"
        text, _, change = given[1:].rpartition(b"\n")
        (folder / "c.yaml").write_bytes(text)
        changes = commands._changes([change.decode(errors="replace")] if change else None, None)
        settings = load_config(name, "c.yaml", changes)
        commands._refuse_without_effect(settings.without_effect(), changes)
        settings.model_dump(mode="json")


def checkpoints(given: bytes) -> None:
    """A checkpoint, and the files beside it."""
    with _folder() as folder:
        (folder / "last.ckpt").write_bytes(given)
        with _one_line(ValueError):
            assert isinstance(read_checkpoint(folder / "last.ckpt"), dict)


ASKED = {"application": "dbn", "method": "auto", "seed": 0, "config": {"epochs": 2}}


def runs(given: bytes) -> None:
    """The folder of a run: its description, continued and used."""
    with _folder() as folder:
        (folder / "run.json").write_bytes(given)
        (folder / "last.ckpt").write_bytes(b"")
        run = RunFolder(folder)
        with _one_line(ValueError):
            read_json(folder / "run.json")
        with _one_line(ValueError):
            run.check_data(run.earlier_run(ASKED), [2, 1, 2], ["a", "b"], None)
        with _one_line(ValueError):
            trained.load(folder, "cpu")


_LISTS = {
    "cub": ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
    "hmdb51": tuple(
        f"testTrainMulti_7030_splits/{name}_test_split1.txt" for name in ("hit", "wave")
    ),
    "ucf101": tuple(
        f"ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")
    ),
    "aircraft": tuple(
        f"fgvc-aircraft-2013b/data/{name}.txt"
        for name in ("variants", "images_variant_trainval", "images_variant_test")
    ),
}


def lists(given: bytes) -> None:
    """The lists of a data set, with zeros between them; the first byte says which."""
    name = sorted(_LISTS)[given[0] % len(_LISTS)] if given else "cub"
    with _folder() as root, _one_line(ValueError):
        parts = given[1:].split(b"\0")
        for i, file in enumerate(_LISTS[name]):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(parts[i] if i < len(parts) else b"")
        for place in ("images", "fgvc-aircraft-2013b/data/images"):
            (root / place).mkdir(parents=True, exist_ok=True)
        for place in ("UCF-101/a/v.avi", "UCF-101/b/v.avi", "hit/a.avi", "wave/b.avi"):
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).touch()
        if name in ("cub", "aircraft"):
            split = getattr(data, name)(root, None, None)
        else:
            split = getattr(clips, name)(root, 3, 1, None, None)
        for part in (split.training, split.test):
            _inside(root, getattr(part, "items", []), split.classes)


def own_lists(given: bytes) -> None:
    """A list of one's own data, beside some pictures."""
    with _folder() as root, _one_line(ValueError):
        (root / "list.csv").write_bytes(given)
        for name in ("1.png", "2.png", "a, b.png"):
            (root / name).touch()
        found = layouts.find(root, layouts.PICTURES)
        assert found.training
        assert found.test
        assert not set(found.training) & set(found.test)
        _inside(root, found.training + found.test, found.classes)


def _inside(root: Path, items: Sequence[tuple[Path, int]], classes: Sequence[str]) -> None:
    for path, label in items:
        assert path.resolve().is_relative_to(root.resolve())
        assert 0 <= label < len(classes)


def pictures(given: bytes) -> None:
    """A picture."""
    with _folder() as folder, _one_line(ValueError):
        (folder / "picture").write_bytes(given)
        colors, alpha = images.load_image(folder / "picture")
        assert colors.dtype == torch.uint8
        assert colors.ndim == 3
        assert alpha is None or alpha.shape == colors.shape[1:]


def videos(given: bytes) -> None:
    """A video."""
    with _folder() as folder, _one_line(ValueError):
        (folder / "video.avi").write_bytes(given)
        clip = clips.Clips([(folder / "video.avi", 0)], 3, lambda x: x, training=False)[0][0]
        assert clip.shape[:2] == (3, 3)


_WORDS = (
    *("demo", "stylize", "train", "compare", "bench", "paper", "peers", "scale", "report"),
    *("--help", "--version", "--output", "-o", "--eps", "--method", "--strength", "--patch"),
    *("--set", "--config", "small", "--data-root", "--seed", "--gradient", "--seeds", "--only"),
    *("--methods", "--network", "--texture", "--precision", "--devices", "--accelerator"),
    *("auto", "eigh", "dbn", "gcp", "style", "video", "sovit", "cpu", "--quick", "--fresh"),
    *("a.png", "b.png", "out.png", "0", "1", "-1", "nan", "1e999", "epochs=1", "eps=0", "rows"),
    *("predict", "evaluate", "--all", "--top", "--style", "--device", "out.csv"),
)


@contextlib.contextmanager
def _without_work() -> Iterator[None]:
    """Commands check their arguments, but what takes long is left out."""
    with contextlib.ExitStack() as stack:
        nothing: Callable[..., Any] = lambda *_, **__: []  # noqa: E731
        for module, name in ((cases, "run"), (comparison, "compare")):
            stack.enter_context(mock.patch.object(module, name, nothing))
        for module, name in ((stylize, "stylize"), (images, "photograph"), (loop, "_fit")):
            stack.enter_context(mock.patch.object(module, name, _stop))
        yield


def _stop(*_: Any, **__: Any) -> None:
    raise SystemExit(0)


def arguments(given: bytes) -> None:
    """A command line: each byte a word that the commands know, or after a 255 one letter by letter.

    Words end at a zero.
    """
    words: list[str] = []
    letters = iter(given[:400])
    for byte in letters:
        if byte < 255:
            words.append(_WORDS[byte % len(_WORDS)])
        else:
            word = bytes(iter(lambda: next(letters, 0), 0))
            words.append(word.decode("utf-8", errors="surrogateescape"))
    # A run of its own would be trained for the answer.
    with _folder() as folder, _without_work():
        pixels = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
        for name in ("a.png", "b.png"):
            Image.fromarray(pixels).save(folder / name)
        (folder / "rows").write_text("")
        _command(*words)


_FUNCTIONS: tuple[Callable[..., Any], ...] = (
    lambda a, **k: matroot.sqrtm_ex(a, root="both", **k)[:2],
    lambda a, **k: (matroot.sqrtm(a, **k),),
    lambda a, **k: matroot.sqrtm_pair(a, **k),
    lambda a, **k: (matroot.inv_sqrtm(a, singular="pinv", **k),),
    lambda a, **k: (matroot.powm(a, 0.3, **k),),
    lambda a, **k: (matroot.logm(a, **k),),
    lambda a, **k: (matroot.expm(a, **k),),
    lambda a, **k: (matroot.bures_wasserstein_distance(a, a.flip(0), squared=True),),
)
_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.complex64, torch.complex128),
)


def tensors(given: bytes) -> None:
    """Matrices with any strides and any bits, given to the public functions."""
    head, bits = (given[:12] + bytes(12))[:12], given[12:]
    function, n, count = _FUNCTIONS[head[0] % len(_FUNCTIONS)], 1 + head[1] % 9, head[2] % 5
    dtype = _DTYPES[head[3] % len(_DTYPES)]
    size = dtype.itemsize
    # A Gram matrix of small numbers, into which the bits are laid from some place on.
    torch.manual_seed(head[4])
    x = torch.randn(count, n, n).to(torch.complex64 if dtype.is_complex else torch.float32)
    a = ((x @ x.mH + torch.eye(n)) * 2.0 ** (head[5] % 16 - 8)).to(dtype)
    if count and bits:
        raw = a.reshape(-1).view(torch.uint8).clone()
        start = head[6] * size % raw.numel()
        new = torch.frombuffer(bytearray(bits[: raw.numel() - start]), dtype=torch.uint8)
        raw[start : start + new.numel()] = new
        a = raw.view(dtype).reshape(count, n, n)
        if head[7] & 1:
            a = torch.triu(a) + torch.triu(a, 1).mH
    strided = _laid_out(a, head[8])
    backend = ("auto", "torch", "native")[head[9] % 3]
    options = {} if head[0] % len(_FUNCTIONS) == 7 else {"backend": backend}
    before = strided.clone()
    with (
        warnings.catch_warnings(),
        contextlib.suppress(torch.linalg.LinAlgError, ValueError),
    ):
        warnings.simplefilter("ignore")
        found = function(strided, **options)
        assert _same(strided, before), "the input has changed"
        for result, other in zip(found, function(a.contiguous(), **options), strict=True):
            assert result.dtype == dtype or head[0] % len(_FUNCTIONS) == 7
            assert _same(result, other), "the strides matter"


def _laid_out(a: torch.Tensor, how: int) -> torch.Tensor:
    """The same numbers with other strides."""
    count, n = a.shape[0], a.shape[1]
    if how % 5 == 1:
        return a.mT.contiguous().mT
    if how % 5 == 2:
        wide = a.new_zeros(count, n + 3, n + 2)
        wide[:, 1 : n + 1, 2:] = a
        return wide[:, 1 : n + 1, 2:]
    if how % 5 == 3:
        return a.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    if how % 5 == 4:
        spread = a.new_zeros(count, 2 * n, 2 * n)
        spread[:, ::2, ::2] = a
        return spread[:, ::2, ::2]
    return a


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return torch.equal(torch.isnan(x), torch.isnan(y)) and torch.equal(
        torch.nan_to_num(x), torch.nan_to_num(y)
    )


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(rows, configurations, checkpoints, runs, lists, own_lists, pictures, videos),
        *(arguments, tensors),
    )
}
