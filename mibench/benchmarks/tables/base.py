"""What a table is."""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mibench.benchmarks.cell import Cell, Setting, Trials
from mibench.benchmarks.row import Row, listing
from mibench.defenses import MID, BiDO, Recipe
from mibench.evaluation import METRICS, Protocol
from mibench.override import has, override, paths, unknown_path
from mibench.roles import Attack, Defense
from mibench.spec import nearest, unknown

Reported = Mapping[str, tuple[float, float | None]]
"""Metric → (mean, standard deviation or None), as a paper prints them."""

Trained = Mapping[str, tuple[Recipe, Defense]]
"""Label → how a target is trained and by what it is defended."""


@dataclass(frozen=True)
class Table:
    """A privacy-utility table: a mapping from labels to cells.

    Attributes:
        name: What the command line calls it.
        caption: One sentence.
        rows: Label → cell. A label is the text of a ``Row``: "attack / defense".
        columns: Names of metrics.
        source: Where its numbers were first published, if they were.
        reported: Label → what that source reports.
        notes: Footnotes.
        worst: Whether a footnote names each defense's worst attack.
        curves: Name → labels of the rows that sweep one defense, to be compared at equal
            Accuracy. They decide no number and enter no key.
        heavy: Whether it is meant for a GPU: on a CPU it takes weeks.
    """

    name: str
    caption: str
    rows: Mapping[str, Cell]
    columns: tuple[str, ...] = ("accuracy", "attack_acc", "attack_acc5", "fid")
    source: str = ""
    reported: Mapping[str, Reported] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    worst: bool = False
    curves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    heavy: bool = False

    def __post_init__(self) -> None:
        if strange := [c for c in self.columns if c not in METRICS]:
            raise ValueError(unknown("metric", strange[0], METRICS))
        if self.worst and "attack_acc" not in self.columns:
            raise ValueError("the worst case is that of Attack Acc: name attack_acc in columns")
        if self.curves and not {"accuracy", "attack_acc"} <= set(self.columns):
            raise ValueError(f"{self.name}: curves need the columns accuracy and attack_acc")
        for name, labels in self.curves.items():
            if strange := [label for label in labels if label not in self.rows]:
                raise ValueError(f"{self.name}: curve {name} names no row: {strange[0]!r}")
        for cell in self.rows.values():
            cell.check()

    def modified(self, settings: Iterable[str]) -> "Table":
        """Returns the table with fields of its cells replaced, each "path=value".

        A setting applies to all rows that have the field, whatever it holds there.

        Raises:
            KeyError: If no row has it; the message lists the nearest that rows have.
            ValueError: If a value is not one the field takes, or seeds are to be replaced.
        """
        cells = dict(self.rows)
        for setting in settings:
            path, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"--set takes path=value, got {setting!r}")
            path = path.strip()
            if path.partition(".")[0] == "seeds":
                raise ValueError(
                    f"{path} is not set by --set: --seeds N computes seeds 0 to N - 1"
                )
            rows = {
                label: override(cell, path, text.strip())
                for label, cell in cells.items()
                if has(cell, path)
            }
            if not rows:
                known = dict.fromkeys(p for cell in cells.values() for p in paths(cell))
                raise KeyError(unknown_path(path, known))
            cells |= rows
        if cells == self.rows:
            return self
        return replace(
            self, rows=cells, caption=f"{self.caption} (modified: {', '.join(settings)})"
        )

    def only(self, patterns: Iterable[str]) -> "Table":
        """Returns the rows whose label, or a part of it around " / ", matches a pattern.

        A pattern that is a label chooses that row alone, and one that is a part of labels the
        rows with that part: what is * or ? in a label then stands for itself, and brackets do
        wherever that finds a row.

        Raises:
            KeyError: If a pattern matches no row.
        """
        keep: set[str] = set()
        parts = {label: Row.of(label).parts for label in self.rows}
        for pattern in patterns:
            matching = {pattern} & self.rows.keys()
            matching = matching or {label for label, own in parts.items() if pattern in own}
            for wild in (pattern.replace("[", "[[]"), pattern):
                matching = matching or {
                    label
                    for label, own in parts.items()
                    if any(fnmatch.fnmatchcase(part, wild) for part in own)
                }
            if not matching:
                near = nearest(pattern, [part for own in parts.values() for part in own])
                raise KeyError(f"no row matches {pattern!r}{near}; rows: {listing(self.rows)}")
            keep |= matching
        curves = {
            name: kept
            for name, labels in self.curves.items()
            if (kept := tuple(label for label in labels if label in keep))
        }
        rows = {k: v for k, v in self.rows.items() if k in keep}
        return replace(self, rows=rows, curves=curves)


def versus(
    setting: Setting,
    attack: Attack,
    trials: Trials,
    protocol: Protocol,
    defenses: Trained,
    title: str,
) -> dict[str, Cell]:
    """Returns one cell per defense, all else equal, labelled "title / defense"."""
    return {
        f"{title} / {label}": Cell(setting, recipe, defense, attack, trials, protocol)
        for label, (recipe, defense) in defenses.items()
    }


TWINS: dict[str, Defense] = {"MID (0)": MID(lambda_=0), "BiDO (0)": BiDO("nhsic", 0, 0)}
"""Defenses of weight zero: what they change beside their loss, such as MID's bottleneck."""


def controlled(
    recipe: Recipe,
    defenses: Trained,
    twins: Mapping[str, Defense] = TWINS,
) -> dict[str, tuple[Recipe, Defense]]:
    """Returns the same defenses and their twins under one recipe."""
    same = {label: defense for label, (_, defense) in defenses.items()}
    return {label: (recipe, defense) for label, defense in (same | dict(twins)).items()}
