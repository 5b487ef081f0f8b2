"""Measure what docs/scaling.md says, and write its tables and plots.

matroot bench scale -o benchmarks/results/scale-cpu.jsonl   some ten minutes on two idle cores
python benchmarks/scale.py                                  tables into docs/scaling.md, and plots
"""

from __future__ import annotations

import matplotlib
from numerics import IMAGES, ROOT, fill

from matroot.bench import rows
from matroot.bench.scale_report import markdown, plots, tables

ROWS = ROOT / "benchmarks/results/scale-cpu.jsonl"
PAGE = ROOT / "docs/scaling.md"

if __name__ == "__main__":
    found = rows.load(ROWS)[0]
    text = PAGE.read_text(encoding="utf-8")
    for title, table in tables(found).items():
        text = fill(text, title, markdown(table))
    PAGE.write_text(text, encoding="utf-8")
    # Ids that change only where rows do.
    with matplotlib.rc_context({"svg.hashsalt": "scaling"}):
        for plot in plots(found):
            plot.figure.savefig(IMAGES / f"{plot.name}.svg", metadata={"Date": None})
