"""The commands import ...: bring in trained networks of other projects."""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from mibench.commands import options
from mibench.commands.shared import changed, check_writable, refusing

if TYPE_CHECKING:
    from torch import Tensor

    from mibench.roles import NetworkSpec
    from mibench.spec import Json
    from mibench.types import Classifier, Shape


@click.group("import")
def import_() -> None:
    """Use trained networks of other projects; none of them is executed.

    Weights go to the folder weights below --data.
    """


@import_.command()
@click.argument("file", type=options.anywhere)
@click.option("--as", "name", required=True, metavar="NAME", help="What to call the weights.")
@options.data
def stylegan(file: Path, name: str, data: Path) -> None:
    """Use a generator of NVIDIA's as a prior.

    Reads the averaged generator in FILE, a network pickle of StyleGAN2-ADA-PyTorch. Writes
    NAME.safetensors, and the generator's sizes as NAME.json.

    Example: mibench import stylegan ffhq.pkl --as ffhq
    """
    from mibench.networks.foreign.pickles import generator_arguments, read_network

    with refusing():
        state, given = read_network(file)
        paths, digest = write_weights(name, state, generator_arguments(given), data / "weights")
    click.echo(f"{paths}\nsha256 {digest}")


classifier = options.apply(
    click.argument("file", type=options.anywhere),
    click.option("--as", "network", required=True, metavar="NETWORK",
                 help="Its architecture, for example vgg16 or facenet."),
    options.settings("Change a field of the architecture, for example widths=[8,16,32]."),
    click.option("--size", type=click.IntRange(8, 1024),
                 help="Pixels a side of its images; without it, several common sizes are tried."),
    click.option("--name", metavar="NAME",
                 help="What to call the weights; without it, as FILE is called."),
    options.data,
)  # fmt: skip


@import_.command()
@classifier
@click.option(
    "--defense", type=click.Choice(["none", "mid"]), default="none", show_default=True,
    help="What FILE was trained with: MID adds a bottleneck to the network.",
)  # fmt: skip
def target(**options: Any) -> None:  # noqa: ANN401 - handed on as they are
    """Attack a target that others trained.

    Reads FILE, a target as GMI, KED-MI, BiDO and LOMMA released theirs. Writes its weights as
    NAME.safetensors under mibench's names, all or none, and the
    architecture as NAME.json. Prints the options of mibench run that attack it.

    Example: mibench import target VGG16.tar --as vgg16
    """
    bring(**options, field="setting.network", recipe="recipe")


@import_.command()
@classifier
def evaluator(**options: Any) -> None:  # noqa: ANN401 - handed on as they are
    """Judge with an evaluation classifier that others trained.

    Reads FILE, a classifier as GMI, KED-MI and BiDO released theirs, as `mibench import target`
    reads a target.

    Example: mibench import evaluator FaceNet.tar --as facenet
    """
    judge = "setting.evaluators.0"
    bring(**options, defense="none", field=f"{judge}.network", recipe=f"{judge}.recipe")


def bring(
    file: Path, network: str, settings: tuple[str, ...], size: int | None, name: str | None,
    data: Path, defense: str, field: str, recipe: str,
) -> None:  # fmt: skip
    """Reads a classifier, writes it under mibench's names, and prints where and how to use it.

    ``field`` and ``recipe`` are those fields of a cell that say what the network is, and how it is
    trained.
    """
    from mibench.defenses import MID
    from mibench.networks import NETWORKS
    from mibench.networks.foreign.checkpoints import read_checkpoint
    from mibench.networks.foreign.released import released_classifier
    from mibench.spec import canonical, unknown

    name = name or file.stem
    with refusing():
        if network not in NETWORKS:
            raise KeyError(unknown("network", network, NETWORKS))
        spec = changed(NETWORKS[network](), settings)

        def build(shape: "Shape", classes: int) -> "Classifier":
            network: Classifier = spec.build(shape, classes)
            return MID(lambda_=0).harden(network) if defense == "mid" else network

        state, shape, classes = released_classifier(
            read_checkpoint(file), build, size, f"the weights in {file}"
        )
        sizes: dict[str, Json] = {
            "network": canonical(spec), "defense": defense, "shape": list(shape),
            "classes": classes,
        }  # fmt: skip
        paths, digest = write_weights(name, state, sizes, data / "weights")
    click.echo(f"{paths}\nsha256 {digest}")
    option = setting_of(field, spec, f"{name}.safetensors", digest)
    click.echo(f"to use it: {option} --set {recipe}.epochs=0")


def setting_of(path: str, spec: "NetworkSpec", file: str, sha256: str) -> str:
    """Returns the option that puts the weights in a file where ``path`` says."""
    own: dict[str, object] = {
        f.name: value
        for f in fields(cast(Any, spec))
        if (value := getattr(spec, f.name)) != f.default and not is_dataclass(value)
    }
    network = {
        "is": "imported",
        "network": {"is": spec.name, **own},
        "weights": {"file": file, "sha256": sha256},
    }
    value = shlex.quote(f"{path}={json.dumps(network, separators=(',', ':'))}")
    return f"--set {value}"


def write_weights(
    name: str, state: Mapping[str, "Tensor"], sizes: Mapping[str, "Json"], place: Path
) -> tuple[str, str]:
    """Writes NAME.safetensors and NAME.json; neither is ever left half written.

    Returns:
        Their paths, a line each, and the sha256 of the first.
    """
    from safetensors.torch import save

    from mibench.networks.foreign.weights import Weights
    from mibench.store import put

    content = save(dict(state))
    weights = Weights(f"{name}.safetensors", hashlib.sha256(content).hexdigest())
    text = json.dumps(sizes, indent=1) + "\n"
    files = {place / weights.file: content, place / f"{name}.json": text.encode()}
    check_writable(place)
    for path, new in files.items():
        if path.exists() and path.read_bytes() != new:
            raise ValueError(f"{path} is there and holds something else: choose another name")
    for path, new in files.items():
        put(path, new)
    return "\n".join(map(str, files)), weights.sha256
