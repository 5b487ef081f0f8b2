"""The comparison of methods and rules."""

import json
import math

import pytest
import torch

from matroot.bench import rules
from matroot.gradients import GRADIENTS, Lyapunov, SpectralTaylor
from matroot.methods import METHODS, Pade
from matroot.testing import random_spd


@pytest.fixture(scope="module")
def rows():
    steps = []
    found = rules.measure(
        random_spd(6, 2, cond=10, dtype=torch.float32),
        repeats=2,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(i, 4) for i in range(1, 5)]
    return found


def test_every_combination_has_its_rows_with_errors_that_make_sense(rows):
    seen = {(r.root, r.method, r.gradient) for r in rows}
    spectral = sum(m.spectral for m in METHODS.values())
    published = sum(g.needs_eigenpairs for g in GRADIENTS.values())
    others = len(GRADIENTS) - published + 1
    assert len(seen) == len(rows) == 2 * (len(METHODS) * others + spectral * published)
    by_name = {(r.root, r.method, r.gradient): r for r in rows}
    assert by_name["sqrt", "eigh", "spectral"].error < 1e-6
    assert by_name["sqrt", "eigh", "spectral"].gradient_error < 1e-5
    assert 1e-4 < by_name["sqrt", "pade", "lyapunov(steps=8)"].error < 0.1
    assert all(0 < r.p20 <= r.milliseconds <= r.p80 for r in rows)


def test_labels():
    assert rules.label(Pade()) == "pade"
    assert rules.label(Pade(order=3)) == "pade(order=3)"
    assert rules.label(Lyapunov(8)) == "lyapunov(steps=8)"
    assert rules.label(SpectralTaylor(terms=9)) == "spectral_taylor(terms=9)"


def test_files(rows, tmp_path):
    broken = rules.Row("sqrt", "svd", "spectral_naive", 1e-7, math.nan, 1.0, 0.9, 1.1)
    rules.save_rows(rows, tmp_path / "rows.jsonl", matrices="small")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == len(rows)
    assert lines[0]["torch"] == torch.__version__
    assert lines[0]["matrices"] == "small"
    rules.save_markdown([*rows, broken], tmp_path / "rows.md", "caption")
    text = (tmp_path / "rows.md").read_text()
    assert text.startswith("caption")
    assert "| sqrt | svd | spectral_naive | 1.0e-07 | nan |" in text
    assert rules.in_order([broken, *rows])[len(rows) // 2] == broken
    rules.save_plot([*rows, broken], tmp_path / "rows.png", "caption")
    assert (tmp_path / "rows.png").stat().st_size > 20_000
