"""Attacks around other attacks: on surrogates of the target, and on the mean of its answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mibench.attacks.access import Query, Surrogate
from mibench.attacks.bases import BlackBox, WhiteBox
from mibench.attacks.gmi import GMI
from mibench.attacks.goal import Goal
from mibench.attacks.priors.imitation import Imitation
from mibench.roles import Attack, PriorSpec
from mibench.spec import field_values, require
from mibench.store import Work
from mibench.ties import drawn
from mibench.types import Access, Images, Offer, Prior, Reconstructions

INF = float("inf")


@dataclass(frozen=True)
class Transfer(BlackBox):
    """A white-box attack on the prior's surrogates, in place of the target.

    It asks the target nothing: all that it knows of it, the prior was told. The identity loss is
    the mean over the surrogates, the fourth step of LOKT, Nguyen et al., NeurIPS 2023,
    https://arxiv.org/abs/2310.19342.

    Attributes:
        prior: Has the surrogates; in place of the attack's own.
        attack: The attack.
    """

    name: ClassVar[str] = "transfer"
    small: ClassVar[Mapping[str, Any]] = {"attack": GMI(steps=5)}
    access: ClassVar[Access] = "scores"

    prior: PriorSpec = field(default_factory=Imitation)
    attack: Attack = field(default_factory=GMI)

    def __post_init__(self) -> None:
        attack: Any = self.attack
        if not isinstance(self.attack, WhiteBox):
            raise ValueError(f"Transfer.attack must be a white-box attack, {attack.name} is not")
        if attack.public:
            raise ValueError(
                f"Transfer.attack must not be {attack.name}: it asks the target for more than a "
                "surrogate stands for"
            )
        if attack.max_queries:
            raise ValueError(
                "Transfer.attack must not have max_queries: what surrogates answer is free, and "
                "the target is not asked"
            )
        identity = attack.identity
        if identity.public or identity.students:
            raise ValueError(
                f"Transfer.attack must not have the identity loss {identity.name}: it is about "
                "the target itself"
            )
        object.__setattr__(self, "attack", replace(attack, prior=self.prior))

    @property
    def wants(self) -> tuple[Offer, ...]:  # type: ignore[override]
        """Surrogates, and what the attack wants."""
        return ("surrogates", *self.attack.wants)

    def planned_steps(self, blocks: int, samples: int = 1) -> int | None:
        """Returns those of the attack."""
        return self.attack.planned_steps(blocks, samples)

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Runs the attack on the surrogates."""
        first, *others = prior.surrogates
        surrogate = Surrogate(first, work)
        surrogate.students.extend(others)
        return self.attack.invert(surrogate, prior, goal, work)


class Averaged(Query):
    """A target that is asked several times about each image; every answer counts."""

    def __init__(self, query: Query, access: Access, repeats: int) -> None:
        def answer(x: Images) -> Tensor:
            all_answers = query(x.repeat(repeats, 1, 1, 1)).view(repeats, len(x), -1)
            if access == "scores":
                return all_answers.mean(0)
            votes = torch.nn.functional.one_hot(all_answers[..., 0], self.num_classes)
            return drawn(votes.sum(0).float())

        self.num_classes = query.num_classes
        self._query, self._repeats = query, repeats
        self._answer = answer

    @property
    def remaining(self) -> int:
        """How many means it still gives."""
        return self._query.remaining // self._repeats


@dataclass(frozen=True)
class Averaging(BlackBox):
    """A black-box attack that asks several times: the mean score, or the most frequent class.

    What a defense gains by answering at random, such an attacker takes back.

    Attributes:
        attack: The attack. It asks the target itself: what a prior asks is not averaged.
        repeats: Answers to each image.
    """

    name: ClassVar[str] = "averaging"

    attack: Attack
    repeats: int = 8

    def __post_init__(self) -> None:
        require(self, repeats=(1, INF))
        if self.attack.access not in ("scores", "labels"):
            raise ValueError(
                f"Averaging.attack must ask for scores or labels, and {self.attack.name} does not"
            )
        if self.attack.prior.access != "none":
            raise ValueError(
                "Averaging.attack must have a prior that does not ask the target, because the "
                f"prior's answers are not averaged, and {self.attack.prior.name} asks it"
            )

    @property
    def access(self) -> Access:  # type: ignore[override]
        """The attack's."""
        return self.attack.access

    @property
    def wants(self) -> tuple[Offer, ...]:  # type: ignore[override]
        """The attack's."""
        return self.attack.wants

    @property
    def prior(self) -> PriorSpec:  # type: ignore[override]
        """The attack's."""
        return self.attack.prior

    @property
    def max_queries(self) -> int:  # type: ignore[override]
        """The attack's, of answers and not of means."""
        return self.attack.max_queries

    @property
    def queries_per_image(self) -> int:
        """As often as it repeats what the attack asks."""
        return self.repeats * self.attack.queries_per_image

    def planned_steps(self, blocks: int, samples: int = 1) -> int | None:
        """Returns those of the attack, with as many answers as there are means."""
        attack, means = self.attack, self.max_queries // self.repeats
        if self.max_queries and not means:
            raise ValueError(
                f"{type(attack).__name__}.max_queries is {self.max_queries}, but each mean takes "
                f"{self.repeats} answers"
            )
        if "max_queries" in field_values(attack):
            attack = replace(attack, max_queries=means)  # type: ignore[type-var]
        try:
            return attack.planned_steps(blocks, samples)
        except ValueError as error:
            raise ValueError(f"in means of {self.repeats} answers each, {error}") from error

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        """Runs the attack on the means."""
        averaged = Averaged(target, self.access, self.repeats)
        return self.attack.invert(averaged, prior, goal, work)
