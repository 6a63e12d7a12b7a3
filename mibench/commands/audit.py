"""The command audit: what attacks recover of a model of one's own."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mibench.commands import options
from mibench.commands.run import interruption
from mibench.commands.shared import check_writable, fail, refusing

if TYPE_CHECKING:
    from torch import nn

TORCHVISION = "torchvision:"


@click.command()
@click.argument("model", type=options.anywhere)
@click.option(
    "--arch", required=True, metavar="NAME",
    help="torchvision:NAME, such as torchvision:resnet18; or a Python file that defines "
    "build(classes), which returns the network.",
)  # fmt: skip
@click.option(
    "--train", type=options.folder, required=True,
    help="Images that MODEL was trained on, a folder for each class.",
)  # fmt: skip
@click.option(
    "--test", type=options.folder, required=True,
    help="Other images of the same classes, likewise.",
)  # fmt: skip
@click.option(
    "--public", type=options.folder, required=True,
    help="Images of others, such as an attacker may have.",
)  # fmt: skip
@click.option(
    "--size", type=click.IntRange(8, 1024), required=True,
    help="Pixels a side of the images.",
)  # fmt: skip
@click.option(
    "--classes", type=click.IntRange(2),
    help="How many MODEL tells apart; by default, as there are folders.",
)  # fmt: skip
@click.option("--grey", is_flag=True, help="MODEL takes images of one channel.")
@click.option(
    "--mean", default="imagenet", show_default=True, metavar="NAME|NUMBERS",
    help="What is taken from pixels in [0, 1], such as 0.5,0.5,0.5; or imagenet, half, none, "
    "bytes.",
)  # fmt: skip
@click.option("--std", metavar="NUMBERS", help="What they are divided by; a name has its own.")
@click.option(
    "--last", default="", metavar="LAYER",
    help="The layer whose output are the logits; by default the last linear one.",
)  # fmt: skip
@click.option(
    "--order", type=options.anywhere,
    help="Text file of the folders' names in the order of MODEL's outputs.",
)  # fmt: skip
@click.option(
    "--evaluator", type=options.anywhere,
    help="Weights of a second model, which judges; by default one is trained.",
)  # fmt: skip
@click.option("--evaluator-arch", metavar="NAME", help="Its architecture, as of --arch.")
@click.option("--attacks", metavar="NAMES", help="Such as GMI,KED-MI; by default MI-Face, too.")
@click.option(
    "--budget", type=click.FloatRange(0.1), default=8.0, show_default=True,
    help="Minutes for it all; the least there is to do may take longer.",
)  # fmt: skip
@options.store
@options.out(options.folder, "Folder of the report.", "mibench-out/audit")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; by default all cores.")
@options.private
@click.option(
    "--anyway", is_flag=True,
    help="Go on although the check of MODEL has found a mistake.",
)  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress.")
def audit(
    model: Path, arch: str, train: Path, test: Path, public: Path, size: int, classes: int | None,
    grey: bool, mean: str, std: str | None, last: str, order: Path | None,
    evaluator: Path | None, evaluator_arch: str | None, attacks: str | None, budget: float,
    store: Path, out: Path, device: str, threads: int | None, with_private: bool, anyway: bool,
    quiet: bool,
) -> None:  # fmt: skip
    """Attack a trained model of your own.

    MODEL is its state dict: a .pt, .pth or .safetensors file, in which nothing is executed. Its
    accuracy is measured first, and a wrong normalisation or order of classes is named. Then
    attacks run beside controls for as long as --budget allows. Prints what was recovered in
    plain words, and writes a picture and a report.

    Example: mibench audit model.pt --arch torchvision:resnet18 --size 64 --train DIR --test DIR
    --public DIR
    """
    with refusing():
        if (evaluator is None) != (evaluator_arch is None):
            raise ValueError("--evaluator and --evaluator-arch go together")
        if std is not None and not numbers(std):
            raise ValueError(f"--std takes numbers with commas between them, got {std!r}")
        check_writable(store, out)
        from mibench.auditing import audit as run
        from mibench.benchmarks.audit import ATTACKS
        from mibench.data.images import subfolders
        from mibench.reporting.forms import render
        from mibench.store import Store

        if not train.is_dir():
            raise FileNotFoundError(f"no folder {train}")
        count = classes or len(subfolders(train))
        network = network_of(arch, model, count, size)
        judge = None
        if evaluator is not None and evaluator_arch is not None:
            judge = network_of(evaluator_arch, evaluator, count, size)
        names = [n.strip() for n in attacks.split(",")] if attacks is not None else ATTACKS
        try:
            done = run(
                network, train=train, test=test, public=public, size=size,
                channels=1 if grey else 3, mean=numbers(mean) or mean, std=numbers(std or ""),
                last=last, order=order.read_text(encoding="utf-8").splitlines() if order else (),
                evaluator=judge, attacks=names, budget=budget, store=store, out=out,
                device=device, threads=threads, with_private=with_private, anyway=anyway,
                quiet=quiet,
            )  # fmt: skip
        except KeyboardInterrupt as error:
            fail(interruption(error, (), Store(store)))
        except RuntimeError as error:
            fail(str(error))
    click.echo(render(done.results, "text"))
    click.echo(done.text)
    click.echo(done.picture)
    click.echo(done.page)


def network_of(arch: str, weights: Path, classes: int, size: int) -> "nn.Module":
    """Returns a network with the weights in a file, in which nothing is executed.

    Args:
        arch: "torchvision:NAME", or the path of a Python file, which is executed.
        weights: The file.
        classes: Of its outputs.
        size: Pixels a side of its images.

    Raises:
        ValueError: If there is no such architecture, or the weights do not fit it.
    """
    from torch import nn

    from mibench.networks.foreign.checkpoints import read_checkpoint
    from mibench.networks.foreign.given import torchvision_network
    from mibench.networks.foreign.weights import load_exactly
    from mibench.running.userfile import blaming, load_user_file

    state, what = read_checkpoint(weights), f"the weights in {weights}"
    if arch.startswith(TORCHVISION):
        return torchvision_network(arch.removeprefix(TORCHVISION), classes, size, state, what)
    if not arch.endswith(".py"):
        raise ValueError(
            "the architecture must be torchvision:NAME, such as torchvision:resnet18, or a "
            f"Python file; got {arch!r}"
        )
    build = vars(load_user_file(Path(arch))).get("build")
    with blaming(Path(arch)):
        network = build(classes) if callable(build) else None
    if not isinstance(network, nn.Module):
        raise ValueError(f"{arch} must define build(classes), which returns the network, a module")
    load_exactly(network, state, what)
    return network


def numbers(text: str) -> tuple[float, ...]:
    """Returns numbers that are separated by commas; none if the text is none or a name."""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        return ()
