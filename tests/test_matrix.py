"""All attacks against all defenses: worst cases, ranks, judges, gaps, and the command."""

import csv
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from mibench.attacks import PriorSamples
from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.reporting import matrix
from mibench.reporting.cautions import control_table
from mibench.reporting.matrix import Matrix, fewest, span
from mibench.reporting.matrix_forms import BUDGETS, NONE, ROUGH, sentences, table_text
from mibench.reporting.notes import footnotes
from mibench.reporting.reading import common_seeds
from mibench.reporting.results import collect
from mibench.running.grid import Grid, record_stages
from mibench.running.stages import graph, record_stage
from mibench.store import Store
from tests.made import META, fill, payload, smoke

NAN = float("nan")


def made(means: Sequence[Sequence[float]], seeds: int = 3, identities: int = 30) -> Matrix:
    """Returns a matrix in which every seed and identity has its cell's mean."""
    values = np.tile(np.array(means, dtype=float)[:, :, None, None], (1, 1, seeds, identities))
    names = tuple(f"A{a}" for a in range(len(means))), tuple(f"D{d}" for d in range(len(means[0])))
    gaps = {
        (names[0][a], names[1][d]): matrix.WHOLE
        for a, d in np.ndindex(*values.shape[:2])
        if np.isnan(values[a, d]).any()
    }
    return Matrix(*names, values, gaps)


def test_worst_cases_and_ranks_of_a_matrix_without_noise() -> None:
    m = made([[80, 10, 20], [60, 30, 50]])
    assert m.worst() == [("A0", 80, 80, 80), ("A1", 30, 30, 30), ("A1", 50, 50, 50)]
    assert m.ranks() == [(3, 3, 3), (1, 1, 1), (2, 2, 2)]
    assert m.missed() == [
        ("A1", *[pytest.approx(20 / 3)] * 3),
        ("A0", *[pytest.approx(50 / 3)] * 3),
    ]


def test_equal_worst_cases_share_their_rank() -> None:
    assert [rank for rank, *_ in made([[50, 50, 20]]).ranks()] == [2.5, 2.5, 1]
    third = np.zeros((1, 2, 1, 3))
    third[0, 0], third[0, 1] = [100 / 3, 200 / 3, 100], [100, 100 / 3, 200 / 3]
    assert [r for r, *_ in Matrix(("A",), ("D", "E"), third, {}).ranks()] == [1.5, 1.5]


def test_only_defenses_that_met_the_same_attacks_are_ranked_together() -> None:
    m = made([[90, 80, NAN], [60, 70, 50]])
    first, second = m.parts()
    assert (first.attacks, first.defenses) == (("A0", "A1"), ("D0", "D1"))
    assert (second.attacks, second.defenses) == (("A1",), ("D0", "D1", "D2"))
    assert [rank for rank, *_ in first.ranks()] == [2, 1]
    assert [rank for rank, *_ in second.ranks()] == [2, 3, 1]
    (whole,) = made([[90, 80]]).parts()
    assert whole.defenses == ("D0", "D1")
    assert made([[NAN, 80], [70, NAN]]).parts() == []
    assert not [
        line for line in sentences(made([[90, 80]])) if "below the" in line or "Few" in line
    ]
    (alone,) = made([[80], [70]]).parts()
    assert alone.attacks == ("A0", "A1")
    parts = made([[9, 8, 7, NAN], [9, 8, NAN, NAN], [9, NAN, NAN, 6]]).parts()
    assert [(p.attacks, p.defenses) for p in parts] == [
        (("A0", "A1"), ("D0", "D1")),
        (("A0",), ("D0", "D1", "D2")),
        (("A2",), ("D0", "D3")),
    ]
    text = list(sentences(m))
    assert "**2 targets that met all 2 attacks**, 3 seeds, 30 classes:" in text
    assert "**3 targets that met the 1 attack** (A1), 3 seeds, 30 classes:" in text


def test_fewest_attacks_that_find_each_worst_case() -> None:
    means = np.array([[80.0, 10, 10], [10, 80, 10], [10, 10, 80], [76, 76, 10]])
    assert fewest(means) == (2, 3)
    assert fewest(means, within=3) == (0, 1, 2)
    assert fewest(np.array([[75.0, 80], [76, 79], [80, 80]])) == (2,)  # the smallest miss
    assert made([[80, 76], [70, 80]]).judges() == (("A0",), 1)


def test_a_defense_is_compared_with_its_twin_at_the_same_seeds_and_persons() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 20, (2, 1, 3, 30))
    values = np.concatenate([50 + noise, 40 + noise, 45 + rng.normal(0, 1, (2, 1, 3, 30))], 1)
    others = {"B": "A", "C": "B"}
    m = Matrix(("X", "Y"), ("A", "B", "C"), values, {}, others)
    first, second = m.differences()
    assert first == ("B", "A", *[pytest.approx(-10)] * 3)
    means = values.mean((0, 2, 3))
    assert second[:2] == ("C", "B")
    assert second[2] == pytest.approx(means[2] - means[1])
    assert second[3] < second[2] < second[4]
    less = values.mean((0, 3))[2] - values.mean((0, 3))[1]  # one number of each seed
    half = stats.t.ppf(0.975, 2) * stats.sem(less)
    low, high = f"{less.mean() - half:.1f}", f"{less.mean() + half:.1f}"
    text = "\n".join(sentences(m))
    assert "| B | A | -10.0 | none |\n" in text  # seeds agree
    assert re.search(rf"\| C \| B \| [^|]*\) \| {low} to {high} \|\n", text)
    one_seed = Matrix(("X", "Y"), ("A", "B", "C"), values[:, :, :1], {}, others)
    assert "| C | B | +" in (text := "\n".join(sentences(one_seed)))
    assert "Student" not in text
    lines = list(csv.DictReader(table_text(m).splitlines()))
    assert [line["compared_with"] for line in lines] == ["", "A", "B"] * 2
    assert [line["higher_by"] for line in lines][:2] == ["", "-10.0000"]
    for a, line in enumerate((lines[2], lines[5])):
        own = values[a, 2].mean() - values[a, 1].mean()
        assert float(line["higher_by"]) == pytest.approx(own, abs=1e-4)
        assert float(line["higher_low"]) < own < float(line["higher_high"])
    gap = values.copy()
    gap[0, 0] = NAN
    whole, some = Matrix(("X", "Y"), ("A", "B", "C"), gap, {}, others).parts()
    assert [line[:2] for line in whole.differences()] == [("C", "B")]
    assert whole.not_compared() == [("B", "A")]
    assert len(some.differences()) == 2
    shown = list(sentences(Matrix(("X", "Y"), ("A", "B", "C"), gap, {}, others)))
    assert "Not compared, for want of the other's numbers: B with A." in shown
    assert made([[1, 2]]).differences() == []


def test_the_twin_is_taken_before_no_defense() -> None:
    table = TABLES["defenses-avatars"]
    others = matrix.compared(table)
    assert others["MID (0.05)"] == ("MID (0)", "")
    assert others["DP-SGD (0.1)"] == ("DP-SGD (0)", "")
    assert others["MID (0)"] == ("No Def.", "")
    assert others["DP-SGD (0)"] == ("No Def.", "another recipe")
    assert others["SSF (0.2)"] == ("No Def. (IR)", "")
    assert others["Rounding (2)"] == ("No Def.", "")
    assert not others.keys() & {"No Def.", "No Def. (IR)"}
    every = matrix.compared(TABLES["matrix-avatars"])
    assert every["MID (0.05)"] == ("No Def.", "its twin has no row")
    assert every["DP-SGD (0.1)"] == ("No Def.", "another recipe")
    fewer = replace(table, rows={k: c for k, c in table.rows.items() if k != "BREP-MI / MID (0)"})
    assert matrix.compared(fewer)["MID (0.05)"] == ("MID (0)", "")
    m = replace(made([[80, 10]]), others={"D1": "D0"}, unlike={"D1": "another recipe"})
    assert "| D1 | D0 (another recipe) | -70.0 | none |" in list(sentences(m))


def test_judges_are_held_to_the_worst_attack_of_each_draw() -> None:
    seeds = np.array([[50.0, 50, 50], [0, 49, 98]])
    m = Matrix(("A", "B"), ("D",), np.repeat(seeds[:, None, :, None], 30, 3), {})
    names, share = m.judges()
    assert names == ("A",)
    own = m.drawn[:, :, 0]
    assert share == pytest.approx((own[:, 1] - own[:, 0] <= matrix.WITHIN).mean())
    assert 0.3 < share < 0.8


def test_with_few_seeds_or_persons_there_are_no_intervals() -> None:
    for m in (made([[80, 10]], seeds=2), made([[80, 10]], identities=19)):
        text = list(sentences(m))
        assert NONE in text
        assert "| D0 | A0 | 80.0 | 2 |" in text
        assert table_text(m).splitlines()[1].startswith("A0,D0,")
        assert table_text(m).splitlines()[1].endswith("80.0000,,,,,,,")
    text = list(sentences(made([[80, 10], [70, 20]])))
    assert "| D0 | A0 | 80.0 | 2 |" in text
    assert "| A1 | 5.0 |" in text


def test_an_interval_whose_ends_are_equal_is_none() -> None:
    values = np.full((2, 2, 3, 30), 100.0)
    values[1, :, 0] = 40
    m = Matrix(("A", "B"), ("C", "D"), values, {}, {"D": "C"})
    text = list(sentences(m))
    assert "| C | A | 100.0 | 1.5 |" in text
    assert "| A | 0.0 |" in text
    assert "| B | 20.0 (0.0 to 60.0) |" in text
    first, _, third, fourth = csv.DictReader(table_text(m).splitlines())
    assert [first[k] for k in ("attack_acc", "low", "high")] == ["100.0000", "", ""]
    assert [third[k] for k in ("attack_acc", "low", "high")] == ["80.0000", "40.0000", "100.0000"]
    assert [fourth[k] for k in ("higher_by", "higher_low", "higher_high")] == ["0.0000", "", ""]


def test_the_bootstrap_is_over_seeds_and_over_identities() -> None:
    rng = np.random.default_rng(1)
    persons = rng.normal(50, 20, 30)
    seeds = np.array([-6.0, 0, 6])
    values = (seeds[:, None] + persons)[None, None]
    (_, mean, low, high), *_ = Matrix(("A",), ("D",), values, {}).worst()
    assert mean == pytest.approx(persons.mean())
    spread = np.sqrt(seeds.var() / 3 + persons.var() / 30)
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    alike = np.broadcast_to(persons, (1, 1, 3, 30))
    (_, _, low, high), *_ = Matrix(("A",), ("D",), alike, {}).worst()
    assert (high - low) / 2 == pytest.approx(1.96 * persons.std() / np.sqrt(30), rel=0.1)


def test_intervals_hold_what_was_found_however_many_attacks_are_alike() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(50, 30, (17, 5, 3, 30))
    values[:, 0] += 60 - values[:, 0].mean((1, 2), keepdims=True)
    m = Matrix(tuple(map(str, range(17))), tuple("abcde"), values, {})
    for _, mean, low, high in m.worst():
        assert low < mean < high
    for rank, low, high in m.ranks():
        assert low <= rank <= high


def test_points_below_are_counted_from_the_worst_attack_of_each_draw() -> None:
    seeds = np.array([[50.0, 50, 50], [0, 49, 98]])
    m = Matrix(("A", "B"), ("D",), np.repeat(seeds[:, None, :, None], 30, 3), {})
    (first, *own), (second, *other) = m.missed()
    (low, high), (least, most) = span(np.maximum((m.drawn[:, ::-1] - m.drawn)[..., 0], 0))
    assert (first, own) == ("A", [0, low, high])
    assert (second, other) == ("B", [1, least, most])
    assert (low, least) == (0, 0)
    assert high > 20


@pytest.mark.parametrize(("spread", "low", "high"), [(0, 0, 3), (0.5, 10, 20), (4, 20, 26)])
def test_how_many_intervals_of_true_differences_of_0_leave_it_out(
    spread: float, low: float, high: float
) -> None:
    # The runs of docs/statistics.md, 20 images of each class: two defenses share half of the
    # seeds' variance, and the classes' effects.
    rng = np.random.default_rng(4)
    pairs, seeds, classes, images = 500, 3, 30, 20
    shared = rng.normal(0, spread * 0.5**0.5, (pairs, 1, seeds, 1))
    own = rng.normal(0, spread * 0.5**0.5, (pairs, 2, seeds, 1))
    both = rng.normal(0, 0.5, (pairs, 2, seeds, classes))
    logit = shared + own + rng.normal(0, 1, (pairs, 1, 1, classes)) + both
    hits = 100 / images * rng.binomial(images, 1 / (1 + np.exp(-logit)))
    names = tuple(str(n) for n in range(2 * pairs))
    others = dict(zip(names[::2], names[1::2], strict=True))
    m = Matrix(("A",), names, hits.reshape(1, -1, seeds, classes), {}, others)
    out = [not low <= 0 <= high for *_, low, high in m.differences()]
    assert len(out) == pairs
    assert low <= 100 * np.mean(out) <= high
    assert "of twenty true differences of 0, up to five of these intervals leave out 0" in ROUGH


def test_cells_without_a_number_say_why() -> None:
    m = made([[80, NAN], [60, 30]])
    lines = list(csv.DictReader(table_text(m).splitlines()))
    assert [line["why_not"] for line in lines] == ["", matrix.WHOLE, "", ""]
    assert lines[1]["attack_acc"] == ""
    assert float(lines[2]["attack_acc"]) == 60
    assert f"Cells without a number: 1: {matrix.WHOLE}." in list(sentences(m))
    table = TABLES["matrix-avatars"]
    assert matrix.why_not(table, "GMI", "Rounding (2)") == matrix.WHOLE
    assert matrix.why_not(table, "GMI", "No Def.") == matrix.MISSING
    assert matrix.why_not(TABLES["defenses-avatars"], "PPA", "MID (0.1)") == matrix.ABSENT


def test_every_attack_meets_every_defense() -> None:
    table = TABLES["matrix-avatars"]
    gaps = {
        (a, d): matrix.why_not(table, a, d)
        for a in {label.split(" / ")[0] for label in table.rows}
        for d in {label.split(" / ")[1] for label in table.rows}
    }
    assert matrix.ABSENT not in gaps.values()
    assert len({a for a, _ in gaps}) >= 15
    assert len({d for _, d in gaps}) >= 15


def test_the_matrix_shares_what_other_tables_computed() -> None:
    def keys(table: str, label: str) -> set[str]:
        last = record_stage(TABLES[table].rows[label], TABLES[table].columns, "data")
        return {f"{s.kind} {s.key}" for s in graph([last]) if s.kind != "record"}

    own = TABLES["matrix-avatars"].rows
    for table in ("attacks-avatars", "defenses-avatars"):
        shared = [label for label in TABLES[table].rows if label in own]
        assert len(shared) >= 17
        for label in shared:
            inversions = [
                {k for k in keys(t, label) if "inversion" in k} for t in (table, "matrix-avatars")
            ]
            assert inversions[0] == inversions[1]


def test_a_row_without_every_seed_has_no_number(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    table = smoke("GMI / No Def.", "GMI / MID", "VMI / No Def.")
    with pytest.raises(ValueError, match="no row of smoke is finished"):
        matrix.matrix(Grid.plan(table, 3, None, store))
    records = fill(table, store, seeds=3)
    shutil.rmtree(store.path(records["GMI / MID"][1]))
    grid = Grid(table, records, store)
    m = matrix.matrix(grid)
    assert m.values.shape[2] == 3
    assert m.defenses == ("No Def.",)
    assert m.gaps == {}
    assert m.left_out == {"MID": matrix.FEWER}
    assert "Not computed at each of these seeds: MID." in list(sentences(m))
    for label in ("GMI / No Def.", "VMI / No Def."):
        shutil.rmtree(store.path(records[label][0]))
    assert matrix.matrix(Grid(table, records, store)).values.shape[:3] == (2, 2, 1)


def test_of_rows_with_different_seeds_it_takes_those_that_give_most_values() -> None:
    assert common_seeds([{0, 1, 2}, {0, 1, 2}, {0, 1, 2, 3, 4}]) == [0, 1, 2]
    assert common_seeds([{0, 1, 2}, {0, 1, 2}, {0}, {0}]) == [0, 1, 2]
    assert common_seeds([{0, 1, 2}, *[{0}] * 9]) == [0]
    assert common_seeds([{0, 1, 2}, {0, 1, 2}, {1, 2, 3}, {1, 2, 3}]) == [0, 1, 2]
    assert common_seeds([{0, 1, 2, 3, 4}, {0, 1, 2}, {0, 1, 2}]) == [0, 1, 2]
    assert common_seeds([{3}, {5}]) == [3]


def test_no_row_is_given_up_for_a_second_seed() -> None:
    assert common_seeds([*[{0}] * 5, *[{0, 1}] * 6]) == [0]
    assert common_seeds([{1, 2}, {1, 2}]) == [1, 2]
    assert common_seeds([{0, 1}, {0, 2}, {1, 2}, {0, 2}]) == [0]
    assert common_seeds([{4}, {0, 1}, {2, 3}]) == [0, 1]
    lines = ("123", "145", "167", "246", "257", "347", "356")  # of which every two share a seed
    assert common_seeds([{0, *map(int, line)} for line in lines]) == [0]


def test_the_command_writes_the_numbers_of_the_table(tmp_path: Path) -> None:
    published = Path("results/avatars")
    arguments = ["--records", str(published / "records"), "-o", str(tmp_path)]
    done = CliRunner().invoke(main, ["figure", "matrix", "avatars", *arguments])
    assert done.exit_code == 0, done.output
    written = {p.suffix: p for p in tmp_path.iterdir()}
    assert written.keys() == {".pdf", ".png", ".csv", ".md"}
    with (published / "avatars.csv").open() as file:
        table = {line["row"]: float(line["attack_acc"]) for line in csv.DictReader(file)}
    with written[".csv"].open() as file:
        cells = list(csv.DictReader(file))
    assert {line["seeds"] for line in cells} == {"5"}
    for line in cells:
        mean = float(line["attack_acc"])
        assert mean == pytest.approx(table[f"{line['attack']} / {line['defense']}"], abs=0.01)
        assert float(line["low"]) < mean < float(line["high"])
    (kedmi,) = [x for x in written[".md"].read_text().splitlines() if x.startswith("| KED-MI | ")]
    # 15,000 answers and gradients of 30 classes; 3,000 about public images, of MID 23,552.
    assert kedmi.endswith(f"| {(4 * 15_000 + 3 * 3_000 + 23_552) / 4 / 30:,.0f} | 500 |")
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert CliRunner().invoke(main, ["figure", "matrix", "avatars", *arguments]).exit_code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_what_each_attack_spent_stands_beside_what_it_found() -> None:
    m = replace(made([[80, 10], [60, 30]]), spent={"A0": (1234.6, 0.0), "A1": (600.0, 500.0)})
    lines = list(sentences(m))
    assert "| A1 | 10.0 | 600 | 500 |" in lines
    assert "| A0 | 10.0 | 1,235 | 0 |" in lines
    assert BUDGETS in lines
    assert BUDGETS not in list(sentences(made([[80, 10], [60, 30]])))


def test_targets_with_scattered_holes_are_compared_by_what_they_share() -> None:
    m = made([[9, NAN, 7, NAN], [8, 8, NAN, NAN], [NAN, 7, 6, NAN], [NAN, NAN, NAN, 5]])
    parts = [(p.attacks, p.defenses) for p in m.parts()]
    assert parts == [(("A1",), ("D0", "D1")), (("A0",), ("D0", "D2"))]
    assert "Met by attacks that met no other target: D3." in list(sentences(m))
    # The most cells first: two attacks on four targets rather than three attacks on two.
    rows = np.vstack([np.ones((3, 4)), np.diag([1] * 4)])
    rows[2, 2:] = 0
    (wide,) = made(np.where(rows, 1, NAN).tolist()).parts()
    assert (wide.attacks, wide.defenses) == (("A0", "A1"), ("D0", "D1", "D2", "D3"))


def test_targets_in_no_comparison_are_named() -> None:
    text = list(sentences(made([[NAN, 80], [70, NAN]])))
    assert "Met by attacks that met no other target: D0; D1." in text
    assert not [line for line in text if line.startswith("Ranks")]
    odd = Matrix(("A|B",), ("C", "D"), np.full((1, 2, 1, 3), 50.0), {})
    text = list(sentences(odd))
    assert "**2 targets that met the 1 attack**, 1 seed, 3 classes:" in text
    assert "| C | A&#124;B | 50.0 | 1.5 |" in text


def test_controls_are_no_attacks(tmp_path: Path) -> None:
    store, table = Store(tmp_path / "store"), smoke("GMI / No Def.", "GMI / MID")
    samples = {
        label.replace("GMI", "Samples"): replace(cell, attack=PriorSamples(cell.attack.prior))
        for label, cell in table.rows.items()
    }
    table = replace(table, rows={**table.rows, **samples})
    m = matrix.matrix(Grid(table, fill(table, store), store))
    assert m.attacks == ("GMI",)
    assert "Left out as controls, which are no attacks: Samples." in list(sentences(m))
    alone = replace(table, rows=samples)
    with pytest.raises(ValueError, match="no row of smoke that is no control is finished"):
        matrix.matrix(Grid(alone, fill(alone, store), store))


def test_remarks_say_how_rows_were_computed_and_which_say_nothing(tmp_path: Path) -> None:
    store, table = Store(tmp_path / "store"), smoke()
    records = record_stages(table, 2, None)
    odd = records["GMI / MID"]
    for stage in graph(r for own in records.values() for r in own):
        made_up = payload(stage, store)
        if stage in odd:
            made_up["evaluator"]["accuracy"] = 42.0
        precision = "bf16" if stage is odd[0] else "float32"
        store._commit(stage, made_up, META | {"precisions": [precision]})
    weak, differ, mixed = matrix.matrix(Grid(table, records, store)).notes
    assert differ in footnotes(collect(Grid(table, records, store)))
    assert differ.startswith("Evaluation classifiers differ; their test accuracy: 9")
    assert differ.endswith("42.00 % for GMI / MID.")
    assert weak.startswith("GMI / MID: the evaluation classifier is right about 42.00 %")
    assert mixed.startswith("GMI / MID: some of the stages were computed in float32 and some")
    fill(control_table(table), store, seeds=2)
    m = matrix.matrix(Grid(table, records, store))
    assert m.notes[0].startswith("GMI, VMI: Attack Acc is not significantly above that of samples")
    assert set(m.notes) <= set(sentences(m))
    shutil.rmtree(store.path(records["VMI / No Def."][1]))  # now the matrix is of seed 0
    *_, narrow = matrix.matrix(Grid(table, records, store)).notes
    assert narrow == "Networks computed in bf16: GMI / MID."


def test_what_is_not_computed_yet_is_left_out_and_said(tmp_path: Path) -> None:
    arguments = ["--records", "results/attacks-avatars/records", "-o", str(tmp_path)]
    done = CliRunner().invoke(main, ["figure", "matrix", "matrix-avatars", *arguments])
    assert done.exit_code == 2
    assert "the records have no Attack Acc of matrix-avatars" in done.output
    m = made([[80, NAN], [60, 30]])
    m.gaps["A0", "D1"] = matrix.MISSING
    assert f"Cells without a number: 1: {matrix.MISSING}." in list(sentences(m))
