"""The command line as users see it."""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from matroot import cli, terminal
from matroot.methods import METHODS
from matroot.recipes import images
from matroot.recipes.images import load_image, photograph, save_image

run = CliRunner().invoke


def typer_help(command):
    """The help text without frames and line breaks."""
    text = run(cli.app, [command, "--help"]).output
    return " ".join(text.replace("│", " ").split())


@pytest.fixture
def pictures(tmp_path):
    for name in ("chelsea", "gravel"):
        save_image(photograph(name)[:, :120, :160], tmp_path / f"{name}.png")
    return tmp_path


def test_help_lists_commands_and_options():
    assert "stylize" in run(cli.app, ["--help"]).output
    text = run(cli.app, ["stylize", "--help"]).output
    assert all(option in text for option in ("--strength", "--method", "--eps", "--patch"))
    assert run(cli.app, ["--version"]).output.startswith("matroot 0.")


def test_stylize_writes_a_picture_and_prints_the_distances(pictures):
    out = pictures / "out.png"
    names = [str(pictures / "chelsea.png"), str(pictures / "gravel.png"), "-o", str(out)]
    result = run(cli.app, ["stylize", *names, "--strength", "0.9", "--method", "eigh"])
    assert result.exit_code == 0, result.output
    assert "Bures-Wasserstein distance to the style" in " ".join(result.output.split())
    assert load_image(out)[0].shape == (3, 120, 160)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png", "missing.png", "-o", "out.png"], "missing.png"),
        (["{content}", "{content}", "-o", "out.unknown"], "unknown"),
        (["{content}", "{content}", "-o", "out.png", "--eps", "0"], "eps must be positive"),
        (["{small}", "{content}", "-o", "out.png"], "at least two patches"),
        (["{content}", "{content}", "-o", "{content}/out.png"], "lies in one that does not exist"),
        (
            ["{content}", "{content}", "-o", "out.png", "--network", "run", "--eps", "1"],
            "--eps does",
        ),
    ],
)
def test_errors_are_one_line(pictures, arguments, message, monkeypatch):
    Image.new("RGB", (5, 5)).save(pictures / "small.png")
    known = {"content": pictures / "chelsea.png", "small": pictures / "small.png"}
    monkeypatch.chdir(pictures)
    monkeypatch.setattr(
        sys, "argv", ["matroot", "stylize", *(a.format(**known) for a in arguments)]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    # Python prints this and returns 1, which the next test checks.
    assert message in ended.value.code
    assert ended.value.code.startswith("matroot: ")
    assert "\n" not in ended.value.code


def test_an_error_is_one_line_on_stderr(tmp_path):
    code = "from matroot.cli import main; main()"
    command = [sys.executable, "-c", code, "stylize", "missing.png", "b.png", "-o", "c.png"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("matroot: ")
    assert "missing.png" in line


def test_a_picture_no_nearer_to_the_style_gives_a_warning(tmp_path):
    """Few pixels, and a style that is nearly black."""
    content = photograph("chelsea")[:, 100:132, 100:132]
    save_image(content, tmp_path / "content.png")
    save_image(photograph("hubble_deep_field"), tmp_path / "style.png")
    names = [str(tmp_path / f"{name}.png") for name in ("content", "style", "out")]
    result = run(cli.app, ["stylize", *names[:2], "-o", names[2]])
    assert result.exit_code == 0, result.output
    assert "matroot: warning: the picture is no nearer to the style" in result.stderr


@pytest.mark.parametrize("command", ["demo", "bench report {rows}", "bench paper", "compare gcp"])
def test_an_unwritable_place_is_found_before_the_work(command, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "rows.jsonl").write_text("")
    monkeypatch.setattr(images, "photograph", lambda _: pytest.fail("work has begun"))
    arguments = command.format(rows=tmp_path / "rows.jsonl").split()
    found = run(cli.app, [*arguments, "-o", str(tmp_path / "file/out")])
    assert isinstance(found.exception, ValueError)
    assert "cannot be written" in str(found.exception)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_found_before_the_work(pictures):
    (pictures / "locked").mkdir(mode=0o500)
    names = [str(pictures / "chelsea.png")] * 2
    found = run(cli.app, ["stylize", *names, "-o", str(pictures / "locked/out.png")])
    assert "cannot be written" in str(found.exception)


@pytest.mark.parametrize("when", ["loading", "working", "finalising"])
def test_an_interruption_is_one_line(when, pictures):
    """While PyTorch is loaded, while a command runs, and in ``__del__``, where Python drops it."""
    cut = "import builtins, matroot.cli as cli\ndef stop(*a, **k): raise KeyboardInterrupt\n"
    if when == "loading":
        cut += "import sys; sys.modules['torch'] = None\n"
        cut += "class Finder:\n    def find_spec(self, name, *a):\n"
        cut += "        if name == 'torch': stop()\n"
        cut += "del sys.modules['torch']; sys.meta_path.insert(0, Finder())\n"
    elif when == "working":
        cut += "from matroot.recipes import stylize; stylize.stylize = stop\n"
    else:
        # A background job ignores SIGINT.
        cut += "import time; from signal import *; signal(SIGINT, default_int_handler)\n"
        cut += "class Last:\n    def __del__(self): raise_signal(SIGINT); time.sleep(0)\n"
        cut += "def last(*a, **k):\n    for _ in range(3): Last()\n    time.sleep(30)\n"
        cut += "from matroot.recipes import stylize; stylize.stylize = last\n"
    names = [str(pictures / "chelsea.png")] * 2
    code = f"{cut}import sys; sys.argv[1:] = {['stylize', *names, '-o', 'x.png']}; cli.main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 130
    assert found.stderr.strip().splitlines()[-1] == "matroot: interrupted"
    assert "Traceback" not in found.stderr


def test_dropped_interruptions_come_again_as_one_until_the_program_ends(monkeypatch, capsys):
    timers, signals = [], []
    for flag in ("_coming", "_ending"):
        monkeypatch.setattr(terminal, flag, threading.Event())
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(os, "kill", lambda *sent: signals.append(sent))
    monkeypatch.setattr(
        threading, "Timer", lambda _, send: SimpleNamespace(start=lambda: timers.append(send))
    )
    terminal.repeat_lost_interruptions()

    def drop(error):
        sys.unraisablehook(SimpleNamespace(exc_type=error))

    drop(KeyboardInterrupt)
    drop(KeyboardInterrupt)
    assert len(timers) == 1
    timers[0]()
    assert signals == [(os.getpid(), signal.SIGINT)]
    drop(KeyboardInterrupt)
    assert len(timers) == 2
    terminal.interrupted()
    timers[1]()
    drop(KeyboardInterrupt)
    assert len(timers) == 2
    assert len(signals) == 1
    assert capsys.readouterr().err == "matroot: interrupted\n"


def commands(group, path=()):
    for name, command in group.commands.items():
        yield (*path, name), command
        yield from commands(command, (*path, name)) if hasattr(command, "commands") else ()


@pytest.mark.parametrize(
    ("path", "command"),
    [pytest.param(*c, id=" ".join(c[0])) for c in commands(get_command(cli.app))],
)
def test_help_says_all_that_is_written(path, command):
    """Nothing in brackets is swallowed as a style, and lines fit the window."""
    text = " ".join(run(cli.app, [*path, "--help"]).output.split())
    for paragraph in f"{command.help}\n\n{command.epilog or ''}".split("\n\n"):
        assert " ".join(paragraph.split()) in text


def test_unknown_method_lists_the_known_ones(pictures):
    assert ", ".join(["auto", *METHODS][:-1]) + " or svd" in typer_help("stylize")
    names = [str(pictures / "chelsea.png")] * 2
    result = run(cli.app, ["stylize", *names, "-o", "x.png", "--method", "lu"])
    assert result.exit_code == 2
    assert "newton_schulz" in result.output


def test_a_missing_extra_is_named_in_one_line():
    code = "import sys; sys.modules['typer'] = None; import matroot.cli"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.strip() == (
        "matroot: the command line needs typer; in a clone of matroot run: pip install '.[cli]'"
    )
