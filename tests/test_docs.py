"""Every code block and every command in the documentation does what it is there for."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mibench.cli import main
from mibench.commands import RENAMED

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACEHOLDERS = {
    "TABLE": "smoke",
    "ROW": "GMI / No Def.",
    "METRIC": "attack_acc",
    "TASK": "digits",
    "KIND": "prior",
    "DIR": "out",
    "STORE": "first-store",
}
"""What the commands' capital words stand for here."""
ELSEWHERE = (
    "import ", "data fetch", "run my_table.py", "run FILE.py", "run TABLE --seeds 5",
    "--until dependence", "--until queries", "--executor ray", "publish ",
    "results/avatars mibench-store", "score FOLDER", "figure traits",
    "figure queries", "figure sweep", "--calibrate", "audit ",
)  # fmt: skip
"""Commands that need what only a reader has, or hours: only their options are checked."""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    for match in FENCE.finditer(page.read_text()):
        yield match[1].strip(), match[2]


def snippets(page: Path) -> list[str]:
    return [code for language, code in blocks(page) if language == "python"]


def commands(page: Path) -> list[str]:
    """Returns the lines that call mibench, without what explains them."""
    found = []
    for language, block in blocks(page):
        if language in ("", "sh", "bash", "console"):
            for line in block.splitlines():
                line = re.sub(r"^(\$ |python3 quickstart\.py )", "", line)
                if re.match(r"mibench [a-z]", line):
                    found.append(re.split(r"\s{2,}|\s#", line)[0])
    return found


def words(line: str) -> list[str]:
    """Returns a command's arguments with placeholders replaced and ``digits`` made small."""
    found = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)[1:]]
    return ["smoke" if w == "digits" and found[0] != "data" else w for w in found]


def parse(args: list[str]) -> tuple[click.Command, click.Context]:
    """Parses as the program would, without running anything."""
    group: click.Command = main
    context = click.Context(group, info_name="mibench")
    while isinstance(group, click.Group):
        name, command, args = group.resolve_command(context, args)
        assert command is not None, name
        context = click.Context(command, info_name=name, parent=context)
        group = command
    return group, group.make_context(group.name, args, parent=context.parent)


LINES = [pytest.param(line, id=f"{p.name}: {line}") for p in PAGES for line in commands(p)]


@pytest.mark.parametrize("line", LINES)
def test_commands_are_understood(line: str) -> None:
    command, context = parse(words(line))
    assert command.name == context.info_name


def test_no_page_uses_a_former_name_of_a_command() -> None:
    former = {line.values[0] for line in LINES if str(line.values[0]).split()[1] in RENAMED}
    inline = {
        (page.name, name)
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for name in re.findall(r"`mibench ([a-z-]+)", page.read_text())
        if name in RENAMED
    }
    assert (former, inline) == (set(), set())


def test_commands_are_found() -> None:
    assert len(LINES) > 15
    assert "mibench run smoke" in [p.values[0] for p in LINES]


def test_an_option_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(click.UsageError):
        parse(["run", "smoke", "--no-such-option"])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder like a clone's, with what ``mibench run smoke`` leaves in it."""
    place = tmp_path_factory.mktemp("clone")
    (place / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(ROOT / "results", place / "results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert CliRunner().invoke(main, ["run", "smoke"]).exit_code == 0
        written = CliRunner().invoke(main, ["records", "write", "smoke", "-o", "out"])
        assert written.exit_code == 0, written.output
        # Commands of the pages add cells to the store with which rows of others pair no more.
        shutil.copytree("mibench-store", "first-store")
        yield place


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_commands_work(line: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(e in line for e in ELSEWHERE):
        pytest.skip("needs a file of the reader's, or hours")
    args = words(line)
    if args[0] == "run" and args[1] not in ("smoke",) and "--dry-run" not in args:
        args.append("--dry-run")
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=lambda p: p.name)
def test_snippets_run_in_the_order_of_their_page(page: Path, workplace: Path) -> None:
    names: dict[str, object] = {}
    for code in snippets(page):
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what Jupyter's own packages warn of
def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat, nbclient = (pytest.importorskip(name) for name in ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel")
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    notebook = nbformat.read(ROOT / "examples" / "digits.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert "(20, 5, 1, 16, 16)" in str(outputs)
    assert sum("image/png" in out.get("data", {}) for out in outputs) == 2
    assert [n for n in ("!mibench", "subprocess", "os.system") if n in str(notebook.cells)] == []
