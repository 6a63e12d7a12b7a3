"""What several classifiers say: evaluators as one jury, of a control, and the target."""

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.evaluation.accuracy import attack_acc, topk_accuracy, topk_hits
from mibench.evaluation.evidence import Evidence, UndefinedError, gathered, target_scores
from mibench.evaluation.metric import INF, PERCENT, metric
from mibench.ties import in_top, votes


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


NO_CONTROL = "the cell names no control, so the rate of false positives is not known"


@metric("Mean Attack Acc", "image", "lower", "percent", PERCENT, version=2)
def attack_acc_mean(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc, averaged over the setting's evaluators."""
    return torch.stack([topk_hits(logits, e.labels, 1) for logits in _panel(e)]).mean(0)


@metric("Attack Acc (2)", "image", "lower", "percent", PERCENT)
def attack_acc_second(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc by the setting's second evaluator.

    Raises:
        UndefinedError: If there is one evaluator only.
    """
    panel = _panel(e)
    if len(panel) < 2:
        raise UndefinedError("the setting has one evaluator; add to its evaluators")
    return topk_hits(panel[1], e.labels, 1)


@metric("Ensemble's Attack Acc", "image", "lower", "percent", PERCENT, version=2)
def attack_acc_vote(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc by the evaluators' mean probabilities, as one ensemble."""
    return topk_hits(_panel(e).double().softmax(2).mean(0), e.labels, 1)


@metric("Unanimous Attack Acc", "image", "lower", "percent", PERCENT, version=2)
def attack_acc_all(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc by unanimity: 100 where every evaluator names the attacked class.

    Among classes of equal score it is the least chance of an evaluator's.
    """
    return 100 * torch.stack([in_top(logits, e.labels) for logits in _panel(e)]).amin(0)


@metric("Corrected Attack Acc", "image", "lower", "percent", (-INF, 100.0), version=2)
def attack_acc_corrected(e: Evidence) -> Float[Tensor, " n"]:
    """Attack Acc beyond the control's: (hit − f) / (1 − f), f the rate of false positives.

    As if each reconstruction that shows nothing were accepted at the control's rate f, and each
    that shows something always: the mean is then the share of the latter. Negative where the
    attack does worse than its control. f is taken as known: the spread is of the attack's
    images alone.

    Raises:
        UndefinedError: If the cell names no control, or the evaluator accepts all of it.
    """
    rate = false_positives(e) / 100
    if rate == 1:
        raise UndefinedError("the evaluator accepts the whole control: nothing can be beyond it")
    return (attack_acc(e) - 100 * rate) / (1 - rate)


@metric("False positives", "attack", unit="percent", range=PERCENT, version=2)
def false_positives(e: Evidence) -> float:
    """Attack Acc of the cell's control: how often the evaluator says yes to nothing."""
    labels = gathered(e.control_labels, NO_CONTROL)
    return topk_accuracy(gathered(e.control_logits, NO_CONTROL), labels, 1)


@metric("Agreement", "image", unit="percent", range=PERCENT, version=2)
def evaluator_agreement(e: Evidence) -> Float[Tensor, " n"]:
    """Share of pairs of evaluators that give a reconstruction the same class, in percent.

    Whether it is the attacked one or not. High on nothing is no merit: see the controls' rows.
    """
    return 100 * agreement(votes(_panel(e)))


@metric("Kappa", "attack", range=(-1.0, 1.0), version=2)
def evaluator_kappa(e: Evidence) -> float:
    """Fleiss' kappa: the evaluators' agreement beyond that of chance."""
    return fleiss_kappa(votes(_panel(e)))


@metric("Confidence", "image", "lower", "percent", PERCENT)
def confidence(e: Evidence) -> Float[Tensor, " n"]:
    """The probability that the target gives the attacked class, in percent.

    High beside a low Attack Acc: the attack fooled the target and found nothing.
    """
    return 100 * target_scores(e)


def _panel(e: Evidence) -> Float[Tensor, "v n k"]:
    """Returns the logits of all evaluators, the table's first."""
    return e.logits[None] if e.others is None else torch.cat([e.logits[None], e.others])
