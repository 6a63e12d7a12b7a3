"""How Sphinx builds these pages: ``python -m sphinx -W docs site``."""

from importlib import metadata

project = "mibench"
author = "The mibench authors"
copyright = author
release = metadata.version("mibench")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]
"""Links to tables in results/ are for readers of the sources: here the tables stand below them.
``tests/test_words.py`` looks whether each link leads to a file and a heading."""
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"
"""Signatures stay short; docstrings give shapes, units and ranges."""
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True
napoleon_attr_annotations = False

html_theme = "furo"
html_title = f"mibench {release}"
html_baseurl = ""
