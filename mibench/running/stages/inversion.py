"""Runs of attacks."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from mibench.attacks.access import NO_LIMIT, Query, Watched, handed
from mibench.attacks.bases import WhiteBox
from mibench.attacks.goal import Goal
from mibench.roles import Attack
from mibench.running.stages.base import Load
from mibench.running.stages.classifier import ClassifierStage
from mibench.running.stages.prior import PriorStage
from mibench.running.stages.release import ReleaseStage
from mibench.running.stages.student import StudentStage
from mibench.seeding import generator, seeded
from mibench.store import Payload, Stage, Work, check_finite
from mibench.types import Classifier, Reconstructions


@dataclass(frozen=True)
class InversionStage(Stage):
    """One run of an attack on a target.

    The random stream is named by the seed, the attack, the repeat and the block, not by the
    defense: every defense meets the same initial latents.
    """

    kind: ClassVar[str] = "inversion"
    version: ClassVar[int] = 2

    target: ClassifierStage | ReleaseStage
    prior: PriorStage
    attack: Attack
    classes: int
    samples: int
    block: int
    seed: int
    repeat: int

    def describe(self) -> str:
        """Returns the attack and the defense it meets."""
        return f"{self.attack.name} on {self.target.title}"

    @property
    def blocks(self) -> list[Tensor]:
        """The classes of each block."""
        return list(torch.arange(self.classes).split(self.block))  # type: ignore[no-untyped-call]

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns images (samples, classes, c, h, w) as float16, and their latents."""
        target = self.target.classifier(load, work.device)
        prior = self.prior.prior(load, work.device)
        name = (self.seed, self.attack.name, self.repeat)
        rngs = [generator(*name, i) for i in range(len(self.blocks))]
        seen = self._handed(target, load, work)
        steps = self.attack.planned_steps(len(rngs), self.samples) or 0
        shape = self.target.images.task.shape
        public = self.target.images.splits(load).public if self.attack.public else None
        goal = Goal(
            self.blocks, self.samples, rngs, shape, work.device, public, steps, self.moments_at
        )
        with seeded(*name, "noise"):  # for targets that draw on their own
            made = self.attack.invert(seen, prior, goal, work)
        self._check(made)
        optional = {"shared": seen.shared, "surrogate_gradients": work.surrogate_gradients}
        return {
            "images": made.images.half(),
            "earlier": None if made.earlier is None else made.earlier.half(),
            "latents": made.latents,
            "budget": {
                **self._spent(work),
                **{name: count for name, count in optional.items() if count},
            },
            **({"counts": made.counts} if made.counts else {}),
            **({"moments": goal.moments} if self.moments_at else {}),
        }

    def _spent(self, work: Work) -> dict[str, int]:
        """Returns what was counted; refuses what an attack must not make of it."""
        spent = {name: getattr(work, name) for name in ("steps", "queries", "gradients")}
        for name, count in spent.items():
            if not isinstance(count, int) or count < 0:
                raise ValueError(
                    f"{self.attack.name} set work.{name} to {count!r}: it must be a whole number, "
                    "0 or more"
                )
        return spent

    def _check(self, made: object) -> None:
        """Refuses what an attack must not return."""
        name = self.attack.name
        if not isinstance(made, Reconstructions):
            raise ValueError(
                f"invert of {name} must return mibench.Reconstructions(images, latents), "
                f"got {type(made).__name__}"
            )
        shape = (self.samples, self.classes, *self.target.images.task.shape)
        expected: dict[str, tuple[int, ...]] = {"images": shape}
        if made.earlier is not None:
            expected["earlier"] = (len(made.earlier), *shape)
        for which, wanted in expected.items():
            x = getattr(made, which)
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise ValueError(
                    f"{name} must return {which} as a tensor of floats in [0, 1], "
                    f"got {getattr(x, 'dtype', type(x).__name__)}"
                )
            if x.shape != wanted:
                raise ValueError(
                    f"{name} returned {which} of shape {tuple(x.shape)}, not {wanted}: samples, "
                    "classes, channels, height, width"
                )
            check_finite(x, f"a reconstruction of {name}")
            if ((x < 0) | (x > 1)).any():
                raise ValueError(f"{name} returned {which} with pixels outside [0, 1]; clamp them")
        front = getattr(made.latents, "shape", ())[:2]
        if front != shape[:2]:
            raise ValueError(
                f"{name} must return latents as a tensor (samples, classes, ...) that begins "
                f"with {shape[:2]}, got {tuple(front) or type(made.latents).__name__}"
            )

    def _handed(self, target: Classifier, load: Load, work: Work) -> Watched | Query:
        """Returns what the attack's access lets it have of the target.

        Raises:
            ValueError: If that is all of a target of which a release lets out the answers alone.
        """
        limit = self.attack.max_queries * self.classes or NO_LIMIT
        released = self.target.released(load, work.device)
        who = self.attack.name
        seen = handed(target, self.attack.access, work, limit, released, who)
        if isinstance(seen, Watched) and isinstance(self.attack, WhiteBox):
            seen.students.extend(s.classifier(load, work.device) for s in self.students)
            if self.attack.identity.public:
                seen.look_at(self.target.images.splits(load).public)
        return seen

    @property
    def students(self) -> tuple[StudentStage, ...]:
        """What trains the networks that the attack's identity loss asks beside the target."""
        named = self.attack.identity.students if isinstance(self.attack, WhiteBox) else ()
        images, seed = self.target.images, self.prior.seed
        return tuple(StudentStage(images, self.target.trained, s, seed) for s in named)

    @property
    def moments_at(self) -> tuple[int, ...]:
        """Answers for each class at which the attack's images are kept as moments."""
        return ()

    @property
    def taught(self) -> list[Stage]:
        """What asks the target before the attack: its prior, if it does, and students."""
        return [*[self.prior] * (self.prior.target is not None), *self.students]

    @cached_property
    def needs(self) -> tuple[Stage, ...]:
        """The target, the prior and the students."""
        return (self.target, self.prior, *self.students)
