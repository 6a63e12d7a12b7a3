"""Whether two versions of mibench compute the same: ``python -m perf.same_results COMMIT``.

Checks the commit out into a temporary folder, runs ``mibench run smoke`` with its code and with
this one, on one thread, and compares the payloads of all stages byte for byte. Stages whose keys
differ are listed: their specs, or versions, are not the same.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mibench.store import read_stage

ROOT = Path(__file__).parent.parent


def fill(code: Path, store: Path, table: str) -> None:
    """Runs a table with the code in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-c", "from mibench.cli import main; main()", "run", table, "--quiet",
        "--executor", "serial", "--threads", "1", "--store", str(store), "--out", str(store),
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=code, env=environment, stdout=subprocess.DEVNULL)


def payloads(store: Path) -> dict[str, dict[str, bytes]]:
    """Returns the payload files of each finished stage, "kind/key" → name → bytes."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": {
            name: data
            for name, data in read_stage(path.parent)[0].items()
            if "payload" in name and data is not None
        }
        for path in sorted(store.glob("*/*/meta.json"))
    }


def main() -> int:
    """Prints what is equal, what differs and what is on one side only."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--table", default="smoke")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "code"
        subprocess.run(
            ["git", "worktree", "add", "--detach", "-q", str(old), options.commit],
            check=True, cwd=ROOT,
        )  # fmt: skip
        try:
            sides: list[dict[str, dict[str, bytes]]] = []
            for code in (old, ROOT):
                fill(code, Path(folder) / f"store{len(sides)}", options.table)
                sides.append(payloads(Path(folder) / f"store{len(sides)}"))
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(old)], check=True, cwd=ROOT
            )
    before, after = sides
    both = before.keys() & after.keys()
    differing = sorted(key for key in both if before[key] != after[key])
    for key in differing:
        print(f"differs: {key}")
    for name, lone in (("before", before.keys() - both), ("after", after.keys() - both)):
        for key in sorted(lone):
            print(f"only {name}: {key}")
    print(
        f"{len(both) - len(differing)} stages equal, {len(differing)} differ, "
        f"{len(before) + len(after) - 2 * len(both)} on one side only"
    )
    return 1 if differing or before.keys() != after.keys() else 0


if __name__ == "__main__":
    sys.exit(main())
