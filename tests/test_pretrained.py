"""Networks whose training starts from the layers of a file."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mibench.attacks import Imitation, Pixels, Student
from mibench.attacks.priors.shipped import STRANGERS, packed
from mibench.benchmarks.tables import TABLES
from mibench.data import Avatars
from mibench.defenses import MID, LowRank, NoDefense, Recipe, TransferLearning
from mibench.networks import MCNN, MLP, Imported, Pretrained, Weights
from mibench.networks.foreign import weights as files
from mibench.roles import Defense, NetworkSpec, PriorSpec
from mibench.running.grid import fetch_weights
from mibench.running.stages import ClassifierStage, ImagesStage, PriorStage, StudentStage
from mibench.seeding import seeded
from mibench.spec import canonical
from mibench.store import Stage, Work
from mibench.types import Classifier
from perf import ship
from perf.ship import CLASSIFIERS, OTHERS

SHAPE = (1, 4, 4)
SMALL = MLP(width=8)
TASK = Avatars(num_classes=2, size=8, images=8, tests=2, evaluation=4, strangers=2, each=1)
PINNED = {
    cell.setting.network
    for table in TABLES.values()
    for cell in table.rows.values()
    if isinstance(cell.setting.network, Pretrained)
}


def built(seed: str, classes: int = 2) -> Classifier:
    with seeded(seed):
        return SMALL.build(SHAPE, classes)


def file(folder: Path, network: Classifier) -> Weights:
    """Writes a network's weights and returns what names them."""
    data = packed(network.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.safetensors").write_bytes(data)
    return Weights("a.safetensors", hashlib.sha256(data).hexdigest())


def same(a: Classifier, b: Classifier) -> dict[str, bool]:
    other = b.state_dict()
    return {name: torch.equal(value, other[name]) for name, value in a.state_dict().items()}


@pytest.mark.parametrize("classes", [2, 5])
def test_all_layers_but_the_last_are_those_of_the_file(classes: int, tmp_path: Path) -> None:
    source, network, fresh = built("trained", classes), built("fresh"), built("fresh")
    spec = Pretrained(SMALL, file(tmp_path / "weights", source))
    spec.initialise(network, tmp_path)
    drawn, state = same(network, fresh), source.state_dict()
    assert {name for name, equal in drawn.items() if equal} == {"last.weight", "last.bias"}
    for name, value in network.state_dict().items():
        assert name.startswith("last.") or torch.equal(value, state[name])
    assert spec.starts_trained
    assert not spec.trained


@pytest.mark.parametrize(
    "defense", [TransferLearning("blocks.0"), LowRank(rank=1), MID(lambda_=1)]
)
def test_a_target_starts_from_the_file_whatever_its_defense(
    defense: Defense, tmp_path: Path
) -> None:
    """One step of a small rate: what is not frozen moves a little, from where the file is."""
    network = MCNN(widths=(3, 4), kernels=(3, 3), paddings=(1, 1))
    with seeded("trained"):
        source = network.build(TASK.shape, 5)
    spec = Pretrained(network, file(tmp_path / "weights", source))
    images = ImagesStage(TASK, TASK.digest(tmp_path))
    recipe = Recipe(epochs=1, lr=1e-6, batch_size=4, select="last")
    stage = ClassifierStage(images, "private", spec, defense, recipe, 0)
    drawn = images.compute(lambda _: {}, Work())
    trained = stage.compute(lambda _: drawn, Work(data=tmp_path))["state"]
    frozen = isinstance(defense, TransferLearning)
    for name, value in source.state_dict().items():
        if not name.startswith("last.") and "running" not in name and "tracked" not in name:
            torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-4)
        if name.startswith("blocks."):
            assert torch.equal(trained[name], value) == (frozen and name.startswith("blocks.0."))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    with seeded("wide"):
        wide = MLP(width=9).build(SHAPE, 2)
    spec = Pretrained(SMALL, file(tmp_path / "weights", wide))
    network, fresh = built("fresh"), built("fresh")
    with pytest.raises(ValueError, match="do not fit"):
        spec.initialise(network, tmp_path)
    assert all(same(network, fresh).values())


def test_the_packages_file_is_taken_if_the_data_folder_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Pretrained(SMALL, file(tmp_path / "package", built("trained")))
    with pytest.raises(FileNotFoundError, match="is missing"):
        spec.fetch(tmp_path)
    monkeypatch.setattr(files, "SHIPPED", tmp_path / "package")
    spec.fetch(tmp_path)
    file(tmp_path / "weights", built("others"))
    with pytest.raises(ValueError, match="put the right file there"):
        spec.fetch(tmp_path)


@pytest.mark.parametrize("spec", PINNED, ids=lambda s: s.network.name)
def test_the_package_has_the_weights_that_its_tables_pin(spec: Pretrained) -> None:
    spec.fetch(Path("no such folder"))
    assert (files.SHIPPED / spec.weights.file).stat().st_size <= 4 << 20
    task = next(
        cell.setting.task
        for cell in TABLES["defenses-avatars"].rows.values()
        if cell.setting.network == spec
    )
    with seeded("fresh"):
        network = spec.build(task.shape, 30)
    spec.initialise(network, Path("no such folder"))


def test_what_is_said_of_the_shipped_classifier_is_what_trains_it() -> None:
    for network, task, recipe in CLASSIFIERS:
        (spec,) = [s for s in PINNED if s.network == network]
        path = files.SHIPPED / spec.weights.file
        told = json.loads(path.with_suffix(".json").read_text())
        assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        made = {"network": network, "task": task, "recipe": recipe}
        assert {name: told[name] for name in made} == {k: canonical(v) for k, v in made.items()}


def test_nobody_that_a_shipped_classifier_has_seen_is_in_a_table() -> None:
    seen = {t.numpy().tobytes() for t in OTHERS.truth(torch.arange(OTHERS.num_classes))}
    assert len(seen) == OTHERS.num_classes
    casts = {
        cell.setting.task
        for table in TABLES.values()
        for cell in table.rows.values()
        if isinstance(cell.setting.task, Avatars)
    }
    for task in (*casts, replace(OTHERS, cast=99), STRANGERS):
        assert task.cast != OTHERS.cast
        private = task.truth(torch.arange(task.num_classes)).numpy()
        others = [task._cast(part, task.strangers) for part in ("public", "outliers")]
        for traits in (private, *others):
            assert traits.dtype == np.float32
            assert not seen & {t.tobytes() for t in traits}


def test_a_file_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    source = built("trained")
    data = packed({name: value.long() for name, value in source.state_dict().items()})
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.safetensors").write_bytes(data)
    spec = Pretrained(SMALL, Weights("a.safetensors", hashlib.sha256(data).hexdigest()))
    with pytest.raises(ValueError, match=r"of whole numbers: layers\.0\.0\.weight torch\.int64"):
        spec.initialise(built("fresh"), tmp_path)


def test_another_file_is_to_be_put_into_the_data_folder_and_not_into_the_package(
    tmp_path: Path,
) -> None:
    spec = Pretrained(SMALL, Weights(next(iter(PINNED)).weights.file, "0" * 64))
    with pytest.raises(ValueError, match=re.escape(f"at {tmp_path / 'weights'}")):
        spec.fetch(tmp_path)


@pytest.mark.parametrize("kind", [Imported, Pretrained])
def test_a_student_starts_from_its_file(kind: type[Imported | Pretrained], tmp_path: Path) -> None:
    source, network = built("trained"), built("fresh")
    Student(kind(SMALL, file(tmp_path / "weights", source))).start(network, tmp_path)
    told = {name for name, equal in same(network, source).items() if equal}
    assert (told == set(source.state_dict())) == (kind is Imported)
    assert {"layers.0.0.weight", "layers.1.0.bias"} <= told


def stages(task: Avatars, network: NetworkSpec, student: Student, prior: PriorSpec) -> list[Stage]:
    images = ImagesStage(task, "drawn")
    target = ClassifierStage(
        images, "private", network, NoDefense(), Recipe(epochs=1, select="last"), 0
    )
    return [target, StudentStage(images, target, student, 0), PriorStage(images, target, prior, 0)]


@pytest.mark.parametrize(
    ("who", "what"),
    [
        ("target", "missing"),
        ("target", "misfit"),
        ("student", "missing"),
        ("surrogate", "missing"),
    ],
)
def test_weights_are_asked_for_before_anything_is_computed(
    who: str, what: str, tmp_path: Path
) -> None:
    with seeded("wide"):
        wide = MLP(width=9).build(TASK.shape, 2)
    weights = file(tmp_path / "weights", wide)
    bad = Pretrained(SMALL, weights if what == "misfit" else Weights("b.safetensors", "0" * 64))
    good = Student(SMALL)
    networks = {
        "target": (bad, good, good),
        "student": (SMALL, Student(bad), good),
        "surrogate": (SMALL, good, Student(bad)),
    }[who]
    network, student, surrogate = networks
    prior = Imitation(Pixels(), (surrogate,))
    with pytest.raises((FileNotFoundError, ValueError), match=r"is missing|do not fit"):
        fetch_weights(stages(TASK, network, student, prior), tmp_path)
    fetch_weights(stages(TASK, SMALL, good, Imitation(Pixels(), (good,))), tmp_path)


def test_only_weights_that_the_package_ships_are_trained_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["ship", "--only", "nosuch"])
    with pytest.raises(SystemExit) as left:
        ship.main()
    assert left.value.code == 2
    assert "ships no weights called nosuch" in capsys.readouterr().err
