"""Checkpoints that mean harm: each is refused in one sentence, and nothing in it runs."""

import io
import json
import os
import pickle
import re
import resource
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mibench.networks.foreign.checkpoints import read_checkpoint, same_places
from mibench.seeding import seeded

STATE = OrderedDict({"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)})
MARK = Path("/tmp/mibench-hostile-mark")


class Runs:
    """Calls something when it is unpickled."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


GOOD = saved(STATE)
OLD = saved(STATE, _use_new_zipfile_serialization=False)


def repacked(
    change: Callable[[str, bytes], bytes | None] = lambda _, data: data,
    more: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """Returns a good archive with changed, fewer or more entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(GOOD)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for entry in old.infolist():
            data = change(entry.filename.partition("/")[2], old.read(entry))
            if data is not None:
                new.writestr(entry.filename, data)
        for name, data in (more or {}).items():
            new.writestr(name, data)
    return out.getvalue()


def program(data: bytes) -> bytes:
    """Returns an archive whose pickle is ``data``."""
    return repacked(lambda name, old: data if name == "data.pkl" else old)


def edited(before: bytes, after: bytes) -> bytes:
    """Returns an archive with something in its pickle replaced."""
    with zipfile.ZipFile(io.BytesIO(GOOD)) as archive:
        main = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        text = archive.read(main)
    changed, count = re.subn(before, lambda _: after, text, count=1, flags=re.DOTALL)
    assert count == 1
    return program(changed)


def tensors(header: object, body: bytes = b"") -> bytes:
    """Returns a safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(begin: int = 0, end: int = 8, shape: object = (2,), dtype: str = "F32") -> object:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def linked() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        info = zipfile.ZipInfo("archive/data.pkl")
        info.external_attr = 0o120777 << 16
        new.writestr(info, "/etc/passwd")
    return out.getvalue()


# Torch's pickle writes 6 as K\x06, (2, 3) as K\x02K\x03\x86, and the stride (3, 1) likewise.
PT: dict[str, Callable[[], bytes]] = {
    "os.system": lambda: saved({"a": Runs(os.system, f"touch {MARK}")}),
    "eval": lambda: saved({"a": Runs(eval, f"open({str(MARK)!r}, 'w')")}),
    "a reduce to a file": lambda: saved({"a": Runs(Path.touch, MARK)}),
    "a bare pickle": lambda: pickle.dumps(Runs(os.system, f"touch {MARK}"), protocol=2),
    "a bare pickle of protocol 0": lambda: pickle.dumps(Runs(os.system, f"touch {MARK}"), 0),
    "code beside a state dict": lambda: saved({"state_dict": STATE, "x": Runs(Path.touch, MARK)}),
    "code in the older form": lambda: saved(
        {"a": Runs(os.system, f"touch {MARK}")}, _use_new_zipfile_serialization=False
    ),
    "a nested global": lambda: program(b"\x80\x02cbuiltins\neval.__call__\n."),
    "a global made of texts": lambda: program(b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
    "getattr": lambda: program(b"\x80\x02cbuiltins\ngetattr\n."),
    "a whole module": lambda: saved(torch.nn.ReLU()),
    "a build on a tensor": lambda: program(
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(t\x81}b."
    ),
    "a large bytearray": lambda: program(
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\0\0\0\0\x7f\x85R."
    ),
    "a zip bomb": lambda: repacked(
        more={"archive/data/9": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED
    ),
    "a path out of the archive": lambda: repacked(more={"../../etc/cron.d/x": b"x"}),
    "an absolute path": lambda: repacked(more={"/etc/x": b"x"}),
    "a path of another system": lambda: repacked(more={"..\\x": b"x"}),
    "a link in the archive": linked,
    "two pickles": lambda: repacked(more={"other/data.pkl": b"\x80\x02}."}),
    "no pickle": lambda: repacked(lambda n, d: None if n == "data.pkl" else d),
    "a missing storage": lambda: repacked(lambda n, d: None if n == "data/0" else d),
    "a short storage": lambda: repacked(lambda n, d: d[:-4] if n == "data/0" else d),
    "a long storage": lambda: repacked(lambda n, d: d + b"1234" if n == "data/0" else d),
    "more elements than bytes": lambda: edited(b"K\x06tq", b"M\xff\xfftq"),
    "a negative number of elements": lambda: edited(b"K\x06tq", b"J\xff\xff\xff\xfftq"),
    "a negative shape": lambda: edited(b"K\x02K\x03\x86", b"J\xfe\xff\xff\xffK\x03\x86"),
    "a gigantic shape": lambda: edited(b"K\x02K\x03\x86", b"J\xff\xff\xff\x7fK\x03\x86"),
    "a gigantic shape of stride zero": lambda: edited(
        rb"K\x02K\x03\x86q.K\x03K\x01\x86", b"J\xff\xff\xff\x7fK\x03\x86K\0K\0\x86"
    ),
    "a negative stride": lambda: edited(b"K\x03K\x01\x86", b"J\xff\xff\xff\xffK\x01\x86"),
    "an offset behind the end": lambda: edited(b"QK\0K\x02K\x03", b"QK\x09K\x02K\x03"),
    "a type that is none": lambda: edited(b"ctorch\nFloatStorage", b"ctorch\nMadeStorage"),
    "a dictionary within itself": lambda: program(
        b"\x80\x02}q\0X\x0a\0\0\0state_dicth\0s."
    ),
    "deep wrappers": lambda: program(
        b"\x80\x02" + b"}X\x0a\0\0\0state_dict" * 50_000 + b"}" + b"s" * 50_000 + b"."
    ),
    "deep tuples": lambda: program(b"\x80\x02)" + b"\x85" * 200_000 + b"."),
    "too many instructions": lambda: program(b"\x80\x02" + b"N0" * 600_000 + b"."),
    "an endless number": lambda: program(b"\x80\x02L" + b"9" * 100_000 + b"L\n."),
    "a memo that was never made": lambda: program(b"\x80\x02j\xff\xff\xff\x7f."),
    "an empty stack": lambda: program(b"\x80\x02sss."),
    "a text cut short": lambda: program(b"\x80\x02X\xff\xff\xff\x7fabc."),
    "cut short": lambda: GOOD[: len(GOOD) // 2],
    "cut short, the older form": lambda: OLD[: len(OLD) - 5],
    "a changed byte in a storage": lambda: GOOD.replace(
        struct.pack("<6f", *range(6)), struct.pack("<6f", 9, *range(1, 6))
    ),
    "the older form with a gigantic storage": lambda: OLD.replace(
        struct.pack("<q", 6), struct.pack("<q", 2**60)
    ),
    "the older form with a negative storage": lambda: OLD.replace(
        struct.pack("<q", 6), struct.pack("<q", -6)
    ),
    "empty": lambda: b"",
    "a script archive": lambda: repacked(
        lambda n, d: None if n == "data.pkl" else d, {"x/code/a.py": b"1", "x/constants.pkl": b""}
    ),
    "a tar archive": lambda: b"storages\0" + bytes(1024),
    "numbers as names": lambda: saved({0: torch.ones(1)}),
    "a number among the weights": lambda: saved({"a": torch.ones(1), "b": 3}),
    "complex numbers": lambda: saved({"a": torch.ones(1, dtype=torch.complex64)}),
    "a sparse tensor": lambda: saved({"a": torch.eye(2).to_sparse()}),
    "a meta tensor": lambda: saved({"a": torch.ones(2, device="meta")}),
}  # fmt: skip
SAFE: dict[str, Callable[[], bytes]] = {
    "a header longer than the file": lambda: struct.pack("<Q", 2**62) + b"{}",
    "no header": lambda: b"\x01",
    "a list for a header": lambda: tensors([]),
    "a header of nonsense": lambda: tensors(b"\xff" * 10),
    "a deep header": lambda: tensors(b"[" * 100_000),
    "overlapping offsets": lambda: tensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "a hole between tensors": lambda: tensors({"a": entry(0, 8), "b": entry(12, 20)}, bytes(20)),
    "offsets behind the end": lambda: tensors({"a": entry(0, 800, [200])}, bytes(8)),
    "offsets that go back": lambda: tensors({"a": entry(8, 0)}, bytes(8)),
    "a negative shape": lambda: tensors({"a": entry(shape=[-2])}, bytes(8)),
    "a gigantic shape": lambda: tensors({"a": entry(shape=[2**62, 2**62])}, bytes(8)),
    "a shape for other bytes": lambda: tensors({"a": entry(shape=[3])}, bytes(8)),
    "an unknown type": lambda: tensors({"a": entry(dtype="PYOBJECT")}, bytes(8)),
    "a name twice": lambda: tensors(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)
    ),
    "bytes left over": lambda: tensors({"a": entry()}, bytes(99)),
    "cut short": lambda: tensors({"a": entry()}, bytes(4)),
    "a pickle": lambda: pickle.dumps(Runs(os.system, f"touch {MARK}")),
}  # fmt: skip


def refused(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    MARK.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.monotonic()
    with pytest.raises(ValueError, match="holds more than tensors, or is damaged") as caught:
        read_checkpoint(path)
    assert len(str(caught.value)) < 600 + len(str(path))
    assert "\n" not in str(caught.value)
    assert not MARK.exists()
    assert time.monotonic() - begin < 30
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 6 * len(data) / 1024 + 200_000  # kilobytes


@pytest.mark.parametrize("what", PT)
def test_a_hostile_checkpoint_is_refused(what: str, tmp_path: Path) -> None:
    data = PT[what]()
    assert data not in (GOOD, OLD), "the harm was not done"
    refused(data, tmp_path / "net.pth")


@pytest.mark.parametrize("what", SAFE)
def test_a_hostile_safetensors_file_is_refused(what: str, tmp_path: Path) -> None:
    refused(SAFE[what](), tmp_path / "net.safetensors")


def test_an_entry_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = repacked(more={"archive/version": b"3\n"})
    refused(data, tmp_path / "net.pth")


def test_too_large_a_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with path.open("wb") as file:
        file.truncate(2**33 + 1)  # a hole: it takes no space
    with pytest.raises(ValueError, match="too large for weights"):
        read_checkpoint(path)


def test_a_device_is_no_file() -> None:
    with pytest.raises(FileNotFoundError):
        read_checkpoint(Path("/dev/zero"))


# What means no harm ---------------------------------------------------------------------------

KINDS = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8,
    torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip


def benign() -> dict[str, object]:
    with seeded("benign"):
        network = torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.PReLU(2)
        )
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.rand(p.shape, generator=rng))
    adam = torch.optim.Adam(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()  # type: ignore[union-attr]
    adam.step()
    tied = torch.rand(3, 4, generator=rng)
    return {
        "plain": network.state_dict(),
        "parameters": dict(network.named_parameters()),
        "with an optimiser": {
            "epoch": 3, "optimizer": adam.state_dict(), "state_dict": network.state_dict(),
        },
        "views and ties": {"a": tied, "b": tied, "c": tied.t(), "d": tied[1:, ::2]},
        "kinds": {str(k): torch.ones(2, 3).to(k) for k in KINDS},
        "small": {"none": torch.zeros(0, 3), "one": torch.tensor(2.5)},
    }  # fmt: skip


@pytest.mark.parametrize("new", [True, False], ids=["zip", "older form"])
@pytest.mark.parametrize("what", benign())
def test_what_torch_saves_is_read_bit_for_bit(what: str, new: bool, tmp_path: Path) -> None:
    content: Any = benign()[what]
    path = tmp_path / "net.tar"
    path.write_bytes(saved(content, _use_new_zipfile_serialization=new))
    want = content.get("state_dict", content)
    found = read_checkpoint(path)
    assert list(found) == list(want)
    for name, tensor in want.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())


def test_places_are_matched_by_order_kind_and_shape() -> None:
    own = {"x.weight": torch.zeros(2), "x.bias": torch.zeros(1), "x.num_batches_tracked": STATE}
    given = {"conv.weight": torch.ones(2), "conv.bias": torch.ones(1)}
    assert list(same_places(given, own)) == ["x.weight", "x.bias"]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are 1 weights, not 2"):
        same_places({"conv.weight": torch.ones(2)}, own)  # type: ignore[arg-type]
    swapped = dict(reversed(given.items()))
    with pytest.raises(ValueError, match=r"conv\.bias \(1,\) is where x\.weight \(2,\)"):
        same_places(swapped, own)  # type: ignore[arg-type]
    alike = {"x.weight": torch.zeros(2), "x.bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"conv\.bias \(2,\) is where x\.weight \(2,\)"):
        same_places({"conv.bias": torch.ones(2), "conv.weight": torch.ones(2)}, alike)
    with pytest.raises(ValueError, match=r"conv\.weight \(3,\) is where x\.weight \(2,\)"):
        same_places(given | {"conv.weight": torch.ones(3)}, own)  # type: ignore[arg-type]
