"""Students and surrogates of a target, attacks on them, and an attacker who averages answers."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from examples.random_search import RandomSearch
from mibench.attacks import GMI, KEDMI, LOKT, RLBMI, WGANGP, Goal, Imitation, OtherClass, rounds
from mibench.attacks.access import Query, Surrogate, Watched
from mibench.attacks.decoding import Decoding
from mibench.attacks.losses import LogitMatching
from mibench.attacks.students import Augmented, Distillation, Student
from mibench.attacks.transfer import Averaged, Averaging, Transfer
from mibench.attacks.views import Flip, Plain, identity_loss
from mibench.benchmarks.cell import Cell
from mibench.benchmarks.tables import TABLES
from mibench.data import Sizes
from mibench.data.synthetic import Blobs
from mibench.defenses import Recipe
from mibench.networks import MLP
from mibench.override import override
from mibench.roles import Batch, PriorSpec
from mibench.running.checks.base import CheckedWork, StoppedError
from mibench.running.executors import Bench, Serial, execute
from mibench.running.plan import planned_steps
from mibench.running.progress import Watcher
from mibench.running.stages import StudentStage, graph, record_stage
from mibench.seeding import generator, seeded
from mibench.store import Payload, Store, Work
from mibench.types import Access, Classifier, ImageSet, Prior, Reconstructions

TASK = Blobs(num_classes=4)
PUBLIC = TASK.load(Path()).public
STUDENT = Student(MLP(width=8), Recipe(2, batch_size=16, select="last"))


class Fixed(Classifier):
    """Answers with what it was made with, whatever the images, up to the sum of the pixels."""

    def __init__(self, z: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.num_classes, self.z, self.logits = logits.shape[1], z, logits
        self.scale = torch.nn.Parameter(torch.zeros(()))
        self.neck = torch.nn.Identity()
        self.answered = 0

    def latents(self, x: Tensor) -> tuple[Tensor, ...]:
        self.answered += len(x)
        return (self.z.expand(len(x), -1) + self.scale + 0 * x.flatten(1).sum(1, keepdim=True),)

    def head(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.logits.expand(len(z), -1) + 0 * z.sum(1, keepdim=True)


def make(seed: str = "target") -> Classifier:
    with seeded(seed):
        return MLP().build(TASK.shape, 4).eval().requires_grad_(requires_grad=False)


# Students -----------------------------------------------------------------------------------


def test_lomma_by_hand() -> None:
    """Two networks' logits of the class are 2 and 4, the target's offset (1, 3)."""
    target = Watched(Fixed(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0]])), Work())
    target.students.append(Fixed(torch.tensor([[9.0, 9.0]]), torch.tensor([[4.0, 1.0]])))
    target.public_mean = torch.zeros(2)
    loss = Augmented(of=LogitMatching(1.0), students=(STUDENT,))
    x, y = torch.zeros(1, *TASK.shape), torch.zeros(1, dtype=torch.long)
    got = identity_loss(loss, (), target, x, y, [(1, generator())])
    assert got.tolist() == [-(2 + 4) / 2 + (1 + 9) / 2]


def test_students_see_each_view_and_draw_and_are_not_counted() -> None:
    work, student = Work(), Fixed(torch.zeros(1, 2), torch.eye(4)[:1])
    target = Watched(make(), work)
    target.students.append(student)
    loss = Augmented(students=(STUDENT,))
    x, y = torch.rand(3, *TASK.shape, generator=generator("x")), torch.tensor([0, 1, 2])
    views = (Plain(draws=2), Flip())
    got = identity_loss(loss, views, target, x, y, [(3, generator())])
    alone = identity_loss(loss.of, views, make(), x, y, [(3, generator())])
    own = loss.of(student.head(torch.zeros(3, 2)), y)
    torch.testing.assert_close(got, (alone + own) / 2)
    assert (work.queries, student.answered) == (9, 6)


def test_a_loss_with_students_is_refused_where_there_are_none() -> None:
    loss, x = Augmented(students=(STUDENT,)), torch.zeros(1, *TASK.shape)
    with pytest.raises(ValueError, match="augmented needs the target's students"):
        identity_loss(loss, (), Watched(make(), Work()), x, torch.tensor([0]), [(1, generator())])
    longer = replace(STUDENT, recipe=replace(STUDENT.recipe, epochs=3))
    with pytest.raises(ValueError, match="names a network twice, and both would begin with the"):
        Augmented(students=(STUDENT, longer))
    with pytest.raises(ValueError, match="not shown public images and has no students"):
        OtherClass(attack=KEDMI(identity=loss))
    with pytest.raises(ValueError, match="identity loss augmented: it is about the target itself"):
        Transfer(attack=GMI(identity=loss))
    with pytest.raises(ValueError, match=r"name them in Augmented\.students"):
        Augmented(of=loss)


def test_a_student_is_taught_by_the_divergence_from_the_target_s_answers() -> None:
    soft = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]])
    network, x = make(), torch.rand(2, *TASK.shape, generator=generator("x"))
    (loss,) = Distillation(soft).loss_terms(network, Batch(x, torch.tensor([1, 0]))).values()
    log, rows = network(x).log_softmax(1), soft[[1, 0]]
    want = torch.special.xlogy(rows, rows) - rows * log
    torch.testing.assert_close(loss, want.sum() / 2)


@pytest.mark.parametrize("change", [{"select": "test"}, {"sampler": "balanced"}])
def test_a_student_has_no_classes_to_select_or_sort_by(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Student.recipe must have select=last and sampler=sh"):
        Student(recipe=replace(STUDENT.recipe, **change))


def test_a_student_comes_to_agree_with_its_teacher() -> None:
    teacher, work = Watched(make(), Work()), Work()
    student = Student(MLP(), Recipe(20, batch_size=16, lr=3e-3, select="last"))
    soft = teacher.soft_answers(PUBLIC)
    network = make("student")
    network.requires_grad_()

    def gap() -> float:
        with torch.no_grad():
            return float((network.eval()(PUBLIC.images).softmax(1) - soft).abs().mean())

    before = gap()
    trained = student.train(network, PUBLIC, soft, generator("s"), work)
    network.load_state_dict(trained["state"])
    assert gap() < before / 3


# Stages -------------------------------------------------------------------------------------


def small(attack: Any, defense: str = "No Def.") -> Cell:
    settings = ["attack.prior.epochs=1", "attack.steps=3", "recipe.epochs=1", "trials.samples=2",
                "trials.block=2", "setting.evaluators.0.recipe.epochs=1"]  # fmt: skip
    cell = TABLES["smoke"].modified(settings).rows[f"GMI / {defense}"]
    setting = replace(cell.setting, task=TASK, evaluators=cell.setting.evaluators[:1])
    trials = replace(cell.trials, classes=4)
    return replace(cell, setting=setting, trials=trials, attack=attack, control=None)


def run(cell: Cell, folder: Path) -> tuple[Payload, list[str]]:
    cell.check()
    last = record_stage(cell, ("accuracy",), "drawn")
    outcome = execute(graph([last]), Bench(folder, Path()), Watcher(), Serial())
    assert not outcome.failures, outcome.failures
    return Store(folder).load(last), [s.kind for s in graph([last])]


PRIOR = WGANGP(**{**WGANGP.small, "epochs": 1})
ATTACK = GMI(PRIOR, steps=3)


def test_a_row_with_a_student_trains_it_and_counts_what_its_teacher_said(tmp_path: Path) -> None:
    cell = small(replace(ATTACK, identity=Augmented(students=(STUDENT,))))
    record, kinds = run(cell, tmp_path)
    assert kinds.index("student") < kinds.index("inversion")
    assert record["budget"] == {
        "steps": 3, "queries": 3 * 8, "gradients": 3 * 8, "prior_queries": len(PUBLIC),
    }  # fmt: skip
    plain, kinds = run(small(ATTACK), tmp_path)
    assert "student" not in kinds
    assert plain["budget"]["prior_queries"] == 0


def test_steps_of_students_are_planned() -> None:
    cell = small(replace(ATTACK, identity=Augmented(students=(STUDENT,))))
    (stage,) = [s for s in graph([record_stage(cell, [], "x")]) if isinstance(s, StudentStage)]
    assert planned_steps(stage, Sizes(1, 2, 320)) == 2 * 320 // 16
    assert planned_steps(stage, None) is None
    other = replace(cell, seeds=replace(cell.seeds, attack=7))
    keys = {s.key for s in graph([record_stage(other, [], "x")])}
    assert stage.key in keys  # it is trained with the seed of priors


def test_a_transferred_attack_asks_the_target_nothing_and_the_prior_once(tmp_path: Path) -> None:
    attack = Transfer(Imitation(PRIOR, (STUDENT, STUDENT)), ATTACK)
    record, _ = run(small(attack), tmp_path)
    assert record["budget"] == {
        "steps": 3, "queries": 0, "gradients": 0, "surrogate_gradients": 3 * 8,
        "prior_queries": len(PUBLIC),
    }  # fmt: skip


def test_a_transferred_attack_moves_by_the_mean_over_all_surrogates() -> None:
    with seeded("prior"):
        prior = Imitation(PRIOR, (STUDENT, STUDENT)).build(TASK.shape, 4)
    prior.eval().requires_grad_(requires_grad=False)
    work = Work()
    goal = Goal([torch.arange(4)], 1, [generator(0)], TASK.shape)
    got = Transfer(attack=ATTACK).invert(Query(make(), "scores", work), prior, goal, work)
    seen: Any = Surrogate(prior.surrogates[0], Work())
    seen.students.append(prior.surrogates[1])
    goal = Goal([torch.arange(4)], 1, [generator(0)], TASK.shape)
    assert torch.equal(got.latents, ATTACK.invert(seen, prior, goal, Work()).latents)
    seen.students = torch.nn.ModuleList()
    goal = Goal([torch.arange(4)], 1, [generator(0)], TASK.shape)
    assert not torch.equal(got.latents, ATTACK.invert(seen, prior, goal, Work()).latents)


@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        (Transfer(PRIOR), "transfer needs a prior with surrogates, and wgan-gp has none"),
        (RandomSearch(Imitation(PRIOR)), ""),
        (replace(ATTACK, prior=Imitation(PRIOR)), ""),
    ],
)
def test_surrogates_are_wanted_where_they_are_used(attack: Any, sentence: str) -> None:
    if not sentence:
        small(attack).check()
        return
    with pytest.raises(ValueError, match=sentence):
        small(attack).check()


def test_what_cannot_be_wrapped_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a white-box attack, random-search is not"):
        Transfer(attack=RandomSearch())
    with pytest.raises(ValueError, match=r"Transfer\.attack must not have max_queries: what surr"):
        Transfer(attack=GMI(max_queries=10))
    with pytest.raises(ValueError, match="must ask for scores or labels, and gmi does not"):
        Averaging(GMI())
    for attack in (LOKT(), Transfer(), Decoding(), RandomSearch(Imitation(PRIOR))):
        with pytest.raises(ValueError, match="must have a prior that does not ask the target"):
            Averaging(attack)
    with pytest.raises(ValueError, match=r"Imitation\.of must not ask the target"):
        Imitation(Imitation())


# Averaging ----------------------------------------------------------------------------------


class Noisy(Fixed):
    """Answers with noise from the global generator."""

    def head(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        return super().head(z) + 2 * torch.randn(len(z), self.num_classes)


@pytest.mark.parametrize("access", ["scores", "labels"])
def test_an_averaged_answer_is_the_mean_of_answers_that_all_count(access: Any) -> None:
    target, work = Noisy(torch.zeros(1, 2), torch.tensor([[0.5, 0.0, 0.0]])), Work()
    x = torch.zeros(40, *TASK.shape)
    with seeded("noise"):
        once, many = (
            Query(target, access, Work())(x),
            Query(target, access, Work())(x.repeat(25, 1, 1, 1)),
        )
    with seeded("noise"):
        Query(target, access, Work())(x)
        got = Averaged(Query(target, access, work), access, 25)(x)
    assert work.queries == 25 * 40
    many = many.view(25, 40, -1)
    if access == "scores":
        torch.testing.assert_close(got, many.mean(0))
    else:
        assert got.dtype == torch.int64
        assert (got == 0).float().mean() > (once == 0).float().mean() + 0.2


def test_an_averaging_attacker_pays_for_every_answer_and_is_refused_whole() -> None:
    work = Work()
    query = Averaged(Query(make(), "scores", work, 50), "scores", 8)
    assert query.remaining == 6
    query(torch.zeros(2, *TASK.shape))
    assert (work.queries, query.remaining) == (16, 4)
    with pytest.raises(ValueError, match="asks the target for 40 more answers, but 34 remain"):
        query(torch.zeros(5, *TASK.shape))
    assert work.queries == 16


def test_an_averaging_attacker_plans_what_its_answers_pay_for() -> None:
    def planned(limit: int) -> int | None:
        return Averaging(RLBMI(max_queries=limit), 8).planned_steps(1, 1)

    assert [planned(limit) for limit in (0, 100, 16)] == [40_000, 6, 1]
    with pytest.raises(ValueError, match=r"in means of 8 answers each, RLBMI\.max_queries is 1,"):
        planned(15)
    with pytest.raises(
        ValueError, match=r"RLBMI\.max_queries is 7, but each mean takes 8 answers"
    ):
        planned(7)


def test_a_black_box_attack_averages_over_a_target_that_answers_at_random(tmp_path: Path) -> None:
    inner = RandomSearch(PRIOR, draws=10, max_queries=30)
    attack = Averaging(inner, repeats=3)
    assert (attack.access, attack.max_queries, attack.queries_per_image) == ("scores", 30, 3)
    record, _ = run(small(attack, "MID"), tmp_path)
    assert record["budget"]["queries"] == 2 * 10 * 3  # of two blocks


# Parts of a work ----------------------------------------------------------------------------


def imitate(work: Work) -> tuple[dict[str, Tensor], list[int]]:
    spec = Imitation(replace(PRIOR, epochs=3), (STUDENT, STUDENT))
    with seeded("prior"):
        prior = spec.build(TASK.shape, 4)
    target = Query(make(), "scores", work)
    with seeded("noise"):
        spec.train(prior, PUBLIC.take(torch.arange(64)), target, generator("train"), work)
    return prior.state_dict(), [work.queries, work.steps]


@pytest.mark.parametrize("saves", range(1, 8))  # of three epochs and twice two
def test_parts_resume_to_the_same_bits_and_counts_wherever_they_die(
    saves: int, tmp_path: Path
) -> None:
    whole, counts = imitate(Work())
    with pytest.raises(StoppedError):
        imitate(CheckedWork(tmp_path, saves))
    again, counts_again = imitate(Work(tmp_path))
    assert all(torch.equal(v, again[k]) for k, v in whole.items())
    assert counts == counts_again == [64, 0]


def loops_around_a_part(work: Work) -> list[Any]:
    """Returns what two loops come to, and a part between them that asks, draws and saves."""
    goal = Goal([torch.arange(3)], 1, [generator(0)], TASK.shape)
    x = goal.noise(1, 2)

    def advance(_: int) -> None:
        x.add_(goal.noise(1, 2) + torch.rand(()))
        work.queries += 3

    def tune() -> Payload:
        work.queries += 5
        saved = work.load() or {"w": torch.zeros(2), "done": 0}
        w = saved["w"].clone()
        for i in range(saved["done"], 3):
            w += torch.rand(2)
            work.gradients += 1
            work.save(partial(dict, w=w, done=i + 1))
        work.queries += 7
        return {"w": w + torch.rand(2)}

    x.copy_(rounds({"x": x}, advance, 2, goal, work)["x"])
    x.add_(goal.noise(1, 2))
    work.queries += 11
    w = work.part("tune", tune)["w"]
    x.add_(w.sum() + goal.noise(1, 2))
    left = rounds({"x": x}, advance, 2, goal, work)
    return [left["x"].tolist(), torch.rand(()).item(), work.steps, work.queries, work.gradients]


@pytest.mark.parametrize("saves", range(1, 8))
def test_a_part_between_two_loops_is_done_once(saves: int, tmp_path: Path) -> None:
    with seeded("noise"):
        whole = loops_around_a_part(Work())
    with seeded("noise"), pytest.raises(StoppedError):
        loops_around_a_part(CheckedWork(tmp_path, saves))
    with seeded("noise"):
        assert loops_around_a_part(Work(tmp_path)) == whole
    assert whole[2:] == [4, 4 * 3 + 5 + 7 + 11, 3]


@dataclass(frozen=True)
class OnSurrogates(GMI):
    """Counts on a surrogate and on the target in turn, so that both must be resumed."""

    name: ClassVar[str] = "on-surrogates"
    access: ClassVar[Access] = "scores"

    prior: PriorSpec = field(default_factory=Imitation)

    def invert(self, target: Any, prior: Prior, goal: Goal, work: Work) -> Reconstructions:
        target(torch.zeros(5, *TASK.shape))
        made = super().invert(Surrogate(prior.surrogates[0], work), prior, goal, work)
        target(made.images.flatten(0, 1))
        return super().invert(Surrogate(prior.surrogates[0], work), prior, goal, work)


@pytest.mark.parametrize("saves", [1, 3, 4, 6])
def test_gradients_of_surrogates_are_resumed(saves: int, tmp_path: Path) -> None:
    def invert(work: Work) -> tuple[Any, ...]:
        with seeded("prior"):
            prior = Imitation(PRIOR, (STUDENT,)).build(TASK.shape, 4)
        prior.eval().requires_grad_(requires_grad=False)
        goal = Goal([torch.arange(4)], 1, [generator(0)], TASK.shape)
        query = Query(make(), "scores", work)
        made = OnSurrogates(steps=3).invert(query, prior, goal, work)
        counts = (work.steps, work.queries, work.gradients, work.surrogate_gradients)
        return made.latents.tolist(), counts

    whole = invert(Work())
    with pytest.raises(StoppedError):
        invert(CheckedWork(tmp_path, saves))
    assert invert(Work(tmp_path)) == whole
    assert whole[1] == (6, 9, 0, 24)


def test_soft_answers_of_labels_are_one_for_the_class_that_was_said() -> None:
    public: ImageSet = PUBLIC.take(torch.arange(20))
    scores, labels = (
        Query(make(), access, Work()).soft_answers(public) for access in ("scores", "labels")
    )
    assert torch.equal(labels, torch.nn.functional.one_hot(scores.argmax(1), 4).float())
    whole = Watched(make(), Work()).soft_answers(public)
    torch.testing.assert_close(scores, whole)


def test_a_prior_that_another_field_decides_cannot_be_set() -> None:
    with pytest.raises(
        ValueError, match=r"attack\.prior\.of\.epochs cannot be set: another field"
    ):
        override(Transfer(), "attack.prior.of.epochs", "7")
    assert override(Transfer(), "prior.of.epochs", "7").attack.prior.of.epochs == 7
