"""What comes from strangers and tries to do more than it may: see docs/security.md."""

import ast
import json
import os
import pickle
import re
import struct
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image, features

from bench.examples import row
from matroot import cli
from matroot.bench import report, rows
from matroot.recipes import dbn, images
from matroot.recipes.data import inside
from matroot.recipes.images import load_image
from matroot.recipes.training.configuration import load_config
from matroot.recipes.training.folder import read_checkpoint, read_json
from matroot.terminal import one_line

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/security.md"


def test_every_limit_on_the_page_has_its_test():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text())
    assert len(named) >= 20
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text())
        assert test in {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}, (file, test)


class _Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("kind", ["pickle", "torch.save", "legacy"])
def test_no_code_of_a_checkpoint_is_run(kind, protocol, tmp_path):
    file, trace = tmp_path / "last.ckpt", tmp_path / "trace"
    content = {"state_dict": {}, "epoch": 1, "loops": {}, "pytorch-lightning_version": "2.6"}
    content["attack"] = _Attack(trace)
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content, protocol))
    else:
        zipped = kind == "torch.save"
        torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"last\.ckpt: expected a checkpoint"):
        read_checkpoint(file)
    assert not trace.exists()
    if zipped := kind == "torch.save":
        torch.load(file, weights_only=False)
    assert trace.exists() == zipped  # It would have.


def test_nothing_compressed_is_unpacked_from_a_checkpoint(tmp_path):
    whole, bomb = tmp_path / "whole.ckpt", tmp_path / "bomb.ckpt"
    content = {"epoch": 1, "loops": {}, "pytorch-lightning_version": "2.6"}
    torch.save({**content, "state_dict": {"x": torch.zeros(2_000_000)}}, whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    assert bomb.stat().st_size < whole.stat().st_size / 100
    assert read_checkpoint(whole)["epoch"] == 1
    with pytest.raises(ValueError, match="expected a checkpoint"):
        read_checkpoint(bomb)


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [{trace}]",
        "!!python/object/new:os.system [mkdir {trace}]",
        "data: !!python/name:os.system",
        "[" * 1500,
        "epochs: " + 5000 * "9",
        "? {a: 1}\n: 2",
        "backbone: hf-hub:someone/model",
        "backbone: local-dir:/tmp/model",
        "backbone: ../model",
        # Ten levels of ten aliases each.
        "a0: &a0 [1]\n"
        + "".join(f"a{i}: &a{i} [{', '.join(10 * [f'*a{i - 1}'])}]\n" for i in range(1, 11)),
        "widths: &w [*w]",
    ],
    ids=range(11),
)
def test_a_configuration_is_data(text, tmp_path):
    trace = tmp_path / "trace"
    file = tmp_path / "own.yaml"
    file.write_text(text.replace("{trace}", str(trace)))
    with pytest.raises(ValueError, match=r"own\.yaml") as raised:
        load_config("gcp", str(file), {"data": "textures"})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 10_000
    assert not trace.exists()


@pytest.mark.parametrize(
    "line",
    [
        json.dumps(row()).replace("1e-07", "1e999"),
        json.dumps(row()).replace('"n": 8', '"n": ' + 400 * "9"),
        json.dumps(row()).replace('"n": 8', '"n": ' + 9000 * "9"),
        json.dumps(row(error=float("-inf"))),
        json.dumps(row("\x1b]0;title\x07")),
        json.dumps(row(**{"a\x9bkey": 1})),
        json.dumps(row("half \ud83d of a character")),
        json.dumps(row(deep=1)).replace('"deep": 1', f'"deep": {900 * "["}{900 * "]"}'),
        '{"a":' * 100_000,
    ],
    ids=range(9),
)
def test_a_row_is_numbers_and_printable_text(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n" + json.dumps(row()) + "\n")
    found, complaints = rows.load(path)
    # Deep brackets are harmless where the parser has room for them.
    assert len(found) == 1
    assert len(complaints) == ('"deep"' not in line) or "recursion" in complaints[0]
    assert all(len(complaint) < 1000 for complaint in complaints)
    assert one_line("".join(complaints)) == " ".join("".join(complaints).split())


def test_rows_of_ones_own_can_be_read_whatever_an_error_says(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.append(path, [row(why="\x1b[31mred\x1b[0m \ud83d"), row("other")])
    found, complaints = rows.load(path)
    assert complaints == []
    assert found[0]["why"] == "�[31mred�[0m �"


def test_rows_choose_no_file_name(tmp_path):
    evil = "../../../evil"
    made = [
        row(name, experiment=e, case=f"{e} {evil}", dtype=evil, application=evil, why=evil)
        for e in ("accuracy", "headline")
        for name in (evil, "<script>alert(1)</script>", "$\\frac{", "_hidden", "x" * 40)
    ]
    folder = tmp_path / "deep/page"
    written = report.write(made, [evil], folder)
    assert {path.resolve().parent for path in written} <= {folder, folder / "plots"}
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    drawn = "".join(path.read_text() for path in folder.glob("plots/*.svg"))
    assert "accuracy-" in "".join(path.name for path in written)
    assert "<script" not in drawn


def test_a_planted_link_is_not_followed(tmp_path):
    precious, folder = tmp_path / "precious", tmp_path / "page"
    precious.write_text("mine")
    folder.mkdir()
    for name in ("index.html", "report.md", ".lock"):
        (folder / name).symlink_to(precious)
    with pytest.raises(SystemExit):
        _run("bench", "report", _rows(tmp_path), "-o", folder)
    (folder / ".lock").unlink()
    _run("bench", "report", _rows(tmp_path), "-o", folder)
    assert precious.read_text() == "mine"
    assert "</html>" in (folder / "index.html").read_text()


def _rows(folder):
    path = folder / "rows.jsonl"
    if not path.exists():
        rows.append(path, [row(), row("other")])
    return path


def _run(*words):
    before = sys.argv
    sys.argv = ["matroot", *map(str, words)]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.argv = before


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "..\\a.jpg", "a/..", "C:\\a.jpg"]
)
def test_a_list_names_nothing_outside(name, tmp_path):
    with pytest.raises(ValueError, match="leads out of it"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/..b.jpg") == tmp_path / "a/..b.jpg"


def _png(width, height):
    """A picture that says it is so large, and its few bytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels)


def test_a_picture_that_is_a_bomb_is_not_decoded(tmp_path):
    file = tmp_path / "bomb.png"
    file.write_bytes(_png(60_000, 60_000))
    assert file.stat().st_size < 20_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.png: not a readable image"):
        load_image(file)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", images.FORMATS)
def test_the_formats_of_pictures_are_read(name, tmp_path):
    if not features.check(
        {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}.get(name, "zlib")
    ):
        pytest.skip(f"Pillow was built without {name}")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a", format=name)
    pixels, alpha = load_image(tmp_path / "a")
    assert (pixels.shape, alpha) == ((3, 30, 40), None)
    assert pixels[0].min() > 240


def test_a_picture_starts_no_program(tmp_path, monkeypatch):
    """Pillow gives EPS to Ghostscript; and icons hold pictures larger than they say."""
    trace, program = tmp_path / "trace", tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.eps")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "b.ico")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    for name in ("a.png", "b.ico"):
        with pytest.raises(ValueError, match="not a readable image"):
            load_image(tmp_path / name)
    assert not trace.exists()


def test_only_the_known_archive_of_cifar_is_unpacked(tmp_path, monkeypatch):
    """One with members that lead out, and a link."""
    root = tmp_path / "deep/data"
    root.mkdir(parents=True)
    with tarfile.open(root / "cifar-10-python.tar.gz", "w:gz") as archive:
        for name in ("../../evil", str(tmp_path / "absolute"), "cifar-10-batches-py/data_batch_1"):
            archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../.."
        archive.addfile(link)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/none")
    with pytest.raises(ValueError, match=r"cifar10: not in .*, and cannot be downloaded"):
        dbn.datasets(load_config("dbn", "cifar10-resnet18"), root)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert {path.name for path in root.iterdir()} <= {"cifar-10-python.tar.gz"}


@pytest.mark.parametrize("text", ["[" * 100_000, "NaN", "[]", "\ufeff{}", ""], ids=range(5))
def test_a_description_of_a_run_is_an_object(text, tmp_path):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="expected what 'matroot train' has written"):
        read_json(tmp_path / "run.json")


def test_an_error_is_one_printable_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("evil\x1b[2J\n.yaml").write_text("[1]")
    with pytest.raises(SystemExit) as ended:
        _run("train", "gcp", "--config", "evil\x1b[2J\n.yaml")
    assert ended.value.code.startswith(r"matroot: evil\x1b[2J .yaml: expected fields")
