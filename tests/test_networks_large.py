"""The papers' large networks: their sizes, their weights from files, and what enters them."""

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from mibench.defenses import MID, BiDO
from mibench.networks import (
    IR152,
    IRSE50,
    VGG16,
    VGG19,
    FaceNet,
    FaceNet64,
    MobileFaceNet,
    ResNet34,
    Weights,
)
from mibench.networks.classifiers.face import Face, resize
from mibench.networks.classifiers.facenet import Decoder
from mibench.networks.classifiers.mobilefacenet import ALIGN, FaceMobile, align
from mibench.networks.classifiers.vgg import VGG
from mibench.networks.foreign.weights import IMAGENET, imagenet, load_exactly, read_weights
from mibench.roles import Batch, NetworkSpec
from mibench.seeding import seeded
from mibench.types import Classifier, Images, Shape

BLOCKS = (1, 1, 2, 1)
SMALL: list[NetworkSpec] = [
    VGG16(pretrained=False, width=0.05),
    VGG19(pretrained=False, width=0.05),
    ResNet34(latent_dim=10, width=0.1),
    FaceNet(width=0.1, blocks=BLOCKS, size=48),
    FaceNet64(width=0.1, blocks=BLOCKS, size=32),
    IR152(width=0.1, blocks=BLOCKS, size=32),
    IRSE50(width=0.1, blocks=BLOCKS, size=48),
    MobileFaceNet(width=0.1),
    MobileFaceNet(width=0.1, warp=False, frozen=False),
]
every_small = pytest.mark.parametrize("spec", SMALL, ids=lambda s: s.name)
SHAPE = (3, 32, 32)


def build(spec: NetworkSpec, shape: Shape = SHAPE, num_classes: int = 5) -> Classifier:
    with seeded("tests"):
        return spec.build(shape, num_classes).eval()


def outline(spec: NetworkSpec, size: int, num_classes: int = 1000) -> Classifier:
    """Returns the network without its numbers."""
    with torch.device("meta"):
        return spec.build((3, size, size), num_classes).eval()


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def images(rng: torch.Generator, n: int = 4, size: int = 32) -> Images:
    return torch.rand(n, 3, size, size, generator=rng)


def step(network: Classifier, x: Images) -> None:
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    loss = F.cross_entropy(network.train()(x), torch.arange(len(x)))
    torch.autograd.backward(loss)
    optimizer.step()


# Sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "size", "widths"), [
    (VGG16(), 64, [65536, 32768, 16384, 8192, 2048]),
    (VGG16(), 32, [16384, 8192, 4096, 2048, 512]),
    (VGG19(), 32, [16384, 8192, 4096, 2048, 512]),
    (ResNet34(), 64, [16384, 16384, 8192, 4096, 2048, 50, 50]),
], ids=lambda v: getattr(v, "name", None))  # fmt: skip
def test_the_latents_have_the_papers_sizes(
    spec: NetworkSpec, size: int, widths: list[int]
) -> None:
    zs = outline(spec, size).latents(torch.zeros(2, 3, size, size, device="meta"))
    assert [z.flatten(1).shape[1] for z in zs] == widths


@pytest.mark.parametrize(("spec", "sides"), [
    (FaceNet(), [56, 28, 14, 7]),
    (FaceNet64(), [32, 16, 8, 4]),
    (IR152(), [32, 16, 8, 4]),
    (IRSE50(), [56, 28, 14, 7]),
], ids=lambda v: getattr(v, "name", None))  # fmt: skip
def test_the_backbones_of_faces_halve_four_times_and_embed_in_512(
    spec: FaceNet, sides: list[int]
) -> None:
    network = outline(spec, spec.size)
    assert isinstance(network, Face)
    zs = network.backbone(torch.zeros(2, 3, spec.size, spec.size, device="meta"))
    want = [(2, c, s, s) for c, s in zip((64, 128, 256, 512), sides, strict=True)]
    assert [tuple(z.shape) for z in zs] == [*want, (2, 512)]


def test_the_mobile_backbone_has_five_latents(rng: torch.Generator) -> None:
    zs = build(MobileFaceNet()).latents(images(rng, 1))
    sizes = [(64, 56, 56), (64, 28, 28), (128, 14, 14), (128, 7, 7), (128,)]
    assert [tuple(z.shape[1:]) for z in zs] == sizes


@every_small
def test_latents_and_head_give_the_forward_pass(spec: NetworkSpec, rng: torch.Generator) -> None:
    network = build(spec)
    x = images(rng)
    zs = network.latents(x)
    assert zs[-1].ndim == 2
    assert network(x).shape == (4, 5)
    torch.testing.assert_close(network.head(zs[-1]), network(x))


@pytest.mark.parametrize("spec", [VGG16(), VGG19()], ids=lambda s: s.name)
def test_vgg_refuses_sizes_that_32_does_not_divide(spec: NetworkSpec) -> None:
    with pytest.raises(ValueError, match="32 must divide their sides, not 48x64"):
        spec.build((3, 48, 64), 5)


def test_faces_are_grey_or_coloured(rng: torch.Generator) -> None:
    spec = FaceNet(width=0.1, blocks=BLOCKS, size=32)
    grey = torch.rand(2, 1, 32, 32, generator=rng)
    network = build(spec, (1, 32, 32))
    torch.testing.assert_close(network(grey), network(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        spec.build((2, 32, 32), 5)


def test_the_size_of_a_face_is_a_multiple_of_16() -> None:
    with pytest.raises(ValueError, match=r"FaceNet64\.size must be divisible by 16, got 60"):
        FaceNet64(size=60)


# Parameters ---------------------------------------------------------------------------------


def peer(name: str) -> nn.Module:
    """Returns torchvision's network without its numbers."""
    import torchvision.models

    with torch.device("meta"):
        network: nn.Module = getattr(torchvision.models, name)()
    return network


@pytest.mark.parametrize("spec", [VGG16(), VGG19()], ids=lambda s: s.name)
def test_the_features_of_vgg_are_those_of_torchvision(spec: VGG16) -> None:
    network = outline(spec, 64)
    ours = network.get_submodule("features").state_dict()
    theirs = peer(spec.official).get_submodule("features").state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]


def test_the_body_of_the_resnet_is_as_large_as_torchvisions() -> None:
    head = 2 * 512 + 513 * 50 + 2 * 50 + 51 * 1000
    body = count(peer("resnet34")) - 513 * 1000
    assert count(outline(ResNet34(), 64)) == body + head


@pytest.mark.parametrize("spec", [FaceNet(), FaceNet64(), IR152(), IRSE50()], ids=lambda s: s.name)
def test_the_backbones_of_faces_have_the_parameters_of_their_description(spec: FaceNet) -> None:
    want = 27 * 64 + 3 * 64
    channels = 64
    for width, depth in zip((64, 128, 256, 512), spec.blocks, strict=True):
        for _ in range(depth):
            want += 2 * channels + 9 * channels * width + width + 9 * width**2 + 2 * width
            want += channels * width + 2 * width if channels != width else 0
            want += 2 * width * width // 16 if isinstance(spec, IRSE50) else 0
            channels = width
    want += 2 * 512 + (512 * (spec.size // 16) ** 2 + 1) * 512 + 2 * 512
    assert count(outline(spec, spec.size).get_submodule("backbone")) == want


@pytest.mark.parametrize("size", [32, 64])
def test_the_bias_of_vggs_neck_stays_zero(size: int, rng: torch.Generator) -> None:
    network = build(SMALL[0], (3, size, size))
    step(network, images(rng, size=size))
    assert isinstance(network.neck, nn.BatchNorm1d)
    assert not network.neck.bias.any()
    assert network.neck.weight.ne(1).any()


def test_the_convolutions_of_the_resnet_start_with_the_released_deviation() -> None:
    network = build(ResNet34())
    weights = {k: v for k, v in network.state_dict().items() if v.ndim == 4}
    assert len(weights) == 36
    for name, weight in weights.items():
        want = (2 / (weight.shape[0] * weight.shape[2] ** 2)) ** 0.5
        assert weight.std().item() == pytest.approx(want, rel=0.05), name


# Ways into and out of the networks ----------------------------------------------------------


def test_the_resnet_sees_pixels_from_minus_one_to_one(rng: torch.Generator) -> None:
    network = build(SMALL[2])
    x = images(rng)
    stem = network.get_submodule("stem")
    torch.testing.assert_close(network.latents(x)[0], stem(2 * x - 1))


@every_small
def test_answers_are_what_the_last_layer_returns_and_no_log_probabilities(
    spec: NetworkSpec, rng: torch.Generator
) -> None:
    network = build(spec).eval()
    x = images(rng)
    logits = network(x)
    torch.testing.assert_close(logits, network.last(network.latents(x)[-1]))
    assert logits.logsumexp(1).abs().min() > 1e-3


def test_the_hidden_layer_of_the_resnet_is_shown_before_its_relu(rng: torch.Generator) -> None:
    network = build(SMALL[2])
    *_, hidden, z = network.latents(images(rng))
    assert hidden.min() < 0
    torch.testing.assert_close(network.neck(hidden), z)
    torch.testing.assert_close(network.neck(hidden.relu()), z)


def test_the_ir_se_sees_blue_first(rng: torch.Generator) -> None:
    network = build(SMALL[6])
    assert isinstance(network, Face)
    x = images(rng, size=48)
    torch.testing.assert_close(network.prepare(x), 2 * x[:, [2, 1, 0]] - 1)


@pytest.mark.parametrize(("spec", "length"), [(SMALL[6], 1.0), (SMALL[7], 13**0.5)])
def test_normalised_embeddings_have_their_length(
    spec: NetworkSpec, length: float, rng: torch.Generator
) -> None:
    z = build(spec).latents(images(rng))[-1]
    torch.testing.assert_close(z.norm(dim=1), torch.full((4,), length))


def test_the_decoder_of_the_ir_se_has_three_layers(rng: torch.Generator) -> None:
    network = build(SMALL[6])
    last = network.last
    assert isinstance(last, Decoder)
    z = torch.randn(4, last.in_features, generator=rng)
    norm1, _, linear1, norm2, _, linear2, norm3, _ = last.hidden.children()
    hidden = linear2(norm2(linear1(norm1(z).relu())).relu())
    want = F.linear(norm3(hidden).relu(), last.weight, last.bias)
    torch.testing.assert_close(network.head(z), want)


def test_the_mobile_backbone_sees_standardised_pixels() -> None:
    network = build(SMALL[8])
    assert isinstance(network, Face)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(network.prepare(mean), torch.zeros(1, 3, 112, 112))
    torch.testing.assert_close(network.prepare(mean + std), torch.ones(1, 3, 112, 112))


@pytest.mark.parametrize(("old", "new"), [(64, 112), (32, 112), (112, 64), (100, 112), (48, 48)])
def test_images_are_resized_as_pillow_does(old: int, new: int, rng: torch.Generator) -> None:
    pixels = torch.randint(0, 256, (3, old, old), generator=rng, dtype=torch.uint8)
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    resized = np.asarray(picture.resize((new, new), Image.Resampling.BILINEAR))
    want = torch.from_numpy(resized.copy()).permute(2, 0, 1) / 255
    torch.testing.assert_close(resize(pixels[None] / 255, new)[0], want, rtol=0, atol=1.5 / 255)


def test_a_bright_pixel_lands_where_the_alignment_says() -> None:
    a, b, c, d = ALIGN
    for x, y in [(20, 30), (50, 10), (31, 31)]:
        image = torch.zeros(1, 1, 64, 64)
        image[0, 0, y, x] = 1
        warped = align(image)[0, 0]
        v, u = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
        centre = torch.stack([(warped * u).sum(), (warped * v).sum()]) / warped.sum()
        want = torch.tensor([a * x + b * y + c, a * y - b * x + d])
        torch.testing.assert_close(centre, want, rtol=0, atol=0.1)


def test_the_alignment_is_grid_sampling_with_a_repeated_border(rng: torch.Generator) -> None:
    a, b, c, d = ALIGN
    x = images(rng, 2, 64)
    forward = torch.tensor([[a, b, c], [-b, a, d], [0, 0, 1]], dtype=torch.float64)
    v, u = torch.meshgrid(*[torch.arange(112, dtype=torch.float64)] * 2, indexing="ij")
    at = torch.stack([u, v, torch.ones_like(u)], dim=2) @ forward.inverse().T
    grid = ((2 * at[..., :2] + 1) / 64 - 1).float().expand(2, -1, -1, -1)
    want = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(align(x), want, rtol=0, atol=1e-4)


def test_the_alignment_takes_the_same_picture_at_any_size() -> None:
    ramp = torch.linspace(0, 1, 65).unfold(0, 2, 1).mean(1)
    small = ramp.expand(1, 1, 64, 64)
    large = F.interpolate(small, scale_factor=2.0, mode="bilinear")
    inside = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(align(large)[inside], align(small)[inside], rtol=0, atol=1e-4)


@every_small
def test_gradients_reach_the_pixels(spec: NetworkSpec, rng: torch.Generator) -> None:
    x = images(rng).requires_grad_()
    (gradient,) = torch.autograd.grad(build(spec)(x).square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).any(1).all()


# Defenses -----------------------------------------------------------------------------------


def test_mid_on_the_resnet_replaces_the_neck_and_keeps_the_norm_before_the_hidden_layer(
    rng: torch.Generator,
) -> None:
    network = build(ResNet34(width=0.1))
    plain = network.latents(images(rng))
    kept = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
    with seeded("tests"):
        network = MID(lambda_=0).harden(network)
    assert [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)] == kept[:1]
    assert network.noise_dim == 25
    zs = network.latents(images(rng.manual_seed(0)))
    assert len(zs) == 7
    torch.testing.assert_close(zs[:6], plain[:6])
    assert torch.equal(zs[6], zs[5])


@every_small
def test_mid_hardens_it_and_can_train_all_that_is_left(
    spec: NetworkSpec, rng: torch.Generator
) -> None:
    defense = MID(lambda_=0.1)
    with seeded("tests"):
        network = defense.harden(spec.build(SHAPE, 5)).train()
        terms = defense.loss_terms(network, Batch(images(rng), torch.arange(4)))
        weights = [p for p in network.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(torch.stack(list(terms.values())).sum(), weights)
        assert network.eval()(images(rng)).shape == (4, 5)
    assert network.noise_dim > 0
    assert all(g.isfinite().all() for g in gradients)


@every_small
def test_bido_regularises_its_latents(spec: NetworkSpec, rng: torch.Generator) -> None:
    defense = BiDO("nhsic", lambda_x=0.1, lambda_y=1.0)
    with seeded("tests"):
        network = spec.build(SHAPE, 5).train()
        terms = defense.loss_terms(network, Batch(images(rng, 8), torch.arange(8) % 5))
    assert all(term.isfinite() for term in terms.values())


def changed(spec: MobileFaceNet, rng: torch.Generator) -> set[str]:
    network = build(spec)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    step(network, images(rng))
    after = network.state_dict()
    return {k for k in before if not torch.equal(before[k], after[k])}


def test_a_frozen_backbone_stays_bit_for_bit_while_the_head_trains(rng: torch.Generator) -> None:
    assert changed(MobileFaceNet(width=0.1), rng) == {"last.weight", "last.bias"}


def test_a_backbone_that_is_not_frozen_trains_with_its_statistics(rng: torch.Generator) -> None:
    names = changed(MobileFaceNet(width=0.1, frozen=False), rng)
    assert {"backbone.conv1.0.weight", "backbone.conv1.1.running_mean"} <= names


# Weights from files -------------------------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").mkdir()
    return tmp_path


def saved(folder: Path, content: Any, file: str = "net.pth") -> Weights:
    path = folder / "weights" / file
    torch.save(content, path)
    return Weights(file, digest(path))


STATE = {"a.weight": torch.arange(3.0), "a.bias": torch.ones(1)}


@pytest.mark.parametrize("content", [
    STATE,
    {"state_dict": STATE, "epoch": 3},
    {"model": STATE},
    {"model": {"state_dict": STATE}},
    {"state_dict": {f"module.{k}": v for k, v in STATE.items()}},
])  # fmt: skip
@pytest.mark.parametrize("file", ["net.pth", "net.pt", "net.tar", "net.bin"])
def test_a_state_dict_is_found_in_its_wrappers(content: Any, file: str, folder: Path) -> None:
    state = read_weights(saved(folder, content, file), folder)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[k], v) for k, v in STATE.items())


def test_safetensors_are_read(folder: Path) -> None:
    path = folder / "weights" / "net.safetensors"
    save_file(STATE, path)
    state = read_weights(Weights(path.name, digest(path)), folder)
    assert torch.equal(state["a.weight"], STATE["a.weight"])


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not(how: str, folder: Path) -> None:
    mark = folder / "executed"
    weights = saved(folder, {"state_dict": STATE, "extra": Malicious(mark)})
    if how == "pickle":
        path = folder / "weights" / "net.pth"
        path.write_bytes(pickle.dumps(Malicious(mark), protocol=2))
        weights = Weights("net.pth", digest(path))
    with pytest.raises(ValueError, match=r"net\.pth holds more than tensors, or is damaged"):
        read_weights(weights, folder)
    assert not mark.exists()


@pytest.mark.parametrize("file", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_a_damaged_file_is_refused_with_a_sentence(
    content: bytes, file: str, folder: Path
) -> None:
    path = folder / "weights" / file
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        read_weights(Weights(file, digest(path)), folder)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": torch.ones(1), "b": 3}])
def test_a_file_without_a_state_dict_is_refused(content: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="no mapping of names to tensors"):
        read_weights(saved(folder, content), folder)


def test_a_missing_file_says_where_it_belongs(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights/net\.pth is missing: put the file with"):
        read_weights(Weights("net.pth", "0" * 8), folder)


def test_another_digest_is_refused_and_told(folder: Path) -> None:
    weights = saved(folder, STATE)
    with pytest.raises(ValueError, match=rf"weights\.sha256={weights.sha256}"):
        read_weights(Weights("net.pth", "0123456789abcdef"), folder)


def test_eight_digits_of_the_digest_are_enough(folder: Path) -> None:
    weights = saved(folder, STATE)
    assert read_weights(Weights("net.pth", weights.sha256[:8]), folder).keys() == STATE.keys()


@pytest.mark.parametrize("sha256", ["", "1234567", "0123456789ABCDEF", "g" * 8, "0" * 65])
def test_a_digest_is_8_to_64_hexadecimal_digits(sha256: str) -> None:
    with pytest.raises(ValueError, match=r"Weights\.sha256 must be 8 to 64 hexadecimal digits"):
        Weights("net.pth", sha256)


@pytest.mark.parametrize("file", ["", "a/net.pth", "..\\net.pth", "/net.pth", "net.pkl", "net"])
def test_a_file_is_a_name_with_a_known_ending(file: str) -> None:
    with pytest.raises(ValueError, match=r"Weights\.file must be a name, without folders"):
        Weights(file, "0" * 8)


class TestLoadExactly:
    @pytest.fixture
    def layer(self) -> nn.Module:
        with seeded("tests"):
            return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))

    def test_all_three_complaints_are_made_at_once(self, layer: nn.Module) -> None:
        state = dict(layer.state_dict()) | {"x": torch.ones(1), "0.weight": torch.ones(3, 4)}
        del state["0.bias"]
        before = {k: v.clone() for k, v in layer.state_dict().items()}
        sentence = (
            r"it do not fit Sequential: missing: 0\.bias; unexpected: x; "
            r"of another shape: 0\.weight \(3, 4\) for \(3, 2\)"
        )
        with pytest.raises(ValueError, match=sentence):
            load_exactly(layer, state, "it")
        assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())

    def test_ten_names_are_listed_and_the_others_counted(self, layer: nn.Module) -> None:
        more = {f"x{i}": torch.ones(1) for i in range(12)}
        with pytest.raises(ValueError, match=r"unexpected: x0, .*, x9 and 2 more$"):
            load_exactly(layer, dict(layer.state_dict()) | more, "it")

    def test_the_count_of_batches_may_be_missing(self, layer: nn.Module) -> None:
        state = {k: v + 1 for k, v in layer.state_dict().items() if "tracked" not in k}
        load_exactly(layer, state, "it")
        assert all(torch.equal(layer.state_dict()[k], v) for k, v in state.items())


def normalisation(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (width,)
    yield f"{name}.num_batches_tracked", ()


def mobile_layout() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the names and shapes in the released file, in no order."""
    yield "conv1.0.weight", (64, 3, 3, 3)
    yield from normalisation("conv1.1", 64)
    yield "dw_conv.depthwise.weight", (64, 1, 3, 3)
    yield from normalisation("dw_conv.bn1", 64)
    yield "dw_conv.pointwise.weight", (64, 64, 1, 1)
    yield from normalisation("dw_conv.bn2", 64)
    channels, block = 64, 0
    for expansion, width, repeats in [
        (2, 64, 5),
        (4, 128, 1),
        (2, 128, 6),
        (4, 128, 1),
        (2, 128, 2),
    ]:
        for _ in range(repeats):
            name, hidden = f"features.{block}.conv", expansion * channels
            yield f"{name}.0.0.weight", (hidden, channels, 1, 1)
            yield from normalisation(f"{name}.0.1", hidden)
            yield f"{name}.1.0.weight", (hidden, 1, 3, 3)
            yield from normalisation(f"{name}.1.1", hidden)
            yield f"{name}.2.weight", (width, hidden, 1, 1)
            yield from normalisation(f"{name}.3", width)
            channels, block = width, block + 1
    yield "conv2.0.weight", (512, 128, 1, 1)
    yield from normalisation("conv2.1", 512)
    yield "gdconv.depthwise.weight", (512, 1, 7, 7)
    yield from normalisation("gdconv.bn", 512)
    yield "conv3.weight", (128, 512, 1, 1)
    yield "conv3.bias", (128,)
    yield from normalisation("bn", 128)


def test_the_mobile_backbone_loads_a_file_of_the_released_layout(
    folder: Path, rng: torch.Generator
) -> None:
    state = {name: torch.rand(shape, generator=rng) for name, shape in mobile_layout()}
    spec = MobileFaceNet(weights=saved(folder, state))
    network = build(spec)
    spec.initialise(network, folder)
    assert isinstance(network, FaceMobile)
    loaded = network.backbone.state_dict()
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded["conv3.weight"], state["conv3.weight"])


@pytest.mark.parametrize("spec", [FaceNet(), IRSE50()], ids=lambda s: s.name)
def test_the_names_of_a_face_backbone_are_those_of_the_released_files(spec: FaceNet) -> None:
    names = set(outline(spec, 112).get_submodule("backbone").state_dict())

    def layers(prefix: str) -> set[str]:
        return {k.removeprefix(prefix).split(".")[0] for k in names if k.startswith(prefix)}

    squeeze = {"5"} if isinstance(spec, IRSE50) else set()
    assert {k.split(".")[0] for k in names} == {"input_layer", "body", "output_layer"}
    assert layers("input_layer.") == {"0", "1", "2"}
    assert layers("output_layer.") == {"0", "3", "4"}
    assert layers("body.") == {str(i) for i in range(24)}
    for i in range(24):
        assert layers(f"body.{i}.res_layer.") == {"0", "1", "2", "3", "4"} | squeeze
        assert layers(f"body.{i}.shortcut_layer.") == ({"0", "1"} if i in (3, 7, 21) else set())
    assert ("body.0.res_layer.5.fc2.weight" in names) == isinstance(spec, IRSE50)


@every_small
def test_without_weights_initialising_changes_nothing(spec: NetworkSpec, tmp_path: Path) -> None:
    network = build(spec)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    spec.initialise(network, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_weights_of_another_backbone_are_refused(folder: Path) -> None:
    spec = FaceNet(width=0.1, blocks=BLOCKS, size=32, weights=saved(folder, STATE))
    with pytest.raises(ValueError, match=r"the weights in net\.pth do not fit IR: missing: inp"):
        spec.initialise(build(spec), folder)


# ImageNet -----------------------------------------------------------------------------------


@pytest.fixture
def offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, an empty cache, and no network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(folder / "cache"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    return folder


def official(monkeypatch: pytest.MonkeyPatch, path: Path, state: dict[str, Tensor]) -> None:
    """Puts a file in place of torchvision's, with its own digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    monkeypatch.setitem(IMAGENET, "vgg16_bn", Weights(path.name, digest(path)))


@pytest.mark.parametrize("place", ["weights", "cache/hub/checkpoints"])
def test_imagenet_weights_come_from_the_data_folder_or_the_cache(
    place: str, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official(monkeypatch, offline / place / "vgg16_bn.pth", STATE)
    assert imagenet("vgg16_bn", offline).keys() == STATE.keys()


def test_imagenet_weights_that_cannot_be_had_say_what_to_do(offline: Path) -> None:
    sentence = r"vgg19_bn-c79401a0\.pth into .*weights, or set setting\.network\.pretrained=false"
    with pytest.raises(ValueError, match=sentence):
        imagenet("vgg19_bn", offline)
    with pytest.raises(ValueError, match=sentence):
        VGG19().fetch(offline)
    VGG19(pretrained=False).fetch(offline)


def test_the_official_files_are_torchvisions() -> None:
    from torchvision.models import get_model_weights

    for name, weights in IMAGENET.items():
        assert get_model_weights(name).IMAGENET1K_V1.url.endswith(f"/{weights.file}")
        assert weights.file == f"{name}-{weights.sha256}.pth"


def test_pretrained_vgg_takes_the_features_and_leaves_the_classifier(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = outline(VGG16(), 32).to_empty(device="cpu")
    assert isinstance(network, VGG)
    state = {f"features.{k}": torch.ones_like(v) for k, v in network.features.state_dict().items()}
    other = {"classifier.0.weight": torch.ones(1)}
    official(monkeypatch, offline / "weights" / "vgg16_bn.pth", state | other)
    VGG16().initialise(network, offline)
    assert all(bool((v == 1).all()) for v in network.features.state_dict().values())


def test_pretrained_weights_have_width_one() -> None:
    with pytest.raises(ValueError, match=r"of width 1, not 0\.5; set pretrained=false"):
        VGG19(width=0.5)
