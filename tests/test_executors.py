"""Whichever executor runs it, a table is the same."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from mibench.running.executors import (
    EXECUTORS,
    Bench,
    Local,
    Outcome,
    Ray,
    Serial,
    Slurm,
    base,
    choose_executor,
    execute,
    local,
)
from mibench.running.executors.base import Schedule
from mibench.running.progress import Watcher
from mibench.store import Payload, Stage, Store, StoreError, Work


@dataclass(frozen=True)
class Nap(Stage):
    """Sleeps."""

    kind: ClassVar[str] = "nap"

    number: int
    after: tuple[Stage, ...] = ()
    seconds: float = 0.0

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        if self.number < 0:
            raise ValueError(f"number {self.number}")
        time.sleep(self.seconds)
        return {"number": self.number}


@dataclass(frozen=True)
class Deadly(Stage):
    """Kills its process, the first ``times``."""

    kind: ClassVar[str] = "deadly"

    times: int
    after: tuple[Stage, ...] = ()

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        assert work._path is not None
        deaths = work._path.with_name("deaths")
        before = len(deaths.read_bytes()) if deaths.exists() else 0
        if before < self.times:
            deaths.write_bytes(b"x" * (before + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return {"deaths": before}


@dataclass(frozen=True)
class Beside(Stage):
    """Runs until a stage has ended, well or not."""

    kind: ClassVar[str] = "beside"

    other: str

    def compute(self, load: Callable[[Stage], Payload], work: Work) -> Payload:
        assert work._path is not None
        place = work._path.parents[2] / "deadly" / self.other
        deadline = time.monotonic() + 60
        while not (place.exists() or place.with_suffix(".failed").exists()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return {}


class Starts(Watcher):
    """Counts how often each stage began."""

    def __init__(self) -> None:
        self.of: Counter[Stage] = Counter()

    def start(self, stage: Stage) -> None:
        self.of[stage] += 1


def test_an_executor_is_chosen_by_its_name_and_fields() -> None:
    assert choose_executor("auto") == Local()
    assert choose_executor("serial") == Serial()
    assert choose_executor("local[3]") == Local(3)
    assert choose_executor("local[ 4, gpus=0.25 ]") == Local(4, 0.25)
    assert choose_executor("ray[retries=1]", "h:1") == Ray(None, "h:1", retries=1)
    assert choose_executor("slurm[8,partition=gpu,gpus=1]") == Slurm(8, "gpu", gpus=1)
    for text in ("loca", "local[2", "local2", ""):
        with pytest.raises(ValueError, match=r"unknown executor .* local\[…\], ray"):
            choose_executor(text)
    with pytest.raises(KeyError, match="no field 'cores'"):
        choose_executor("local[cores=2]")


@pytest.mark.parametrize("name", ["ray", "slurm"])
def test_a_missing_extra_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=re.escape(f"pip install 'mibench[{name}]'")):
        EXECUTORS[name]().check(Bench(Path(), Path()))


def test_a_schedule_gives_a_stage_once_its_needs_are_done_in_the_graphs_order() -> None:
    a, b = Nap(1), Nap(2)
    both, last = Nap(3, (a, b)), Nap(4)
    schedule = Schedule([a, b, both, last], [])
    assert [schedule.take() for _ in range(3)] == [a, b, last]
    assert schedule.ready == 0
    schedule.settle(b, True)
    assert schedule.ready == 0
    schedule.put_back(a)
    assert schedule.take() == a
    schedule.settle(a, False)
    assert schedule.take() == both
    assert (schedule.outcome.computed, schedule.outcome.cached) == (1, 1)


def test_a_schedule_drops_all_that_needs_a_failed_stage_and_nothing_else() -> None:
    bad, good = Nap(1), Nap(2)
    below = Nap(3, (bad, good))
    deep = Nap(4, (below,))
    schedule = Schedule([bad, good, below, deep], [])
    schedule.take()
    assert schedule.settle(bad, "no") == "no"
    assert schedule.outcome.skipped == [below, deep]
    assert schedule.take() == good
    schedule.settle(good, True)
    assert not schedule.pending
    assert schedule.ready == 0


def test_what_is_done_is_not_scheduled() -> None:
    a = Nap(1)
    schedule = Schedule([a, Nap(2, (a,))], [a.key])
    assert schedule.take() == Nap(2, (a,))
    assert schedule.outcome.cached == 1


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, listed: str | None = None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if listed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)


def test_gpus_are_found_and_given_out_one_stage_each(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(Path(), Path(), "auto")
    gpus(monkeypatch, 3, "4,5,GPU-abc")
    assert local.visible_gpus("cuda") == ["4", "5", "GPU-abc"]
    assert local.visible_gpus("cuda:1") == ["5"]
    gpus(monkeypatch, 2)
    assert local.visible_gpus("cuda") == ["0", "1"]
    on_gpus = Local().check(bench)
    assert on_gpus.device == "cuda"
    assert Local().slots(on_gpus) == 2
    assert Local(gpus=0.34).slots(on_gpus) == 4
    assert Local(4, 0.5).check(bench) == on_gpus
    with pytest.raises(ValueError, match=r"here are 2: use local\[2\], or local\[3,gpus=0.67\]"):
        Local(3).check(bench)
    with pytest.raises(ValueError, match="there is no cuda:2"):
        Local().check(replace(bench, device="cuda:2"))


def test_a_worker_starts_with_ctrl_c_held_and_nothing_stays_held() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with local._interrupts_held():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
    assert signal.SIGINT not in before


def test_cores_are_divided_by_the_threads_of_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    monkeypatch.setattr(local, "cores", lambda: 9)
    bench = Local().check(Bench(Path(), Path(), "auto", threads=4))
    assert bench.device == "cpu"
    assert Local().slots(bench) == 2
    assert Local().slots(replace(bench, threads=16)) == 1


def side_by_side(stages: list[Stage], root: Path) -> tuple[Outcome, Starts]:
    starts = Starts()
    return execute(stages, Bench(root, root), starts, Local(2)), starts


def test_a_death_is_of_one_stage_and_what_runs_beside_it_goes_on(tmp_path: Path) -> None:
    deadly = Deadly(9)
    beside = Beside(deadly.key)
    below, later = Nap(2, (deadly,)), Nap(3, (beside,))
    outcome, starts = side_by_side([deadly, beside, below, later], tmp_path)
    assert outcome.failures == {deadly.key: base.KILLED}
    assert Store(tmp_path).failure(deadly) == base.KILLED
    assert (outcome.skipped, outcome.computed) == ([below], 2)
    assert starts.of == {deadly: 2, beside: 1, later: 1}


def test_a_stage_that_dies_beside_another_is_tried_once_more(tmp_path: Path) -> None:
    deadly = Deadly(1)
    beside = Beside(deadly.key)
    outcome, starts = side_by_side([deadly, beside], tmp_path)
    assert (outcome.failures, outcome.computed) == ({}, 2)
    assert starts.of == {deadly: 2, beside: 1}
    assert Store(tmp_path).load(deadly) == {"deaths": 1}


def test_a_stage_that_dies_alone_is_not_tried_again(tmp_path: Path) -> None:
    first = Nap(1)
    deadly = Deadly(1, (first,))
    outcome, starts = side_by_side([first, deadly, Nap(2, (deadly,))], tmp_path)
    assert outcome.failures == {deadly.key: base.KILLED}
    assert starts.of == {first: 1, deadly: 1}


def test_a_worker_that_died_idle_is_replaced_and_none_is_left_as_a_zombie(tmp_path: Path) -> None:
    worker = local._Worker(Bench(tmp_path, tmp_path), "")
    pids = []
    for stage in (Nap(1), Nap(2), Nap(3, seconds=100)):
        worker.take(stage)
        assert worker._process is not None
        pids.append(worker._process.pid)
        while stage.number < 3 and worker.hear(Watcher()) is None:
            pass
        if stage.number == 1:
            worker._process.kill()
            worker._process.join()
    worker.end(now=True)
    assert pids[0] != pids[1] == pids[2]
    assert Store(tmp_path).state(Nap(2)) == "done"
    with pytest.raises(ProcessLookupError):  # of a zombie, a lease would seem held
        os.kill(pids[2] or 0, 0)


def test_a_workers_error_of_the_store_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "nap").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write to"):
        side_by_side([Nap(1), Nap(2)], tmp_path)


def test_what_a_worker_raises_at_its_start_is_told(tmp_path: Path) -> None:
    (broken := tmp_path / "broken_of_a_worker.py").write_text("1 / 0\n")
    bench = Bench(tmp_path, tmp_path, user_file=broken)
    with pytest.raises(ValueError, match=r"worker\.py, line 1: ZeroDivisionError"):
        execute([Nap(1), Nap(2)], bench, Watcher(), Local(2))


SCRIPT = """
from dataclasses import dataclass
from pathlib import Path
from tests.test_executors import Nap, side_by_side

@dataclass(frozen=True)
class Mine:
    x: int = 1

def main():
    print(side_by_side([Nap(1, (Mine(),)), Nap(2)], Path("store"))[0])

"""


@pytest.mark.parametrize("guard", [True, False])
def test_a_scripts_own_classes_are_known_to_workers_and_its_guard_is_asked_for(
    guard: bool, tmp_path: Path
) -> None:
    file = tmp_path / "script.py"
    file.write_text(SCRIPT + ('if __name__ == "__main__":\n    main()\n' if guard else "main()\n"))
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if guard:
        assert "Outcome(computed=2, cached=0, failures={}" in done.stdout, done.stderr
    else:
        assert done.stderr.splitlines()[-1] == f"ValueError: {local.NOT_STARTED}"
        assert not list((tmp_path / "store").glob("nap/*.failed"))


def test_clusters_get_absolute_paths_and_choose_the_gpu_themselves(tmp_path: Path) -> None:
    bench = Bench(Path("store"), Path("data"), "auto", user_file=Path("x.py"))
    seen = base.elsewhere(bench, lambda: True)
    assert seen == Bench(Path.cwd() / "store", Path.cwd() / "data", "cuda", 1, Path.cwd() / "x.py")
    assert base.elsewhere(bench, lambda: False).device == "cpu"
    with pytest.raises(ValueError, match="use --device cuda"):
        base.elsewhere(replace(bench, device="cuda:1"), lambda: True)
    with pytest.raises(ValueError, match="unknown device"):
        base.elsewhere(replace(bench, device="tpu"), lambda: True)


def test_states_of_many_stages_are_those_of_each(tmp_path: Path) -> None:
    store = Store(tmp_path)
    done, begun, none = Nap(1), Nap(2), Nap(3)
    assert store.states([none]) == {none.key: "missing"}
    store.complete(done)
    (tmp_path / "nap" / f"{begun.key}.partial").mkdir()
    stages = (done, begun, none)
    assert store.states(stages) == {s.key: store.state(s) for s in stages}


# Whole tables -----------------------------------------------------------------------------


def needs_package(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


def command(root: Path, *more: str) -> list[str]:
    places = ["--store", str(root / "store"), "--out", str(root / "out"), "--device", "cpu"]
    return [sys.executable, "-m", "mibench.cli", "run", "smoke", *places, *more]


def csv(root: Path) -> bytes:
    return next((root / "out").glob("*.csv")).read_bytes()


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("serial")
    subprocess.run(command(root, "--executor", "serial"), check=True, capture_output=True)
    return csv(root)


@needs_package("submitit")
@pytest.mark.parametrize(
    ("slurm", "bench", "device", "gpus"),
    [
        ("slurm[cluster=local]", {}, "cpu", 0),
        ("slurm[cluster=local]", {"heavy": True}, "cuda", 1),
        ("slurm[cluster=local,gpus=1]", {}, "cuda", 1),
        ("slurm[cluster=local,gpus=0]", {"heavy": True}, "cpu", 0),
        ("slurm[cluster=local]", {"heavy": True, "asked": "cpu"}, "cpu", 0),
        ("slurm[cluster=local]", {"asked": "cuda"}, "cuda", 1),
    ],
)
def test_jobs_ask_for_a_gpu_where_the_work_is_meant_for_one(
    slurm: str, bench: dict[str, object], device: str, gpus: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import submitit

    asked = {}

    class Submitted(submitit.AutoExecutor):
        def update_parameters(self, **parameters: object) -> None:
            asked.update(parameters)
            raise InterruptedError

    monkeypatch.setattr(submitit, "AutoExecutor", Submitted)
    monkeypatch.chdir(tmp_path)
    place = choose_executor(slurm)
    asking = str(bench.pop("asked", "auto"))
    there = place.check(Bench(tmp_path, tmp_path, asking, **bench))  # type: ignore[arg-type]
    assert there.device == device
    with pytest.raises(InterruptedError):
        execute([Nap(1)], there, Watcher(), place)
    assert asked["gpus_per_node"] == gpus


@needs_package("submitit")
def test_a_gpu_that_jobs_may_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a GPU for each job"):
        choose_executor("slurm[cluster=local,gpus=0]").check(Bench(tmp_path, tmp_path, "cuda"))


@pytest.mark.slow
@needs_package("submitit")
def test_jobs_of_slurm_give_the_same_table(serial: bytes, tmp_path: Path) -> None:
    more = f"slurm[2,cluster=local,folder={tmp_path / 'jobs'}]"
    done = subprocess.run(
        command(tmp_path, "--executor", more), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert csv(tmp_path) == serial
    ended = list((tmp_path / "jobs").glob("*/*.ended"))
    assert f"{len(ended)} stages computed, 0 found" in done.stderr
    logs = "".join(p.read_text() for p in (tmp_path / "jobs").glob("*/*.out"))
    assert logs.count("Job completed successfully") == 2


@pytest.mark.slow
@needs_package("submitit")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # jobs that end
def test_a_stage_that_fails_in_a_job_takes_only_its_dependants(tmp_path: Path) -> None:
    bad, good = Nap(-1), Nap(2)
    below = Nap(1, (bad,))
    slurm = Slurm(2, cluster="local", folder=str(tmp_path / "jobs"))
    bench = slurm.check(Bench(tmp_path / "store", tmp_path, "cpu"))
    outcome = execute([bad, below, good], bench, Watcher(), slurm)
    assert list(outcome.failures) == [bad.key]
    assert outcome.failures[bad.key].startswith("number -1; it stopped")
    assert (outcome.skipped, outcome.computed) == ([below], 1)
    assert Store(bench.store).state(good) == "done"


class Cluster:
    """A Ray cluster of two one-core nodes on this machine, in a process of its own."""

    code = (
        "import sys\n"
        "from ray.cluster_utils import Cluster\n"
        "c = Cluster(initialize_head=True, head_node_args={'num_cpus': 0})\n"
        "nodes = [c.add_node(num_cpus=1) for _ in range(2)]\n"
        "print(c.address, flush=True)\n"
        "for line in sys.stdin:\n"
        "    c.remove_node(nodes.pop(), allow_graceful=False)\n"
        "    print('stopped', flush=True)\n"
        "c.shutdown()\n"
    )

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.address = self._read()

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def stop_a_node(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("stop\n")
        self._process.stdin.flush()
        assert self._read() == "stopped"

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster()
    yield found
    found.close()


def kill_a_worker(root: Path, process: "subprocess.Popen[str]") -> None:
    """Kills the process that holds a stage's lease, as the lease says."""
    for _ in range(1200):
        for lease in (root / "store").glob("*/*.lease"):
            pid = int(lease.read_text().split()[1])
            assert pid != process.pid
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)
    raise AssertionError("no stage began")


@pytest.mark.slow
@needs_package("ray")
def test_ray_gives_the_same_table_though_a_worker_and_a_node_die(
    cluster: Cluster, serial: bytes, tmp_path: Path
) -> None:
    more = ("--executor", "ray", "--address", cluster.address, "--quiet")
    whole = subprocess.run(command(tmp_path / "w", *more), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert csv(tmp_path / "w") == serial
    process = subprocess.Popen(
        command(tmp_path / "b", *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    kill_a_worker(tmp_path / "b", process)
    time.sleep(3)
    assert process.poll() is None
    cluster.stop_a_node()
    _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert csv(tmp_path / "b") == serial


@pytest.mark.slow
@needs_package("ray")
def test_without_a_cluster_ray_is_refused_in_one_sentence(tmp_path: Path) -> None:
    more = ("--executor", "ray", "--address", "127.0.0.1:1")
    done = subprocess.run(command(tmp_path, *more), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: there is no Ray cluster at '127.0.0.1:1'")
    assert done.stderr.count("\n") == 1
