import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mibench.benchmarks.tables import TABLES, Table
from mibench.evaluation.significance import Interval
from mibench.reporting.forms import FORMATS, render
from mibench.reporting.notes import fid_note, footnotes, spread_note
from mibench.reporting.results import Entry, Results, collect, show
from mibench.reporting.sheet import Look, show_reported
from mibench.running.grid import Grid, record_stages
from mibench.store import Store

SMOKE = TABLES["smoke"]


def results(seeds: int = 1, **changes: object) -> Results:
    table = Table(
        name="made",
        caption="Made by hand: 50 % & more_",
        columns=("accuracy", "attack_acc"),
        rows={k: SMOKE.rows[k] for k in ("GMI / No Def.", "KED-MI / MID")},
        reported={"GMI / No Def.": {"attack_acc": (16.73, 1.5)}},
        notes=("Watch out: #1 {braces}.",),
    )
    entries = {
        "GMI / No Def.": {
            "accuracy": Entry(98.0, None, made(98.0, seeds)),
            "attack_acc": Entry(34.123456789, 9.66, made(34.123456789, seeds)),
        },
        "KED-MI / MID": {"accuracy": Entry(), "attack_acc": Entry()},
    }
    found = {"GMI / No Def.": seeds, "KED-MI / MID": 0}
    return Results(table, seeds, entries, found, {97.5: ("GMI / No Def.",)}, {})


def made(mean: float, seeds: int) -> Interval:
    if seeds == 1:
        return Interval(mean, None, None, 1, "none: one seed carries no interval")
    return Interval(mean, mean - 2.5, mean + 2.5, seeds, "made")


GOLDEN_LATEX = r"""\begin{table}
\centering
\caption{Made by hand: 50 \% \& more\_}
\begin{tabular}{lrrr}
\toprule
 & Accuracy $\uparrow$ & Attack Acc $\downarrow$ & Attack Acc (reported) \\
\midrule
GMI / No Def. & 98.00 & 34.12 $\pm$ 9.66 & 16.73 $\pm$ 1.50 \\
\midrule
KED-MI / MID & -- & -- & -- \\
\bottomrule
\end{tabular}
"""

GOLDEN_CSV = """row,seeds,\
accuracy,accuracy_std,accuracy_t95,accuracy_low,accuracy_high,accuracy_diff,accuracy_p,\
accuracy_reported,accuracy_reported_std,\
attack_acc,attack_acc_std,attack_acc_t95,attack_acc_low,attack_acc_high,attack_acc_diff,\
attack_acc_p,attack_acc_reported,attack_acc_reported_std
GMI / No Def.,1,98,,,,,,,,,34.12345679,9.66,,,,,,16.73,1.5
KED-MI / MID,0,,,,,,,,,,,,,,,,,,
"""


def test_latex_is_the_golden_and_its_braces_and_columns_balance() -> None:
    text = render(results(), "latex")
    assert text.startswith(GOLDEN_LATEX)
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in body} == {3}
    assert r"\#1 \{braces\}" in text


def test_csv_is_the_golden() -> None:
    assert render(results(), "csv") == GOLDEN_CSV


def test_markdown_has_as_many_cells_in_every_row() -> None:
    lines = [x for x in render(results(), "markdown").splitlines() if x.startswith("|")]
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {5}


def test_text_shows_every_row_and_every_note() -> None:
    text = render(results(), "text")
    assert "34.12 ± 9.66" in text
    assert "Watch out: #1 {braces}." in text
    assert "97.50 % test accuracy" in text


def test_with_seeds_the_spread_is_the_interval_and_the_footnote_says_so() -> None:
    text = render(results(seeds=3), "text")
    assert "34.12 ± 2.50" in text
    assert "Mean over 3 seeds ± half the width of its 95 % confidence interval" in text


def test_the_numbers_behind_fid_are_told_and_unequal_ones_warned_of() -> None:
    table = replace(results().table, columns=("fid",))
    there = {"fid": Entry(7.0)}
    entries = {"GMI / No Def.": there, "KED-MI / MID": there}
    sizes = {"GMI / No Def.": (100, 500, 512)}
    one = replace(results(), table=table, entries=entries, sizes=sizes)
    note = "FID rests on 100 reconstructions and 500 private images in 512 dimensions."
    assert fid_note(one) == [note]
    two = replace(one, sizes={**one.sizes, "KED-MI / MID": (500, 500, 512)})
    assert "(GMI)" in fid_note(two)[0]
    assert "equal numbers only" in fid_note(two)[0]


def test_what_no_fid_rests_on_is_not_told() -> None:
    table = replace(results().table, columns=("fid",))
    sizes = {"GMI / No Def.": (100, 500, 512)}
    none = replace(
        results(), table=table, entries={"GMI / No Def.": {"fid": Entry()}}, sizes=sizes
    )
    assert fid_note(none) == []
    there = replace(none, entries={"GMI / No Def.": {"fid": Entry(7.0)}})
    assert len(fid_note(there)) == 1
    other = replace(there, table=table.modified(["protocol.fid=fid_inception"]))
    assert fid_note(other) == []  # of other features


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((), "It knows 10 classes: a blind guess scores 10 % in Attack Acc, 50 % in Acc5. Arrows"),
        (("protocol.acc5=attack_acc_any",), "a blind guess scores 10 % in Attack Acc. Arrows"),
        (
            ("protocol.acc=attack_acc_best", "protocol.acc5=attack_acc_any"),
            "It knows 10 classes. Arrows",
        ),
    ],
)
def test_a_blind_guess_is_told_of_what_the_columns_are(
    settings: tuple[str, ...], told: str
) -> None:
    made = results()
    table = made.table.modified(settings)
    assert told in " ".join(footnotes(replace(made, table=table, classes=10)))


def test_the_footnote_says_over_what_the_deviations_are() -> None:
    table = replace(results().table, columns=("attack_acc", "fid", "fid_identity"))
    aside = "(FID: over repeats of the attack; FID per identity: over identities)"
    assert f"deviation over passes of one run {aside}." in spread_note(table)
    assert "over passes of one run. One seed carries no interval" in spread_note(results().table)
    by_identity = table.modified(["protocol.spread=identity"])
    aside = "(FID: over repeats of the attack)"
    assert f"deviation over identities of one run {aside}." in spread_note(by_identity)


def test_fid_per_identity_is_not_shown_without_its_warning() -> None:
    warning = "FID per identity compares few images"
    assert not [note for note in footnotes(results()) if warning in note]
    table = replace(results().table, columns=("fid_identity",))
    assert [note for note in footnotes(replace(results(), table=table)) if warning in note]


def test_without_a_paper_there_are_no_reported_columns() -> None:
    assert "reported" not in render(results(), "text", Look(reported=False))


def test_gaps_and_single_numbers() -> None:
    assert show(Entry(), 1) == "--"
    assert show(Entry(1.0), 1) == "1.00"
    assert show(Entry(1.0, std=0.5), 1) == "1.00 ± 0.50"
    assert show(Entry(1.0, std=0.5), 3) == "1.00"
    assert show(Entry(1.0, values={4: 1.0}, undefined=4), 5) == "1.00 (1/5)"
    assert show(Entry(1.5, values={0: 1.0, 1: 2.0}, undefined=3), 5) == "1.50 (1.00, 2.00) (2/5)"
    assert show_reported(None) == "--"
    assert show_reported((99.94, None)) == "99.94"


def test_collect_reads_an_empty_store_as_gaps(tmp_path: Path) -> None:
    records = record_stages(SMOKE, 2, Path())
    assert all(len(r) == 2 for r in records.values())
    empty = collect(Grid(SMOKE, records, Store(tmp_path)))
    assert all(n == 0 for n in empty.found.values())
    for form in FORMATS:
        assert render(empty, form)
    assert empty.summary().isna().drop(columns="seeds").all(axis=None)


def test_seeds_give_cells_that_share_the_evaluator_only() -> None:
    first, second = record_stages(SMOKE, 2, Path())["KED-MI / No Def."]
    a, b = first.evidence[0], second.evidence[0]
    assert a.evaluator.key == b.evaluator.key
    assert a.images.key == b.images.key
    assert a.inversion.target.key != b.inversion.target.key
    assert a.inversion.prior.key != b.inversion.prior.key


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
def test_latex_compiles(tmp_path: Path) -> None:
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "t.tex").write_text(head + render(results(), "latex") + "\\end{document}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_reported_labels_are_rows() -> None:
    for table in TABLES.values():
        assert set(table.reported) <= set(table.rows), table.name
        json.dumps({k: dict(v) for k, v in table.reported.items()})
