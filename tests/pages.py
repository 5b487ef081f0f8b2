"""The code blocks and tables of a page."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page, language="python"):
    """The blocks of code, in order."""
    found = re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE
    )
    assert found, page
    return found


def run(page, block, names):
    """Run a block with these names, and add those that it defines."""
    exec(compile(block, str(DOCS / page), "exec"), names)
    return names


def table(page, first):
    """The rows of the table whose first heading is ``first``, as tuples of cells."""
    text = (DOCS / page).read_text()
    (rows,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [
        tuple(cell.strip(" `") for cell in row.strip("|").split("|")) for row in rows.splitlines()
    ]
