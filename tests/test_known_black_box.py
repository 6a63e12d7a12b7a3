"""Black-box attacks recover the drawn patterns from answers alone, each of which is counted."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mibench.attacks import (
    BREPMI,
    GMI,
    LOKT,
    RLBMI,
    Decoding,
    Goal,
    InversionNetwork,
    MirrorBlackBox,
    Student,
    Transfer,
)
from mibench.attacks.access import handed
from mibench.attacks.views import Augment
from mibench.defenses import Recipe
from mibench.networks import MLP
from mibench.roles import Attack
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import Classifier, Images, ImageSet, Logits, Prior
from tests.test_known_answers import (
    CLASSES,
    SAMPLES,
    TASK,
    Layers,
    Linear,
    recognised,
    splits,
    target,
)


class Hidden(Classifier):
    """A target that answers, counts for itself, and shows no weights."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.num_classes, self.neck, self.last = network.num_classes, nn.Identity(), nn.Identity()
        self._answer = [network]  # in a list: no module of this one
        self.answered = 0

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        raise AssertionError("a black-box attack looks at latents")

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        raise AssertionError("a black-box attack looks at weights")

    def forward(self, x: Images) -> Logits:
        self.answered += len(x)
        logits: Logits = self._answer[0](x)
        return logits


@cache
def noise() -> ImageSet:
    """Returns public images of random pixels."""
    pixels = torch.randint(256, (1000, *TASK.shape), generator=generator("noise"))
    return ImageSet(pixels.to(torch.uint8), torch.arange(1000))


@cache
def patterns() -> ImageSet:
    """Returns public images that show the private patterns, too, for what can draw no other."""
    parts = splits().private.test, splits().public
    pixels, labels = (
        torch.cat([getattr(p, name) for p in parts]) for name in ("pixels", "labels")
    )
    return ImageSet(pixels, labels)


def linear(attack: Attack, seen: Any) -> Prior:
    """Returns a prior that asks the target nothing."""
    return Linear()


def layers(attack: Attack, seen: Any) -> Prior:
    """Returns one with styles."""
    return Layers()


def taught(attack: Attack, seen: Any) -> Prior:
    """Returns one beside which a network has learnt the target's answers to random pixels."""
    prior = Linear()
    with seeded("student"):
        network = STUDENT.network.build(TASK.shape, 5)
    soft = seen.soft_answers(noise())
    STUDENT.train(network, noise(), soft, generator("student"), Work())
    prior.surrogates.append(network)
    return prior


def decoder(attack: Attack, seen: Any) -> Prior:
    """Returns a decoder of scores, which can draw no pattern that it was not shown."""
    with seeded("prior"):
        prior: Prior = attack.prior.build(TASK.shape, 5)
    attack.prior.train(prior, patterns(), seen, generator("prior"), Work())
    return prior


def hits(attack: Attack, make: Callable[[Attack, Any], Prior], *, known: bool) -> float:
    """Returns the share of reconstructions whose pattern is the class's.

    Args:
        attack: The attack.
        make: Makes its prior, which may ask the target what the attack may ask.
        known: Whether the target has seen the patterns.
    """
    hidden, asked, work = Hidden(target(known=known)), Work(), Work()
    prior = make(attack, handed(hidden, attack.access, asked))
    prior.eval().requires_grad_(requires_grad=False)
    streams = [generator("known", i) for i in range(2)]
    goal = Goal([CLASSES[:3], CLASSES[3:]], SAMPLES, streams, TASK.shape)
    with seeded("attack"):
        made = attack.invert(handed(hidden, attack.access, work), prior, goal, work)
    assert hidden.answered == work.queries + asked.queries > 0
    return recognised(made.images)


STUDENT = Student(MLP(32), Recipe(20, batch_size=50, lr=2e-3, select="last"))
LOOK = (Augment(scale=(0.9, 1.0), flip=0.0),)
SCORES: dict[str, tuple[Any, Callable[[Attack, Any], Prior]]] = {
    "rlb-mi": (RLBMI(steps=120, hidden=16, batch=16, lr=3e-3), linear),
    "mirror-blackbox": (MirrorBlackBox(pool=60, population=20, steps=60, enough=1.0), layers),
    "inversion-network": (
        Decoding(InversionNetwork(width=8, epochs=20, batch_size=50, lr=2e-3)),
        decoder,
    ),
    "transfer": (Transfer(attack=GMI(steps=60)), taught),
}
LABELS: dict[str, tuple[Any, Callable[[Attack, Any], Prior]]] = {
    "brep-mi": (BREPMI(pool=512, batch=64, patience=10, steps=60), linear),
    "lokt": (LOKT(steps=40, augment=LOOK), taught),
}


@pytest.mark.parametrize("name", [*SCORES, *LABELS])
def test_it_finds_the_patterns_if_and_only_if_the_target_has_seen_them(name: str) -> None:
    attack, make = (SCORES | LABELS)[name]
    assert hits(attack, make, known=True) >= (0.9 if name in SCORES else 0.6)
    assert hits(attack, make, known=False) <= 0.45  # of five classes
