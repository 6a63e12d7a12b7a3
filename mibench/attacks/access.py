"""What an attack may do with a target: all of it, its scores or its labels, each use counted."""

import copy
import sys
from collections.abc import Callable, MutableSequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.seeding import generator
from mibench.store import Work
from mibench.ties import drawn
from mibench.types import (
    BATCH_PIXELS,
    Access,
    Classifier,
    Images,
    ImageSet,
    Logits,
    answers,
    predict,
)

NO_LIMIT = sys.maxsize
"""The limit of a target that answers without one: more answers than any attack asks for."""


class LimitError(ValueError):
    """A target is asked for more answers than remain of its limit."""


class Counted:
    """Counts the answers of a target in ``work.queries`` and refuses those above a limit.

    Attributes:
        shared: Those of the answers that are about public images; they lie outside the limit.
    """

    shared: int = 0
    _work: Work
    _limit: int

    @property
    def remaining(self) -> int:
        """How many answers it still gives; without a limit, more than any attack asks for."""
        return max(0, self._limit + self.shared - self._work.queries)

    def spend(self, answers: int) -> None:
        """Counts answers that are about to be given, all or none of them.

        Raises:
            LimitError: If fewer remain.
        """
        if answers > self.remaining:
            raise LimitError(
                f"the attack asks the target for {answers} more answers, but "
                f"{self.remaining} remain of its limit of {self._limit} (max_queries times the "
                "attacked classes): end the attack in time by target.remaining, or raise "
                "max_queries"
            )
        self._work.queries += answers


class Watched(Counted, Classifier):
    """A target as a white-box attack sees it: all of it, and every use counted.

    ``work.queries`` counts the answers it gives, one for each image and one more for each
    further answer to the same latents; ``work.gradients`` the images whose
    gradient was taken. A call that asks for more answers than ``remaining`` raises a ValueError,
    answers nothing and counts nothing.

    Attributes:
        target: The network itself.
        public_mean: Mean of the last latent over the public images, shape (d,), where the
            attack's identity loss is ``public``.
        students: Networks that have learnt the target's answers; theirs are not counted.
    """

    def __init__(self, target: Classifier, work: Work, limit: int = NO_LIMIT) -> None:
        super().__init__()
        self.target = target
        self.num_classes, self.noise_dim = target.num_classes, target.noise_dim
        self.public_mean: Tensor | None = None
        self.students: MutableSequence[Classifier] = nn.ModuleList()  # type: ignore[assignment]
        self._work, self._limit = work, limit
        self._unanswered = 0
        self.training = target.training

    @property
    def neck(self) -> nn.Module:  # type: ignore[override]
        """The target's."""
        return self.target.neck

    @property
    def last(self) -> nn.Module:  # type: ignore[override]
        """The target's."""
        return self.target.last

    def uncounted(self, answers: int) -> Classifier:
        """Counts ``answers`` as given and returns the target, which gives them."""
        self.spend(answers)
        return self.target

    def within(self, answers: int) -> "Watched":
        """Returns the same target, which gives ``answers`` more answers, or all it still gives."""
        part = copy.copy(self)
        part._limit = self._work.queries - self.shared + min(answers, self.remaining)
        return part

    def own_input(self, x: Images) -> Tensor:
        """Returns the target's."""
        return self.target.own_input(x)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        """Returns the target's latents."""
        self.spend(len(x))
        zs = self.target.latents(x)
        self._unanswered += len(x)
        if zs[-1].requires_grad:
            zs[-1].register_hook(self._count)  # type: ignore[no-untyped-call]
        return zs

    def head(self, z: Float[Tensor, "n d"], noise: Tensor | None = None) -> Logits:
        """Returns the target's logits."""
        paid = min(len(z), self._unanswered)  # with the latents
        self.spend(len(z) - paid)
        self._unanswered -= paid
        return self.target.head(z, noise)

    def look_at(self, public: ImageSet) -> None:
        """Takes the mean last latent of the public images, outside the limit."""
        self.shared += len(public)
        rng = torch.Generator().manual_seed(0)  # of a last layer's noise, which is not used
        mean = predict(self, public, rng)[1].mean(0)
        self.public_mean = mean.to(next(self.parameters()).device)

    def soft_answers(self, public: ImageSet) -> Float[Tensor, "n k"]:
        """Returns the probabilities that the target gives images, asked once about each."""
        each = answers(self, public, generator("soft answers"))
        soft = torch.cat([logits.softmax(1) for logits, _ in each])
        return soft.to(public.labels.device)

    def _count(self, gradient: Tensor) -> None:
        self._work.gradients += len(gradient)


class Surrogate(Watched):
    """A network that imitates the target, as a white-box attack sees it.

    Its answers are free; ``work.surrogate_gradients`` counts the images whose gradient was taken.
    """

    def spend(self, answers: int) -> None:
        """Counts nothing."""

    def _count(self, gradient: Tensor) -> None:
        self._work.surrogate_gradients += len(gradient)


class Query(Counted):
    """Counted answers of a target that hides its inside, for black-box attacks.

    It has no weights, latents or gradients, and holds nothing that does. ``work.queries`` counts
    the images asked for. A call that asks for more answers than ``remaining`` raises a
    ValueError, answers nothing and counts nothing. Where the owner changes scores before they
    are let out, ``released`` returns those of logits and their images.
    """

    def __init__(
        self,
        target: Classifier,
        access: Access,
        work: Work,
        limit: int = NO_LIMIT,
        released: Callable[[Logits, Images], Tensor] | None = None,
    ) -> None:
        @torch.no_grad()
        def answer(x: Images) -> Tensor:
            self.spend(len(x))
            scores: Tensor = target(x)  # logits, whose order is that of the probabilities
            if released is not None:
                scores = released(scores, x)
            elif access == "scores":
                scores = scores.softmax(1)
            return scores if access == "scores" else drawn(scores)

        self.num_classes = target.num_classes
        self._work, self._limit = work, limit
        self._answer = answer

    def __call__(self, x: Images) -> Tensor:
        """Returns probabilities (n, k) with "scores", class indices (n,) with "labels".

        Of classes of equal score the global generator draws the one that is answered.
        """
        return self._answer(x)

    def soft_answers(self, public: ImageSet) -> Float[Tensor, "n k"]:
        """Returns the probabilities that the target gives images, asked once about each.

        Where it answers with classes, each has the probability 1 of its own.
        """
        batch = max(1, min(512, BATCH_PIXELS // public.pixels[:1].numel()))
        parts = torch.arange(len(public)).split(batch)  # type: ignore[no-untyped-call]
        said = torch.cat([self(public.take(part).images) for part in parts])
        if said.is_floating_point():
            return said
        return torch.nn.functional.one_hot(said, self.num_classes).float()


def handed(
    target: Classifier,
    access: Access,
    work: Work,
    limit: int = NO_LIMIT,
    released: Callable[[Logits, Images], Tensor] | None = None,
    who: str = "the attack",
) -> Watched | Query:
    """Returns what an attack or a prior is handed of a target.

    Args:
        target: The network.
        access: Of whom it is handed to.
        work: Counts.
        limit: Answers that may be asked for.
        released: See :class:`Query`.
        who: It is handed to, for the message.

    Raises:
        ValueError: If that is all of a target of which a release lets out the answers alone.
    """
    if access != "white":
        return Query(target, access, work, 0 if access == "none" else limit, released)
    if released is not None:
        raise ValueError(
            f"{who} sees the whole target, and a release changes its answers alone: "
            "it is not applicable"
        )
    return Watched(target, work, limit)
