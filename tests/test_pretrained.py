"""Networks whose training starts from the layers of a file."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mibench.attacks.priors.shipped import packed
from mibench.benchmarks.tables import TABLES
from mibench.data import Avatars
from mibench.defenses import MID, TransferLearning
from mibench.networks import MLP, Pretrained, Weights
from mibench.networks.foreign import weights as files
from mibench.seeding import seeded
from mibench.types import Classifier
from perf.ship import OTHERS

SHAPE = (1, 4, 4)
SMALL = MLP(width=8)
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


def test_all_layers_but_the_last_are_those_of_the_file(tmp_path: Path) -> None:
    source, network, fresh = built("trained", classes=5), built("fresh"), built("fresh")
    spec = Pretrained(SMALL, file(tmp_path / "weights", source))
    spec.initialise(network, tmp_path)
    told = {name: torch.equal(v, source.state_dict()[name]) for name, v in
            network.state_dict().items() if not name.startswith("last.")}  # fmt: skip
    assert told
    assert all(told.values())
    drawn = same(network, fresh)
    assert {name for name, equal in drawn.items() if equal} == {"last.weight", "last.bias"}
    assert spec.starts_trained
    assert not spec.trained


def test_a_defense_may_change_the_network_afterwards(tmp_path: Path) -> None:
    spec = Pretrained(SMALL, file(tmp_path / "weights", built("trained")))
    network = built("fresh")
    spec.initialise(network, tmp_path)
    with seeded("bottleneck"):
        spec.finish(MID(lambda_=0.1).harden(network), tmp_path)
    TransferLearning(last_frozen="layers.0").harden(built("fresh"))


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


def test_nobody_that_a_shipped_classifier_has_seen_is_in_a_table() -> None:
    seen = OTHERS.truth(torch.arange(OTHERS.num_classes))
    casts = {
        cell.setting.task
        for table in TABLES.values()
        for cell in table.rows.values()
        if isinstance(cell.setting.task, Avatars)
    }
    for task in (*casts, replace(OTHERS, cast=99)):
        assert task.cast != OTHERS.cast
        private = task.truth(torch.arange(task.num_classes))
        public = torch.from_numpy(task._cast("public", task.strangers))
        assert float(torch.cdist(torch.cat([private, public]), seen).min()) > 0
