"""What a network, a view and an identity loss promise."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mibench.defenses import Release
from mibench.roles import IdentityLoss, NetworkSpec, View
from mibench.running.checks.base import BrokenPromiseError, Check, Trial, broken, check_tensor
from mibench.seeding import generator, seeded
from mibench.spec import check_role
from mibench.store import Work
from mibench.types import Classifier, ImageSet, Shape

SHAPES: tuple[Shape, ...] = ((1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 112, 112))
"""Images that a network is tried on; the first that it fits are taken."""
CLASSES = 4


def _played(trial: Trial, role: type) -> object:
    """Returns the component; raises TypeError if it cannot play its role."""
    check_role(spec := trial.fresh(), role, f"a {role.__name__}")
    return spec


# Networks -----------------------------------------------------------------------------------


def _built(trial: Trial) -> tuple[Classifier, Tensor]:
    """Returns a fresh network and five images that it fits."""
    refusals = []
    for shape in SHAPES:
        x = torch.rand(5, *shape, generator=generator("checks"))
        try:
            with seeded("checks"):
                network: Classifier = trial.fresh().build(shape, CLASSES)
                if not isinstance(network, Classifier):
                    broken(
                        f"build returns a {type(network).__name__}: return a network whose class "
                        "derives from mibench.Classifier"
                    )
                if not isinstance(zs := network.latents(x), tuple | list) or not zs:
                    broken("latents must return a tuple of tensors, the last of shape (n, d)")
                network(x)
        except (ValueError, RuntimeError) as error:
            refusals.append(trial.sentence(error))
        else:
            return network, x
    raise BrokenPromiseError(
        f"it fits images of none of {', '.join(map(str, SHAPES))}: {refusals[0]}"
    )


def check_network(trial: Trial) -> None:
    """Checks shapes of logits and latents, and that the head makes the logits of Z_M."""
    _played(trial, NetworkSpec)
    network, x = _built(trial)
    network.eval()
    with torch.no_grad(), seeded("checks"):
        zs = [check_tensor(z, "the latents that it returns") for z in network.latents(x)]
        logits = check_tensor(network(x), "the logits that it returns")
    if logits.shape != (5, CLASSES):
        broken(f"it gives logits of shape {tuple(logits.shape)} for 5 images of {CLASSES} classes")
    if zs[-1].ndim != 2 or any(len(z) != 5 for z in zs):
        shapes = ", ".join(str(tuple(z.shape)) for z in zs)
        broken(f"its latents have the shapes {shapes}: each begins with n, the last is (n, d)")
    if network.num_classes != CLASSES:
        broken(f"its num_classes is {network.num_classes} and not {CLASSES}")
    if not network.noise_dim:
        again = check_tensor(network.head(zs[-1]), "the logits that head returns")
        if again.shape != logits.shape or not torch.allclose(again, logits, 1.3e-6, 1e-5):
            broken(
                "head of the last latent is not what the network answers: let forward be head of "
                "latents"
            )


def check_network_seed(trial: Trial) -> None:
    """Checks that the global generator alone decides a fresh network's weights."""
    first, second = (_built(trial)[0].state_dict() for _ in range(2))
    if not all(torch.equal(value, second[name]) for name, value in first.items()):
        broken("two networks of one seed differ: draw weights from torch's global generator")


def check_network_weights(trial: Trial) -> None:
    """Checks that the gradient of the cross-entropy reaches every trainable weight."""
    network, x = _built(trial)
    network.train()
    with seeded("checks"):
        F.cross_entropy(network(x), torch.arange(5) % CLASSES).backward()  # type: ignore[no-untyped-call]
    weights = network.named_parameters()
    if still := [name for name, w in weights if w.requires_grad and w.grad is None]:
        broken(
            f"no gradient reaches {', '.join(still)}: use it in latents or head, or freeze it by "
            "requires_grad_(False)"
        )


def check_network_alone(trial: Trial) -> None:
    """Checks that, in eval mode, an image's answer does not depend on the others."""
    network, x = _built(trial)
    with torch.no_grad():
        together, alone = network.eval().latents(x)[-1], network.latents(x[:2])[-1]
    if not torch.allclose(together[:2], alone, rtol=1e-3, atol=1e-4):
        broken("in eval mode an image's latents depend on the other images of its batch")


NETWORK_CHECKS = (
    Check("its logits and latents have the right shapes", check_network),
    Check("the same seed builds the same weights", check_network_seed),
    Check("a gradient reaches every trainable weight", check_network_weights),
    Check("in eval mode it judges each image by itself", check_network_alone),
)


# Releases ----------------------------------------------------------------------------------


def check_release(trial: Trial) -> None:
    """Checks that scores stay scores, and that a repeatable release answers an image alike."""
    release = _played(trial, Release)
    assert isinstance(release, Release)
    rng = generator("checks")
    pixels = torch.randint(256, (10, 1, 4, 4), generator=rng).byte()
    held_out = ImageSet(pixels, torch.arange(10) % CLASSES)

    def answer(images: ImageSet) -> Tensor:
        return (3 * images.images.flatten(1)[:, :CLASSES]).softmax(1)

    with seeded("checks"):
        state = release.fit(answer, held_out, generator("fit"), Work())
    x, probs = held_out.images, answer(held_out)
    scores = release(probs, x, state, generator("asked", 0))
    together = check_tensor(scores, "the scores that it lets out")
    if together.shape != probs.shape:
        broken(f"it returns shape {tuple(together.shape)} for scores of {tuple(probs.shape)}")
    if not together.is_floating_point():
        broken(f"it lets out scores of {together.dtype}: let out floats, such as scores.float()")
    if not bool(((together >= 0) & (together <= 1)).all()):
        broken("it lets out scores outside [0, 1]: clamp them")
    each = [release(p[None], i[None], state, generator("asked", 1)) for p, i in zip(probs, x)]  # noqa: B905
    if torch.equal(torch.cat(each), together) != release.repeatable:
        broken(
            "repeatable must say whether an image is answered alike whenever it is asked about: "
            f"it says {release.repeatable}"
        )


RELEASE = (Check("it lets out scores in [0, 1], repeatable as it says", check_release),)


# Views and losses ---------------------------------------------------------------------------


def _images() -> Tensor:
    return torch.rand(5, 1, 8, 8, generator=generator("checks")).requires_grad_()


def check_view(trial: Trial) -> None:
    """Checks that a view keeps the shape of images and lets gradients through."""
    view = _played(trial, View)
    assert isinstance(view, View)
    with seeded("checks"):
        images = view(x := _images(), generator("checks"))
    seen = check_tensor(images, "the images that it returns")
    if seen.shape != x.shape:
        broken(f"it returns images of shape {tuple(seen.shape)} for {tuple(x.shape)}: keep it")
    if not isinstance(view.draws, int) or view.draws < 1:
        broken("its field draws must be a whole number, at least 1")
    gradient = next(_gradients(seen.sum()[None], x)) if seen.requires_grad else None
    if gradient is None or not gradient.any():
        broken("no gradient passes through it: compute it from x by differentiable operations")


def check_view_seed(trial: Trial) -> None:
    """Checks that a view draws from the stream that it is handed alone."""
    x = _images()
    looks = []
    for seed in range(2):
        with seeded(seed):
            looks.append(trial.fresh()(x, generator("checks")))
    if not torch.equal(*looks):
        broken("two looks from one stream differ: draw from rng and from nothing else")


def check_loss(trial: Trial) -> None:
    """Checks that a loss gives each image one finite number that depends on its logits alone."""
    loss = _played(trial, IdentityLoss)
    assert isinstance(loss, IdentityLoss)
    logits = torch.randn(5, CLASSES, generator=generator("checks")).requires_grad_()
    offsets = torch.randn(5, 7, generator=generator("offsets"))
    with seeded("checks"):
        values = loss(logits, torch.arange(5) % CLASSES)
        if loss.public:
            values = values + loss.penalty(offsets)
    values = check_tensor(values, "the losses that it returns")
    if values.shape != (5,):
        broken(f"it returns shape {tuple(values.shape)} for 5 images: return one loss each, (n,)")
    gradients = list(_gradients(values, logits)) if values.requires_grad else [None]
    for i, gradient in enumerate(gradients):
        if gradient is None:
            broken("no gradient passes through it: compute it from logits")
        others = torch.arange(5) != i
        if not gradient[i].any() or gradient[others].any():
            broken("an image's loss must depend on its own logits, and on those of no other image")


def _gradients(values: Tensor, at: Tensor) -> Iterator[Tensor | None]:
    """Yields the gradient of each value; None if it is not computed from ``at``."""
    for value in values:
        yield torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)[0]


VIEW = (
    Check("it keeps the shape of images and lets gradients through", check_view),
    Check("it draws from the stream that it is handed alone", check_view_seed),
)
LOSS = (Check("it gives each image a loss of its own logits", check_loss),)
