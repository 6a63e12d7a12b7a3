"""Pages are few, link to what is there, and say things in words that are read once."""

import re
from pathlib import Path

import pytest

from mibench import __version__
from mibench.attacks import ATTACKS, CONTROLS
from mibench.benchmarks.tables import TABLES
from mibench.data import TASKS
from mibench.defenses import DEFENSES
from mibench.evaluation import METRICS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = [*PAGES, *ROOT.glob("*.md"), *(ROOT / "mibench").rglob("*.py")]
RIDDLES = {
    r"\btold apart|\btell apart|\btells? (it|them|the two|rows) apart": "distinguish",
    r"(?<!negative )(?<!line\.)\bslopes?\b": "gradient",
    r"\bmanieth\b": "every n-th",
    r"\bunless told\b": "by default",
    r"\bcomes so\b": "comes trained",
    r"\bwhence\b|\bthereof\b|\bheretofore\b": "a plain word",
}  # fmt: skip
"""Pattern → what to say in its place."""
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text())


def anchors(path: Path) -> set[str]:
    """Returns what the builder calls the headings of a page, included files too."""
    text = path.read_text()
    for included in re.findall(r"^```\{include\} (\S+)", text, re.MULTILINE):
        text += (path.parent / included).read_text()
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("pattern", RIDDLES)
def test_no_text_has_a_word_that_is_read_twice(pattern: str) -> None:
    places = [
        f"{path.relative_to(ROOT)}: {match[0]!r}"
        for path in TEXTS
        if path.name != "CHANGELOG.md"
        for match in re.finditer(pattern, path.read_text(), re.IGNORECASE)
    ]
    assert places == [], f"say {RIDDLES[pattern]} instead"


def test_a_riddle_is_noticed() -> None:
    assert any(re.search(p, "rows that are not told apart") for p in RIDDLES)
    assert any(re.search(p, "it needs no slopes") for p in RIDDLES)
    assert not any(re.search(p, "negative slope of line.slope") for p in RIDDLES)


def test_there_are_few_pages_and_the_first_lists_the_others() -> None:
    assert len(PAGES) <= 15
    (tree,) = re.findall(r"^```\{toctree\}\n(.*?)^```", (ROOT / "docs" / "index.md").read_text(),
                         re.MULTILINE | re.DOTALL)  # fmt: skip
    listed = [line for line in tree.splitlines() if line and not line.startswith(":")]
    assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem != "index")


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings_that_are_there(page: Path) -> None:
    for target, anchor in LINK.findall(prose(page)):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert sum(len(line.split()) for line in lines if not line.startswith("|")) <= 700


def test_the_readme_counts_what_is_there() -> None:
    counts = dict(re.findall(r"^\| (\w+) \| (\d+) \|", (ROOT / "README.md").read_text(), re.M))
    sizes = {
        "attacks": len(ATTACKS) - len(CONTROLS),
        "defenses": len(DEFENSES) - 1,  # no defense is none
        "tasks": len(TASKS),
        "metrics": len(METRICS),
        "tables": len(TABLES),
    }
    assert counts == {name: str(size) for name, size in sizes.items()}


def test_a_release_has_one_version_and_one_date() -> None:
    heading = re.search(r"^## \[(.+?)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = (ROOT / "CITATION.cff").read_text()
    assert heading is not None
    if "dev" not in __version__:
        assert heading[1] == __version__
        assert f"\nversion: {heading[1]}\ndate-released: {heading[2]}\n" in citation
