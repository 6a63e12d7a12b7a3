"""Trains the priors that the package ships: ``python -m perf.ship --store DIR``.

Each :class:`~mibench.attacks.priors.shipped.Shipped` prior of a shipped table is trained on the
public images of its task, on one thread; what is interrupted resumes. Weights with another digest
than the pinned one (another kind of machine rounds otherwise) are written under a name of their
own, beside what made them: a table that pins their digest uses them.
"""

import argparse
import hashlib
import json
from pathlib import Path

from mibench.attacks.priors.shipped import FOLDER, Shipped, packed
from mibench.benchmarks.tables import TABLES
from mibench.machine import in_words
from mibench.running.executors import Bench, choose_executor, execute
from mibench.running.progress import display
from mibench.running.stages import ImagesStage, PriorStage
from mibench.spec import canonical
from mibench.store import Store


def main() -> int:
    """Trains them; returns 1 if a digest is another than the pinned one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--store", type=Path, required=True, help="folder of finished stages")
    parser.add_argument("--only", default="", help="only priors of this name, as stylegan2-ada")
    args = parser.parse_args()
    priors = {
        cell.attack.prior
        for table in TABLES.values()
        for cell in table.rows.values()
        if isinstance(cell.attack.prior, Shipped) and args.only in cell.attack.prior.of.name
    }
    store, others = Store(args.store), 0
    place = choose_executor("serial")
    bench = place.check(Bench(args.store, Path("data"), "cpu", 1))
    for prior in sorted(priors, key=lambda p: p.of.name):
        images = ImagesStage(prior.task, prior.task.digest(Path("data")))
        stage = PriorStage(images, None, prior.of, prior.seed)
        watcher = display(2, quiet=False, verbose=False)
        try:
            outcome = execute([images, stage], bench, watcher, place)
        finally:
            watcher.close()
        if outcome.failures:
            raise SystemExit("; ".join(outcome.failures.values()))
        payload, meta = store.read(stage)
        data = packed(payload["state"])
        digest = hashlib.sha256(data).hexdigest()
        if digest == prior.sha256:
            print(f"{prior.of.name}: {digest}, as pinned")
            continue
        others = 1
        path = FOLDER / f"{prior.of.name}-{digest[:8]}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        made = {
            "command": f"python -m perf.ship --only {prior.of.name}",
            "machine": in_words(meta),
            "seconds": round(meta["seconds"]),
            "sha256": digest,
            "prior": canonical(prior.of),
            "task": canonical(prior.task),
            "seed": prior.seed,
        }
        path.with_suffix(".json").write_text(json.dumps(made, indent=2) + "\n")
        print(f"{prior.of.name}: {digest}, not the pinned {prior.sha256}; written as {path.name}")
    return others


if __name__ == "__main__":
    raise SystemExit(main())
