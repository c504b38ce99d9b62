"""How Sphinx builds the documentation: `make docs`, or `sphinx-build -c docs . build/site`.

The repository's root is the source, so that README and documents link to each other as they do in a checkout.
"""

from __future__ import annotations

import sys
from pathlib import Path

from memoptc.version import __version__

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "_ext"))

project, author = "memoptc", "The memoptc authors"
version = release = __version__
project_copyright = author
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click",
    "reference_tables",
]  # fmt: skip
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    "examples/plugin/README.md",
    "docs/**",
]
root_doc = "docs/index"
html_theme = "furo"
html_title = f"memoptc {version}"
templates_path = ["_templates"]
html_additional_pages = {"index": "to_docs.html"}
default_role = "literal"  # docstrings write `name` for code
nitpicky = False
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
highlight_language = "none"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
suppress_warnings = ["myst.xref_missing_anchor"]
