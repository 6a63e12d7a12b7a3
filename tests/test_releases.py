"""Releases: what an owner lets out of a trained target's scores."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from mibench.attacks import GMI, WGANGP, BlackBox, Goal
from mibench.attacks.access import Query
from mibench.attacks.controls import OtherClass
from mibench.benchmarks.cell import Cell
from mibench.benchmarks.tables import TABLES, Table
from mibench.cli import main
from mibench.data.synthetic import Blobs
from mibench.defenses import (
    DEFENSES,
    MID,
    LabelOnly,
    NoDefense,
    Release,
    Released,
    Rounding,
    TopK,
)  # fmt: skip
from mibench.evaluation import METRICS, Evidence
from mibench.networks import MLP
from mibench.reporting.diagnostics import dependence_stages
from mibench.reporting.records import digest, write
from mibench.reporting.verify import check
from mibench.roles import Defense, PriorSpec
from mibench.running.checks import tiny
from mibench.running.executors import Bench, Serial, execute
from mibench.running.grid import Grid
from mibench.running.progress import Watcher
from mibench.running.stages import RecordStage, ReleaseStage, graph, record_stage
from mibench.seeding import generator, seeded
from mibench.spec import canonical, fingerprint
from mibench.store import Store, Work
from mibench.ties import in_top
from mibench.types import Access, Classifier, Images, ImageSet, Prior, Reconstructions, predict
from tests.golden import TIGHT, read

TASK = Blobs(num_classes=4)
GOLDEN: Any = read("defenses/10-output-and-low-rank")["top-k, rounding, temperature"]
SCORES = torch.tensor(read("defenses/10-output-and-low-rank")["SSD"]["f"], dtype=torch.float64)
"""Six rows of scores, rounded to twelve digits."""
RELEASES = {name: cls for name, cls in DEFENSES.items() if issubclass(cls, Release)}
NO_IMAGES = torch.zeros(6, 1, 1, 1)


def let_out(release: Release, probs: Tensor) -> Tensor:
    x = torch.zeros(len(probs), 1, 1, 1)
    return release(probs, x, {}, generator("release"))


# The shipped ones ---------------------------------------------------------------------------


@pytest.mark.parametrize(("decimals", "step"), [(1, "0.1"), (2, "0.01"), (3, "0.001")])
def test_rounding_has_the_golden_values(decimals: int, step: str) -> None:
    want = GOLDEN["rounding: round half to even of f/r, times r"][step]
    assert let_out(Rounding(decimals), SCORES).tolist() == [
        pytest.approx(row, abs=TIGHT) for row in want
    ]


def test_rounding_takes_halves_to_the_even_digit() -> None:
    halves = torch.tensor([[0.125, 0.375, 0.5]], dtype=torch.float64)
    assert let_out(Rounding(2), halves).tolist() == [[0.12, 0.38, 0.5]]


def test_top_k_has_the_golden_values() -> None:
    want = GOLDEN["top-3, others 0"]
    assert let_out(TopK(3), SCORES).tolist() == [pytest.approx(row, abs=TIGHT) for row in want]


def test_top_k_keeps_all_that_equal_the_last_and_no_more_than_there_are() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.25, 0.25]])
    assert let_out(TopK(2), probs).tolist() == [pytest.approx([0, 0.4, 0.25, 0.25])]
    assert torch.equal(let_out(TopK(9), probs), probs)


def test_label_only_lets_out_the_first_class_and_equals_share() -> None:
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])
    assert let_out(LabelOnly(), probs).tolist() == [[0, 1, 0], [0.5, 0, 0.5]]


@pytest.mark.parametrize("name", RELEASES)
def test_scores_are_in_range_and_a_repeatable_release_answers_alike_in_any_company(
    name: str,
) -> None:
    release: Release = tiny(RELEASES[name])
    pixels = torch.randint(256, (10, 1, 4, 4), generator=generator("held out")).byte()
    held_out = ImageSet(pixels, torch.arange(10) % 5)

    def answer(images: ImageSet) -> Tensor:
        return (3 * images.images.flatten(1)[:, :5]).softmax(1)

    with seeded("fit"):
        state = release.fit(answer, held_out, generator("fit"), Work())
    x = torch.rand(6, 1, 4, 4, generator=generator("x"))

    def ask(index: Tensor, draw: int) -> Tensor:
        return release(SCORES[index], x[index], state, generator("ask", draw))

    whole = ask(torch.arange(6), 0)
    assert whole.shape == SCORES.shape
    assert ((whole >= 0) & (whole <= 1)).all()
    alone = torch.cat([ask(torch.tensor([i]), 1 + i) for i in range(6)])
    assert torch.equal(alone, whole) == release.repeatable


@pytest.mark.parametrize("name", RELEASES)
def test_how_classes_are_numbered_makes_no_difference_if_nothing_is_learnt(name: str) -> None:
    release: Release = tiny(RELEASES[name])
    if not release.learns and release.repeatable:
        assert torch.equal(let_out(release, SCORES.flip(1)), let_out(release, SCORES).flip(1))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Rounding(7), "Rounding.decimals must be in [0, 6], got 7"),
        (lambda: TopK(0), "TopK.k must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make()


def test_a_release_trains_as_its_inner_defense_does() -> None:
    inner = MID(lambda_=0.1)
    release = Rounding(2, inner=inner)
    with seeded("a"):
        hardened = release.harden(MLP().build(TASK.shape, 4))
    assert hardened.noise_dim
    assert release.twin() == inner.twin() == MID(lambda_=0)
    assert Rounding(2).twin() == NoDefense()


# A query ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backwards(Release):
    """Lets out the scores of the classes in reverse order."""

    name: ClassVar[str] = "backwards"

    inner: Defense = field(default_factory=NoDefense)

    def __call__(
        self, probs: Tensor, x: Images, state: dict[str, Tensor], rng: torch.Generator
    ) -> Tensor:
        assert len(probs) == len(x)
        return probs.flip(1)


@pytest.fixture
def target() -> Classifier:
    with seeded("test"):
        network = MLP().build(TASK.shape, TASK.num_classes)
    return network.eval().requires_grad_(requires_grad=False)


def test_a_query_answers_through_the_release_and_counts_as_before(target: Classifier) -> None:
    work = Work()
    x = torch.rand(5, *TASK.shape, generator=generator("x"))
    scores = Query(target, "scores", work, 8, Released(Backwards(), {}))
    assert torch.equal(scores(x), target(x).softmax(1).flip(1))
    assert (work.queries, scores.remaining) == (5, 3)
    with pytest.raises(ValueError, match="5 more answers, but 3 remain of its limit of 8"):
        scores(x)
    assert work.queries == 5
    labels = Query(target, "labels", work, 99, Released(Backwards(), {}))
    assert torch.equal(labels(x), 3 - target(x).argmax(1))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (lambda p: p[:1], "the release bad must return scores of shape (5, 4), got (1, 4)"),
        (lambda p: None, "the release bad must return scores of shape (5, 4), got NoneType"),
        (lambda p: p - 1, "the release bad must return scores in [0, 1]"),
        (lambda p: p * float("nan"), "the release bad must return scores in [0, 1]"),
    ],
)
def test_what_a_release_must_not_return(value: Any, sentence: str, target: Classifier) -> None:
    @dataclass(frozen=True)
    class Bad(Backwards):
        name: ClassVar[str] = "bad"

        def __call__(self, probs: Any, x: Any, state: Any, rng: Any) -> Any:
            return value(probs)

    x = torch.rand(5, *TASK.shape, generator=generator("x"))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Query(target, "scores", Work(), released=Released(Bad(), {}))(x)


def test_stored_scores_are_logarithms_and_zero_counts_as_little(target: Classifier) -> None:
    logits = torch.tensor([[0.0, 30.0, -80.0]])
    stored = Released(LabelOnly(), {}).logits(logits, NO_IMAGES[:1], generator("x"))
    assert stored.tolist() == [pytest.approx([-27.631, 0, -27.631], abs=1e-3)]  # log 1e-12


# Cells --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask(BlackBox):
    """Asks once about what the prior draws; what it is answered stands in for latents."""

    name: ClassVar[str] = "ask"
    access: ClassVar[Access] = "scores"

    prior: PriorSpec = field(default_factory=WGANGP)
    max_queries: int = 0

    def invert(self, target: Query, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        images = goal.reconstructions(prior, goal.draws(prior)).images
        answers = target(images.flatten(0, 1))
        return Reconstructions(images, answers.view(*images.shape[:2], -1))


@dataclass(frozen=True)
class Mean(Release):
    """Mixes scores with the mean over held-out images, and draws anew whenever it is asked."""

    name: ClassVar[str] = "mean"
    repeatable: ClassVar[bool] = False

    inner: Defense = field(default_factory=NoDefense)

    def fit(
        self, answer: Any, held_out: ImageSet, rng: torch.Generator, work: Work
    ) -> dict[str, Tensor]:
        noise = torch.rand(answer(held_out).shape[1], generator=rng)
        return {"mean": answer(held_out).mean(0), "noise": noise, "held_out": held_out.labels}

    def __call__(
        self, probs: Tensor, x: Images, state: dict[str, Tensor], rng: torch.Generator
    ) -> Tensor:
        share = torch.rand(len(probs), 1, generator=rng)
        return share * probs + (1 - share) * state["mean"]


def cells(setting: tuple[str, ...] = ()) -> dict[str, Cell]:
    settings = ["attack.prior.epochs=1", "attack.steps=1", "recipe.epochs=2", *setting]
    plain = TABLES["smoke"].modified(settings).rows["GMI / No Def."]
    plain = replace(plain, attack=Ask(plain.attack.prior))
    defenses = {
        "No Def.": NoDefense(), "Rounding": Rounding(1), "Mean": Mean(),
        "Labels": LabelOnly(MID(lambda_=0.02)),
    }  # fmt: skip
    return {f"Ask / {name}": replace(plain, defense=d) for name, d in defenses.items()}


TABLE = Table(name="t", caption="t", rows=cells())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, RecordStage], Store]:
    drawn = next(iter(TABLE.rows.values())).setting.task.digest(Path())
    records = {k: record_stage(c, TABLE.columns, drawn) for k, c in TABLE.rows.items()}
    root = tmp_path_factory.mktemp("store")
    outcome = execute(graph(records.values()), Bench(root, Path()), Watcher(), Serial())
    assert not outcome.failures
    return records, Store(root)


def test_one_trained_target_serves_all_releases_of_it(
    done: tuple[Mapping[str, RecordStage], Store],
) -> None:
    records, _ = done
    targets = {k.partition(" / ")[2]: r.evidence[0].inversion.target for k, r in records.items()}
    plain = targets["No Def."]
    assert targets["Rounding"].trained == targets["Mean"].trained == plain.trained == plain
    assert targets["Labels"].trained != plain
    assert len({t.key for t in targets.values()}) == 4
    kinds = [s.kind for s in graph([records["Ask / Mean"]])]
    assert kinds == [
        "images", "classifier", "release", "prior", "inversion", "classifier", "evidence",
        "record",
    ]  # fmt: skip
    assert "release" not in [s.kind for s in graph([records["Ask / No Def."]])]
    assert targets["Labels"].title == "label-only of mid lambda=0.02"
    assert records["Ask / Labels"].evidence[0].inversion.describe() == (
        "ask on label-only of mid lambda=0.02"
    )


def test_an_attack_is_answered_through_the_release(
    done: tuple[Mapping[str, RecordStage], Store],
) -> None:
    records, store = done
    plain, rounded = (
        store.load(records[f"Ask / {name}"].evidence[0].inversion)
        for name in ("No Def.", "Rounding")
    )
    assert torch.equal(plain["images"], rounded["images"])
    assert torch.equal(plain["latents"].round(decimals=1), rounded["latents"])
    assert plain["budget"] == rounded["budget"]


def test_scores_utility_and_distance_are_those_of_what_is_let_out(
    done: tuple[Mapping[str, RecordStage], Store],
) -> None:
    records, store = done
    plain = store.load(records["Ask / No Def."].evidence[0])
    rounded = store.load(records["Ask / Rounding"].evidence[0])
    assert torch.equal(plain["logits"], rounded["logits"])  # the evaluator's, of equal images
    for name in ("target_logits", "test_logits"):
        want = plain[name].softmax(1).round(decimals=1)
        assert torch.equal(rounded[name], want.clamp(min=1e-12).log())
    record = store.load(records["Ask / Rounding"])
    probs = plain["test_logits"].softmax(1)
    distance = (probs.round(decimals=1) - probs).abs().sum(1).mean().item()
    assert record["facts"] == {"score_distance": pytest.approx(distance)}
    accuracy = 100 * in_top(probs.round(decimals=1), plain["test_labels"]).mean().item()
    assert record["scores"]["accuracy"]["mean"] == pytest.approx(accuracy)
    stage = records["Ask / Rounding"].evidence[0].inversion.target
    assert isinstance(stage, ReleaseStage)
    assert store.load(stage)["accuracy"] == pytest.approx(accuracy)
    assert "facts" not in store.load(records["Ask / No Def."])
    assert record["budget"]["queries"] == 50


def test_a_release_learns_from_held_out_images_and_draws_from_streams_of_its_own(
    done: tuple[Mapping[str, RecordStage], Store],
) -> None:
    records, store = done
    stage = records["Ask / Mean"].evidence[0].inversion.target
    assert isinstance(stage, ReleaseStage)
    state = store.load(stage)["state"]
    private = stage.images.splits(store.load).private
    held_out = private.train.take(private.validation)
    assert torch.equal(state["held_out"], held_out.labels)
    network = stage.classifier(store.load, torch.device("cpu"))
    answers = predict(network, held_out, generator("any"))[0].softmax(1)
    torch.testing.assert_close(state["mean"], answers.mean(0))
    assert torch.equal(state["noise"], torch.rand(5, generator=generator(0, "release", "mean")))
    plain = store.load(records["Ask / No Def."].evidence[0])["test_logits"].softmax(1)
    share = torch.rand(len(plain), 1, generator=generator(0, "release", "test"))
    want = share * plain + (1 - share) * state["mean"]
    found = store.load(records["Ask / Mean"].evidence[0])["test_logits"]
    torch.testing.assert_close(found, want.log())


def test_a_class_without_held_out_images_is_refused(tmp_path: Path) -> None:
    cell = cells(("setting.task.validation=0.001",))["Ask / Mean"]
    last = record_stage(cell, ("accuracy",), cell.setting.task.digest(Path()))
    stage = last.evidence[0].inversion.target
    trained = stage.trained
    # Such a target is trained on all images only if nothing is selected by the held-out ones.
    last_epoch = replace(trained, recipe=replace(trained.recipe, select="last"))
    stage = ReleaseStage(last_epoch, Mean())
    outcome = execute(graph([stage]), Bench(tmp_path, Path()), Watcher(), Serial())
    (sentence,) = outcome.failures.values()
    assert "mean learns from held-out images of every class, and class 0 has none" in sentence


def test_a_release_has_no_latents_of_its_own_to_diagnose(
    done: tuple[Mapping[str, RecordStage], Store],
) -> None:
    records, _ = done
    assert list(dependence_stages({k: [r] for k, r in records.items()})) == ["No Def."]


def test_records_of_releases_are_published_checked_and_compared(
    done: tuple[Mapping[str, RecordStage], Store], tmp_path: Path
) -> None:
    records, store = done
    paths = write(Grid(TABLE, {k: [r] for k, r in records.items()}, store), tmp_path)
    assert [check(path).problem for path in paths] == [""] * 4
    assert json.loads(paths[1].read_text())["payload"]["facts"].keys() == {"score_distance"}
    told = CliRunner().invoke(main, ["compare", "--by-key", str(store.root), str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert "4 agree and 0 differ" in told.output


def test_a_record_that_passes_off_another_defense_as_what_is_behind_a_release_is_found(
    done: tuple[Mapping[str, RecordStage], Store], tmp_path: Path
) -> None:
    records, store = done
    plain = records["Ask / No Def."].evidence[0].inversion.target
    (path,) = write(Grid(TABLE, {"Ask / Labels": [records["Ask / Labels"]]}, store), tmp_path)
    evidence = records["Ask / Labels"].evidence[0]
    trained = evidence.inversion.target.trained
    for target, problem in (
        (plain, f"classifier/{plain.key}.defense is not the cell's defense"),
        (ReleaseStage(plain.trained, LabelOnly(MID(lambda_=0.02))),
         f"classifier/{plain.key}.defense is not the cell's defense"),
        (strange := ReleaseStage(trained, TopK(1)),
         f"release/{strange.key}.defense is not the cell's defense"),
    ):  # fmt: skip
        record = json.loads(path.read_text())
        below = graph([replace(evidence, inversion=replace(evidence.inversion, target=target))])
        last = record["stages"][-1]
        last["identity"]["evidence"] = [{"is": "evidence", "key": below[-1].key}]
        last["key"] = record["key"] = fingerprint(last["identity"])
        told: list[Any] = [{"key": s.key, "identity": canonical(s.identity)} for s in below]
        record |= {"stages": [*told, last], "runs": {}}
        record["payload"]["stages"] = [f"{s.kind}/{s.key}" for s in below]
        record["sha256"] = digest(record)
        (tmp_path / "forged.json").write_text(json.dumps(record))
        assert check(tmp_path / "forged.json").problem == problem


# What is refused ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Bare(Backwards):
    """Has an inner that is no defense."""

    name: ClassVar[str] = "bare"

    inner: Any = 3


SMOKE = TABLES["smoke"].rows
ASK = cells()["Ask / No Def."]


@pytest.mark.parametrize(
    ("cell", "error", "sentence"),
    [
        (replace(SMOKE["GMI / No Def."], defense=Rounding(2)), ValueError,
         "not applicable: gmi sees the whole target, and the release rounding changes its "
         "answers alone; take a black-box attack, or the row of none without the release"),
        (replace(ASK, defense=Rounding(2), attack=Ask(SMOKE["KED-MI / No Def."].attack.prior)),
         ValueError, "not applicable: ask's prior inversion-gan sees the whole target"),
        (replace(ASK, defense=Rounding(2), control=OtherClass(ASK.attack.prior)),
         ValueError, "not applicable: other-class"),
        (replace(ASK, defense=Mean(), recipe=replace(ASK.recipe, select="last")), ValueError,
         "mean learns from images that the target is not trained on, and recipe.select=last "
         "holds none out: set recipe.select=validation"),
        (replace(ASK, defense=TopK(2, inner=Rounding(2))), ValueError,
         "top-k is a release of the release rounding"),
        (replace(ASK, defense=Bare()), TypeError,
         "Bare.inner must be an object of a class that derives from mibench.Defense, got int"),
    ],
)  # fmt: skip
def test_a_cell_that_a_release_does_not_fit_is_refused_with_a_sentence(
    cell: Cell, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        cell.check()
    with pytest.raises(error, match=re.escape(sentence)):
        Table(name="t", caption="t", rows={"A / B": cell})


def test_a_release_without_inner_is_told_what_to_write() -> None:
    class Empty(Release):
        name: ClassVar[str] = "empty"

        def __call__(self, probs: Any, x: Any, state: Any, rng: Any) -> Any:
            return probs

    with pytest.raises(TypeError, match="Empty has no inner: write inner: Defense = field"):
        Empty().refuse(ASK)


def test_a_release_that_learns_nothing_takes_any_recipe() -> None:
    recipe = replace(ASK.recipe, select="last")
    replace(ASK, defense=Rounding(2), recipe=recipe).check()


def test_an_attack_that_sees_the_target_is_not_handed_one_behind_a_release(
    done: tuple[Mapping[str, RecordStage], Store], tmp_path: Path
) -> None:
    records, _ = done
    run = records["Ask / Rounding"].evidence[0].inversion
    white = replace(run, attack=GMI(run.attack.prior))
    outcome = execute(graph([white]), Bench(tmp_path, Path()), Watcher(), Serial())
    (sentence,) = outcome.failures.values()
    assert "gmi sees the whole target, and a release changes its answers alone" in sentence


@pytest.mark.parametrize("release", [TopK(1), Rounding(0)])
def test_the_confidence_behind_a_release_is_the_score_that_it_lets_out(release: Release) -> None:
    probs = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.4, 0.3, 0.2, 0.1]])
    out = let_out(release, probs).clamp(min=1e-12).log()
    e = Evidence(
        labels=torch.tensor([1, 0]), block=torch.zeros(2, dtype=torch.long),
        passes=torch.zeros(2, dtype=torch.long), logits=torch.eye(2, 4), features={},
        real_labels=torch.tensor([0]), test_logits=torch.eye(1, 4),
        test_labels=torch.tensor([0]), target_logits=out, released=True,
    )  # fmt: skip
    values = METRICS["confidence"].compute(e)
    assert values == pytest.approx([40, 40] if isinstance(release, TopK) else [0, 0], abs=1e-4)
    restored = Evidence.restored(e.stored())
    assert restored.released
    assert "released" not in replace(e, released=False).stored()
