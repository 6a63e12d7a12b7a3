"""How targets depend on their input, in closed form, and what is said of it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.data import Blobs
from mibench.defenses import MID, NoDefense, Recipe
from mibench.defenses.dependence import MEASURES
from mibench.networks import MCNN
from mibench.reporting import diagnostics
from mibench.reporting.cautions import control_table
from mibench.reporting.contrasts import reference
from mibench.reporting.diagnostics import (
    FEWEST,
    Diagnosis,
    Where,
    correlate,
    dependence_stages,
    diagnose,
    rank_correlation,
)
from mibench.running.grid import record_stages
from mibench.running.stages import ClassifierStage, ImagesStage
from mibench.running.stages.dependence import (
    PAIRS,
    SPLITS,
    DependenceStage,
    dependence_stage,
    dependences,
)
from mibench.seeding import seeded
from mibench.store import Payload, Stage, Store, Work
from mibench.types import Classifier, ImageSet

NAMES = tuple(MEASURES)


class Layers(Classifier):
    """Its latents are those given: functions of x."""

    def __init__(self, *maps: Any) -> None:
        super().__init__()
        self.num_classes = 2
        self.neck = nn.Identity()
        with seeded("shapes only"):
            self.last = nn.Linear(4, 2)
        self.maps = maps

    def latents(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(f(x.flatten(1)) for f in self.maps)


def pictures(n: int, rng: torch.Generator) -> ImageSet:
    pixels = torch.randint(0, 256, (n, 1, 2, 2), generator=rng, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(n) % 2)


def test_two_images_in_closed_form() -> None:
    pixels = torch.tensor([0, 0, 0, 0, 255, 255, 0, 0], dtype=torch.uint8).view(2, 1, 2, 2)
    batch = ImageSet(pixels, torch.tensor([0, 1]))
    found = dependences(Layers(lambda x: x, lambda x: 3 * x), batch, ["hsic"])
    near, far = (1 - math.exp(-d / (2 * 25 * 4)) for d in (2.0, 18.0))
    expected = [[near * near / 2 * 2, near * far], [near, far]]
    # K̃ = (1 - k)/2 [[1, -1], [-1, 1]]; with K of another such matrix the trace is (1 - k)(1 - l),
    # with the identity of two one-hot labels 1 - k; both over (n - 1)² = 1.
    assert found[0].tolist() == [pytest.approx(row) for row in expected]


def test_a_constant_layer_depends_on_nothing(rng: torch.Generator) -> None:
    network = Layers(lambda x: x, lambda x: torch.ones(len(x), 4))
    found = dependences(network, pictures(12, rng), NAMES)
    assert found.shape == (len(NAMES), 2, 2)
    assert (found[:, :, 1].abs() < 1e-9).all()
    assert (found[:, :, 0] > 1e-6).all()


def test_the_order_of_a_batch_does_not_matter(rng: torch.Generator) -> None:
    batch = pictures(16, rng)
    network = Layers(torch.sin, torch.sqrt)
    turned = batch.take(torch.randperm(16, generator=rng))
    a, b = (dependences(network, x, NAMES) for x in (batch, turned))
    assert torch.allclose(a, b, rtol=1e-6, atol=1e-12)


def test_labels_that_a_layer_shows_depend_on_it_more_than_shuffled_ones(
    rng: torch.Generator,
) -> None:
    batch = pictures(32, rng)
    shows = Layers(lambda x: 20.0 * batch.labels[:, None].expand(-1, 4))
    shuffled = ImageSet(batch.pixels, batch.labels[torch.randperm(32, generator=rng)])
    told, lost = (dependences(shows, x, NAMES)[:, 1, 0] for x in (batch, shuffled))
    assert (told > lost).all()


# The stage ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


TARGET = ClassifierStage(
    ImagesStage(Blobs(), "drawn"), "private",
    MCNN(widths=(4, 8, 8), kernels=(3, 3, 1), paddings=(1, 1, 0)),
    NoDefense(), Recipe(epochs=1), 0,
)  # fmt: skip


def made(store: Store, stage: DependenceStage) -> Payload:
    for needed in (stage.target.images, stage.target, stage):
        store.complete(needed)
    return store.load(stage)


def test_a_target_is_measured_in_every_layer_measure_pair_and_split(store: Store) -> None:
    payload = made(store, dependence_stage(TARGET))
    places = {(v["measure"], v["pair"], v["layer"], v["split"]) for v in payload["values"]}
    assert places == {
        (m, p, j, s) for m in NAMES for p in PAIRS for j in (1, 2, 3) for s in SPLITS
    }
    assert len(payload["values"]) == len(places)
    assert all(set(v) == {"layer", "measure", "pair", "split", "value"} for v in payload["values"])
    # 5 classes of 40 images, a tenth of the train ones held out for selection; batches of 64.
    assert payload["images"] == {"train": 128, "test": 192}


def test_what_selection_held_out_counts_as_train_only_where_it_was_trained_on(
    store: Store,
) -> None:
    last = replace(TARGET, recipe=replace(TARGET.recipe, select="last"))
    assert made(store, dependence_stage(last))["images"] == {"train": 192, "test": 192}


def test_the_value_is_the_mean_over_batches_of_different_images(store: Store) -> None:
    both, one = (
        made(store, DependenceStage(TARGET, ("hsic",), batch=96, batches=n)) for n in (2, 1)
    )
    assert both["images"] == {"train": 96, "test": 192}
    train = [[v["value"] for v in p["values"] if v["split"] == "train"] for p in (both, one)]
    assert train[0] == train[1], "a second batch needs other images"
    test = [[v["value"] for v in p["values"] if v["split"] == "test"] for p in (both, one)]
    assert test[0] != test[1]


def test_one_batch_of_all_test_images_is_measured_as_they_are(store: Store) -> None:
    payload = made(store, DependenceStage(TARGET, ("hsic",), batch=200, batches=1))
    test = TARGET.images.splits(store.load).private.test
    whole = dependences(TARGET.classifier(store.load, torch.device("cpu")), test, ["hsic"])
    found = {
        (v["pair"], v["layer"]): v["value"] for v in payload["values"] if v["split"] == "test"
    }
    for p, pair in enumerate(PAIRS):
        for j in range(3):
            assert found[pair, j + 1] == pytest.approx(whole[0, p, j].item(), rel=1e-5)


def test_another_seed_draws_other_images_and_the_same_seed_the_same(store: Store) -> None:
    first = made(store, dependence_stage(TARGET))
    other = made(store, replace(dependence_stage(TARGET), seed=1))
    again = dependence_stage(TARGET).compute(store.load, Work())
    assert again == first
    assert other["images"] == first["images"]
    assert other["values"] != first["values"]


def test_bad_fields_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown DependenceStage\.measures 'mi'"):
        DependenceStage(TARGET, ("mi",), 64)
    with pytest.raises(ValueError, match="batch must be at least 2"):
        DependenceStage(TARGET, NAMES, 1)


def test_rows_of_several_attacks_share_a_target_and_its_diagnosis() -> None:
    stages = dependence_stages(record_stages(TABLES["smoke"], 2, None))
    assert list(stages) == ["No Def.", "MID", "BiDO-COCO", "BiDO-HSIC"]
    assert len({s.key for own in stages.values() for s in own}) == 8


def test_one_label_for_two_targets_is_told_apart() -> None:
    table = TABLES["smoke"].only(["GMI / MID", "KED-MI / MID"])
    cell = table.rows["KED-MI / MID"]
    other = {**table.rows, "KED-MI / MID": replace(cell, defense=MID(lambda_=1))}
    stages = dependence_stages(record_stages(replace(table, rows=other), 1, None))
    assert list(stages) == ["GMI / MID", "KED-MI / MID"]


# Rank correlation ---------------------------------------------------------------------------


def test_the_correlation_and_its_interval_by_hand() -> None:
    found = rank_correlation([1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5])
    assert found.rho == pytest.approx(1 - 6 * 6 / (6 * 35))
    assert found.n == 6
    z, half = math.atanh(1 - 36 / 210), 1.959964 * math.sqrt(1.06 / 3)
    assert found.low == pytest.approx(math.tanh(z - half), abs=1e-6)
    assert found.high == pytest.approx(math.tanh(z + half), abs=1e-6)


def test_only_ranks_count_and_their_sign() -> None:
    x = [0.3, 1.0, 2.0, 5.0, 4.0, 9.0]
    y = [3.0, 1.0, 4.0, 1.5, 5.0, 9.0]
    found = rank_correlation(x, y)
    assert rank_correlation([math.exp(v) for v in x], [v**3 for v in y]) == found
    assert rank_correlation([-v for v in x], y).rho == pytest.approx(-found.rho)


def test_the_ends_of_the_range_have_no_interval() -> None:
    found = rank_correlation([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1])
    assert (found.rho, found.low, found.high) == (-1, None, None)


def test_too_few_or_constant_values_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 6 or more defenses, there are 5"):
        rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 6])
    with pytest.raises(ValueError, match="values that differ"):
        rank_correlation([1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6])


def test_of_the_fewest_defenses_about_one_interval_in_twenty_excludes_0_by_chance() -> None:
    ranks = range(FEWEST)
    found = [rank_correlation(ranks, order) for order in permutations(ranks)]
    beyond = [c for c in found if c.low is None or c.excludes_0]
    assert len(beyond) < 0.06 * len(found)
    page = (Path(__file__).parents[1] / "docs" / "protocols.md").read_text()
    assert FEWEST == 6
    assert page.count("fewer than six") == 2


@pytest.mark.parametrize("r", [0.0, 0.6])
def test_the_interval_covers_the_truth_at_the_size_where_it_is_used(r: float) -> None:
    rng = np.random.default_rng(0)
    truth, covered, trials = 6 / math.pi * math.asin(r / 2), 0, 400
    for _ in range(trials):
        x, e = rng.standard_normal((2, 13))
        found = rank_correlation(x.tolist(), (r * x + math.sqrt(1 - r * r) * e).tolist())
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / trials <= 0.98


# What is said -------------------------------------------------------------------------------

TABLE = TABLES["tradeoff-digits"]
RECORDS = record_stages(TABLE, 3, None)


class Made(Store):
    """Dependences and Attack Acc that both fall with the place of the defense in the table."""

    def __init__(self, gap: str = "") -> None:
        super().__init__(Path("nowhere"))
        self.places: dict[str, tuple[int, int]] = {}
        for i, (label, rows) in enumerate(RECORDS.items()):
            for seed, record in enumerate(rows):
                target = record.evidence[0].inversion.target.trained
                if label != gap or seed != 2:
                    self.places[record.key] = (i, seed)
                self.places[dependence_stage(target).key] = (i, seed)

    def state(self, stage: Stage) -> str:
        return "done" if stage.key in self.places else "missing"

    def load(self, stage: Stage) -> Payload:
        i, seed = self.places[stage.key]
        if stage.kind == "record":
            return {"scores": {"attack_acc": {"mean": 90 - 5 * i + seed}}}
        values = [
            {"measure": m, "pair": p, "layer": 1, "split": s,
             "value": (20 - i if p == "xz" else 5 + i % 4) + 0.01 * seed * (i % 3 + 1)}
            for m in ("nhsic", "coco_frobenius") for p in PAIRS for s in SPLITS
        ]  # fmt: skip
        return {"values": values, "images": {"train": 512, "test": 192}}


XZ: Where = ("nhsic", "xz", 1, "train")


def test_a_dependence_that_falls_with_leakage_is_said_to() -> None:
    found = diagnose(RECORDS, Made())
    assert found.missing == []
    correlation = correlate(found, "KED-MI", XZ, list(found.values))
    assert correlation.rho == 1
    assert correlation.n == 13, "seeds are no further defenses"
    text = diagnostics.text(found, ["nhsic"])
    for words in (
        "KED-MI, nhsic d(X,Z1): ρ = +1.00",
        "BiDO-HSIC (0.5, 0.5), nhsic d(X,Z): Z1 20.01 → 9.03*",
        "BiDO-COCO (1, 50), coco_frobenius d(X,Z): Z1 20.01 → 15.03*",
        "d(X,Z) is lower than in No Def. in 8 of 8 cases.",
        "d(Z,Y) is higher than in No Def. in 7 of 8 cases.",
        "512 train images; 192 test images",
    ):
        assert words in text


def test_records_that_are_not_there_are_named_and_leave_their_seed_out() -> None:
    found = diagnose(RECORDS, Made(gap="KED-MI / MID (1)"))
    assert found.missing == ["KED-MI / MID (1), seed 2"]
    assert found.leakage["KED-MI"]["MID (1)"] == [75, 76]
    assert "hence no leakage of: KED-MI / MID (1), seed 2." in diagnostics.text(found, ["nhsic"])


def test_dependences_of_other_seeds_are_no_pairs() -> None:
    store = Made()
    bare = next(label for label in RECORDS if label.endswith("No Def."))
    for label, seed in ((bare, 0), ("KED-MI / BiDO-HSIC (0.5, 0.5)", 2)):
        target = RECORDS[label][seed].evidence[0].inversion.target.trained
        del store.places[dependence_stage(target).key]
    text = diagnostics.text(diagnose(RECORDS, store), ["nhsic"])
    assert "BiDO-HSIC (0.5, 0.5), nhsic d(X,Z): --" in text


def some(found: Diagnosis, *defenses: str) -> Diagnosis:
    return replace(
        found,
        values={d: v for d, v in found.values.items() if d in defenses},
        targets={d: t for d, t in found.targets.items() if d in defenses},
    )


def deepened(found: Diagnosis, defenses: Sequence[str]) -> Diagnosis:
    """The same, where the targets of some defenses have a second layer."""
    deeper = {
        d: {**v, **{(m, p, 2, s): x for (m, p, _, s), x in v.items()}} if d in defenses else v
        for d, v in found.values.items()
    }
    return replace(found, values=deeper)


def test_layers_of_networks_of_another_depth_are_not_compared() -> None:
    found = diagnose(RECORDS, Made())
    last = list(found.values)[-6:]
    text = diagnostics.text(deepened(found, last[-3:]), ["nhsic"])
    assert "KED-MI, nhsic d(X,Z1): ρ = +1.00, no interval at the end of the range, n = 10" in text
    assert "KED-MI, nhsic d(X,Z2)" not in text
    assert (
        "Left out, since a rank correlation needs 6 or more defenses with 2 layers: "
        f"{', '.join(last[-3:])}." in text
    )
    text = diagnostics.text(deepened(found, last), ["nhsic"])
    for depth, layer, n in ((1, 1, 7), (2, 1, 6), (2, 2, 6)):
        assert f"KED-MI, {depth} layers, nhsic d(X,Z{layer}): ρ = +1.00" in text
        assert f"n = {n}" in text
    assert "1 layers, nhsic d(X,Z2)" not in text
    assert "Left out" not in text


def in_batches(found: Diagnosis, of: int, defenses: Sequence[str]) -> Diagnosis:
    """The same, where the targets of some defenses were trained in batches of ``of`` images."""
    targets = {
        d: replace(t, recipe=replace(t.recipe, batch_size=of)) if d in defenses else t
        for d, t in found.targets.items()
    }
    return replace(found, targets=targets)


def test_targets_of_other_sizes_of_batches_are_not_correlated_with_each_other() -> None:
    found = diagnose(RECORDS, Made())
    last = list(found.values)[-6:]
    text = diagnostics.text(in_batches(found, 7, last[-3:]), ["nhsic"])
    assert "KED-MI, nhsic d(X,Z1): ρ = +1.00, no interval at the end of the range, n = 10" in text
    assert (
        "Left out, since a rank correlation needs 6 or more defenses with batches of 7: "
        f"{', '.join(last[-3:])}." in text
    )
    text = diagnostics.text(in_batches(found, 7, last), ["nhsic"])
    for batch, n in ((64, 7), (7, 6)):
        assert f"KED-MI, batches of {batch}, nhsic d(X,Z1): ρ = +1.00" in text
        assert f"n = {n}" in text


def test_a_defense_is_compared_with_no_defense_of_its_own_recipe_and_network() -> None:
    """The first row without a defense, "No Def.", has batches of 64 here, MID (1) is made bare."""
    bare, other, own = "No Def.", "MID (1)", "BiDO-HSIC (0.5, 0.5)"
    found = some(diagnose(RECORDS, Made()), bare, other, own)
    undefended = replace(found.targets[other], defense=NoDefense())
    found = replace(found, targets={**found.targets, other: undefended})
    text = diagnostics.text(in_batches(found, 7, [other, own]), ["nhsic"])
    assert f"train images, {other} → the defense" in text
    assert f"  {own}, nhsic d(X,Z): Z1 17.01 → 9.03" in text
    assert f"  d(X,Z) is lower than in {other} in 1 of 1 cases." in text
    assert f"than in {bare}" not in text
    two = in_batches(some(diagnose(RECORDS, Made()), bare, "BiDO-HSIC (1, 0.5)", own), 7, [own])
    text = diagnostics.text(two, ["nhsic"])
    assert "  BiDO-HSIC (1, 0.5), nhsic d(X,Z): Z1 20.01 → " in text
    assert f"same setting and recipe: {own}." in text
    deep = replace(found.targets[own], network=MCNN())
    text = diagnostics.text(replace(found, targets={**found.targets, own: deep}), ["nhsic"])
    assert "a row without defense of the same setting and recipe." in text


def test_bido_plus_is_compared_with_no_defense_by_its_own_recipe() -> None:
    names = ("KED-MI / No Def. (SGD)", "KED-MI / No Def. (outliers)", "KED-MI / BiDO+")
    table = TABLES["defenses-celeba"].only(names)
    targets = {
        d: own[0].target for d, own in dependence_stages(record_stages(table, 1, None)).items()
    }
    found = Diagnosis({}, targets, {}, {}, [])
    assert found.reference("BiDO+") == "No Def. (outliers)"
    assert reference(table, "KED-MI / BiDO+") == "KED-MI / No Def. (outliers)"


def test_what_cannot_be_said_is_said_so() -> None:
    few = some(diagnose(RECORDS, Made()), "MID (1)", "MID (2)")
    text = diagnostics.text(few, ["nhsic"])
    assert "needs 6 or more defenses, there are 2" in text
    assert "takes rows of such defenses, as BiDO, and a row without defense" in text
    silent = diagnostics.text(replace(few, leakage={}), ["nhsic"])
    assert "No record of these targets has an Attack Acc." in silent


def test_the_files_hold_every_value_and_are_the_same_twice(tmp_path: Path) -> None:
    found = diagnose(RECORDS, Made())
    first = [p.read_bytes() for p in diagnostics.draw(found, ["nhsic"], tmp_path / "x")]
    again = [p.read_bytes() for p in diagnostics.draw(found, ["nhsic"], tmp_path / "x")]
    assert first == again
    assert [b[1:4] for b in first] == [b"PNG", b"PDF"]
    table = diagnostics.csv(found)
    assert len(table.splitlines()) == 1 + 13 * 2 * 2 * 2
    assert '"BiDO-COCO (1, 50)",nhsic,xz,1,train,15.03,' in table


# The command --------------------------------------------------------------------------------


def call(folder: Path, *arguments: str) -> Any:
    where = ["--store", str(folder / "store"), "--out", str(folder / "out")]
    return CliRunner().invoke(main, ["run", *arguments, "--until", "dependence", *where])


def test_an_unknown_measure_is_one_sentence(tmp_path: Path) -> None:
    done = call(tmp_path, "smoke", "--measure", "mi")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: unknown measure 'mi'; known: hsic")
    assert not (tmp_path / "store").exists()


def test_diagnose_trains_measures_and_the_second_time_computes_nothing(tmp_path: Path) -> None:
    few = ["smoke", "--rows", "* / No Def.", "--rows", "GMI / BiDO-HSIC",
           "--set", "recipe.epochs=1", "--executor", "serial"]  # fmt: skip
    first = call(tmp_path, *few)
    assert first.exit_code == 0, first.output
    assert "5 stages computed" in first.stderr  # images, two targets, and what each depends on
    assert "Not in the store, hence no leakage of: GMI / No Def., seed 0;" in first.stdout
    for suffix in ("csv", "png", "pdf"):
        assert (tmp_path / "out" / f"smoke-modified-dependence.{suffix}").stat().st_size > 0
    again = call(tmp_path, *few)
    assert "nothing computed: 0 stages computed, 5 found" in again.stderr
    assert again.stdout == first.stdout


def test_clean_keeps_diagnoses_and_controls_of_built_in_tables(tmp_path: Path) -> None:
    stage = dependence_stage(RECORDS["KED-MI / MID (1)"][0].evidence[0].inversion.target.trained)
    digest = TABLES["tradeoff-digits"].rows["KED-MI / MID (1)"].setting.task.digest(tmp_path)
    target = replace(stage.target, images=replace(stage.target.images, digest=digest))
    kept = tmp_path / "store" / "dependence" / dependence_stage(target).key
    lost = tmp_path / "store" / "dependence" / "0123"
    smoke = control_table(TABLES["smoke"])
    (control,) = record_stages(smoke, 1, tmp_path)["GMI / No Def."]
    of_control = tmp_path / "store" / "record" / control.key
    for path in (kept, lost, of_control):
        path.mkdir(parents=True)
    where = ["--store", str(tmp_path / "store"), "--data", str(tmp_path)]
    done = CliRunner().invoke(
        main, ["store", "clean", "--orphans", "--yes", "--seeds", "1", *where]
    )
    assert done.exit_code == 0, done.output
    assert kept.exists()
    assert of_control.exists()
    assert not lost.exists()
