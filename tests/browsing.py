"""A page in a real browser: Debian's Chromium through Playwright, and axe-core's rules."""

import os
import shutil
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


def needed(what: str) -> bool:
    return what in os.environ.get("MIBENCH_REQUIRE", "").split(",")


def opened(browser: Any, path: Path, width: int, scheme: str) -> tuple[Any, list[str]]:
    """Returns the page and what it complained of, requests for other files included."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on(
        "request",
        lambda r: None if r.url.startswith(("data:", path.as_uri())) else wrong.append(r.url),
    )
    page.goto(path.as_uri())
    page.wait_for_load_state("load")
    return page, wrong


def violations(page: Any) -> list[tuple[str, list[str]]]:
    """Returns the rules of axe that a page breaks, and where."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(v["id"], [n["html"][:200] for n in v["nodes"]][:3]) for v in found]


def scrolls_sideways(page: Any) -> bool:
    """Returns whether a page is wider than its window."""
    wide: bool = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return wide
