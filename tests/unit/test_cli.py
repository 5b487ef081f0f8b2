"""The command line as a user meets it."""

import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from matroot import cli
from matroot.recipes.images import load_image, photograph, save_image

run = CliRunner().invoke


@pytest.fixture
def pictures(tmp_path):
    for name in ("chelsea", "gravel"):
        save_image(photograph(name)[:, :120, :160], tmp_path / f"{name}.png")
    return tmp_path


def test_help_teaches():
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
    ],
)
def test_errors_are_one_line(pictures, arguments, message):
    Image.new("RGB", (5, 5)).save(pictures / "small.png")
    known = {"content": pictures / "chelsea.png", "small": pictures / "small.png"}
    found = subprocess.run(
        [sys.executable, "-c", "from matroot.cli import main; main()", "stylize"]
        + [argument.format(**known) for argument in arguments],
        cwd=pictures,
        capture_output=True,
        text=True,
    )
    assert found.returncode != 0
    lines = found.stderr.strip().splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("matroot: ")
    assert "Traceback" not in found.stderr


def test_unknown_method_lists_the_known_ones(pictures):
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
