"""White-box attacks recover the drawn patterns, and only from a target that has seen them."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mibench.attacks import (
    IFGMI,
    PLGGAN,
    PLGMI,
    PPA,
    PPDGMI,
    WGANGP,
    Goal,
    MIFace,
    Mirror,
    lomma_gmi,
    lomma_kedmi,
)
from mibench.attacks.access import Watched, handed
from mibench.attacks.priors.pixels import PixelPrior
from mibench.attacks.priors.styled import Begun, StyledPrior
from mibench.attacks.students import Student
from mibench.attacks.views import TAA, Augment
from mibench.data import Corpus
from mibench.data.synthetic import Blobs
from mibench.defenses import NoDefense, Recipe
from mibench.networks import MLP
from mibench.roles import Attack
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.training.train import train_classifier
from mibench.types import Classifier, Images, ImageSet, Labels, Prior

TASK = Blobs(num_classes=5)
CLASSES = torch.arange(5)
SAMPLES = 4


@cache
def splits() -> Any:
    return TASK.load(Path())


@cache
def target(*, known: bool) -> Classifier:
    """Returns a classifier of the private patterns, or one of others under the same labels."""
    corpus = splits().private
    if not known:
        other = splits().public
        relabelled = ImageSet(other.pixels, other.labels - 5)
        corpus = Corpus(relabelled, torch.zeros(len(other), dtype=torch.bool), relabelled, 5)
    with seeded("target"):
        network = MLP(128).build(TASK.shape, 5)
    recipe = Recipe(epochs=12, batch_size=20, lr=2e-3, select="last")
    train_classifier(network, NoDefense(), recipe, corpus, generator("train"), Work())
    return network.eval().requires_grad_(requires_grad=False)


class Linear(Prior):
    """image = sigmoid(M z), as many latents as pixels; every image is as real as any."""

    z_dim = 64

    def __init__(self) -> None:
        super().__init__()
        M = torch.randn(64, 64, generator=generator("linear")) / 4
        self.register_buffer("M", M)

    def generate(self, z: Tensor, y: Labels | None = None) -> Images:
        return (z @ self.M.T).sigmoid().view(-1, 1, 8, 8)  # type: ignore[operator]

    def realism(self, x: Images, y: Labels | None = None) -> Tensor:
        return 0 * x.sum((1, 2, 3))


class Layers(StyledPrior):
    """Two blocks: a linear map of the first style, to which one of the second is added."""

    z_dim = w_dim = 64
    num_ws = blocks = 2

    def __init__(self) -> None:
        super().__init__()
        A = torch.randn(2, 64, 64, generator=generator("layers")) / 3
        self.register_buffer("A", A)

    def styles(self, z: Tensor, psi: float = 1.0, cutoff: int = 0) -> Tensor:
        ws = z[:, None].repeat(1, 2, 1)
        ws[:, : cutoff or None] *= psi
        return ws

    def until(self, ws: Tensor, blocks: int, begun: Begun | None = None) -> Begun:
        done, maps, image = begun or Begun(0, torch.zeros(()), None)
        for i in range(done, blocks):
            mine = (ws[:, i] @ self.A[i].T).view(-1, 1, 8, 8)  # type: ignore[index]
            maps = maps + mine
            image = maps if image is None else image + mine
        return Begun(blocks, maps, image)

    def synthesise(self, ws: Tensor, *, clamp: bool = True, begun: Begun | None = None) -> Images:
        image = self.until(ws, 2, begun).image
        assert image is not None
        x = image / 8 + 0.5
        return x.clamp(0, 1) if clamp else x


def hits(attack: Attack, prior: Prior, *, known: bool = True) -> float:
    """Returns the share of reconstructions whose pattern is the class's."""
    work = Work()
    seen = handed(target(known=known), "white", work)
    assert isinstance(seen, Watched)
    identity: Any = attack.identity  # type: ignore[attr-defined]
    if identity.public:
        seen.look_at(splits().public)
    for i, student in enumerate(identity.students):
        with seeded("student", i):
            network = student.network.build(TASK.shape, 5)
        student.train(network, splits().public, seen.soft_answers(splits().public),
                      generator("student"), Work())  # fmt: skip
        seen.students.append(network.eval().requires_grad_(requires_grad=False))
    streams = [generator("known", i) for i in range(2)]
    goal = Goal([CLASSES[:3], CLASSES[3:]], SAMPLES, streams, TASK.shape, public=splits().public)
    prior.eval().requires_grad_(requires_grad=False)
    with seeded("attack"):
        made = attack.invert(seen, prior, goal, work)
    return recognised(made.images)


def recognised(x: Tensor) -> float:
    test = splits().private.test
    patterns = torch.stack([test.images[test.labels == k].mean(0) for k in CLASSES]).flatten(1)
    middle = patterns.mean(0)
    x, patterns = x.flatten(2) - x.flatten(2).mean(2, keepdim=True), patterns - middle
    nearest = (x @ patterns.T / patterns.norm(dim=1)).argmax(2)
    return float((nearest == CLASSES).float().mean())


class Drawn(PixelPrior):
    """The pixels themselves."""

    def __init__(self) -> None:
        super().__init__(TASK.shape)


LOOK = (Augment(scale=(0.9, 1.0), flip=0.0),)
STUDENT = Student(MLP(32), Recipe(8, batch_size=20, lr=2e-3, select="last"))
ATTACKS: dict[str, tuple[Any, type[Prior]]] = {
    "lomma-gmi": (lomma_gmi((STUDENT,), steps=60), Linear),
    "lomma-ked-mi": (lomma_kedmi((STUDENT,), steps=150), Linear),
    "ppa": (PPA(pool=60, candidates=2, steps=70, augment=LOOK, final=LOOK), Layers),
    "plg-mi": (PLGMI(steps=60, augment=LOOK), Linear),
    "mirror": (Mirror(pool=60, steps=60, augment=()), Layers),
    "if-gmi": (IFGMI(pool=100, steps=(50, 30), augment=LOOK), Layers),
    "mi-face": (MIFace(steps=100, lr=5.0), Drawn),
    "taa on gmi": (
        lomma_gmi((), steps=60, views=(replace(TAA["gmi"], flip=0.0, looks=4),)),
        Linear,
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_finds_the_patterns_if_and_only_if_the_target_has_seen_them(name: str) -> None:
    attack, prior = ATTACKS[name]
    assert hits(attack, prior()) >= 0.9
    assert hits(attack, prior(), known=False) <= 0.4  # of five classes


def trained(spec: Any, *, known: bool) -> Prior:
    """Returns a prior of the public patterns."""
    work = Work()
    with seeded("prior"):
        prior: Prior = spec.build(TASK.shape, 5)
    asked = None if spec.access == "none" else handed(target(known=known), spec.access, work)
    with seeded("noise"):
        spec.train(prior, splits().public, asked, generator("prior"), work)
    return prior


GAN: Any = {
    "z_dim": 64,
    "generator_width": 16,
    "discriminator_width": 8,
    "batch_size": 20,
    "lr": 1e-3,
}
WGAN = WGANGP(**GAN, epochs=30, critic_steps=2)
TRAINED: dict[str, Any] = {
    "plg-mi": PLGMI(
        PLGGAN(**GAN, epochs=30, critic_steps=2, alpha=1.0, views=LOOK), steps=40, augment=LOOK
    ),
    "ppdg-mi": PPDGMI(
        WGAN, lomma_gmi((), steps=60), candidates=8, share=0.5, ranking=LOOK, epochs=10, lr=1e-3
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_with_a_prior_that_it_trains_it_does_so_too(name: str) -> None:
    attack = TRAINED[name]
    assert hits(attack, trained(attack.prior, known=True)) >= 0.9
    assert hits(attack, trained(attack.prior, known=False), known=False) <= 0.4
