"""VMI: its objective, its spaces, and what its weight does."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from mibench.attacks import VMI, Goal, StyleGAN2
from mibench.attacks.priors.stylegan import StyleGANPrior
from mibench.attacks.vmi import Fit, Styles, shortened
from mibench.benchmarks.tables import TABLES
from mibench.data.synthetic import Blobs
from mibench.evaluation.gathering import best_moment
from mibench.networks import MLP
from mibench.networks.foreign.weights import Weights
from mibench.override import override
from mibench.reporting.figures import draw_samples
from mibench.running.checks import tiny
from mibench.running.grid import Grid
from mibench.running.stages import graph, record_stage
from mibench.seeding import generator, seeded
from mibench.store import Store, Work
from mibench.types import Classifier

TASK = Blobs(num_classes=4)
CPU = torch.device("cpu")
ATTACK = VMI(couplings=2, hidden=8, batch=6, steps=5, optimizer="adam", lr=0.02)


@pytest.fixture(scope="module")
def prior() -> StyleGANPrior:
    with seeded("prior"):
        built = tiny(type(ATTACK.prior)).build(TASK.shape, TASK.num_classes)
    assert isinstance(built, StyleGANPrior)
    built.eval().requires_grad_(requires_grad=False)
    return built


@pytest.fixture(scope="module")
def target() -> Classifier:
    with seeded("target"):
        network = MLP().build(TASK.shape, TASK.num_classes)
    return network.eval().requires_grad_(requires_grad=False)


class Fixed(Classifier):
    """Says the same of every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def latents(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.flatten(1),)

    def head(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.logits + 0 * z[:, :1]


def fit(attack: VMI, prior: StyleGANPrior, target: Classifier, classes: list[int]) -> Fit:
    block = torch.tensor(classes)
    return Fit(attack, Styles(attack, prior, CPU), target, block, generator("fit"))


def divergence(fitted: Fit) -> Tensor:
    """Returns each class's KL divergence from N(0, I), in nats per layer."""
    with torch.no_grad():
        return fitted.styles.draw(fitted.flows, 500, generator("kl"))[1].mean(1)


@torch.no_grad()
def stir(fitted: Fit) -> None:
    """Moves the flows a little from where they start."""
    rng = generator("stir")
    for p in fitted.flows.parameters():
        p.add_(torch.randn(p.shape, generator=rng), alpha=0.1)


@pytest.mark.parametrize("flow", ["layered", "joint", "common"])
def test_the_loss_is_that_of_each_class_plus_lambda_times_its_divergence(
    flow: str, prior: StyleGANPrior
) -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.1])
    attack = replace(ATTACK, flow=flow, lambda_kl=0.7)  # type: ignore[arg-type]
    fitted = fit(attack, prior, Fixed(logits), [2, 0, 3])
    stir(fitted)
    stream = fitted.rng.get_state()
    loss = fitted.step()
    fresh = fit(attack, prior, Fixed(logits), [2, 0, 3])
    stir(fresh)
    with torch.no_grad():
        rng = torch.Generator()
        rng.set_state(stream)
        z, log_q = fresh.flows(fresh.flows.sample_noise(6, [rng] * 3))
        normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum((2, 3))
        kl = (log_q.sum(2) - normal).mean(1) / z.shape[2]
    own = F.cross_entropy(logits.expand(3, 4), torch.tensor([2, 0, 3]), reduction="none")
    torch.testing.assert_close(loss, (own + 0.7 * kl).float(), rtol=1e-4, atol=1e-4)


def test_without_its_weight_the_divergence_runs_away_and_with_it_it_is_bounded(
    prior: StyleGANPrior, target: Classifier
) -> None:
    ends = {}
    for lambda_kl in (0.0, 0.01, 1.0):
        fitted = fit(replace(ATTACK, lambda_kl=lambda_kl), prior, target, [0, 1, 2, 3])
        for _ in range(80):
            fitted.step()
        ends[lambda_kl] = divergence(fitted).mean().item()
    assert ends[1.0] < 0.5
    assert ends[0.01] < 10 < ends[0.0]


def test_fitting_makes_the_target_see_the_class(prior: StyleGANPrior, target: Classifier) -> None:
    fitted = fit(replace(ATTACK, lambda_kl=1e-3), prior, target, [0, 1, 2, 3])
    losses = torch.stack([fitted.step() for _ in range(60)])
    assert (losses[-10:].mean(0) < losses[:10].mean(0) - 0.02).all()


@pytest.mark.parametrize("space", ["z", "w"])
@pytest.mark.parametrize(("flow", "layers"), [("layered", 0), ("joint", 3), ("common", 2)])
def test_styles_are_drawn_for_every_layer_the_generator_has(
    space: str, flow: str, layers: int, prior: StyleGANPrior
) -> None:
    attack = replace(ATTACK, space=space, flow=flow, layers=layers)  # type: ignore[arg-type]
    styles = Styles(attack, prior, CPU)
    flows = styles.flows(3, generator("flows"))
    w, kl = styles.draw(flows, 5, generator("draw"))
    assert w.shape == (3, 5, prior.generator.num_ws, prior.generator.w_dim)
    assert kl.shape == (3, 5)
    if flow == "common":
        assert torch.equal(w[:, :, 0], w[:, :, layers - 1])
    own = layers or prior.generator.num_ws
    again, _ = styles.draw(flows, 5, generator("draw"))
    assert torch.equal(w, again)
    for part, moved in ((w[:, :, :own], True), (w[:, :, own:], False)):
        slopes = torch.autograd.grad(
            part.square().sum(), list(flows.parameters()), retain_graph=True
        )
        assert any(s.abs().max() > 0 for s in slopes) is moved


def test_other_layers_have_the_styles_of_random_latents(prior: StyleGANPrior) -> None:
    styles = Styles(replace(ATTACK, layers=1), prior, CPU)
    w, _ = styles.draw(styles.flows(2, generator("flows")), 4, generator("draw"))
    rest = w[:, :, 1:]
    assert torch.equal(rest[:, :, 0], rest[:, :, -1])
    assert not torch.equal(rest[0, 0], rest[0, 1])
    assert not torch.equal(rest[0, 0], rest[1, 0])


def test_in_style_space_noise_has_the_mean_and_deviation_of_the_mapping(
    prior: StyleGANPrior,
) -> None:
    styles = Styles(replace(ATTACK, space="w"), prior, CPU)
    w = prior.styles(prior.sample(5000, generator("w")))[:, 0]
    z = (w - styles.mean) / styles.std
    torch.testing.assert_close(z.mean(0), torch.zeros(z.shape[1]), atol=0.06, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(z.shape[1]), atol=0.06, rtol=0)
    torch.testing.assert_close(styles.styles(z[:, None, None])[:, 0, 0], w)


def test_more_layers_than_the_generator_has_are_refused(prior: StyleGANPrior) -> None:
    with pytest.raises(ValueError, match=r"VMI\.layers is 99, but the generator has"):
        Styles(replace(ATTACK, layers=99), prior, CPU)


def test_blocks_do_not_influence_each_other(prior: StyleGANPrior, target: Classifier) -> None:
    two = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    both = ATTACK.invert(
        target, prior, Goal(two, 3, [generator(0), generator(1)], TASK.shape), Work()
    )
    last = ATTACK.invert(target, prior, Goal(two[1:], 3, [generator(1)], TASK.shape), Work())
    assert both.images.shape == (3, 4, *TASK.shape)
    assert torch.equal(both.images[:, 2:], last.images)
    assert torch.equal(both.latents[:, 2:], last.latents)


def test_a_run_killed_between_two_blocks_goes_on(
    prior: StyleGANPrior, target: Classifier, tmp_path: Path
) -> None:
    blocks = [torch.tensor([0, 1]), torch.tensor([2, 3])]

    def run(work: Work) -> Tensor:
        return ATTACK.invert(
            target, prior, Goal(blocks, 2, [generator(i) for i in (0, 1)], TASK.shape), work
        ).images

    class Doomed(Work):
        def progress(self, done: int, total: int, note: str = "") -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # at the last step of the first block
        run(Doomed(tmp_path, every=0.0))
    assert torch.equal(run(Work(tmp_path)), run(Work()))


def test_gradients_are_shortened_class_by_class() -> None:
    a, b = torch.tensor([[3.0, 0.0], [0.3, 0.0]]), torch.tensor([[[4.0]], [[0.4]]])
    got = shortened([a, b], 1.0, 2)
    torch.testing.assert_close(got[0], torch.tensor([[0.6, 0.0], [0.3, 0.0]]))
    torch.testing.assert_close(got[1].flatten(), torch.tensor([0.8, 0.4]))
    assert torch.equal(shortened([a, b], 0.0, 2)[0], a)
    together = shortened([a, b], 1.0, 1)  # two flows of one class
    assert torch.cat([g.flatten() for g in together]).norm() == pytest.approx(1.0)


def test_the_spread_of_a_class_survives_the_fit(prior: StyleGANPrior, target: Classifier) -> None:
    """Entropy keeps draws apart: with a large weight they are as spread as the prior's."""
    fitted = fit(replace(ATTACK, lambda_kl=1.0, steps=60), prior, target, [0, 1])
    for _ in range(60):
        fitted.step()
    x, _ = fitted.draw(64)
    free = prior.generate(prior.sample(64, generator("free")))
    for c in range(2):
        assert x[:, c].std(0).mean() > 0.3 * free.std(0).mean()


def test_snapshots_are_draws_of_earlier_moments(
    prior: StyleGANPrior, target: Classifier, tmp_path: Path
) -> None:
    kept = replace(ATTACK, steps=6, snapshots=3)
    found = kept.invert(
        target, prior, Goal([torch.arange(2)], 3, [generator(0)], TASK.shape), Work()
    )
    assert found.earlier is not None
    assert found.earlier.shape == (2, 3, 2, *TASK.shape)  # after 2 and 4 steps; 6 is the last
    short = replace(ATTACK, steps=2).invert(
        target, prior, Goal([torch.arange(2)], 3, [generator(0)], TASK.shape), Work()
    )
    assert torch.equal(found.earlier[0], short.images.half().float())
    assert not torch.equal(found.earlier[1], found.images)
    assert short.earlier is not None
    assert len(short.earlier) == 0


class Reader(Classifier):
    """Sees class k in an image whose first pixel is k / 10."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def latents(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x.flatten(1),)

    def head(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        return -self.scale * (10 * z[:, :1] - torch.arange(4)).square()


def test_the_evaluator_picks_each_classs_first_best_moment() -> None:
    moments = torch.zeros(3, 2, 2, 1, 8, 8)
    moments[..., 7, 7] = torch.arange(3).view(3, 1, 1, 1) / 10  # says which moment it is
    moments[:, :, 0, 0, 0, 0] = torch.tensor([[0.0, 0.3], [0.0, 0.0], [0.0, 0.0]])
    moments[:, :, 1, 0, 0, 0] = torch.tensor([[0.3, 0.3], [0.3, 0.3], [0.3, 0.1]])
    x, logits, features = best_moment(moments, Reader())
    assert (10 * x[:, 0, 7, 7]).round().int().tolist() == [1, 2, 1, 2]  # samples of both classes
    assert logits.argmax(1).tolist() == [0, 3, 0, 1]
    torch.testing.assert_close(features, x.flatten(1))


def test_selecting_among_snapshots_needs_snapshots() -> None:
    cell = TABLES["table4"].rows["VMI / No Def."]
    cell.check()
    with pytest.raises(ValueError, match="vmi keeps none"):
        override(cell, "attack.snapshots", "0").check()
    record = record_stage(cell, ["attack_acc"], "x")
    assert record.evidence[0].select == "evaluator"


def test_a_generator_from_a_file_is_the_prior_and_is_not_trained(
    prior: StyleGANPrior, tmp_path: Path
) -> None:
    (tmp_path / "weights").mkdir()
    content = save(prior.generator.state_dict())
    (tmp_path / "weights" / "faces.safetensors").write_bytes(content)
    weights = Weights("faces.safetensors", hashlib.sha256(content).hexdigest())
    spec = replace(tiny(StyleGAN2), weights=weights)
    with seeded("other"):
        fresh = spec.build(TASK.shape, TASK.num_classes)
    z = prior.sample(3, generator("z"))
    assert not torch.equal(fresh.eval().generate(z), prior.generate(z))
    spec.fetch(tmp_path)
    spec.train(fresh, TASK.load(tmp_path).public, None, generator("t"), Work(data=tmp_path))
    assert torch.equal(fresh.generate(z), prior.generate(z))
    assert spec.planned_steps(100) == 0
    with pytest.raises(FileNotFoundError, match=r"faces\.safetensors is missing"):
        spec.fetch(tmp_path / "elsewhere")
    wide = replace(spec, w_dim=spec.w_dim + 1)
    with seeded("wide"):
        other = wide.build(TASK.shape, TASK.num_classes)
    with pytest.raises(ValueError, match=r"do not fit Generator: .*of another shape"):
        wide.train(other, TASK.load(tmp_path).public, None, generator("t"), Work(data=tmp_path))


def test_a_picture_shows_what_a_prior_drew_at_its_end(tmp_path: Path) -> None:
    cell = override(TABLES["smoke"].rows["VMI / No Def."], "attack.prior.kimg", "0.064")
    store = Store(tmp_path)
    record = record_stage(cell, [], cell.setting.task.digest(tmp_path))
    grid = Grid(TABLES["smoke"], {"VMI / No Def.": [record]}, store)
    draw_samples(grid, tmp_path / "s.png")
    assert not (tmp_path / "s.png").exists()
    for stage in graph([record.evidence[0].inversion.prior]):
        store.complete(stage)
    draw_samples(grid, tmp_path / "s.png")
    drawn = (tmp_path / "s.png").stat().st_mtime_ns
    draw_samples(grid, tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_mtime_ns == drawn


@pytest.mark.slow
def test_draws_of_a_class_are_about_as_far_apart_as_its_real_images(tmp_path: Path) -> None:
    """On real digits, with a StyleGAN trained for half as long as in the digits table."""
    cell = override(TABLES["digits"].rows["VMI / No Def."], "attack.prior.kimg", "16")
    cell = override(cell, "trials.samples", "50")
    store = Store(tmp_path)
    record = record_stage(cell, [], cell.setting.task.digest(tmp_path))
    run = record.evidence[0].inversion
    for stage in graph([run]):
        store.complete(stage)
    images = store.load(run)["images"].float()
    train = record.evidence[0].images.splits(store.load).private.train
    for c in range(5):
        real = train.images[train.labels == c].std(0).mean().item()
        assert 0.5 * real < images[:, c].std(0).mean().item() < 1.5 * real
