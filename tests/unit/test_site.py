"""The site's reference holds every public name, and the programs on its pages run."""

import ast
import re
from pathlib import Path

import pytest

import matroot

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/matroot"
# Public is what these define, or import under the same name (``import … as …``).
MODULES = [
    "compat/pytorch_fid.py",
    "compat/torchmetrics.py",
    "distributed/__init__.py",
    "gradients/__init__.py",
    "methods/__init__.py",
    "nn/__init__.py",
    "nn/functional.py",
    "testing.py",
]


def documented() -> set[str]:
    """The last parts of all names in the reference."""
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    return set(re.findall(r"auto(?:class|data|function):: (?:[\w.]*\.)?(\w+)", pages))


def public(module: Path) -> set[str]:
    """The public names of a module, from its source."""
    names = set()
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    modules = {"functional"} if module.parent.name == "nn" else set()
    return {name for name in names if not name.startswith("_")} - modules


def test_every_public_function_is_in_the_reference() -> None:
    modules = {"distributed", "gradients", "methods", "nn"}
    missing = {*matroot.__all__} - modules - documented()
    assert not missing, f"add them to a page in docs/reference: {sorted(missing)}"


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_of_a_module_is_in_the_reference(module: str) -> None:
    names = public(PACKAGE / module)
    assert names, "a module without public names is not public"
    missing = names - documented()
    assert not missing, f"add them to a page in docs/reference: {sorted(missing)}"


@pytest.mark.parametrize("page", ["index", "install", "choosing", "troubleshooting"])
def test_the_blocks_of_the_page_run(page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
