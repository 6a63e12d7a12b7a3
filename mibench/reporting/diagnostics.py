"""Does a defense lower the dependence that it says it lowers, and does that go with less leakage?

The dependences of a table's targets as text, CSV and heat map, and their rank correlation with
Attack Acc over the defenses of the table.
"""

import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from csv import writer
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import chain, product
from pathlib import Path

from mibench.benchmarks.row import Row
from mibench.defenses import Release
from mibench.evaluation.significance import LEVEL, Test, holm, interval, paired
from mibench.reporting.canvas import new_figure, own_style, save_both
from mibench.running.stages import ClassifierStage, RecordStage
from mibench.running.stages.dependence import PAIRS, SPLITS, DependenceStage, dependence_stage
from mibench.store import Store

FEWEST = 6
"""Defenses that a rank correlation needs: of fewer, its interval is too narrow."""
HEAD = ("defense", "measure", "pair", "layer", "split", "mean", "t95", "seeds")
SYMBOLS = {"xz": "d(X,Z{})", "zy": "d(Z{},Y)"}

Where = tuple[str, str, int, str]
"""(measure, pair, layer, split)."""


@dataclass(frozen=True)
class Diagnosis:
    """What the store knows of a table's targets.

    Attributes:
        values: Defense → where → one value per seed.
        targets: Defense → its first target.
        images: Split → images that each value rests on.
        leakage: Attack → defense → Attack Acc in percent, one per seed.
        missing: Records that are not in the store, by label and seed.
        seeds: Defense → the seeds of its values, in their order.
    """

    values: Mapping[str, Mapping[Where, Sequence[float]]]
    targets: Mapping[str, ClassifierStage]
    images: Mapping[str, Sequence[int]]
    leakage: Mapping[str, Mapping[str, Sequence[float]]]
    missing: Sequence[str]
    seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def places(self, measures: Sequence[str], pairs: Sequence[str] = PAIRS) -> list[Where]:
        """Returns where measures were taken, in the order of measures, pairs, splits, layers."""
        taken = {where for values in self.values.values() for where in values}
        return [
            (measure, pair, layer, split)
            for measure in measures
            for pair in pairs
            for split in SPLITS
            for layer in sorted(
                w[2] for w in taken if (w[0], w[1], w[3]) == (measure, pair, split)
            )
        ]

    @property
    def alike(self) -> dict[tuple[int, int], list[str]]:
        """(Layers of a target's network, images in a batch) → the defenses with such a target.

        Layer 2 of three layers is not comparable with layer 2 of five, and the measures depend on
        the size of a batch, so dependence is correlated only among targets that share both.
        """
        groups: dict[tuple[int, int], list[str]] = {}
        for defense, values in self.values.items():
            layers = max(layer for _, _, layer, _ in values)
            batch = self.targets[defense].recipe.batch_size
            groups.setdefault((layers, batch), []).append(defense)
        return dict(sorted(groups.items()))

    def reference(self, defense: str) -> str | None:
        """Returns the first target without a defense, all else being equal; None if there is none.

        All else is the setting and the recipe. Another recipe can have another size of batch, on
        which the measures depend, so that the two could not be compared.
        """
        own = self.targets[defense]
        return next(
            (
                name
                for name, other in self.targets.items()
                if other.defense.undefended and replace(other, defense=own.defense) == own
            ),
            None,
        )


def dependence_stages(
    records: Mapping[str, Sequence[RecordStage]],
) -> dict[str, list[DependenceStage]]:
    """Returns defense → its stages, one per seed; rows of several attacks share a target.

    The defense is the last part of a row's label. Where rows of one label defend other targets
    (two tasks in a table), the whole label stands for them. Rows of releases are left out: a
    release changes no latents.
    """
    stages = {
        label: [dependence_stage(r.evidence[0].inversion.target.trained) for r in rows]
        for label, rows in records.items()
        if not isinstance(rows[0].cell.defense, Release)
    }
    keys: dict[str, set[str]] = {}
    for label, own in stages.items():
        keys.setdefault(Row.of(label).defended, set()).add(own[0].key)
    named: dict[str, list[DependenceStage]] = {}
    for label, own in stages.items():
        short = Row.of(label).defended
        named.setdefault(short if len(keys[short]) == 1 else label, own)
    return named


def diagnose(records: Mapping[str, Sequence[RecordStage]], store: Store) -> Diagnosis:
    """Returns dependences and leakage; computes nothing.

    A defense without any finished dependence is left out; leakage is of the seeds whose records
    are there, and the others are named.
    """
    stages = dependence_stages(records)
    values: dict[str, dict[Where, list[float]]] = {}
    images: dict[str, set[int]] = {split: set() for split in SPLITS}
    defenses: dict[str, str] = {}
    done: dict[str, list[int]] = {}
    for defense, own in stages.items():
        done[defense] = [i for i, s in enumerate(own) if store.state(s) == "done"]
        for payload in (store.load(own[i]) for i in done[defense]):
            for split in SPLITS:
                images[split].add(payload["images"][split])
            for v in payload["values"]:
                where = (v["measure"], v["pair"], v["layer"], v["split"])
                values.setdefault(defense, {}).setdefault(where, []).append(v["value"])
        defenses |= {s.target.key: defense for s in own}
    leakage: dict[str, dict[str, list[float]]] = {}
    missing = []
    for label, rows in records.items():
        attack = Row.of(label).attack
        if isinstance(rows[0].cell.defense, Release):
            continue
        for seed, record in enumerate(rows):
            if store.state(record) != "done":
                missing.append(f"{label}, seed {seed}")
                continue
            score = store.load(record)["scores"].get("attack_acc")
            if score is not None and score["mean"] is not None:
                defense = defenses[record.evidence[0].inversion.target.key]
                leakage.setdefault(attack, {}).setdefault(defense, []).append(score["mean"])
    targets = {defense: stages[defense][0].target for defense in values}
    counts = {split: sorted(sizes) for split, sizes in images.items()}
    return Diagnosis(values, targets, counts, leakage, missing, done)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation.

    Attributes:
        rho: In [-1, 1].
        low: Lower end of the 95 % interval; None where there is none.
        high: Upper end.
        n: Pairs it rests on.
    """

    rho: float
    low: float | None
    high: float | None
    n: int

    @property
    def excludes_0(self) -> bool:
        """Whether 0 is outside the interval, or there is none, at the ends of the range."""
        return self.low is None or self.high is None or self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if self.low is None:
            return f"ρ = {self.rho:+.2f}, no interval at the end of the range, n = {self.n}"
        verdict = "not significantly different from 0"
        if self.excludes_0:
            verdict = f"more dependence, {'more' if self.rho > 0 else 'less'} leakage"
        span = f"[{self.low:+.2f}, {self.high:+.2f}]"
        return f"ρ = {self.rho:+.2f} {span}, n = {self.n}: {verdict}"


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> Correlation:
    r"""Returns Spearman's ρ with the interval of Fisher's z.

    .. math:: \tanh(\operatorname{artanh} \rho \pm 1.96 \sqrt{1.06 / (n - 3)})

    The variance is that of Fieller, Hartley and Pearson, Biometrika 44, 1957. At ρ = ±1 it
    has no interval.

    Raises:
        ValueError: If there are fewer than FEWEST pairs, or one side is constant.
    """
    from scipy.stats import norm, spearmanr

    n = len(xs)
    if n < FEWEST:
        raise ValueError(f"a rank correlation needs {FEWEST} or more defenses, there are {n}")
    if len(set(xs)) == 1 or len(set(ys)) == 1:
        raise ValueError("a rank correlation needs values that differ")
    rho = float(spearmanr(xs, ys).statistic)
    if abs(rho) > 1 - 1e-12:
        return Correlation(round(rho), None, None, n)
    half = float(norm.ppf(0.975)) * math.sqrt(1.06 / (n - 3))
    z = math.atanh(rho)
    return Correlation(rho, math.tanh(z - half), math.tanh(z + half), n)


def correlate(
    diagnosis: Diagnosis, attack: str, where: Where, defenses: Sequence[str]
) -> Correlation:
    """Returns the correlation of a dependence with Attack Acc over defenses, means over seeds.

    The defense is the unit: seeds of one defense are no further defenses.

    Args:
        diagnosis: Dependences and leakage.
        attack: Whose Attack Acc.
        where: Which dependence.
        defenses: Over which of them; one without a value is left out.

    Raises:
        ValueError: As :func:`rank_correlation` does.
    """
    leaks = diagnosis.leakage.get(attack, {})
    both = [d for d in defenses if d in leaks and where in diagnosis.values[d]]
    return rank_correlation(
        [statistics.fmean(diagnosis.values[d][where]) for d in both],
        [statistics.fmean(leaks[d]) for d in both],
    )


# Shown ------------------------------------------------------------------------------------


def csv(diagnosis: Diagnosis) -> str:
    """Returns every dependence, a line each; the same bytes for the same store."""
    text = StringIO()
    lines = writer(text, lineterminator="\n")
    lines.writerow(HEAD)
    for defense, values in diagnosis.values.items():
        for where, seeds in values.items():
            i = interval(seeds)
            half = "" if i.half is None else f"{i.half:.10g}"
            lines.writerow([defense, *where, f"{i.mean:.10g}", half, i.n])
    return text.getvalue()


def text(diagnosis: Diagnosis, measures: Sequence[str]) -> str:
    """Returns what a terminal shows of some measures: the table, then what follows from it."""
    blocks = [[*_block(diagnosis, measure, p), ""] for measure in measures for p in PAIRS]
    sizes = "; ".join(
        f"{' or '.join(map(str, counts))} {split} images"
        for split, counts in diagnosis.images.items()
    )
    lines = [
        *chain.from_iterable(blocks),
        f"Means over batches and seeds, ± half the width of Student's 95 % interval over seeds: "
        f"{sizes}, in eval mode, not augmented. They depend on the size of a batch, which is that "
        "of training.",
        "",
        *_lowered(diagnosis),
        "",
        *_correlations(diagnosis, measures),
    ]
    if diagnosis.missing:
        lines.append(f"Not in the store, hence no leakage of: {'; '.join(diagnosis.missing)}.")
    return "\n".join(lines)


def _symbol(where: Where) -> str:
    return SYMBOLS[where[1]].format(where[2])


def _block(diagnosis: Diagnosis, measure: str, pair: str) -> list[str]:
    places = diagnosis.places([measure], [pair])
    rows = [[measure, *(f"{_symbol(where)} {where[3]}" for where in places)]]
    for defense, values in diagnosis.values.items():
        rows.append([defense, *(_show(values.get(where, ())) for where in places)])
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) for row in rows]


def _show(values: Sequence[float]) -> str:
    if not values:
        return "--"
    i = interval(values)
    return f"{i.mean:.4g}" + (f" ± {i.half:.2g}" if i.half is not None else "")


def _lowered(diagnosis: Diagnosis) -> Iterator[str]:
    """Yields what each defense did to its own measure, in each layer, on train images."""
    own = {d: m for d, t in diagnosis.targets.items() if (m := t.defense.lowers_dependence)}
    references = {d: bare for d in own if (bare := diagnosis.reference(d))}
    question = "Does a defense lower d(X,Z), if it is trained to?"
    if not references:
        yield (
            f"{question} That takes rows of such defenses, as BiDO, and a row without defense of "
            "the same setting and recipe."
        )
        return
    tests: dict[tuple[str, Where], tuple[Test, str]] = {}
    for defense, bare in references.items():
        for where in diagnosis.places([own[defense]]):
            a, b = (diagnosis.values[d].get(where, ()) for d in (defense, bare))
            paired_seeds = diagnosis.seeds.get(defense) == diagnosis.seeds.get(bare)
            if where[3] == "train" and a and paired_seeds and len(a) == len(b):
                change = f"{statistics.fmean(b):.4g} → {statistics.fmean(a):.4g}"
                tests[defense, where] = (paired(a, b), change)
    adjusted = holm([test.p for test, _ in tests.values()])
    for bare in dict.fromkeys(references.values()):
        defenses = [defense for defense, other in references.items() if other == bare]
        yield (
            f"{question} And does it raise d(Z,Y)? Its own measure on train images, {bare} → the "
            f"defense; * is significant at level {100 * LEVEL:g} % after Holm's correction:"
        )
        for defense, pair in product(defenses, PAIRS):
            layers = [
                f"Z{where[2]} {change}{'*' * (p is not None and p <= LEVEL)}"
                for ((owner, where), (_, change)), p in zip(tests.items(), adjusted, strict=True)
                if (owner, where[1]) == (defense, pair)
            ]
            symbol = SYMBOLS[pair].format("")
            yield f"  {defense}, {own[defense]} {symbol}: {', '.join(layers) or '--'}"
        for pair, word, sign in (("xz", "lower", -1), ("zy", "higher", 1)):
            moved = [
                sign * test.diff > 0
                for (owner, where), (test, _) in tests.items()
                if owner in defenses and where[1] == pair
            ]
            symbol = SYMBOLS[pair].format("")
            yield f"  {symbol} is {word} than in {bare} in {sum(moved)} of {len(moved)} cases."
    if alone := [defense for defense in own if defense not in references]:
        yield (
            "  Not compared, for want of a row without defense of the same setting and recipe: "
            f"{', '.join(alone)}."
        )


def _correlations(diagnosis: Diagnosis, measures: Sequence[str]) -> Iterator[str]:
    """Yields whether dependence goes with leakage, by attack, measure and layer, train images."""
    if not diagnosis.leakage:
        yield "Does dependence go with leakage? No record of these targets has an Attack Acc."
        return
    yield (
        "Does dependence go with leakage? Spearman's ρ of the dependence on train images and "
        "Attack Acc over defenses (means over seeds), 95 % interval by Fisher's z:"
    )
    ranks = []
    groups = diagnosis.alike
    few = {group: own for group, own in groups.items() if len(own) < FEWEST}
    shown = {group: own for group, own in groups.items() if group not in few} or groups
    for attack, (group, defenses) in product(diagnosis.leakage, shown.items()):
        among = f", {_group(group, groups)}" * (len(shown) > 1)
        for where in diagnosis.places(measures):
            if where[3] != "train" or where[2] > group[0]:
                continue
            name = f"  {attack}{among}, {where[0]} {_symbol(where)}"
            try:
                ranks.append(correlate(diagnosis, attack, where, defenses))
                yield f"{name}: {ranks[-1]}"
            except ValueError as error:
                yield f"{name}: none; {error}"
    for group, own in few.items() if few != groups else ():
        yield (
            f"  Left out, since a rank correlation needs {FEWEST} or more defenses with "
            f"{_group(group, groups)}: {', '.join(own)}."
        )
    if ranks:
        yield (
            f"  {sum(r.excludes_0 for r in ranks)} of {len(ranks)} intervals exclude 0; by chance "
            "alone one in twenty would. Stronger weights also cost accuracy: a correlation is no "
            "cause."
        )


def _group(group: tuple[int, int], groups: Collection[tuple[int, int]]) -> str:
    """Returns the part of (layers, images in a batch) in which groups differ, in words."""
    words = (f"{group[0]} layers", f"batches of {group[1]}")
    values = zip(*groups, strict=True)
    return ", ".join(w for w, own in zip(words, values, strict=True) if len(set(own)) > 1)


@own_style()
def draw(diagnosis: Diagnosis, measures: Sequence[str], stem: Path) -> list[Path]:
    """Writes a PNG and a PDF: defenses down, measures and layers across, train beside test.

    Numbers are means over seeds; a cell's colour is its share of the largest in its column.
    """
    defenses = list(diagnosis.values)
    columns = diagnosis.places(measures)
    if not defenses or not columns:
        return []
    figure = new_figure((2.2 + 0.42 * len(columns), 1.6 + 0.28 * len(defenses)))
    for s, split in enumerate(SPLITS):
        places = [w for w in columns if w[3] == split]
        means = [[_mean(diagnosis.values[d].get(w, ())) for w in places] for d in defenses]
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
        names = [f"{where[0]} {_symbol(where)}" for where in places]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(defenses)), defenses if s == 0 else [], fontsize=7)
        axes.tick_params(length=0)
        axes.set_title(f"{split} images", fontsize=8)
    return save_both(figure, stem)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else float("nan")
