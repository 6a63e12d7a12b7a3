"""A limit of answers, kept by the target itself."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from mibench.attacks import GMI, KEDMI, Goal, OtherClass
from mibench.attacks.access import NO_LIMIT, Query, Watched
from mibench.attacks.losses import LogitMatching
from mibench.attacks.views import payable
from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.data.synthetic import Blobs
from mibench.networks import MLP
from mibench.networks.fold import quick
from mibench.reporting.budgets import render, spent
from mibench.running.executors import Bench, Serial, execute
from mibench.running.grid import Grid, record_stages
from mibench.running.progress import Watcher
from mibench.running.stages import InversionStage, graph
from mibench.seeding import generator, seeded
from mibench.store import Store, Work
from mibench.types import Classifier, ImageSet, predict

TASK = Blobs(num_classes=4)
EXAMPLE = Path(__file__).parents[1] / "examples" / "random_search.py"
SMALL = [
    "attack.steps=3", "attack.prior.epochs=1", "recipe.epochs=1",
    "setting.evaluators.0.recipe.epochs=1",
]  # fmt: skip


class Deaf(Classifier):
    """Answers nothing; whoever asks it fails."""

    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.neck = self.last = torch.nn.Identity()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def latents(self, x: Tensor) -> tuple[Tensor, ...]:
        raise AssertionError("it was asked")

    def head(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        raise AssertionError("it was asked")


@pytest.fixture
def target() -> Classifier:
    with seeded("test"):
        network = MLP().build(TASK.shape, TASK.num_classes)
    return network.eval().requires_grad_(requires_grad=False)


def images(n: int) -> Tensor:
    return torch.rand(n, *TASK.shape, generator=generator("images"))


# The counting targets -----------------------------------------------------------------------


@pytest.mark.parametrize("access", ["white", "scores", "labels"])
def test_answers_are_given_up_to_the_limit_and_none_of_a_call_that_would_pass_it(
    access: Any, target: Classifier
) -> None:
    work = Work()
    ask: Any = Watched(target, work, 9)
    if access != "white":
        ask = Query(target, access, work, 9)
    ask(images(4))
    assert (ask.remaining, work.queries) == (5, 4)
    with pytest.raises(ValueError, match="6 more answers, but 5 remain of its limit of 9"):
        ask(images(6))
    assert (ask.remaining, work.queries) == (5, 4)
    ask(images(5))
    assert (ask.remaining, work.queries) == (0, 9)
    with pytest.raises(ValueError, match="1 more answers, but 0 remain"):
        ask(images(1))


@pytest.mark.parametrize("access", ["white", "scores", "labels"])
def test_a_refused_call_does_not_reach_the_target(access: Any) -> None:
    deaf, work = Deaf(), Work()
    ask: Any = Watched(deaf, work, 3) if access == "white" else Query(deaf, access, work, 3)
    with pytest.raises(ValueError, match="3 remain"):
        ask(images(4))
    assert work.queries == 0


def test_further_answers_to_the_same_latents_count(target: Classifier) -> None:
    work = Work()
    watched = Watched(target, work, 9)
    z = watched.latents(images(4))[-1]
    with pytest.raises(ValueError, match="8 more answers, but 5 remain"):
        watched.head(z.repeat(3, 1))
    assert work.queries == 4
    watched.head(z.repeat(2, 1))
    assert watched.remaining == 1


def test_latents_are_answered_once_each_in_whatever_order(target: Classifier) -> None:
    work = Work()
    watched = Watched(target, work, 10)
    a, b = (watched.latents(images(5))[-1] for _ in range(2))
    watched.head(a)
    watched.head(b[:2])
    watched.head(b[2:])
    assert work.queries == 10
    with pytest.raises(ValueError, match="1 more answers, but 0 remain"):
        watched.head(a[:1])


def test_a_call_is_refused_before_it_is_split() -> None:
    work = Work()
    with pytest.raises(ValueError, match="8 more answers, but 7 remain"):
        predict(Watched(Deaf(), work, 7), images(8), generator(), batch=2)
    assert work.queries == 0


class Cramped(Classifier):
    """A GPU that holds two images."""

    def __init__(self, target: Classifier) -> None:
        super().__init__()
        self.target = target
        self.num_classes = target.num_classes
        self.neck, self.last = target.neck, target.last

    def latents(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.target.latents(x)

    def head(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        if len(z) > 2:
            raise torch.OutOfMemoryError
        return self.target.head(z)


def test_an_answer_that_memory_did_not_suffice_for_is_counted_once(target: Classifier) -> None:
    work = Work()
    logits, _ = predict(Watched(Cramped(target), work, 8), images(8), generator(), batch=8)
    assert len(logits) == work.queries == 8


def test_without_a_limit_more_remains_than_anyone_asks(target: Classifier) -> None:
    work = Work()
    for ask in (Watched(target, work), Query(target, "labels", work)):
        ask(images(5))
        assert ask.remaining == NO_LIMIT - work.queries > 10**15


def test_answers_about_public_images_are_shared_and_outside_the_limit(target: Classifier) -> None:
    pixels = torch.zeros(30, *TASK.shape, dtype=torch.uint8)
    work = Work()
    watched = Watched(target, work, 5)
    watched.look_at(ImageSet(pixels, torch.zeros(30, dtype=torch.long)))
    assert (watched.shared, work.queries, watched.remaining) == (30, 30, 5)
    copy = quick(watched)
    copy(images(3))
    assert (work.queries, watched.remaining, copy.remaining) == (33, 2, 2)


def test_what_was_spent_before_an_interruption_counts(target: Classifier, tmp_path: Path) -> None:
    first = Work(tmp_path, every=0.0)
    Query(target, "scores", first, 9)(images(7))
    first.save(lambda: {"step": 1})
    again = Work(tmp_path)
    ask = Query(target, "scores", again, 9)
    again.load()
    assert ask.remaining == 2


def test_steps_are_paid_for_by_what_remains(target: Classifier) -> None:
    work = Work()
    watched = Watched(target, work, 100)
    assert payable(target, 50, 10) == 50  # nobody counts
    assert payable(watched, 50, 10) == 10
    assert payable(watched, 5, 10) == 5
    assert payable(watched, 50, 10, later=15) == 4
    work.queries = 31
    assert payable(watched, 50, 10) == 6
    with pytest.raises(ValueError, match="69 answers that the target still gives do not"):
        payable(watched, 50, 70)


# The runner ---------------------------------------------------------------------------------


def inversion(attack: Any, classes: int = 5) -> InversionStage:
    table = TABLES["smoke"].modified(SMALL)
    cell = replace(table.rows["GMI / No Def."], attack=attack)
    cell = replace(cell, trials=replace(cell.trials, classes=classes))
    (records,) = record_stages(replace(table, rows={"A / B": cell}), 1, Path()).values()
    return records[0].evidence[0].inversion


@pytest.mark.parametrize(
    ("attack", "limit"),
    [
        (GMI(max_queries=70), 350),
        (GMI(), NO_LIMIT),
        (OtherClass(attack=KEDMI(max_queries=8)), 40),
    ],
)
def test_the_limit_is_that_of_a_class_times_the_attacked_classes(
    attack: Any, limit: int, target: Classifier
) -> None:
    handed = inversion(attack)._handed(target, lambda _: {}, Work())
    assert handed.remaining == limit


def test_shared_answers_are_in_the_record_and_in_sight(tmp_path: Path) -> None:
    settings = ["attack.identity=logit-matching", "attack.max_queries=2"]
    table = TABLES["smoke"].only(["KED-MI / No Def."]).modified([*SMALL, *settings])
    records = record_stages(table, 1, Path())
    store = Store(tmp_path)
    outcome = execute(
        graph(records["KED-MI / No Def."]), Bench(tmp_path, Path()), Watcher(), Serial()
    )
    assert not outcome.failures
    budget = store.load(records["KED-MI / No Def."][0])["budget"]
    public = 896  # images of digits 5 to 9
    assert (budget["shared"], budget["queries"], budget["steps"]) == (public, public + 10, 2)
    shown = render("Small", spent(Grid(table, records, store)), 1).splitlines()
    (line,) = [line for line in shown if "KED-MI / No Def." in line]
    assert line.split()[4:7] == ["2", "906", "896"]


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_random_search_ends_in_time(target: Classifier) -> None:
    attack = module(EXAMPLE).RandomSearch(draws=50)
    with seeded("test"):
        prior = attack.prior.build(TASK.shape, TASK.num_classes).eval()
    blocks = [torch.arange(2), torch.arange(2, 4)]

    def asked(limit: int) -> int:
        work = Work()
        ask = Query(target, "scores", work, limit)
        rngs = [generator(i) for i in range(2)]
        found = attack.invert(ask, prior, Goal(blocks, 3, rngs, TASK.shape), work)
        assert found.images.shape == (3, 4, *TASK.shape)
        return work.queries

    assert [asked(limit) for limit in (NO_LIMIT, 100, 99, 6)] == [100, 100, 98, 6]
    with pytest.raises(ValueError, match="3 of 2 draws cannot be kept; raise max_queries"):
        asked(5)


USER_FILE = """
from dataclasses import dataclass, field, replace
from typing import ClassVar
import torch
from mibench import Attack, PriorSpec, Reconstructions, Table
from mibench.attacks import WGANGP
from mibench.benchmarks.tables import TABLES

@dataclass(frozen=True)
class Greedy(Attack):
    name: ClassVar[str] = "greedy"
    access: ClassVar[str] = "ACCESS"
    prior: PriorSpec = field(default_factory=WGANGP)
    FIELD
    def invert(self, target, prior, goal, work):
        found = goal.reconstructions(prior, goal.draws(prior))
        for _ in range(40):
            target(found.images.flatten(0, 1))
        return found

cell = TABLES["smoke"].rows["GMI / No Def."]
cell = replace(cell, attack=Greedy(replace(cell.attack.prior, epochs=1)))
TABLE = Table("greedy", "Greedy.", {"Greedy / No Def.": cell})
"""


def run(folder: Path, name: str, access: str, field: str) -> Result:
    path = folder / f"{name}.py"
    path.write_text(USER_FILE.replace("ACCESS", access).replace("FIELD", field))
    small = [part for s in (SMALL[2], SMALL[3]) for part in ("--set", s)]
    places = ["--store", str(folder / "store"), "--out", str(folder / "out")]
    return CliRunner().invoke(main, ["run", str(path), *small, *places, "--executor", "serial"])


@pytest.mark.parametrize(
    ("name", "access", "field"),
    [
        ("greedy_white", "white", "max_queries: int = 25"),
        ("greedy_scores", "scores", "max_queries: int = 25"),
        ("greedy_labels", "labels", "max_queries = 25"),
    ],
)
def test_an_attack_that_ignores_its_budget_is_stopped_at_it(
    name: str, access: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    handed = InversionStage._handed

    def note(self: InversionStage, target: Any, load: Any, work: Work) -> Any:
        forward = target.last.forward

        def counting(z: Tensor) -> Tensor:
            counts.append(len(z))
            answers: Tensor = forward(z)
            return answers

        target.last.forward = counting
        return handed(self, target, load, work)

    monkeypatch.setattr(InversionStage, "_handed", note)
    done = run(tmp_path, name, access, field)
    assert done.exit_code == 1, done.output
    sentence = "50 more answers, but 25 remain of its limit of 125"
    assert sentence in done.stderr
    assert "Traceback" not in done.output
    assert sum(counts) == 100
    (failure,) = (tmp_path / "store" / "inversion").glob("*.failed")
    assert sentence in failure.read_text()


def test_an_attack_that_declares_no_budget_has_none(tmp_path: Path) -> None:
    done = run(tmp_path, "greedy_free", "scores", "")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("name", "limit"), [("greedy_below", "-1"), ("greedy_half", "2.5")])
def test_a_limit_that_is_none_is_refused(name: str, limit: str, tmp_path: Path) -> None:
    done = run(tmp_path, name, "scores", f"max_queries = {limit}")
    assert done.exit_code == 2
    assert "Greedy.max_queries must be a whole number of answers for each class" in done.stderr


def test_logit_matching_s_limit_is_that_of_the_rest(target: Classifier) -> None:
    public = TASK.load(Path()).public
    attack = GMI(identity=LogitMatching(), steps=9, max_queries=9)
    with seeded("test"):
        prior = attack.prior.build(TASK.shape, TASK.num_classes).eval()
    work = Work()
    watched = Watched(target, work, 4 * 9)
    watched.look_at(public)
    attack.invert(watched, prior, Goal([torch.arange(4)], 3, [generator()], TASK.shape), work)
    assert work.queries - watched.shared == 36
