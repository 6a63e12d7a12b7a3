"""The command score: judges reconstructions that were made elsewhere."""

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import click

from mibench.commands import options
from mibench.commands.selection import Selection
from mibench.commands.shared import fail, refusing


@click.command()
@click.argument("images", type=options.anywhere)
@click.option("--table", required=True, metavar="TABLE", help="Whose evaluators judge.")
@click.option("--row", required=True, metavar="ROW", help="The row whose target was attacked.")
@click.option("--protocol", metavar="NAME", help="Convention of evaluation, if another.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the target."
)
@options.store
@options.data
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def score(
    images: Path, table: str, row: str, protocol: str | None, seed: int, store: Path, data: Path,
    device: str,
) -> None:  # fmt: skip
    """Judge reconstructions that were made elsewhere.

    IMAGES are scored as TABLE scores its own. They are a folder with a folder of image files for
    each attacked class, called by its number (0, 1, ...); or a .npz, .safetensors or .pt file with
    images (n, c, h, w), floats in [0, 1] or bytes, and labels (n). Every class has equally many.
    Image files are cut to the largest central square and resized to the size of the task.
    Evaluators and the target are trained if they are not in the store.

    Example: mibench score my_images --table digits --row 'GMI / MID'
    """
    from mibench.api import score as judge
    from mibench.evaluation import METRICS
    from mibench.reporting.notes import spread_note
    from mibench.reporting.results import show

    with refusing():
        selection = Selection(table, protocol=protocol, root=store, data=data)
        chosen = selection.table
        shape = next(iter(chosen.only([row]).rows.values())).setting.task.shape
        pixels, labels = read(images, shape[1], shape[0])
        try:
            entries = judge(
                pixels, labels, chosen, row, seed=seed, store=store, data=data, device=device
            )
        except RuntimeError as error:
            fail(str(error))
    click.echo(f"{len(labels)} images in {images}, judged as {row} of {chosen.name}, seed {seed}")
    for name, entry in entries.items():
        unit = " %" if METRICS[name].unit == "percent" else ""
        click.echo(f"  {METRICS[name].title}: {show(entry, 1)}{unit}")
    click.echo(spread_note(chosen))


def read(path: Path, size: int, channels: int) -> tuple[Any, Any]:
    """Returns images (n, channels, size, size) or as a file has them, and labels (n,).

    Nothing in a file is executed.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it holds something else.
    """
    import numpy as np

    from mibench.data.images import decode, image_files, subfolders
    from mibench.networks.foreign.checkpoints import read_checkpoint

    if path.is_dir():
        files = {folder: image_files(folder) for folder in subfolders(path)}
        # 00 would be the same class as 0.
        if strange := [f for f in files if not re.fullmatch("0|[1-9][0-9]*", f.name)]:
            raise ValueError(f"{strange[0]} is not called by the number of a class, such as 0")
        labels = [int(folder.name) for folder, own in files.items() for _ in own]
        if not labels:
            raise ValueError(f"{path} has no image in a folder for a class, such as {path / '0'}")
        if empty := [folder for folder, own in files.items() if not own]:
            raise ValueError(f"{empty[0]} has no image: remove it, or fill it as the others are")
        return decode([f for own in files.values() for f in own], size, channels), labels
    arrays: Any
    if path.suffix == ".npz" and path.is_file():
        try:
            with path.open("rb") as file:
                loaded = np.load(file, allow_pickle=False)
                names = getattr(loaded, "files", ())  # a .npy under this name has none
                arrays = {name: loaded[name] for name in names}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} holds more than arrays, or is damaged ({error})") from error
    else:
        arrays = read_checkpoint(path)
    if missing := {"images", "labels"} - set(arrays):
        raise ValueError(f"{path} has no entry called {' or '.join(sorted(missing))}")
    return arrays["images"], arrays["labels"]
