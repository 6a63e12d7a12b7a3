"""What a metric is, how one is declared, and the registry of all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from jaxtyping import Float
from torch import Tensor

from mibench.evaluation.evidence import Evidence
from mibench.evaluation.lenses import Lens
from mibench.sources import source_digest
from mibench.spec import check_role, choose

INF = float("inf")
PERCENT = (0.0, 100.0)
POSITIVE = (0.0, INF)

Compute = Callable[[Evidence], Float[Tensor, " n"] | float]
C = TypeVar("C", bound=Compute)
Per = Literal["image", "identity", "attack", "target"]
Better = Literal["lower", "higher", ""]
Unit = Literal["percent", "features", "features²", ""]


@dataclass(frozen=True)
class Metric:
    """A number of a table.

    Attributes:
        name: Column in CSV.
        title: Column in print.
        compute: Evidence → n values, one per image or attacked class, or one of the whole.
            Raises :class:`UndefinedError` where the evidence gives it no value.
        per: What it is measured on: each "image", each "identity", the whole "attack", or
            the "target" alone, whose value no repeat of the attack can change.
        better: Which way is better for the defender: less leakage, more utility. "" for a
            yardstick, which says how to read other metrics: it is shown without an arrow and
            never tested for significance.
        unit: "percent", "features" for a length in the evaluator's features, "features²" for
            its square, or "" for a number without one.
        range: Least and greatest value.
        needs: The lenses whose features it compares. One that evidence does not always have is
            used for the tables that show the metric.
        version: Raised by hand when the function changes its result.

    Raises:
        ValueError: If ``per``, ``better`` or ``unit`` is none of these words.
        TypeError: If what it needs is no lens.
    """

    name: str
    title: str
    compute: Compute
    per: Per
    better: Better
    unit: Unit = ""
    range: tuple[float, float] = (-INF, INF)
    needs: tuple[Lens, ...] = ()
    version: int = 1

    def __post_init__(self) -> None:
        choose(self, per=("image", "identity", "attack", "target"))
        choose(self, better=("lower", "higher", ""), unit=("percent", "features", "features²", ""))
        for lens in self.needs:
            check_role(lens, Lens, f"what the metric {self.name} needs")


METRICS: dict[str, Metric] = {}
"""Name → metric, in the order in which they were declared."""


def metric(
    title: str,
    per: Per,
    better: Better = "",
    unit: Unit = "",
    range: tuple[float, float] = (-INF, INF),
    needs: tuple[Lens, ...] = (),
    version: int = 1,
) -> Callable[[C], C]:
    """Declares a function of the evidence as the metric of its name; see :class:`Metric`.

    In a user's file the digest of the file stands for the version: it need not be raised.

    Raises:
        ValueError: If another file has declared a metric of that name.
    """

    def declare(compute: C) -> C:
        name = compute.__name__
        source = source_digest(compute)
        if name in METRICS and METRICS[name].compute.__module__ != compute.__module__:
            home = METRICS[name].compute.__module__
            raise ValueError(f"{home} has a metric {name} already: give yours another name")
        edition = int(source[:8], 16) if source else version
        METRICS[name] = Metric(name, title, compute, per, better, unit, range, needs, edition)
        return compute

    return declare
