"""A table as text: its rows, headings and notes, before they take a form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mibench.benchmarks.row import Row
from mibench.evaluation import METRICS, Metric
from mibench.reporting.cautions import CONTROL_TITLE, cautions
from mibench.reporting.notes import footnotes
from mibench.reporting.results import DECIMALS, Entry, Number, Results, show

ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True)
class Look:
    """How a table is printed.

    Attributes:
        reported: Whether a paper's numbers stand beside the measured ones.
        caption: In place of that of the table; "" keeps it.
        decimals: Of every number. None: two, and as many as a paper prints of its own.
        notes: "none"; "short", which is what the numbers, arrows and marks mean; or "full".
        transpose: Whether rows of the table are columns in print.
        label: By which LaTeX refers to the table; "" for none.
    """

    reported: bool = True
    caption: str = ""
    decimals: int | None = None
    notes: Literal["none", "short", "full"] = "full"
    transpose: bool = False
    label: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table as text. A text that begins with "* " is to stand out.

    Attributes:
        caption: One sentence, or one for each of several tables.
        head: Headings; the first is that of the labels.
        body: Rows, each with its label first.
        notes: Footnotes.
        breaks: Numbers of the rows with which another attack begins, the first row aside.
        gaps: Of those with which another defense begins, where one comes at several weights.
        parts: Name and number of columns of each of several tables; none of a single one.
        label: As of a :class:`Look`.
    """

    caption: str
    head: list[str]
    body: list[list[str]]
    notes: list[str]
    breaks: frozenset[int] = frozenset()
    gaps: frozenset[int] = frozenset()
    parts: tuple[tuple[str, int], ...] = field(default=())
    label: str = ""

    @property
    def named(self) -> "Sheet":
        """The sheet with the name of its table before each heading, if there are several."""
        names = [f"{name}: " for name, count in self.parts for _ in range(count)]
        if not names:
            return self
        first, *others = self.head
        head = [first, *(n + text for n, text in zip(names, others, strict=True))]
        return replace(self, head=head, parts=())

    @property
    def transposed(self) -> "Sheet":
        """The sheet with its columns as rows."""
        own = self.named
        head, *body = (list(column) for column in zip(own.head, *own.body, strict=True))
        return replace(own, head=head, body=body, breaks=frozenset(), gaps=frozenset())


def heading(name: str) -> str:
    """Returns a column's heading, with the way that is better for the defender, if one is."""
    metric = METRICS[name]
    return f"{metric.title} {ARROWS[metric.better]}" if metric.better else metric.title


def mark(entry: Entry, metric: Metric) -> str:
    """Returns "* " or "† " if a number is better or worse for the defender than without."""
    if entry.contrast is None or not entry.contrast.significant:
        return ""
    higher = entry.contrast.test.diff > 0
    return "* " if higher == (metric.better == "higher") else "† "


def show_reported(value: tuple[float, Number] | None, decimals: int | None = None) -> str:
    """Returns a paper's number as it is printed there, with two decimals or more, or rounded."""
    if value is None:
        return "--"

    def text(v: float) -> str:
        exact = decimals is None and v != round(v, DECIMALS)
        return f"{v:g}" if exact else f"{v:.{DECIMALS if decimals is None else decimals}f}"

    return " ± ".join(text(v) for v in value if v is not None)


def sheet(tables: Sequence[Results], look: Look, bold: str) -> Sheet:
    """Returns tables side by side, their rows joined by label.

    Args:
        tables: One or more, of different names.
        look: How they are printed.
        bold: How footnotes call a number that stands out.
    """
    columns = {results.table.name: _columns(results, look) for results in tables}
    labels = _in_order(tables)
    mixed = {label for results in tables for label in results.mixed}
    body = [
        [
            label + " §" * (label in mixed),
            *(
                text
                for head, rows in columns.values()
                for text in rows.get(label, [""] * len(head))
            ),
        ]
        for label in labels
    ]
    captions = {results.table.name: results.table.caption for results in tables}
    made = Sheet(
        look.caption or _joined(captions),
        ["", *(text for head, _ in columns.values() for text in head)],
        body,
        _notes({results.table.name: results for results in tables}, look, bold),
        *_bounds(labels),
        tuple((name, len(head)) for name, (head, _) in columns.items()) if len(tables) > 1 else (),
        look.label,
    )
    return made.transposed if look.transpose else made


def _columns(results: Results, look: Look) -> tuple[list[str], dict[str, list[str]]]:
    """Returns headings, and label → texts; a paper's numbers follow the measured ones."""
    columns = results.table.columns
    claimed = results.table.reported
    papers = [c for c in columns if look.reported and any(c in r for r in claimed.values())]
    control = [CONTROL_TITLE] * bool(results.controls)
    head = [*map(heading, columns), *control]
    head += [f"{METRICS[c].title} (reported)" for c in papers]
    cautioned = cautions(results)
    decimals = DECIMALS if look.decimals is None else look.decimals
    rows = {
        label: [
            *(
                mark(entries[c], METRICS[c])
                + show(entries[c], results.seeds, decimals)
                + " ‡" * (c == "attack_acc" and label in cautioned)
                for c in columns
            ),
            *(
                show(results.controls.get(label, Entry()), results.seeds, decimals)
                for _ in control
            ),
            *(show_reported(claimed.get(label, {}).get(c), look.decimals) for c in papers),
        ]
        for label, entries in results.entries.items()
    }
    return head, rows


def _in_order(tables: Sequence[Results]) -> list[str]:
    """Returns all labels in the order of the tables; of several, those of an attack together."""
    labels = list(dict.fromkeys(label for results in tables for label in results.entries))
    if len(tables) == 1:
        return labels
    attacks = list(dict.fromkeys(Row.of(label).attack for label in labels))
    return sorted(labels, key=lambda label: attacks.index(Row.of(label).attack))


def _bounds(labels: Sequence[str]) -> tuple[frozenset[int], frozenset[int]]:
    """Returns :attr:`Sheet.breaks` and :attr:`Sheet.gaps`."""
    rows = [Row.of(label) for label in labels]
    families = [(row.attack, row.defense) for row in rows]
    breaks, gaps = set(), set()
    for i in range(1, len(rows)):
        before, own = families[i - 1], families[i]
        if own[0] != before[0]:
            breaks.add(i)
        elif own != before and max(families.count(own), families.count(before)) > 1:
            gaps.add(i)
    return frozenset(breaks), frozenset(gaps)


def _joined(texts: Mapping[str, str]) -> str:
    """Returns a text, or several with the name of each."""
    several = len(texts) > 1
    return " ".join(f"{name}: {text}" if several else text for name, text in texts.items())


def _notes(tables: Mapping[str, Results], look: Look, bold: str) -> list[str]:
    """Returns the notes that a look asks for; one that is true of all tables stands once."""
    if look.notes == "none":
        return []
    short = look.notes == "short"
    notes = {name: footnotes(results, bold, short=short) for name, results in tables.items()}
    first, *others = notes.values()
    common = [note for note in first if all(note in other for other in others)]
    own = [f"{n}: {note}" for n, each in notes.items() for note in each if note not in common]
    return [*common, *own]
