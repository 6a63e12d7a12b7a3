"""Several evaluation classifiers as one jury."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mibench.evaluation.evidence import UndefinedError


def agreement(votes: Int[Tensor, "v n"], classes: int) -> Float[Tensor, " n"]:
    """Returns, of each image, the share of pairs of evaluators that name the same class.

    Raises:
        UndefinedError: If there are fewer than two evaluators.
    """
    v = len(votes)
    if v < 2:
        raise UndefinedError(
            f"agreement needs two or more evaluators, the setting has {v}; add to its evaluators"
        )
    counts = torch.nn.functional.one_hot(votes, classes).sum(0).double()
    return (counts * (counts - 1)).sum(1) / (v * (v - 1))


def fleiss_kappa(votes: Int[Tensor, "v n"], classes: int) -> float:
    """Fleiss, Psychological Bulletin 1971: agreement beyond that of chance.

    (P − P_e) / (1 − P_e), P the mean :func:`agreement`, P_e the sum of the squared shares of
    the classes among all votes: 1 where all agree, 0 where they agree no more than by chance.

    Raises:
        UndefinedError: If there are fewer than two evaluators, or every vote is for one class.
    """
    observed = agreement(votes, classes).mean()
    shares = torch.bincount(votes.flatten(), minlength=classes).double() / votes.numel()
    chance = shares.square().sum()
    if chance == 1:
        raise UndefinedError("every evaluator names one class for all images: no chance to beat")
    return float((observed - chance) / (1 - chance))
