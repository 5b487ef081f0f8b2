"""Results stay whole: full disks, killed processes, two runs in one place, clocks that go back."""

import ast
import errno
import json
import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import matroot
from bench.examples import QUICK, counted, row, run
from matroot import cli
from matroot.bench import cases, report, rows, rules
from matroot.files import held, replace, replacing
from matroot.recipes import images
from matroot.recipes.training import folder, loop
from recipes.short import quick

SOURCE = Path(matroot.__file__).parent


@contextmanager
def full_disk(room=100):
    """No file can grow beyond so many bytes; Python gets an error and no signal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def files(folder):
    """Names and contents, without locks."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_file_is_replaced_when_all_is_written(tmp_path):
    path = tmp_path / "a [1].txt"
    replace(path, "old")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(path)
    assert files(tmp_path) == {path.name: b"old"}
    replace(path, "näw")
    assert files(tmp_path) == {path.name: "näw".encode()}
    assert path.stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o022) or 0o022)


def _interrupted(path):
    with replacing(path) as fresh:
        fresh.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt


def test_what_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "a.png"
    with replacing(path) as fresh:
        (tmp_path / ".a.0123abcd.part.png").write_text("left")
        fresh.write_text("whole")
    replace(path, "next")
    assert files(tmp_path) == {"a.png": b"next"}


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out.txt").symlink_to(tmp_path / "precious")
    replace(tmp_path / "out.txt", "result")
    assert files(tmp_path) == {"precious": b"mine", "out.txt": b"result"}
    assert not (tmp_path / "out.txt").is_symlink()


def test_a_full_disk_is_an_error_with_the_name(tmp_path):
    replace(tmp_path / "a.txt", "old")
    with full_disk(), pytest.raises(OSError, match=r"a\.txt") as raised:
        replace(tmp_path / "a.txt", 1000 * "x")
    assert raised.value.errno == errno.EFBIG
    assert files(tmp_path) == {"a.txt": b"old"}
    rows.append(tmp_path / "rows.jsonl", [row()])
    known = (tmp_path / "rows.jsonl").read_bytes()
    with full_disk(len(known) + 50), pytest.raises(OSError, match=r"rows\.jsonl"):
        rows.append(tmp_path / "rows.jsonl", [row("other")])
    # The row before is there, and the next one too, once there is room.
    rows.append(tmp_path / "rows.jsonl", [row("third")])
    found, complaints = rows.load(tmp_path / "rows.jsonl")
    assert [r["candidate"] for r in found] == ["matroot", "third"]
    assert len(complaints) == 1


def _stylize(folder):
    noise = torch.rand(3, 64, 64)
    images.save_image((255 * noise).byte(), folder / "in.png")
    names = [str(folder / "in.png")] * 2
    return lambda: run(["stylize", *names, "-o", str(folder / "results/out.png")])


def _report(folder):
    rows.append(folder / "in.jsonl", [row(), row("other")])
    return lambda: run(["bench", "report", str(folder / "in.jsonl"), "-o", str(folder / "results")])


def _demo(folder):
    measured = [rules.Row("sqrt", "eigh", "spectral", 1e-7, 1e-6, 1.0, 0.9, 1.1)]

    def write():
        rules.save_rows(measured, folder / "results/methods.jsonl")
        rules.save_markdown(measured, folder / "results/methods.md", "caption " * 20)
        rules.save_plot(measured, folder / "results/methods.png", "caption")

    return write


@pytest.mark.parametrize("command", [_stylize, _report, _demo], ids=["stylize", "report", "demo"])
def test_a_full_disk_leaves_old_results(command, tmp_path):
    (tmp_path / "results").mkdir()
    work = command(tmp_path)
    work()
    before = files(tmp_path / "results")
    assert before
    with full_disk():
        try:
            error = work().exception
        except OSError as raised:
            error = raised
    assert isinstance(error, OSError)
    assert error.errno == errno.EFBIG
    assert str(tmp_path / "results") in str(error)
    assert files(tmp_path / "results") == before


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, few_pictures):
    quick("gcp", tmp_path, changes={"epochs": 1})
    before = files(tmp_path)["run/last.ckpt"]
    with full_disk(30_000), pytest.raises(OSError, match=r"run/last\.ckpt"):
        quick("gcp", tmp_path)
    assert files(tmp_path)["run/last.ckpt"] == before
    assert not list(tmp_path.rglob("*.part*"))
    assert quick("gcp", tmp_path)["epochs"] == 2


def test_the_result_of_fewer_epochs_never_passes_for_that_of_more(
    tmp_path, few_pictures, monkeypatch
):
    """Interrupted after the old description, before the training that the new one promises."""
    quick("gcp", tmp_path, changes={"epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_fit", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            quick("gcp", tmp_path)
        # As if it had been before the last of the two files that a longer run begins with.
        patch.setattr(folder, "replace", _interrupt)
        (tmp_path / "run/result.json").write_text("{}")
        with pytest.raises(KeyboardInterrupt):
            quick("gcp", tmp_path, changes={"epochs": 3})
        assert not (tmp_path / "run/result.json").exists()
    assert quick("gcp", tmp_path)["epochs"] == 2


def _interrupt(*_):
    raise KeyboardInterrupt


def test_every_file_is_written_in_one_of_two_ways():
    """Beside the old one, or, rows of measurements, by appending."""
    known = {
        "files.py": {"write_bytes", "open"},
        "bench/rows.py": {"open"},  # append
        "terminal.py": {"open"},  # Tries whether it can be written, and changes nothing.
        "bench/hard_run.py": {"save"},  # That of hard_cases.py.
        "bench/drawing.py": {"savefig"},  # Into memory.
        "bench/memory.py": {"write_text"},  # Into /proc.
        "bench/ranks.py": {"write_text"},  # From one process to another, in a folder of its own.
        "recipes/commands.py": {"write_text"},  # Of the help, to the terminal.
        "recipes/clips.py": {"open"},  # Reads.
        "recipes/images.py": {"open"},  # Reads.
        "kernels/native/tasks.py": {"open"},  # Reads.
    }
    writing = {"open", "write_text", "write_bytes", "savefig", "save", "dump", "imsave", "savez"}
    found = {}
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        named = {node.optional_vars.id for node in ast.walk(tree) if _is_replacing(node)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            targets = {x.id for x in node.args if isinstance(x, ast.Name)}
            if name in writing and not targets & (named | {"buffer"}):
                found.setdefault(path.relative_to(SOURCE).as_posix(), set()).add(name)
    assert found == known


def _is_replacing(node):
    return (
        isinstance(node, ast.withitem)
        and isinstance(node.context_expr, ast.Call)
        and ast.unparse(node.context_expr.func).endswith("replacing")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "stride"),
    [("train", 2), ("compare", 7), ("demo", 1), ("rows", 1), ("report", 1), ("stylize", 1)],
)
def test_a_killed_command_leaves_whole_files_and_goes_on(command, stride, tmp_path):
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(script), command, str(tmp_path), str(stride)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(script.parents[1]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 3
    assert not list((tmp_path / "out").rglob("*.part*"))


def in_use(folder):
    """Whether a run in this folder is refused."""
    try:
        with held(folder, folder / ".lock"):
            return False
    except ValueError as error:
        return "another run is writing" in str(error)


def test_a_second_run_is_refused(tmp_path):
    place = tmp_path / "deep/run"
    with held(place, place / ".lock"):
        assert in_use(place)
    assert not (tmp_path / "deep").exists()
    with held(place, place / ".lock"):
        (place / "result").touch()
    assert (place / "result").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "gcp", "--no-progress", "--accelerator=cpu"],
        ["compare", "gcp", "--no-progress", "--accelerator=cpu"],
        ["bench", "report", "{0}/rows.jsonl"],
        ["bench", "paper"],
        ["bench", "paper", "--fresh"],
        ["bench", "scale"],
        ["demo"],
    ],
    ids=" ".join,
)
def test_a_command_refuses_a_place_in_use_in_one_line(arguments, tmp_path, monkeypatch):
    rows.append(tmp_path / "rows.jsonl", [row()])
    place, lock = tmp_path / "out", tmp_path / "out/.lock"
    if arguments[0] == "bench" and arguments[1] != "report":
        place = tmp_path / "out.jsonl"
        lock = tmp_path / ".out.jsonl.lock"
        rows.append(place, [row()])
    words = [word.format(tmp_path) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["matroot", *words, "-o", str(place)])
    with held(place, lock), pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == (
        f"matroot: {place}: another run is writing there; wait for it, or choose another --output"
    )


HOLD = """
import sys, time
from pathlib import Path
from matroot.files import held
folder = Path(sys.argv[1])
with held(folder, folder / ".lock"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_leaves_no_lock(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert in_use(tmp_path / "run")
        other.kill()
        other.wait()
    assert not in_use(tmp_path / "run")


def test_nothing_asks_what_time_it_is():
    """But rows, which say when they were measured: the order of lines in a file is what counts."""
    asking = re.compile(r"time\.time\(|time_ns\(|st_mtime|getmtime|datetime\.now|utcnow|\.today\(")
    found = [path for path in SOURCE.rglob("*.py") if asking.search(path.read_text())]
    assert [path.relative_to(SOURCE).as_posix() for path in found] == ["bench/rows.py"]


def test_a_clock_that_goes_back(tmp_path):
    path, log = tmp_path / "rows.jsonl", []
    list(cases.run(counted("xy", log), path, QUICK))
    for year, error in ((2020, 0.5), (1970, 0.25)):
        rows.append(path, [row(measured=f"{year}-01-01T00:00:00+00:00", error=error)])
    assert [r["error"] for r in rows.load(path)[0] if r["candidate"] == "matroot"] == [0.25]
    list(cases.run(counted("xyz", log), path, QUICK))
    assert log == ["x", "y", "z"]
    assert json.loads(path.read_text().splitlines()[-1])["name"] == "z"
    report.write([row(measured="1970-01-01T00:00:00+00:00"), row("other")], [], tmp_path / "page")
