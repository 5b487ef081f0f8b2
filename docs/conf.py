"""The site, which ``make docs`` builds into build/docs, without network."""

import html
import os
import re
import subprocess
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode
from sphinx_gallery.scrapers import matplotlib_scraper
from sphinx_gallery.sorting import FunctionSortKey

# Where the source is published: links to files outside docs/ lead there. Without an address the
# site carries copies of these files.
REPOSITORY = ""

ROOT = Path(__file__).parents[1]

project = "matroot"
author = "The matroot authors"
copyright = author
version = release = version_of("matroot")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    # Other packages' names: their own pages would have to be read over the network.
    ("py:.*", r"(torch|numpy|sklearn|torchmetrics|collections|pathlib)\..*"),
    # Names as they stand in annotations and in napoleon's Raises.
    ("py:class", r"(Tensor|(nn\.)?Module|Callable|ProcessGroup)"),
    # Types of the inside, which the text of an argument explains.
    ("py:class", r"(matroot\..*|BackendName|Root|Running|Shrinkage|Singular|S|Z)"),
]
# The settings of the gallery hold functions, which Sphinx does not keep between builds.
suppress_warnings = ["config.cache"]

# Markdown: headings are anchors with GitHub's names, so that links work there and here.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]

# Reference
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 70
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
add_module_names = False

# Gallery: in this order; a program that is not named comes last.
ORDER = [
    "plot_whitening",
    "plot_zca_pca_cholesky",
    "plot_color_transfer",
    "plot_stylize",
    "plot_frechet_loss",
    "plot_barycenter",
    "plot_covariance_pooling",
    "plot_batchnorm_to_whitening",
    "plot_whitening_loss",
    "plot_shampoo",
    "plot_log_euclidean",
    "plot_svd_gradient_ties",
    "plot_accuracy_condition",
    "plot_onnx",
    "several_processes",
]


def _place(file: str) -> tuple[int, str]:
    """The sort key of a program of the gallery."""
    name = Path(file).stem
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def _as_webp(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figures of a program as WebP: photographs are a tenth of what they are as PNG."""
    options = {"format": "webp", "dpi": 130, "pil_kwargs": {"quality": 88}}
    return matplotlib_scraper(block, block_vars, gallery_conf, **options)


sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "doc_module": ("matroot",),
    "backreferences_dir": None,
    "reference_url": {"matroot": None},
    "image_scrapers": (_as_webp,),
    "within_subsection_order": FunctionSortKey(_place),
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "show_signature": False,
    "show_memory": False,
    "abort_on_example_error": True,
    "only_warn_on_example_error": False,
    "plot_gallery": True,
}

# Options of the command line begin with two hyphens, which must stay two.
smartquotes = False

# Looks
html_theme = "furo"
html_title = "matroot"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_domain_indices = False
html_theme_options = {"source_repository": REPOSITORY} if REPOSITORY else {}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def _outside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links to files outside docs/ to the repository, or to copies that the site carries."""
    page = Path(app.env.doc2path(docname))

    def link(found: re.Match[str]) -> str:
        text, path = found["text"], os.path.relpath(page.parent / found["path"], ROOT)
        if path.startswith("docs/") or not (ROOT / path).exists():
            return found[0]
        if REPOSITORY:
            return f"[{text}]({REPOSITORY}/blob/main/{path})"
        if (ROOT / path).is_dir():
            return text
        return f"{{download}}`{text.replace('`', '')} <{found['path']}>`"

    if page.suffix == ".md":
        source[0] = re.sub(r"(?<!!)\[(?P<text>[^]]+)\]\((?P<path>\.\./[^)#]+)\)", link, source[0])


def _commands(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put what ``matroot --help`` says of every command into the page of the command line."""
    if docname == "reference/command_line":
        made = subprocess.run(
            [sys.executable, "-m", "typer", "matroot.cli", "utils", "docs", "--name", "matroot"],
            capture_output=True,
            text=True,
            check=True,
        )
        text = html.unescape(made.stdout).split("\n", 1)[1]
        source[0] = source[0].replace("<!-- commands -->", text)


def _initials(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    """Keep a line that begins with one letter and a full stop from becoming an item of a list."""
    lines[:] = [re.sub(r"^(\s*(?::[^:]+: )?[A-Za-z])\.(?=\s|$)", r"\1\\.", line) for line in lines]


def _cells(app: Sphinx, doctree: nodes.document) -> None:
    """Tell short cells of tables, numbers mostly, from sentences: only these may be wrapped."""
    for cell in doctree.findall(nodes.entry):
        cell["classes"].append("short" if len(cell.astext()) <= 28 else "sentence")


def _names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Make links of code that is a public name, such as ``sqrtm`` and ``Pade(order=5)``."""
    domain = app.env.domains.python_domain
    for literal in [*doctree.findall(nodes.literal)]:
        found = re.fullmatch(r"(?:matroot\.)?([\w.]+)(?:\(.*\))?", literal.astext())
        if found is None or isinstance(literal.parent, nodes.reference | nodes.title | nodes.term):
            continue
        for module in ("matroot", "matroot.methods", "matroot.gradients", "matroot.nn"):
            entry = domain.objects.get(f"{module}.{found[1]}")
            if entry is not None and entry.objtype in ("class", "exception", "function", "data"):
                place = (docname, entry.docname, entry.node_id)
                link = make_refnode(app.builder, *place, literal.deepcopy(), f"{module}.{found[1]}")
                literal.replace_self(link)
                break


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls it."""
    app.connect("source-read", _commands)
    app.connect("source-read", _outside)
    # After napoleon.
    app.connect("autodoc-process-docstring", _initials, priority=900)
    app.connect("doctree-read", _cells)
    app.connect("doctree-resolved", _names)
    return {"parallel_read_safe": True}
