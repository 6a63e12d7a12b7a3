"""The store: what is packed comes back, nothing is lost, nothing is computed twice."""

import hashlib
import json
import multiprocessing
import multiprocessing.pool
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from mibench.machine import machine
from mibench.seeding import generator, seeded
from mibench.store import Payload, Stage, Store, Work, check_finite, pack, unpack
from mibench.store.lease import lease

Load = Callable[[Stage], Payload]


@dataclass(frozen=True)
class Draw(Stage):
    """Draws numbers; leaves a mark in the data folder each time it computes."""

    kind: ClassVar[str] = "draw"

    seed: int
    seconds: float = 0.0

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the numbers."""
        (work.data / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(self.seconds)
        return {"numbers": torch.randn(4, generator=generator(self.seed)), "seed": self.seed}


@dataclass(frozen=True)
class Sum(Stage):
    """Adds up what others drew."""

    kind: ClassVar[str] = "sum"

    parts: tuple[Draw, ...]
    first: Draw

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the sum."""
        return {"sum": sum(float(load(p)["numbers"].sum()) for p in self.parts)}


@dataclass(frozen=True)
class Walk(Stage):
    """Four steps; stumbles after the second as long as there is a stone in the data folder."""

    kind: ClassVar[str] = "walk"

    def compute(self, load: Load, work: Work) -> Payload:
        """Returns the steps, and which of them this attempt took."""
        rng, steps = generator("walk"), torch.zeros(0)
        if (saved := work.load()) is not None:
            steps = saved["steps"]
            rng.set_state(saved["rng"])
        begun_at = len(steps)

        def state() -> Payload:
            return {"steps": steps, "rng": rng}

        while len(steps) < 4:
            steps = torch.cat([steps, torch.randn(1, generator=rng)])
            work.save(state)
            if len(steps) == 2 and (work.data / "stone").exists():
                raise RuntimeError("stumbled")
        return {"steps": steps, "begun_at": begun_at}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# Packing ------------------------------------------------------------------------------------


def round_trip(value: object) -> object:
    """Sends ``value`` through what is written to disk."""
    tensors, tree = pack(value)
    files = write_tensors(tensors), json.dumps(tree)
    return unpack(read_tensors(files[0]), json.loads(files[1]))


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 0.1, "text", [], {}, (), [1, (2, "a"), {"b": None}],
        {0: "a", 1: {2: [3]}}, {"a": {"b": {"c": (1, 2)}}}, {"0": 1},
        [0.1 * i for i in range(50)], [*range(-25, 25)], [float("inf")] * 50,
        [*range(49), 0.5], [*range(49), True], [2**63 - i for i in range(50)], [[1.5] * 40] * 2,
        tuple(range(50)),
    ],
)  # fmt: skip
def test_plain_values_come_back_as_they_were(value: object) -> None:
    assert round_trip({"value": value}) == {"value": value}
    assert round_trip(value) == value
    assert repr(round_trip(value)) == repr(value)  # 1, 1.0 and True are equal


@pytest.mark.parametrize(("numbers", "name"), [([1.5] * 16, "F64"), ([7] * 16, "I64")])
def test_a_long_list_of_numbers_is_stored_in_full_precision_but_not_as_text(
    numbers: list[float], name: str
) -> None:
    tensors, tree = pack({"values": numbers, "few": numbers[:15]})
    assert tree == {"values": {"$list": "values"}, "few": numbers[:15]}
    assert f'"{name}"'.encode() in write_tensors(tensors)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).view(2, 3).t(), torch.zeros(0, 3), torch.tensor(2.5), torch.tensor([True]),
        torch.ones(2, dtype=torch.float16), torch.tensor([255], dtype=torch.uint8),
    ],
)  # fmt: skip
def test_a_tensor_comes_back_with_shape_type_and_values(tensor: Tensor) -> None:
    found = round_trip([tensor, {"again": (tensor,)}])
    assert isinstance(found, list)
    for t in (found[0], found[1]["again"][0], round_trip(tensor)):
        assert isinstance(t, Tensor)
        torch.testing.assert_close(t, tensor, rtol=0, atol=0)


def test_a_tied_tensor_is_stored_once() -> None:
    weight = torch.randn(3, generator=generator("w"))
    tensors, _ = pack({"encoder": weight, "decoder": [weight], "other": weight.clone()})
    assert len(tensors) == 2


def test_views_of_one_storage_stay_apart() -> None:
    whole = torch.arange(6.0)
    found = round_trip({"whole": whole, "half": whole[:3], "grid": whole.view(2, 3)})
    want = {"whole": whole, "half": whole[:3], "grid": whole.view(2, 3)}
    torch.testing.assert_close(found, want)


def test_empty_tensors_stay_apart() -> None:
    value = {"a": torch.zeros(0, 2), "b": torch.zeros(0, dtype=torch.uint8)}
    torch.testing.assert_close(round_trip(value), value)


def test_generators_come_back_as_their_states_each_its_own() -> None:
    rngs = [generator("stream", i) for i in range(6)]
    found = round_trip({"rngs": rngs})
    assert isinstance(found, dict)
    for state, rng in zip(found["rngs"], rngs, strict=True):
        assert torch.equal(state, rng.get_state())


def test_what_a_dotted_name_could_mean_stays_apart() -> None:
    value = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, "": torch.full((1,), 2.0)}
    torch.testing.assert_close(round_trip(value), value)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_an_optimizer_continues_from_its_packed_state(kind: type[torch.optim.Optimizer]) -> None:
    def network() -> torch.nn.Linear:
        with seeded("tests"):
            return torch.nn.Linear(3, 1)

    def optimizer(model: torch.nn.Linear) -> torch.optim.Optimizer:
        if kind is torch.optim.SGD:
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return torch.optim.Adam(model.parameters(), lr=0.1)

    def step(model: torch.nn.Linear, o: torch.optim.Optimizer) -> None:
        loss = model(torch.ones(2, 3)).square().sum()
        for p, g in zip(
            model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        ):
            p.grad = g
        o.step()

    a, b = network(), network()
    opt_a, opt_b = optimizer(a), optimizer(b)
    step(a, opt_a)
    state = round_trip({"model": a.state_dict(), "optimizer": opt_a.state_dict()})
    assert isinstance(state, dict)
    b.load_state_dict(state["model"])
    opt_b.load_state_dict(state["optimizer"])
    step(a, opt_a)
    step(b, opt_b)
    torch.testing.assert_close(dict(a.named_parameters()), dict(b.named_parameters()))
    assert torch.equal(a.weight, b.weight)


@pytest.mark.parametrize("value", [object(), {1, 2}, Path("a"), b"bytes"])
def test_what_cannot_be_stored_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(TypeError, match=r"\.a\.1: .* cannot be stored"):
        pack({"a": [0, value]})


def test_packing_does_not_alias_what_it_packs() -> None:
    weight = torch.zeros(2)
    tensors, _ = pack({"weight": weight})
    weight += 1
    assert tensors["weight"].tolist() == [0, 0]


# Checkpoints --------------------------------------------------------------------------------


def test_a_fresh_start_has_no_state(tmp_path: Path) -> None:
    assert Work(tmp_path).load() is None
    assert Work().load() is None


def test_the_last_saved_state_is_loaded(tmp_path: Path) -> None:
    work = Work(tmp_path, every=0.0)
    for i in range(3):
        work.queries = 10 * i
        work.save(lambda i=i: {"step": i, "x": torch.full((2,), i)})  # type: ignore[misc]
    again = Work(tmp_path)
    state = again.load()
    assert state is not None
    assert (state["step"], state["x"].tolist(), again.queries) == (2, [2, 2], 20)
    assert [p.name for p in tmp_path.iterdir()] == ["state.bin"]


def test_a_state_is_saved_only_when_it_is_time(tmp_path: Path) -> None:
    def state() -> Payload:
        raise AssertionError("asked for too early")

    Work(tmp_path, every=100.0).save(state)
    assert not list(tmp_path.iterdir())


def test_the_global_generator_continues_where_it_was(tmp_path: Path) -> None:
    with seeded("noise"):
        torch.rand(3)
        Work(tmp_path, every=0.0).save(dict)
        want = torch.rand(3)
        torch.rand(100)
        Work(tmp_path).load()
        assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("damage", ["empty", "garbage", "cut short", "other file"])
def test_a_corrupt_checkpoint_is_ignored(damage: str, tmp_path: Path) -> None:
    Work(tmp_path, every=0.0).save(lambda: {"x": torch.zeros(100)})
    path = tmp_path / "state.bin"
    whole = path.read_bytes()
    broken = {
        "empty": b"",
        "garbage": b"\xff" * 100,
        "cut short": whole[: len(whole) // 2],
        "other file": write_tensors({"x": torch.zeros(3)}),
    }
    path.write_bytes(broken[damage])
    assert Work(tmp_path).load() is None


def test_check_finite_names_what_is_not() -> None:
    check_finite(torch.ones(3), "the loss")
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        check_finite(torch.tensor([1.0, float("nan")]), "the loss")


# Keys ---------------------------------------------------------------------------------------


def test_a_key_depends_on_every_field() -> None:
    keys = {Draw(0).key, Draw(1).key, Draw(0, 1.0).key}
    assert len(keys) == 3
    assert Draw(0).key == Draw(0).key


def test_a_key_depends_on_the_version_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Draw(0).key
    monkeypatch.setattr(Draw, "version", 2)
    assert Draw(0).key != before


def test_a_key_depends_on_the_keys_of_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Sum((Draw(0),), Draw(0)).key
    assert Sum((Draw(1),), Draw(0)).key != before
    monkeypatch.setattr(Draw, "version", 2)
    assert Sum((Draw(0),), Draw(0)).key != before


def test_needs_are_the_stages_among_the_fields_once_each() -> None:
    assert Sum((Draw(0), Draw(1)), Draw(0)).needs == (Draw(0), Draw(1))


# Completing ---------------------------------------------------------------------------------


def test_a_stage_is_computed_once(store: Store, data: Path) -> None:
    assert store.complete(Draw(0), data=data)
    assert not store.complete(Draw(0), data=data)
    assert len(list(data.iterdir())) == 1


def test_a_finished_stage_gives_its_payload(store: Store, data: Path) -> None:
    store.complete(Draw(3), data=data)
    payload = store.load(Draw(3))
    assert payload["seed"] == 3
    assert torch.equal(payload["numbers"], torch.randn(4, generator=generator(3)))


def test_a_stage_loads_what_it_needs(store: Store, data: Path) -> None:
    parts = (Draw(0), Draw(1))
    for part in parts:
        store.complete(part, data=data)
    store.complete(Sum(parts, Draw(0)), data=data)
    want = sum(float(store.load(p)["numbers"].sum()) for p in parts)
    assert store.load(Sum(parts, Draw(0)))["sum"] == want


def test_two_commits_of_one_payload_have_the_same_bytes(tmp_path: Path, data: Path) -> None:
    found = []
    for name in ("a", "b"):
        store = Store(tmp_path / name)
        store.complete(Draw(0), data=data)
        files = ("payload.safetensors", "payload.json", "spec.json")
        found.append([(store.path(Draw(0)) / f).read_bytes() for f in files])
    assert found[0] == found[1]


def test_meta_says_which_instructions_a_stage_ran_on(store: Store, data: Path) -> None:
    store.complete(Draw(0), data=data)
    assert store.meta(Draw(0))["machine"] == machine()
    kind, _, instructions = store.meta(Draw(0))["device"].split()
    assert (kind, instructions) == ("cpu", torch.backends.cpu.get_cpu_capability())


def test_meta_says_the_digest_of_every_other_file(store: Store, data: Path) -> None:
    store.complete(Draw(0), data=data)
    folder = store.path(Draw(0))
    digests = store.meta(Draw(0))["sha256"]
    others = {p.name for p in folder.iterdir()} - {"meta.json"}
    assert set(digests) == others == {"payload.safetensors", "payload.json", "spec.json"}
    for name, digest in digests.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_a_finished_stage_leaves_nothing_else_behind(store: Store, data: Path) -> None:
    store.complete(Draw(0), data=data)
    assert [p.name for p in (store.root / "draw").iterdir()] == [Draw(0).key]


def test_state_goes_from_missing_over_partial_to_done(
    store: Store, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mibench.store.store.Work", partial(Work, every=0.0))
    assert store.state(Walk()) == "missing"
    (data / "stone").touch()
    with pytest.raises(RuntimeError, match="stumbled"):
        store.complete(Walk(), data=data)
    assert store.state(Walk()) == "partial"
    (data / "stone").unlink()
    store.complete(Walk(), data=data)
    assert store.state(Walk()) == "done"


def test_a_failed_stage_has_nothing_under_its_final_name(store: Store, data: Path) -> None:
    (data / "stone").touch()
    with pytest.raises(RuntimeError, match="stumbled"):
        store.complete(Walk(), data=data)
    assert not store.path(Walk()).exists()
    with pytest.raises(KeyError, match=r"walk .* is partial"):
        store.load(Walk())


def test_the_next_attempt_resumes_from_the_checkpoint(
    store: Store, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mibench.store.store.Work", partial(Work, every=0.0))
    (data / "stone").touch()
    with pytest.raises(RuntimeError, match="stumbled"):
        store.complete(Walk(), data=data)
    (data / "stone").unlink()
    assert store.complete(Walk(), data=data)
    payload = store.load(Walk())
    assert payload["begun_at"] == 2
    assert torch.equal(payload["steps"], _walk())
    assert store.meta(Walk())["resumed"]


def on(processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mibench.store.work.machine", lambda: {"processor": processor})


def test_meta_says_on_what_a_stage_was_computed_before_it_was_resumed(
    store: Store, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mibench.store.store.Work", partial(Work, every=0.0))
    (data / "stone").touch()
    on("Abacus", monkeypatch)
    with pytest.raises(RuntimeError, match="stumbled"):
        store.complete(Walk(), data=data)
    on("Quipu", monkeypatch)
    assert store.complete(Walk(), data=data)
    meta = store.meta(Walk())
    assert meta["machine"] == {"processor": "Quipu"}
    own = {name: meta[name] for name in ("device", "threads")}
    assert meta["earlier"] == [own | {"machine": {"processor": "Abacus"}}]


def test_meta_says_nothing_of_earlier_machines_if_all_was_on_one(
    store: Store, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mibench.store.store.Work", partial(Work, every=0.0))
    (data / "stone").touch()
    with pytest.raises(RuntimeError, match="stumbled"):
        store.complete(Walk(), data=data)
    (data / "stone").unlink()
    store.complete(Walk(), data=data)
    assert store.meta(Walk())["resumed"]
    assert "earlier" not in store.meta(Walk())


def test_a_state_keeps_all_that_it_was_computed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def go(processor: str, threads: int = 1) -> list[tuple[str, int]]:
        on(processor, monkeypatch)
        monkeypatch.setattr("torch.get_num_threads", lambda: threads)
        work = Work(tmp_path, every=0.0)
        work.load()
        work.save(dict)
        return [(basis["machine"]["processor"], basis["threads"]) for basis in work.earlier]

    assert go("A") == []
    assert go("B") == [("A", 1)]
    assert go("B", 2) == [("A", 1), ("B", 1)]
    assert go("A") == [("B", 1), ("B", 2)]


def rewritten(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Changes the plain part of a saved state, and makes its digest anew."""
    tensors = read_tensors(path.read_bytes()[32:])
    tree = json.loads(bytes(tensors["$json"].tolist()))
    change(tree)
    text = bytearray(json.dumps(tree).encode())
    data = write_tensors(tensors | {"$json": torch.frombuffer(text, dtype=torch.uint8)})
    path.write_bytes(hashlib.sha256(data).digest() + data)


def test_a_state_that_does_not_say_on_what_it_was_computed_is_resumed(tmp_path: Path) -> None:
    Work(tmp_path, every=0.0).save(lambda: {"step": 3})
    rewritten(tmp_path / "state.bin", lambda tree: tree.pop("on"))
    work = Work(tmp_path)
    assert (work.load(), work.earlier) == ({"step": 3}, [])


@pytest.mark.parametrize("value", [3, [3], [{"device": "cpu"}], [{"machine": 3}]])
def test_a_state_with_nonsense_on_its_machines_starts_over(value: object, tmp_path: Path) -> None:
    Work(tmp_path, every=0.0).save(lambda: {"step": 3})
    rewritten(tmp_path / "state.bin", lambda tree: tree.update(on=value))
    assert Work(tmp_path).load() is None


def _walk() -> Tensor:
    rng = generator("walk")
    return torch.cat([torch.randn(1, generator=rng) for _ in range(4)])


def test_a_failure_frees_the_lease(store: Store, data: Path) -> None:
    (data / "stone").touch()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="stumbled"):
            store.complete(Walk(), data=data)
    assert not list(store.root.rglob("*.lease"))


def test_a_stage_that_lost_its_folder_while_it_ran_still_finishes(
    store: Store, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were two to hold a lease after all, the first to commit clears what both save into."""
    monkeypatch.setattr("mibench.store.store.Work", partial(Work, every=0.0))
    save = Work.save

    def lose(work: Work, state: Callable[[], Payload]) -> None:
        for path in (store.root / "walk").glob("*.partial/*"):
            path.unlink()
        for path in (store.root / "walk").glob("*.partial"):
            path.rmdir()
        save(work, state)

    monkeypatch.setattr(Work, "save", lose)
    assert store.complete(Walk(), data=data)
    assert torch.equal(store.load(Walk())["steps"], _walk())


@pytest.mark.parametrize("name", ["payload.safetensors", "payload.json"])
def test_a_damaged_payload_is_found_by_its_digest(name: str, store: Store, data: Path) -> None:
    store.complete(Draw(0), data=data)
    path = store.path(Draw(0)) / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        store.load(Draw(0))


def test_a_commit_that_comes_second_leaves_the_first(store: Store, data: Path) -> None:
    store.complete(Draw(0), data=data)
    before = store.load(Draw(0))["numbers"]
    store._commit(Draw(0), {"numbers": torch.zeros(4), "seed": 9}, {})
    assert torch.equal(store.load(Draw(0))["numbers"], before)
    assert [p.name for p in (store.root / "draw").iterdir()] == [Draw(0).key]


# Leases -------------------------------------------------------------------------------------


def occupy(store: Store, stage: Stage, holder: str) -> Path:
    """Writes a lease as another holder would."""
    path = store.path(stage).with_suffix(".lease")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(holder)
    return path


def test_the_lease_of_a_dead_process_is_taken_over_at_once(store: Store, data: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    occupy(store, Draw(0), f"{socket.gethostname()} {process.pid} nonce")
    begin = time.monotonic()
    assert store.complete(Draw(0), data=data)
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("host", [socket.gethostname(), "another-machine"])
def test_the_lease_of_a_silent_holder_is_taken_over_after_a_while(
    host: str, tmp_path: Path, data: Path
) -> None:
    store = Store(tmp_path / "store", lease_seconds=0.4)
    occupy(store, Draw(0), f"{host} {os.getpid()} nonce")
    begin = time.monotonic()
    assert store.complete(Draw(0), data=data)
    assert 0.3 < time.monotonic() - begin < 3


def test_a_lease_that_beats_is_respected(tmp_path: Path, data: Path) -> None:
    """While one holds the stage for three lease times, the other waits and computes nothing."""
    store = Store(tmp_path / "store", lease_seconds=0.3)
    stage = Draw(0, seconds=0.9)
    with multiprocessing.pool.ThreadPool(2) as pool:
        results = pool.map(lambda _: store.complete(stage, data=data), range(2))
    assert sorted(results) == [False, True]
    assert len(list(data.iterdir())) == 1


def test_a_lease_that_somebody_took_over_is_not_removed(store: Store, data: Path) -> None:
    path = store.path(Draw(0)).with_suffix(".lease")
    with lease(path, lambda: False, 60) as ours:
        assert ours
        path.write_text("another-machine 1 nonce")
    assert path.exists()


def _complete(root: Path, data: Path, stage: Stage) -> bool:
    torch.set_num_threads(1)
    return Store(root).complete(stage, data=data)


@pytest.mark.slow
def test_two_processes_compute_a_stage_once(tmp_path: Path, data: Path) -> None:
    context = multiprocessing.get_context("spawn")
    job = (tmp_path / "store", data, Draw(0, seconds=0.5))
    with context.Pool(2) as pool:
        results = pool.starmap(_complete, [job, job], chunksize=1)
    assert sorted(results) == [False, True]
    assert len(list(data.iterdir())) == 1
