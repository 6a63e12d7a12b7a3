"""What a run says it would do is what it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.optim.optimizer import register_optimizer_step_post_hook

from mibench.attacks import ATTACKS, PRIORS, Goal, Imitation, StyleGAN2
from mibench.attacks.access import handed
from mibench.attacks.priors.gan import GANSpec
from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.data import CIFAR10, MNIST, CelebA, Folder, Sizes
from mibench.data.synthetic import Blobs
from mibench.defenses import NoDefense, Recipe
from mibench.networks import MLP
from mibench.roles import PriorSpec
from mibench.running.checks import tiny
from mibench.running.plan import (
    estimate,
    known_sizes,
    makespan,
    measured,
    planned_steps,
    time_lines,
)
from mibench.running.stages import (
    ClassifierStage,
    ImagesStage,
    RecordStage,
    graph,
    record_stage,
)
from mibench.seeding import generator, seeded
from mibench.store import FILES, Stage, Store, Work, seal

TASK = Blobs(num_classes=4)


@contextmanager
def counted() -> Iterator[list[str]]:
    """Yields a list that gets an entry at every step of any optimiser."""
    steps: list[str] = []
    hook = register_optimizer_step_post_hook(lambda o, *_: steps.append(type(o).__name__))
    try:
        yield steps
    finally:
        hook.remove()


@pytest.mark.parametrize("select", ["last", "validation"])
@pytest.mark.parametrize("part", ["private", "evaluation"])
def test_a_classifier_takes_the_planned_steps(part: str, select: str, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=16, select=select)  # type: ignore[arg-type]
    images = ImagesStage(TASK, TASK.digest(tmp_path))
    stage = ClassifierStage(images, part, MLP(), NoDefense(), recipe, 0)  # type: ignore[arg-type]
    store = Store(tmp_path)
    store.complete(images)
    with counted() as steps:
        store.complete(stage)
    assert len(steps) == planned_steps(stage, TASK.sizes(tmp_path))


def updates(spec: PriorSpec, steps: int) -> int:
    """Returns how often weights are updated in so many steps."""
    if isinstance(spec, StyleGAN2):  # both networks, and each of the regularisations
        return 2 * steps + ceil(steps / spec.path_every) + ceil(steps / spec.r1_every)
    if isinstance(spec, Imitation):
        inner = spec.of.planned_steps(len(TASK.load(Path()).public))
        assert inner is not None
        return updates(spec.of, inner) + steps - inner
    return steps + steps // spec.critic_steps if isinstance(spec, GANSpec) else steps


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_takes_the_planned_steps(name: str) -> None:
    spec = tiny(PRIORS[name])
    public = TASK.load(Path()).public
    with seeded("test"):
        prior = spec.build(TASK.shape, TASK.num_classes)
        target = MLP().build(TASK.shape, TASK.num_classes).eval()
    planned = spec.planned_steps(len(public))
    with counted() as steps:
        seen = None if spec.access == "none" else handed(target, spec.access, Work())
        spec.train(prior, public, seen, generator("p"), Work())
    if planned is None:  # it depends on the number of classes
        assert name in ("pseudo-label-gan", "plg-gan", "tacgan")
        return
    assert planned > 0 or name == "pixels"
    assert len(steps) == updates(spec, planned)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_takes_the_planned_steps(name: str) -> None:
    attack = tiny(ATTACKS[name])
    with seeded("test"):
        target = MLP().build(TASK.shape, TASK.num_classes).eval()
        prior = tiny(type(attack.prior)).build(TASK.shape, TASK.num_classes).eval()
    blocks = [torch.arange(2), torch.arange(2, 4)]
    public = TASK.load(Path()).public if attack.public else None
    goal = Goal(blocks, 2, [generator(i) for i in range(2)], TASK.shape, public=public)
    work = Work()
    with counted() as steps:
        attack.invert(handed(target, attack.access, work), prior, goal, work)
    planned = attack.planned_steps(2, 2)
    if planned is None:  # it ends when it ends, or the limit of answers decides
        assert name in ("brep-mi", "mirror-blackbox", "inversion-network")
        return
    assert work.steps == planned
    if name not in ("ppdg-mi", "rlb-mi"):  # which train networks as well
        assert len(steps) == planned


def test_stages_that_optimise_nothing_plan_no_step_and_unknown_sizes_are_unknown() -> None:
    table = TABLES["smoke"]
    cell = table.rows["KED-MI / No Def."]
    found = {s.kind: planned_steps(s, None) for s in graph([record_stage(cell, [], "x")])}
    attack = cell.attack.planned_steps(1)
    assert found == {
        "images": 0, "classifier": None, "prior": None, "inversion": attack, "evidence": 0,
        "record": 0,
    }  # fmt: skip


def test_sizes_are_those_of_the_files_or_else_the_official_ones(tmp_path: Path) -> None:
    assert known_sizes(TASK, tmp_path) == Sizes(160, 320, 320)
    assert known_sizes(CelebA(), tmp_path) == Sizes(27_018, 27_018, 30_000)
    assert known_sizes(CelebA(num_classes=7), tmp_path) is None
    assert known_sizes(Folder(), tmp_path) is None
    assert known_sizes(MNIST(), tmp_path) == Sizes(30_596, 60_000, 34_265)
    assert known_sizes(CIFAR10(), tmp_path) == Sizes(25_000, 50_000, 30_000)


@dataclass(frozen=True)
class Named(Folder):
    """A user's task with a field that has no default."""

    folder: str = field()


def test_a_task_without_defaults_and_data_has_no_known_size(tmp_path: Path) -> None:
    assert known_sizes(Named("mine"), tmp_path) is None


def dry(table: str, *more: str) -> tuple[int, list[str], str]:
    done = CliRunner().invoke(main, ["run", table, "--dry-run", "--data", "/nowhere", *more])
    return done.exit_code, done.stdout.splitlines(), done.stderr


PAPER = ["table1", "table2", "table3-mnist", "table3-cifar10", "table5", "fig1"]


@pytest.mark.parametrize("table", PAPER)
def test_the_papers_tables_are_planned_without_their_data(table: str) -> None:
    status, lines, note = dry(table, "--store", "/nowhere")
    assert status == 0
    assert note.startswith("note: ")
    assert len(note.splitlines()) == 1
    labels = [line for line in lines if not line.startswith((" ", "time "))]
    assert labels[:-1] == [f"{label}, seed 0" for label in TABLES[table].rows]
    stages = {line.rpartition("  ")[0].strip() for line in lines if line.startswith(" ")}
    assert all(line.endswith("no key without data") for line in lines if line.startswith(" "))
    assert not any("? steps" in s for s in stages)
    assert "whose number is unknown" not in labels[-1]


def test_a_plan_adds_up_what_is_shared_once() -> None:
    status, lines, _ = dry("table3-mnist", "--rows", "No Def.", "--rows", "MID")
    targets, priors, attacks, evaluator = 2 * 20 * 478, 2 * 100 * 535, 2 * 5 * 5000, 30 * 937
    assert status == 0
    total = f"{targets + priors + attacks + evaluator:,} steps to do"
    assert lines[-1] == f"0 done, 0 partial, 28 missing of 28 stages; {total}"


def test_a_run_can_stop_after_the_targets_and_says_their_accuracy(tmp_path: Path) -> None:
    places = ["--store", str(tmp_path / "s"), "--out", str(tmp_path / "o")]
    few = ["--rows", "GMI / No Def.", "--rows", "GMI / MID", "--set", "recipe.epochs=1"]
    few += ["--set", "setting.evaluators.0.recipe.epochs=1", "--executor", "serial"]
    done = CliRunner().invoke(main, ["run", "smoke", *few, *places, "--until", "classifier"])
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["classifier", "images"]
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "target none mcnn, seed 0",
        "evaluator scnn, seed 0",
        "target mid lambda=0.02 mcnn, seed 0",
    ]
    assert all(line.endswith(" %") for line in lines)
    assert list((tmp_path / "o").iterdir()) == []


def test_a_plan_until_the_classifiers_counts_no_more() -> None:
    _, lines, _ = dry("table3-mnist", "--rows", "No Def.", "--until", "classifier")
    assert lines[-1].startswith("0 done, 0 partial, 3 missing of 3 stages")
    assert lines[-1].endswith(f"; {20 * 478 + 30 * 937:,} steps to do")


def test_rows_that_differ_in_a_weight_have_stages_that_say_so() -> None:
    _, lines, _ = dry("fig1", "--until", "classifier")
    targets = {line.split(" steps")[0] for line in lines if "unilateral" in line}
    assert len(targets) == len(TABLES["fig1"].rows)


def test_missing_weights_end_a_run_before_it_starts(tmp_path: Path) -> None:
    weights = {"file": "face.safetensors", "sha256": "0" * 8}
    evaluator = TABLES["celeba300"].rows["GMI / No Def."].setting.evaluators[0]
    with pytest.raises(FileNotFoundError, match=r"mobilefacenet.safetensors is missing"):
        evaluator.network.fetch(tmp_path)
    arguments = ["run", "smoke", "--rows", "GMI / No Def.", "--store", str(tmp_path / "s")]
    arguments += ["--out", str(tmp_path / "o"), "--data", str(tmp_path / "d")]
    file = tmp_path / "face_table.py"
    file.write_text(
        "from dataclasses import replace\n"
        "from mibench.benchmarks.tables import TABLES\n"
        "from mibench.networks import MobileFaceNet, Weights\n"
        f"net = MobileFaceNet(weights=Weights(**{weights}))\n"
        "smoke = TABLES['smoke']\n"
        "cell = smoke.rows['GMI / No Def.']\n"
        "cell = replace(cell, setting=replace(cell.setting, network=net))\n"
        "TABLE = replace(smoke, name='mine', rows={'GMI / No Def.': cell})\n"
    )
    done = CliRunner().invoke(main, ["run", str(file), *arguments[2:]])
    assert done.exit_code == 2, done.output
    assert "face.safetensors is missing" in done.stderr
    assert not any((tmp_path / "s").iterdir())


def finish(stage: Stage, root: Path, seconds: float, **more: object) -> None:
    """Makes a store say that a stage took so long."""
    folder = Store(root).path(stage)
    folder.mkdir(parents=True)
    meta = {"seconds": seconds, "resumed": False, "device": "cpu x86_64"} | more
    (folder / "meta.json").write_bytes(seal(stage, dict.fromkeys(FILES, b""), meta))


def smoke(label: str, *settings: str, seed: int = 0) -> RecordStage:
    cell = TABLES["smoke"].modified(settings).rows[label].at(seed)
    return record_stage(cell, ["accuracy"], cell.setting.task.digest(Path()))


def test_the_time_of_a_stage_is_that_of_steps_like_its_own(tmp_path: Path) -> None:
    known = smoke("GMI / No Def.").evidence[0].inversion
    finish(known, tmp_path, 10.0)
    finish(smoke("GMI / No Def.", seed=1).evidence[0].inversion, tmp_path, 30.0)
    every = graph([smoke("GMI / No Def.", seed=i) for i in range(2)])
    steps: dict[str, int | None] = {s.key: 100 for s in every}
    rates = measured(every, steps, Store(tmp_path), "cpu")
    longer = (
        smoke("GMI / No Def.", "attack.steps=7", "attack.lr=0.5", seed=9).evidence[0].inversion
    )
    assert estimate(longer, 50, rates) == pytest.approx(10.0)  # 0.2 s a step
    assert estimate(longer, None, rates) is None
    assert estimate(smoke("KED-MI / No Def.").evidence[0].inversion, 50, rates) is None
    wider = smoke("GMI / No Def.", "attack.prior.generator_width=8").evidence[0].inversion
    assert estimate(wider, 50, rates) is None
    assert not measured(every, steps, Store(tmp_path), "cuda")


def test_what_was_resumed_is_not_measured_and_a_record_is_one_of_any_defense(
    tmp_path: Path,
) -> None:
    record, other = smoke("GMI / No Def."), smoke("GMI / MID")
    finish(record.evidence[0].inversion, tmp_path, 1.0, resumed=True)
    finish(record, tmp_path, 3.0)
    every = graph([record])
    rates = measured(every, {s.key: 0 for s in every}, Store(tmp_path), "cpu")
    assert estimate(other, 0, rates) == 3.0
    assert len(rates) == 1


def test_the_time_of_a_graph_is_that_of_its_longest_path_or_of_its_slots() -> None:
    stages = graph([smoke("GMI / No Def."), smoke("GMI / MID")])
    seconds = {s.key: 1.0 for s in stages}
    assert len(stages) == 11
    assert makespan(stages, seconds, 1) == 11.0
    assert makespan(stages, seconds, 100) == 5.0
    assert makespan(stages, seconds, 2) == 7.0
    del seconds[stages[0].key]
    assert makespan(stages, seconds, 1) == 10.0


def test_a_plan_says_what_time_it_knows_and_what_it_does_not() -> None:
    stages = graph([smoke("GMI / No Def.")])
    seconds: dict[str, float | None] = {s.key: 90.0 for s in stages if s.kind == "classifier"}
    assert time_lines(stages, seconds, 2) == [
        "time of classifier: 3.0 min",
        "time: 3.0 min of work, 90 s on the longest path, 90 s 2 at once",
    ]
    seconds[stages[-1].key] = None
    assert time_lines(stages, seconds, None)[1:] == [
        "time of record: 1 of 1 unknown: none like them in the store",
        "time: at least 3.0 min of work, 90 s on the longest path",
    ]
    nothing = time_lines(stages, {s.key: None for s in stages}, 2)
    assert len(nothing) == 6
    assert all("unknown" in line for line in nothing)
