"""What a row of a table is called."""

from dataclasses import dataclass

BETWEEN = " / "
"""What stands between attack and defense in a label."""


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
