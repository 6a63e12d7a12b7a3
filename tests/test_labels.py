"""Labels and captions with any characters in them, in every format; and LaTeX that compiles."""

import csv
import io
import json
import math
import os
import shutil
import subprocess
import unicodedata
from dataclasses import replace
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mibench.benchmarks.tables import TABLES, Table
from mibench.reporting.forms import FORMATS, render
from mibench.reporting.latex import standalone, tex
from mibench.reporting.records import schema
from mibench.reporting.results import Results, collect
from mibench.running.grid import Grid
from mibench.store import Store
from tests.made import fill, renamed, smoke

HOSTILE = {
    "a": "GMI / 50 % & more_#1 $x$ {y} ~z^ \\end{table} \\",
    "b": "<script>alert(1)</script> / \"quoted\", 'so'; |pipe| ⌘ é Ŷ ñ λ = 0.1 ≥ …",
    "c": "[x] two\n\nlines / \u05d0\u05d1\u05d2 \u202e*right* to left [red]bar[/nothing]",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Results:
    table = replace(
        renamed(smoke(), **HOSTILE),
        caption=HOSTILE["a"] + "\n\n" + HOSTILE["c"],
        notes=(HOSTILE["b"],),
        source="x",
        reported={HOSTILE["a"]: {"attack_acc": (16.73, 1.5)}},
    )
    return made(table, tmp_path_factory.mktemp("hostile"))


def made(table: Table, folder: Path, seeds: int = 3) -> Results:
    store = Store(folder / "store")
    return collect(Grid(table, fill(table, store, seeds=seeds), store))


def test_csv_gives_strange_labels_back(hostile: Results) -> None:
    text = render(hostile, "csv")
    rows = list(csv.reader(io.StringIO(text)))
    assert [row[0] for row in rows[1:]] == list(HOSTILE.values())
    assert {len(row) for row in rows} == {len(rows[0])}


def test_csv_and_json_give_pandas_the_same_numbers(hostile: Results) -> None:
    from_csv = pd.read_csv(io.StringIO(render(hostile, "csv")))
    told = json.loads(render(hostile, "json"))
    jsonschema.validate(told, schema("table"))
    from_json = pd.DataFrame(told["rows"]).astype(from_csv.dtypes)
    pd.testing.assert_frame_equal(from_csv, from_json, check_exact=True)
    exact = hostile.summary(reported=True)
    assert math.isclose(told["rows"][1]["attack_acc"], exact["attack_acc"].iloc[1], rel_tol=1e-9)
    assert from_csv["attack_acc_reported"].tolist()[0] == 16.73


def test_json_says_what_the_columns_mean(hostile: Results) -> None:
    told = json.loads(render(hostile, "json"))
    assert told["columns"][1] == {
        "name": "attack_acc", "title": "Attack Acc", "unit": "percent", "better": "lower",
        "per": "image",
    }  # fmt: skip
    assert told["seeds"] == 3
    assert told["notes"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told | {"seeds": 0}, schema("table"))


def test_markdown_keeps_strange_labels_in_their_cells(hostile: Results) -> None:
    text = render(hostile, "markdown")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(HOSTILE)
    assert {line.replace(r"\|", "").count("|") for line in rows} == {rows[0].count("|")}
    assert "<script>" not in "".join(rows)


def test_text_takes_no_label_for_markup(hostile: Results) -> None:
    text = render(hostile, "text")
    assert "[red]bar[/nothing]" in text
    assert "[x] two" in text


def test_latex_has_letters_at_most_beside_ascii_and_its_braces_balance(hostile: Results) -> None:
    text = render(hostile, "latex")
    assert all(c.isascii() or c.isalpha() for c in text)
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("50 % & a_b", r"50 \% \& a\_b"),
        ("a\n\nb\tc", "a b c"),
        ("é Ŷ ñ", r"\'{e} \^{Y} \~{n}"),
        ("λ Ω", r"$\lambda$ $\Omega$"),
        ("\u05d0", "\u05d0"),
        ("中文 ж", "中文 ж"),
        ("\u2318", "{}[U+2318]"),
        ("\u202e", "{}[U+202E]"),
        ("[x]", "{}[x]"),
        ("*", "{}*"),
        ("<a>", r"\textless{}a\textgreater{}"),
        ("\\", r"\textbackslash{}"),
    ],
)
def test_characters_are_spelled(text: str, spelled: str) -> None:
    assert tex(text) == spelled


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_becomes_one_line_with_balanced_braces(text: str) -> None:
    spelled = tex(text)
    assert all(c.isascii() or unicodedata.category(c)[0] in "LM" for c in spelled)
    assert spelled.isprintable()
    bare = spelled.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    assert bare.replace(r"\$", "").count("$") % 2 == 0


def test_defenses_at_several_weights_are_set_apart(tmp_path: Path) -> None:
    names = ("GMI / No Def.", "GMI / MID (a)", "GMI / MID (b)")
    table = renamed(smoke(), **dict(zip("abc", names, strict=True)))
    lines = render(made(table, tmp_path, 1), "latex").splitlines()
    at = lines.index(r"\addlinespace")
    assert lines[at - 1].startswith("GMI / No Def.")
    assert lines[at + 1].startswith("GMI / MID (a)")
    assert lines.count(r"\addlinespace") == 1


def compiled(text: str, folder: Path) -> None:
    """Runs pdflatex on a document."""
    if not shutil.which("pdflatex"):
        if "latex" in os.environ.get("MIBENCH_REQUIRE", "").split(","):
            pytest.fail("MIBENCH_REQUIRE asks for LaTeX, and there is no pdflatex")
        pytest.skip("no LaTeX here")
    (folder / "t.tex").write_text(text, encoding="ascii")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "t.pdf").stat().st_size > 1000


@pytest.mark.slow
def test_strange_labels_compile(hostile: Results, tmp_path: Path) -> None:
    text = "".join(filter(str.isascii, render(hostile, "latex")))
    compiled(standalone(text), tmp_path)


def test_letters_that_pdflatex_lacks_ask_for_another_engine(tmp_path: Path) -> None:
    plain = standalone(render(made(smoke(), tmp_path / "a", 1), "latex"))
    assert plain.isascii()
    assert "fontspec" not in plain
    for label, packages in {"我的方法": ("fontspec", "ctex"), "мой метод": ("fontspec",)}.items():
        text = render(made(renamed(smoke("GMI / MID"), a=label), tmp_path / label, 1), "latex")
        assert text.startswith("% For XeLaTeX or LuaLaTeX, with a font that has")
        assert f"\n{label} & " in text
        before, begin, _ = standalone(text).partition(r"\begin{document}")
        assert begin
        assert [p for p in ("fontspec", "ctex") if f"{{{p}}}" in before] == list(packages)


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_every_table_compiles_as_a_document(name: str, tmp_path: Path) -> None:
    table = TABLES[name]
    empty = collect(Grid.plan(table, 1, None, Store(tmp_path / "store")))
    compiled(standalone(render(empty, "latex")), tmp_path)


def test_every_format_is_written_for_every_label(hostile: Results) -> None:
    for form in FORMATS:
        assert render(hostile, form)
