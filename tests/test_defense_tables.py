"""The tables of all defenses: what stands in them, and that they run from files to table."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mibench.benchmarks.row import Row
from mibench.benchmarks.tables import TABLES
from mibench.benchmarks.tables.avatars import AVATARS
from mibench.benchmarks.tables.defenses_avatars import TRAINED
from mibench.benchmarks.tables.defenses_celeba import DEFENSES as DEFENSES_CELEBA
from mibench.cli import main
from mibench.data import CelebA
from mibench.defenses import DEFENSES, DPSGD, Release
from mibench.reporting.contrasts import reference, twins
from mibench.running.stages import graph, record_stage

PORTRAITS, CELEBA = TABLES["defenses-avatars"], TABLES["defenses-celeba"]


def test_every_defense_stands_in_the_table_at_three_strengths() -> None:
    names = {cell.defense.name for cell in PORTRAITS.rows.values()}
    assert names == DEFENSES.keys()
    for name, labels in PORTRAITS.curves.items():
        assert len(labels) == (1 if name == "No Def." else 3)
        assert len({PORTRAITS.rows[label].defense for label in labels}) == len(labels)
    assert {cell.defense.name for cell in CELEBA.rows.values()} >= {"tl-dmi", "dp-sgd", "rolss"}


def test_middle_strengths_come_first_and_meet_every_attack() -> None:
    labels = list(PORTRAITS.rows)
    middle = [f"{name} ({list(at)[1]})" for name, at in TRAINED.items()]
    for title in ("KED-MI", "PPA", "BREP-MI"):
        assert {f"{title} / {label}" for label in middle} <= set(labels)
    ends = [f"KED-MI / {name} ({end})" for name, at in TRAINED.items() for end in list(at)[::2]]
    assert min(map(labels.index, ends)) > labels.index(f"BREP-MI / {middle[-1]}")
    for label, cell in PORTRAITS.rows.items():
        if isinstance(cell.defense, Release):
            assert cell.attack.access in ("scores", "labels"), label


def test_each_row_is_compared_with_no_defense_and_with_its_twin() -> None:
    for table in (PORTRAITS, CELEBA):
        for label, cell in table.rows.items():
            if cell.defense.undefended:
                continue
            other = reference(table, label)
            assert other is not None, label
            if not isinstance(cell.defense, DPSGD):
                assert table.rows[other].recipe == cell.recipe, label
    found = {label: Row.of(twin).defended for label, twin in twins(PORTRAITS).items()}
    assert {Row.of(label).defense for label in found} == {"MID", "Trap-MID", "DP-SGD"}
    assert set(found.values()) == {"MID (0)", "Trap-MID (0)", "DP-SGD (0)"}
    for label, cell in PORTRAITS.rows.items():
        needs_twin = not (cell.defense.twin().undefended or cell.defense.twin() == cell.defense)
        assert (label in found) == needs_twin


def test_what_the_tables_share_with_others_is_computed_once() -> None:
    def keys(table: str, label: str) -> set[str]:
        last = record_stage(TABLES[table].rows[label], TABLES[table].columns, "data")
        return {
            f"{s.kind} {s.key}" for s in graph([last]) if s.kind in ("classifier", "inversion")
        }

    for label, same in (
        ("KED-MI / No Def.", "KED-MI / No Def."),
        ("KED-MI / MID (0.02)", "KED-MI / MID"),
        ("KED-MI / BiDO-HSIC (0.05, 0.5)", "KED-MI / BiDO-HSIC"),
    ):
        assert keys("defenses-avatars", label) == keys("avatars", same)
    for title in ("KED-MI", "PPA", "BREP-MI", "MIRROR, black box"):
        label = f"{title} / No Def."
        assert keys("defenses-avatars", label) == keys("attacks-avatars", label)
    for name, at in TRAINED.items():
        if name in ("MID", "BiDO-COCO", "BiDO-HSIC"):
            for strength in at:
                label = f"KED-MI / {name} ({strength})"
                assert keys("defenses-avatars", label) == keys("tradeoff-avatars", label)
    assert set(AVATARS.columns) >= {*PORTRAITS.columns}


@pytest.mark.parametrize(("label", "epsilon"), [("ε = 8", 8), ("ε = 50", 50)])
def test_epsilons_are_what_the_labels_say(label: str, epsilon: float) -> None:
    cell = CELEBA.rows[f"KED-MI / DP-SGD ({label})"]
    assert cell.defense.facts(cell.recipe, 27_018)["epsilon"] == pytest.approx(epsilon, rel=0.01)


SMALL = [
    "recipe.epochs=2", "recipe.batch_size=8", "recipe.milestones=[1]", "recipe.instances=2",
    "setting.evaluators.0.recipe.epochs=1", "setting.evaluators.0.recipe.batch_size=8",
    "attack.prior.epochs=1", "attack.prior.batch_size=8", "attack.prior.generator_width=4",
    "attack.prior.discriminator_width=4", "attack.prior.mbd=4", "attack.prior.mbd_kernels=2",
    "attack.steps=2", "attack.pool=8", "attack.batch=8", "attack.points=2",
    "attack.max_queries=0", "setting.task.num_classes=4", "setting.task.min_images=8",
    "setting.task.public=8", "setting.task.size=32", "setting.network.pretrained=false",
    "setting.network.width=0.05", "setting.network.size=32", "setting.network.blocks=[1,1,1,1]",
    "setting.evaluators.0.network.width=0.1", "setting.evaluators.0.network.size=32",
    "setting.evaluators.0.network.blocks=[1,1,1,1]", "trials.classes=4", "trials.samples=1",
    "trials.block=2",
]  # fmt: skip


def official_files(root: Path) -> None:
    """Writes CelebA's list, of twelve identities, and images of noise."""
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    lines: list[str] = []
    rng = np.random.default_rng(0)
    for identity, count in enumerate([10, 9, 5, 10, 8, 9, 8, 6, 7, 4, 9, 8], 1):
        for _ in range(count):
            name = f"{len(lines) + 1:06d}.jpg"
            pixels = rng.integers(0, 256, (218, 178, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            lines.append(f"{name} {identity}")
    (root / "celeba" / "identity_CelebA.txt").write_text("\n".join(lines) + "\n")


def test_outliers_of_celeba_are_of_identities_that_are_neither_private_nor_public(
    tmp_path: Path,
) -> None:
    official_files(tmp_path)
    task = CelebA(num_classes=4, min_images=8, public=8, size=8)
    outliers = task.outliers(tmp_path)
    counts = outliers.labels.bincount()
    assert counts[8:].tolist() == [9, 8, 9, 8]  # identities 6, 7, 11 and 12
    assert not counts[:8].any()  # four private ones, and four with fewer images
    assert outliers.pixels.shape == (34, 3, 8, 8)
    splits = task.load(tmp_path)
    assert not {*splits.public.labels.tolist()} & {*outliers.labels.tolist()}
    with pytest.raises(ValueError, match="celeba has no images that are neither"):
        replace(task, num_classes=8).outliers(tmp_path)


@pytest.mark.slow
def test_defenses_celeba_runs_from_official_files_to_table(tmp_path: Path) -> None:
    official_files(tmp_path)
    places = ["--data", str(tmp_path), "--store", str(tmp_path / "store")]
    places += ["--out", str(tmp_path / "out"), "--executor", "serial", "--quiet"]
    settings = [argument for text in SMALL for argument in ("--set", text)]
    labels = [f"KED-MI / {label}" for label in DEFENSES_CELEBA if label != "TL-DMI"]
    labels.append("BREP-MI / MIDRE")  # TL-DMI needs trained weights
    chosen = [argument for label in labels for argument in ("--rows", label)]
    done = CliRunner().invoke(main, ["run", CELEBA.name, *places, *settings, *chosen])
    assert done.exit_code == 0, done.output
    csv = (tmp_path / "out" / f"{CELEBA.name}-modified.csv").read_text().splitlines()
    assert len(csv) == 1 + len(labels)
    assert all(",1," in line for line in csv[1:])


def test_defenses_celeba_is_planned_without_its_files(tmp_path: Path) -> None:
    places = ["--data", "/nowhere", "--store", str(tmp_path)]
    done = CliRunner().invoke(main, ["run", CELEBA.name, "--dry-run", *places])
    assert done.exit_code == 0, done.output
    for label in CELEBA.rows:
        assert f"{label}, seed 0" in done.stdout
