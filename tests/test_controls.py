"""Controls find nothing, evaluators form a panel, and protocols score what is stored."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mibench.attacks import GMI, AdversarialNoise, Goal, OtherClass, PriorSamples
from mibench.attacks.access import handed
from mibench.benchmarks.cell import Cell, Evaluator
from mibench.benchmarks.tables import TABLES, Table
from mibench.data.synthetic import Blobs
from mibench.evaluation import METRICS, PROTOCOLS, Compared, Evidence, Lens, Protocol, fields_of
from mibench.evaluation.inception import WEIGHTS, inception_digest, inception_features
from mibench.evaluation.lenses import EVALUATOR
from mibench.networks import MLP
from mibench.reporting import verify
from mibench.reporting.forms import render
from mibench.reporting.results import collect
from mibench.running.checks import tiny
from mibench.running.executors import Bench, Serial, execute
from mibench.running.grid import Grid
from mibench.running.progress import Watcher
from mibench.running.stages import RecordStage, graph, record_stage
from mibench.running.stages import classifier as classifier_stage
from mibench.seeding import generator, seeded
from mibench.store import Payload, Stage, Store, Work
from mibench.types import Classifier, Prior
from tests.test_contracts import TASK

BLOCKS = (torch.arange(2), torch.arange(2, 4))


@pytest.fixture
def target() -> Classifier:
    with seeded("test"):
        network = MLP().build(TASK.shape, TASK.num_classes)
    return network.eval().requires_grad_(requires_grad=False)


@pytest.fixture
def prior() -> Prior:
    with seeded("test"):
        made: Prior = tiny(PriorSamples).prior.build(TASK.shape, TASK.num_classes)
    return made.eval().requires_grad_(requires_grad=False)


def invert(attack: Any, target: Classifier, prior: Prior) -> Tensor:
    rngs = [generator(0, i) for i in range(2)]
    work, goal = Work(), Goal(BLOCKS, 6, rngs, TASK.shape)
    images: Tensor = attack.invert(handed(target, attack.access, work), prior, goal, work).images
    return images


# The attacks ----------------------------------------------------------------------------------


def test_prior_samples_know_nothing_of_the_target(target: Classifier, prior: Prior) -> None:
    with seeded("another"):
        other = MLP().build(TASK.shape, TASK.num_classes).eval()
    found = invert(PriorSamples(), target, prior)
    assert torch.equal(found, invert(PriorSamples(), other, prior))
    rows = found.flatten(0, 1).flatten(1).tolist()
    assert len(set(map(tuple, rows))) == 24


def test_the_other_class_is_the_next_and_the_last_one_s_is_the_first(
    target: Classifier, prior: Prior
) -> None:
    attack = GMI(steps=3)
    rngs = [generator(0, i) for i in range(2)]
    shifted = [torch.tensor([1, 2]), torch.tensor([3, 0])]
    want = attack.invert(target, prior, Goal(shifted, 6, rngs, TASK.shape), Work()).images
    assert torch.equal(invert(OtherClass(attack.prior, attack), target, prior), want)


def test_the_prior_of_the_wrapped_attack_is_the_control_s() -> None:
    outer, inner = tiny(type(GMI().prior), z_dim=3), GMI()
    control = OtherClass(outer, inner)
    assert control.prior == outer
    assert isinstance(control.attack, GMI)
    assert control.attack.prior == outer


@pytest.mark.parametrize("start", ["prior", "noise"])
def test_adversarial_noise_fools_the_target_and_stays_where_it_began(
    start: str, target: Classifier, prior: Prior
) -> None:
    rngs = [generator(0, i) for i in range(2)]
    attack = AdversarialNoise(start=start, epsilon=0.05)  # type: ignore[arg-type]
    found = attack.invert(target, prior, Goal(BLOCKS, 6, rngs, TASK.shape), Work())
    moved = (found.images - found.latents).abs()
    assert moved.max() <= 0.05 + 1e-6
    assert moved.max() > 0.049
    labels = torch.arange(4).repeat(6)
    before, after = (
        target(x.flatten(0, 1)).softmax(1)[torch.arange(24), labels]
        for x in (found.latents, found.images)
    )
    assert (after > before).all()


def test_adversarial_noise_moves_many_images_in_parts(
    target: Classifier, prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, look = AdversarialNoise(steps=3), target.latents
    sizes: list[int] = []
    whole = invert(attack, target, prior)

    def counted(x: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(x))
        return look(x)

    monkeypatch.setattr(target, "latents", counted)
    monkeypatch.setattr("mibench.attacks.controls.ROOM", 10 * whole[0, 0].numel())
    torch.testing.assert_close(invert(attack, target, prior), whole)
    assert sizes == 3 * [10, 10, 4]


def test_a_wrapped_attack_that_hides_the_target_is_refused() -> None:
    class Blind(GMI):
        access = "labels"

    with pytest.raises(ValueError, match="must be a white-box attack, gmi is not"):
        OtherClass(attack=Blind())


@pytest.mark.parametrize("control", [AdversarialNoise(), OtherClass(), PriorSamples()])
def test_a_control_of_a_control_is_refused(control: Any) -> None:
    sentence = f"must be a white-box attack, {control.name} is not"
    with pytest.raises(ValueError, match=sentence):
        OtherClass(attack=control)


# Panels, controls and protocols from end to end ------------------------------------------------

COLUMNS = (
    "accuracy", "attack_acc", "attack_acc5", "fid", "attack_acc_corrected", "false_positives",
    "attack_acc_vote", "evaluator_agreement", "knn_distance", "fid_successful", "ssim",
)  # fmt: skip


def small_cell() -> Cell:
    settings = [
        "attack.prior.epochs=1", "attack.steps=3", "recipe.epochs=2", "trials.samples=4",
        "trials.block=3", "setting.evaluators.0.recipe.epochs=2",
    ]  # fmt: skip
    cell = TABLES["smoke"].modified(settings).rows["GMI / No Def."]
    first = cell.setting.evaluators[0]
    panel = (first, Evaluator(MLP(), first.recipe), Evaluator(MLP(), first.recipe))
    setting = replace(cell.setting, task=Blobs(num_classes=6), evaluators=panel)
    return replace(cell, setting=setting, control=PriorSamples(cell.attack.prior))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A store in which one small cell with a control and three evaluators is done."""
    made = Bench(tmp_path_factory.mktemp("store"), Path())
    outcome = execute(graph([record(small_cell())]), made, Watcher(), Serial())
    assert not outcome.failures, outcome.failures
    return made


def record(cell: Cell, columns: tuple[str, ...] = COLUMNS) -> RecordStage:
    return record_stage(cell, columns, cell.setting.task.digest(Path()))


def loaded(bench: Bench, cell: Cell) -> tuple[Payload, Evidence]:
    store, last = Store(bench.store), record(cell)
    return store.load(last), last.evidence[0].evidence(store.load)


def test_further_evaluators_have_seeds_of_their_own_and_change_no_classifier() -> None:
    cell = small_cell()
    alone = replace(cell, setting=replace(cell.setting, evaluators=cell.setting.evaluators[:1]))
    with_panel, without = (record(c).evidence[0] for c in (cell, alone))
    assert with_panel.evaluator.key == without.evaluator.key
    assert with_panel.inversion.key == without.inversion.key
    assert [e.seed for e in with_panel.others] == [1, 2]
    assert len({e.key for e in (with_panel.evaluator, *with_panel.others)}) == 3


def test_a_record_corrects_by_what_the_evaluator_accepts_of_its_control(bench: Bench) -> None:
    store, last = Store(bench.store), record(small_cell())
    (control,) = last.controls
    assert control.inversion.target.key == last.evidence[0].inversion.target.key
    assert control.evaluator.key == last.evidence[0].evaluator.key
    seen = store.load(control)
    miss = (torch.arange(20) >= 3).long()  # of twenty images of the control
    classes = seen["logits"].shape[1]
    seen["logits"] = torch.eye(classes)[(seen["labels"] + miss) % classes]

    def load(stage: Stage) -> Payload:
        return seen if stage.key == control.key else store.load(stage)

    scores = {name: s["mean"] for name, s in last.compute(load, Work())["scores"].items()}
    assert scores["false_positives"] == pytest.approx(15)
    want = (scores["attack_acc"] - 15) / 0.85
    assert scores["attack_acc_corrected"] == pytest.approx(want)


def test_a_protocol_selects_the_control_s_images_as_it_does_the_attack_s(bench: Bench) -> None:
    cell, store = small_cell(), Store(bench.store)
    last = record(replace(cell, protocol=replace(cell.protocol, keep=1)))
    (control,) = last.controls
    seen = store.load(control)
    labels, classes = seen["labels"], seen["logits"].shape[1]
    surest = seen["passes"] == 2  # of four passes; the evaluator names these alone
    seen["logits"] = torch.eye(classes)[(labels + (~surest).long()) % classes]
    answers = seen["target_logits"].shape[1]
    seen["target_logits"] = surest[:, None].double() * torch.eye(answers)[labels]

    def load(stage: Stage) -> Payload:
        return seen if stage.key == control.key else store.load(stage)

    payload = last.compute(load, Work())
    assert payload["scores"]["false_positives"]["mean"] == pytest.approx(100)
    all_kept = record(replace(cell, protocol=replace(cell.protocol, keep=4))).compute(load, Work())
    told = "All 4 reconstructions of a class count: the protocol keeps as many as 4."
    assert told in all_kept["warnings"]
    assert not [w for w in payload["warnings"] if "keeps" in w]


def test_a_record_tells_of_each_evaluator(bench: Bench) -> None:
    payload, e = loaded(bench, small_cell())
    assert e.others is not None
    assert e.others.shape == (2, *e.logits.shape)
    each = [100 * (x.argmax(1) == e.labels).double().mean().item() for x in (e.logits, *e.others)]
    assert [p["attack_acc"] for p in payload["panel"]] == pytest.approx(each)
    assert [p["seed"] for p in payload["panel"]] == [0, 1, 2]


def test_a_record_says_whose_each_value_is(bench: Bench) -> None:
    payload, e = loaded(bench, small_cell())
    (index,) = payload["index"]
    assert index["identity"] == e.labels.tolist() == list(range(5)) * 4
    assert index["pass"] == [i for i in range(4) for _ in range(5)]
    assert index["block"] == [0, 0, 0, 1, 1] * 4
    assert len(payload["values"]["attack_acc"][0]) == 20


def test_the_stored_similarity_is_to_the_nearest_private_image(bench: Bench) -> None:
    _, e = loaded(bench, small_cell())
    assert e.ssim is not None
    assert e.ssim.shape == (20,)
    assert e.ssim.std() > 0
    assert e.ssim.abs().max() <= 1


class RerunError(Exception):
    """Something was trained or attacked again."""


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_scores_what_is_stored_and_runs_no_training_or_attack(
    name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(*_: object, **__: object) -> None:
        raise RerunError

    cell = small_cell()
    monkeypatch.setattr(classifier_stage, "train_classifier", again)
    monkeypatch.setattr(type(cell.attack), "invert", again)
    monkeypatch.setattr(PriorSamples, "invert", again)
    monkeypatch.setattr(type(cell.attack.prior), "train", again)
    table = Table("made", "Made by hand.", {"GMI / No Def.": cell}, COLUMNS)
    table = table.modified([f"protocol.{k}={v}" for k, v in fields_of(name).items()])
    cell = table.rows["GMI / No Def."]
    assert {k: getattr(cell.protocol, k) for k in fields_of(name)} == fields_of(name)
    outcome = execute(graph([record(cell)]), bench, Watcher(), Serial())
    assert not outcome.failures, outcome.failures
    assert outcome.computed <= 3  # the evidence of the attack and of its control, and the record
    scores = Store(bench.store).load(record(cell))["scores"]
    assert scores["attack_acc"]["mean"] is not None
    text = render(
        collect(Grid(table, {"GMI / No Def.": [record(cell)]}, Store(bench.store))), "text"
    )
    if "inception" in cell.protocol.fid:
        assert scores["fid"]["mean"] is None
        assert f"put {WEIGHTS}" in text
        assert "0.00" not in [row.split()[-1] for row in text.split("\n") if "No Def" in row]
    else:
        assert scores["fid"]["mean"] > 0
    assert ("FID here is" in text) == (cell.protocol.fid != "fid")


def test_what_is_undefined_is_missing_with_its_reason(bench: Bench) -> None:
    cell = replace(small_cell(), control=None)
    execute(graph([record(cell)]), bench, Watcher(), Serial())
    payload = Store(bench.store).load(record(cell))
    assert payload["scores"]["false_positives"] == {"mean": None, "std": None, "n": 0}
    assert payload["values"]["false_positives"] == []
    assert [w for w in payload["warnings"] if "names no control" in w]


def test_a_control_is_checked_like_an_attack() -> None:
    class Blind(GMI):
        access = "labels"

    cell = TABLES["smoke"].rows["KED-MI / No Def."]
    with pytest.raises(ValueError, match="give it another prior"):
        replace(cell, control=Blind(cell.attack.prior)).check()


# Protocols --------------------------------------------------------------------------------------


def surest() -> Evidence:
    """Two classes, three passes; the target is surest of class 0's last and class 1's first."""
    p = torch.tensor([0.2, 0.9, 0.3, 0.7, 0.8, 0.1]).double()
    labels = torch.tensor([0, 1] * 3)
    return Evidence(
        labels=labels,
        block=torch.zeros(6, dtype=torch.long),
        passes=torch.arange(3).repeat_interleave(2),
        logits=torch.eye(6, 6),
        features={EVALUATOR: Compared(torch.arange(6.0)[:, None], torch.zeros(2, 1))},
        real_labels=torch.tensor([0, 1]),
        test_logits=torch.eye(2),
        test_labels=torch.arange(2),
        others=torch.arange(6.0)[None, :, None].expand(1, 6, 6),
        target_logits=torch.where(
            labels[:, None] == torch.arange(2), p[:, None].log(), (1 - p[:, None]).log()
        ),
    )


@pytest.mark.parametrize(
    ("keep", "images", "passes"),
    [
        (0, [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]),
        (1, [4, 1], [0, 0]),
        (2, [2, 1, 4, 3], [0, 0, 1, 1]),
        (9, [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]),
    ],
)
def test_of_each_class_those_are_kept_of_which_the_target_is_surest(
    keep: int, images: list[int], passes: list[int]
) -> None:
    seen = Protocol(keep=keep).view(surest())
    assert seen.through(EVALUATOR).reconstructed[:, 0].tolist() == images
    assert seen.labels.tolist() == [0, 1] * (len(images) // 2)
    assert seen.passes.tolist() == passes
    assert seen.others is not None
    assert seen.others[0, :, 0].tolist() == images


def trial(shift: float) -> Evidence:
    """Evidence of an FID of ``shift`` squared; all of it hits where the shift is 0."""
    rng = generator("trial")
    real = torch.randn(40, 2, generator=rng).double()
    labels = torch.tensor([0, 1] * 20)
    return replace(
        surest(),
        labels=labels, block=torch.zeros(40, dtype=torch.long),
        passes=torch.arange(20).repeat_interleave(2),
        logits=torch.eye(2)[labels if shift == 0 else 1 - labels],
        features={EVALUATOR: Compared(real + torch.tensor([shift, 0]), real)},
        real_labels=labels,
        others=None, target_logits=None,
    )  # fmt: skip


@pytest.mark.parametrize(("least", "left"), [(0, 3), (8.9, 2), (9.1, 1), (100, 0)])
def test_repeats_of_a_lower_fid_do_not_count(least: float, left: int) -> None:
    trials = [trial(0), trial(3), trial(5)]  # FIDs of 0, 9 and 25
    assert len(Protocol(least_fid=least).counted(trials)) == left


def test_a_repeat_without_an_fid_counts() -> None:
    seen = trial(3).through(EVALUATOR)
    few: dict[Lens, Compared] = {EVALUATOR: Compared(seen.reconstructed, seen.real[:1])}
    one = replace(trial(3), features=few, real_labels=trial(3).real_labels[:1])
    assert Protocol(least_fid=1e6).counted([one, trial(3)]) == [one]


@pytest.mark.parametrize(
    ("least", "left", "mean"), [(0, 3, 100 / 3), (1000, 2, 0), (1e9, 0, None)]
)
def test_a_record_leaves_out_all_scores_of_repeats_that_do_not_count(
    bench: Bench, least: float, left: int, mean: float | None
) -> None:
    """The first of three repeats looks real, the others do not, and it alone hits."""
    cell, store = small_cell(), Store(bench.store)
    cell = replace(
        cell,
        setting=replace(cell.setting, evaluators=cell.setting.evaluators[:1]),
        trials=replace(cell.trials, repeats=3),
        protocol=replace(cell.protocol, least_fid=least),
        control=None,
    )
    last = record(cell, ("accuracy", "attack_acc"))
    assert last.metrics[2:] == ((("fid", METRICS["fid"].version),) if least else ())
    repeats = [e.key for e in last.evidence]
    inversions = [e.inversion for e in last.evidence]
    seen = store.load(record(small_cell()).evidence[0])

    def load(stage: Stage) -> Payload:
        if stage in inversions:
            return store.load(inversions[0])
        if stage.key not in repeats:
            return store.load(stage)
        i = repeats.index(stage.key)
        classes = seen["logits"].shape[1]
        near = seen["real"].repeat(9, 1)[: len(seen["labels"])]
        return {
            **seen,
            "logits": torch.eye(classes)[(seen["labels"] + (i > 0)) % classes],
            "features": near + 50.0 * i,
        }

    payload = last.compute(load, Work())
    assert payload["scores"]["attack_acc"]["mean"] == pytest.approx(mean)
    assert len(payload["index"]) == left
    assert [len(v) for v in payload["values"].values()][1:] == [left] * (1 + (least > 0))
    assert payload["scores"]["accuracy"]["mean"] is not None  # of the target, whatever counts
    warned = " ".join(payload["warnings"])
    assert (f"{3 - left} of 3 repeats of an attack have an FID below" in warned) == (left < 3)
    assert warned.count("all its repeats have an FID below 1e+09") == (0 if left else 2)
    assert payload["panel"][0]["attack_acc"] == pytest.approx(100 / 3 if mean is None else mean)
    verify._check_scores(payload)


def test_a_protocol_decides_all_that_the_table_does_not() -> None:
    every = set(vars(Protocol()))
    for name in PROTOCOLS:
        assert every - set(fields_of(name)) <= {"select", "real"}
        Protocol(**fields_of(name))  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="unknown protocol 'x'; known: per-pass, kdd22"):
        fields_of("x")


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("kdd22", {"fid": "fid_stretched"}),
        ("gmi", {"attack_acc": "attack_acc_best", "attack_acc5": "attack_acc_any"}),
        ("lomma", {"fid": "fid_inception_successful", "attack_acc": "attack_acc"}),
        ("ppa", {"fid": "fid_inception"}),
    ],
)
def test_a_protocol_says_what_a_column_is(name: str, columns: dict[str, str]) -> None:
    protocol = Protocol(**fields_of(name))  # type: ignore[arg-type]
    assert {c: protocol.metric(c).name for c in columns} == columns


# Inception --------------------------------------------------------------------------------------


def test_without_its_weights_there_is_no_digest_and_with_them_another_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mibench.evaluation.inception.PUBLISHED", "")
    assert inception_digest(tmp_path) == ""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / WEIGHTS).write_bytes(b"x")
    digest = inception_digest(tmp_path)
    assert len(digest) == 64
    cell = small_cell()
    asks = replace(cell, protocol=replace(cell.protocol, fid="fid_inception"))
    keys = {
        (c is asks, d): record_stage(c, ("fid",), "d", d).evidence[0].key
        for c in (cell, asks)
        for d in ("", digest)
    }
    assert keys[False, ""] == keys[False, digest] == keys[True, ""] != keys[True, digest]


@pytest.mark.slow
def test_inception_s_features_come_from_the_file_and_from_no_network(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_fid import inception

    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / WEIGHTS
    built = {}

    def no_network(*_: object, **__: object) -> dict[str, Tensor]:
        raise RerunError

    class Grab(Exception):  # noqa: N818 - only carries out what is being built
        pass

    def grab(self: torch.nn.Module, state: Any) -> None:
        built.update(self.state_dict())
        raise Grab

    with monkeypatch.context() as m, seeded("weights"):
        m.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        m.setattr("torchvision.models.Inception3.load_state_dict", grab)
        with pytest.raises(Grab):
            inception.fid_inception_v3()
    torch.save(built, path)
    monkeypatch.setattr(inception, "load_state_dict_from_url", no_network)
    monkeypatch.setattr("mibench.evaluation.inception.PUBLISHED", "")
    monkeypatch.setattr(torch, "load", no_network)
    digest, device = inception_digest(tmp_path), torch.device("cpu")
    x = torch.rand(3, 1, 16, 16, generator=rng)
    found = inception_features(x, path, digest, device, batch=2)
    assert found.shape == (3, 2048)
    assert found.isfinite().all()
    torch.testing.assert_close(found[2:], inception_features(x[2:], path, digest, device))
    with pytest.raises(ValueError, match="changed while it was used"):
        inception_features(x, path, "0" * 64, device)
