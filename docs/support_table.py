"""Write the table of methods, rules and what goes together into docs/methods.md, or check it.

python docs/support_table.py           rewrite the table between its two markers
python docs/support_table.py --check   exit with an error where it is out of date
"""

import sys
from pathlib import Path

from matroot.gradients import GRADIENTS, ExplicitRule
from matroot.methods import METHODS

PAGE = Path(__file__).with_name("methods.md")
START, END = "<!-- table: made by support_table.py -->", "<!-- end of table -->"


def table() -> str:
    """The table in Markdown."""
    lines = ["| method | what it is | eigenpairs |", "|---|---|---|"]
    lines += [
        f"| `{name}` → `{cls()!r}` | {cls.summary} | {'yes' if cls.spectral else 'no'} |"
        for name, cls in METHODS.items()
    ]
    lines += ["", "| gradient | what it is | with methods | derivatives |", "|---|---|---|---|"]
    for name, cls in GRADIENTS.items():
        methods = [
            m for m, method in METHODS.items() if method.spectral or not cls.needs_eigenpairs
        ]
        which = "all" if len(methods) == len(METHODS) else ", ".join(f"`{m}`" for m in methods)
        order = "any order" if cls.max_derivative is None else "first only"
        kind = "" if issubclass(cls, ExplicitRule) else ", of the approximation"
        lines.append(f"| `{name}` → `{cls()!r}` | {cls.summary} | {which} | {order}{kind} |")
    return "\n".join(lines)


def main() -> None:
    """Rewrite or check."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(START)
    after = rest.split(END)[1]
    fresh = f"{before}{START}\n\n{table()}\n\n{END}{after}"
    if "--check" in sys.argv[1:]:
        if fresh != page:
            raise SystemExit("docs/methods.md is out of date; run: python docs/support_table.py")
    else:
        PAGE.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
