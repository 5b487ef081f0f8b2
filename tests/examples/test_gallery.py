"""The gallery: every program ``examples/plot_*.py`` is run, and its figures are drawn.

A program shows its figures by ``plt.show()`` and states its results in ``assert`` lines in terms of
its reader, so that running it tests it. One that needs more than some seconds for a good picture
does less where MATROOT_SMALL is set, and its assertions hold all the same.
"""

import ast
import io
import runpy
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("plot_*.py"))


def test_there_are_programs():
    assert PROGRAMS, f"{EXAMPLES} holds no plot_*.py"


@pytest.fixture
def figures(monkeypatch):
    """The figures that a program shows, drawn and closed, as the site does after each cell."""
    plt.switch_backend("agg")
    shown = []

    def show():
        for number in plt.get_fignums():
            figure = plt.figure(number)
            figure.savefig(io.BytesIO(), dpi=50)
            shown.append(figure)
            plt.close(figure)

    monkeypatch.setattr(plt, "show", show)
    yield shown
    plt.close("all")


@pytest.fixture
def settings():
    """PyTorch's settings must stay: the site runs the next program in the same process."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    yield
    left = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    assert left == (dtype, threads), "the program left other settings behind"


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_program(program, figures, tmp_path, monkeypatch):
    monkeypatch.setenv("MATROOT_SMALL", "1")
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context():
        runpy.run_path(str(program), run_name="__main__")

    assert figures, "no figure was shown"
    assert not plt.get_fignums(), "a figure is not shown: call plt.show() after it"
    for figure in figures:
        titles = [figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)]
        assert any(titles), "a figure has no title"
    assert not list(tmp_path.iterdir()), "files were left behind"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_text(program):
    tree = ast.parse(program.read_text(encoding="utf-8"))
    title, underline, *_ = ast.get_docstring(tree).splitlines()
    assert underline == "=" * len(title), "the docstring must begin with an underlined title"
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "nothing is asserted"
