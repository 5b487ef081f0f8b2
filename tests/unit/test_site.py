"""The site's reference holds every public name, and the programs on its pages run."""

import ast
import inspect
import re
import runpy
from pathlib import Path

import pytest

import matroot

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/matroot"


def modules() -> list[str]:
    """The files of the public modules."""
    files = {PACKAGE / "testing.py", PACKAGE / "nn/functional.py"}
    for name in matroot.__all__:
        files |= {PACKAGE / f"{name}.py", PACKAGE / name / "__init__.py"}
    files |= {*(PACKAGE / "compat").glob("[!_]*.py")}
    files -= {PACKAGE / "compat/__init__.py"}
    return sorted(str(file.relative_to(PACKAGE)) for file in files if file.exists())


def documented() -> set[str]:
    """The last parts of all names in the reference."""
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    return set(re.findall(r"auto(?:class|data|function):: (?:[\w.]*\.)?(\w+)", pages))


def public(module: Path) -> set[str]:
    """The public names of a module, from its source, without modules in it.

    They are in ``__all__``. Where there is none, they are what it defines, or imports under the
    same name (``import … as …``).
    """
    names: set[str] = set()
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = {*ast.literal_eval(node.value)}
            break
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    inside = {file.stem for file in module.parent.iterdir()} if module.stem == "__init__" else set()
    return {name for name in names if not name.startswith("_")} - inside


def test_every_public_function_is_in_the_reference() -> None:
    inside = {file.stem for file in PACKAGE.iterdir()}
    missing = {*matroot.__all__} - inside - documented()
    assert not missing, f"add them to a page in docs/reference: {sorted(missing)}"


@pytest.mark.parametrize("module", modules())
def test_every_public_name_of_a_module_is_in_the_reference(module: str) -> None:
    names = public(PACKAGE / module)
    assert names, "a module without public names is not public"
    missing = names - documented()
    assert not missing, f"add them to a page in docs/reference: {sorted(missing)}"


def test_the_index_of_the_reference_names_every_public_module() -> None:
    index = (ROOT / "docs/reference/index.md").read_text("utf-8")
    modules = {name for name in matroot.__all__ if inspect.ismodule(getattr(matroot, name))}
    assert "statistics" in modules
    for name in modules:
        assert f"`matroot.{name}`" in index, name


@pytest.mark.parametrize("page", ["index", "install", "choosing", "troubleshooting"])
def test_the_blocks_of_the_page_run(page: str) -> None:
    text = (ROOT / f"docs/{page}.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_the_file_for_citing_names_the_papers_of_the_page() -> None:
    page, file = ((ROOT / name).read_text("utf-8") for name in ("docs/citing.md", "CITATION.cff"))
    titles = re.findall(r"title += \{(Fast .*)\}", page)
    numbers = re.findall(r"arXiv:([\d.]+)", page)
    assert len(titles) == len(numbers) == 2
    assert re.findall(r'title: "(Fast .*)"', file) == titles
    assert re.findall(r"arxiv\.org/abs/([\d.]+)", file) == numbers


FAULTS = {
    '<a href="gone.html">x</a>': "broken link: gone.html",
    '<a href="index.html#gone">x</a>': "broken anchor: index.html#gone",
    '<a href="#gone">x</a>': "broken anchor: #gone",
    '<img src="a.svg">': "picture without a text: a.svg",
    '<img src="gone.svg" alt="A curve">': "is not there: gone.svg",
    '<script src="https://example.org/a.js"></script>': "from another host: https://example.org",
    '<link rel="stylesheet" href="b.css">': "b.css loads //example.org/font",
    '<img src="large.png" alt="Large">': "weighs 1.60 MB",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_page_is_found(fault: str, tmp_path: Path) -> None:
    (tmp_path / "a.svg").touch()
    (tmp_path / "b.css").write_text("p { background: url(//example.org/font) }")
    (tmp_path / "large.png").write_bytes(bytes(1_600_000))
    page = tmp_path / "index.html"
    sound = '<h1 id="top">T</h1><a href="#top">x</a><img src="a.svg" alt="A curve">'
    problems = runpy.run_path(str(ROOT / "docs/check_site.py"))["problems"]
    page.write_text(sound + '<a href="https://example.org">x</a><a href="a.svg">x</a>')
    assert problems(page) == []
    page = tmp_path / "other.html"
    page.write_text(sound + fault)
    (found,) = problems(page)
    assert FAULTS[fault] in found
