"""The ledger in docs/deviations.md is true: every equation has one home, which names it."""

import ast
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEDGER = (ROOT / "docs" / "deviations.md").read_text()
ROW = re.compile(r"^\| (Eq\. \(\w+\)|Appendix C|Algorithm 1) \|[^|]*\| `([\w.]+)`", re.MULTILINE)


def docstrings() -> dict[str, str]:
    found = {}
    for path in (ROOT / "mibench").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        found[module] = ast.get_docstring(tree) or ""
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[f"{module}.{node.name}"] = ast.get_docstring(node) or ""
    return found


def test_every_equation_of_the_ledger_is_named_by_its_home() -> None:
    texts = docstrings()
    rows = ROW.findall(LEDGER)
    assert len(rows) >= 12
    for equation, home in rows:
        number = equation.removeprefix("Eq. ")
        module = texts[home.rpartition(".")[0]] if home.count(".") > 2 else ""
        assert number in texts[home] + module, f"{home} does not name {equation}"


def test_an_equation_is_defined_once() -> None:
    homes = dict(ROW.findall(LEDGER))
    claim = re.compile(r"(?:,|:) Eq\. \((\w+)\)\.?[;:]?(?: |$|\n)")
    for name, text in docstrings().items():
        for number in claim.findall(text.split("\n")[0]):
            assert homes[f"Eq. ({number})"] == name


def test_every_home_exists() -> None:
    for home in re.findall(r"`(mibench\.[\w.]+)`", LEDGER):
        module, _, name = home.rpartition(".")
        try:
            importlib.import_module(home)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), name), home
