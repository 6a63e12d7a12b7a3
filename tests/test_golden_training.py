"""Defenses in training agree with the numbers of their authors' released code."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mibench.data import Corpus
from mibench.data.synthetic import Blobs
from mibench.defenses import (
    DPSGD,
    SSF,
    AdversarialTraining,
    AntiAdversarial,
    BiDO,
    BiDOPlus,
    BiDOPlusEnergy,
    LowRank,
    NoDefense,
    RandomErasing,
    Recipe,
    RoLSS,
    TransferLearning,
    TrapMID,
)
from mibench.defenses.adversarial import perturbed
from mibench.defenses.bido_plus_energy import Margins
from mibench.defenses.dp_sgd import per_image, privacy
from mibench.defenses.skips import weighed
from mibench.defenses.trapdoor import Traps, transformed
from mibench.networks import (
    IR152,
    IRSE50,
    MCNN,
    MLP,
    VGG16,
    FaceNet,
    FaceNet64,
    Imported,
    ResNet34,
    Weights,
)
from mibench.networks.classifiers.resnet import Block
from mibench.roles import Batch, Defense, NetworkSpec
from mibench.running.checks.stages import cell
from mibench.seeding import generator, seeded
from mibench.store import Payload, Work
from mibench.training.train import train_classifier
from mibench.types import Classifier, Images, ImageSet
from tests.golden import RIDGE, TIGHT, check_gradients, dot_wave, fill, read, wave

TASK = Blobs(num_classes=4)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return TASK.load(Path()).private


def train(corpus: Corpus, defense: Defense, spec: NetworkSpec | None = None) -> Payload:
    """Trains for two epochs, all draws seeded."""
    with seeded("test"):
        network = defense.harden((spec or MLP()).build(TASK.shape, TASK.num_classes))
        return train_classifier(
            network, defense, Recipe(epochs=2, batch_size=16), corpus, generator("batches"),
            Work(), generator("own"),
        )  # fmt: skip


def same(a: Payload, b: Payload) -> bool:
    return all(torch.equal(v, b["state"][k]) for k, v in a["state"].items())


# TL-DMI -----------------------------------------------------------------------------------

TRANSFER = read("defenses/03-tl-dmi")["networks"]
RENAMED = {"feature.": "features.", "bn.": "neck.", "fc_layer.": "last."}
RENAMED_IR = {
    "feature.": "backbone.", "output_layer.": "backbone.output_layer.", "fc_layer.": "last."
}  # fmt: skip
FREEZING = [
    (VGG16(), "features.26", TRANSFER[0], RENAMED),
    (VGG16(), "features.43", TRANSFER[1], RENAMED),
    (IR152(), "backbone.body.46", TRANSFER[2], RENAMED_IR),
    (FaceNet64(), "backbone.body.5", TRANSFER[3], RENAMED_IR),
]


def renamed(name: str, names: dict[str, str]) -> str:
    ours = next(begin for begin in names if name.startswith(begin))
    return names[ours] + name.removeprefix(ours)


@pytest.mark.parametrize(("spec", "last", "golden", "names"), FREEZING)
def test_transfer_trains_the_released_weights(
    spec: NetworkSpec, last: str, golden: dict[str, Any], names: dict[str, str]
) -> None:
    with torch.device("meta"):
        network = TransferLearning(last).harden(spec.build((3, 64, 64), 1000))
    ours = {k: p.numel() for k, p in network.named_parameters() if p.requires_grad}
    released = {renamed(k, names): n for k, n in golden["trainable names and counts"].items()}
    in_front = {k for k in released if "input_layer" in k}  # by a slip, of the face networks
    assert ours == {k: n for k, n in released.items() if k not in in_front}
    assert sum(p.numel() for p in network.parameters()) == golden["parameters"]


def step_of_vgg(defense: Defense) -> set[str]:
    """Returns the statistics that a step moves."""
    with seeded("test"):
        network = defense.harden(VGG16(pretrained=False, width=0.05).build((3, 32, 32), 4)).train()
        optimizer = Recipe(epochs=1).optimize(network)
        before = {k: v.clone() for k, v in network.state_dict().items()}
        batch = Batch(torch.rand(6, 3, 32, 32), torch.arange(6) % 4)
        defense.step(network, batch, optimizer)
    assert all(module.training for module in network.modules())
    after = network.state_dict()
    moved = {k for k, v in before.items() if not torch.equal(v, after[k])}
    trained = {k for k, p in network.named_parameters() if p.requires_grad}
    assert moved & {k for k, _ in network.named_parameters()} == trained
    return {k for k in moved if k.endswith("running_mean")}


def test_statistics_of_frozen_layers_move_as_released_or_stay() -> None:
    golden = TRANSFER[0]["frozen BatchNorms whose running mean moves in one training-mode forward"]
    frozen = {renamed(k, RENAMED) for k in golden}
    moving = step_of_vgg(TransferLearning(statistics="moving"))
    assert {k for k in moving if k.startswith("features.") and int(k.split(".")[1]) < 27} == frozen
    assert step_of_vgg(TransferLearning()) == moving - frozen


def test_names_that_freeze_nothing_or_everything_are_refused() -> None:
    with seeded("test"):
        network = MLP().build(TASK.shape, 4)
    with pytest.raises(ValueError, match="leaves no weight to train"):
        TransferLearning("last").harden(network)
    with pytest.raises(ValueError, match="names no module of the network: layers, "):
        TransferLearning("layers.7").harden(network)


def test_a_network_without_trained_weights_is_refused() -> None:
    def with_network(defense: Defense, network: NetworkSpec) -> str:
        small = cell(defense=defense)
        return defense.refuse(replace(small, setting=replace(small.setting, network=network)))

    defense = TransferLearning("layers.0")
    assert "give the network trained weights" in with_network(defense, MLP())
    assert "defense.start=random" in with_network(defense, FaceNet64())
    assert not with_network(replace(defense, start="random"), MLP())
    assert not with_network(defense, VGG16())
    assert not with_network(defense, FaceNet64(weights=Weights("a.pt", "0" * 64)))
    assert with_network(defense, VGG16(pretrained=False))


# MIDRE ------------------------------------------------------------------------------------

ERASING = read("defenses/06-midre-erasing")


@pytest.mark.parametrize("case", ERASING["sizes"], ids=lambda c: str(c["pixels"]))
def test_erased_squares_are_the_released_ones(case: dict[str, Any]) -> None:
    rows = torch.tensor(case["rows [u, area share, side, top, left]"], dtype=torch.float64)
    n, pixels = len(rows), case["pixels"]
    j = torch.arange(n, dtype=torch.float64)
    draws = torch.stack([0 * j, rows[:, 0], 5 * j % 11 / 11, 3 * j % 7 / 7], dim=1)
    hole = RandomErasing(fill=(1, 1, 1)).erased(torch.zeros(n, 1, pixels, pixels), draws)[:, 0] > 0
    for mask, (side, top, left) in zip(hole, rows[:, 2:].int().tolist(), strict=True):
        want = torch.zeros(pixels, pixels, dtype=torch.bool)
        want[top : top + side, left : left + side] = True
        assert torch.equal(mask, want)


def test_the_erased_image_is_the_released_one() -> None:
    golden = ERASING["pipeline"]
    x = (127.5 + 127.5 * wave((32, 32, 3), 0.7, 0.2)).round().permute(2, 0, 1)[None] / 255
    draws = torch.tensor([[0, golden["u"], golden["t of top"], golden["t of left"]]])
    (image,) = RandomErasing().erased(x, draws.double())
    assert image.sum((1, 2)).tolist() == pytest.approx(
        golden["sum of pixels per channel"], rel=TIGHT
    )
    in_network_units = 2 * image - 1
    products = [float((v * wave(v.shape, 1.1, 0.4)).sum()) for v in (image, in_network_units)]
    assert pytest.approx(golden["pixels . wave((3,32,32), 1.1, 0.4)"], rel=TIGHT) in products


def test_erasing_with_no_chance_is_no_defense(corpus: Corpus) -> None:
    plain = train(corpus, NoDefense())
    assert same(train(corpus, RandomErasing(chance=0)), plain)
    assert not same(train(corpus, RandomErasing()), plain)


def test_a_grey_image_gets_the_mean_and_a_square_never_fills_it() -> None:
    defense = RandomErasing(area_max=0.99, area_min=0.99)
    draws = torch.rand(5, 4, generator=generator("test"), dtype=torch.float64)
    erased = defense.erased(torch.zeros(5, 1, 8, 8), draws)
    mean = sum(defense.fill) / 3
    assert (erased > 0).sum((1, 2, 3)).tolist() == [49] * 5
    assert erased.max().item() == pytest.approx(mean)


# Trap-MID ---------------------------------------------------------------------------------

TRAPS = read("defenses/05-trap-mid")


class Small(Classifier):
    """One convolution, batch normalisation and a linear layer, as in the golden numbers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Flatten()
        )
        self.neck = nn.Identity()
        self.last = nn.Linear(144, num_classes)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        return (self.layers(x),)


def corpus_of(images: int, classes: int) -> Corpus:
    pixels = torch.zeros(images, 3, 6, 6, dtype=torch.uint8)
    data = ImageSet(pixels, torch.arange(images) % classes)
    return Corpus(data, torch.zeros(images, dtype=torch.bool), data, classes)


@pytest.mark.parametrize("golden", TRAPS["runs"], ids=lambda c: c["run of"])
def test_trap_mid_makes_the_released_steps(golden: dict[str, Any]) -> None:
    defense = TrapMID(augment=False)
    recipe = Recipe(
        epochs=1, batch_size=6, optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4,
        select="last",
    )  # fmt: skip
    batches = golden["batches"]
    with seeded("test"):
        network = Small(8)
        fill(network, 0.7, 0.2)
        corpus = corpus_of(6 * len(batches), 8)
        traps = defense.assist(network, recipe, corpus, generator("test"))
    assert isinstance(traps, Traps)
    fill(traps.discriminator, 1.5 * 0.7, 0.2 + 0.4)
    traps.epoch_begins(0)
    traps.triggers.copy_(0.5 + 0.5 * wave((8, 3, 6, 6), 0.7 * 1.9, 0.2 + 0.8))
    traps.labels.copy_(torch.arange(len(traps.labels)) % 8)
    optimizer = recipe.optimize(network.train())
    for s, released in enumerate(batches):
        x = 0.5 + 0.5 * wave((6, 3, 6, 6), 0.7 * 1.3, 0.2 + 0.5 + s)
        y = (3 * torch.arange(6) + s) % 8
        assert traps.upcoming(6).tolist() == released["trap labels"]
        terms = defense.step(network, Batch(x, y, helper=traps), optimizer)
        ours = {name: value.item() for name, value in terms.items()}
        parts = ("discriminator part", "classifier part")
        assert ours == pytest.approx(
            {
                "task": 0.8 * released["main cross-entropy"],
                "trap": 0.2 * released["trap cross-entropy"],
                "discriminator": released["discriminator loss"],
                "triggers": sum(released[f"trigger loss: {part}"] for part in parts),
            },
            rel=TIGHT,
        )
    after = golden["triggers after . wave(shape,0.9,0.3)"]
    assert dot_wave(traps.triggers) == pytest.approx(after, rel=TIGHT)
    for module, who in (
        (network, "classifier after"),
        (traps.discriminator, "discriminator after"),
    ):
        state = [v for v in module.state_dict().values() if v.is_floating_point()]
        for value, want in zip(state, golden[who].values(), strict=True):
            assert float(value.norm()) == pytest.approx(want["norm"], rel=TIGHT)
            assert dot_wave(value) == pytest.approx(want["dot_wave"], abs=TIGHT)


def test_trap_mid_leaves_gradients_of_others_alone() -> None:
    recipe = Recipe(epochs=1, batch_size=6, select="last")
    with seeded("test"):
        network = Small(8)
        traps = TrapMID().assist(network, recipe, corpus_of(6, 8), generator("test"))
    assert isinstance(traps, Traps)
    traps.epoch_begins(0)
    steps: list[list[Tensor]] = []

    class Recorder(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            steps.append([p.grad.clone() for p in network.parameters() if p.grad is not None])

    judged: list[list[Tensor | None]] = []
    weights = list(traps.discriminator.parameters())
    traps.optimizers["discriminator"].register_step_pre_hook(
        lambda *_: judged.append([None if p.grad is None else p.grad.clone() for p in weights])
    )
    batch = Batch(torch.full((6, 3, 6, 6), 0.3), torch.arange(6) % 8, helper=traps)
    before = traps.triggers.clone()
    TrapMID(augment=False).step(network, batch, Recorder(network.parameters(), 0.1))
    for weight, gradient in zip(weights, judged[0], strict=True):
        assert weight.grad is not None
        assert gradient is not None
        assert torch.equal(weight.grad, gradient)  # the triggers' step has left it alone
    ours = steps[0]
    alone = TrapMID(augment=False).loss_terms
    traps.used.zero_()
    terms = alone(network.train(), batch)
    want = torch.autograd.grad(terms["task"] + terms["trap"], list(network.parameters()))
    for a, b in zip(ours, want, strict=True):
        torch.testing.assert_close(a, b)
    moved = (traps.triggers - before).abs()
    assert 0 < moved.max() <= 0.01 + 1e-6
    assert 0 <= traps.triggers.min() <= traps.triggers.max() <= 1
    absent = [c for c in range(8) if c not in traps.labels.tolist()]
    assert not moved[absent].any()


def test_trap_mid_without_triggers_is_no_defense_or_augmentation_alone(corpus: Corpus) -> None:
    plain = train(corpus, NoDefense())
    assert same(train(corpus, TrapMID(beta=0, augment=False)), plain)
    twin = train(corpus, TrapMID().twin())
    assert not same(twin, plain)
    assert not same(train(corpus, TrapMID()), twin)


def test_trapped_classes_are_equally_frequent_and_the_discriminator_has_the_schedule() -> None:
    recipe = Recipe(epochs=9, batch_size=4, lr=0.5, milestones=(2, 4), select="last")
    with seeded("test"):
        traps = TrapMID().assist(Small(8), recipe, corpus_of(20, 8), generator("test"))
    assert isinstance(traps, Traps)
    drawn = []
    for epoch, lr in ((1, 0.5), (2, 0.05), (4, 0.005)):
        traps.epoch_begins(epoch)
        assert traps.optimizers["discriminator"].param_groups[0]["lr"] == pytest.approx(lr)
        drawn.append(traps.labels.tolist())
        assert sorted(torch.bincount(traps.labels).tolist()) == [2] * 4 + [3] * 4
    assert drawn[0] != drawn[1] != drawn[2]


def test_changed_images_are_themselves_flipped_turned_or_cropped() -> None:
    grid = torch.arange(8.0) / 8
    x = (0.2 + 0.1 * grid[:, None] + 0.5 * grid).expand(64, 2, 8, 8)
    changed = transformed(x, generator("test"))
    assert changed.shape == x.shape
    as_it_was = [torch.equal(a, b) for a, b in zip(changed, x, strict=True)]
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(changed, x, strict=True)]
    assert sum(as_it_was) in range(2, 17)
    assert sum(mirrored) in range(2, 17)
    assert changed.min() >= 0
    assert changed.max() <= x.max() + 1e-6
    whole = changed[(changed > 0).all((1, 2, 3))]
    assert len(whole) > 20  # not turned: nothing behind the image shows
    assert len(whole) < 50
    steps = whole.diff(dim=3).abs().amax((1, 2, 3))
    assert steps.max() <= 0.064  # of a slight rotation; 0.0625 of the image as it was
    assert steps.min() >= 0.5 / 8 * 0.8**0.5 - 0.01  # a crop is enlarged


# LoFt -------------------------------------------------------------------------------------

HEAD = read("defenses/10-output-and-low-rank")["LoFt head"]


def test_the_low_rank_head_is_that_of_the_formula() -> None:
    with seeded("test"):
        last = LowRank(3).harden(MLP(width=8).build((1, 4, 4), 5)).last
    assert isinstance(last, nn.Sequential)
    fill(last, 0.7, 0.2)
    with torch.no_grad():
        for matrix in (w for w in last.parameters() if w.dim() == 2):
            matrix.mul_(10)
    logits = last(wave((4, 8), 0.7 * 1.3, 0.2 + 0.5))
    want = torch.tensor(HEAD["logits"], dtype=torch.float64)
    torch.testing.assert_close(logits, want, rtol=TIGHT, atol=TIGHT)
    loss = nn.functional.cross_entropy(logits, 3 * torch.arange(4) % 5)
    loss.backward()  # type: ignore[no-untyped-call]
    check_gradients(last, HEAD["cross-entropy gradients"], TIGHT)
    assert LowRank().twin() == NoDefense()


@pytest.mark.parametrize("defense", [LowRank(3), TrapMID()], ids=lambda d: d.name)
def test_a_last_layer_with_hidden_ones_in_it_is_not_taken_for_a_linear_one(
    defense: Defense, corpus: Corpus
) -> None:
    sentence = f"^{defense.name} replaces a linear last layer, and that of FaceIRSE is a Decoder"
    with seeded("test"):
        network = IRSE50(width=0.05, size=16, blocks=(1, 1, 1, 1)).build(TASK.shape, 4)
        with pytest.raises(ValueError, match=sentence):
            defense.assist(defense.harden(network), Recipe(1), corpus, generator("test"))
    assert TrapMID(beta=0).assist(network, Recipe(1), corpus, generator("test")) is None


# AT-AT and adversarial training -----------------------------------------------------------

ADVERSARIAL = read("defenses/08-at-at")["cases"]


class Flat(Classifier):
    """Linear layers on pixels in [-1, 1], as in the golden numbers."""

    def __init__(self, *, normed: bool) -> None:
        super().__init__()
        self.num_classes = 5
        layers = [nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU()] if normed else []
        self.layers = nn.Sequential(*layers)
        self.neck = nn.Identity()
        self.last = nn.Linear(6 if normed else 12, 5)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        return (self.layers((2 * x - 1).flatten(1)),)


@pytest.mark.parametrize("golden", ADVERSARIAL, ids=lambda c: c["case"])
def test_adversarial_images_losses_and_gradients_are_the_released_ones(
    golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = wave((6, 3, 2, 2), 0.7 * 1.3, 0.2 + 0.5)
    x[0, 0], x[1, 1] = 1, -1
    y = 3 * torch.arange(6) % 5
    start = wave(x.shape, 0.7 * 2.7, 0.2 + 0.6)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: (start + 1) / 2)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: 2 * torch.arange(6) % 5)
    values: dict[str, Any] = {  # pixels here have half the range
        "epsilon": golden["epsilon"] / 2, "rate": golden["step"] / 2, "steps": golden["steps"],
        "mode": "train",
    }  # fmt: skip
    towards = golden["targeted"]
    defense: AntiAdversarial | AdversarialTraining = AdversarialTraining(**values)
    if towards:
        defense = AntiAdversarial(golden["weight of adversarial loss"], **values)
    with seeded("test"):
        network = Flat(normed="BatchNorm" in golden["case"])
    fill(network, 0.7, 0.2)
    batch = Batch((x + 1) / 2, y)
    terms = defense.loss_terms(network.train(), batch)
    total = 6 * torch.stack(list(terms.values())).sum()  # the released losses are sums
    assert total.item() / 6 == pytest.approx(
        golden["loss / n as released (sum over batch / n)"], rel=TIGHT
    )
    total.backward()  # type: ignore[no-untyped-call]
    check_gradients(network, golden["gradients of the SUM"], TIGHT)
    for name, buffer in network.named_buffers():
        kind = name.rpartition(".")[2]
        counted = "BatchNorm batches counted" if kind.startswith("num") else ""
        (want,) = (
            value
            for key, value in golden[counted or "BatchNorm statistics after the step"].items()
            if key.endswith(kind)
        )
        assert buffer.tolist() == pytest.approx(want, rel=TIGHT)
    classes = torch.tensor(golden["adversarial targets"]) if towards else y
    changed = perturbed(defense, network, batch, classes, towards=towards)
    steps = golden["x_adv - x after k = 0.. steps (first image, divided by epsilon)"]
    ours = (2 * (changed - batch.x)[0]).flatten() / golden["epsilon"]
    assert ours.tolist() == pytest.approx(steps[-1], abs=1e-9)


def test_adversarial_images_cost_no_statistics_in_eval_mode_and_nothing_at_no_strength(
    corpus: Corpus,
) -> None:
    plain = train(corpus, NoDefense())
    assert same(train(corpus, AntiAdversarial(weight=0)), plain)
    assert same(train(corpus, AdversarialTraining(epsilon=0)), plain)
    assert not same(train(corpus, AntiAdversarial()), plain)
    assert not same(train(corpus, AntiAdversarial(epsilon=0)), plain)
    for mode, batches in (("eval", 2), ("train", 7)):
        with seeded("test"):
            network = Flat(normed=True).train()
        batch = Batch(torch.full((6, 3, 2, 2), 0.5), 3 * torch.arange(6) % 5)
        AntiAdversarial(mode=mode).loss_terms(network, batch)  # type: ignore[arg-type]
        (counted,) = (b for k, b in network.named_buffers() if k.endswith("tracked"))
        assert int(counted) == batches
        assert all(p.grad is None for p in network.parameters())


# RoLSS and SSF ----------------------------------------------------------------------------

SKIPS = read("defenses/04-rolss-blocks")
DEPTHS = {
    "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3),
}  # fmt: skip
BASIC = [c for c in SKIPS["cases"] if c["block"] == "BasicBlock"]


@pytest.mark.parametrize("name", DEPTHS)
def test_each_block_has_the_released_skip(name: str) -> None:
    for text, released in SKIPS["skip scale of each block, by stage"][name].items():
        scales = (1, 1, 1, 1) if text == "None" else tuple(json.loads(text))
        assert RoLSS(scales, tail=0.2).scales_of(DEPTHS[name]) == released


@pytest.mark.parametrize(
    "golden", BASIC, ids=lambda c: f"{c['skip scale']}-{c['mode']}-{c['projection']}"
)
def test_blocks_compute_what_the_released_ones_do(golden: dict[str, Any]) -> None:
    with seeded("test"):
        block = Block(golden["in"], golden["out"], golden["stride"])
        if not golden["projection"]:
            assert isinstance(block.shortcut, nn.Identity)
    fill(block, 0.7, 0.2)
    if golden["skip scale"] != 1:
        block.shortcut = weighed(block.shortcut, golden["skip scale"])
    block.train(golden["mode"] == "train")
    out = block(wave((2, golden["in"], 5, 5), 0.7 * 1.3, 0.2 + 0.5))
    weights = wave(out.shape, 1.1, 0.4)
    assert out.sum().item() == pytest.approx(golden["output sum"], rel=TIGHT)
    assert (out * weights).sum().item() == pytest.approx(
        golden["output . wave(.,1.1,.4)"], rel=1e-9
    )
    (out * weights).sum().backward()
    gradients = {k: v for k, v in golden["gradients"].items() if v is not None}
    check_gradients(block, gradients, TIGHT)


def test_skips_are_weighed_in_all_networks_that_have_some(corpus: Corpus) -> None:
    small = ResNet34(latent_dim=4, width=0.07)
    plain = train(corpus, NoDefense(), RoLSS.checked_on)
    assert same(train(corpus, RoLSS((1, 1, 1, 1)), RoLSS.checked_on), plain)
    with seeded("test"):
        image = torch.rand(2, 3, 32, 32)
        face = FaceNet(width=0.05, size=32, blocks=(1, 1, 2, 1))
        made = [s.build((3, 32, 32), 4) for s in (small, face)]
        for network in made:
            names = set(network.state_dict())
            zs = network.eval().latents(image)
            RoLSS((1, 1, 0.5, 1)).harden(network)
            others = network.eval().latents(image)
            alike = [torch.equal(a, b) for a, b in zip(zs, others, strict=True)]
            first = alike.index(False)
            assert alike == [True] * first + [False] * (len(zs) - first)
            assert first == len(zs) - {7: 4, 5: 3}[len(zs)]
            assert set(network.state_dict()) == names
            RoLSS((1, 0, 1, 1)).harden(network)
            assert set(network.state_dict()) < names
        with pytest.raises(ValueError, match="no known skip connections"):
            SSF().harden(MLP().build((1, 8, 8), 4))
    small_cell = cell()
    assert "rolss weighs skip connections, and mlp has none" in RoLSS().refuse(small_cell)
    for spec in (ResNet34(), IR152(), Imported(FaceNet64(), Weights("a.pt", "0" * 64))):
        setting = replace(small_cell.setting, network=spec)
        assert not RoLSS().refuse(replace(small_cell, setting=setting))


# BiDO+ ------------------------------------------------------------------------------------

PLUS = read("defenses/07-bido-plus")["cases"]


class TwoHidden(Classifier):
    """A convolution, a hidden layer and the last, as in the golden numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 5
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.LeakyReLU(0.2))
        self.second = nn.Sequential(nn.Linear(48, 7), nn.BatchNorm1d(7), nn.LeakyReLU(0.2))
        self.neck = nn.Identity()
        self.last = nn.Linear(7, 5)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        z = self.first(x)
        return (z, self.second(z.flatten(1)))


@pytest.mark.parametrize("epoch", [0, 60])
@pytest.mark.parametrize("golden", PLUS, ids=lambda c: f"{c['strategy']}-{c['BiDO terms']}")
def test_bido_plus_has_the_released_loss_and_gradients(golden: dict[str, Any], epoch: int) -> None:
    weights = (0.05, 0.5) if golden["BiDO terms"] else (0.0, 0.0)
    by_energy = golden["strategy"] == "ER"
    if by_energy and golden["BiDO terms"] and epoch:
        assert "as released ends with" in golden
        return
    defense = (BiDOPlusEnergy if by_energy else BiDOPlus)("nhsic", *weights)
    with seeded("test"):
        network = TwoHidden().train()
    fill(network, 0.7, 0.2)
    x = 0.5 + 0.5 * wave((8, 1, 6, 6), 0.7 * 1.3, 0.2 + 0.5)
    outliers = 0.5 + 0.5 * wave((4, 1, 6, 6), 0.7 * 2.3, 0.2 + 0.9)
    outliers = torch.cat([outliers, 0 * outliers])  # of which the first half are taken
    helper = Margins(generator("test")) if by_energy else None
    batch = Batch(x, 3 * torch.arange(8) % 5, epoch, 100, helper=helper, outliers=outliers)
    total = torch.stack(list(defense.loss_terms(network, batch).values())).sum()
    assert total.item() == pytest.approx(golden[f"loss in epoch {epoch}"], rel=RIDGE)
    total.backward()  # type: ignore[no-untyped-call]
    # Of private and other images together the ridge is conditioned worse: 3e-9 is rounding.
    check_gradients(network, golden[f"gradients in epoch {epoch}"], 1e-8)


def test_margins_are_the_means_over_an_epoch_but_for_its_last_batch() -> None:
    margins = Margins(generator("test"))
    for epoch in (0, 1):
        margins.epoch_begins(epoch)
        for i in range(1, 4):
            margins.note(torch.tensor([-1.0 * i, -3.0 * i]), torch.tensor([-5.0 * i]))
            if i == 1:
                assert margins.margins.tolist() == [0, 0]
    assert margins.margins.tolist() == pytest.approx([-3, -7.5])
    logits = torch.tensor([[0.0, 0.0], [8.0, 0.0]])
    e = [-0.6931471805599453, -8.00033540637289]
    batch = Batch(torch.zeros(2, 1, 1, 1), torch.zeros(2).long(), helper=margins)
    found = BiDOPlusEnergy("nhsic", 0, 0, gamma=2).exposure(logits, logits, batch)
    above, below = max(0, e[0] + 3) ** 2 / 2, (-7.5 - e[1]) ** 2 / 2
    assert found["E"].item() == pytest.approx(2 * (above + below))


@pytest.mark.parametrize(
    ("how", "change", "sentence"),
    [
        ({"start": 0.0}, {}, "0 of 5 epochs leaves none: raise defense.start"),
        ({"start": 0.05}, {}, "0.05 of 5 epochs leaves none: raise defense.start"),
        ({"share": 0.0}, {}, "a share of 0 of 16 images is none: raise defense.share"),
        ({"share": 0.1}, {"batch_size": 4}, "a share of 0.1 of 4 images is none"),
    ],
)
def test_energies_are_refused_where_nothing_gives_margins_or_no_batch_has_outliers(
    how: dict[str, Any], change: dict[str, Any], sentence: str, corpus: Corpus
) -> None:
    recipe = replace(Recipe(epochs=5, batch_size=16), **change)
    defense = BiDOPlusEnergy("nhsic", 0.05, 0.5, **how)
    small = replace(cell(defense=defense), recipe=recipe)
    assert sentence in defense.refuse(small)
    with pytest.raises(ValueError, match=sentence):
        defense.assist(hidden(), recipe, corpus, generator("test"))
    for fits in (replace(defense, gamma=0), replace(defense, start=0.6, share=0.5)):
        assert not fits.refuse(replace(small, defense=fits))
        fits.assist(hidden(), recipe, corpus, generator("test"))
    assert not defense.refuse(replace(small, recipe=replace(recipe, epochs=0)))


def test_energies_need_two_batches_an_epoch_and_outliers_in_each(corpus: Corpus) -> None:
    defense = BiDOPlusEnergy("nhsic", 0.05, 0.5)
    one = Recipe(epochs=5, batch_size=128)
    with pytest.raises(ValueError, match=r"here an epoch has one: lower recipe\.batch_size"):
        defense.assist(hidden(), one, corpus, generator("test"))
    helper = defense.assist(hidden(), replace(one, batch_size=64), corpus, generator("test"))
    assert isinstance(helper, Margins)
    helper.epoch_begins(2)
    with pytest.raises(ValueError, match="here an epoch has one"):
        helper.epoch_begins(3)  # of which round(0.6 * 5) are over
    for _ in range(2):
        helper.note(torch.tensor([-1.0]), torch.tensor([-3.0]))
    helper.epoch_begins(3)
    batch = Batch(torch.zeros(1, 1, 1, 1), torch.zeros(1).long(), helper=helper)
    with pytest.raises(ValueError, match="met a batch of 1 without outliers"):
        defense.exposure(torch.zeros(1, 2), torch.zeros(0, 2), batch)


def test_outliers_come_in_at_start_and_move_no_statistics_before_unless_asked_to() -> None:
    with seeded("test"):
        network = TwoHidden().train()
        x = torch.rand(8, 1, 6, 6)
    batch = Batch(x, torch.arange(8) % 5, 5, 10, outliers=1 - x)
    counted = [b for k, b in network.named_buffers() if k.endswith("tracked")]
    for early, start, batches in ((False, 0.6, 1), (True, 0.6, 2), (False, 0.5, 1)):
        before = int(counted[0])
        terms = BiDOPlus("nhsic", 0.1, 0.1, start=start, early=early).loss_terms(network, batch)
        assert int(counted[0]) - before == batches
        assert ("H(outliers)" in terms) == (start == 0.5)
    assert [e for e in range(10) if BiDOPlus("nhsic", 1, 1).mature(e, 10)] == [6, 7, 8, 9]
    without, bido = BiDOPlus("nhsic", 0.1, 0.1, gamma=0), BiDO("nhsic", 0.1, 0.1)
    ours, theirs = (d.loss_terms(network, batch) for d in (without, bido))
    assert {k: v.item() for k, v in ours.items()} == {k: v.item() for k, v in theirs.items()}
    assert without.mature(0, 10)


# DP-SGD -----------------------------------------------------------------------------------

PRIVATE = read("defenses/09-dp-sgd")


class Hidden(Classifier):
    """One hidden layer, as in the golden numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 3
        self.l1 = nn.Linear(6, 5)
        self.neck = nn.Identity()
        self.last = nn.Linear(5, 3)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        return (self.l1(x.flatten(1)).tanh(),)


def hidden() -> Hidden:
    with seeded("test"):
        network = Hidden().train()
    fill(network, 1.1 * 0.7, 0.2)
    with torch.no_grad():
        for matrix in (w for w in network.parameters() if w.dim() == 2):
            matrix.mul_(5)
    return network


def four() -> Batch:
    x = wave((4, 6), 1.3 * 0.7, 0.2 + 0.5)
    x *= torch.tensor([[0.2], [1], [3], [6]], dtype=torch.float64)
    return Batch(x[:, :, None, None], 2 * torch.arange(4) % 3, expected=4)


@pytest.mark.parametrize("chunk", [3, 4])
@pytest.mark.parametrize(
    "golden",
    [c for c in PRIVATE["cases"] if not c["BatchNorm"]],
    ids=lambda c: c["noise multiplier"],
)
def test_the_private_gradient_is_the_released_one(
    golden: dict[str, Any], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = iter(range(4))
    monkeypatch.setattr(
        torch, "randn", lambda shape, **_: wave(shape, 3.1 * 0.7, 0.2 + 0.2 + next(draws))
    )
    network, batch = hidden(), four()
    defense = DPSGD(golden["noise multiplier"], golden["clip"], chunk=chunk)
    optimizer = torch.optim.SGD(network.parameters(), 0.0)
    terms = defense.step(network, batch, optimizer)
    gradients = golden["gradient handed to the optimiser"].values()
    for weight, want in zip(network.parameters(), gradients, strict=True):
        assert weight.grad is not None
        expected = torch.tensor(want["values"], dtype=torch.float64)
        torch.testing.assert_close(weight.grad, expected, rtol=0, atol=1e-11)
    plain = NoDefense().loss_terms(network, batch)["task"]
    assert terms["task"].item() == pytest.approx(plain.item(), rel=TIGHT)
    each, _ = per_image(network, dict(network.named_parameters()), batch.x, batch.y)
    norms = torch.stack([g.flatten(1).square().sum(1) for g in each.values()]).sum(0).sqrt()
    assert norms.tolist() == pytest.approx(golden["norms of per-sample gradients"], rel=TIGHT)


@pytest.mark.parametrize("golden", PRIVATE["privacy"], ids=lambda c: str(c["noise"]))
def test_epsilon_is_that_of_opacus(golden: dict[str, Any]) -> None:
    ours = privacy(golden["noise"], golden["rate q"], golden["steps"], golden["delta"])
    assert ours == pytest.approx(golden["Opacus RDP epsilon"], rel=1e-8)
    assert ours > golden["Opacus PRV epsilon (eps_error .01)"]


def test_an_empty_batch_is_a_step_of_noise_over_the_expected_size() -> None:
    moved = {}
    for expected in (4, 8):
        network = hidden()
        before = [p.detach().clone() for p in network.parameters()]
        batch = Batch(
            torch.zeros(0, 6, 1, 1, dtype=torch.float64), torch.zeros(0, dtype=torch.long),
            expected=expected, rng=generator("test"),
        )  # fmt: skip
        optimizer = torch.optim.SGD(network.parameters(), 1.0)
        assert DPSGD(noise=2, clip=3).step(network, batch, optimizer) == {}
        pairs = zip(network.parameters(), before, strict=True)
        moved[expected] = torch.cat([(a - b).flatten() for a, b in pairs])
    assert moved[4].std().item() == pytest.approx(2 * 3 / 4, rel=0.3)
    torch.testing.assert_close(moved[4], 2 * moved[8])


def test_without_noise_and_clip_it_is_its_twin_with_group_normalisations(corpus: Corpus) -> None:
    small = FaceNet(width=0.05, size=16, blocks=(1, 1, 1, 1))
    twin = train(corpus, DPSGD().twin(), small)
    loose = train(corpus, DPSGD(noise=0, clip=1e6), small)
    assert twin["history"][0] == pytest.approx(loose["history"][0], abs=1e-3)
    assert not any("running" in name for name in twin["state"])
    plain = train(corpus, NoDefense())
    assert same(train(corpus, DPSGD().twin()), plain)  # a perceptron has no normalisation
    assert not same(train(corpus, DPSGD(noise=0, clip=0.1)), plain)


def test_steps_without_noise_and_clip_are_those_of_its_twin() -> None:
    after = {}
    for name, defense in {"loose": DPSGD(noise=0, clip=1e6), "twin": DPSGD().twin()}.items():
        with seeded("test"):
            built = FaceNet(width=0.05, size=16, blocks=(1, 1, 1, 1)).build((3, 16, 16), 4)
        network = defense.harden(built).double().train()
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0  # what is dropped for single images is not what a batch drops
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
        images = generator("test")
        for _ in range(5):
            x = torch.rand(10, 3, 16, 16, generator=images, dtype=torch.float64)
            batch = Batch(x, torch.arange(10) % 4, expected=10, rng=generator("noise"))
            defense.step(network, batch, optimizer)
        after[name] = {k: p.detach() for k, p in network.named_parameters()}
    assert set(after["loose"]) == set(after["twin"])
    for name, weights in after["twin"].items():
        torch.testing.assert_close(after["loose"][name], weights, rtol=1e-9, atol=1e-12)


def test_normalisation_is_by_group_and_no_vector_is_zeroed() -> None:
    with seeded("test"):
        # Sixteen channels before the neck: each would be a group of its own.
        network = DPSGD().harden(VGG16(pretrained=False, width=1 / 32).build((3, 32, 32), 4))
        z = network.latents(torch.rand(2, 3, 32, 32))[-1]
        hidden_layer = (
            DPSGD().harden(ResNet34(latent_dim=4, width=0.07).build((3, 32, 32), 4)).neck
        )
    assert isinstance(hidden_layer, nn.Sequential)
    assert isinstance(hidden_layer[0], nn.ReLU)  # which the layer had in its normalisation
    assert isinstance(network.neck, nn.GroupNorm)
    assert not network.neck.bias.requires_grad
    assert z.std() > 0.1
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


@pytest.mark.parametrize("defense", [DPSGD(), DPSGD().twin()], ids=["noise", "twin"])
def test_maps_of_one_number_in_each_group_are_refused(defense: DPSGD) -> None:
    def step(defense: Defense, side: int) -> None:
        with seeded("test"):
            built = MCNN(widths=(8, 16, 32)).build((1, side, side), 5)
            x = torch.rand(6, 1, side, side)
        network = defense.harden(built).train()
        batch = Batch(x, torch.arange(6) % 5, expected=6, rng=generator("noise"))
        defense.step(network, batch, torch.optim.SGD(network.parameters(), 0.1))

    with pytest.raises(ValueError, match=r"32 channels in 32 groups.* lower defense\.groups"):
        step(defense, 32)
    step(defense, 40)
    step(replace(defense, groups=16), 32)


def test_epsilon_is_refused_where_it_does_not_hold_and_quoted_where_it_does() -> None:
    small = cell(defense=DPSGD())
    assert "holds for recipe.sampler=poisson and recipe.select=last" in DPSGD().refuse(small)
    recipe = Recipe(epochs=2, batch_size=8, sampler="poisson", select="last")
    assert not DPSGD().refuse(replace(small, recipe=recipe))
    for change in ({"sampler": "shuffle"}, {"select": "validation"}):
        worse = replace(small, recipe=replace(recipe, **change))  # type: ignore[arg-type]
        assert DPSGD().refuse(worse)
        assert not DPSGD(strict=False).refuse(worse)
    facts = DPSGD(noise=2, delta=1e-6).facts(recipe, 80)
    assert facts == {"epsilon": privacy(2, 0.1, 20, 1e-6), "delta": 1e-6}
    assert DPSGD().twin().facts(recipe, 80) == {}
    assert DPSGD().facts(replace(recipe, epochs=0), 80) == {}  # the network came trained
    came = Imported(MLP(), Weights("a.pt", "0" * 64))
    trained = replace(small, recipe=recipe, setting=replace(small.setting, network=came))
    assert "imported comes trained, on images that it does not count" in DPSGD().refuse(trained)
    assert not DPSGD(strict=False).refuse(trained)
    assert not DPSGD().twin().refuse(trained)
    with pytest.raises(ValueError, match=r"units of DPSGD\.clip"):
        DPSGD(clip=0)
