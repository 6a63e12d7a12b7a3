"""A reduced crash matrix; ``make crash`` runs it whole."""

import re
import shutil
import subprocess
import sys

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
