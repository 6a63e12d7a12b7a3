"""The commands import …: bring in trained networks of other projects."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mibench.commands.shared import check_writable, folder, refusing

if TYPE_CHECKING:
    from torch import Tensor

    from mibench.spec import Json


@click.group("import")
def import_() -> None:
    """Bring trained networks of other projects into the data folder; none of them is run."""


@import_.command()
@click.argument("file", type=click.Path(path_type=Path))
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
    from mibench.networks.pickles import generator_arguments, read_network

    with refusing():
        state, given = read_network(file)
        written = write_weights(name, state, generator_arguments(given), data / "weights")
    click.echo(written)


def write_weights(
    name: str, state: Mapping[str, "Tensor"], sizes: Mapping[str, "Json"], place: Path
) -> str:
    """Writes NAME.safetensors and NAME.json, whole or not at all; returns what to print."""
    import hashlib
    import json

    from safetensors.torch import save

    from mibench.networks.weights import Weights

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
