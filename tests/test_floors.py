"""Who may import whom: a module imports only from floors below its own."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FLOORS = [
    {"types", "roles", "seeding", "spec", "sources", "override", "ties", "machine", "precision"}
    | {"convolution", "store"},
    {"data", "networks", "training"},
    {"defenses", "attacks", "evaluation"},
    {"benchmarks"},
    {"running"},
    {"reporting"},
    {"api"},
    {"auditing"},
    {"commands"},
    {"cli"},
]
BESIDE = {"training": {"data", "networks"}}
"""Who may import from its own floor."""
LEVEL = {name: i for i, floor in enumerate(FLOORS) for name in floor}
ROOT = Path(__file__).parent.parent / "mibench"


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_down() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for module in imported(path):
            package, _, rest = module.partition(".")
            other = rest.split(".")[0]
            if package != "mibench" or other in ("", room):
                continue
            if other in BESIDE.get(room, ()):
                continue
            if LEVEL[room] and LEVEL[other] >= LEVEL[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def needed(path: Path) -> set[Path]:
    """Returns the files that a module imports anywhere, but for annotations alone."""
    tree = ast.parse(path.read_text())
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in typing and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import) and id(node) not in typing:
            names |= {alias.name for alias in node.names}
    places = [ROOT.parent / name.replace(".", "/") for name in names]
    return {p.with_suffix(".py") for p in places if p.with_suffix(".py").is_file()}


def test_no_module_needs_itself_on_a_way_around() -> None:
    left = {path: needed(path) for path in ROOT.rglob("*.py")}
    while free := {path for path, needs in left.items() if not needs & left.keys()}:
        left = {path: needs for path, needs in left.items() if path not in free}
    assert sorted(str(path.relative_to(ROOT)) for path in left) == []


def test_no_room_holds_most_of_the_house() -> None:
    lines = {room.name: 0 for room in ROOT.iterdir()}
    for path in ROOT.rglob("*.py"):
        lines[path.relative_to(ROOT).parts[0]] += len(path.read_text().splitlines())
    total = sum(lines.values())
    assert {room for room, count in lines.items() if count > 0.22 * total} == set()


def test_no_module_is_longer_than_a_few_screens() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    assert {path.name for path, count in lines.items() if count > 450} == set()


def test_the_lowest_floor_knows_only_torch_and_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"torch", "jaxtyping", "safetensors", "mibench"}
    for name in FLOORS[0]:
        files = [*ROOT.glob(f"{name}.py"), *(ROOT / name).glob("*.py")]
        used = {module.split(".")[0] for path in files for module in imported(path)}
        assert files, name
        assert used <= allowed, name


def test_importing_mibench_and_its_components_is_quick() -> None:
    code = (
        "import sys, mibench, mibench.attacks, mibench.defenses, mibench.benchmarks.tables\n"
        "heavy = {'torchvision', 'pandas', 'pytorch_fid', 'nflows', 'sklearn', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_text_needs_no_torch() -> None:
    """It starts in a fifth of a second that way; torch alone takes one to three."""
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from mibench.cli import main\n"
        "print(CliRunner().invoke(main, ['--help']).exit_code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 False"


def test_these_names_are_the_public_ones() -> None:
    import mibench

    types = {
        "Attack", "Cell", "Classifier", "Defense", "Prior", "PriorSpec", "Reconstructions",
        "Results", "Table",
    }  # fmt: skip
    functions = {"evaluator", "load", "run", "score", "target"}
    assert set(mibench.__all__) == types | functions | {"audit"}
    assert mibench.audit.__module__ == "mibench.auditing"
    assert all(isinstance(getattr(mibench, name), type) for name in types)
    assert all(getattr(mibench, name).__module__ == "mibench.api" for name in functions)
