"""The paper's tables, from files to table, on tiny data in the official layouts."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mibench.benchmarks.tables import TABLES
from mibench.cli import main

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)

TRAINING = [
    "recipe.epochs=1", "recipe.batch_size=8", "setting.evaluators.0.recipe.epochs=1",
    "setting.evaluators.0.recipe.batch_size=8", "attack.prior.epochs=1",
    "attack.prior.batch_size=8", "attack.prior.generator_width=4",
    "attack.prior.discriminator_width=4", "attack.steps=2",
]  # fmt: skip
FACES = [
    *TRAINING, "recipe.instances=2", "setting.task.num_classes=6", "setting.task.min_images=8",
    "setting.task.public=20", "setting.task.size=32", "setting.network.pretrained=false",
    "setting.network.width=0.05", "setting.evaluators.0.network.width=0.1",
    "setting.evaluators.0.network.blocks=[1,1,1,1]", "setting.evaluators.0.network.size=32",
    "trials.classes=6", "trials.samples=2", "trials.block=2",
]  # fmt: skip
DISCRIMINATION = ["attack.prior.mbd=4", "attack.prior.mbd_kernels=2"]


@pytest.fixture(scope="module")
def celeba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    lines: list[str] = []
    for identity, count in enumerate([10, 9, 5, 10, 8, 9, 8, 6, 7, 4], 1):
        for _ in range(count):
            name = f"{len(lines) + 1:06d}.jpg"
            pixels = RNG.integers(0, 256, (218, 178, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            lines.append(f"{name} {identity}")
    (root / "celeba" / "identity_CelebA.txt").write_text("\n".join(lines) + "\n")
    return root


def run(table: str, data: Path, out: Path, rows: list[str], settings: list[str]) -> Result:
    arguments = ["run", table, "--data", str(data), "--store", str(out / "store")]
    arguments += ["--out", str(out / "out"), "--executor", "serial", "--quiet"]
    arguments += [a for row in rows for a in ("--rows", row)]
    return CliRunner().invoke(main, [*arguments, *(a for s in settings for a in ("--set", s))])


@pytest.mark.parametrize("table", ["table1", "table2", "table5", "table2-controlled"])
def test_celeba_tables_run_from_official_files_to_table(
    table: str, celeba: Path, tmp_path: Path
) -> None:
    rows = ["neither", "HSIC, both"] if table == "table5" else ["No Def.", "MID (c)", "*HSIC (c)"]
    settings = FACES + ([] if table == "table1" else DISCRIMINATION)
    done = run(table, celeba, tmp_path, rows, settings)
    assert done.exit_code == 0, done.output
    csv = (tmp_path / "out" / f"{table}-modified.csv").read_text().splitlines()
    assert len(csv) == 1 + len(rows)
    assert all(",1," in line for line in csv[1:])
    text = done.stdout
    assert ("reported" in text) == ("controlled" not in table)


def test_cifar10_runs_from_official_batches_to_table(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = RNG.integers(0, 256, (40, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": [i % 10 for i in range(40)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    small = [
        *TRAINING, *DISCRIMINATION, "setting.network.pretrained=false",
        "setting.network.width=0.05", "setting.evaluators.0.network.pretrained=false",
        "setting.evaluators.0.network.width=0.05", "trials.samples=2", "trials.repeats=2",
    ]  # fmt: skip
    rows = ["No Def.", "BiDO-COCO"]
    done = run("table3-cifar10", tmp_path, tmp_path, rows, small)
    assert done.exit_code == 0, done.output
    assert "96.17" in done.stdout


@pytest.mark.parametrize("table", TABLES)
def test_every_table_says_where_it_is_from_and_what_to_know(table: str) -> None:
    small = ("smoke", "digits", "avatars", "mnist", "celeba300", "faces30")
    ours = (*small, "tradeoff", "attacks", "defenses", "matrix")
    own = table.partition("-")[0] in ours
    assert bool(TABLES[table].source) != own
    assert TABLES[table].notes or table == "smoke"


@pytest.mark.parametrize("table", ["table4", "table4-controlled"])
def test_vmis_table_runs_from_official_files_to_table(
    table: str, celeba: Path, tmp_path: Path
) -> None:
    small = [
        "recipe.epochs=1", "recipe.milestones=[1]", "recipe.batch_size=8", "recipe.lr=0.001",
        "setting.evaluators.0.recipe.epochs=1", "setting.evaluators.0.recipe.batch_size=8",
        "setting.task.num_classes=5", "setting.task.train=5", "setting.task.public=20",
        "setting.task.validation=0.2",
        "setting.network.width=0.05", "setting.evaluators.0.network.width=0.1",
        "setting.evaluators.0.network.blocks=[1,1,1,1]", "setting.evaluators.0.network.size=32",
        "attack.prior.kimg=0.016", "attack.prior.batch_size=8", "attack.prior.z_dim=8",
        "attack.prior.w_dim=8", "attack.prior.channel_base=64", "attack.prior.channel_max=4",
        "attack.couplings=1", "attack.hidden=4", "attack.levels=2", "attack.steps=4",
        "attack.batch=2", "trials.classes=5", "trials.samples=3", "trials.block=5",
    ]  # fmt: skip
    if table == "table4":
        small.append("attack.snapshots=2")
    rows = ["No Def.", "MID", "BiDO-HSIC"]
    done = run(table, celeba, tmp_path, rows, small)
    assert done.exit_code == 0, done.output
    assert ("liked best" in done.stdout) == (table == "table4")
    assert "FID per identity" in done.stdout


def students(where: str) -> list[str]:
    """Returns what makes the tables' three students small."""
    sizes = [
        "0.network.pretrained=false", "0.network.width=0.05", "1.network.width=0.05",
        "2.network.width=0.1", "2.network.blocks=[1,1,1,1]", "2.network.size=32",
    ]  # fmt: skip
    recipes = [f"{i}.recipe.{field}" for i in range(3) for field in ("epochs=1", "batch_size=8")]
    return [f"{where}.students.{end}" for end in sizes + recipes]


STYLES = [
    *(s for s in FACES if not s.startswith("attack.")), "attack.pool=8",
    "attack.prior.kimg=0.016", "attack.prior.batch_size=8", "attack.prior.z_dim=8",
    "attack.prior.w_dim=8", "attack.prior.channel_base=64", "attack.prior.channel_max=4",
]  # fmt: skip
LATER = {
    "*MI*": ("table-lomma", [*FACES, *DISCRIMINATION, *students("attack.identity")]),
    "[GKP]*MI": ("table-plg", [*FACES, *DISCRIMINATION, "attack.prior.per_class=4"]),
    "PPA": (
        "table-ppa",
        [*STYLES, "attack.candidates=2", "attack.final.0.looks=2", "attack.steps=2"],
    ),
    "IF-GMI": ("table-ppa", [*STYLES, "attack.steps=[1,1]"]),
    "BREP-MI": (
        "table-labelonly",
        [*FACES, "attack.pool=64", "attack.batch=16", "attack.points=4"],
    ),
    "LOKT": (
        "table-labelonly",
        [
            *FACES, *students("attack.prior"), "attack.prior.warm_up=1",
            "attack.prior.per_class=4",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", LATER)
def test_later_attacks_run_from_official_files_to_table(
    attack: str, celeba: Path, tmp_path: Path
) -> None:
    table, settings = LATER[attack]
    done = run(table, celeba, tmp_path, [f"{attack}, VGG16"], settings)
    assert done.exit_code == 0, done.output
    csv = (tmp_path / "out" / f"{table}-modified.csv").read_text().splitlines()
    assert len(csv) == 1 + len(TABLES[table].only([f"{attack}, VGG16"]).rows)
    assert all(",1," in line for line in csv[1:])
