"""Several evaluation classifiers as one jury."""

from jaxtyping import Float
from torch import Tensor

from mibench.evaluation.evidence import UndefinedError


def agreement(votes: Float[Tensor, "v n k"]) -> Float[Tensor, " n"]:
    """Returns, of each image, the share of pairs of evaluators that name the same class.

    Args:
        votes: Of each evaluator for each image, one in all: :func:`mibench.ties.votes`.

    Raises:
        UndefinedError: If there are fewer than two evaluators.
    """
    v = len(votes)
    if v < 2:
        raise UndefinedError(
            f"agreement needs two or more evaluators, the setting has {v}; add to its evaluators"
        )
    same = votes.sum(0).square() - votes.square().sum(0)  # of pairs of two, not of one with itself
    return same.sum(1) / (v * (v - 1))


def fleiss_kappa(votes: Float[Tensor, "v n k"]) -> float:
    """Fleiss, Psychological Bulletin 1971: agreement beyond that of chance.

    (P − P_e) / (1 − P_e), P the mean :func:`agreement`, P_e the sum of the squared shares of
    the classes among all votes: 1 where all agree, 0 where they agree no more than by chance.

    Args:
        votes: As of :func:`agreement`.

    Raises:
        UndefinedError: If there are fewer than two evaluators, or every vote is for one class.
    """
    observed = agreement(votes).mean()
    shares = votes.sum((0, 1)) / (votes.shape[0] * votes.shape[1])
    chance = shares.square().sum()
    if chance == 1:
        raise UndefinedError("every evaluator names one class for all images: no chance to beat")
    return float((observed - chance) / (1 - chance))
