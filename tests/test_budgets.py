"""What attacks spent, and the worst of them."""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from click.testing import CliRunner

from mibench.benchmarks.tables import TABLES, Table
from mibench.cli import main
from mibench.evaluation.significance import Interval, interval
from mibench.reporting.budgets import Budget, render, spent
from mibench.reporting.notes import BIAS, footnotes, worst_case
from mibench.reporting.results import Entry, Results
from mibench.running.executors import Bench, Serial, execute
from mibench.running.grid import Grid, record_stages
from mibench.running.progress import Watcher
from mibench.running.stages import graph
from mibench.store import Payload, Stage, Store, Work

SMALL = [
    "attack.steps=3", "attack.prior.epochs=1", "recipe.epochs=1",
    "setting.evaluators.0.recipe.epochs=1",
]  # fmt: skip
QUICK = TABLES["smoke"].only(["KED-MI / *", "GMI / No Def."]).modified(SMALL)


# Budgets ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The records of three rows."""
    root = tmp_path_factory.mktemp("budgets")
    table = QUICK.only(["*No Def.", "*MID"])
    records = record_stages(table, 1, Path())
    outcome = execute(
        graph(r for rs in records.values() for r in rs), Bench(root, Path()), Watcher(), Serial()
    )
    assert not outcome.failures
    return Store(root)


def test_a_record_says_what_the_attack_and_its_prior_asked(store: Store) -> None:
    records = record_stages(QUICK, 1, Path())
    gmi, ked, mid = (
        store.load(records[label][0])["budget"]
        for label in ("GMI / No Def.", "KED-MI / No Def.", "KED-MI / MID")
    )
    public = 896  # images of digits 5 to 9
    assert gmi == {"steps": 3, "queries": 150, "gradients": 150, "prior_queries": 0}
    assert ked == {"steps": 3, "queries": 15, "gradients": 15, "prior_queries": public}
    assert mid["prior_queries"] == public // 64 * 64  # asked anew for each batch of an epoch


def test_what_varies_between_runs_is_not_in_the_record(store: Store) -> None:
    record = record_stages(QUICK, 1, Path())["GMI / No Def."][0]
    meta = store.meta(record.evidence[0].inversion)
    for name in ("seconds", "peak_memory_bytes", "device"):
        assert name in meta
        assert name not in store.load(record)["budget"]


def test_repeats_are_summed_and_seeds_averaged(store: Store, tmp_path: Path) -> None:
    table = QUICK.only(["GMI / No Def."]).modified(["trials.repeats=2"])
    records = record_stages(table, 2, Path())
    execute(
        graph(r for rs in records.values() for r in rs),
        Bench(tmp_path, Path()),
        Watcher(),
        Serial(),
    )
    budget = spent(Grid(table, records, Store(tmp_path)))["GMI / No Def."]
    assert budget is not None
    assert (budget.steps, budget.queries, budget.seeds) == (6, 300, 2)
    each = [
        sum(Store(tmp_path).meta(e.inversion)["seconds"] for e in r.evidence)
        for r in records["GMI / No Def."]
    ]
    assert budget.seconds == pytest.approx(sum(each) / 2)


def test_budgets_prints_counts_and_gaps(store: Store) -> None:
    found = spent(Grid.plan(QUICK, 1, Path(), store))
    assert found["KED-MI / BiDO-COCO"] is None
    lines = {line.split("  ")[1]: line.split() for line in render("Small", found, 1).splitlines()
             if " / " in line}  # fmt: skip
    assert lines["GMI / No Def."][4:8] == ["3", "150", "0", "150"]
    assert lines["KED-MI / No Def."][10] == "896"
    assert set(lines["KED-MI / BiDO-COCO"][3:]) == {"--"}


def test_budgets_say_which_rows_have_fewer_seeds() -> None:
    one = Budget(1, 1, 1, 0, 1.0, 1.0, None, None, "cpu")
    found = {"A / none": replace(one, seeds=3), "B / none": one, "C / none": None}
    lines = render("Made", found, 5).splitlines()
    assert "Mean over 3 seeds." in lines
    assert "Fewer seeds so far: A / none (3), B / none (1)." in lines
    assert "One seed so far." in render("Made", {"B / none": one}, 5).splitlines()
    assert "seed" not in render("Made", {"B / none": one}, 1).split("Queries: answers")[0]


def test_the_command_prints_what_is_in_the_store(store: Store) -> None:
    settings = [part for s in SMALL for part in ("--set", s)]
    done = CliRunner().invoke(
        main, ["table", "smoke", "--budgets", *settings, "--store", str(store.root)]
    )
    assert done.exit_code == 0, done.output
    assert "What was spent" in done.stdout
    row = next(line for line in done.stdout.splitlines() if "GMI / No Def." in line)
    assert row.split()[4] == "3"


@dataclass(frozen=True)
class Hungry(Stage):
    """Holds some memory, for a while; dies in between where it is told to."""

    kind: ClassVar[str] = "hungry"

    megabytes: int

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        saved = work.load()
        held = torch.ones(self.megabytes, 2**18)
        if saved is None:
            work._begun -= 100  # as if so many seconds had passed
            work.save(lambda: {"half": 1})
            if (work.data / "stone").exists():
                raise RuntimeError("stumbled")
        return {"sum": held.sum()}


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="not Linux")
def test_the_peak_is_each_stages_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    # In a fresh process: this one may keep and reuse memory that other tests have freed.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for megabytes in (300, 1):
            assert pool.apply(store.complete, (Hungry(megabytes),))
    big, small = (store.meta(Hungry(m))["peak_memory_bytes"] for m in (300, 1))
    assert 250 * 2**20 < big - small < 350 * 2**20


def test_seconds_before_a_death_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mibench.store.store.Work", partial(Work, every=0.0))
    store = Store(tmp_path)
    (tmp_path / "stone").touch()
    with pytest.raises(RuntimeError, match="stumbled"):
        store.complete(Hungry(1), data=tmp_path)
    (tmp_path / "stone").unlink()
    store.complete(Hungry(1), data=tmp_path)
    assert 100 <= store.meta(Hungry(1))["seconds"] < 110


# The worst case -----------------------------------------------------------------------------


def made(scores: dict[str, float | None], *, worst: bool = True) -> Results:
    cell = TABLES["smoke"].rows["GMI / No Def."]
    columns = ("accuracy", "attack_acc")
    table = Table("made", "Made.", dict.fromkeys(scores, cell), columns, worst=worst)
    entries = {
        label: {
            "accuracy": Entry(100 - (s or 0), values=dict.fromkeys(range(3), 100 - (s or 0))),
            "attack_acc": Entry()
            if s is None
            else Entry(s, None, Interval(s, s - 1.5, s + 1.5, 3, "t"), dict.fromkeys(range(3), s)),
        }
        for label, s in scores.items()
    }
    return Results(table, 3, entries, dict.fromkeys(scores, 3), {}, {})


def with_seeds(results: Results, values: dict[str, dict[int, float]]) -> Results:
    """Returns results in which rows have these values of Attack Acc."""
    entries = {k: dict(own) for k, own in results.entries.items()}
    for label, own in values.items():
        over = interval(list(own.values()))
        entries[label]["attack_acc"] = Entry(over.mean, None, over, own)
    return replace(results, entries=entries)


SCORES = {
    "A / none": 40.0, "B, long / none": 70.0, "C / none": 70.0,
    "A / MID": 30.0, "B, long / MID": None, "C / MID": 20.0,
    "A / BiDO": None,
}  # fmt: skip


def test_the_worst_case_is_the_largest_mean_and_names_its_attack() -> None:
    found = worst_case(made(SCORES))
    assert set(found) == {"none", "MID"}
    none, mid = found["none"], found["MID"]
    assert (none.attack, none.entry.mean, none.attacks, none.missing) == ("B, long", 70.0, 3, 0)
    assert (mid.attack, mid.entry.mean, mid.attacks, mid.missing) == ("A", 30.0, 2, 1)


def test_where_higher_is_better_the_worst_is_the_smallest() -> None:
    assert worst_case(made({"A / none": 40.0, "B / none": 70.0}), "accuracy")["none"].attack == "B"


def test_a_table_that_asks_for_it_says_the_worst_case_and_its_bias() -> None:
    (note,) = [n for n in footnotes(made(SCORES)) if n.startswith("Worst case")]
    assert "none 70.00 ± 1.50 (B, long; of 3 attacks); MID 30.00 ± 1.50 (A; of 2 attacks" in note
    assert "1 more to come" in note
    assert BIAS in note
    assert not [n for n in footnotes(made(SCORES, worst=False)) if n.startswith("Worst case")]
    assert not [n for n in footnotes(made({"A / none": None})) if n.startswith("Worst case")]


def test_worst_cases_are_of_attacks_at_the_same_seeds() -> None:
    few = with_seeds(made(SCORES), {"A / none": {0: 99.0}})
    assert (worst_case(few)["none"].attack, worst_case(few)["none"].attacks) == ("B, long", 2)
    (note,) = [n for n in footnotes(few) if n.startswith("Worst case")]
    assert note.startswith("Worst case over attacks, Attack Acc at seeds 0, 1, 2: none 70.00")
    assert " Left out, without these seeds: A / none. The largest" in note
    longer = with_seeds(made(SCORES), {"A / none": {0: 60.0, 1: 70.0, 2: 80.5, 3: 0.0, 4: 0.0}})
    (note,) = [n for n in footnotes(longer) if n.startswith("Worst case")]
    assert "at seeds 0, 1, 2: none 70.17 ± 25.46 (A; of 3 attacks); MID" in note
    assert "Left out" not in note


def test_a_worst_case_without_attack_acc_is_refused() -> None:
    with pytest.raises(ValueError, match="name attack_acc in columns"):
        replace(TABLES["smoke"], columns=("fid",), worst=True)


def test_adaptive_rows_share_targets_and_the_plain_attack_with_digits() -> None:
    adaptive, digits = (record_stages(TABLES[n], 1, Path()) for n in ("digits-adaptive", "digits"))
    for defense in ("No Def.", "MID", "BiDO-COCO", "BiDO-HSIC"):
        plain = digits[f"KED-MI / {defense}"][0]
        assert adaptive[f"KED-MI / {defense}"][0].key == plain.key
        target = plain.evidence[0].inversion.target.key
        rows = [r[0] for label, r in adaptive.items() if label.endswith(f"/ {defense}")]
        assert len(rows) == (6 if defense == "MID" else 5)
        assert {r.evidence[0].inversion.target.key for r in rows} == {target}
