"""What the classifiers saw; metrics are functions of this and nothing else."""

from dataclasses import dataclass, fields

from jaxtyping import Float, Int
from torch import Tensor

from mibench.store import check_finite


class UndefinedError(ValueError):
    """A metric has no value on this evidence; the message says why.

    A record then has no number there and quotes the message: never 0, which could be taken for
    a perfect score.
    """


@dataclass(frozen=True)
class Evidence:
    """The evaluation classifiers' view of one inversion, and the target's.

    Reconstructions come pass by pass: image i belongs to pass i // classes.

    Attributes:
        labels: Attacked class of each reconstruction.
        block: Block of each reconstruction.
        passes: Pass of each reconstruction.
        logits: Evaluation logits of the reconstructions.
        features: Evaluation features (penultimate layer) of the reconstructions.
        real: Evaluation features of the real private images they are compared with.
        real_labels: Their classes.
        test_logits: The target's logits of the private test images.
        test_labels: Their labels.
        others: Logits of the reconstructions by the other evaluators of the setting.
        target_logits: The target's logits of the reconstructions.
        stretched: Evaluation features of the reconstructions, each stretched to full range.
        real_stretched: Those of the real images, likewise.
        ssim: Structural similarity of each reconstruction and the real image nearest to it.
        inception: Inception-v3's features of the reconstructions.
        real_inception: Those of the real images.
        control_logits: Evaluation logits of a control's reconstructions.
        control_labels: The classes they were made for.

    What is None was not gathered; a metric that needs it says so.

    Raises:
        FloatingPointError: If a number is NaN or infinite.
    """

    labels: Int[Tensor, " n"]
    block: Int[Tensor, " n"]
    passes: Int[Tensor, " n"]
    logits: Float[Tensor, "n k"]
    features: Float[Tensor, "n d"]
    real: Float[Tensor, "m d"]
    real_labels: Int[Tensor, " m"]
    test_logits: Float[Tensor, "t c"]
    test_labels: Int[Tensor, " t"]
    others: Float[Tensor, "v n k"] | None = None
    target_logits: Float[Tensor, "n c"] | None = None
    stretched: Float[Tensor, "n d"] | None = None
    real_stretched: Float[Tensor, "m d"] | None = None
    ssim: Float[Tensor, " n"] | None = None
    inception: Float[Tensor, "n i"] | None = None
    real_inception: Float[Tensor, "m i"] | None = None
    control_logits: Float[Tensor, "q k"] | None = None
    control_labels: Int[Tensor, " q"] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                check_finite(value, f"the evidence's {field.name}")


def gathered(value: Tensor | None, what: str) -> Tensor:
    """Returns a field of evidence that may be None.

    Raises:
        UndefinedError: If it is; ``what`` is what was not gathered.
    """
    if value is None:
        raise UndefinedError(what)
    return value
