r"""PPDG-MI: an attack, its prior trained on, the attack again; Peng et al., NeurIPS 2024.

*Pseudo-Private Data Guided Model Inversion Attacks*, https://github.com/tmlr-group/PPDG-MI.
The form called vanilla, for low resolutions: an attack's most plausible results join the public
images, and the prior goes on training with its own objective:

.. math:: G' = \arg\min_G L_{prior}(G; D_{pub} \cup \{\text{the surest } G(z_i)\})
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.attacks.access import Watched
from mibench.attacks.bases import WhiteBox
from mibench.attacks.gmi import GMI
from mibench.attacks.goal import Goal
from mibench.attacks.kedmi import KEDMI
from mibench.attacks.losses import CrossEntropy
from mibench.attacks.plgmi import PLGMI
from mibench.attacks.priors.gan import WGANGP, GANSpec
from mibench.attacks.priors.plg import LOOK
from mibench.attacks.priors.shipped import Shipped
from mibench.attacks.selection import surest
from mibench.attacks.views import Augment, queries_per_image
from mibench.roles import Attack, IdentityLoss, PriorSpec, View
from mibench.spec import require
from mibench.store import Payload, Work
from mibench.types import Classifier, ImageSet, Offer, Prior, Reconstructions

INF = float("inf")
LOOKS = (replace(LOOK, jittered=1.0, looks=100),)
"""How the target looks at candidates."""


@dataclass(frozen=True)
class PPDGMI(WhiteBox):
    """Attacks, trains the prior on with the surest results, and attacks again.

    What the target is asked while the prior trains on counts as the attack's.

    Attributes:
        prior: A GAN, in place of the attack's own; it may be a shipped one.
        attack: GMI, KED-MI or PLG-MI.
        candidates: Results of each class in the first attack; 1,000 as released for GMI and
            KED-MI, 200 for PLG-MI.
        share: So many of them join the public images, the surest; 0.5 as released for GMI and
            KED-MI, 0.25 for PLG-MI.
        ranking: How the target looks at them: the surest have the largest mean probability.
        epochs: Of the prior's further training.
        lr: Its learning rate.
        together: Whether the prior is trained on once for all classes; otherwise once for each
            class, from the same prior, with the class's own results, as released. KED-MI's
            prior then judges each image of the second attack alone, not beside its block.
        identity: The identity loss, in place of the attack's own.
        views: What it is averaged over, in place of the attack's own.
        max_queries: Answers of the target that may be spent on each class; 0 for no limit.
    """

    name: ClassVar[str] = "ppdg-mi"
    small: ClassVar[Mapping[str, Any]] = {
        "attack": GMI(steps=5), "candidates": 4, "ranking": (Augment(),), "epochs": 1,
    }  # fmt: skip
    public: ClassVar[bool] = True

    prior: PriorSpec = field(default_factory=WGANGP)
    attack: Attack = field(default_factory=GMI)
    candidates: int = 1000
    share: float = 0.5
    ranking: tuple[View, ...] = LOOKS
    epochs: int = 10
    lr: float = 2e-4
    together: bool = True
    identity: IdentityLoss = field(default_factory=CrossEntropy)
    views: tuple[View, ...] = ()
    max_queries: int = 0

    def __post_init__(self) -> None:
        require(
            self, candidates=(1, INF), share=(1e-12, 1), epochs=(1, INF), lr=(1e-12, INF),
            max_queries=(0, INF),
        )  # fmt: skip
        if not isinstance(self.attack, GMI | KEDMI | PLGMI):
            raise ValueError(
                f"PPDGMI.attack must be gmi, ked-mi or plg-mi, and {self.attack.name} is not"
            )
        if not isinstance(self._gan, GANSpec) or self._gan.access not in ("none", "white"):
            raise ValueError(
                f"PPDGMI.prior must be a GAN that asks the target for no scores, and "
                f"{self.prior.name} is not: take wgan-gp, inversion-gan or plg-gan"
            )
        fields = {n: getattr(self, n) for n in ("prior", "identity", "views")}
        object.__setattr__(self, "attack", replace(self.attack, **fields, max_queries=0))
        if not self.together:  # the second attack's steps changed for these alone
            object.__setattr__(self, "version", 2)

    @property
    def wants(self) -> tuple[Offer, ...]:  # type: ignore[override]
        """The attack's."""
        return self.attack.wants

    @property
    def queries_per_image(self) -> int:
        """The attack's."""
        return self.attack.queries_per_image

    def planned_steps(self, blocks: int, samples: int = 1) -> int | None:
        """Returns those of both attacks; with a limit or one by one it depends on the classes."""
        if self.max_queries or not self.together:
            return None
        both = [self.attack.planned_steps(blocks, n) for n in (self.candidates, samples)]
        return sum(step or 0 for step in both)

    def invert(self, target: Classifier, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Attacks twice, the second time with what it learnt from the first."""
        assert goal.public is not None
        pseudo = max(1, round(self.share * self.candidates))
        groups = [goal] if self.together else one_by_one(goal)
        first, rest = self._shares(target, goal, len(groups), pseudo)
        made = self.attack.invert(
            first, prior, replace(goal, samples=self.candidates, marks=()), work
        )
        images = surest(target, goal, made.images, lambda x: x, pseudo, self.ranking)
        results, start = [], 0
        for i, group in enumerate(groups):
            mine = images[:, start : start + len(group.labels)]
            start += len(group.labels)
            better = self._trained_on(prior, mine, target, group, work)
            if isinstance(target, Watched):
                later = (len(groups) - 1 - i) * rest
                second: Classifier = target.within((target.remaining - later) // (len(groups) - i))
            else:
                second = target
            results.append(self.attack.invert(second, better, group, work))
        return Reconstructions(
            torch.cat([r.images for r in results], 1), torch.cat([r.latents for r in results], 1)
        )

    def _shares(
        self, target: Classifier, goal: Goal, trainings: int, pseudo: int
    ) -> tuple[Classifier, int]:
        """Returns the target of the first attack and what a training of the prior asks.

        The attack gets its share of the answers that are left for both attacks.
        """
        assert goal.public is not None
        if not isinstance(target, Watched):
            return target, 0
        classes = len(goal.labels)
        each = self.queries_per_image * classes
        one = isinstance(self.attack, KEDMI)  # image of each class at a step, whatever it returns
        first, second = (
            (self.attack.planned_steps(len(goal.blocks), n) or 0) * (1 if one else n) * each
            for n in (self.candidates, goal.samples)
        )
        shown = len(goal.public) + pseudo * classes // trainings
        training = self._spec.planned_answers(shown, target.num_classes, bool(target.noise_dim))
        ranking = self.candidates * classes * queries_per_image(self.ranking)
        left = target.remaining - ranking - trainings * training
        if left >= first + second:
            return target.within(first), training
        if left < 0:
            raise ValueError(
                f"the {target.remaining} answers that the target still gives do not pay for "
                f"{ranking} to rank the candidates and {trainings * training} to train the prior"
            )
        return target.within(left * first // (first + second)), training

    @property
    def _spec(self) -> GANSpec:
        """The prior's further training."""
        assert isinstance(self._gan, GANSpec)
        return replace(self._gan, epochs=self.epochs, lr=self.lr)

    @property
    def _gan(self) -> PriorSpec:
        """The prior, or what was trained for one that is shipped."""
        return self.prior.of if isinstance(self.prior, Shipped) else self.prior

    def _trained_on(
        self,
        prior: Prior,
        images: Float[Tensor, "m n c h w"],
        target: Classifier,
        goal: Goal,
        work: Work,
    ) -> Prior:
        """Returns a copy of the prior that has trained on with images of the goal's classes."""
        assert goal.public is not None
        public = goal.public.to(goal.device)
        pixels = (images.flatten(0, 1) * 255).round().to(torch.uint8)
        labels = goal.labels.repeat(len(images))
        shown = ImageSet(torch.cat([public.pixels, pixels]), torch.cat([public.labels, labels]))
        better = copy.deepcopy(prior).requires_grad_(requires_grad=True)
        seed = int(torch.randint(2**62, (), generator=goal.streams[0]))
        seen_by_prior = None if self.prior.access == "none" else target

        def run() -> Payload:
            rng = torch.Generator().manual_seed(seed)
            self._spec.train(better, shown, seen_by_prior, rng, work)
            return better.state_dict()

        better.load_state_dict(work.part("training", run))
        return better.eval().requires_grad_(requires_grad=False)


def one_by_one(goal: Goal) -> list[Goal]:
    """Returns a goal for each class, which draws from its block's stream and steps as in it."""
    return [
        replace(goal, blocks=[label[None]], streams=[stream], marks=(), wholes=(len(block),))
        for block, stream in zip(goal.blocks, goal.streams, strict=True)
        for label in block
    ]
