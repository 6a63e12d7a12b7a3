"""What fixes the last bits is recorded as it is in force; equal keys are compared to the bit."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.machine import SWITCHES, in_words, machine
from mibench.reporting import bits, records
from mibench.reporting.bits import KINDS
from mibench.reporting.runs import Run, runs
from mibench.reporting.verify import check
from mibench.running.grid import Grid
from mibench.running.stages import RecordStage, graph, record_stage
from mibench.store import Store, seal
from tests.made import META, fill, smoke

FEWER = {
    "AVX512": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
               "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
             "ONEDNN_MAX_CPU_ISA": "SSE41"},
}  # fmt: skip
"""Vector instructions → the libraries' own switches that make them use older ones."""
TOLD = {"AVX512": ("AVX2", "AVX2", "AVX2"), "AVX2": ("DEFAULT", "SSE4.2", "SSE4.1")}
HERE = torch.backends.cpu.get_cpu_capability()
PLAIN = {k: v for k, v in os.environ.items() if k not in SWITCHES}
known_cpu = pytest.mark.skipif(
    HERE not in FEWER or not torch._C.has_mkl,
    reason="the switches are those of x86 processors with AVX2 and of MKL",
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_what_is_in_force_is_told_and_leaves_standard_output_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    machine.cache_clear()
    told = machine()
    assert capfd.readouterr().out == ""
    assert told["aten"] == HERE
    assert {"processor", "aten", "mkl", "onednn", "build"} <= told.keys()
    assert (torch.version.git_version or "").startswith(told["build"])


@known_cpu
def test_switches_of_the_libraries_are_told_as_they_act_and_not_what_the_processor_could() -> None:
    code = "import json; from mibench.machine import machine; print(json.dumps(machine()))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=PLAIN | FEWER[HERE], capture_output=True, check=True
    )
    told = json.loads(done.stdout)
    expected = dict(zip(("aten", "mkl", "onednn"), TOLD[HERE], strict=True))
    if "Intel" not in told["processor"]:  # MKL has one choice for others' and no name for it
        expected["mkl"] = "Intel(R) Architecture processors"
    for library, instructions in expected.items():
        assert instructions in told[library], library
    assert "AVX512" not in told["onednn"]
    assert told["switches"].split() == [f"{k}={v}" for k, v in FEWER[HERE].items()]


def test_every_stage_that_a_record_rests_on_has_its_place_in_the_order() -> None:
    for table in TABLES.values():
        for label, cell in table.rows.items():
            stage = record_stage(cell.at(0), table.columns, "data")
            kinds = [s.kind for s in graph([stage])]
            assert set(kinds) <= set(KINDS), label


def test_published_records_of_a_table_with_lenses_agree_with_themselves() -> None:
    place = Path(__file__).parents[1] / "results" / "faces30"
    done = call("compare", "--by-key", place, place)
    assert done.exit_code == 0, done.output
    assert "24 agree and 0 differ" in " ".join(done.stdout.split())


def test_what_is_not_recorded_is_said_to_be_so() -> None:
    assert in_words(META).endswith(
        "which vector instructions libraries used there is not recorded"
    )
    told = in_words(META | {"machine": {"aten": "AVX2", "mkl": "2024 SSE", "onednn": "v3 AVX"}})
    assert told.endswith(
        "CPU threads 1, precision float32; ATen AVX2; MKL 2024 SSE; oneDNN v3 AVX"
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bits") / "store"
    fill(smoke("GMI / No Def.", "GMI / MID"), Store(root), data=Path())
    return root


def record_in(store: Store, row: str) -> RecordStage:
    return fill(smoke("GMI / No Def.", "GMI / MID"), store, data=Path())[row][0]


def altered(store: Path, place: Path, *kinds: str, **meta: Any) -> Path:
    """Returns a copy of a store in which GMI / MID's stages of some kinds have other bits."""
    done = Store(shutil.copytree(store, place))
    made = record_in(done, "GMI / MID")
    run = made.evidence[0].inversion
    stages = {"record": made, "evidence": made.evidence[0], "inversion": run, "prior": run.prior,
              "target": run.target, "evaluator": made.evidence[0].evaluator,
              "images": run.target.images}  # fmt: skip
    for kind, stage in stages.items():
        path = done.path(stage)
        found = {p.name: p.read_bytes() for p in path.iterdir() if p.name != "meta.json"}
        if kind in kinds:
            name = "payload.safetensors" if kind == "prior" else "payload.json"
            found[name] += b"\n"
            (path / name).write_bytes(found[name])
        if kind in kinds or meta:
            (path / "meta.json").write_bytes(seal(stage, found, META | meta))
    return place


def test_two_stores_of_the_same_bits_agree_in_all_keys(store: Path, tmp_path: Path) -> None:
    done = call("compare", "--by-key", store, shutil.copytree(store, tmp_path / "b"))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(
        "Equal keys: 2 (0 more in A, 0 more in B). To the bit, in every stage that both tell of, "
        "2 agree and 0 "
    )
    assert "First stage" not in done.stdout
    assert "Where kinds of machines differ" not in done.stdout


@pytest.mark.parametrize(
    ("kinds", "first"),
    [
        (("record", "images"), "images/"),
        (("inversion", "prior", "evaluator", "target"), "(target)"),
        (("inversion", "prior", "evaluator"), "(evaluator)"),
        (("record", "inversion", "prior"), "prior/"),
        (("evidence", "inversion"), "inversion/"),
        (("record", "evidence"), "evidence/"),
        (("record",), "record/"),
    ],
)  # fmt: skip
def test_the_first_stage_that_differs_is_named_in_the_order_of_the_graph(
    kinds: tuple[str, ...], first: str, store: Path, tmp_path: Path
) -> None:
    told = call("compare", "--by-key", store, altered(store, tmp_path / "b", *kinds)).stdout
    named = re.findall(r"First stage that differs: (.*) of (.*)", told)
    assert [first in stage for stage, rows in named if "gmi / mid" in rows] == [True]


def test_records_are_paired_with_a_store_and_name_their_rows(store: Path, tmp_path: Path) -> None:
    made = record_in(Store(store), "GMI / MID")
    records.write(Grid(TABLES["smoke"], {"GMI / MID": [made]}, Store(store)), tmp_path / "files")
    other = altered(store, tmp_path / "b", "target", machine={"aten": "AVX2"})
    told = call("compare", "--by-key", other, tmp_path / "files").stdout
    assert told.startswith("Equal keys: 1 (1 more in A, 0 more in B)")
    assert re.search(r"First stage that differs: classifier/\w+ \(target\) of GMI / MID, seed 0\n",
                     told)  # fmt: skip
    a, b = (
        [line for line in told.splitlines() if line.startswith(f"{side} was computed on ")]
        for side in "AB"
    )
    assert len(a) == len(b) == 1
    assert a[0].endswith("ATen AVX2")
    assert b[0].endswith("not recorded")
    assert "equal keys agree within the interval over seeds and not to the bit" in told


def test_different_bits_of_the_same_kind_of_machine_are_called_unexpected(
    store: Path, tmp_path: Path
) -> None:
    same = {"machine": {"aten": "AVX2"}}
    a = altered(store, tmp_path / "a", **same)
    b = altered(store, tmp_path / "b", "target", **same)
    for place in (a, b):  # the other row's stages were not made on that machine
        shutil.rmtree(place / "record" / record_in(Store(store), "GMI / No Def.").key)
    told = call("compare", "--by-key", a, b).stdout
    assert "Both sides name the same kind of machine, where equal keys should" in told


def test_no_common_key_and_two_results_of_one_key_are_refused(store: Path, tmp_path: Path) -> None:
    fill(smoke("VMI / No Def."), Store(tmp_path / "other"), data=Path())
    done = call("compare", "--by-key", store, tmp_path / "other")
    assert done.exit_code == 2
    assert "no key is on both sides" in done.stderr
    one, _ = runs(store)
    other, _ = runs(altered(store, tmp_path / "b", "record"))
    with pytest.raises(ValueError, match=r"^B has two results of record/\w+ that differ"):
        bits.agreement(one, [*one, *other])
    assert not bits.agreement(one, [*one, *one]).first


def test_a_damaged_meta_of_a_stage_is_refused_and_one_that_is_gone_passed_over(
    store: Path, tmp_path: Path
) -> None:
    other = altered(store, tmp_path / "b", "record")
    meta = next((other / "classifier").glob("*/meta.json"))
    meta.write_text("{}")
    done = call("compare", "--by-key", store, other)
    assert done.exit_code == 2
    assert f"{meta} is damaged: `mibench store check --repair" in done.stderr
    shutil.rmtree(other / "classifier")
    assert "First stage that differs: record/" in call("compare", "--by-key", store, other).stdout


@pytest.mark.parametrize(("name", "value"), [("machine", {"aten": 2}), ("sha256", "x")])
def test_a_record_says_in_text_what_its_stages_ran_on(
    name: str, value: object, store: Path, tmp_path: Path
) -> None:
    made = record_in(Store(store), "GMI / MID")
    (path,) = records.write(Grid(TABLES["smoke"], {"GMI / MID": [made]}, Store(store)), tmp_path)
    record = json.loads(path.read_text())
    run = record["runs"][f"record/{record['key']}"]
    for told, problem in (({name: {"a": "b"}}, ""), ({name: value}, "is not of type")):
        run.update(told)
        record["sha256"] = records.digest(record)
        path.write_text(json.dumps(record))
        assert problem in check(path).problem
        assert bool(problem) == bool(check(path).problem)


@pytest.mark.slow
@known_cpu
def test_runs_of_one_kind_agree_to_the_bit_and_other_instructions_differ_from_the_target_on(
    tmp_path: Path,
) -> None:
    small = ["recipe.epochs=2", "attack.prior.epochs=2", "attack.steps=5", "trials.samples=2"]
    command = [sys.executable, "-m", "mibench.cli", "run", "smoke", "--rows", "GMI / No Def.",
               "--executor", "serial", "--quiet", "--out", str(tmp_path / "out")]  # fmt: skip
    command += [word for setting in small for word in ("--set", setting)]
    for name, switches in {"a": {}, "b": {}, "c": FEWER[HERE]}.items():
        subprocess.run([*command, "--store", str(tmp_path / name)], env=PLAIN | switches,
                       check=True, capture_output=True)  # fmt: skip
    same = call("compare", "--by-key", tmp_path / "a", tmp_path / "b").stdout
    assert "1 agree and 0 differ" in same
    other = call("compare", "--by-key", tmp_path / "a", tmp_path / "c").stdout
    assert "0 agree and 1 differ" in other
    assert re.search(r"First stage that differs: classifier/\w+ \(target\) of ", other)
    a, b = (
        next(x for x in other.splitlines() if x.startswith(f"{side} was computed on "))
        for side in "AB"
    )
    assert all(instructions in b for instructions in TOLD[HERE])
    assert "switches" not in a
    for meta in tmp_path.glob("c/*/*/meta.json"):
        assert json.loads(meta.read_text())["machine"]["aten"] == TOLD[HERE][0]


def test_results_that_tell_of_no_stage_are_compared_themselves() -> None:
    def run(digest: str) -> Run:
        cell = {"seeds": {"target": 0, "prior": 0, "attack": 0}}
        return Run("GMI / MID", cell, {}, ("images/a", "record/b"), digest=digest)

    assert bits.agreement([run("x")], [run("x")]).first == {}
    assert list(bits.agreement([run("x")], [run("y")]).first) == ["record/b"]
