"""The one prepared run on a GPU: limits hold, results come at once, and all of it runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mibench.precision import BF16, FLOAT32
from perf import device, precision
from perf.__main__ import Timed
from perf.device import Part, parts, run
from perf.paths import Path as Hot

SLEEPS = "import time; print('so far', flush=True); time.sleep(60)"


def test_a_part_that_takes_too_long_is_stopped_and_what_it_printed_is_kept(
    tmp_path: Path,
) -> None:
    result = run(Part("slow", (sys.executable, "-c", SLEEPS), 3), tmp_path, 100)
    assert result["ended"] == "stopped after 3 s"
    assert (tmp_path / "slow.txt").read_text() == "so far\n"
    result = run(Part("slow", (sys.executable, "-c", SLEEPS), 100), tmp_path, 3)
    assert result["ended"] == "stopped after 3 s"
    late = run(Part("late", ("no such program",), 9), tmp_path, 0)
    assert str(late["ended"]).startswith("not begun")
    failed = run(Part("bad", (sys.executable, "-c", "raise SystemExit(4)"), 9), tmp_path, 9)
    assert failed["ended"] == "exit status 4"


def test_all_limits_together_are_twelve_minutes_or_close_and_the_tests_come_first() -> None:
    every = list(parts("cuda", Path("data"), tiny=False))
    names = ["tests", "determinism-float32", "determinism-bf16", "paths", "blocks", "row"]
    assert [part.name for part in every] == names
    assert sum(part.limit for part in every[:-1]) < 12 * 60
    assert all("cuda" in part.command for part in every[1:])


def test_each_result_is_written_when_its_part_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "results.jsonl"
    look = f"print(open({str(file)!r}).read())"
    few = [Part("a", (sys.executable, "-c", "1"), 9), Part("b", (sys.executable, "-c", look), 9)]
    monkeypatch.setattr(device, "parts", lambda *_, **__: iter(few))
    monkeypatch.setattr(sys, "argv", ["device", str(tmp_path)])
    assert device.main() == 0
    assert '"part": "a"' in (tmp_path / "b.txt").read_text()
    assert [json.loads(line)["part"] for line in file.read_text().splitlines()] == ["a", "b"]


def test_a_line_has_the_share_of_each_rate_and_ratios_to_float32() -> None:
    def timed(seconds: list[float]) -> Timed:
        return Timed(Hot("a", 10, lambda: None), 2e9, seconds)

    times = {FLOAT32: timed([1.0, 2.0, 1.0]), BF16: timed([0.5, 0.5, 0.25])}
    line = precision.line(times, {FLOAT32: 4e9, BF16: 40e9})
    assert line == "| a | 1000.0 (50 %) | 500.0 (10 %) | 4.00 (2.00-4.00) |"


def test_modes_leave_the_precision_as_it_was() -> None:
    with precision.computing(BF16):
        assert torch.backends.cuda.matmul.allow_tf32 is False
    with precision.computing(precision.TF32):
        assert torch.backends.cuda.matmul.allow_tf32 is True
    assert torch.backends.cuda.matmul.allow_tf32 is False


@pytest.mark.slow
def test_the_whole_run_is_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "perf.device", str(tmp_path), "--device", "cpu", "--tiny"]
    done = subprocess.run(
        [*command, "--minutes", "60"], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    texts = {p.stem: p.read_text() for p in sorted(tmp_path.glob("*.txt"))}
    assert done.returncode == 0, texts
    results = [json.loads(r) for r in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [r["ended"] for r in results] == ["exit status 0"] * 6
    assert "0 differ when computed again in bf16" in texts["determinism-bf16"]
    assert texts["paths"].count("\n| ") == 10
    assert "ked-mi on 2 blocks x 2 restarts" in texts["blocks"]
    assert "KED-MI / BiDO-HSIC" in texts["row"]
