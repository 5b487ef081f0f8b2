"""The tables and the plot of docs/hard.md, from rows of ``matroot bench hard``.

matroot bench hard --matrices 1e7 --processes 2    rows of blocks: some 20 MB, not kept here
python benchmarks/hard.py sum FILE …               their sums into benchmarks/results
python benchmarks/hard.py write                    tables into docs/hard.md, and the plot
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
from numerics import IMAGES, ROOT, fill

from matroot.bench import rows
from matroot.bench.hard_report import SUMMED, plot, summed, tables
from matroot.bench.rows import ENVIRONMENT
from matroot.bench.scale_report import markdown

ROWS = ROOT / "benchmarks/results/hard-cpu.jsonl"
PAGE = ROOT / "docs/hard.md"


def add(files: list[Path]) -> None:
    """Write the sums of rows of one environment, but that several commits may have made them."""
    found = [row for path in files for row in rows.pick(rows.load(path)[0], experiment="hard")]
    commits = ", ".join(dict.fromkeys(str(row["commit"]) for row in found))
    found = [{**row, "commit": commits} for row in found]
    # A block that was run again counts once, as it was last.
    found = list({(row["case"], row["candidate"]): row for row in found}.values())
    phrases = rows.differences(found, found[0])
    if phrases:
        raise SystemExit(f"not of one environment: {'; '.join(phrases)}")
    origin = {name: found[0].get(name) for name in (*ENVIRONMENT, "python", "system", "device")}
    lines = []
    for row in summed(found):
        name = " ".join(f"{key}={row[key]}" for key in SUMMED[1:])
        head = {"case": f"hard {name}", "of": 1, "experiment": "hard"}
        lines.append({**head, **row, **origin})
    ROWS.unlink(missing_ok=True)
    rows.append(ROWS, lines)


def write() -> None:
    """Fill the page's tables and draw its plot."""
    found = rows.load(ROWS)[0]
    text = PAGE.read_text(encoding="utf-8")
    for title, table in tables(found).items():
        text = fill(text, title, markdown(table))
    PAGE.write_text(text, encoding="utf-8")
    # Ids that change only where rows do.
    with matplotlib.rc_context({"svg.hashsalt": "hard"}):
        drawn = plot(found)
        drawn.figure.savefig(IMAGES / f"{drawn.name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sum", "write"))
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "sum":
        add(arguments.files)
    else:
        write()
