"""The documentation site: `sphinx-build -W -b html .github/docs SITE`, see CONTRIBUTING.md. It works offline."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import docstrings
import generated
from sphinx.util.inspect import stringify_signature

from medcyclegan import __version__

project = "medcyclegan"
author = "The medcyclegan developers"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
default_role = "code"  # docstrings write `name` in one pair of backticks

html_theme = "furo"
html_title = f"medcyclegan {release}"
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]
html_copy_source = False
html_show_sourcelink = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def _fill_in(app: Any, page: str, source: list[str]) -> None:
    """Write what is generated into the pages that have a place for it."""
    for name, text in generated.TEXTS.items():
        place = f"% generated: {name}"
        if place in source[0]:
            source[0] = source[0].replace(place, text())


def _convert(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    lines[:] = docstrings.as_rst(lines)


def _sign(app: Any, what: str, name: str, thing: Any, options: Any, given: str, returns: str) -> tuple[str, str] | None:
    """MONAI's transforms have a `__new__(*args, **kwargs)` that hides how they are made."""
    if what != "class" or "__init__" not in vars(thing) or not (given or "").startswith("(*args"):
        return None
    signature = inspect.signature(thing.__init__)
    own = signature.replace(parameters=[p for p in signature.parameters.values() if p.name != "self"])
    return stringify_signature(own, unqualified_typehints=True, short_literals=True).removesuffix(" -> None"), returns


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", _sign)
    app.connect("source-read", _fill_in)
    app.connect("autodoc-process-docstring", _convert, priority=400)  # before napoleon
