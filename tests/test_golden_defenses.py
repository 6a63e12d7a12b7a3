"""Defenses, measures and metrics agree with the numbers of their authors' released code."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mibench.defenses import MID, BiDO, Recipe, Unilateral
from mibench.defenses.dependence import KERNELS, MEASURES
from mibench.defenses.mid import Bottleneck
from mibench.evaluation import manifold
from mibench.evaluation.fid import frechet_distance, frechet_distance_of_few
from mibench.evaluation.kid import kernel_distance
from mibench.networks import MCNN, VGG16, ResNet34
from mibench.roles import Batch, Defense, NetworkSpec
from mibench.seeding import seeded
from mibench.types import Classifier, Shape
from tests.golden import RIDGE, TIGHT, check_gradients, fill, read, wave

A, B = 0.7, 0.2
MEASURE = {"HSIC": "nhsic", "COCO": "coco_frobenius"}
TOLERANCE = {"HSIC": RIDGE, "COCO": TIGHT}
ON_MNIST = (MCNN(), (1, 32, 32), 5)
ON_FACES = (ResNet34(), (3, 64, 64), 10)
ON_VGG16 = (VGG16(pretrained=False), (3, 64, 64), 10)
RECIPES = {
    "SGD": Recipe(epochs=1, optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4),
    "Adam": Recipe(epochs=1, lr=1e-4),
}


def network_of(
    kind: tuple[NetworkSpec, Shape, int], defense: Defense, order: Sequence[str] = ()
) -> Classifier:
    """Returns a defended network in training mode, its weights filled in the released order."""
    spec, shape, classes = kind
    with seeded("tests"):
        network = defense.harden(spec.build(shape, classes)).train()
    fill(network, A, B, order)
    return network


def batch(kind: tuple[NetworkSpec, Shape, int], n: int, step: int = 0) -> tuple[Tensor, Tensor]:
    """Returns images in [0, 1] and labels."""
    _, shape, classes = kind
    x = 0.5 + 0.5 * wave((n, *shape), 1.3 * A, B + 0.5 + step)
    return x, (3 * torch.arange(n) + step) % classes


def noise_for(monkeypatch: pytest.MonkeyPatch, shape: Sequence[int], step: int = 0) -> None:
    """Puts a wave in the place of the normal draw of MID's bottleneck."""
    noise = wave(shape, 2.1 * A, B + 0.7 + step)

    def randn(size: Sequence[int]) -> Tensor:
        assert tuple(size) == tuple(shape)
        return noise

    monkeypatch.setattr(torch, "randn", randn)


def backward(terms: Mapping[str, Tensor]) -> float:
    """Returns the total of the terms, whose gradients it leaves in the network."""
    total = torch.stack(list(terms.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return total.item()


def check_bido(
    defense: BiDO, network: Classifier, x: Tensor, y: Tensor, told: Mapping[str, Any],
    tolerance: float, order: Sequence[str] = (),
) -> None:  # fmt: skip
    terms = defense.loss_terms(network, Batch(x, y))
    total = backward(terms)
    assert terms["task"].item() == pytest.approx(told["cross_entropy"], rel=TIGHT)
    forgotten, kept = sum(told["d(X,Z_j)"]), sum(told["d(Z_j,Y)"])
    assert terms["d(X,Z)"].item() == pytest.approx(defense.lambda_x * forgotten, rel=tolerance)
    assert terms["d(Z,Y)"].item() == pytest.approx(-defense.lambda_y * kept, rel=tolerance)
    assert total == pytest.approx(told["total"], rel=tolerance)
    check_gradients(network, told["gradients"], tolerance, order)


def train(
    network: Classifier, recipe: Recipe, terms_of: Callable[[int], Mapping[str, Tensor]]
) -> list[float]:
    """Returns the loss before each of three steps."""
    optimizer = recipe.optimize(network)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        losses.append(backward(terms_of(step)))
        optimizer.step()
    return losses


# Measures ---------------------------------------------------------------------------------

DEPENDENCE = read("defenses/01a-dependence-matrices")["cases"]


@pytest.mark.parametrize("case", DEPENDENCE, ids=lambda c: f"n{c['n']}-d{c['d']}")
def test_measures_of_dependence(case: dict[str, Any]) -> None:
    n, d, told = case["n"], case["d"], case["float64"]
    X, Z = wave((n, d), A, B), wave((n, d + 2), A * 1.7, B + 1)
    Y = torch.nn.functional.one_hot(3 * torch.arange(n) % 5, 5).double()
    (K_x,), (K_z,) = (KERNELS["gaussian"]([s]) for s in (X, Z))
    for short, measure in MEASURE.items():
        d_of = MEASURES[measure]
        tolerance, name = TOLERANCE[short], short.lower()
        assert d_of(K_z, K_x).item() == pytest.approx(told[f"{name}(Z,X)"], rel=tolerance)
        for kernel in ("linear", "gaussian", "IMQ"):
            (K_y,) = KERNELS[kernel.lower()]([Y])
            want = told[f"{name}(Z,Y) label kernel {kernel}"]
            assert d_of(K_z, K_y).item() == pytest.approx(want, rel=tolerance), kernel


# BiDO -------------------------------------------------------------------------------------

BIDO_MCNN = read("defenses/01b-bido-mcnn")["cases"]


def bido_of(case: Mapping[str, Any]) -> BiDO:
    return BiDO(
        MEASURE[case["measure"]],
        case["lambda_x"],
        case["lambda_y"],
        label_kernel=case.get("label_kernel", "linear"),
    )


@pytest.mark.parametrize("case", BIDO_MCNN, ids=lambda c: c["measure"])
def test_bido_on_the_mcnn(case: dict[str, Any]) -> None:
    defense, told = bido_of(case), case["float64"]
    network = network_of(ON_MNIST, defense)
    x, y = batch(ON_MNIST, 16)
    check_bido(defense, network, x, y, told, TOLERANCE[case["measure"]])
    zs = network.latents(x)
    assert [z.norm().item() for z in zs] == pytest.approx(told["hidden norms"], rel=TIGHT)
    want = torch.tensor(told["logits"], dtype=torch.float64)
    torch.testing.assert_close(network.head(zs[-1]), want, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("optimiser", RECIPES)
@pytest.mark.parametrize("case", BIDO_MCNN, ids=lambda c: c["measure"])
def test_three_steps_of_bido(case: dict[str, Any], optimiser: str) -> None:
    defense, told = bido_of(case), case["three steps"][optimiser]["float64"]
    network, tolerance = network_of(ON_MNIST, defense), TOLERANCE[case["measure"]]
    losses = train(
        network,
        RECIPES[optimiser],
        lambda s: defense.loss_terms(network, Batch(*batch(ON_MNIST, 16, s))),
    )
    assert losses == pytest.approx(told["losses"], rel=tolerance)
    norms = [p.norm().item() for p in network.parameters()]
    want = list(told["parameter norms after step 3"].values())
    assert norms == pytest.approx(want, rel=0, abs=tolerance * max(want))


BIDO_VGG16 = read("defenses/01d-vgg16")


@pytest.mark.parametrize("case", BIDO_VGG16["BiDO"], ids=lambda c: c["measure"])
def test_bido_on_vgg16(case: dict[str, Any]) -> None:
    defense, told = bido_of(case), case["float64"]
    network = network_of(ON_VGG16, defense)
    x, y = batch(ON_VGG16, 8)
    check_bido(defense, network, x, y, told, TOLERANCE[case["measure"]])


VMI = read("defenses/01f-vmi-resnet")


@pytest.mark.parametrize("case", VMI["BiDO"], ids=lambda c: c["measure"])
def test_bido_on_the_resnet_of_vmi(case: dict[str, Any]) -> None:
    order = ("hidden.1", "hidden.0", "last", "neck")
    defense = bido_of(case)
    network = network_of(ON_FACES, defense, order)
    x, y = batch(ON_FACES, 8)
    check_bido(defense, network, x, y, case, TOLERANCE[case["measure"]], order)
    zs = network.latents(x)
    assert [z.norm().item() for z in zs] == pytest.approx(case["hidden norms"], rel=TIGHT)
    logs = network.head(zs[-1]).log_softmax(1)[0]
    assert logs.tolist() == pytest.approx(case["log-probabilities, first row"], rel=TIGHT)


# MID --------------------------------------------------------------------------------------


def check_mid(
    defense: MID, network: Classifier, x: Tensor, y: Tensor, told: Mapping[str, Any]
) -> None:
    terms = defense.loss_terms(network, Batch(x, y))
    total = backward(terms)
    assert terms["task"].item() == pytest.approx(told["cross_entropy"], rel=TIGHT)
    information = terms["I(X;Z)"].item()
    assert information == pytest.approx(defense.lambda_ * told["information"], rel=TIGHT)
    assert total == pytest.approx(told["total"], rel=TIGHT)
    check_gradients(network, told["gradients"], TIGHT)


def encoded(network: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(network.last, Bottleneck)
    return network.last.encode(network.latents(x)[-1])


MID_MCNN = read("defenses/01c-mid-mcnn")


def test_mid_on_the_mcnn(monkeypatch: pytest.MonkeyPatch) -> None:
    defense = MID(lambda_=MID_MCNN["beta"])
    network = network_of(ON_MNIST, defense)
    x, y = batch(ON_MNIST, 16)
    noise_for(monkeypatch, (16, 128))
    check_mid(defense, network, x, y, MID_MCNN)
    mu, std = encoded(network, x)
    assert mu.norm().item() == pytest.approx(MID_MCNN["mu norm"], rel=TIGHT)
    spread = [std.mean().item(), std.min().item(), std.max().item()]
    assert spread == pytest.approx(MID_MCNN["std: mean, min, max"], rel=TIGHT)
    want = torch.tensor(MID_MCNN["logits"], dtype=torch.float64)
    torch.testing.assert_close(network(x), want, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("optimiser", RECIPES)
def test_three_steps_of_mid(optimiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defense = MID(lambda_=MID_MCNN["beta"])
    network = network_of(ON_MNIST, defense)

    def terms(step: int) -> Mapping[str, Tensor]:
        noise_for(monkeypatch, (16, 128), step)
        return defense.loss_terms(network, Batch(*batch(ON_MNIST, 16, step)))

    told = MID_MCNN["three steps"][optimiser]["losses"]
    assert train(network, RECIPES[optimiser], terms) == pytest.approx(told, rel=TIGHT)


def test_mid_on_vgg16(monkeypatch: pytest.MonkeyPatch) -> None:
    told = BIDO_VGG16["MID"]
    defense = MID(lambda_=told["beta"])
    network = network_of(ON_VGG16, defense)
    noise_for(monkeypatch, (8, 1024))
    check_mid(defense, network, *batch(ON_VGG16, 8), told)


def test_mid_on_the_resnet_of_vmi(monkeypatch: pytest.MonkeyPatch) -> None:
    told = VMI["MID"]
    defense = MID(lambda_=told["beta"])
    network = network_of(ON_FACES, defense)
    x, y = batch(ON_FACES, 8)
    noise_for(monkeypatch, (8, 25))
    check_mid(defense, network, x, y, told)
    assert encoded(network, x)[0][0].tolist() == pytest.approx(told["mu, first row"], rel=TIGHT)


# The unilateral objective -----------------------------------------------------------------

UNILATERAL = read("defenses/01e-unilateral-mcnn")["cases"]


@pytest.mark.parametrize("case", UNILATERAL, ids=lambda c: c["kernel of logits"])
def test_unilateral_on_the_mcnn(case: dict[str, Any]) -> None:
    defense = Unilateral(lambda_=case["lambda"], output_kernel=case["kernel of logits"])
    network = network_of(ON_MNIST, defense)
    terms = defense.loss_terms(network, Batch(*batch(ON_MNIST, 16)))
    total = backward(terms)
    assert terms["task"].item() == pytest.approx(case["cross_entropy"], rel=TIGHT)
    want = case["lambda"] * case["COCO(X, logits)"]
    assert terms["d(X,Y)"].item() == pytest.approx(want, rel=TIGHT)
    assert total == pytest.approx(case["total"], rel=TIGHT)
    check_gradients(network, case["gradients"], TIGHT)


# Metrics ----------------------------------------------------------------------------------

METRICS = read("defenses/11-metrics")


def sizes(case: dict[str, Any]) -> str:
    return "-".join(f"{k}{v}" for k, v in case.items() if k in {"found", "real", "k", "n", "m"})


@pytest.mark.parametrize("case", METRICS["manifold"], ids=sizes)
def test_precision_recall_density_and_coverage(case: dict[str, Any]) -> None:
    real = wave((case["real"], 4), A, B)
    found = wave((case["found"], 4), A * 1.3, B + 0.5) + 0.8
    k = case["k"]
    assert manifold.radii(real, k).tolist() == pytest.approx(case["radii of real"], rel=TIGHT)
    percents = {
        "precision": manifold.inside(found, real, k),
        "recall": manifold.inside(real, found, k),
        "coverage": manifold.covered(real, found, k),
    }
    for name, each in percents.items():
        assert each.mean().item() / 100 == pytest.approx(case[name], rel=TIGHT), name
    ours = manifold.crowding(found, real, k).mean().item()
    assert ours == pytest.approx(case["density"], rel=TIGHT)


def two_sets(n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    return wave((n, d), A, B), 0.8 * wave((m, d), A * 1.3, B + 0.5) + 0.1


@pytest.mark.parametrize("case", METRICS["KID"], ids=sizes)
def test_kernel_inception_distance(case: dict[str, Any]) -> None:
    ours = kernel_distance(*two_sets(case["n"], case["m"], case["d"]))
    assert ours == pytest.approx(case["KID"], rel=TIGHT)


@pytest.mark.parametrize("case", METRICS["FID"], ids=sizes)
def test_frechet_inception_distance(case: dict[str, Any]) -> None:
    sets = two_sets(case["n"], case["m"], case["d"])
    assert frechet_distance_of_few(*sets) == pytest.approx(case["FID"], rel=TIGHT)
    singular = min(case["n"], case["m"]) <= case["d"]  # where eigenvalues err by rounding's root
    assert frechet_distance(*sets) == pytest.approx(case["FID"], rel=1e-8 if singular else TIGHT)
