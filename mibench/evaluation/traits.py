"""Leakage measured against the truth: whose traits a reconstruction shows.

A regressor reads the traits of an image, and what it reads is compared with the true traits of
every private person; the evaluation classifier has no part in it. An error is always relative to
that to other persons, since reconstructions are further from everybody than real images are.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor, arange, stack

from mibench.evaluation.accuracy import attack_acc
from mibench.evaluation.evidence import Evidence, UndefinedError
from mibench.evaluation.metric import INF, PERCENT, metric
from mibench.evaluation.regressors import ResidualReader, StridedReader, TraitReader
from mibench.ties import in_top, votes

FIRST, SECOND = StridedReader(), ResidualReader()
"""The regressor of most columns, and the one that has to agree."""
BOTH = (FIRST, SECOND)
UP_TO_100 = (-INF, 100.0)


@metric("Trait leakage", "identity", "lower", "percent", UP_TO_100, needs=(FIRST,))
def trait_leakage(e: Evidence) -> Float[Tensor, " c"]:
    """How much nearer the attacked person is in traits than others are: 100 all, 0 no nearer.

    100 (1 − error to the attacked person / mean error to the other private ones), each error a
    mean over the person's reconstructions of squares weighted by how well a trait can be read.
    """
    return _leakage(e, FIRST)


@metric("Trait leakage (2)", "identity", "lower", "percent", UP_TO_100, needs=(SECOND,))
def trait_leakage_second(e: Evidence) -> Float[Tensor, " c"]:
    """Trait leakage by the second regressor, which is of another architecture."""
    return _leakage(e, SECOND)


@metric("Trait acc", "identity", "lower", "percent", PERCENT, needs=(FIRST,))
def trait_acc(e: Evidence) -> Float[Tensor, " c"]:
    """Share of reconstructions to which, of all private persons, the attacked one is nearest.

    Nearest in traits. A blind guess scores 100 over the number of private persons.
    """
    return _by_person(_hits(e, FIRST), e)


@metric("Trait acc (2)", "identity", "lower", "percent", PERCENT, needs=(SECOND,))
def trait_acc_second(e: Evidence) -> Float[Tensor, " c"]:
    """Trait acc by the second regressor, which is of another architecture."""
    return _by_person(_hits(e, SECOND), e)


@metric("Trait rank", "identity", "higher", "percent", PERCENT, needs=(FIRST,))
def trait_rank(e: Evidence) -> Float[Tensor, " c"]:
    """Share of the other private persons who are nearer in traits than the attacked one.

    0 is found, 50 is blind. Others as near as the attacked one count half.
    """
    right, others = _sides(_errors(e, FIRST), e.labels)
    nearer = (others < right[:, None]).double() + (others == right[:, None]).double() / 2
    return _by_person(100 * nearer.mean(1), e)


@metric("Trait agreement", "identity", unit="percent", range=PERCENT, needs=BOTH)
def trait_agreement(e: Evidence) -> Float[Tensor, " c"]:
    """Share of reconstructions to which both regressors find the same private person nearest."""
    first, second = (votes(-_errors(e, lens)) for lens in BOTH)
    return _by_person(100 * (first * second).sum(1), e)


@metric("Trait acc of real", "attack", unit="percent", range=PERCENT, needs=(FIRST,))
def trait_acc_real(e: Evidence) -> float:
    """Trait acc of real private images, those that distances compare with: what can be reached."""
    return float(100 * in_top(-e.through(FIRST).real, e.real_labels).mean())


@metric("False by traits", "attack", unit="percent", range=PERCENT, needs=BOTH)
def attack_acc_false(e: Evidence) -> float:
    """Of the reconstructions that the evaluator accepts, the share that shows another person.

    Another one is nearer in traits than the attacked one, by both regressors: against the truth
    these are false positives.

    Raises:
        UndefinedError: If the evaluator accepts none.
    """
    accepted = attack_acc(e)
    if not accepted.sum():
        raise UndefinedError("the evaluator accepts no reconstruction that could be a false one")
    return float(100 * accepted[shows_another(e)].sum() / accepted.sum())


def shows_another(e: Evidence) -> Bool[Tensor, " n"]:
    """Returns of which reconstructions both regressors find another person nearer.

    Raises:
        UndefinedError: If the traits were not read.
    """
    return stack([_hits(e, lens) == 0 for lens in BOTH]).all(0)


def _leakage(e: Evidence, lens: TraitReader) -> Float[Tensor, " c"]:
    right, others = _sides(_errors(e, lens), e.labels)
    away = _by_person(others.mean(1), e)
    if bool((away == 0).any()):
        raise UndefinedError(f"the regressor {lens.name} can read no trait of this task's images")
    return 100 * (1 - _by_person(right, e) / away)


def _hits(e: Evidence, lens: TraitReader) -> Float[Tensor, " n"]:
    """Returns 100 where the attacked person is nearest; among equals its chance."""
    return 100 * in_top(-_errors(e, lens), e.labels)


def _errors(e: Evidence, lens: TraitReader) -> Float[Tensor, "n p"]:
    """Returns each reconstruction's error to each private person, in float64."""
    return e.through(lens).reconstructed.double()


def _sides(
    errors: Float[Tensor, "n p"], labels: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n q"]]:
    """Returns the errors to the attacked person and those to each other one."""
    right = arange(errors.shape[1]) == labels[:, None]
    return errors[right], errors[~right].view(len(errors), -1)


def _by_person(values: Float[Tensor, " n"], e: Evidence) -> Float[Tensor, " c"]:
    """Returns the mean of each attacked person."""
    return stack([values[e.labels == c].mean() for c in e.classes])
