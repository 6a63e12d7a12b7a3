"""Templates, and text that is safe in a page."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any
from unicodedata import bidirectional

from markupsafe import Markup

import mibench
from mibench.data.images import is_control

TURNING = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
"""Bidirectional classes of the characters that turn what follows them around."""


def render(template: str, **values: object) -> str:
    """Returns a template with the page's style and script inside."""
    script = _text("page.js")
    shown = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made: str = (
        _environment()
        .get_template(template)
        .render(
            style=Markup(_text("page.css")),
            script=Markup(script),
            script_hash=f"sha256-{shown}",
            version=mibench.__version__,
            **values,
        )
    )
    return made


@cache
def _text(name: str) -> str:
    return files("mibench.reporting.page").joinpath(f"templates/{name}").read_text("utf-8")


@cache
def _environment() -> Any:  # noqa: ANN401 - imported where it is needed
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("mibench.reporting.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def visible(text: str) -> str:
    """Returns a label without characters that HTML forbids, or that turn what follows around."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if c not in "\n\t" and (is_control(c) or bidirectional(c) in TURNING)
        else c
        for c in text
    )
