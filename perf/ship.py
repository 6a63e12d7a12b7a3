"""Trains the weights that the package ships: ``python -m perf.ship``.

Each :class:`~mibench.attacks.priors.shipped.Shipped` prior of a shipped table is trained on the
public images of its task, and the classifiers of ``CLASSIFIERS`` on persons who are in no table;
on one thread, and what is interrupted resumes. Weights with another digest than the pinned one
(another kind of machine rounds otherwise) are written under a name of their own, beside what made
them: a table that pins their digest uses them.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mibench.attacks.priors.shipped import FOLDER, Shipped, packed
from mibench.benchmarks.tables import TABLES
from mibench.benchmarks.tables.avatars import SETTING
from mibench.data import Avatars
from mibench.defenses import NoDefense, Recipe
from mibench.machine import in_words
from mibench.networks import Pretrained
from mibench.networks.foreign.weights import SHIPPED
from mibench.running.executors import Bench, choose_executor, execute
from mibench.running.progress import display
from mibench.running.stages import ClassifierStage, ImagesStage, PriorStage
from mibench.spec import canonical
from mibench.store import Stage, Store

OTHERS = Avatars(num_classes=500, images=32, tests=4, evaluation=4, cast=1)
"""Persons whom tables of drawn portraits do not have: those have cast 0, and 99 for tuning."""
CLASSIFIERS = ((SETTING.network, OTHERS, Recipe(epochs=20, milestones=(15,), select="last")),)
"""Network, task and recipe of each."""


@dataclass(frozen=True)
class Wanted:
    """A file of the package.

    Attributes:
        name: What it begins with.
        stages: What makes it; the last one has the weights.
        folder: Where it lies.
        pinned: The digests that tables name.
        made: What describes it, beside command and machine.
    """

    name: str
    stages: tuple[Stage, ...]
    folder: Path
    pinned: frozenset[str]
    made: dict[str, Any]


def priors() -> Iterator[Wanted]:
    """Yields the priors of shipped tables."""
    pinned = {
        cell.attack.prior
        for table in TABLES.values()
        for cell in table.rows.values()
        if isinstance(cell.attack.prior, Shipped)
    }
    for prior in sorted(pinned, key=lambda p: p.of.name):
        images = ImagesStage(prior.task, prior.task.digest(Path("data")))
        stage = PriorStage(images, None, prior.of, prior.seed)
        made = {"prior": canonical(prior.of), "task": canonical(prior.task), "seed": prior.seed}
        yield Wanted(prior.of.name, (images, stage), FOLDER, frozenset({prior.sha256}), made)


def classifiers() -> Iterator[Wanted]:
    """Yields the classifiers that targets of shipped tables start from."""
    for network, task, recipe in CLASSIFIERS:
        pinned = frozenset(
            cell.setting.network.weights.sha256
            for table in TABLES.values()
            for cell in table.rows.values()
            if isinstance(cell.setting.network, Pretrained)
            and cell.setting.network.network == network
        )
        images = ImagesStage(task, task.digest(Path("data")))
        stage = ClassifierStage(images, "private", network, NoDefense(), recipe, 0)
        made = {
            "network": canonical(network),
            "task": canonical(task),
            "recipe": canonical(recipe),
            "seed": 0,
        }
        yield Wanted(network.name, (images, stage), SHIPPED, pinned, made)


def main() -> int:
    """Trains them; returns 1 if a digest is another than the pinned one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--store", type=Path, default=Path("mibench-store"), help="folder of finished stages"
    )
    parser.add_argument("--only", default="", help="only weights of this name, as stylegan2-ada")
    args = parser.parse_args()
    store, others = Store(args.store), 0
    place = choose_executor("serial")
    bench = place.check(Bench(args.store, Path("data"), "cpu", 1))
    files = [wanted for wanted in (*priors(), *classifiers()) if args.only in wanted.name]
    if not files:
        parser.error(f"the package ships no weights called {args.only}")
    for wanted in files:
        watcher = display(2, quiet=False, verbose=False)
        try:
            outcome = execute(list(wanted.stages), bench, watcher, place)
        finally:
            watcher.close()
        if outcome.failures:
            raise SystemExit("; ".join(outcome.failures.values()))
        payload, meta = store.read(wanted.stages[-1])
        data = packed(payload["state"])
        digest = hashlib.sha256(data).hexdigest()
        path = wanted.folder / f"{wanted.name}-{digest[:8]}.safetensors"
        if digest in wanted.pinned and path.exists():
            print(f"{wanted.name}: {digest}, as pinned")
            continue
        others = digest not in wanted.pinned
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        made = {
            "command": f"python -m perf.ship --only {wanted.name}",
            "machine": in_words(meta),
            "seconds": round(meta["seconds"]),
            "sha256": digest,
            **({"accuracy": payload["accuracy"]} if "accuracy" in payload else {}),
            **wanted.made,
        }
        path.with_suffix(".json").write_text(json.dumps(made, indent=2) + "\n")
        known = ", ".join(sorted(wanted.pinned)) or "none"
        print(f"{wanted.name}: {digest}, and pinned is {known}; written as {path.name}")
    return others


if __name__ == "__main__":
    raise SystemExit(main())
