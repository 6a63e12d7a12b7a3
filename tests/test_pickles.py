"""Network pickles: look-alikes of NVIDIA's are read exactly, hostile ones refused, never run."""

import json
import os
import pickle
import pickletools
import re
import struct
import sys
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mibench.cli import main
from mibench.networks.foreign import pickles
from mibench.networks.foreign.pickles import generator_arguments, read_network
from mibench.networks.foreign.weights import Weights, read_weights

# Look-alikes: what NVIDIA's networks look like when pickled, under NVIDIA's names.


def _reconstruct_persistent_obj(meta: object) -> object:
    raise AssertionError("a network was rebuilt")


class EasyDict(dict[str, Any]):
    pass


STAND_INS: dict[str, Any] = {
    "torch_utils.persistence": _reconstruct_persistent_obj,
    "dnnlib.util": EasyDict,
}


@contextmanager
def disguised() -> Iterator[None]:
    """Puts the stand-ins where NVIDIA's code would be, while something is pickled."""
    with pytest.MonkeyPatch.context() as patch:
        for name, thing in STAND_INS.items():
            patch.setitem(sys.modules, name.split(".")[0], ModuleType("a package"))
            patch.setitem(sys.modules, name, ModuleType(name))
            patch.setattr(sys.modules[name], thing.__name__, thing, raising=False)
            patch.setattr(thing, "__module__", name)
        yield


SOURCE = "raise AssertionError('the source in a network pickle was run')\n" * 50


class Persistent(nn.Module):
    """Pickles itself as NVIDIA's decorator makes it do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self._init_args = args
        self._init_kwargs = EasyDict(kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        state = dict(self.__dict__)
        for part in ("_parameters", "_buffers", "_modules"):
            state[part] = OrderedDict(state[part])
        meta = EasyDict(
            type="class", version=6, module_src=SOURCE, class_name=type(self).__name__, state=state
        )
        return _reconstruct_persistent_obj, (meta,)


class Layer(Persistent):
    def __init__(self, rng: torch.Generator, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight = nn.Parameter(torch.randn(3, 4, generator=rng))
        self.bias = nn.Parameter(torch.randn(3, generator=rng).half(), requires_grad=False)
        self.nothing = None
        self.register_parameter("absent", None)
        self.register_buffer("empty_buffer", None)
        self.register_buffer("noise_const", torch.randn(4, 5, generator=rng).t())
        self.register_buffer("noise_strength", torch.randn([], generator=rng))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.weight_gain = 1 / np.sqrt(512)
        self.dtypes = (torch.float32, torch.Size([2]), torch.device("cpu"), {"a", "b"})


class Generator(Persistent):
    SIZES: ClassVar[dict[str, Any]] = {
        "z_dim": 16,
        "w_dim": 8,
        "img_resolution": 32,
        "img_channels": 3,
        "c_dim": 0,
        "mapping_kwargs": EasyDict(num_layers=2, inner=EasyDict(deep=1)),
        "synthesis_kwargs": EasyDict(channel_base=1024, channel_max=32, conv_clamp=256),
    }

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__(**self.SIZES)
        self.b4 = Layer(rng, activation="lrelu")
        self.b8 = Layer(rng, activation="linear")
        self.b8.weight = self.b4.weight
        base = torch.arange(24, dtype=torch.int64)
        self.register_buffer("first", base[2:14].view(3, 4))
        self.register_buffer("second", base.view(4, 6)[:, ::2])
        self.register_buffer("none", torch.zeros(0, 5))
        self.register_buffer("bytes", torch.arange(7, dtype=torch.uint8))
        self.register_buffer("wide", torch.randn(2, 1, 3, generator=rng).double())
        self.register_buffer("short", torch.arange(-2, 2, dtype=torch.int32))
        self.b4.skip = Layer(rng)


def snapshot(protocol: int = 4, **changes: object) -> bytes:
    rng = torch.Generator().manual_seed(0)
    content = {
        "training_set_kwargs": EasyDict(path="faces.zip", max_size=np.int64(7), xflip=False),
        "G": Generator(rng),
        "D": Layer(rng, img_resolution=32),
        "G_ema": Generator(torch.Generator().manual_seed(1)),
        "augment_pipe": None,
    }
    with disguised():
        return pickle.dumps(content | changes, protocol=protocol)


def saved(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "network.pkl"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_network_is_read_bit_for_bit_under_torchs_own_names(
    tmp_path: Path, protocol: int
) -> None:
    state, given = read_network(saved(tmp_path, snapshot(protocol)))
    want = Generator(torch.Generator().manual_seed(1)).state_dict()
    assert list(state) == list(want)
    assert {"b4.noise_const", "b4.skip.weight", "b8.weight"} < set(state)
    for name, tensor in want.items():
        assert state[name].dtype == tensor.dtype, name
        assert state[name].shape == tensor.shape, name
        assert torch.equal(state[name], tensor), name
        assert state[name].is_contiguous(), name
        assert not state[name].requires_grad, name
    assert given["mapping_kwargs"] == {"num_layers": 2}
    assert given["synthesis_kwargs"] == Generator.SIZES["synthesis_kwargs"]
    assert {given[k] for k in ("z_dim", "w_dim", "img_resolution", "c_dim")} == {16, 8, 32, 0}


def test_each_of_the_three_networks_can_be_had(tmp_path: Path) -> None:
    path = saved(tmp_path, snapshot())
    averaged, raw, critic = (read_network(path, which)[0] for which in ("G_ema", "G", "D"))
    assert not torch.equal(averaged["b4.weight"], raw["b4.weight"])
    assert torch.equal(raw["b4.weight"], Generator(torch.Generator().manual_seed(0)).b4.weight)
    assert list(critic) == ["weight", "bias", "noise_const", "noise_strength"]
    assert read_network(path, "D")[1] == {"img_resolution": 32}


def test_numpys_older_module_names_are_read_too(tmp_path: Path) -> None:
    data = snapshot(2)
    assert data.count(b"cnumpy._core.multiarray\n")
    old = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert "b4.weight" in read_network(saved(tmp_path, old))[0]


def test_what_a_network_holds_beside_weights_does_not_hinder(tmp_path: Path) -> None:
    layer = Layer(torch.Generator().manual_seed(0), short="x" * 256, long="x" * 257, many=[1])
    layer.__dict__ |= {"table": np.arange(6).reshape(2, 3), "own": torch.ones(3)}
    state, given = read_network(saved(tmp_path, snapshot(G_ema=layer)))
    assert list(state) == list(layer.state_dict())
    assert given == {"short": "x" * 256}


def test_tensors_do_not_share_memory(tmp_path: Path) -> None:
    state, _ = read_network(saved(tmp_path, snapshot()))
    assert torch.equal(state["b4.weight"], state["b8.weight"])
    state["b4.weight"].zero_()
    assert state["b8.weight"].any()


def test_a_network_made_with_positional_arguments_is_refused(tmp_path: Path) -> None:
    layer = Layer(torch.Generator().manual_seed(0))
    layer._init_args = (512,)
    with pytest.raises(ValueError, match="keyword arguments alone"):
        read_network(saved(tmp_path, snapshot(G_ema=layer)))


def test_a_missing_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no network D"):
        read_network(saved(tmp_path, snapshot(D=None)), "D")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_network(tmp_path / "elsewhere.pkl")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_network(tmp_path)


def test_a_generators_arguments_are_completed_with_nvidias_defaults() -> None:
    given: dict[str, Any] = {"z_dim": 4, "w_dim": 3, "img_resolution": 8, "img_channels": 1}
    assert generator_arguments({**given, "c_dim": 0}) == {
        **given,
        "mapping_kwargs": {"num_layers": 8},
        "synthesis_kwargs": {"channel_base": 32768, "channel_max": 512, "conv_clamp": None},
    }
    stated = {"synthesis_kwargs": {"conv_clamp": 0.5, "channel_max": 2, "num_fp16_res": 4}}
    assert generator_arguments(given | stated)["synthesis_kwargs"] == {
        "channel_base": 32768, "channel_max": 2, "conv_clamp": 0.5,
    }  # fmt: skip
    for key, value in (("z_dim", None), ("w_dim", True), ("img_channels", 0), ("z_dim", 2.0)):
        with pytest.raises(ValueError, match=f"{key} is no positive number"):
            generator_arguments(given | {key: value})
    for wrong in (float("nan"), float("inf"), -1, "1"):
        with pytest.raises(ValueError, match="conv_clamp is no positive number"):
            generator_arguments(given | {"synthesis_kwargs": {"conv_clamp": wrong}})


# The command.


def bring(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["import", "stylegan", *map(str, arguments)])


def test_the_command_writes_weights_that_the_loader_takes(tmp_path: Path) -> None:
    path = saved(tmp_path, snapshot())
    done = bring(path, "--as", "faces", "--data", tmp_path / "data")
    assert done.exit_code == 0, done.output
    digest = done.stdout.split("sha256 ")[1].strip()
    state = read_weights(Weights("faces.safetensors", digest), tmp_path / "data")
    want = Generator(torch.Generator().manual_seed(1)).state_dict()
    assert set(state) == set(want)
    assert all(torch.equal(state[k], v) for k, v in want.items())
    sizes = json.loads((tmp_path / "data" / "weights" / "faces.json").read_text())
    assert sizes == generator_arguments(read_network(path)[1])
    assert sorted(p.name for p in (tmp_path / "data" / "weights").iterdir()) == [
        "faces.json", "faces.safetensors",
    ]  # fmt: skip
    assert bring(path, "--as", "faces", "--data", tmp_path / "data").stdout == done.stdout


def test_the_command_overwrites_nothing(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "faces.safetensors").write_bytes(b"mine")
    done = bring(saved(tmp_path, snapshot()), "--as", "faces", "--data", tmp_path)
    assert done.exit_code == 2
    assert "choose another name" in done.stderr
    assert (weights / "faces.safetensors").read_bytes() == b"mine"
    assert not (weights / "faces.json").exists()


@pytest.mark.parametrize(
    ("content", "name", "why"),
    [
        (b"", "faces", "is no network pickle"),
        (b"\x80\x04cos\nsystem\n.", "faces", "it names 'os system'"),
        (None, "faces", "there is no file"),
        (snapshot(), "../faces", "a name, without folders"),
        (snapshot(G_ema=Layer(torch.Generator())), "faces", "z_dim is no positive number"),
    ],
)
def test_the_command_refuses_in_one_sentence_and_writes_nothing(
    tmp_path: Path, content: bytes | None, name: str, why: str
) -> None:
    path = saved(tmp_path, content) if content is not None else tmp_path / "nowhere.pkl"
    done = bring(path, "--as", name, "--data", tmp_path / "data")
    assert done.exit_code == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


# Hostile files. What they call would make a file, the canary; none of them may.


class Hostile:
    """Pickles itself as the call of a function."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return pickle.LONG1 + b"\x09" + value.to_bytes(9, "little", signed=True)


def entries(**values: bytes) -> bytes:
    """Returns the instructions that push a dict."""
    return b"}(" + b"".join(text(k) + v for k, v in values.items()) + b"u"


def call(name: str, *arguments: bytes) -> bytes:
    """Returns the instructions that name a function and call it."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


def wide(home: str, name: str) -> bytes:
    """Returns protocol 4's way of naming, dots allowed."""
    return text(home) + text(name) + pickle.STACK_GLOBAL


def module(parameters: bytes = b"}", buffers: bytes = b"}", modules: bytes = b"}") -> bytes:
    state = entries(_init_kwargs=b"}", _parameters=parameters, _buffers=buffers, _modules=modules)
    return call(pickles.NETWORK, entries(type=text("class"), state=state))


def file_of(network: bytes) -> bytes:
    return b"\x80\x04" + entries(G_ema=network) + b"."


def torchs_bytes(values: Tensor) -> bytes:
    """Returns what torch writes for a tensor's storage inside a pickle."""
    steps = pickletools.genops(pickle.dumps(values, 4))
    return next(argument for _, argument, _ in steps if isinstance(argument, bytes))


def storage(data: bytes) -> bytes:
    return call(pickles.STORAGE, pickle.BINBYTES + struct.pack("<I", len(data)) + data)


FOUR = torchs_bytes(torch.arange(4.0))
MAGIC = FOUR[: FOUR.index(b".", FOUR.index(b".") + 1) + 1]


def tensor(
    source: bytes, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0
) -> bytes:
    sizes, strides = (b"(" + b"".join(map(number, n)) + b"t" for n in (size, stride))
    return call(pickles.TENSOR, source, number(offset), sizes, strides, b"\x89}")


def weights(*parts: Any) -> bytes:
    """Returns a file with one tensor, of a storage, sizes, strides and perhaps an offset."""
    return file_of(module(entries(w=tensor(*parts))))


def test_the_hand_written_file_is_a_network_where_nothing_is_wrong_with_it(
    tmp_path: Path,
) -> None:
    state, given = read_network(saved(tmp_path, weights(storage(FOUR), (2, 2), (1, 2))))
    assert given == {}
    assert torch.equal(state["w"], torch.tensor([[0.0, 2.0], [1.0, 3.0]]))


def test_the_canary_sings_where_such_a_file_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(os.system, f"touch {tmp_path / 'canary'}")))
    assert (tmp_path / "canary").exists()


def calls(touch: str) -> dict[str, tuple[bytes, str]]:
    """Returns files that call what they should not, and what is said of them."""
    shell = text(touch)
    code = text(f"__import__('os').system({touch!r})")
    inner = pickle.dumps(Hostile(os.system, touch), protocol=2)
    files = {
        "a function of protocol 2": (inner, "it names '[a-z]+ system'"),
        "a function of protocol 5": (
            pickle.dumps(Hostile(os.system, touch), 5), "it names '[a-z]+ system'",
        ),
        "a function of protocol 0": (b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR.", "names"),
        "a network that is a call": (file_of(call("os system", shell)), "names 'os system'"),
        "a dotted name": (
            file_of(wide("torch.serialization", "os.system") + shell + b"\x85R"),
            "names 'torch.serialization os.system'",
        ),
        "a dotted name that begins with a permitted one": (
            file_of(wide("torch.storage", "_load_from_bytes.__globals__") + b")R"), "it names",
        ),
        "a dotted name whose whole is a permitted one": (
            file_of(wide("torch", "storage._load_from_bytes") + b")R"), "it names",
        ),
        "a name that is no text": (file_of(b")" + text("set") + b"\x93"), "no short text"),
        "the constructor of an old instance": (
            b"\x80\x04(" + shell + b"ios\nsystem\n.", "instruction INST ",
        ),
        "an object": (b"\x80\x04(cos\nsystem\n" + shell + b"o.", "names 'os system'"),
        "an object of a permitted name": (
            b"\x80\x04(ccollections\nOrderedDict\no.", "instruction OBJ ",
        ),
        "keyword arguments": (
            b"\x80\x04ccollections\nOrderedDict\n)}\x92.", "instruction NEWOBJ_EX ",
        ),
        "an extension": (b"\x80\x04\x82\x01.", "instruction EXT1 "),
        "an extension of two bytes": (b"\x80\x04\x83\x01\x00.", "instruction EXT2 "),
        "an extension of four bytes": (b"\x80\x04\x84\x01\x00\x00\x00.", "instruction EXT4 "),
        "a persistent identity": (b"\x80\x04" + shell + b"Q.", "instruction BINPERSID "),
        "a persistent line": (b"\x80\x04P" + touch.encode() + b"\n.", "instruction PERSID "),
        "the pseudo-name of persistent identities": (
            weights(storage(MAGIC + b"}.cpersistent\nid\n." + b"]."), (1,), (1,)), "it names",
        ),
        "a storage that is a hostile pickle": (weights(storage(inner), (1,), (1,)), "it names"),
        "a storage with a hostile third pickle": (
            weights(storage(MAGIC + inner + FOUR), (1,), (1,)), "it names",
        ),
        "a storage in text with a hostile pickle": (
            weights(
                call(pickles.STORAGE, call(
                    pickles.ENCODE, text(inner.decode("latin1")), text("latin1")
                )), (1,), (1,),
            ), "it names",
        ),
        "a storage that names what only the outside may": (
            weights(storage(MAGIC + b"ccollections\nOrderedDict\n)R.\x80\x02N.]."), (1,), (1,)),
            "it names 'collections OrderedDict'",
        ),
        "a storage in another encoding": (
            weights(
                call(pickles.STORAGE, call(pickles.ENCODE, shell, text("rot13"))), (1,), (1,)
            ), "should be a storage",
        ),
        "a function as a storage": (
            weights(b"cnumpy\nndarray\n", (1,), (1,)), "should be a storage",
        ),
        "a call as a storage": (
            weights(call(pickles.TENSOR, shell), (1,), (1,)), "should be a storage",
        ),
        "a function as a tensor": (
            file_of(module(entries(w=b"cnumpy\nndarray\n"))), "should be a tensor",
        ),
        "a parameter that is no tensor": (
            file_of(module(entries(w=call(pickles.PARAMETER, shell, b"\x88}")))), "be a tensor",
        ),
        "a function as a network's description": (
            file_of(call(pickles.NETWORK, b"cnumpy\nndarray\n")), "should be a module",
        ),
        "a network that is no class": (
            file_of(call(pickles.NETWORK, entries(type=text("function"), state=b"}"))),
            "should be a module",
        ),
        "another call as a network": (
            file_of(call(pickles.STORAGE, entries(type=text("class"), state=b"}"))), "be a module",
        ),
        "a call as a module": (
            file_of(module(modules=entries(a=call("torch device", shell)))), "should be a module",
        ),
        "the call of a value": (file_of(call("numpy ndarray", shell)), "not to be called"),
        "the call of a text": (file_of(shell + b")R"), "not to be called"),
        "the call of a call": (file_of(call("torch Size", b")") + b")R"), "not to be called"),
        "a call with a list": (file_of(b"ctorch\nSize\n]R"), "not to be called"),
        "a mapping made of pairs": (
            file_of(call("collections OrderedDict", b"]")), "not to be called",
        ),
        "a set of something else": (file_of(call("builtins set", shell)), "not to be called"),
        "a new object of a value": (file_of(b"cnumpy\nndarray\n)\x81"), "not to be called"),
        "the state of a name": (
            file_of(b"ccollections\nOrderedDict\nN" + entries(__reduce__=shell) + b"\x86b"),
            "sets the state",
        ),
        "the state of a mapping": (
            file_of(call("dnnlib.util EasyDict") + entries(__class__=shell) + b"b"),
            "sets the state",
        ),
        "the state of a network": (
            file_of(module() + entries(__setstate__=shell) + b"b"), "sets the state",
        ),
        "the state of a list": (file_of(b"]" + entries(__dict__=shell) + b"b"), "sets the state"),
        "items of a name": (
            file_of(b"ccollections\nOrderedDict\n" + shell + shell + b"s"), "sets items",
        ),
        "an item of a name": (file_of(b"ccollections\nOrderedDict\nNa"), "appends"),
        "items of a call": (file_of(call("torch Size", b")") + b"(Ne"), "appends"),
    }  # fmt: skip
    refused = (
        "builtins getattr", "builtins eval", "__builtin__ apply", "functools partial",
        "copyreg _reconstructor", "copy_reg _reconstructor", "operator attrgetter",
        "numpy.testing._private.utils runstring", "torch load", "torch.jit load",
        "torch.storage os", "torch_utils.persistence persistent_class", "dnnlib.util open_url",
        "numpy.core.multiarray fromfile", "_codecs decode", "torch._utils _rebuild_tensor",
    )  # fmt: skip
    return files | {
        name: (file_of(call(name, code)), re.escape(f"it names {name!r}")) for name in refused
    }


@pytest.mark.parametrize(
    "name", [pickles.TENSOR, pickles.PARAMETER, pickles.STORAGE, pickles.ENCODE]
)
def test_another_call_with_the_right_arguments_is_none_of_a_tensors(
    tmp_path: Path, name: str
) -> None:
    coded = call(pickles.ENCODE, text(FOUR.decode("latin1")), text("latin1"))
    for source in (storage(FOUR), call(pickles.STORAGE, coded)):
        parameter = call(pickles.PARAMETER, tensor(source, (4,), (1,)), pickle.NEWTRUE, b"}")
        data = file_of(module(entries(w=parameter)))
        assert torch.equal(read_network(saved(tmp_path, data))[0]["w"], torch.arange(4.0))
        other = data.replace(name.replace(" ", "\n").encode(), b"torch\nSize")
        if other != data:
            with pytest.raises(ValueError, match=r"what should be a (tensor|storage) is none"):
                read_network(saved(tmp_path, other))


@pytest.mark.parametrize("what", calls(""))
def test_a_file_that_calls_something_is_refused_and_calls_nothing(
    tmp_path: Path, what: str
) -> None:
    canary = tmp_path / "canary"
    data, why = calls(f"touch {canary}")[what]
    with pytest.raises(ValueError, match=why) as refused:
        read_network(saved(tmp_path, data))
    assert "nothing in it was run" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    assert not canary.exists()


def nest(levels: int) -> bytes:
    """Returns modules in modules; each holds the one below twice, but is pickled once."""
    inner = module()
    for level in range(levels):
        put, get = (code + bytes([level]) for code in (pickle.BINPUT, pickle.BINGET))
        inner = module(modules=entries(a=inner + put, b=get))
    return inner


HUGE = struct.pack("<Q", 2**62)
INSIDE_ITSELF = (
    b"\x80\x04}(" + text("other") + b"}q\x00" + text("a") + module(modules=b"h\x00") + b"q\x01s"
    + text("G_ema") + b"h\x01u."
)  # fmt: skip
DEEP = b"c" + pickles.PARAMETER.replace(" ", "\n").encode() + b"\n("
NAMED = entries(w=tensor(storage(FOUR), (4,), (1,)))
MALFORMED = {
    "nothing": (b"", "exhausted"),
    "text": (b"a text about faces\n", "is no network pickle"),
    "half of a pickle": (snapshot()[:2000], "is no network pickle"),
    "a pickle of protocol 6": (b"\x80\x06}.", "instruction PROTO "),
    "a frame past the end": (b"\x80\x04\x95" + HUGE + b"}.", "instruction FRAME "),
    "huge bytes": (b"\x80\x04\x8e" + HUGE + b"}.", "expected"),
    "a huge text": (b"\x80\x04\x8d" + HUGE + b"}.", "expected"),
    "huge bytes to write to": (b"\x80\x05\x96" + HUGE + b"}.", "expected"),
    "a huge number": (b"\x80\x04\x8b\xff\xff\xff\x7f.", "not enough data"),
    "a long number": (b"\x80\x04\x8b\x01\x00\x00\x00\x01.", "instruction LONG4 "),
    "a line without end": (b"\x80\x04S" + b"x" * 5000 + b"\n.", "no string quotes"),
    "an odd escape": (b"\x80\x04cos\\l\nsystem\n.", "it names"),
    "digits without end": (b"\x80\x04L" + b"9" * 5000 + b"L\n.", "4300 digits"),
    "a place that was not filled": (b"\x80\x04h\x05.", "is damaged"),
    "too little to take": (b"\x80\x04N\x87.", "is damaged"),
    "no mark": (b"\x80\x04t.", "is damaged"),
    "half an item": (b"\x80\x04}(Nu.", "sets items"),
    "a key that is no text": (b"\x80\x04}))s.", "no short text"),
    "a deep nest as a key": (b"\x80\x04})" + b"\x85" * 9999 + b"Ns.", "no short text"),
    "a long key": (b"\x80\x04}" + text("x" * 257) + b"Ns.", "no short text"),
    "a list": (b"\x80\x04].", "no network G_ema"),
    "a deep nest of parameters": (
        file_of(module(entries(w=DEEP * 3000 + b"N" + b"\x88}tR" * 3000))), "should be a tensor",
    ),
    "a module inside itself": (INSIDE_ITSELF, "impossible name"),
    "a name with a dot": (file_of(module(modules=b"}" + text("a.b") + module() + b"s")),
                          "impossible name"),
    "the name that a weights file keeps for itself": (
        file_of(module(entries(__metadata__=tensor(storage(FOUR), (4,), (1,))))),
        "impossible name",
    ),
    "a name with an accent": (file_of(module(buffers=NAMED.replace(text("w"), text("wé")))),
                              "impossible name"),
    "a name with a line break": (file_of(module(buffers=NAMED.replace(text("w"), text("w\n")))),
                                 "impossible name"),
    "parameters that are a list": (file_of(module(b"]")), "no mapping"),
    "modules that are missing": (file_of(module(modules=b"N")), "no mapping"),
    "more elements than stored": (weights(storage(FOUR), (5,), (1,)), "larger than its storage"),
    "strides past the end": (weights(storage(FOUR), (2, 2), (3, 1)), "larger than its storage"),
    "an offset past the end": (weights(storage(FOUR), (), (), 4), "larger than its storage"),
    "a negative offset": (weights(storage(FOUR), (1,), (1,), -1), "no count"),
    "a negative size": (weights(storage(FOUR), (-1,), (1,)), "no count"),
    "a truth as a size": (
        weights(storage(FOUR), (1,), (1,)).replace(number(1), pickle.NEWTRUE), "no count"
    ),
    "a negative stride": (weights(storage(FOUR), (2,), (-1,), 1), "no count"),
    "a size that wraps around": (weights(storage(FOUR), (2**64, 1), (0, 0)), "no count"),
    "one number many times": (weights(storage(FOUR), (2**39,), (0,)), "larger than the file"),
    "one number a few times too often": (weights(storage(FOUR), (999,), (0,)), "than the file"),
    "a huge tensor of nothing": (weights(storage(FOUR), (0, 2**39, 2**39), (0, 0, 0)),
                                 "empty tensor is too large"),
    "more sizes than strides": (weights(storage(FOUR), (2, 2), (1,)), "other sizes than strides"),
    "nine dimensions": (weights(storage(FOUR), (1,) * 9, (1,) * 9), "or too many"),
    "a storage without its end": (weights(storage(FOUR[:-1]), (1,), (1,)), "than it says"),
    "a storage and more": (weights(storage(FOUR + b"."), (1,), (1,)), "than it says"),
    "a storage with another count": (
        weights(storage(FOUR[:-24] + struct.pack("<q", 5) + FOUR[-16:]), (1,), (1,)),
        "than it says",
    ),
    "a storage of truths": (
        weights(storage(torchs_bytes(torch.tensor([True]))), (1,), (1,)), "names 'torch Bool",
    ),
    "a storage under another key": (
        weights(storage(re.sub(
            rb"(?s)(\]q\x00X.{4})\d", rb"\1x", FOUR)), (1,), (1,)), "not what torch writes",
    ),
    "a storage of another format": (
        weights(storage(FOUR.replace(b"M\xe9\x03.", b"M\xea\x03.")), (1,), (1,)),
        "not what torch writes",
    ),
    "a storage that goes on and on": (
        weights(storage(b"\x80\x02" + b"]" * 200 + b"."), (1,), (1,)),
        "more than 100 instructions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_file_is_refused_in_one_sentence(tmp_path: Path, what: str) -> None:
    data, why = MALFORMED[what]
    path = saved(tmp_path, data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=why) as refused:
            read_network(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    assert peak < 30e6


def test_a_file_that_is_too_large_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = snapshot()
    path = saved(tmp_path, data)
    monkeypatch.setattr(pickles, "LARGEST", len(data))
    read_network(path)
    monkeypatch.setattr(pickles, "LARGEST", len(data) - 1)
    with pytest.raises(ValueError, match="too large for a network"):
        read_network(path)


def test_a_program_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, b"\x80\x04" + b"]" * 997 + b"}.")
    monkeypatch.setattr(pickles, "INSTRUCTIONS", 1000)
    with pytest.raises(ValueError, match="no network G_ema"):
        read_network(path)
    monkeypatch.setattr(pickles, "INSTRUCTIONS", 999)
    with pytest.raises(ValueError, match="more than 999 instructions"):
        read_network(path)


def test_modules_that_stand_in_too_many_places_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "ENTRIES", 2**6 - 2)
    assert read_network(saved(tmp_path, file_of(nest(5)))) == ({}, {})
    for levels in (6, 40):
        with pytest.raises(ValueError, match="more than 62 entries"):
            read_network(saved(tmp_path, file_of(nest(levels))))


def test_names_of_passing_buffers_count_each_time_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = b"](" + b"".join(text(f"n{i}") for i in range(500)) + b"e"
    rest = {"_init_kwargs": b"}", "_parameters": b"}", "_buffers": b"}"}

    def one(modules: bytes, names: bytes) -> bytes:
        state = entries(**rest, _modules=modules, _non_persistent_buffers_set=names)
        return call(pickles.NETWORK, entries(type=text("class"), state=state))

    inner = one(b"}", names + b"q\x00")
    path = saved(tmp_path, file_of(one(entries(a=inner), b"h\x00")))
    monkeypatch.setattr(pickles, "ENTRIES", 1001)
    assert read_network(path) == ({}, {})
    monkeypatch.setattr(pickles, "ENTRIES", 1000)
    with pytest.raises(ValueError, match="more than 1000 entries"):
        read_network(path)


def test_reading_makes_no_more_bytes_than_twice_the_files(tmp_path: Path) -> None:
    size = len(weights(storage(FOUR), (1,), (0,)))
    most = (2 * size - len(FOUR)) // 4
    state, _ = read_network(saved(tmp_path, weights(storage(FOUR), (most,), (0,))))
    assert len(state["w"]) == most
    with pytest.raises(ValueError, match="larger than the file"):
        read_network(saved(tmp_path, weights(storage(FOUR), (most + 1,), (0,))))


def test_a_storage_is_read_once_and_bytes_that_many_share_are_refused(tmp_path: Path) -> None:
    data = torchs_bytes(torch.zeros(5000))
    blob = pickle.BINBYTES + struct.pack("<I", len(data)) + data + b"q\x00"
    first = tensor(call(pickles.STORAGE, blob) + b"q\x01", (1,), (1,))
    shared = {f"w{i}": tensor(b"h\x01", (1,), (1,)) for i in range(9)}
    state, _ = read_network(saved(tmp_path, file_of(module(entries(first=first, **shared)))))
    assert len(state) == 10
    again = {f"w{i}": tensor(call(pickles.STORAGE, b"h\x00"), (1,), (1,)) for i in range(9)}
    with pytest.raises(ValueError, match="larger than the file"):
        read_network(saved(tmp_path, file_of(module(entries(first=first, **again)))))


SMALL = {p: snapshot(p, G=None, D=None, G_ema=Layer(torch.Generator())) for p in (2, 4)}
TOKENS = st.one_of(
    st.sampled_from([o.code.encode("latin1") for o in pickletools.opcodes]),
    st.sampled_from([b"torch.storage\n_load_from_bytes\n", b"os\nsystem\n", text("G_ema"), b"}("]),
    st.binary(max_size=3),
)


def survives(path: Path) -> None:
    with suppress(ValueError):
        read_network(path)


@settings(
    max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    protocol=st.sampled_from(sorted(SMALL)),
    changes=st.lists(
        st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=4)), max_size=4
    ),
    cut=st.integers(0, 40),
)
def test_a_file_with_changed_bytes_is_read_or_refused(
    tmp_path: Path, protocol: int, changes: list[tuple[int, bytes]], cut: int
) -> None:
    data = bytearray(SMALL[protocol])
    for place, new in changes:
        at = place % len(data)
        data[at : at + len(new)] = new
    survives(saved(tmp_path, bytes(data[: len(data) - cut])))


@settings(
    max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(program=st.lists(TOKENS, max_size=30))
def test_any_program_is_read_or_refused(tmp_path: Path, program: list[bytes]) -> None:
    survives(saved(tmp_path, b"\x80\x04" + b"".join(program) + b"."))
