"""What the page on whitening data sets says runs, and its figures are those that come out."""

import re
from pathlib import Path

import pytest
import torch

from matroot.nn import Whitening
from matroot.nn.data_whitening import KINDS

PAGE = Path(__file__).parents[2] / "docs/whitening_data.md"


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The variables after all blocks of the page."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 9
    names = {"path": tmp_path_factory.mktemp("page") / "whitening.pt"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_what_the_blocks_have(names):
    x, eye = names["x"], torch.eye(40, dtype=torch.float64)
    close(torch.cov(names["y"].mT), eye)
    close(names["back"], x)
    for kind in KINDS:
        moved = (Whitening(40, kind=kind).fit(x)(x) - (x - x.mean(0))).square().sum()
        assert moved >= names["moved"] * (1 - 1e-12)
    assert names["nearest"].shape == x.shape
    assert names["codes"].shape == (2000, 10)
    before = x[:, :7] - x[:, :7].mean(0)
    guess = before @ torch.linalg.lstsq(before, x[:, 7:8] - x[:, 7].mean()).solution
    error = x[:, 7] - x[:, 7].mean() - guess[:, 0]
    close(names["error"], error / error.std())
    close(names["z"], names["y"])
    assert names["masked"].samples == names["valid"].sum()
    assert names["loaded"].samples == 2100
    assert names["model"].score(names["table"], names["labels"]) > 0.95
    expected = names["model"][0].transform(names["table"])
    close(names["module"](names["wine"]), torch.from_numpy(expected))


def test_the_table_of_kinds(names):
    rows = re.findall(
        r"^\| `(\w+)` \| (-?[\d.]+) \| (-?[\d.]+) \|$", PAGE.read_text(), re.MULTILINE
    )
    assert {row[0] for row in rows} == set(KINDS)
    for kind, mean, smallest in rows:
        kept = names["kept"][kind]
        assert (f"{kept.mean():.2f}", f"{kept.min():.2f}") == (mean, smallest)


def test_the_figures_of_few_samples(names):
    found = {name: f"{float(value):.2g}" for name, value in names["largest"].items()}
    assert (
        "{nothing} with nothing, {eps} with eps = 1, {shrinkage} with ρ = 0.1 and {oas} with"
    ).format(**found) in PAGE.read_text()


@pytest.mark.parametrize(("cond", "bound"), [(1e8, 1e-8), (1e12, 2e-4)])
def test_how_exact_it_is(cond, bound):
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=generator)).Q
    scale = torch.logspace(0, -torch.tensor(cond).log10() / 2, 16, dtype=torch.float64)
    x = torch.randn(4000, 16, dtype=torch.float64, generator=generator) @ (q * scale @ q.T)
    eye = torch.eye(16, dtype=torch.float64)
    errors = [
        (torch.cov(Whitening(16, kind=kind).fit(x)(x).mT) - eye).abs().max() for kind in KINDS
    ]
    assert bound / 10 < max(errors) < 2 * bound
