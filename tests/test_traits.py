"""Traits read from images, compared with the true ones."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from mibench.benchmarks.tables import Table
from mibench.data import Avatars, Blobs, Splits, Task
from mibench.evaluation import METRICS, Compared, Evidence, Tools, UndefinedError
from mibench.evaluation.lenses import EVALUATOR
from mibench.evaluation.regressors import (
    ResidualReader,
    StridedReader,
    TraitReader,
    degraded,
    errors,
    r2,
)
from mibench.evaluation.traits import BOTH, FIRST, SECOND
from mibench.networks import MLP
from mibench.precision import BF16, at
from mibench.reporting import leaks
from mibench.reporting.page import page, pictures
from mibench.running.executors import Bench, Serial, execute
from mibench.running.grid import Grid
from mibench.running.progress import Watcher
from mibench.running.stages import EvidenceStage, LensEvidence, LensStage, graph, record_stage
from mibench.seeding import generator, seeded
from mibench.store import Payload, Store, Work
from tests.test_controls import small_cell

TASK = Avatars(num_classes=3, size=16, images=4, tests=2, evaluation=4, strangers=6, each=2)
SMALL = {"images": 40, "steps": 6, "batch": 8, "held_out": 20}
READERS = [StridedReader(**SMALL), ResidualReader(**SMALL)]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return TASK.load(Path())


@pytest.fixture(scope="module", params=READERS, ids=lambda r: r.name)
def trained(request: pytest.FixtureRequest, splits: Splits) -> tuple[TraitReader, Payload]:
    lens: TraitReader = request.param
    return lens, lens.train(TASK, splits, Work())


# The readers ----------------------------------------------------------------------------------


def test_a_training_gives_the_same_bits_again_whatever_was_drawn_before(
    trained: tuple[TraitReader, Payload], splits: Splits
) -> None:
    lens, payload = trained
    with seeded("another"):
        again = lens.train(TASK, splits, Work())
    assert again["state"].keys() == payload["state"].keys()
    for name, weight in payload["state"].items():
        assert torch.equal(again["state"][name], weight)
    for name in ("clean", "degraded", "weights", "truth"):
        assert torch.equal(again[name], payload[name])


def test_an_interrupted_training_ends_in_the_same_bits(
    trained: tuple[TraitReader, Payload], splits: Splits, tmp_path: Path
) -> None:
    lens, payload = trained

    class Stopped(Work):
        def progress(self, done: int, total: int, note: str = "") -> None:
            super().progress(done, total, note)
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lens.train(TASK, splits, Stopped(tmp_path, every=0))
    resumed = Work(tmp_path)
    again = lens.train(TASK, splits, resumed)
    assert resumed.load() is not None
    for name, weight in payload["state"].items():
        assert torch.equal(again["state"][name], weight)


def test_it_learns_in_bf16_and_reads_in_float32(
    trained: tuple[TraitReader, Payload], splits: Splits
) -> None:
    lens, payload = trained
    with at(BF16):
        narrow = lens.train(TASK, splits, Work())
        x = TASK.fresh(lens.name, 8)[0].float() / 255
        read = lens.readings(x, payload)
    assert torch.equal(read, lens.readings(x, payload))
    pairs = [(weight, narrow["state"][name]) for name, weight in payload["state"].items()]
    assert all(own.dtype == other.dtype for own, other in pairs)
    assert not all(torch.equal(own, other) for own, other in pairs)


def test_it_says_how_well_it_reads_each_trait_and_weighs_by_that(
    trained: tuple[TraitReader, Payload],
) -> None:
    lens, payload = trained
    pixels, truth = TASK.fresh(f"{lens.name} held out", lens.held_out)
    x = pixels.float() / 255
    assert torch.equal(payload["clean"], r2(lens.readings(x, payload), truth))
    worse = lens.readings(degraded(x, generator(lens.name, "held out")), payload)
    assert torch.equal(payload["degraded"], r2(worse, truth))
    assert torch.equal(payload["weights"], payload["degraded"].clamp(min=0))
    assert torch.equal(payload["truth"], TASK.truth(torch.arange(3)))


def test_it_learns_from_persons_who_are_neither_private_nor_those_it_is_measured_on() -> None:
    asked: list[tuple[str, int]] = []

    class Watched(Avatars):
        def fresh(self, part: str, count: int) -> tuple[Tensor, Tensor]:
            asked.append((part, count))
            return super().fresh(part, count)

    lens = READERS[0]
    task = Watched(**vars(TASK))
    lens.train(task, task.load(Path()), Work())
    assert asked == [(lens.name, 40), (f"{lens.name} held out", 20)]
    people = [TASK.fresh(part, n)[1] for part, n in asked] + [TASK.truth(torch.arange(3))]
    rows = [tuple(row.tolist()) for part in people for row in part]
    assert len(set(rows)) == len(rows)


def test_half_of_each_batch_is_degraded(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> None:
    counts: list[int] = []

    def counting(x: Tensor, rng: torch.Generator) -> Tensor:
        counts.append(len(x))
        return degraded(x, rng)

    monkeypatch.setattr("mibench.evaluation.regressors.degraded", counting)
    READERS[0].train(TASK, splits, Work())
    assert counts == [4] * 6 + [20]


def test_it_reads_what_is_there_after_a_longer_training() -> None:
    task = replace(TASK, vary=0.2)
    lens = StridedReader(images=400, steps=60, batch=32, held_out=100)
    payload = lens.train(task, task.load(Path()), Work())
    best = dict(zip(task.traits, payload["clean"].tolist(), strict=True))
    assert best["skin"] > 0.3
    assert best["hair_tone"] > 0.3
    real = task.load(Path()).private.train
    with seeded("not asked"):
        tools = Tools(MLP().build(task.shape, 3), "-", Work(), state=payload)
    found = lens.features(real.images, tools)
    assert found.shape == (12, 3)
    assert (found.argmin(1) == real.labels).float().mean() > 0.7


def test_the_two_readers_are_of_different_architecture_and_draw_different_persons() -> None:
    with seeded("test"):
        kinds = [{type(m) for m in lens.build(3, 27).modules()} for lens in BOTH]
    assert torch.nn.BatchNorm2d in kinds[0] - kinds[1]
    assert torch.nn.GroupNorm in kinds[1] - kinds[0]
    assert FIRST.name != SECOND.name


@pytest.mark.parametrize("lens", READERS, ids=lambda r: r.name)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 57)])
def test_images_of_any_size_and_of_one_channel_are_read(
    lens: TraitReader, channels: int, size: int
) -> None:
    with seeded("test"):
        network = lens.build(channels, 5).eval()
    state = {"state": network.state_dict(), "truth": torch.zeros(2, 5)}
    x = torch.rand(3, channels, size, size, generator=generator("x"))
    assert lens.readings(x, state).shape == (3, 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("images", 1), ("steps", 0), ("batch", 1), ("lr", 0.0), ("held_out", 1), ("side", 7)],
)
def test_bad_fields_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"StridedReader\.{field} must be"):
        StridedReader(**{field: value})


# Arithmetic -------------------------------------------------------------------------------------


def test_r2_is_one_for_the_truth_zero_for_the_mean_and_negative_for_worse() -> None:
    truth = torch.tensor([[0.0, 0.0, 0.0, 3.0], [1.0, 1.0, 1.0, 3.0]])
    read = torch.tensor([[0.0, 0.5, 1.0, 1.0], [1.0, 0.5, 0.0, 2.0]])
    assert r2(read, truth).tolist() == [1, 0, -3, 0]


def test_an_error_is_a_weighted_mean_of_squares() -> None:
    read, truth = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[1.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    found = errors(read, truth, torch.tensor([3.0, 1.0, 0.0]))
    assert found.tolist() == [pytest.approx([3 * 1 / 4, 4 / 4])]
    assert errors(read, truth, torch.zeros(3)).tolist() == [[0, 0]]


def test_degraded_images_stay_in_range_and_depend_on_the_stream_alone() -> None:
    x = torch.rand(6, 3, 32, 32, generator=generator("x"))
    once, again = (degraded(x, generator("d")) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, degraded(x, generator("e")))
    assert once.shape == x.shape
    assert float(once.min()) >= 0
    assert float(once.max()) <= 1
    flat = degraded(torch.full((50, 3, 32, 32), 0.5), generator("d"))
    noise = flat.std((1, 2, 3))  # neither blur, shift, saturation nor contrast changes a grey one
    assert float(noise.min()) < 0.02
    assert 0.08 < float(noise.max()) < 0.11


def test_degraded_images_are_moved_blurred_and_more_colourful() -> None:
    x = torch.full((200, 3, 32, 32), 0.4)
    x[:, 0, 12:20, 12:20] = 0.6
    worse = degraded(x, generator("d"))
    spots = (worse[:, 0] - worse[:, 1]).clamp(min=0)
    line = torch.arange(32.0)
    rows = (spots.sum(2) * line).sum(1) / spots.sum((1, 2))
    assert float(rows.max() - rows.min()) > 2
    sharpness = spots.diff(dim=1).amax((1, 2)) / spots.amax((1, 2))
    assert float(sharpness.max()) > 2 * float(sharpness.min())
    colour = spots[:, 15:17, 15:17].mean((1, 2))
    assert float(colour.mean()) > 0.25  # of 0.2


# Metrics ----------------------------------------------------------------------------------------


def evidence(*by_lens: Tensor, labels: tuple[int, ...], logits: Tensor | None = None) -> Evidence:
    n, persons = by_lens[0].shape
    return Evidence(
        labels=torch.tensor(labels), block=torch.zeros(n, dtype=torch.long),
        passes=torch.zeros(n, dtype=torch.long),
        logits=torch.eye(persons)[list(labels)] if logits is None else logits,
        features={
            lens: Compared(seen, torch.zeros(1, persons))
            for lens, seen in zip(BOTH, by_lens, strict=False)
        },
        real_labels=torch.tensor([0]), test_logits=torch.eye(2), test_labels=torch.arange(2),
    )  # fmt: skip


def value(name: str, e: Evidence) -> Any:
    result = METRICS[name].compute(e)
    return result.tolist() if isinstance(result, Tensor) else result


def test_the_truth_leaks_all_and_is_nearest() -> None:
    distances = torch.tensor([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]])
    e = evidence(distances, distances, labels=(0, 1, 2))
    assert value("trait_leakage", e) == [100, 100, 100]
    assert value("trait_acc", e) == [100, 100, 100]
    assert value("trait_rank", e) == [0, 0, 0]
    assert value("trait_agreement", e) == [100, 100, 100]
    assert value("attack_acc_false", e) == 0


def test_a_blind_guess_leaks_nothing() -> None:
    same = torch.ones(4, 4)
    e = evidence(same, same, labels=(0, 1, 2, 3))
    assert value("trait_leakage", e) == [0] * 4
    assert value("trait_acc", e) == [25] * 4
    assert value("trait_rank", e) == [50] * 4
    assert value("trait_agreement", e) == [25] * 4


def test_errors_are_averaged_over_a_person_before_they_are_divided() -> None:
    e = evidence(torch.tensor([[1.0, 1, 3], [3, 4, 4], [9, 0, 1]]), labels=(0, 0, 1))
    assert value("trait_leakage", e) == pytest.approx([100 * (1 - 2 / 3), 100])
    assert value("trait_rank", e) == [(25 + 0) / 2, 0]


def test_all_private_persons_count_and_not_only_attacked_ones() -> None:
    e = evidence(torch.tensor([[2.0, 9, 1], [9.0, 2, 9]]), labels=(0, 1))
    assert value("trait_acc", e) == [0, 100]
    assert value("trait_rank", e) == [50, 0]


def test_regressors_that_name_different_persons_do_not_agree() -> None:
    a, b = torch.tensor([[0.0, 1, 2], [0, 1, 2]]), torch.tensor([[1.0, 0, 2], [0, 2, 1]])
    assert value("trait_agreement", evidence(a, b, labels=(0, 1))) == [0, 100]


def test_what_is_accepted_is_false_where_both_regressors_find_another_nearer() -> None:
    first = torch.tensor([[1.0, 0, 9], [1, 0, 9], [0, 1, 9], [1, 0, 9]])
    second = torch.tensor([[1.0, 9, 0], [0, 1, 9], [1, 0, 9], [1, 9, 0]])
    logits = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0]])
    e = evidence(first, second, labels=(0, 0, 0, 0), logits=logits)
    assert value("attack_acc_false", e) == pytest.approx(100 / 3)  # the first; the last is refused
    with pytest.raises(UndefinedError, match="accepts no reconstruction"):
        value("attack_acc_false", evidence(first, second, labels=(2, 2, 2, 2), logits=logits))


def test_a_regressor_that_reads_nothing_leaves_leakage_undefined() -> None:
    e = evidence(torch.zeros(2, 3), torch.zeros(2, 3), labels=(0, 1))
    for name in ("trait_leakage", "trait_leakage_second"):
        with pytest.raises(UndefinedError, match="can read no trait of this task's images"):
            value(name, e)


def test_real_images_say_what_can_be_reached() -> None:
    e = evidence(torch.ones(1, 2), labels=(0,))
    sides = Compared(torch.ones(1, 2), torch.tensor([[0.0, 1], [2, 1], [1, 1], [1, 0]]))
    e = replace(e, features={FIRST: sides}, real_labels=torch.tensor([0, 0, 1, 1]))
    assert value("trait_acc_real", e) == 100 * 2.5 / 4


# From end to end --------------------------------------------------------------------------------

COLUMNS = ("attack_acc", "trait_leakage", "trait_acc", "trait_rank", "trait_agreement")


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Has the metrics' readers trained for a moment, and said to read all the same."""
    patch.setattr(
        "mibench.evaluation.regressors.r2", lambda a, b: torch.linspace(-0.5, 1, a.shape[1])
    )
    for lens in BOTH:
        for name, size in SMALL.items():
            patch.setitem(vars(lens), name, size)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten(monkeypatch)


def run(task: Task, store: Path, *columns: str) -> tuple[Payload, EvidenceStage]:
    cell = replace(small_cell(), control=None)
    setting = replace(cell.setting, task=task)
    last = record_stage(replace(cell, setting=setting), columns, task.digest(Path()))
    outcome = execute(graph([last]), Bench(store, Path("data")), Watcher(), Serial())
    assert not outcome.failures, outcome.failures
    return Store(store).load(last), last.evidence[0]


@pytest.mark.usefixtures("short")
def test_a_table_of_portraits_has_the_columns(tmp_path: Path) -> None:
    task = replace(TASK, num_classes=5, images=10)
    record, stage = run(task, tmp_path, *COLUMNS)
    assert isinstance(stage, LensEvidence)
    assert [v.lens for v in stage.lenses if isinstance(v, LensStage)] == list(BOTH)
    for name in COLUMNS:
        assert record["scores"][name]["mean"] is not None
    load = Store(tmp_path).load
    e = stage.evidence(load)
    (first, _) = stage.lenses
    assert isinstance(first, LensStage)
    state = load(first)
    x = stage.judged(load)
    want = errors(FIRST.readings(x, state), task.truth(torch.arange(5)), state["weights"])
    torch.testing.assert_close(e.through(FIRST).reconstructed, want)


def test_a_task_without_traits_leaves_them_undefined_in_a_sentence(tmp_path: Path) -> None:
    task = Blobs()
    record, stage = run(task, tmp_path, "attack_acc", "trait_acc")
    assert type(stage) is EvidenceStage  # nothing is trained for it
    assert record["scores"]["trait_acc"]["mean"] is None
    assert record["scores"]["attack_acc"]["mean"] is not None
    assert [w for w in record["warnings"] if "Trait acc" in w] == [f"Trait acc: {FIRST.absent}."]
    assert EVALUATOR.suits(task)


@pytest.mark.parametrize("ask", [lambda t: t.fresh("a", 1), lambda t: t.truth(torch.arange(1))])
def test_a_task_without_traits_says_so(ask: Callable[[Task], Any]) -> None:
    with pytest.raises(ValueError, match="blobs knows no traits of its persons"):
        ask(Blobs())


# Reports ----------------------------------------------------------------------------------------


def test_correlations_are_pearsons_with_fishers_interval() -> None:
    rng = generator("c")
    a = torch.rand(30, 2, generator=rng)
    b = a + torch.randn(30, 2, generator=rng)
    for (r, low, high), x, y in zip(leaks.correlations(a, b), a.T, b.T, strict=True):
        want = scipy.stats.pearsonr(x.numpy(), y.numpy())
        assert r == pytest.approx(want.statistic, abs=1e-6)
        assert (low, high) == pytest.approx(want.confidence_interval(0.95), abs=1e-5)
    line = torch.arange(5.0)[:, None]
    assert list(leaks.correlations(line, torch.ones(5, 1))) == [(None, None, None)]
    halves = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    assert list(leaks.correlations(halves, -halves)) == [(-1, None, None)]
    few = list(leaks.correlations(line[:3], line[:3].square()))
    assert few[0][0] is not None
    assert few[0][1:] == (None, None)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """Two rows on drawn portraits in a store; the second reads no traits."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        cell = replace(small_cell(), control=None)
        task = replace(TASK, num_classes=6, images=10)
        cell = replace(cell, setting=replace(cell.setting, task=task))
        table = Table(
            "drawn", "Drawn.", {"GMI / No Def.": cell}, ("attack_acc", "attack_acc_false")
        )
        store = tmp_path_factory.mktemp("store")
        grid = Grid.plan(table, 2, Path("data"), Store(store))
        outcome = execute(graph(grid.last), Bench(store, Path("data")), Watcher(), Serial())
        assert not outcome.failures, outcome.failures
        yield grid


def test_leaks_go_over_persons_and_all_seeds(drawn: Grid, tmp_path: Path) -> None:
    lines = leaks.leaks(drawn)
    load = drawn.store.load
    records = drawn.records["GMI / No Def."]
    state = load(records[0].evidence[0].lenses[0])  # type: ignore[attr-defined]
    read = [FIRST.readings(r.evidence[0].judged(load), state) for r in records]
    mean = torch.cat(read).view(-1, 5, 27).mean(0)  # five of six are attacked
    assert torch.equal(state["truth"][:3], TASK.truth(torch.arange(3)))
    for line in lines:
        t = TASK.traits.index(line.trait)
        want = torch.corrcoef(torch.stack([mean[:, t], state["truth"][:5, t]]).double())[0, 1]
        assert line.correlation == pytest.approx(float(want), abs=1e-3)
        assert (line.persons, line.seeds) == (5, 2)
        assert line.r2 == state["degraded"][t]
    assert [line.r2 for line in lines] == sorted((line.r2 for line in lines), reverse=True)
    paths = [tmp_path / f"traits.{suffix}" for suffix in ("pdf", "png", "csv")]
    leaks.draw(drawn, paths)
    rows = list(csv.DictReader(paths[2].read_text().splitlines()))
    assert [row["trait"] for row in rows] == [line.trait for line in lines]
    assert float(rows[0]["correlation"]) == pytest.approx(lines[0].correlation or 0, abs=1e-4)
    again = paths[1].read_bytes()
    leaks.draw(drawn, paths[1:2])
    assert paths[1].read_bytes() == again
    assert paths[0].read_bytes().startswith(b"%PDF")


def test_a_store_without_traits_has_no_such_figure(drawn: Grid, tmp_path: Path) -> None:
    plain = replace(drawn.table, columns=("attack_acc",))
    grid = Grid.plan(plain, 1, Path("data"), drawn.store)
    with pytest.raises(ValueError, match="no row in the store has read traits: give the table"):
        leaks.draw(grid, [tmp_path / "traits.csv"])
    assert not list(tmp_path.iterdir())


def test_the_page_shows_what_was_accepted_with_anothers_traits(
    drawn: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluator accepts all but the first; traits show the next person, but for the last."""

    def forged(stage: LensEvidence, load: Any) -> Evidence:
        e = restored(stage, load)
        n = len(e.labels)
        accepted = torch.eye(6)[e.labels] * 9
        accepted[0] = accepted[0].roll(1)
        nearest = 1 - torch.eye(6)[(e.labels + (torch.arange(n) < n - 1).long()) % 6]
        sides = dict(e.features)
        for lens in BOTH:
            sides[lens] = Compared(nearest, e.through(lens).real)
        return replace(e, logits=accepted, features=sides)

    restored = LensEvidence.evidence
    monkeypatch.setattr(LensEvidence, "evidence", forged)
    monkeypatch.setattr(pictures, "MISTAKES", 8)
    first = drawn.first
    (strip,) = pictures.mistakes("t0", first, drawn.store, private=True)
    assert [(t.label, t.other) for t in strip["tiles"]] == [
        (i % 5, i % 5 + 1) for i in range(1, 9)
    ]
    assert strip["tiles"][0].confidence > 99
    assert (strip["sprite"].columns, strip["sprite"].lines) == (8, 3)
    monkeypatch.setattr(pictures, "MISTAKES", 99)
    (strip,) = pictures.mistakes("t0", first, drawn.store, private=True)
    assert len(strip["tiles"]) == 4 * 5 - 2
    assert pictures.mistakes("t0", first, drawn.store, private=False) == []
    text = page([(drawn, ["drawn"])])
    assert "Accepted, with another person&#39;s traits" in text or (
        "Accepted, with another person's traits" in text
    )
    assert 'aria-label="Private image of class 2"' in text


def test_the_page_of_a_table_without_traits_says_nothing_of_them(drawn: Grid) -> None:
    plain = replace(drawn.table, columns=("attack_acc",))
    grid = Grid.plan(plain, 1, Path("data"), drawn.store)
    outcome = execute(graph(grid.last), Bench(drawn.store.root, Path("data")), Watcher(), Serial())
    assert not outcome.failures
    assert pictures.mistakes("t0", grid.first, drawn.store, private=True) == []
