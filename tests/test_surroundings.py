"""What a user's machine, files and labels are like changes no result and loses none."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from scipy.integrate import quad
from scipy.special import gammaln, ndtr, stdtrit

import mibench
from mibench.benchmarks.tables import TABLES, Table
from mibench.cli import main
from mibench.commands.run import write
from mibench.commands.selection import check_name, table_of
from mibench.evaluation.significance import power, seeds_needed
from mibench.reporting import canvas, figures
from mibench.running.userfile import load_afresh, load_user_file
from mibench.sources import source_digest
from mibench.store import Store, tell
from tests.made import fill, smoke

# The code behind a user's class ------------------------------------------------------------

USER = """
from dataclasses import dataclass
{imports}
@dataclass(frozen=True)
class Mine:
    x: int = 1
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder whose modules are forgotten in the end."""
    known, folders = set(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]
    sys.path[:] = folders


def laid(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def user_class(place: Path, imports: str) -> Any:
    laid(place, {"experiments/exp_of_mine.py": USER.format(imports=imports)})
    return load_user_file(place / "experiments/exp_of_mine.py").Mine


def counts(cls: type, file: Path) -> bool:
    """Whether a changed file makes the class another one."""
    home = Path(str(sys.modules[cls.__module__].__file__))
    before, text = source_digest(cls), file.read_bytes()
    file.write_bytes(text + b"# changed\n")
    changed = source_digest(load_afresh(home).Mine) != before
    file.write_bytes(text)
    assert source_digest(load_afresh(home).Mine) == before
    return changed


LAB = {
    "lab_of_mine/__init__.py": "",
    "lab_of_mine/losses.py": "from . import more\nfrom lab_of_mine.deep.end import K\n",
    "lab_of_mine/more.py": "",
    "lab_of_mine/deep/end.py": "K = 1\n",
    "lab_of_mine/other.py": "",
}


@pytest.mark.parametrize(
    "imports",
    [
        "from lab_of_mine.losses import K",
        "import lab_of_mine.losses",
        "def late():\n    from lab_of_mine import losses",
        "import importlib\nlosses = importlib.import_module('lab_of_mine.losses')",
    ],
)
def test_code_elsewhere_on_the_path_counts(
    imports: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    laid(place / "src", LAB)
    sys.path.insert(0, str(place / "src"))
    cls = user_class(place, imports)
    lab = place / "src/lab_of_mine"
    for name in ("__init__", "losses", "more", "deep/end"):
        assert counts(cls, lab / f"{name}.py"), name
    assert not counts(cls, lab / "other.py")
    assert capsys.readouterr().err == ""


def test_what_an_editable_install_finds_counts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.machinery import ModuleSpec, PathFinder

    laid(place / "src", LAB)

    class Editable:
        @staticmethod
        def find_spec(
            name: str, path: Sequence[str] | None, _: object = None
        ) -> ModuleSpec | None:
            where = [str(place / "src")]
            return PathFinder.find_spec(name, where) if name == "lab_of_mine" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable])
    cls = user_class(place, "from lab_of_mine.losses import K")
    assert counts(cls, place / "src/lab_of_mine/deep/end.py")


@pytest.mark.parametrize(
    ("site", "origin", "installer", "follows"),
    [
        ("site-packages", None, "pip", False),
        ("site-packages", '{"dir_info": {}, "url": "file:///lab"}', "pip", True),
        ("site-packages", '{"dir_info": {}, "url": "file:///feedstock"}', "conda", False),
        ("site-packages", '{"archive_info": {}, "url": "file:///lab.whl"}', "pip", False),
        ("target", None, "pip", False),
        ("target", '{"dir_info": {}, "url": "file:///lab"}', "pip", True),
    ],
)
def test_installed_packages_count_only_if_they_come_from_a_folder(
    site: str, origin: str | None, installer: str, follows: bool, place: Path
) -> None:
    info = "lab_of_mine-1.dist-info"
    record = "".join(f"{name},sha256=x,1\n" for name in LAB)
    laid(place / site, LAB | {f"{info}/RECORD": record, f"{info}/INSTALLER": installer})
    if origin is not None:
        laid(place / site, {f"{info}/direct_url.json": origin})
    sys.path.insert(0, str(place / site))
    cls = user_class(place, "from lab_of_mine.losses import K")
    assert counts(cls, place / site / "lab_of_mine/losses.py") == follows


def test_what_cannot_be_followed_is_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    laid(place / "src", {**LAB, "lab_of_mine/plugin.py": ""})
    sys.path.insert(0, str(place / "src"))
    computed = "import_module(f'lab_of_mine.{n}')"
    user_class(
        place, f"from importlib import import_module\nfor n in ('plugin',):\n    {computed}"
    )
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "loads lab_of_mine, lab_of_mine.plugin by a name that is computed" in told


# Labels ------------------------------------------------------------------------------------


def labelled(*labels: str) -> Table:
    cell = next(iter(smoke().rows.values()))
    return replace(smoke(), rows=dict.fromkeys(labels, cell))


@pytest.mark.parametrize(
    ("labels", "pattern", "chosen"),
    [
        (("my [ours]", "my o"), "my [ours]", ["my [ours]"]),
        (("what? *", "what is *"), "what? *", ["what? *"]),
        (("a / my [ours]", "b / my [ours]", "a / my o"), "my [ours]", [
            "a / my [ours]", "b / my [ours]"]),
        (("my [ours] 1", "my [ours] 2", "my o 1"), "my [ours] *", ["my [ours] 1", "my [ours] 2"]),
        (("a1", "b1", "c1"), "[ab]1", ["a1", "b1"]),
        (("GMI", "GMI / MID"), "GMI", ["GMI"]),
    ],
)  # fmt: skip
def test_a_label_wins_over_a_pattern(
    labels: tuple[str, ...], pattern: str, chosen: list[str]
) -> None:
    assert list(labelled(*labels).only([pattern]).rows) == chosen


# Power -------------------------------------------------------------------------------------


def integrated(effect: float, n: int, level: float) -> float:
    """Power of the paired t test, over the estimated deviation instead of the mean."""
    df, shift = n - 1, effect * math.sqrt(n)
    critical = -float(stdtrit(df, level / 2))

    def density(s: float) -> float:
        log = math.log(2) + df / 2 * math.log(df / 2) - gammaln(df / 2)
        return math.exp(log + (df - 1) * math.log(s) - df * s * s / 2)

    def found(s: float) -> float:
        return density(s) * float(ndtr(shift - critical * s) + ndtr(-critical * s - shift))

    ends = [1e-12, *(shift / critical * k / 8 for k in range(1, 17)), 30.0]
    return float(sum(quad(found, a, b, limit=200)[0] for a, b in pairwise(ends)))


@pytest.mark.parametrize(
    ("effect", "n", "level"),
    [(8, 2, 0.05), (12, 2, 0.05), (5, 3, 0.05 / 12), (8, 3, 0.05 / 12), (100, 2, 0.05 / 12),
     (8, 4, 0.05 / 12), (3, 8, 0.05 / 12), (0.5, 20, 0.05)],
)  # fmt: skip
def test_the_power_at_few_degrees_of_freedom(effect: float, n: int, level: float) -> None:
    assert power(effect, n, level) == pytest.approx(integrated(effect, n, level), abs=1e-6)


def test_the_power_of_one_degree_of_freedom_by_drawing() -> None:
    """Pairs of draws, 200,000 of them, tested one by one."""
    import numpy as np

    pairs = np.random.default_rng(0).normal(8.0, 1.0, (200_000, 2))
    t = pairs.mean(1) / (np.abs(pairs[:, 0] - pairs[:, 1]) / 2)
    share = float((np.abs(t) > 12.7062047).mean())
    assert power(8, 2) == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize(
    ("pairs", "tests", "effect", "more"),
    [(2, 2, 4.3708, 2), (2, 12, 10.0583, 2), (3, 12, 4.6389, 2)],
)
def test_the_seeds_that_few_pairs_need(pairs: int, tests: int, effect: float, more: int) -> None:
    spread = [-1.0, 1.0] if pairs == 2 else [-1.0, 0.0, 1.0]
    deviation = math.sqrt(2) if pairs == 2 else 1.0
    diffs = [v / deviation + effect for v in spread]
    assert seeds_needed(diffs, 0.05 / tests) == more


# Output ------------------------------------------------------------------------------------

HERE = {**os.environ, "PYTHONPATH": str(Path(mibench.__file__).parents[1])}
CALL = [sys.executable, "-m", "mibench.cli"]


def call(words: Sequence[str], folder: Path, **options: Any) -> Any:
    given: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": HERE,
    } | options
    return subprocess.run([*CALL, *words], check=False, cwd=folder, timeout=300, **given)


COMMANDS = [("list", "metrics"), ("table", "smoke"), ("run", "smoke", "--dry-run"), ("--help",),
            ("--version",)]  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", COMMANDS)
def test_output_onto_a_full_disk_is_one_sentence(words: tuple[str, ...], tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = call(words, tmp_path, stdout=full)
    assert done.returncode == 1
    lines = [x for x in done.stderr.decode().splitlines() if not x.startswith("note: ")]
    nothing = [x for x in lines if x.startswith("Error: nothing of smoke is there")]
    assert len(nothing) == (words == ("table", "smoke"))  # whose gaps are lost, too
    (line,) = [x for x in lines if x not in nothing]
    assert line == "Error: cannot write to standard output (No space left on device)"


def test_output_into_a_closed_pipe_is_one_sentence(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = call(("list", "metrics"), tmp_path, stdout=writer)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr.decode() == "Error: cannot write to standard output (Broken pipe)\n"


@pytest.mark.parametrize(("closed", "status"), [(1, 1), (2, 0)])
def test_a_closed_stream_ends_no_command_with_a_traceback(
    closed: int, status: int, tmp_path: Path
) -> None:
    shell = f'"$@" {closed}>&-'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", *CALL, "list", "metrics"], check=False, capture_output=True,
        cwd=tmp_path, env=HERE,
    )  # fmt: skip
    assert done.returncode == status
    assert (b"closed" in done.stderr) == (closed == 1)
    assert (b"attack_acc" in done.stdout) == (closed == 2)


def test_a_refusal_keeps_its_status_where_nothing_can_be_printed(tmp_path: Path) -> None:
    with Path(os.devnull).open() as unwritable:
        done = call(("table", "nonsense"), tmp_path, stdout=unwritable)
    assert done.returncode == 2


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "iso8859-1"])
def test_signs_that_an_encoding_lacks_are_replaced_and_named_once(
    encoding: str, tmp_path: Path
) -> None:
    done = call(("list", "metrics"), tmp_path, env={**HERE, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0
    plain = call(("list", "metrics"), tmp_path, env={**HERE, "PYTHONIOENCODING": "utf-8"})
    wanted = plain.stdout.decode().encode(encoding, "replace")
    assert done.stdout == wanted
    lost = wanted.decode(encoding) != plain.stdout.decode()
    assert done.stderr.decode().count("such characters are written as ?") == lost
    assert plain.stderr == b""


def test_a_note_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=fails))
    tell("a")
    monkeypatch.setattr(sys, "stderr", None)
    tell("b")


# Pictures ----------------------------------------------------------------------------------

RC: Any = {"text.usetex": True, "font.size": 30, "savefig.bbox": "tight", "savefig.dpi": 20}


@canvas.own_style()
def drawn(path: Path) -> bool:
    figure = canvas.new_figure((2, 2))
    axes = figure.add_subplot(1, 1, 1)
    axes.plot([1, 2], label=r"costs $\5, not $6")
    axes.set_title(r"costs $\5, not $6")
    axes.legend()
    canvas.save(figure, path)
    return True


def test_pictures_have_a_style_of_their_own(tmp_path: Path) -> None:
    import matplotlib as mpl

    drawn(tmp_path / "a.png")
    with mpl.rc_context(RC):
        drawn(tmp_path / "b.png")
        assert mpl.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("backend", ["module://none.of_that_name", "nonsense"])
def test_a_backend_that_is_not_there_is_not_asked_for(backend: str, tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from tests.test_surroundings import drawn\n"
        "assert drawn(Path('a.png'))\n"
        f"assert os.environ['MPLBACKEND'] == {backend!r}\n"
    )
    path = os.pathsep.join([HERE["PYTHONPATH"], str(Path(__file__).parents[1])])
    env = {**HERE, "MPLBACKEND": backend, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, env=env, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr.decode()


def test_a_picture_that_fails_takes_no_other_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @canvas.own_style()
    def broken(_: Path) -> bool:
        raise RuntimeError("no\nfont")

    pictures = {".png": broken, "-b.png": drawn}
    with pytest.raises(SystemExit) as left:
        write({".csv": "x"}, pictures, tmp_path / "t")
    told = capsys.readouterr()
    assert left.value.code == 1
    assert told.out.splitlines() == [str(tmp_path / "t.csv"), str(tmp_path / "t-b.png")]
    assert "could not draw" in told.err
    assert "t.png (RuntimeError: no font)" in told.err
    assert (tmp_path / "t.csv").read_text() == "x"


@pytest.mark.parametrize("fault", [ImportError("no font"), OSError(28, "full"), ValueError("x")])
def test_a_table_is_printed_before_anything_is_drawn(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = smoke("GMI / No Def.")
    fill(table, Store(tmp_path / "store"), data=tmp_path)
    monkeypatch.setitem(TABLES, "smoke", table)

    def fails(size: object) -> None:
        raise fault

    monkeypatch.setattr(figures, "new_figure", fails)
    options = ("--store", tmp_path / "store", "--out", tmp_path, "--data", tmp_path, "--quiet")
    done = CliRunner().invoke(main, ["run", "smoke", "--executor", "serial", *map(str, options)])
    assert done.exit_code == 1
    assert "GMI / No Def." in done.stdout
    assert (tmp_path / "smoke.csv").is_file()
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


# Names of files ----------------------------------------------------------------------------

SHIPPED = TABLES["smoke"]


@pytest.mark.parametrize(
    "name", ["smoke", "Smoke", "digits", "smoke-modified", "digits-tradeoff", "smoke-incomplete"]
)
def test_an_own_table_under_a_shipped_ones_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="would overwrite files of mibench's table"):
        check_name(replace(SHIPPED, name=name, caption="mine"), Path("mine.py"))


@pytest.mark.parametrize("name", ["", ".", "../smoke", "a/b", "a\\b", "a\nb", ".hidden"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name its files"):
        check_name(replace(SHIPPED, name=name), Path("mine.py"))


@pytest.mark.parametrize("name", ["mine", "smoke2", "smoke-of-mine", "我的"])
def test_another_name_is_taken(name: str) -> None:
    check_name(replace(SHIPPED, name=name), Path("mine.py"))
    check_name(SHIPPED, Path("mine.py"))


def test_a_file_whose_table_has_a_shipped_name_is_refused(place: Path) -> None:
    file = place / "copy_of_mine.py"
    file.write_text(
        "from dataclasses import replace\nfrom mibench.benchmarks.tables.smoke import SMOKE\n"
        "TABLE = replace(SMOKE, caption='changed')\n"
    )
    with pytest.raises(ValueError, match="named smoke would overwrite"):
        table_of(file)


# Python without docstrings -----------------------------------------------------------------


@pytest.mark.parametrize("what", ["attacks", "defenses", "tasks"])
def test_a_list_has_no_constructors_in_it(what: str, tmp_path: Path) -> None:
    done = call(("list", what), tmp_path, env={**HERE, "PYTHONOPTIMIZE": "2"})
    assert done.returncode == 0
    assert b"(" not in done.stdout
    assert b"Python drops descriptions" in done.stderr
