"""How commands are grouped and called, and what they say of themselves."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result

from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.commands import COMMANDS, RENAMED
from mibench.commands.selection import Selection


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def every(group: click.Group, *words: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yields the words that call each command, groups too."""
    for name, command in group.commands.items():
        yield (*words, name), command
        if isinstance(command, click.Group):
            yield from every(command, *words, name)


PAGES = {" ".join(words): command for words, command in every(main)}


@pytest.mark.parametrize("name", [n for n, c in PAGES.items() if not isinstance(c, click.Group)])
def test_the_help_of_a_command_has_an_example_of_it_that_is_understood(name: str) -> None:
    text = " ".join(call(*name.split(), "--help").stdout.partition("Options:")[0].split())
    example = re.search(r"Example: mibench (.+)", text)
    assert example
    assert example[1].startswith(name)
    arguments = shlex.split(example[1])[len(name.split()) :]
    context = PAGES[name].make_context(name, arguments)
    assert all(word.isupper() is False for word in context.params)


@pytest.mark.parametrize("name", PAGES)
def test_a_command_says_what_it_is_for_in_one_line(name: str) -> None:
    line = PAGES[name].get_short_help_str(70)
    assert line.endswith(".")
    assert not line.endswith("...")
    assert len(line) < 69  # what fits behind the longest name on a line of the terminal


def test_the_help_lists_every_command_once_below_its_purpose() -> None:
    text = call("--help").stdout
    for title, commands in COMMANDS.items():
        section = text.partition(f"\n{title}:\n")[2].partition("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines()] == [c.name for c in commands]
    assert not any(re.search(rf"^  {old} ", text, re.MULTILINE) for old in RENAMED)


def test_a_shell_completes_commands_and_options() -> None:
    shell = BashComplete(main, {}, "mibench", "_MIBENCH_COMPLETE")
    assert [c.value for c in shell.get_completions([], "tab")] == ["table"]
    assert [c.value for c in shell.get_completions(["table"], "--deci")] == ["--decimals"]


def test_every_former_name_is_known() -> None:
    assert RENAMED == {
        "record": "records write", "publish": "records publish", "verify": "records check",
        "leaderboard": "records board", "check-store": "store check", "clean": "store clean",
        "show": "figure row", "diagnose": "run --until dependence", "budgets": "table --budgets",
    }  # fmt: skip


@pytest.mark.parametrize("old", RENAMED)
def test_a_former_name_still_works_and_says_the_new_one(old: str) -> None:
    new = RENAMED[old]
    done, now = call(old, "--help"), call(*new.split(), "--help")
    assert done.exit_code == 0
    assert done.stdout == now.stdout
    assert done.stderr == f"note: mibench {old} is now called mibench {new}\n"
    assert now.stderr == ""
    assert old not in main.commands


def test_a_former_name_takes_the_same_arguments() -> None:
    done, now = (call(*name, "smoke", "--seeds", "0") for name in (["budgets"], ["table"]))
    assert (done.exit_code, now.exit_code) == (2, 2)
    assert done.stderr.splitlines()[1:] == now.stderr.splitlines()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("run smoke --measure nhsic", "--measure goes with --until dependence"),
        (
            "run smoke --until dependence --controls",
            "--controls goes with scores, not with --until",
        ),
        ("table smoke --budgets --format csv", "--budgets prints text"),
        ("table smoke --budgets --controls", "--budgets prints text"),
        ("figure row smoke", "figure row TABLE ROW draws one row"),
        ("figure 3 smoke GMI", "the other figures take no ROW"),
        ("run smoke --quiet --verbose", "--quiet shows less and --verbose more"),
        (
            "compare a b --margin attack_acc=5 --margin attack_acc=6",
            "--margin takes one number for each metric",
        ),
        ("report smoke --records r --with-private", "--with-private shows images"),
        ("events smoke", "No such command 'events'"),
        ("import generator x", "No such command 'generator'"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(
    words: str, sentence: str, tmp_path: Path
) -> None:
    done = call(*words.split())
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_selection_is_the_table_as_options_change_it() -> None:
    plain = Selection("smoke")
    assert plain.table == TABLES["smoke"]
    assert not plain.changed
    assert Selection("smoke", rows=("GMI / *",)).changed
    assert Selection("smoke", settings=("attack.steps=3",)).changed
    assert Selection("smoke", protocol="ppa").changed
    some = Selection("smoke", ("GMI / *",), ("attack.steps=3",), "ppa")
    assert all(label.startswith("GMI / ") for label in some.table.rows)
    assert "(protocol ppa)" in some.table.caption
    assert some.arguments(2) == [
        "smoke", "--set", "attack.steps=3", "--protocol", "ppa", "--seeds", "2",
    ]  # fmt: skip
    assert "--rows" not in some.arguments(1)


def test_the_command_that_fills_a_gap_names_folders_only_if_they_were_given() -> None:
    for given, end in ((frozenset(), ""), (frozenset({"store"}), " --store s")):
        chosen = Selection("smoke", root=Path("s"), given=given)
        assert chosen.filling(["a b"], 1) == f"mibench run smoke --rows 'a b'{end}"


def test_a_folder_that_was_not_given_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "fill it with: mibench run smoke\n"
    assert call("table", "smoke").stderr.endswith(plain)
    assert call("table", "smoke", "--store", "s").stderr.endswith("run smoke --store s\n")
    monkeypatch.setenv("MIBENCH_STORE", "s")
    assert call("table", "smoke").stderr.endswith(f"no store at s; {plain}")


def test_a_dry_run_until_dependence_shows_what_would_be_measured() -> None:
    done = call("run", "smoke", "--rows", "GMI / MID", "--until", "dependence", "--dry-run")
    assert done.exit_code == 0, done.output
    kinds = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  missing")]
    assert kinds == ["images", "target", "dependence"]
