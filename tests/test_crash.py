"""A crash matrix, reduced, and processes in one store; ``make crash soak`` runs them whole."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def traceable() -> str | None:
    """Returns why nothing can be traced here, if so."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: apt-get install strace)"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "ptrace is not permitted here"


@pytest.mark.slow
def test_a_run_killed_or_failed_at_any_operation_needs_no_hand() -> None:
    if reason := traceable():
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.crash", "--every", "25"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d{3} points of 11 stages", done.stdout)
    assert "0 failures" in done.stdout


@pytest.mark.slow
def test_eight_processes_in_one_store_lose_nothing() -> None:
    command = [sys.executable, "-m", "tests.soak", "--seconds", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 wrong or lost" in done.stdout
    assert not done.stderr, done.stderr


def table(folder: Path, rows: tuple[str, ...], name: str) -> list[str]:
    settings = ("recipe.epochs=1", "attack.prior.epochs=1", "attack.steps=2")
    command = [sys.executable, "-m", "mibench.cli", "run", "smoke", "--quiet"]
    command += [word for row in rows for word in ("--rows", row)]
    command += [word for setting in settings for word in ("--set", setting)]
    places = ["--store", str(folder / "store"), "--out", str(folder / name)]
    return [*command, "--executor", "serial", "--device", "cpu", *places]


@pytest.mark.slow
def test_overlapping_tables_side_by_side_compute_each_stage_once(tmp_path: Path) -> None:
    rows = ("GMI / No Def.", "GMI / MID", "GMI / BiDO-HSIC")
    mine = [rows[:2], rows[::2], rows]  # with the row that the others are compared with
    alone = subprocess.run(table(tmp_path / "one", rows, "0"), capture_output=True, check=False)
    assert alone.returncode == 0, alone.stderr
    running = [
        subprocess.Popen(
            table(tmp_path, r, str(i)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for i, r in enumerate(mine)
    ]
    ends = [process.communicate(timeout=600) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    want = (tmp_path / "one" / "0" / "smoke-modified.csv").read_text().splitlines()
    for i, r in enumerate(mine):
        got = (tmp_path / str(i) / "smoke-modified.csv").read_text().splitlines()
        assert got == [line for line in want if line.startswith(("row", *r))]
    counts = [re.search(r"(\d+) stages computed", err.decode()) for _, err in ends]
    computed = sum(int(match.group(1)) for match in counts if match)
    assert computed == len([*(tmp_path / "store").glob("*/*/meta.json")])
