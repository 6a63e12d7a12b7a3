"""The pages in a real browser: Debian's Chromium through Playwright, and axe-core's rules.

Skipped where there is no browser, unless MIBENCH_REQUIRE names "browser".
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.store import Store
from tests.browsing import opened, scrolls_sideways, violations
from tests.made import fill, smoke

pytestmark = [pytest.mark.slow, pytest.mark.browser]
WIDTHS = (360, 1440)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    table = smoke("GMI / No Def.", "GMI / MID", "KED-MI / No Def.", "VMI / BiDO-HSIC")
    fill(table, Store(folder / "store"), seeds=2, data=Path())
    rows = [x for label in table.rows for x in ("--rows", label)]
    places = ["--store", str(folder / "store"), "--seeds", "2", *rows]
    adaptive = TABLES["digits-adaptive"]
    labels = ("KED-MI / No Def.", "KED-MI / MID", "KED-MI, views / MID", "KED-MI, 8 draws / MID")
    crossed = replace(adaptive, rows={label: adaptive.rows[label] for label in labels})
    fill(crossed, Store(folder / "store"), data=Path())
    chosen = [x for label in labels for x in ("--rows", label)]
    calls = (
        ["report", "digits-adaptive", *places[:2], *chosen, "-o", str(folder / "worst")],
        ["report", "smoke", *places, "-o", str(folder / "report")],
        ["records", "write", "smoke", *places, "-o", str(folder / "records")],
        ["records", "check", str(folder / "records")],
        ["records", "board", str(folder / "records"), "-o", str(folder / "leaderboard")],
    )
    for call in calls:
        if call[1] == "board":
            (folder / "records" / "broken.json").write_text("{")
        done = CliRunner().invoke(main, call)
        assert done.exit_code == 0, done.output
    return {
        "report": folder / "report" / "index.html",
        "leaderboard": folder / "leaderboard" / "index.html",
        "worst": folder / "worst" / "index.html",
    }


BACKGROUNDS = """async () => {
  const marks = [...document.querySelectorAll('.px')];
  const urls = new Set(marks.map(m => getComputedStyle(m).backgroundImage));
  let bad = 0;
  for (const url of urls) {
    const image = new Image();
    image.src = url.slice(5, -2);
    try { await image.decode(); } catch { bad += 1; }
    if (!image.naturalWidth) bad += 1;
  }
  return [marks.length, urls.size, bad, document.querySelectorAll('img:not([alt])').length];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "leaderboard", "worst"])
def test_a_page_has_no_error_and_no_violation(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    page, wrong = opened(browser, pages[name], width, scheme)
    assert not wrong
    for summary in page.query_selector_all("details > summary"):
        summary.evaluate("s => s.parentElement.open = true")
    if name == "worst":
        heat = page.locator("table.heat").first
        assert heat.locator("tbody tr").count() == 4
        assert heat.locator("td").all_inner_texts().count("–") == 2
    if name == "report":
        marks, urls, bad, mute = page.evaluate(BACKGROUNDS)
        assert marks > 10
        assert urls > 1
        assert bad == 0
        assert mute == 0
        unnamed = page.evaluate("document.querySelectorAll('.px:not([aria-label])').length")
        assert unnamed == 0
    assert not scrolls_sideways(page)
    if where := os.environ.get("MIBENCH_SCREENSHOTS"):
        Path(where).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{where}/{name}-{width}-{scheme}.png", full_page=True)
    assert not violations(page)
    page.close()
    assert not wrong


def test_sorting_works_by_mouse_and_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    page, wrong = opened(browser, pages["report"], 1440, "light")
    rows = "[...document.querySelectorAll('table.sortable tbody tr')]"
    values = f"{rows}.map(r => r.cells[4].dataset.value).filter(v => v !== '').map(Number)"
    labels = f"{rows}.map(r => r.cells[0].dataset.value)"
    before = page.evaluate(labels)
    button = page.locator("table.sortable thead th:nth-child(5) button")
    head = page.locator("table.sortable thead th:nth-child(5)")
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    rules = f"{rows}.map((r) => getComputedStyle(r.cells[0]).borderTopWidth)"
    assert "2px" not in page.evaluate(rules), "groups of rows have been torn apart"
    rising = page.evaluate(values)
    assert len(set(rising)) > 1
    assert rising == sorted(rising)
    button.focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert page.evaluate(values) == sorted(rising, reverse=True)
    page.locator("table.sortable thead th:nth-child(1) button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert page.evaluate(labels) == sorted(before)
    page.locator("table.sortable thead th:nth-child(1) button").click()
    page.locator("table.sortable thead th:nth-child(1) button").click()
    assert page.evaluate(labels) == before
    assert not wrong
    page.close()


def test_the_tab_key_walks_down_the_page_and_markers_tell_their_numbers(
    browser: Any, pages: dict[str, Path]
) -> None:
    page, wrong = opened(browser, pages["report"], 1440, "light")
    walk = """() => { const e = document.activeElement;
      return [e.className.baseVal ?? e.className, e.tagName]; }"""
    kinds: list[str] = []
    for _ in range(200):
        page.keyboard.press("Tab")
        kind, tag = page.evaluate(walk)
        if tag == "BODY":
            break
        kinds.append(f"{tag}.{kind}".lower())
        if kind.startswith("pt"):
            tip = page.evaluate(
                "document.activeElement.closest('[data-tips]').querySelector('output').textContent"
            )
            assert tip == page.evaluate("document.activeElement.getAttribute('aria-label')")
            assert "Attack Acc" in tip
    assert kinds[0] == "a.skip"
    assert "button." in kinds
    assert any(k.startswith("g.pt") for k in kinds)
    assert any(k.startswith("summary") for k in kinds)
    sections = [k.split(".")[0] for k in kinds]
    assert sections.index("button") < sections.index("g") < sections.index("summary")
    assert not wrong
    page.close()


def test_nothing_moves_once_the_page_is_laid_out(browser: Any, pages: dict[str, Path]) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 900})
    page.add_init_script(
        "window.shift = 0; new PerformanceObserver(l => { for (const e of l.getEntries())"
        " window.shift += e.value; }).observe({type: 'layout-shift', buffered: true});"
    )
    page.goto(pages["report"].as_uri())
    page.wait_for_timeout(500)
    assert page.evaluate("window.shift") == 0
    page.close()
