"""The dependences of a table's targets as text, CSV and heat map."""

import math
import statistics
from collections.abc import Iterator, Sequence
from csv import writer
from io import StringIO
from itertools import product
from pathlib import Path

from mibench.defenses import BiDO, NoDefense
from mibench.evaluation.significance import LEVEL, Test, holm, interval, paired
from mibench.reporting.canvas import new_figure, own_style, save_both
from mibench.reporting.diagnostics import (
    PAIRS,
    SPLITS,
    Correlation,
    Diagnosis,
    Where,
    correlate,
)

HEAD = ("defense", "measure", "pair", "layer", "split", "mean", "t95", "seeds")
SYMBOLS = {"xz": "d(X,Z{})", "zy": "d(Z{},Y)"}


def csv(found: Diagnosis) -> str:
    """Returns every dependence, a line each; the same bytes for the same store."""
    text = StringIO()
    lines = writer(text, lineterminator="\n")
    lines.writerow(HEAD)
    for defense, values in found.values.items():
        for where, seeds in values.items():
            i = interval(seeds)
            half = "" if i.half is None else f"{i.half:.10g}"
            lines.writerow([defense, *where, f"{i.mean:.10g}", half, i.n])
    return text.getvalue()


def text(found: Diagnosis, measures: Sequence[str]) -> str:
    """Returns what a terminal shows of some measures: the table, then what follows from it."""
    lines = []
    for measure in measures:
        for pair in PAIRS:
            lines += [*_block(found, measure, pair), ""]
    sizes = "; ".join(
        f"{' or '.join(map(str, counts))} {split} images" for split, counts in found.images.items()
    )
    lines += [
        f"Means over batches and seeds, ± half of Student's 95 % interval over seeds: {sizes}, in "
        "eval mode, not augmented. They depend on the size of a batch, which is that of training.",
        "",
        *_lowered(found),
        "",
        *_correlations(found, measures),
    ]
    if found.missing:
        lines.append(f"Not in the store, hence no leakage of: {'; '.join(found.missing)}.")
    return "\n".join(lines)


def _places(found: Diagnosis, measure: str, pair: str) -> list[Where]:
    """Returns where a measure was taken: layers on train images, then on test images."""
    places = dict.fromkeys(
        w for values in found.values.values() for w in values if w[:2] == (measure, pair)
    )
    return sorted(places, key=lambda w: (SPLITS.index(w[3]), w[2]))


def _block(found: Diagnosis, measure: str, pair: str) -> list[str]:
    places = _places(found, measure, pair)
    head = [f"{SYMBOLS[pair].format(layer)} {split}" for _, _, layer, split in places]
    body = [
        [defense, *(_show(values.get(where, ())) for where in places)]
        for defense, values in found.values.items()
    ]
    rows = [[measure, *head], *body]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]


def _show(values: Sequence[float]) -> str:
    if not values:
        return "--"
    i = interval(values)
    return f"{i.mean:.4g}" + (f" ± {i.half:.2g}" if i.half is not None else "")


def _lowered(found: Diagnosis) -> Iterator[str]:
    """Yields, for each BiDO, what its own measure did to each layer on train images."""
    plain = [d for d, t in found.targets.items() if isinstance(t.defense, NoDefense)]
    ours = {d: t.defense for d, t in found.targets.items() if isinstance(t.defense, BiDO)}
    if not plain or not ours:
        yield "Does BiDO lower d(X,Z)? That takes rows of BiDO and a row without defense."
        return
    tests: list[tuple[str, Where, Test, str]] = []
    for defense, bido in ours.items():
        for where in (w for pair in PAIRS for w in _places(found, bido.measure, pair)):
            a, b = (found.values[d].get(where, ()) for d in (defense, plain[0]))
            alike = found.seeds.get(defense) == found.seeds.get(plain[0])
            if where[3] == "train" and a and alike and len(a) == len(b):
                change = f"{statistics.fmean(b):.4g} → {statistics.fmean(a):.4g}"
                tests.append((defense, where, paired(a, b), change))
    adjusted = holm([test.p for _, _, test, _ in tests])
    yield (
        f"Does BiDO lower d(X,Z) and raise d(Z,Y)? Its own measure on train images, {plain[0]} → "
        f"BiDO; * differs at level {100 * LEVEL:g} % after Holm's correction:"
    )
    for defense, bido in ours.items():
        for pair in PAIRS:
            layers = [
                f"Z{where[2]} {change}{'*' * (p is not None and p <= LEVEL)}"
                for (owner, where, _, change), p in zip(tests, adjusted, strict=True)
                if (owner, where[1]) == (defense, pair)
            ]
            symbol = SYMBOLS[pair].format("")
            yield f"  {defense}, {bido.measure} {symbol}: {', '.join(layers) or '--'}"
    for pair, word, sign in (("xz", "lower", -1), ("zy", "higher", 1)):
        moved = [sign * test.diff > 0 for _, where, test, _ in tests if where[1] == pair]
        symbol = SYMBOLS[pair].format("")
        yield f"  {symbol} is {word} than in {plain[0]} in {sum(moved)} of {len(moved)} cases."


def _correlations(found: Diagnosis, measures: Sequence[str]) -> Iterator[str]:
    """Yields whether dependence goes with leakage, by attack, measure and layer, train images."""
    if not found.leakage:
        yield "Does dependence go with leakage? No record of these targets has an Attack Acc."
        return
    yield (
        "Does dependence go with leakage? Spearman's ρ of the dependence on train images and "
        "Attack Acc over defenses (means over seeds), 95 % interval by Fisher's z:"
    )
    counts = []
    for attack in found.leakage:
        wheres = [w for m in measures for p in PAIRS for w in _places(found, m, p)]
        for where in (w for w in wheres if w[3] == "train"):
            name = f"{where[0]} {SYMBOLS[where[1]].format(where[2])}"
            try:
                rank = correlate(found, attack, where)
            except ValueError as error:
                yield f"  {attack}, {name}: none; {error}"
                continue
            counts.append(_apart(rank))
            yield f"  {attack}, {name}: {_told(rank)}"
    if counts:
        yield (
            f"  {sum(counts)} of {len(counts)} intervals exclude 0; by chance alone one in twenty "
            "would. Stronger weights also cost accuracy: a correlation is no cause."
        )


def _apart(rank: Correlation) -> bool:
    return rank.low is None or rank.high is None or rank.low > 0 or rank.high < 0


def _told(rank: Correlation) -> str:
    if rank.low is None:
        return f"ρ = {rank.rho:+.2f}, no interval at the end of the range, n = {rank.n}"
    said = "not told apart from 0"
    if _apart(rank):
        said = "more dependence, more leakage" if rank.rho > 0 else "more dependence, less leakage"
    return f"ρ = {rank.rho:+.2f} [{rank.low:+.2f}, {rank.high:+.2f}], n = {rank.n}: {said}"


@own_style()
def draw(found: Diagnosis, measures: Sequence[str], stem: Path) -> list[Path]:
    """Writes a PNG and a PDF: defenses down, measures and layers across, train beside test.

    Numbers are means over seeds; a cell's colour is its share of the largest in its column.
    """
    defenses = list(found.values)
    columns = [w for m in measures for p in PAIRS for w in _places(found, m, p)]
    if not defenses or not columns:
        return []
    figure = new_figure((2.2 + 0.42 * len(columns), 1.6 + 0.28 * len(defenses)))
    for s, split in enumerate(SPLITS):
        places = [w for w in columns if w[3] == split]
        means = [[_mean(found.values[d].get(w, ())) for w in places] for d in defenses]
        tops = [
            max((v for v in column if v == v), default=0) or 1
            for column in zip(*means, strict=True)
        ]
        shares = [[v / top for v, top in zip(row, tops, strict=True)] for row in means]
        axes = figure.add_subplot(1, len(SPLITS), s + 1)
        axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for y, x in product(range(len(defenses)), range(len(places))):
            if not math.isnan(v := means[y][x]):
                colour = "white" if shares[y][x] < 0.5 else "black"
                axes.text(x, y, f"{v:.2g}", ha="center", va="center", fontsize=5, color=colour)
        names = [f"{m} {SYMBOLS[p].format(layer)}" for m, p, layer, _ in places]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(defenses)), defenses if s == 0 else [], fontsize=7)
        axes.tick_params(length=0)
        axes.set_title(f"{split} images", fontsize=8)
    return save_both(figure, stem)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")
