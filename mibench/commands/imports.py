"""The commands import …: bring in trained networks of other projects."""

import uuid
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from mibench.commands.shared import anywhere, apply, check_writable, folder, refusing

if TYPE_CHECKING:
    from torch import Tensor

    from mibench.roles import NetworkSpec
    from mibench.spec import Json
    from mibench.types import Classifier, Shape


@click.group("import")
def import_() -> None:
    """Bring trained networks of other projects into the data folder; none of them is run."""


@import_.command()
@click.argument("file", type=anywhere)
@click.option("--as", "name", required=True, metavar="NAME", help="What to call the weights.")
@click.option(
    "--data",
    type=folder,
    default=Path("data"),
    envvar="MIBENCH_DATA",
    show_default=True,
    help="The weights go to its folder weights.",
)
def stylegan(file: Path, name: str, data: Path) -> None:
    """Read the averaged generator in FILE, a network pickle of StyleGAN2-ADA-PyTorch.

    Writes NAME.safetensors, and the generator's sizes as NAME.json.
    """
    from mibench.networks.foreign.pickles import generator_arguments, read_network

    with refusing():
        state, given = read_network(file)
        written = write_weights(name, state, generator_arguments(given), data / "weights")
    click.echo(written)


NAME = click.option(
    "--name", metavar="NAME", help="What to call the weights; without it, as FILE is called."
)
DATA = click.option(
    "--data",
    type=folder,
    default=Path("data"),
    envvar="MIBENCH_DATA",
    show_default=True,
    help="The weights go to its folder weights.",
)
classifier = apply(
    click.argument("file", type=anywhere),
    click.option("--as", "network", required=True, metavar="NETWORK",
                 help="Its architecture, for example vgg16 or facenet."),
    click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE",
                 help="Change a field of the architecture, for example widths=[8,16,32]."),
    click.option("--size", type=click.IntRange(8, 1024),
                 help="Pixels a side of its images; without it, usual ones are tried."),
    NAME,
    DATA,
)  # fmt: skip


@import_.command()
@classifier
@click.option("--defense", type=click.Choice(["none", "mid"]), default="none", show_default=True)
def target(
    file: Path, network: str, settings: tuple[str, ...], size: int | None, name: str | None,
    data: Path, defense: str,
) -> None:  # fmt: skip
    """Take over a target in FILE, as GMI, KED-MI, BiDO and LOMMA released theirs.

    Its weights are written as NAME.safetensors under mibench's names, every one of them or
    none, and what it takes to build the network as NAME.json. Nothing in FILE is executed.
    """
    bring(file, network, settings, size, name, data, defense, "setting.network", "recipe")


@import_.command()
@classifier
def evaluator(
    file: Path, network: str, settings: tuple[str, ...], size: int | None, name: str | None,
    data: Path,
) -> None:  # fmt: skip
    """Take over an evaluation classifier in FILE, as GMI, KED-MI and BiDO released theirs."""
    judge = "setting.evaluators.0"
    bring(
        file, network, settings, size, name, data, "none", f"{judge}.network", f"{judge}.recipe"
    )  # fmt: skip


@import_.command("generator")
@click.argument("file", type=anywhere)
@click.option(
    "--as",
    "network",
    required=True,
    type=click.Choice(["wgan-gp", "inversion-gan"]),
    help="GMI's prior or KED-MI's.",
)
@NAME
@DATA
def generator_(file: Path, network: str, name: str | None, data: Path) -> None:
    """Take over the generator in FILE, as GMI, KED-MI, BiDO and LOMMA released theirs."""
    from mibench.networks.foreign.checkpoints import read_checkpoint
    from mibench.networks.foreign.released import released_generator

    with refusing():
        state, sizes = released_generator(read_checkpoint(file), f"the weights in {file}")
        written = write_weights(
            name or file.stem, state, {"is": network, **sizes}, data / "weights"
        )
    click.echo(written)


def bring(
    file: Path, name_of_network: str, settings: tuple[str, ...], size: int | None,
    name: str | None, data: Path, defense: str, field: str, recipe: str,
) -> None:  # fmt: skip
    """Reads a classifier, writes it under mibench's names, and prints where and how to use it.

    ``field`` and ``recipe`` are those fields of a cell that say what the network is, and how it is
    trained.
    """
    from mibench.defenses import MID
    from mibench.networks import NETWORKS
    from mibench.networks.foreign.checkpoints import read_checkpoint
    from mibench.networks.foreign.released import released_classifier
    from mibench.override import override
    from mibench.spec import canonical, unknown

    with refusing():
        if name_of_network not in NETWORKS:
            raise KeyError(unknown("network", name_of_network, NETWORKS))
        spec = NETWORKS[name_of_network]()
        for setting in settings:
            path, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"--set takes field=value, got {setting!r}")
            spec = override(spec, path.strip(), text.strip())

        def build(shape: "Shape", classes: int) -> "Classifier":
            network = spec.build(shape, classes)
            return MID(lambda_=0).harden(network) if defense == "mid" else network

        state, shape, classes = released_classifier(
            read_checkpoint(file), build, size, f"the weights in {file}"
        )
        sizes: dict[str, Json] = {
            "network": canonical(spec), "defense": defense, "shape": list(shape),
            "classes": classes,
        }  # fmt: skip
        written = write_weights(name or file.stem, state, sizes, data / "weights")
        file_name, digest = f"{name or file.stem}.safetensors", written.rpartition(" ")[2]
    click.echo(written)
    click.echo(f"to use it: {setting_of(field, spec, file_name, digest)} --set {recipe}.epochs=0")


def setting_of(path: str, spec: "NetworkSpec", file: str, sha256: str) -> str:
    """Returns the option that puts the weights in a file where ``path`` says."""
    import json
    import shlex

    changed: dict[str, object] = {
        f.name: value
        for f in fields(cast(Any, spec))
        if (value := getattr(spec, f.name)) != f.default and not is_dataclass(value)
    }
    network = {
        "is": "imported",
        "network": {"is": spec.name, **changed},
        "weights": {"file": file, "sha256": sha256},
    }
    given = shlex.quote(f"{path}={json.dumps(network, separators=(',', ':'))}")
    return f"--set {given}"


def write_weights(
    name: str, state: Mapping[str, "Tensor"], sizes: Mapping[str, "Json"], place: Path
) -> str:
    """Writes NAME.safetensors and NAME.json, whole or not at all; returns what to print."""
    import hashlib
    import json

    from safetensors.torch import save

    from mibench.networks.foreign.weights import Weights

    content = save(dict(state))
    weights = Weights(f"{name}.safetensors", hashlib.sha256(content).hexdigest())
    text = json.dumps(sizes, indent=1) + "\n"
    files = {place / weights.file: content, place / f"{name}.json": text.encode()}
    check_writable(place)
    for path, new in files.items():
        if path.exists() and path.read_bytes() != new:
            raise ValueError(f"{path} is there and holds something else: choose another name")
    for path, new in files.items():
        fresh = path.with_name(f".{uuid.uuid4().hex[:8]}")
        fresh.write_bytes(new)
        fresh.replace(path)
    return "\n".join(f"{path}" for path in files) + f"\nsha256 {weights.sha256}"
