"""Priors whose weights come with the package."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mibench.attacks import PPDGMI, WGANGP, InversionGAN, Shipped, StyleGAN2
from mibench.attacks.priors import shipped
from mibench.attacks.priors.shipped import packed
from mibench.benchmarks.tables import TABLES
from mibench.data import Avatars
from mibench.seeding import seeded
from mibench.store import Work
from mibench.types import ImageSet, Prior

SMALL = WGANGP(**WGANGP.small)
TASK = Avatars(num_classes=2, size=16)
PINNED = list(
    dict.fromkeys(
        cell.attack.prior
        for table in TABLES.values()
        for cell in table.rows.values()
        if isinstance(cell.attack.prior, Shipped)
    )
)


NO_IMAGES = ImageSet(torch.zeros(0, 3, 16, 16, dtype=torch.uint8), torch.zeros(0).long())


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns untrained ones."""
    with seeded(seed, "weights"):
        return SMALL.build(TASK.shape, 2).state_dict()


@pytest.fixture
def prior(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shipped:
    """Returns a small one, its file in a folder of the test."""
    data = packed(weights())
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    spec = Shipped(SMALL, TASK, hashlib.sha256(data).hexdigest())
    spec.path.write_bytes(data)
    return spec


def trained(spec: Shipped) -> Prior:
    with seeded("not these weights"):
        built = spec.build(spec.task.shape, 2)
    spec.train(built, NO_IMAGES, None, torch.Generator(), Work())
    return built.eval().requires_grad_(requires_grad=False)


def train(spec: Shipped) -> bytes:
    """Returns the weights that an attack gets."""
    return packed(trained(spec).state_dict())


def test_an_attack_gets_the_weights_of_the_file(prior: Shipped) -> None:
    assert train(prior) == prior.path.read_bytes()
    assert prior.planned_steps(1000) == 0
    assert prior.offers == SMALL.offers
    assert prior.access == "none"


def test_the_order_of_the_weights_does_not_change_the_file() -> None:
    state = weights()
    assert packed(state) == packed(dict(reversed(state.items())))


def test_other_weights_are_refused(prior: Shipped) -> None:
    prior.path.write_bytes(packed(weights(1)))
    with pytest.raises(ValueError, match="install mibench again"):
        prior.fetch(Path())
    with pytest.raises(ValueError, match="install mibench again"):
        trained(prior)


def test_missing_weights_are_named(prior: Shipped) -> None:
    prior.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"perf\.ship"):
        prior.fetch(Path())


def test_a_task_of_another_shape_is_refused_with_the_prior_to_train_instead(
    prior: Shipped,
) -> None:
    with pytest.raises(ValueError, match="draw images of 3x16x16, and the task's are 1x16x16"):
        prior.build((1, 16, 16), 2)


@pytest.mark.parametrize("sha256", ["", "ABCDEF", "0" * 63])
def test_a_digest_is_whole(sha256: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        Shipped(SMALL, TASK, sha256)


def test_a_prior_that_asks_the_target_cannot_be_shipped() -> None:
    with pytest.raises(ValueError, match="must not ask the target"):
        Shipped(InversionGAN(**InversionGAN.small), TASK, "0" * 64)


def test_ppdg_mi_trains_a_shipped_gan_on_and_no_other_shipped_prior() -> None:
    attack = PPDGMI(Shipped(SMALL, TASK, "0" * 64), epochs=3, lr=0.5)
    assert attack._spec == replace(SMALL, epochs=3, lr=0.5)
    with pytest.raises(ValueError, match="shipped is not: take wgan-gp"):
        PPDGMI(Shipped(StyleGAN2(), TASK, "0" * 64))


@pytest.mark.parametrize("spec", PINNED, ids=lambda p: p.of.name)
def test_the_package_has_the_weights_that_its_tables_pin(spec: Shipped) -> None:
    spec.fetch(Path())
    assert spec.path.stat().st_size <= 4 << 20
    built = trained(spec)
    images = built.generate(built.sample(64, torch.Generator().manual_seed(0)))
    assert float(images.std(0).mean()) > 0.1, "it draws one picture, whatever the latent"


def test_nobody_that_a_prior_has_seen_is_private() -> None:
    for spec in PINNED:
        assert isinstance(spec.task, Avatars)
        seen = {t.tobytes() for t in spec.task._cast("public", spec.task.strangers)}
        assert len(seen) == spec.task.strangers
        for cast in range(3):
            private = replace(spec.task, cast=cast).truth(torch.arange(30)).numpy()
            assert not seen & {t.tobytes() for t in private}
