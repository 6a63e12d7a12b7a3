"""What a row of a table is called."""

from collections.abc import Iterable
from dataclasses import dataclass

from mibench.spec import nearest

BETWEEN = " / "
"""What stands between attack and defense in a label."""
FEW = 40
"""Up to how many labels a sentence names one by one."""


@dataclass(frozen=True)
class Row:
    """A row's name. Its text is the label that tables, options and files name the row by.

    Attributes:
        attack: Who attacks; "" if the label names a defense alone.
        defense: Who defends, without its weights.
        at: Which weights of the defense, as the label has them in parentheses; "" if it has none.
    """

    attack: str
    defense: str
    at: str = ""

    @classmethod
    def of(cls, label: str) -> "Row":
        """Returns the row that a label names: "attack / defense" or "attack / defense (at)"."""
        attack, _, defended = label.rpartition(BETWEEN)
        defense, opened, at = defended.partition(" (")
        if not (opened and at.endswith(")") and at != ")"):
            return cls(attack, defended)
        return cls(attack, defense, at[:-1])

    @property
    def defended(self) -> str:
        """The defense with its weights, as the label has it: what rows of one target share."""
        return f"{self.defense} ({self.at})" if self.at else self.defense

    @property
    def parts(self) -> tuple[str, ...]:
        """The label, and its parts: what a pattern of ``--rows`` may match."""
        return (str(self), *str(self).split(BETWEEN))

    def __str__(self) -> str:
        """Returns the label."""
        return f"{self.attack}{BETWEEN}{self.defended}" if self.attack else self.defended


def unknown_row(label: str, table: str, known: Iterable[str]) -> str:
    """Returns a sentence on a label that no row of the table has."""
    known = list(known)
    return f"no row {label!r} in {table}{nearest(label, known)}; rows: {listing(known)}"


def listing(labels: Iterable[str]) -> str:
    """Returns labels, to be named in a sentence; of many, only their attacks and defenses."""
    labels = list(labels)
    if len(labels) <= FEW or not all(Row.of(label).attack for label in labels):
        return ", ".join(labels)
    attacks = "; ".join(dict.fromkeys(Row.of(label).attack for label in labels))
    defenses = "; ".join(dict.fromkeys(Row.of(label).defended for label in labels))
    names = f"ATTACK{BETWEEN}DEFENSE"
    return f"{len(labels)} named {names}; ATTACK is one of {attacks}; DEFENSE one of {defenses}"
