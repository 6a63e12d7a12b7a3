"""Whether two sides are the same within a margin, against closed forms and SciPy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from mibench.cli import main
from mibench.evaluation.significance import equivalence
from mibench.reporting import records
from mibench.reporting.compare import compare, in_text
from mibench.reporting.runs import Run
from mibench.running.grid import Grid
from mibench.store import Store
from tests.made import fill, smoke

A = [98.0, 95.5, 97.0, 99.5]
B = [96.0, 95.0, 93.5, 98.0]


def run(label: str, seed: int, attack: str = "a", **scores: float) -> Run:
    cell: dict[str, Any] = {
        "seeds": dict.fromkeys(("target", "prior", "attack"), seed),
        "attack": {"is": attack}, "defense": {"is": "d"}, "setting": {"task": {"is": "t"}},
    }  # fmt: skip
    return Run(label, cell, scores)


def side(label: str, *values: float, attack: str = "a") -> list[Run]:
    return [run(label, s, attack, attack_acc=v) for s, v in enumerate(values)]


@pytest.mark.parametrize("margin", [0.5, 1.875, 3.0, 10.0])
def test_the_tests_are_scipys_and_agree_with_the_interval(margin: float) -> None:
    test = equivalence(A, B, margin)
    diffs = np.subtract(A, B)
    above = stats.ttest_1samp(diffs, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(diffs, margin, alternative="less").pvalue
    assert test.p is not None
    assert test.p == pytest.approx(max(above, below), rel=1e-9)
    ends = stats.ttest_rel(A, B).confidence_interval(0.9)
    assert [test.interval.low, test.interval.high] == pytest.approx([ends.low, ends.high])
    assert (test.verdict == "equivalent") == (test.p < 0.05)
    other_way = equivalence(B, A, margin)
    assert (other_way.p, other_way.interval.mean) == (test.p, -test.interval.mean)


def test_the_three_verdicts_by_hand() -> None:
    """Differences 0, 1, 2: mean 1, error 1/√3, t(2) at 95 % is 2.919986."""
    half = 2.919986 / 3**0.5
    a, b = [10.0, 21.0, 32.0], [10.0, 20.0, 30.0]
    for margin, verdict in ((1 + half, "equivalent"), (1 - half, "undecided")):
        assert equivalence(a, b, abs(margin) * 1.0001).verdict == verdict
    assert equivalence(a, b, (1 + half) * 0.9999).verdict == "undecided"
    assert equivalence(a, b, 1.0).p == pytest.approx(0.5)
    far = [110.0, 121.0, 132.0]
    assert equivalence(far, b, (101 - half) * 0.9999).verdict == "not equivalent"
    assert equivalence(b, far, (101 - half) * 0.9999).verdict == "not equivalent"
    assert equivalence(far, b, (101 - half) * 1.0001).verdict == "undecided"


def test_without_a_variance_nothing_is_decided() -> None:
    for a in ([1.0], [1.0, 2.0], [5.0, 6.0, 7.0]):
        test = equivalence(a, [v - 1 for v in a], 2)
        assert (test.p, test.verdict) == (None, "no test")
    assert equivalence([5.0, 6.0, 7.0], [5.0, 6.0, 7.0], 2).interval.method.startswith("none: all")
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            equivalence(A, B, bad)


def test_rows_are_averaged_at_each_seed_over_seeds_that_all_rows_have() -> None:
    a = side("x", 10, 20, 30, 99) + side("y", 50, 50, 50)
    b = side("x", 11, 24, 30, 99) + side("y", 51, 48, 56)
    *rows, (label, metric, mean) = compare(a, b, {"attack_acc": 5}).within
    assert [(row[0], row[2].interval.n) for row in rows] == [("x", 4), ("y", 3)]
    assert (label, metric, mean.interval.n) == ("mean of 2 rows", "attack_acc", 3)
    want = stats.ttest_1samp([1.0, 1.0, 3.0], 0).confidence_interval(0.9)
    assert mean.interval.mean == pytest.approx(5 / 3)
    assert [mean.interval.low, mean.interval.high] == pytest.approx([want.low, want.high])


@pytest.mark.parametrize(("seeds", "shared"), [([7, 8, 9], 0), ([7, 0], 1)])
def test_a_mean_of_rows_that_share_too_few_seeds_says_so(seeds: list[int], shared: int) -> None:
    a, b = (
        side("x", 10, 20, 30) + side("y", 50, 50, 50),
        side("x", 11, 24, 30) + side("y", 51, 48, 5),
    )
    odd = [run("odd", s, attack_acc=60.0 + s) for s in seeds]
    told = compare(a + odd, b + odd, {"attack_acc": 5})
    label, _, mean = told.within[-1]
    assert (label, mean.verdict, mean.interval.n) == ("mean of 3 rows", "no test", shared)
    assert mean.interval.method == f"none: all rows share {shared} of the 3 seeds that it takes"
    text = in_text(told)
    assert mean.interval.method in text
    assert "nan" not in text


def test_differences_are_b_minus_a() -> None:
    [(_, _, test)] = compare(side("x", 1, 2, 4), side("x", 3, 5, 8), {"attack_acc": 9}).within
    assert test.interval.mean == 3


def test_rows_of_one_side_controls_and_other_metrics_do_not_count() -> None:
    a = side("x", 1, 2, 4) + side("only a", 9, 9, 9) + side("c", 0, 5, 9, attack="prior-samples")
    b = side("x", 1, 3, 4) + side("c", 50, 5, 9, attack="prior-samples")
    assert [t[0] for t in compare(a, b, {"attack_acc": 9}).within] == ["x"]
    assert compare(a, b).within == []
    with pytest.raises(ValueError, match="no row has values of accuracy"):
        compare(a, b, {"accuracy": 1})


def test_the_text_shows_each_row_once_and_what_was_tested() -> None:
    a = [run("x", s, accuracy=90.0 + s, attack_acc=50.0 + s) for s in range(3)]
    b = [run("x", s, accuracy=90.5 + 1.1 * s, attack_acc=70.0 + 2 * s) for s in range(3)]
    text = in_text(compare(a, b, {"accuracy": 1, "attack_acc": 5}))
    lines = [line.split() for line in text.splitlines() if "± 1 " in line or "± 5 " in line]
    assert [line[-1] for line in lines] == ["equivalent", "equivalent"]
    assert [line[-2] for line in lines] == ["3", "not"]
    assert lines[0][:3] == ["x", "Accuracy", "+0.60"]
    assert lines[1][:3] == ["Attack", "Acc", "+21.00"]
    assert "Margins mean something only if they were chosen before" in text
    assert "margin" not in in_text(compare(a, b))


def test_the_command_takes_margins_of_metrics(tmp_path: Path) -> None:
    table, store = smoke("GMI / No Def.", "GMI / MID"), Store(tmp_path / "store")
    records.write(Grid(table, fill(table, store, seeds=3, data=Path()), store), tmp_path / "files")
    a, b = str(tmp_path / "store"), str(tmp_path / "files")
    both = ["--margin", "accuracy=1", "--margin", "attack_acc=5"]
    done = CliRunner().invoke(main, ["compare", a, b, *both])
    assert done.exit_code == 0, done.output
    assert "mean of 2 rows" in done.stdout
    assert "none: all 3 differences agree" in done.stdout
    for margin, why in (
        ("acuracy=1", "unknown metric 'acuracy' (did you mean"), ("accuracy", "above 0"),
        ("accuracy=-1", "above 0"), ("accuracy=nan", "above 0"), ("accuracy=x", "METRIC=NUMBER"),
    ):  # fmt: skip
        refused = CliRunner().invoke(main, ["compare", a, b, "--margin", margin])
        assert refused.exit_code == 2
        assert why in refused.output
    refused = CliRunner().invoke(main, ["compare", "--by-key", a, b, "--margin", "accuracy=1"])
    assert "give one of them" in refused.output
    assert refused.exit_code == 2
