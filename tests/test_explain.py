"""What ``mibench explain`` says of records made by hand."""

import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mibench.benchmarks.row import listing
from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.evaluation import METRICS
from mibench.running.grid import record_stages
from mibench.running.stages import RecordStage, graph
from mibench.store import Payload, Store
from tests.made import META

BARE, MID, COCO, BIDO = (f"GMI / {d}" for d in ("No Def.", "MID", "BiDO-COCO", "BiDO-HSIC"))
ACCS = {BARE: [50.0, 54.0, 52.0], MID: [30.0, 33.0, 33.0], COCO: [2.0, 9.0, 3.0], BIDO: [55.0]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with records alone: three seeds of three rows and one of a fourth."""
    return filled(tmp_path_factory.mktemp("explain"), ACCS)


def filled(root: Path, accs: dict[str, list[float]]) -> Path:
    records = record_stages(TABLES["smoke"], 3, Path())
    scores = {records[k][i].key: v for k, values in accs.items() for i, v in enumerate(values)}

    def compute(stage: RecordStage, *_: object) -> Payload:
        score = {"mean": scores[stage.key], "std": 1.5, "n": 50}
        return {
            "scores": dict.fromkeys(TABLES["smoke"].columns, score),
            "values": {
                "accuracy": [scores[stage.key]] * 3,
                "attack_acc": [[scores[stage.key] + i] * 5 for i in (-2, 0, 2)],
                "fid": [scores[stage.key]],
            },
            "evaluator": {"accuracy": 97.0},
            "sizes": {"reconstructions": 50, "real": 50, "dimensions": 8, "classes": 10},
            "warnings": [],
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordStage, "compute", compute)
        for label, values in accs.items():
            for record in records[label][: len(values)]:
                Store(root).complete(record)
    return root


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def explain(store: Path, *arguments: str) -> Result:
    return call("explain", "smoke", *arguments, "--store", str(store))


def test_explain_says_values_interval_and_test_of_all_seeds_in_the_store(store: Path) -> None:
    """The quantile of two degrees of freedom is 4.3027; t = -34.6 has p = 0.000832.

    Behind the other row's 0.000644, which Holm doubles.
    """
    done = explain(store, MID, "attack_acc")
    assert done.exit_code == 0, done.output
    assert "32.00 %, the mean of 3 seeds." in done.stdout
    assert "seed 0: 30.00 %, over 50 images, spread within the run 1.50 %" in done.stdout
    assert "seed 1: 33.00 %" in done.stdout
    assert "Student's t over 3 seeds: ± 4.30 %, 27.70 to 36.30 %; about" in done.stdout
    assert (
        "over identities: none, because 5 were attacked, and a bootstrap over fewer than 20"
        in done.stdout
    )
    found = "with GMI / No Def.: -20.00 points over 3 seeds (-22.48 to -17.52), p = 0.000832"
    assert (
        f"{found}, corrected for 2 tests p = 0.00129: significantly different at 5 %"
        in done.stdout
    )
    assert "GMI / MID with GMI / BiDO-HSIC: -25.00 points over 1 seed; no test" in done.stdout
    assert "Missing" not in done.stdout


def test_a_target_is_tested_at_the_seeds_of_other_attacks_too(tmp_path: Path) -> None:
    more = {"VMI / No Def.": ACCS[BARE], "VMI / MID": ACCS[MID]}
    filled(tmp_path, more | {BARE: ACCS[BARE][:1], MID: ACCS[MID][:1]})
    found = "with GMI / No Def.: -20.00 points over 3 seeds"
    text = explain(tmp_path, MID, "accuracy", "--seeds", "3").stdout
    assert f"{found} at which attacks met this target (-22.48 to -17.52)" in text
    text = explain(tmp_path, "VMI / MID", "accuracy").stdout
    assert f"{found.replace('GMI', 'VMI')} (-22.48 to -17.52)" in text


def test_explain_says_what_each_repeat_of_an_attack_gave(store: Path) -> None:
    """The quantile of two degrees of freedom is 4.3027; half is 4.3027 * 2 / √3."""
    text = explain(store, MID, "attack_acc").stdout
    assert "    its 3 attacks: 28.00, 30.00, 32.00 %\n" in text
    told = "seed 0, Student's t over 3 attacks: ± 4.97 %, 25.03 to 34.97 %"
    assert f"  {told}; about further attacks on this one target\n" in text
    for other in ("accuracy", "fid"):
        assert "attacks: " not in explain(store, MID, other).stdout


def test_explain_says_which_metric_fills_a_column(store: Path) -> None:
    table = TABLES["smoke"].modified(["protocol.acc=attack_acc_best"])
    (record,) = record_stages(table.only([MID]), 1, Path())[MID]
    payload = Store(store).load(record_stages(TABLES["smoke"], 1, Path())[MID][0])
    Store(store)._commit(record, payload, dict(META))
    told = explain(store, MID, "attack_acc", "--set", "protocol.acc=attack_acc_best").stdout
    title = METRICS["attack_acc_best"].title
    assert told.startswith(f"{title} of {MID} in smoke, which fills the column Attack Acc\n")
    assert "Metric attack_acc_best, version" in told


def test_explain_names_the_command_for_a_damaged_record(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    for record in record_stages(TABLES["smoke"], 3, Path())[BARE]:
        (Store(tmp_path / "store").path(record) / "payload.json").write_bytes(b"{}")
    done = explain(tmp_path / "store", BARE, "attack_acc")
    assert done.exit_code == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"Error: no record of {BARE} in ")
    assert "fill it with: mibench run smoke --rows" in last


def test_an_interval_is_cut_off_at_what_the_metric_can_be_and_says_so(store: Path) -> None:
    text = explain(store, COCO, "attack_acc").stdout
    assert "± 9.40 %, 0.00 to 14.07 % (cut off at what the metric can be)" in text
    fid = explain(store, COCO, "fid").stdout
    assert "± 9.40, 0.00 to 14.07 (cut off at what the metric can be); about" in fid
    assert "over identities: none, because the metric is not measured on each identity" in fid


def test_a_row_without_a_defense_has_nothing_to_be_compared_with(store: Path) -> None:
    text = explain(store, BARE, "attack_acc").stdout
    assert "  this is the row without a defense\n" in text
    assert "no such row" not in text
    assert "significantly different" not in text


def test_a_row_whose_bare_row_was_left_out_says_so(store: Path) -> None:
    text = explain(store, MID, "attack_acc", "--rows", MID).stdout
    assert "with no defense: no such row to compare it with" in text
    assert "this is the row without" not in text


def test_explain_names_every_stage_its_kind_and_the_parts(store: Path) -> None:
    text = explain(store, MID, "attack_acc").stdout
    for record in record_stages(TABLES["smoke"], 3, Path())[MID]:
        for stage in graph([record]):
            line = next(x for x in text.splitlines() if f"  {stage.kind}/{stage.key}  " in x)
            assert f"{stage.describe()}, version {stage.version}" in line
            assert line.endswith("done" if stage.kind == "record" else "missing")
            seeds = "seeds 0, 1, 2" if "evaluator" in line or stage.kind == "images" else "seed "
            assert seeds in line
    assert "  defense    mid lambda=0.02\n" in text
    assert "  attack     gmi steps=50\n" in text
    assert "  trials     Trials classes=5 samples=10\n" in text
    version = METRICS["attack_acc"].version
    assert f"Metric attack_acc, version {version}; python" in text


def test_with_fewer_seeds_it_says_there_is_no_interval_and_no_test(store: Path) -> None:
    text = explain(store, MID, "attack_acc", "--seeds", "1").stdout
    assert "none: one seed carries no interval" in text
    assert "over 1 seed; no test: one seed carries no interval" in text
    assert "seed 1" not in text


def test_a_missing_record_is_named_with_a_command_that_fills_it(store: Path) -> None:
    text = explain(store, BIDO, "fid", "--seeds", "2").stdout
    line = text.splitlines()[-1]
    assert line.startswith("  GMI / BiDO-HSIC (seed 1); fill with: mibench run smoke")
    words = shlex.split(line.partition("fill with: ")[2])
    assert words[3:5] == ["--rows", "GMI / BiDO-HSIC"]
    plan = call(*words[1:], "--dry-run")
    assert plan.exit_code == 0, plan.output
    assert "GMI / BiDO-HSIC, seed 1" in plan.stdout


def test_a_row_of_which_nothing_is_there_is_refused_with_the_command(store: Path) -> None:
    done = explain(store, "KED-MI / MID", "attack_acc")
    assert done.exit_code == 2
    assert "no record of KED-MI / MID in" in done.stderr
    assert "mibench run smoke --rows 'KED-MI / MID'" in done.stderr
    assert done.stdout == ""


def test_hundreds_of_rows_are_named_by_their_attacks_and_defenses() -> None:
    labels = [f"{attack} / {defense}" for attack in ("A, wide", "B") for defense in range(30)]
    assert listing(labels[:40]) == ", ".join(labels[:40])
    told = listing(labels)
    assert told.startswith(
        "60 named ATTACK / DEFENSE; ATTACK is one of A, wide; B; DEFENSE one of 0;"
    )
    assert told.count("29") == told.count("A, wide") == 1
    alone = [str(number) for number in range(50)]
    assert listing(alone) == ", ".join(alone)
    for command in (["explain", "matrix-avatars"], ["run", "matrix-avatars", "--rows", "Nobody"]):
        told = CliRunner().invoke(main, command).stderr
        assert "376 named ATTACK / DEFENSE" in told
        assert len(told) < 2000


def test_unknown_rows_and_metrics_list_the_known_ones(store: Path) -> None:
    done = explain(store, "GMI / Nobody", "attack_acc")
    assert done.exit_code == 2
    told = (
        "no row 'GMI / Nobody' in smoke (did you mean 'GMI / No Def.'?); rows: GMI / No Def., GMI"
    )
    assert told in done.stderr
    done = explain(store, MID, "nosuch")
    assert done.exit_code == 2
    known = ", ".join(TABLES["smoke"].columns)
    assert f"no metric 'nosuch' in smoke; its metrics: {known}" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_explain_names_the_rows_and_metrics_to_choose_from(store: Path) -> None:
    for arguments, listed in (((), TABLES["smoke"].rows), ((MID,), TABLES["smoke"].columns)):
        result = explain(store, *arguments)
        assert result.exit_code == 2
        assert result.stderr.strip().endswith(": " + ", ".join(listed))
