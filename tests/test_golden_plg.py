"""PLG-MI's networks, training and attack agree with the numbers of its authors' released code."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mibench.attacks import PLGGAN, PLGMI, Goal
from mibench.attacks.access import Watched
from mibench.attacks.losses import MaxMargin, Poincare
from mibench.attacks.priors.conditional import pseudo_labelled
from mibench.attacks.priors.gan import descend_on
from mibench.attacks.priors.plg import ProjectionGAN
from mibench.attacks.views import Plain
from mibench.networks import MLP
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import ImageSet
from tests.golden import read
from tests.toys import Toy, tensor, wave

NETWORKS = read("attacks/plgmi-networks")
INPUTS, OUTPUTS = NETWORKS["inputs"], NETWORKS["outputs"]
TRAINING = read("attacks/plgmi-training-iteration")
LABELS = torch.tensor(INPUTS["labels"])
SPEC = PLGGAN(
    z_dim=8, generator_width=4, discriminator_width=4, critic_steps=2, views=(), pixels="released"
)
TIGHT = 1e-9
AFTER_ADAM = 1e-7
ROLES = (
    (r"(up|down)-block (\d) (.*)", lambda m: f"blocks.{int(m[2]) - 1}.{m[3]}"),
    (r"cond\. norm (\d) gamma table.*", r"norm\1.gain.weight"),
    (r"cond\. norm (\d) beta table.*", r"norm\1.shift.weight"),
    (r"(cond\. |last )?norm ?(\d?) ", r"norm\2."),
    (r"last conv 1x1", "draw"),
    (r"first linear", "project"),
    (r"linear head", "judge"),
    (r"class table", "classes"),
    (r"shortcut conv", "skip"),
    (r"conv (\d)", r"conv\1"),
    (r"running mean", "running_mean"),
    (r"running variance", "running_var"),
    (r" u \(.*", ".parametrizations.weight.0.u"),
    (r" v \(.*", ".parametrizations.weight.0.v"),
    (r" (weight|bias)$", r".\1"),
)
"""Words of the released roles → names of ours, one after the other."""


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def named(role: str, normed: bool) -> str:
    for words, name in ROLES:
        role = re.sub(words, name, role)
    return role.replace(".weight", ".parametrizations.weight.original") if normed and (
        role.endswith(".weight")
    ) else role  # fmt: skip


def networks() -> ProjectionGAN:
    with seeded("shapes only"):
        gan = SPEC.build((3, 64, 64), 5)
    for rows, network in ((INPUTS["G_tensors"], gan.generator),
                          (INPUTS["D_tensors"], gan.discriminator)):  # fmt: skip
        own = {named(row[0], network is gan.discriminator): tensor(row) for row in rows}
        strange = network.load_state_dict(own, strict=False)
        assert not strange.unexpected_keys
        assert all("num_batches_tracked" in name for name in strange.missing_keys)
    return gan


def target() -> Toy:
    return Toy(TRAINING["inputs"]["target_tensors"])


def near(want: Any, tolerance: float = TIGHT) -> Any:
    return pytest.approx(want, rel=tolerance, abs=1e-11)


def check_images(x: Tensor, want: Mapping[str, Any], tolerance: float = TIGHT) -> None:
    assert list(x.shape) == want["shape"]
    assert x.sum().item() == near(want["sum"], tolerance)
    assert x.square().sum().item() == near(want["sum_of_squares"], tolerance)
    assert x.flatten()[want["sample_index"]].tolist() == near(want["sample"], tolerance)


def test_networks_are_the_released_ones() -> None:
    gan, z = networks(), tensor(INPUTS["z"])
    G, D = gan.generator, gan.discriminator
    assert sum(p.numel() for p in G.parameters()) == OUTPUTS["parameter_count_G"]
    assert sum(p.numel() for p in D.parameters()) == OUTPUTS["parameter_count_D"]
    gan.eval()
    with torch.no_grad():
        x = gan.generate(z, LABELS)
        check_images(x, OUTPUTS["G_eval_images"])
        in_eval = gan.realism(x, LABELS)
        assert in_eval[:, None].tolist() == [near(v) for v in OUTPUTS["D_eval_on_G_eval_images"]]
        gan.train()
        reals, classes = tensor(INPUTS["reals"]), torch.tensor(INPUTS["real_labels"])
        calls = [gan.realism(*pair) for pair in ((x, LABELS), (x, LABELS), (reals, classes))]
        for score, name in zip(calls, ("first_call", "second_call", "third_call_on_reals"),
                               strict=True):  # fmt: skip
            assert score[:, None].tolist() == [near(v) for v in OUTPUTS[f"D_train_{name}"]]
        check_images(gan.generate(z, LABELS), OUTPUTS["G_train_images (batch statistics)"], 1e-8)
    norm = G.blocks[0].norm1  # type: ignore[union-attr, index]
    mean, var = (v for k, v in OUTPUTS.items() if k.startswith("running_"))
    assert norm.running_mean[: len(mean)].tolist() == near(mean)
    assert norm.running_var[: len(var)].tolist() == near(var)


def test_at_full_size_there_are_as_many_weights_as_released() -> None:
    with torch.device("meta"):
        gan = PLGGAN().build((3, 64, 64), 1000)
    sizes = [sum(p.numel() for p in n.parameters()) for n in (gan.generator, gan.discriminator)]
    assert sizes == [17_973_379, 11_165_441]


def test_losses_are_the_released_ones() -> None:
    logits = tensor(INPUTS["margin_logits"]).requires_grad_()
    labels = torch.tensor(INPUTS["margin_labels"])
    margin = MaxMargin()(logits, labels).mean()
    (gradient,) = torch.autograd.grad(margin, logits)
    assert margin.item() == near(OUTPUTS["max_margin"])
    assert gradient.tolist() == [near(row) for row in OUTPUTS["max_margin_gradient"]]
    assert Poincare()(logits, labels).mean().item() == near(OUTPUTS["poincare_batch_mean"])


def test_each_class_learns_from_the_images_it_is_likeliest_for() -> None:
    golden = read("attacks/plgmi-top-n")
    logits = tensor(golden["inputs"]["logits of 40 public images"])
    pixels = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1)
    chosen = pseudo_labelled(
        ImageSet(pixels, torch.zeros(40, dtype=torch.long)), logits.softmax(1), 6
    )
    told = next(v for k, v in golden["outputs"].items() if k.startswith("images per class"))
    for k, ascending in told.items():
        mine = chosen.pixels.flatten()[chosen.labels == int(k)]
        assert mine.tolist() == ascending[::-1]
    assert len(chosen) == golden["outputs"]["items"]


def test_an_iteration_of_training_is_the_released_one() -> None:
    gan, network = networks().train(), target()
    optimizers = SPEC._optimizers(gan)

    def draws(i: int) -> tuple[Tensor, Tensor]:
        return 1.5 * wave((4, 8), 0.7 + 0.05 * i, 0.1), (LABELS + i) % 5

    def moved(loss: Tensor, which: int, want: Mapping[str, Any]) -> None:
        network = (gan.generator, gan.discriminator)[which]
        descend_on(loss, optimizers[which])
        weights = list(network.parameters())
        gradients = torch.cat([p.grad.flatten() for p in weights if p.grad is not None])
        assert gradients.norm().item() == near(want["gradient_norm"], 1e-8)
        flat = torch.cat([p.detach().flatten() for p in weights])
        assert flat.sum().item() == near(want["sum"], AFTER_ADAM)
        assert flat.square().sum().item() == near(want["sum_of_squares"], AFTER_ADAM)
        first = network.get_parameter(("project.weight", "blocks.0.conv1.bias")[which])
        entries = want["first_entries"]
        assert first.detach().flatten()[: len(entries)].tolist() == near(entries, AFTER_ADAM)

    steps = TRAINING["outputs"]["after_each_optimiser_step"]
    losses = [value for _, value in TRAINING["outputs"]["losses_in_order"]]
    terms = SPEC.for_generator(gan, network, *draws(0), generator())
    assert [terms["margin"].item(), terms["generator"].item()] == near(losses[:2])
    moved(terms["generator"] + SPEC.alpha * terms["margin"], 0, steps[0])
    for i in range(2):
        reals = 0.5 + 0.5 * wave((4, 3, 64, 64), 0.013 + 0.004 * i, 0.4)
        loss = SPEC.for_discriminator(gan, reals, (torch.arange(4) + 1 + i) % 5, *draws(1 + i))
        assert loss.item() == near(losses[2 + i])
        moved(loss, 1, steps[1 + i])


def test_the_generator_is_updated_first_and_once_for_so_many_steps_of_the_discriminator(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    order: list[str] = []

    def noted(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        order.append("G" if optimizer is optimizers[0] else "D")

    torch.set_default_dtype(torch.float32)
    with seeded("prior"):
        gan = PLGGAN(**PLGGAN.small).build((1, 8, 8), 4)
    spec = PLGGAN(**{**PLGGAN.small, "epochs": 1, "batch_size": 8, "critic_steps": 3})
    optimizers = spec._optimizers(gan)
    monkeypatch.setattr(PLGGAN, "_optimizers", lambda self, prior: optimizers)
    monkeypatch.setattr("mibench.attacks.priors.plg.descend_on", noted)
    with seeded("target"):
        network = MLP().build((1, 8, 8), 4).eval().requires_grad_(requires_grad=False)
    public = ImageSet(
        (torch.rand(16, 1, 8, 8, generator=rng) * 255).byte(), torch.zeros(16).long()
    )
    work = Work()
    spec.train(gan, public, Watched(network, work), rng, work)
    assert order == ["G", "D", "D", "D", "G", "D"]
    assert work.queries == 16 + 2 * 8


def follow(attack: PLGMI) -> Sequence[Tensor]:
    """Returns the latents of each step and those at the end."""
    gan = networks().eval().requires_grad_(requires_grad=False)
    given: list[Tensor] = []

    class Following(ProjectionGAN):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.z_dim, self.surrogates = 8, torch.nn.ModuleList()  # type: ignore[assignment]

        def __deepcopy__(self, memo: dict[int, object]) -> "Following":
            return self

        def sample(self, n: int, rng: torch.Generator) -> Tensor:
            golden = read("attacks/plgmi-attack-steps")
            return tensor(golden["inputs"]["z0"])

        def generate(self, z: Tensor, y: Tensor | None = None) -> Tensor:
            given.append(z.detach().clone())
            return gan.generate(z, y)

    goal = Goal([LABELS], 1, [generator()], (3, 64, 64))
    attack.invert(target(), Following(), goal, Work())
    return given


def test_steps_of_the_attack_are_the_released_ones() -> None:
    golden = read("attacks/plgmi-attack-steps")
    given = follow(PLGMI(steps=5, augment=(Plain(), Plain())))
    want = next(v for k, v in golden["outputs"].items() if k.startswith("z_before"))
    for z, told in zip(given, want, strict=True):
        assert z.flatten()[: len(told)].tolist() == near(told)
    margins = golden["outputs"]["margin_of_each_look"]
    gan = networks().eval()
    first = MaxMargin()(target()(gan.generate(given[0], LABELS)), LABELS)
    assert first.mean().item() == near(margins[0])
