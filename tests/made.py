"""A small store of real stages, for tests of what is made from one."""

from pathlib import Path

from click.testing import CliRunner

from mibench.cli import main

STORE_ROWS = [
    "--rows", "GMI / No Def.", "--rows", "GMI / MID", "--rows", "KED-MI / No Def.",
    "--seeds", "2", "--set", "attack.steps=3", "--set", "attack.prior.epochs=1",
    "--set", "recipe.epochs=2", "--set", "setting.evaluators.0.recipe.epochs=1",
]  # fmt: skip


def made_store(store: Path) -> None:
    """Fills ``store`` with three rows and two seeds of the smoke table."""
    places = ["--store", str(store), "--out", str(store.parent / "out"), "--executor", "serial"]
    done = CliRunner().invoke(main, ["run", "smoke", *STORE_ROWS, *places])
    assert done.exit_code == 0, done.output
