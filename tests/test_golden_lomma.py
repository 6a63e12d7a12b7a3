"""LOMMA's loss, loops and students agree with the numbers of its authors' released code."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mibench.attacks import GMI, KEDMI, Augmented, Goal, Student
from mibench.attacks.access import Watched
from mibench.attacks.lomma import lomma_gmi, lomma_kedmi
from mibench.attacks.losses import CrossEntropy, LogitMatching
from mibench.attacks.students import Distillation
from mibench.attacks.views import identity_loss
from mibench.networks import MLP
from mibench.roles import Batch, IdentityLoss
from mibench.seeding import generator
from mibench.store import Work
from mibench.types import Images, Labels, Prior, predict
from tests.golden import read
from tests.toys import Toy, tensor, wave

LOSSES = read("attacks/lomma-identity-loss")
LOOPS = read("attacks/lomma-trajectory")
INPUTS = LOSSES["inputs"]
LABELS = torch.tensor(INPUTS["labels"])
STUDENTS = (Student(), Student(MLP()))
TIGHT = 1e-9


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def watched(nets: int = 3) -> Watched:
    first, *others = [Toy(rows) for rows in INPUTS["nets"][:nets]]
    target = Watched(first, Work())
    target.students.extend(others)
    target.public_mean = tensor(INPUTS["penalty_mean"])
    return target


def near(want: Any) -> Any:
    return pytest.approx(want, rel=TIGHT, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "identity", "nets"),
    [
        ("logit_1_net", LogitMatching(), 1),
        ("logit_3_nets", Augmented(LogitMatching(), STUDENTS), 3),
        ("cross_entropy_1_net", CrossEntropy(), 1),
        ("cross_entropy_3_nets", Augmented(CrossEntropy(), STUDENTS), 3),
    ],
)
def test_the_identity_loss_is_the_mean_over_networks_and_the_penalty_of_the_target(
    name: str, identity: IdentityLoss, nets: int
) -> None:
    x, want = tensor(INPUTS["x"]).requires_grad_(), LOSSES["outputs"][name]
    loss = identity_loss(identity, (), watched(nets), x, LABELS, [(4, generator())]).mean()
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == near(want["loss"])
    assert gradient.norm().item() == near(want["gradient_x"]["norm"])
    assert gradient.flatten()[:8].tolist() == near(want["gradient_x"]["first"])


def test_the_mean_latent_is_over_all_public_images_where_the_release_stops_early() -> None:
    x, want = tensor(INPUTS["statistics_images"]), LOSSES["outputs"]["p_reg"]
    for images, name in ((60, "all_60_batches_of_20"), (30, "batches_of_10_stop_20")):
        mean = predict(watched(), x[:images], generator())[1].mean(0)
        assert mean.tolist() == near(want[name]["mean"])


def test_students_learn_by_the_divergence_at_temperature_1() -> None:
    golden = read("attacks/lomma-distillation")
    teacher, student = (Toy(golden["inputs"][who]) for who in ("teacher", "student"))
    x, want = tensor(golden["inputs"]["x"]), golden["outputs"]["T=1"]
    student.requires_grad_(requires_grad=True)
    loss = Distillation(teacher(x).softmax(1)).loss_terms(student, Batch(x, torch.arange(6)))
    loss["divergence"].backward()  # type: ignore[no-untyped-call]
    assert loss["divergence"].item() == near(want["loss"])
    optimizer = Student().recipe.optimize(student)
    for weight, name in zip(student.parameters(), ("A", "c", "B", "d"), strict=True):
        assert weight.grad is not None
        assert weight.grad.norm().item() == near(want["gradient"][name]["norm"])
        first = want["gradient"][name]["first"]
        assert weight.grad.flatten()[: len(first)].tolist() == near(first)
    optimizer.step()
    after = torch.cat([p.detach().flatten() for p in student.parameters()])
    told = want["parameters_after_one_step"]
    assert after.sum().item() == near(told["sum"])
    assert after.square().sum().item() == near(told["sum_of_squares"])
    assert student.first.weight.flatten()[:8].tolist() == near(want["A_after_first"])


class Drawn(Prior):
    """A linear generator with a sigmoid; remembers the latents that it was given."""

    z_dim = 100
    given: ClassVar[list[Tensor]] = []
    M = 0.12 * wave((192, 100), *LOOPS["inputs"]["M"])

    def __init__(self) -> None:
        super().__init__()
        self.given.clear()

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return wave((n, 100), 0.47, 0.3)

    def generate(self, z: Tensor, y: Labels | None = None) -> Images:
        self.given.append(z.detach().clone())
        return (z @ self.M.T).sigmoid().view(-1, 3, 8, 8)


class ForGMI(Drawn):
    def realism(self, x: Images, y: Labels | None = None) -> Tensor:
        return (x.flatten(1) @ (0.1 * wave((192,), 0.29, 0.4))).tanh()


class ForKEDMI(Drawn):
    def realism(self, x: Images, y: Labels | None = None) -> Tensor:
        return (x.flatten(1) @ (0.1 * wave((5, 192), 0.31, 0.6)).T).logsumexp(1)


class Given(Goal):
    """Draws the noise of step i by formula."""

    def noise(self, copies: int, *shape: int) -> Tensor:
        i = len(Drawn.given)
        return wave((copies, 4, *shape), 0.5 + 0.07 * i, 0.2 * i)


def follow(attack: Any, prior: Drawn) -> tuple[list[Tensor], Tensor]:
    """Returns the latents of each step, and those at the end."""
    goal = Given([LABELS], 1, [generator()], (3, 8, 8))
    made = attack.invert(watched(), prior, goal, Work())
    return Drawn.given[:7], made.latents


def check(latents: Sequence[Tensor], losses: Sequence[float], want: Sequence[Any]) -> None:
    identity = Augmented(LogitMatching(), STUDENTS)
    for z, told, loss in zip(latents, want, losses, strict=True):
        assert z.sum().item() == near(told["sum"])
        assert z.square().sum().item() == near(told["sum_of_squares"])
        assert z.flatten()[:8].tolist() == near(told["first"])
        x = Drawn().generate(z)
        ours = identity_loss(identity, (), watched(), x, LABELS, [(4, generator())]).mean()
        assert ours.item() == near(loss)


def test_gmi_follows_the_released_loop() -> None:
    latents, _ = follow(lomma_gmi(STUDENTS, steps=7), ForGMI())
    told = LOOPS["outputs"]["gmi"]
    check(latents, told["identity_loss"], told["z_before_step"])
    assert (latents[3].abs() == 1).sum() == told["z_before_step"][3]["at_bound"] > 0


def test_kedmi_follows_the_released_loop() -> None:
    told = LOOPS["outputs"]["ked"]
    latents, end = follow(lomma_kedmi(STUDENTS, steps=7), ForKEDMI())
    check(latents, told["identity_loss"], told["z_used"])
    mu, log_var = (told[f"{name}_after"]["first"] for name in ("mu", "log_var"))
    last = torch.tensor(mu) + (0.5 * torch.tensor(log_var)).exp() * wave((8,), 0.99, 1.4)
    assert end.flatten()[:8].tolist() == near(last.clamp(-1, 1).tolist())


def test_the_presets_are_rows_of_the_attacks_that_exist() -> None:
    gmi, ked = lomma_gmi(STUDENTS), lomma_kedmi(())
    assert (gmi.name, ked.name) == (GMI.name, KEDMI.name)  # so they meet the same starts
    assert gmi.identity == Augmented(LogitMatching(), STUDENTS)
    assert ked.identity == LogitMatching()
    assert (gmi.steps, ked.steps, ked.log_var, ked.clip) == (2400, 2400, 1, 1)
