"""What an audit of somebody's own model measures: three attacks, each as long as time allows."""

from collections.abc import Iterable

from mibench.attacks import GMI, KEDMI, WGANGP, InversionGAN, MIFace
from mibench.benchmarks.cell import Cell, Evaluator, Setting, Trials
from mibench.benchmarks.row import Row
from mibench.benchmarks.tables.base import Table
from mibench.data import Folder, Sizes
from mibench.defenses import NoDefense, Recipe
from mibench.evaluation import Protocol
from mibench.networks import SCNN, ResNet34
from mibench.roles import Attack, NetworkSpec
from mibench.spec import unknown

ATTACKS = ("MI-Face", "GMI", "KED-MI")
"""From the one that takes least to the one that takes most."""
MODEL = "your model"
MOST_CLASSES = 20
"""Classes that are attacked at most: the first ones."""
SAMPLES = 3
"""Reconstructions of each class."""
BATCH = 64
LEAST_TRAINING = 0.25
SHARES = tuple(2 ** (i / 2) for i in range(8, -9, -1))
"""Lengths of an audit, in units of the usual one, from long to short."""


def evaluator(task: Folder, images: int, share: float) -> Evaluator:
    """Returns an evaluation classifier that suits the size of the images.

    Args:
        task: The images.
        images: How many there are to train it on.
        share: Length of its training, which is never cut below a quarter of the usual one.
    """
    network: NetworkSpec = ResNet34(width=0.5)
    if task.size < 32:
        network = SCNN(widths=(32, 64, 128), kernels=(3, 3, 3), paddings=(1, 1, 0))
    elif task.size <= 64:
        network = SCNN(widths=(32, 64, 128, 256), kernels=(7, 5, 5, 3), paddings=(1, 0, 0, 1))
    epochs = _epochs(600, images, share and max(share, LEAST_TRAINING))
    milestones = (round(0.7 * epochs),) if epochs > 1 else ()
    recipe = Recipe(epochs=epochs, milestones=milestones, augment=("crop",), select="last")
    return Evaluator(network, recipe)


def audit_table(
    task: Folder,
    network: NetworkSpec,
    judge: Evaluator | None,
    attacks: Iterable[str],
    sizes: Sizes,
    share: float,
) -> Table:
    """Returns a row for each attack on a trained network.

    Args:
        task: Its images.
        network: The network.
        judge: A trained evaluation classifier; None trains one.
        attacks: Names of ``ATTACKS``.
        sizes: How many images there are.
        share: Length of the attacks and of the trainings of their priors, in units of the usual
            one; 0 for the shortest there is, by which steps are timed.

    Raises:
        ValueError: If there is no such attack.
    """
    setting = Setting(task, network, (judge or evaluator(task, sizes.evaluation, share),))
    classes = min(task.num_classes, MOST_CLASSES)
    public = sizes.public
    wgan = WGANGP(
        z_dim=50, generator_width=24, discriminator_width=16, lr=3e-4, critic_steps=2,
        epochs=_epochs(2500, public, share),
    )  # fmt: skip
    inversion_gan = InversionGAN(
        z_dim=50, generator_width=24, discriminator_width=16, lr=6e-4, critic_steps=1, mbd=16,
        mbd_kernels=8, epochs=_epochs(1200, public, share),
    )  # fmt: skip
    known: dict[str, Attack] = {
        "MI-Face": MIFace(steps=_steps(200, share)),
        "GMI": GMI(wgan, steps=_steps(300, share)),
        "KED-MI": KEDMI(inversion_gan, steps=_steps(500, share), clip=1.0),
    }
    rows = {}
    for name in attacks:
        if name not in known:
            raise ValueError(unknown("attack", name, known))
        rows[str(Row(name, MODEL))] = Cell(
            setting, Recipe(epochs=0, select="last"), NoDefense(), known[name],
            Trials(classes, SAMPLES), Protocol(real=20),
        )  # fmt: skip
    columns = ("accuracy", "attack_acc", "attack_acc5")
    return Table("audit", "Attacks on a model of your own.", rows, columns)


def _steps(usual: int, share: float) -> int:
    return max(5, round(usual * share))


def _epochs(steps: int, images: int, share: float) -> int:
    """Returns the number of passes over the images that comes nearest to a number of steps."""
    return max(1, round(steps * share / max(1, images // BATCH)))
