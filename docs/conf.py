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
