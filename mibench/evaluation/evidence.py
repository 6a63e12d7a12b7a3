"""What the classifiers and lenses see of one inversion; metrics are functions of it alone."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from mibench.evaluation.inception import INCEPTION
from mibench.evaluation.lenses import EVALUATOR, STRETCHED, Lens
from mibench.spec import fingerprint
from mibench.store import Payload, check_finite

STORED: dict[Lens, tuple[str, str]] = {
    EVALUATOR: ("features", "real"),
    STRETCHED: ("stretched", "real_stretched"),
    INCEPTION: ("inception", "real_inception"),
}
"""The lenses that need no column to ask for them → names of the two sides' features as stored."""


class UndefinedError(ValueError):
    """A metric has no value on this evidence; the message says why.

    A record then has no number there and quotes the message: never 0, which could be taken for
    a perfect score.
    """


class Compared(NamedTuple):
    """What one lens sees: a row per image.

    Attributes:
        reconstructed: Features of the reconstructions, (n, d).
        real: Features of the real private images they are compared with, (m, d).
    """

    reconstructed: Float[Tensor, "n d"]
    real: Float[Tensor, "m d"]


@dataclass(frozen=True)
class Evidence:
    """The evaluation classifiers' view of one inversion, and the target's.

    Reconstructions come pass by pass: image i belongs to pass i // classes.

    Attributes:
        labels: Attacked class of each reconstruction.
        block: Block of each reconstruction.
        passes: Pass of each reconstruction.
        logits: Evaluation logits of the reconstructions.
        features: Lens → its features of the reconstructions and of the real private images
            they are compared with.
        real_labels: Classes of those real images.
        test_logits: The target's logits of the private test images.
        test_labels: Their labels.
        others: Logits of the reconstructions by the other evaluators of the setting.
        target_logits: The target's logits of the reconstructions; behind a release the logarithms
            of the scores that it lets out, which need not sum to 1.
        ssim: Structural similarity of each reconstruction and the real image nearest to it.
        control_logits: Evaluation logits of a control's reconstructions.
        control_labels: The classes they were made for.
        released: Whether a release stands before the target.

    What is None was not gathered; a metric that needs it says so.

    Raises:
        FloatingPointError: If a number is NaN or infinite.
        ValueError: If a lens has not as many rows of features as there are images.
    """

    labels: Int[Tensor, " n"]
    block: Int[Tensor, " n"]
    passes: Int[Tensor, " n"]
    logits: Float[Tensor, "n k"]
    features: Mapping[Lens, Compared]
    real_labels: Int[Tensor, " m"]
    test_logits: Float[Tensor, "t c"]
    test_labels: Int[Tensor, " t"]
    others: Float[Tensor, "v n k"] | None = None
    target_logits: Float[Tensor, "n c"] | None = None
    ssim: Float[Tensor, " n"] | None = None
    control_logits: Float[Tensor, "q k"] | None = None
    control_labels: Int[Tensor, " q"] | None = None
    released: bool = False

    def __post_init__(self) -> None:
        for name, value in self.stored().items():
            if isinstance(value, Tensor):
                check_finite(value, f"the evidence's {name}")
        images = (len(self.labels), len(self.real_labels))
        for lens, sides in self.features.items():
            if (rows := tuple(map(len, sides))) != images:
                raise ValueError(
                    f"the lens {lens.name} gave {rows[0]} and {rows[1]} rows of features for "
                    f"{images[0]} reconstructions and {images[1]} real images: return one an image"
                )

    @property
    def classes(self) -> list[int]:
        """The attacked classes, in order."""
        return sorted(set(self.labels.tolist()))

    def through(self, lens: Lens) -> Compared:
        """Returns what a lens sees.

        Raises:
            UndefinedError: If its features were not gathered.
        """
        if lens not in self.features:
            raise UndefinedError(lens.absent)
        return self.features[lens]

    def take(self, index: Int[Tensor, " q"]) -> "Evidence":
        """Returns the evidence of the reconstructions at ``index``, in that order."""
        own = ("labels", "block", "passes", "logits", "target_logits", "ssim")
        cut: dict[str, Any] = {k: v[index] for k in own if (v := getattr(self, k)) is not None}
        if self.others is not None:
            cut["others"] = self.others[:, index]
        seen = {k: Compared(v.reconstructed[index], v.real) for k, v in self.features.items()}
        return replace(self, features=seen, **cut)

    def stored(self) -> Payload:
        """Returns the evidence as a store has it: each lens's features under their two names."""
        payload = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "features"}
        if not self.released:
            del payload["released"]
        for lens in {**STORED, **self.features}:
            payload |= zip(_names(lens), self.features.get(lens, (None, None)), strict=True)
        return payload

    @classmethod
    def restored(cls, payload: Payload, lenses: tuple[Lens, ...] = ()) -> "Evidence":
        """Returns the evidence that ``stored`` turned into a payload.

        Args:
            payload: It.
            lenses: Which it has beside those of ``STORED``.
        """
        rest, features = dict(payload), {}
        for lens in (*STORED, *lenses):
            reconstructed, real = (rest.pop(name, None) for name in _names(lens))
            if reconstructed is not None:
                features[lens] = Compared(reconstructed, real)
        return cls(**rest, features=features)


def _names(lens: Lens) -> tuple[str, str]:
    own = f"{lens.name} {fingerprint(lens)[:8]}" if lens not in STORED else ""
    return STORED.get(lens, (own, f"real {own}"))


def gathered(value: Tensor | None, what: str) -> Tensor:
    """Returns a field of evidence that may be None.

    Raises:
        UndefinedError: If it is; ``what`` is what was not gathered.
    """
    if value is None:
        raise UndefinedError(what)
    return value


def target_scores(e: Evidence) -> Float[Tensor, " n"]:
    """Returns the probability that the target gives each reconstruction's class, as let out.

    Raises:
        UndefinedError: If the target's logits were not gathered.
    """
    logits = own(target_logits(e).double(), e.labels)
    if e.released:
        return logits.exp()
    return own(target_logits(e).double().softmax(1), e.labels)


def target_logits(e: Evidence) -> Float[Tensor, "n c"]:
    """Returns the target's logits of the reconstructions.

    Raises:
        UndefinedError: If they were not gathered.
    """
    return gathered(e.target_logits, "the target's logits of the reconstructions were not kept")


def own(scores: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Returns each row's score of its label."""
    return scores.gather(1, labels[:, None])[:, 0]
