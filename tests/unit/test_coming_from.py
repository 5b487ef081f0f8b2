"""Every row of the pages for those who come from other packages: run, and both sides compared."""

import builtins
import re
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "docs/coming_from"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")
# POT loads every library of arrays that is installed.
SLOW = {"pot": pytest.mark.slow}
HEADS = {
    ("today", "with matroot", "what differs"): "same",
    ("this", "gives", "why"): "gives",
}


def rows(text):
    """(kind, left, right) of the tables; code is the last in each cell."""
    kind = None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            kind = None
        elif kind is None:
            kind = HEADS[tuple(cells)]
        elif not set(line) <= set("|-"):
            left, right = (re.findall(r"`([^`]+)`", cell)[-1] for cell in cells[:2])
            yield kind, left, right


def numbers(found):
    """What a row gives as a list of tensors."""
    if isinstance(found, (tuple, list)):
        return [x for part in found for x in numbers(part)]
    return [torch.as_tensor(found, dtype=torch.float64 if type(found) is float else None).detach()]


def assert_same(left, right, what):
    left, right = numbers(left), numbers(right)
    assert len(left) == len(right), what
    for x, y in zip(left, right, strict=True):
        assert x.shape == y.shape, what
        double = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
        x, y = x.to(double), y.to(double)
        assert torch.equal(x.isnan(), y.isnan()), what
        error, scale = (float(z.nan_to_num(0).norm()) for z in (x - y, y))
        assert error <= 1e-9 * scale, what


@pytest.mark.parametrize("page", [pytest.param(p, marks=SLOW.get(p, ())) for p in PAGES])
def test_the_rows_of_a_page(page):
    if page == "matrix_sqrth" and not hasattr(torch.linalg, "matrix_sqrth"):
        pytest.skip("PyTorch 2.14 has it")
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, f"{page}.md", "exec"), names)
    table = list(rows(text))
    assert sum(kind == "same" for kind, *_ in table) >= 3
    for kind, left, right in table:
        what = f"{page}.md: {left} | {right}"
        if kind == "same":
            found, wanted = eval(left, names), eval(right, names)
            assert all(x.isfinite().all() for x in numbers(found)), what
            assert_same(found, wanted, what)
        elif right.endswith("Error"):
            with pytest.raises(getattr(torch.linalg, right, getattr(builtins, right, None))):
                eval(left, names)
        else:
            found, wanted = eval(left, names), eval(right, names)
            if isinstance(wanted, (str, torch.dtype)):
                assert found == wanted, what
            else:
                assert_same(found, wanted, what)


def test_the_index_names_every_page():
    linked = re.findall(r"\]\((\w+)\.md\)", (FOLDER / "index.md").read_text(encoding="utf-8"))
    assert sorted(linked) == PAGES
