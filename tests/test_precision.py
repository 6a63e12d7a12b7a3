"""The precision of networks: what is in bf16 and what never is, what is recorded, who may mix."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import mibench
from mibench import precision
from mibench.attacks import ATTACKS, PRIORS, Goal
from mibench.cli import main
from mibench.data.synthetic import Blobs
from mibench.defenses import BiDO, NoDefense, Recipe
from mibench.machine import in_words
from mibench.networks import MCNN, MLP
from mibench.networks.fold import PackedDiscrimination, quick
from mibench.networks.generators.dcgan import (
    Critic,
    Generator,
    InversionDiscriminator,
    MinibatchDiscrimination,
)
from mibench.precision import BF16, FLOAT32, at, mixed
from mibench.reporting.forms import render
from mibench.reporting.results import collect
from mibench.roles import Batch
from mibench.running import plan
from mibench.running.checks import tiny
from mibench.running.executors import Bench, Ray, Serial, execute
from mibench.running.executors.base import elsewhere
from mibench.running.grid import Grid
from mibench.running.mixing import settled
from mibench.running.progress import Watcher
from mibench.running.stages import ClassifierStage, ImagesStage, graph
from mibench.running.stages.dependence import DependenceStage
from mibench.seeding import generator, seeded
from mibench.store import Payload, Stage, Store, Work
from mibench.types import Classifier, predict
from tests.made import META, payload, smoke

IMAGES = ImagesStage(Blobs(num_classes=4), "drawn")
TARGET = ClassifierStage(IMAGES, "private", MLP(), NoDefense(), Recipe(2, select="last"), 0)


class Spy(Classifier):
    """Notes where autocast is on; its layer is one product."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 3
        self.layer, self.neck, self.last = nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3)
        self.on: dict[str, bool] = {}

    def latents(self, x: Tensor) -> tuple[Tensor, ...]:
        self.on["latents"] = torch.is_autocast_enabled("cpu")
        return (self.layer(x.flatten(1)),)

    def head(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        self.on["head"] = torch.is_autocast_enabled("cpu")
        return super().head(z, noise)


def spy() -> Spy:
    with seeded("spy"):
        return Spy()


def narrow(x: Tensor) -> bool:
    return torch.equal(x, x.bfloat16().float())


def test_latents_are_in_bf16_and_logits_are_not(rng: torch.Generator) -> None:
    network, x = spy(), torch.rand(5, 1, 2, 2, generator=rng)
    with at(BF16):
        (z,), logits = network.latents(x), network(x)
    assert network.on == {"latents": True, "head": False}
    assert z.dtype == logits.dtype == torch.float32
    assert narrow(z)
    assert not narrow(logits)
    torch.testing.assert_close(logits, network.head(z))


def test_in_float32_nothing_is_rounded(rng: torch.Generator) -> None:
    network, x = spy(), torch.rand(5, 1, 2, 2, generator=rng)
    (z,) = network.latents(x)
    assert network.on["latents"] is False
    assert torch.equal(z, network.layer(x.flatten(1)))
    assert not narrow(z)


def test_the_precision_ends_with_its_block() -> None:
    def fail() -> None:
        with at(BF16):
            raise KeyError(precision.current())

    with pytest.raises(KeyError, match=BF16):
        fail()
    assert precision.current() == FLOAT32


def test_a_network_inside_another_hands_on_bf16() -> None:
    inner_dtype = []

    class Inner(nn.Module):
        @mixed
        def forward(self, x: Tensor) -> Tensor:
            return x @ x

    class Outer(nn.Module):
        @mixed
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = Inner()(x)
            inner_dtype.append(y.dtype)
            return y

    with at(BF16):
        assert Outer()(torch.eye(2)).dtype == torch.float32
    assert inner_dtype == [torch.bfloat16]


def test_channels_go_last_only_where_a_network_says_so_and_only_in_bf16() -> None:
    layouts = []

    class Plain(nn.Module):
        channels_last: ClassVar[bool] = False

        @mixed
        def forward(self, x: Tensor) -> Tensor:
            layouts.append(x.is_contiguous(memory_format=torch.channels_last))
            return x

    class Last(Plain):
        channels_last = True

    x = torch.rand(2, 3, 4, 4, generator=generator("x"))
    for network in (Plain(), Last()):
        network(x)
        with at(BF16):
            network(x)
    assert layouts == [False, False, False, True]


@pytest.mark.parametrize("own", [FLOAT32, BF16])
def test_weights_are_laid_out_as_maps_are_and_stored_alike(own: str, tmp_path: Path) -> None:
    network = MCNN((4, 8), (3, 3), (1, 1))
    stage = replace(TARGET, network=network, recipe=Recipe(1, select="last"))
    with at(own), seeded("test"):
        trained = network.build((1, 8, 8), 4)
        precision.laid_out(trained)
    weight = trained.state_dict()["blocks.1.0.weight"]
    last = weight.is_contiguous(memory_format=torch.channels_last)
    assert last == (own == BF16)
    run(stage, tmp_path, own)
    state = Store(tmp_path).load(stage)["state"]
    assert all(value.is_contiguous() for value in state.values())


def test_dependence_losses_and_optimisers_stay_in_float32(rng: torch.Generator) -> None:
    with seeded("test"):
        network = MLP().build((1, 8, 8), 4)
    x, y = torch.rand(16, 1, 8, 8, generator=rng), torch.arange(16) % 4
    defense = BiDO("nhsic", lambda_x=0.5, lambda_y=2.0)
    with at(BF16):
        zs = [z.detach() for z in network.latents(x)]
        terms = defense.loss_terms(network, Batch(x, y))

    class Fixed(Classifier):
        """Has these latents, and the network's head."""

        num_classes = 4
        last = network.last

        def latents(self, x: Tensor) -> tuple[Tensor, ...]:
            return tuple(zs)

    for name, value in defense.loss_terms(Fixed(), Batch(x, y)).items():
        assert torch.equal(terms[name], value), name
    optimizer = torch.optim.Adam(network.parameters())
    with at(BF16):
        defense.step(network, Batch(x, y), optimizer)
    kept = [v for s in optimizer.state.values() for v in s.values()]
    kept += [*network.parameters()] + [p.grad for p in network.parameters()]
    assert {v.dtype for v in kept} == {torch.float32}


def test_scores_of_discriminators_and_pixels_are_in_float32(rng: torch.Generator) -> None:
    with seeded("test"):
        D = InversionDiscriminator(4, (1, 16, 16), 5, mbd=6, mbd_kernels=3)
        critic, G = Critic(4, (1, 16, 16)), Generator(8, 8, (1, 16, 16))
        D.closeness.T.data /= 10
    x, z = torch.rand(7, 1, 16, 16, generator=rng), torch.randn(7, 8, generator=rng)
    with at(BF16):
        features, logits = D(x)
        score, drawn = critic(x), G(z)
        closeness = D.closeness(features)
    for value in (logits, score, drawn, closeness):
        assert value.dtype == torch.float32
        assert not narrow(value)
    assert narrow(features)
    torch.testing.assert_close(logits, D(x)[1], rtol=0.1, atol=0.05)


@pytest.mark.parametrize("cls", PRIORS.values(), ids=lambda c: c.name)
def test_every_prior_draws_and_judges_in_bf16_nearly_as_in_float32(
    cls: Any, rng: torch.Generator
) -> None:
    with seeded("test"):
        prior = tiny(cls).build((1, 8, 8), 4).eval()
    z, y = prior.sample(6, rng), torch.arange(6) % 4
    x = prior.generate(z, y)
    with at(BF16):
        drawn = prior.generate(z, y)
        assert drawn.dtype == torch.float32
        if "critic" in tiny(cls).offers:
            scores = prior.realism(x, y)
            assert scores.dtype == torch.float32
    torch.testing.assert_close(drawn, x, rtol=0.05, atol=0.03)


def test_a_quick_network_computes_in_bf16_what_the_plain_one_does(rng: torch.Generator) -> None:
    shape = (1, 16, 16)
    with seeded("test"):
        D = InversionDiscriminator(4, shape, 5, mbd=6, mbd_kernels=3).eval()
        G, target = Generator(8, 8, shape).eval(), MCNN((4, 8), (5, 3), (1, 0)).build(shape, 5)
        D.closeness.T.data /= 10
    z = torch.randn(7, 8, generator=rng)
    target.eval()

    def gradient(G: nn.Module, D: nn.Module, target: Classifier) -> tuple[Tensor, Tensor]:
        at_z = z.clone().requires_grad_()
        x = G(at_z)
        loss = D(x)[1].logsumexp(1).sum() + target(x).square().sum()
        return torch.autograd.grad(loss, at_z)[0], loss.detach()

    exact, value = gradient(G, D, target)
    with at(BF16):
        plain, _ = gradient(G, D, target)
        fast, other = gradient(quick(G), quick(D), quick(target))
    assert fast.dtype == torch.float32
    torch.testing.assert_close(other, value, rtol=0.02, atol=0.02)
    assert 0 < (fast - exact).norm() < 2 * (plain - exact).norm() < 0.5 * exact.norm()


def test_the_packed_matrix_is_bf16_where_networks_are() -> None:
    with seeded("test"):
        plain = MinibatchDiscrimination(8, 4, 3)
    f = torch.randn(5, 8, generator=generator("f"))
    with at(BF16):
        made = quick(nn.Sequential(plain))[0]
    assert isinstance(made, PackedDiscrimination)
    torch.testing.assert_close(made.project(f), f @ plain.T, rtol=0.05, atol=0.05)
    assert not torch.allclose(made.project(f), f @ plain.T, rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Precise(Stage):
    """Says at which precision it was computed."""

    kind: ClassVar[str] = "precise"
    below: tuple[Stage, ...] = ()

    def compute(self, load: Any, work: Work) -> Payload:
        return {"at": precision.current()}


@dataclass(frozen=True)
class Exact(Precise):
    kind: ClassVar[str] = "exact"
    exact: ClassVar[bool] = True


def run(last: Stage, root: Path, own: str) -> None:
    bench = Bench(root, Path(), precision=own)
    assert not execute(graph([last]), bench, Watcher(), Serial()).failures


def test_stages_record_their_precision_and_what_they_rest_on(tmp_path: Path) -> None:
    store, below = Store(tmp_path), Precise()
    run(below, tmp_path, FLOAT32)
    top = Exact((below, Precise((Exact(),))))
    run(top, tmp_path, BF16)
    metas = {s: store.meta(s) for s in graph([top])}
    assert [(m["precision"], m["precisions"]) for m in metas.values()] == [
        (FLOAT32, [FLOAT32]), (FLOAT32, []), (BF16, [BF16]), (FLOAT32, [BF16, FLOAT32]),
    ]  # fmt: skip
    assert [store.load(s)["at"] for s in metas] == [FLOAT32, FLOAT32, BF16, FLOAT32]
    assert "precision bf16" in in_words(metas[Precise((Exact(),))])
    assert "precision float32" in in_words(META)


def test_a_stage_without_a_precision_is_of_float32(tmp_path: Path) -> None:
    store, below = Store(tmp_path), Precise()
    store._commit(below, {}, dict(META))
    store._commit(Exact(), {}, dict(META))
    run(Precise((below, Exact())), tmp_path, BF16)
    assert store.meta(Precise((below, Exact())))["precisions"] == [BF16, FLOAT32]
    run(Precise((Exact(),)), tmp_path, BF16)
    assert store.meta(Precise((Exact(),)))["precisions"] == [BF16]


def test_dependence_is_measured_in_float32_whatever_the_run(tmp_path: Path) -> None:
    stage = DependenceStage(TARGET, ("nhsic",), 16)
    run(TARGET, tmp_path / "a", FLOAT32)
    (tmp_path / "b").mkdir()
    run(TARGET, tmp_path / "b", FLOAT32)
    run(stage, tmp_path / "a", FLOAT32)
    run(stage, tmp_path / "b", BF16)
    a, b = (Store(tmp_path / side).meta(stage) for side in "ab")
    assert a["sha256"]["payload.json"] == b["sha256"]["payload.json"]
    assert a["sha256"]["payload.safetensors"] == b["sha256"]["payload.safetensors"]


def test_training_in_bf16_keeps_float32_weights_and_other_bits(tmp_path: Path) -> None:
    states = []
    for own in (FLOAT32, BF16):
        run(TARGET, tmp_path / own, own)
        states.append(Store(tmp_path / own).load(TARGET))
    for name, weight in states[0]["state"].items():
        other = states[1]["state"][name]
        assert other.dtype == weight.dtype
        torch.testing.assert_close(other, weight, rtol=0.1, atol=0.05)
    assert any(
        not torch.equal(w, states[1]["state"][name]) for name, w in states[0]["state"].items()
    )
    assert abs(states[0]["accuracy"] - states[1]["accuracy"]) < 10


def test_times_are_expected_from_stages_of_the_same_precision(tmp_path: Path) -> None:
    stages = [Precise((Precise(),)), Precise((Precise((Exact(),)),)), Exact((Precise(),))]
    store = Store(tmp_path)
    for stage, own, seconds in zip(stages, (FLOAT32, BF16, FLOAT32), (8, 2, 1), strict=True):
        store._commit(stage, {}, META | {"precision": own, "seconds": seconds})
    steps = dict.fromkeys((s.key for s in stages), 1)

    def seconds_at(*names: str) -> list[float]:
        taken = plan.measured(stages, steps, store, "cpu", names)
        return sorted(seconds for runs in taken.values() for _, seconds in runs)

    assert seconds_at(FLOAT32) == [1, 8]
    assert seconds_at(BF16) == [1, 2]
    assert seconds_at(FLOAT32, BF16) == [1, 2, 8]


def test_a_state_saved_at_another_precision_is_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with at(BF16):
        Work(tmp_path, every=0).save(lambda: {"x": 1})
        assert Work(tmp_path).load() == {"x": 1}
    assert Work(tmp_path).load() is None
    assert "another precision" in capsys.readouterr().err


def test_a_run_says_how_many_finished_stages_have_another_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = Precise((Exact(),)), Precise((Precise((Precise(),)),))
    stages = graph([first, second])
    run(first, tmp_path, BF16)
    run(Precise((Precise(),)), tmp_path, FLOAT32)
    bench = Bench(tmp_path, Path())
    assert settled(bench, stages, None, Serial()).precision == FLOAT32
    told = capsys.readouterr().err
    assert told.startswith("note: 1 of the finished stages")
    assert "were not computed in float32" in told
    with pytest.raises(ValueError, match=r"2 of the finished stages .* in bf16.*--mix-precision"):
        settled(bench, stages, BF16, Serial())
    assert settled(bench, stages, BF16, Serial(), mix=True).precision == BF16
    assert "2 of the finished stages" in capsys.readouterr().err


def test_finished_stages_of_the_same_precision_need_no_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = Exact((Precise(),))
    run(top, tmp_path, BF16)
    (Store(tmp_path).path(Precise()) / "meta.json").write_text("{")  # damaged: computed again
    assert settled(Bench(tmp_path, Path()), graph([top]), BF16, Serial()).precision == BF16
    assert capsys.readouterr().err == ""


def test_auto_measures_once_for_a_store_and_kind_of_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = iter([1.5, 1.49, 7.0])
    monkeypatch.setattr(precision, "gain", lambda *_: next(ratios))
    bench = Bench(tmp_path, Path())

    def auto(kind: str, root: Path = tmp_path) -> str:
        root.mkdir(exist_ok=True)
        monkeypatch.setattr(precision, "machine", lambda: {"processor": kind, "onednn": "v3"})
        return settled(replace(bench, store=root), [], "auto", Serial()).precision

    assert [auto("A"), auto("B"), auto("A"), auto("B")] == [BF16, FLOAT32, BF16, FLOAT32]
    assert auto("B", tmp_path / "other") == BF16
    kept = json.loads((tmp_path / precision.DECISIONS).read_text())
    assert kept["B, oneDNN v3"] == {"precision": FLOAT32, "times_as_fast": 1.49}


@pytest.mark.parametrize("text", ["", "[]", '{"A, oneDNN v3": 1}', '{"A, oneDNN v3": {}}'])
def test_a_decision_that_cannot_be_read_is_made_again(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / precision.DECISIONS).write_text(text)
    monkeypatch.setattr(precision, "gain", lambda *_: 2.0)
    monkeypatch.setattr(precision, "machine", lambda: {"processor": "A", "onednn": "v3"})
    assert precision.decided(tmp_path, "cpu", 1) == BF16
    assert json.loads((tmp_path / precision.DECISIONS).read_text())["A, oneDNN v3"]


def test_the_gain_is_a_measured_ratio() -> None:
    assert 0 < precision.gain(torch.device("cpu"), 1, rounds=1) < 1000


def test_other_machines_decide_nothing_and_keep_the_precision(tmp_path: Path) -> None:
    bench = Bench(tmp_path, tmp_path, precision=BF16)
    assert elsewhere(bench, lambda: False).precision == BF16
    with pytest.raises(ValueError, match="auto is decided on this machine"):
        settled(bench, [], "auto", Ray())
    with pytest.raises(ValueError, match=r"precision 'bf32'.*bf16"):
        settled(bench, [], "bf32", Serial())


def made(store: Store, narrow: Callable[[Stage], bool]) -> Grid:
    """Commits made-up stages, those in bf16 of which ``narrow`` says so."""
    grid = Grid.plan(smoke(), 1, None, store)
    for stage in graph(grid.last):
        own = BF16 if narrow(stage) and not stage.exact else FLOAT32
        beneath = {p for need in stage.needs for p in store.meta(need)["precisions"]}
        each = sorted(beneath | ({own} if not stage.exact else set()))
        meta = META | {"precision": own, "precisions": each}
        store._commit(stage, payload(stage, store), meta)
    return grid


def test_tables_mark_rows_that_mix(tmp_path: Path) -> None:
    grid = made(Store(tmp_path), lambda s: s.kind == "inversion" and "mid" in s.describe())
    results = collect(grid)
    assert results.mixed == ["GMI / MID"]
    text = render(results, "text")
    marked = [line for line in text.splitlines() if "§" in line]
    assert len(marked) == 2
    assert marked[0].strip().startswith("GMI / MID §")
    assert "some of the stages were computed in float32 and some in bf16" in marked[1]
    assert r"GMI / MID \S{}" in render(results, "latex")
    assert "§" not in render(results, "csv")


def test_tables_say_what_was_computed_in_bf16(tmp_path: Path) -> None:
    text = render(collect(made(Store(tmp_path), lambda _: True)), "text")
    assert "Networks computed in bf16: GMI, VMI." in text.replace(" / No Def.", "")
    assert "§" not in text
    (tmp_path / "other").mkdir()
    plain = render(collect(made(Store(tmp_path / "other"), lambda _: False)), "text")
    assert "bf16" not in plain


FILE = """
from mibench import Table
from mibench.benchmarks.tables import TABLES

row = TABLES["smoke"].rows["GMI / No Def."]
TABLE = Table("few", "Few.", {"GMI / No Def.": row}).modified(
    ["attack.prior.epochs=1", "attack.steps=3", "recipe.epochs=1"]
)
"""


def test_the_command_line_refuses_to_mix(tmp_path: Path) -> None:
    (tmp_path / "few.py").write_text(FILE)

    def call(*arguments: str) -> Any:
        places = ["--store", str(tmp_path / "s"), "--out", str(tmp_path / "o"), "--quiet"]
        few = ["run", str(tmp_path / "few.py"), "--until", "classifier", "--executor", "serial"]
        return CliRunner().invoke(main, [*few, *places, *arguments])

    assert call("--precision", "bf16").exit_code == 0
    refused = call("--precision", "float32")
    assert refused.exit_code == 2
    assert "were not computed in float32" in refused.stderr
    plain = call()
    assert plain.exit_code == 0
    assert "note: 2 of the finished stages" in plain.stderr
    assert call("--precision", "float32", "--mix-precision").exit_code == 0
    assert "goes with --precision" in call("--mix-precision").stderr
    assert call("--precision", "fp8").exit_code == 2


def test_python_runs_at_a_precision_too(tmp_path: Path) -> None:
    cell = smoke("GMI / No Def.").modified(
        ["attack.prior.epochs=1", "attack.steps=3", "recipe.epochs=1"]
    )
    results = mibench.run(cell, store=tmp_path, precision=BF16)
    assert results.precisions == {"GMI / No Def.": frozenset({BF16})}
    with pytest.raises(ValueError, match="not computed in float32"):
        mibench.run(cell, store=tmp_path, precision=FLOAT32)


@pytest.mark.parametrize("cls", ATTACKS.values(), ids=lambda c: c.name)
def test_every_attack_runs_in_bf16(cls: Any) -> None:
    attack = tiny(cls)
    if attack.access != "white" or attack.public:
        pytest.skip("its target is behind a counter, which other tests build")
    shape = (1, 8, 8)
    with seeded("test"):
        target = MCNN((4, 8), (3, 3), (1, 1)).build(shape, 4)
        prior = attack.prior.build(shape, 4)
    target.eval().requires_grad_(requires_grad=False)
    prior.eval().requires_grad_(requires_grad=False)
    goal = Goal([torch.arange(4)], 2, [generator("x")], shape)
    with at(BF16), seeded("test"):
        made = attack.invert(target, prior, goal, Work())
        logits = predict(target, made.images.flatten(0, 1), generator("y"))[0]
    assert made.images.dtype == made.latents.dtype == logits.dtype == torch.float32
    assert made.images.isfinite().all()
