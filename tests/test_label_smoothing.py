"""Label smoothing: the released loss and schedule, and which epochs may be kept."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mibench.benchmarks.tables import TABLES
from mibench.defenses import LabelSmoothing, RampedSmoothing
from mibench.roles import Batch
from mibench.types import Classifier, Images
from tests.golden import TIGHT, read, wave

GOLDEN: dict[str, Any] = read("defenses/02-negls")


class Fixed(Classifier):
    """Gives the same logits whatever it is shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.num_classes = logits.shape[1]
        self.neck = self.last = nn.Identity()

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        return (self.logits,)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: str(c["alpha"]))
def test_loss_and_gradient_are_the_released_ones(case: dict[str, Any]) -> None:
    network = Fixed(3 * wave((6, 10), 0.7, 0.2))
    y = 3 * torch.arange(6) % 10
    batch = Batch(torch.zeros(6, 1, 1, 1), y, epoch=99, epochs=100)
    (loss,) = LabelSmoothing(case["alpha"]).loss_terms(network, batch).values()
    assert loss.item() == pytest.approx(case["loss"], rel=TIGHT)
    loss.backward()  # type: ignore[no-untyped-call]
    want = torch.tensor(case["gradient of logits"], dtype=torch.float64)
    assert network.logits.grad is not None
    torch.testing.assert_close(network.logits.grad, want, rtol=0, atol=TIGHT)


def test_the_schedule_is_the_released_one_with_its_jump() -> None:
    golden = GOLDEN["schedule"]
    defense = LabelSmoothing(golden["alpha"])
    found = [defense.strength(e, golden["epochs"]) for e in range(golden["epochs"])]
    assert found == pytest.approx(golden["alpha in epoch e = 0..E-1"], abs=1e-15)
    assert [found[e] for e in (49, 74, 75)] == pytest.approx([0, -0.025, -0.05])


def test_other_shares_give_the_released_schedule_of_ten_epochs() -> None:
    golden = GOLDEN["schedule MNIST"]
    defense = LabelSmoothing(-1.0, start=0.5, full=0.7)
    found = [-defense.strength(e, 10) for e in range(10)]
    assert found == pytest.approx(golden["factor in epoch e = 0..9 (Trap-MID release, MNIST)"])


def test_a_full_ramp_ends_at_alpha_and_no_schedule_begins_there() -> None:
    ramped = RampedSmoothing(alpha=-0.02, start=0.4, full=0.6)
    alphas = [ramped.strength(epoch, 125) for epoch in range(125)]
    assert alphas[:50] == [0] * 50
    assert alphas[50:75] == pytest.approx([-0.02 * (i + 1) / 25 for i in range(25)])
    assert alphas[74:] == [-0.02] * 51
    assert [ramped.mature(epoch, 125) for epoch in (73, 74)] == [False, True]
    constant = LabelSmoothing(alpha=-0.05, start=0, full=0)
    assert {constant.strength(epoch, 10) for epoch in range(10)} == {-0.05}


def test_a_batch_has_the_alpha_of_its_epoch() -> None:
    network = Fixed(3 * wave((6, 10), 0.7, 0.2))
    y = 3 * torch.arange(6) % 10

    def loss(defense: LabelSmoothing, epoch: int) -> float:
        batch = Batch(torch.zeros(6, 1, 1, 1), y, epoch=epoch, epochs=100)
        return defense.loss_terms(network, batch)["task"].item()

    defense = LabelSmoothing(-0.05)
    assert loss(defense, 49) == loss(LabelSmoothing(0), 0)
    assert loss(defense, 60) == loss(LabelSmoothing(defense.strength(60, 100), 0, 0), 0)
    assert loss(LabelSmoothing(0.1), 0) == loss(LabelSmoothing(0.1), 99)


@pytest.mark.parametrize(
    ("alpha", "epochs", "kept"),
    [
        (-0.05, 100, list(range(75, 100))),
        (-0.05, 5, [4]),
        (-0.05, 3, [2]),
        (-0.05, 1, [0]),
        (0.1, 4, [0, 1, 2, 3]),
    ],
)
def test_only_epochs_at_all_of_alpha_may_be_kept(
    alpha: float, epochs: int, kept: list[int]
) -> None:
    defense = LabelSmoothing(alpha)
    assert [e for e in range(epochs) if defense.mature(e, epochs)] == kept


def test_every_recipe_has_an_epoch_that_may_be_kept_unless_the_ramp_never_begins() -> None:
    for epochs in (1, 2, 3, 5, 7, 10, 33, 50, 100):
        assert LabelSmoothing(-0.05, full=1).mature(epochs - 1, epochs), epochs
        never = LabelSmoothing(-0.05, start=1, full=1)
        assert not any(never.mature(e, epochs) for e in range(epochs))


@pytest.mark.parametrize("change", [{"alpha": 1.5}, {"start": -0.1}, {"full": 1.1}])
def test_values_out_of_range_are_refused(change: dict[str, float]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=f"LabelSmoothing.{name} must be in"):
        LabelSmoothing(**change)


@pytest.mark.parametrize("cls", [LabelSmoothing, RampedSmoothing])
def test_a_ramp_that_ends_before_it_begins_is_refused(cls: type[LabelSmoothing]) -> None:
    with pytest.raises(ValueError, match=r"full must be in \[0\.5, 1\], got 0\.25"):
        cls(full=0.25)
    assert cls(full=0.5).strength(4, 10) == 0
    assert cls(full=0.5).strength(5, 10) == -0.05


def test_it_is_chosen_by_name_on_the_command_line() -> None:
    text = 'defense={"is": "label-smoothing", "alpha": -0.1}'
    table = TABLES["smoke"].only(["GMI / No Def."]).modified([text])
    assert table.rows["GMI / No Def."].defense == LabelSmoothing(-0.1)
    constant = table.modified(["defense.start=0", "defense.full=0"])
    assert constant.rows["GMI / No Def."].defense == LabelSmoothing(-0.1, 0, 0)
