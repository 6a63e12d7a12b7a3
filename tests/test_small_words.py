"""What the command line says of names, of empty stores and of where it writes."""

import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mibench.cli import main
from mibench.commands.describe import KINDS, lines_of, meanings, registries
from mibench.commands.run import compute
from mibench.evaluation import Protocol
from mibench.running.executors import Bench, choose_executor
from mibench.store import Store
from tests.made import fill, smoke


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


NEAR = {
    "run smok": "unknown table 'smok' (did you mean 'smoke'?); known: smoke",
    "status Table2": "unknown table 'Table2' (did you mean 'table2'?)",
    "run smoke --set attack.step=1": "no field 'attack.step' (did you mean 'attack.steps'?)",
    "run smoke --set steps=1": "no field 'steps' (did you mean 'attack.steps'?)",
    "run smoke --set attack.identity=max-margn": "got 'max-margn' (did you mean 'max-margin'?)",
    "run smoke --set attack.optimizer=adm": "got 'adm' (did you mean 'adam'?)",
    "run smoke --set defense.measure=nhsc": "measure 'nhsc' (did you mean 'nhsic'?)",
    "run smoke --protocol kd22": "unknown protocol 'kd22' (did you mean 'kdd22'?)",
    "run smoke --rows BiDO-HISC": "no row matches 'BiDO-HISC' (did you mean 'BiDO-HSIC'?)",
    "run smoke --executor locl": "unknown executor 'locl' (did you mean 'local'?)",
    "explain smoke GMI/MID fid": "no row 'GMI/MID' in smoke (did you mean 'GMI / MID'?)",
    "run smoke --until dependence --measure nhsc": "'nhsc' (did you mean 'nhsic'?)",
    "data check digit": "unknown task 'digit' (did you mean 'digits'?)",
    "import target x --as mcn": "unknown network 'mcn' (did you mean 'mcnn'?)",
    "describe gmj": "no component is called 'gmj' (did you mean 'gmi'?)",
    "describe bido --kind attacks": "none of the attacks is called 'bido'",
}


@pytest.mark.parametrize("words", NEAR)
def test_a_name_that_is_none_is_answered_with_the_nearest(words: str) -> None:
    done = call(*words.split())
    assert done.exit_code == 2, done.output
    assert NEAR[words] in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_name_like_no_other_is_answered_without_a_guess() -> None:
    assert "did you mean" not in call("run", "qqqqqq").stderr


EMPTY = (
    "table smoke", "report smoke", "figure 1 smoke", "figure 3 smoke", "figure 4 smoke",
    "table smoke --budgets", "records write smoke", "records publish smoke", "store check",
)  # fmt: skip


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("words", EMPTY)
def test_an_empty_store_is_one_sentence_and_exit_status_2(
    words: str, there: bool, tmp_path: Path
) -> None:
    if there:
        (tmp_path / "store").mkdir()
    done = call(*words.split(), "--store", "store")
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("Error: ")
    assert ("--" in done.stdout) if words == "table smoke" else done.stdout == ""
    assert [p.name for p in tmp_path.glob("[!m]*")] == ["store"] * there
    assert not list(tmp_path.glob("mibench-out/*"))


def test_a_table_of_which_all_failed_is_printed_with_the_reasons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mibench.reporting import results

    monkeypatch.setattr(results, "reason", lambda *_: "the target diverged")
    done = call("table", "smoke", "--store", "store")
    assert done.exit_code == 0
    assert "the target diverged" in done.stdout


def test_the_leaderboards_out_is_a_folder_and_a_page_by_its_name_is_still_taken(
    tmp_path: Path,
) -> None:
    fill(smoke("GMI / MID"), Store(tmp_path / "store"), data=Path())
    made = call(
        "records", "write", "smoke", "--rows", "GMI / MID", "--store", "store", "-o", "records"
    )
    assert made.exit_code == 0, made.output
    done = call("records", "board", "records", "-o", "page")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "page/index.html\n", "")
    assert call("records", "board", "records").stdout == "mibench-out/leaderboard/index.html\n"
    old = call("records", "board", "records", "-o", "old.html")
    assert old.stdout == "old.html\n"
    assert old.stderr == "note: -o names a folder; old.html was taken for the page itself\n"
    assert Path("old.html").read_bytes() == Path("page/index.html").read_bytes()


def test_every_kind_is_listed_and_every_component_described() -> None:
    every = registries()
    assert tuple(every) == KINDS
    for kind, names in every.items():
        assert [line.split()[0] for line in call("list", kind).stdout.splitlines()] == list(names)
        for name, component in names.items():
            lines = list(lines_of(kind, name, component))
            assert lines[0] == f"{name}, of the {kind}"
            assert lines[2].strip(), name
            assert not any("<class '" in line for line in lines), name


CLASSES: dict[str, Any] = {
    f"{kind} {name}": cls
    for kind, names in registries().items()
    for name, cls in names.items()
    if inspect.isclass(cls)
} | {"protocol": Protocol}


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_of_a_component_has_a_meaning(name: str) -> None:
    told = meanings(CLASSES[name])
    assert [f.name for f in fields(CLASSES[name]) if not told.get(f.name)] == []


def test_a_description_has_type_default_meaning_and_source() -> None:
    told = call("describe", "gmi", "--kind", "attacks").stdout
    assert "  steps: a whole number; default 1500\n      Descent steps.\n" in told
    assert re.search(r"  prior: one of .*\bwgan-gp\b", told)
    assert '"}; default wgan-gp\n' in told
    assert "https://arxiv.org/abs/1911.07135" in told
    assert "Attributes:" not in told
    inherited = call("describe", "inversion-gan").stdout
    assert "  z_dim: a whole number; default 100\n      Size of the latent space.\n" in inherited
    assert "  lambda_: a number; no default\n" in call("describe", "mid").stdout
    assert ".. math::" in call("describe", "bido").stdout
    assert "It has no fields." in call("describe", "cross-entropy").stdout
    protocol = call("describe", "ppa", "--kind", "protocols").stdout
    assert "  keep: a whole number; set to 50\n" in protocol
    assert "  select: one of last, evaluator; as the table says\n" in protocol
    assert "measured on each image, 0 to 100 percent" in call("describe", "attack_acc").stdout
    assert "half the side" in call("describe", "cutout").stdout


def test_a_name_of_several_kinds_is_refused_with_all_of_them() -> None:
    done = call("describe", "digits")
    assert done.exit_code == 2
    assert "'digits' is in tables and in tasks: say which" in done.stderr
    assert "--kind tables or --kind tasks" in done.stderr
    table = call("describe", "digits", "--kind", "tables").stdout
    assert "\nRows\n  GMI / No Def.\n" in table
    assert "\nNotes\n" in table
    assert "upsampled from 8" in call("describe", "digits", "--kind", "tasks").stdout


def test_without_docstrings_a_field_says_why_it_has_no_meaning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = sys.modules["mibench.commands.describe"]  # the package's name for it is the command
    monkeypatch.setattr(module, "meanings", lambda _: {})
    assert "python -OO leaves docstrings out" in call("describe", "mid").stdout


def test_an_interrupt_while_results_are_written_says_what_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def show(complete: bool) -> None:
        raise KeyboardInterrupt

    bench = Bench(tmp_path / "store", tmp_path, "cpu", 1)
    with pytest.raises(SystemExit):
        compute([], bench, choose_executor("serial"), show, tmp_path, quiet=True, verbose=False)
    told = f"Error: interrupted; what has finished is kept in {tmp_path / 'store'}; run the same"
    assert capsys.readouterr().err.startswith(told)
