"""A network that its owner hands over as a module: one of torchvision's, or any other."""

import copy
import hashlib
import inspect
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, is_dataclass
from functools import partial
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mibench.networks.foreign.weights import load_exactly
from mibench.roles import NetworkSpec
from mibench.seeding import generator, seeded
from mibench.sources import source_digest
from mibench.spec import field_values, require, unknown
from mibench.types import Classifier, Images, Logits, Shape

Numbers = tuple[float, ...]
NORMALISATIONS: dict[str, tuple[Numbers, Numbers]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    "none": ((0.0,), (1.0,)),
    "bytes": ((0.0,), (1 / 255,)),
}
"""Name → mean and standard deviation of images in [0, 1], one number for all channels or one for
each; "half" gives [-1, 1] and "bytes" 0 to 255."""
MODULES: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
"""Digest → module, of those handed over in this process, as long as a spec of one lives."""


@dataclass(frozen=True)
class Given(NetworkSpec):
    """A trained network that :func:`give` was handed; only that process can build it.

    Attributes:
        digest: Of its weights, structure, plain attributes and source.
        mean: What is taken from images in [0, 1], one number or one for each channel.
        std: What they are divided by then.
        last: Name of the layer whose input is the last latent and whose output are the logits.
    """

    name: ClassVar[str] = "given"
    trained: ClassVar[bool] = True

    digest: str
    mean: Numbers
    std: Numbers
    last: str

    def __post_init__(self) -> None:
        require(self, mean=(-1e6, 1e6), std=(1e-6, 1e6))
        object.__setattr__(self, "_module", MODULES.get(self.digest))  # which lives with it

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the module in its process."""
        return field_values(self)

    def build(self, shape: Shape, num_classes: int) -> "GivenClassifier":
        """Returns the network with its weights.

        Raises:
            ValueError: If it has another number of outputs, or another process holds it.
        """
        if self.digest not in MODULES:
            raise ValueError(
                "this network was handed over in another process, which alone can build it: "
                "run the audit again"
            )
        network = GivenClassifier(copy.deepcopy(MODULES[self.digest]), self, shape)
        if network.num_classes != num_classes:
            raise ValueError(
                f"the network has {network.num_classes} outputs, and there are {num_classes} "
                "classes"
            )
        return network


class GivenClassifier(Classifier):
    """A module behind the normalisation of its input; its one latent is what its last layer takes.

    Args:
        module: In eval mode.
        spec: Its normalisation and last layer.
        shape: Of images.
    """

    def __init__(self, module: nn.Module, spec: Given, shape: Shape) -> None:
        super().__init__()
        self.module, self.neck, self._name = module, nn.Identity(), spec.last
        self.register_buffer("mean", torch.tensor(spec.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(-1, 1, 1))
        with torch.no_grad():
            z, logits = self._pass(_trial(shape))
        self._entry, self.num_classes = z.shape[1:], logits.shape[1]

    @property
    def last(self) -> nn.Module:  # type: ignore[override]
        """The layer that the spec names."""
        return self.module.get_submodule(self._name)

    def own_input(self, x: Images) -> Tensor:
        """Returns the images as the network was trained on them."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (x - mean) / std

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        """Returns what enters the last layer, flat."""
        return (self._pass(x)[0].flatten(1),)

    def head(self, z: Float[Tensor, "n d"], noise: Tensor | None = None) -> Logits:
        """Maps the last latent to logits."""
        logits: Tensor = self.last(z.view(len(z), *self._entry)).flatten(1)
        return logits

    def _pass(self, x: Images) -> tuple[Tensor, Tensor]:
        entered, logits = _watched(self.module, {self._name: self.last}, self.own_input(x))
        return entered[self._name], logits


def give(
    module: nn.Module, shape: Shape, mean: Numbers, std: Numbers, last: str = ""
) -> tuple[Given, int]:
    """Returns the spec of a trained network and how many classes it distinguishes.

    Args:
        module: Takes images (n, c, h, w) and returns logits (n, k); it stays as it is.
        shape: Of its images.
        mean: As of :class:`Given`.
        std: As of :class:`Given`.
        last: Name of its last layer; "" for the linear layer that is called last.

    Raises:
        ValueError: If it takes no such images, returns something else, or what it returns is not
            what its last layer returns, up to a softmax; or if another module has its digest.
    """
    for name, numbers in (("mean", mean), ("std", std)):
        if len(numbers) not in (1, shape[0]):
            raise ValueError(
                f"{name} has {len(numbers)} numbers, and images have {shape[0]} channels"
            )
    module = copy.deepcopy(module).cpu().float().eval().requires_grad_(requires_grad=False)
    named = dict(module.named_modules())
    if last and last not in named:
        raise ValueError(unknown("layer", last, filter(None, named)))
    layers = {n: m for n, m in named.items() if n == last or (not last and type(m) is nn.Linear)}
    x = (_trial(shape) - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    try:
        with torch.no_grad(), seeded("trial"):
            entered, logits = _watched(module, layers, x)
    except Exception as error:  # somebody else's module may raise anything
        text = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the network does not take images of {' x '.join(map(str, shape))} (channels x "
            f"height x width): {type(error).__name__}: {text}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the network must return logits (images, classes), for {len(x)} images it returns "
            f"{found}"
        )
    if not logits.isfinite().all():
        raise ValueError(
            "the network answers with NaN or infinity: check its weights, and mean and std"
        )
    if not entered:
        raise ValueError(
            f"{last or 'no linear layer'} is called when the network answers: name the layer "
            "whose output are the logits (`last`, or --last)"
        )
    last = list(entered)[-1]
    with torch.no_grad():
        own = named[last](entered[last]).flatten(1)
    if own.shape != logits.shape or not _same_classes(own, logits):
        raise ValueError(
            f"what the network returns is not what its layer {last} returns: name the layer whose "
            "output are the logits (`last`, or --last)"
        )
    digest = _digest(module)
    if MODULES.setdefault(digest, module) is not module:
        with torch.no_grad(), seeded("trial"):
            _, known = _watched(MODULES[digest], {}, x)
        if not torch.allclose(known, logits, rtol=1e-3, atol=1e-3):
            raise ValueError(
                "two networks of the same weights and source answer differently: what makes them "
                "differ must be a parameter, a buffer or a number, text or function that is an "
                "attribute of a layer"
            )
    return Given(digest, mean, std, last), logits.shape[1]


def torchvision_network(
    name: str, classes: int, size: int, state: Mapping[str, Tensor], what: str
) -> nn.Module:
    """Returns one of torchvision's classification networks with weights.

    Args:
        name: What ``torchvision.models`` calls it, such as "resnet18".
        classes: Of its outputs.
        size: Pixels a side of its images.
        state: Its weights.
        what: The subject of the complaint, such as "the weights in model.pt".

    Raises:
        ValueError: If there is no such network, or the weights do not fit it.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(unknown("network of torchvision", name, known))
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        helped = any(key.lower().startswith("aux") for key in state)
        options = {"aux_logits": helped, "init_weights": False}
    if name.startswith("vit_"):
        options = {"image_size": size}
    try:
        with seeded("shapes only"):
            network: nn.Module = models.get_model(
                name, weights=None, num_classes=classes, **options
            )
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(f"torchvision's {name} does not take images of {size} pixels") from error
    try:
        load_exactly(network, state, what)
    except ValueError as error:
        raise ValueError(
            f"is this a {name} of {classes} classes? Check the architecture and the number of "
            f"classes: {error}"
        ) from error
    return network


def _trial(shape: Shape) -> Tensor:
    return torch.rand(2, *shape, generator=generator("trial"))


def _watched(
    module: nn.Module, layers: Mapping[str, nn.Module], x: Tensor
) -> tuple[dict[str, Tensor], Any]:
    """Returns what entered each layer that was called, the last one last, and the answer."""
    entered: dict[str, Tensor] = {}

    def note(name: str, value: Tensor) -> None:
        entered.pop(name, None)
        entered[name] = value

    with ExitStack() as hooks:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(
                lambda _, values, name=name: note(name, values[0])
            )
            hooks.callback(handle.remove)
        return entered, module(x)


def _same_classes(own: Tensor, answer: Tensor) -> bool:
    """Whether an answer is these logits, or their softmax or its logarithm."""
    log = own.log_softmax(1)
    return any(
        torch.allclose(other, log, rtol=1e-3, atol=1e-3)
        for other in (answer.log_softmax(1), answer, answer.clamp(min=1e-30).log())
    )


def _digest(module: nn.Module) -> str:
    """Returns what names a module: its weights, structure, attributes and the source behind it."""
    digest = hashlib.sha256(repr(module).encode())
    for kind in sorted({type(m) for m in module.modules()}, key=lambda k: k.__qualname__):
        digest.update(_source(kind).encode())
    for name, own in module.named_modules():
        for key, value in sorted(vars(own).items()):
            if key not in _OF_EVERY_MODULE:
                digest.update(f"{name}.{key} {_told(value)}\n".encode())
        hooks = [*own._forward_pre_hooks.values(), *own._forward_hooks.values()]
        digest.update(_told(hooks).encode())
    for name, value in [*module.state_dict().items(), *module.named_buffers()]:  # some not in it
        digest.update(f"{name} {_told(value)}\n".encode())
    return digest.hexdigest()


_OF_EVERY_MODULE = vars(nn.Module()).keys()
"""Attributes that hold parameters, buffers, layers and hooks, or that do not last."""


def _source(code: type | Callable[..., Any]) -> str:
    """Returns the digest of a user's files behind it, or else its own source, if there is any."""
    if str(code.__module__).partition(".")[0] in ("torch", "torchvision"):
        return ""
    if found := source_digest(code):
        return found
    with suppress(OSError, TypeError):  # no file, or no Python
        return inspect.getsource(code)
    return ""


def _told(value: object, within: frozenset[int] = frozenset()) -> str:
    """Returns an attribute as text that is the same in every process; of most objects, the type.

    Args:
        value: The attribute.
        within: Of what it lies in, the ids.
    """
    if id(value) in within:
        return "itself"
    told = partial(_told, within=within | {id(value)})
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes() | torch.dtype():
            return repr(value)
        case Tensor():
            content = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            digest = hashlib.sha256(content.tobytes()).hexdigest()
            return f"{value.dtype} {tuple(value.shape)} {digest}"
        case np.ndarray() | np.generic():
            return told(value.tolist())
        case list() | tuple():
            return f"[{', '.join(map(told, value))}]"
        case set() | frozenset():
            return f"{{{', '.join(sorted(map(told, value)))}}}"
        case dict():
            return f"{{{', '.join(f'{told(k)}: {told(v)}' for k, v in value.items())}}}"
        case nn.Module():  # in a list, say, that torch does not look into
            return f"{value!r} {told(value.state_dict())}"
        case partial():
            return told([value.func, value.args, value.keywords])
        case MethodType():
            return told(value.__func__)
        case FunctionType():
            held = [cell.cell_contents for cell in value.__closure__ or ()]
            given = [value.__defaults__, value.__kwdefaults__, held]
            return f"{value.__qualname__} {_source(value)} {told(given)}"
        case SimpleNamespace() | Namespace():
            return told(vars(value))
    if is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__qualname__} {told(field_values(value))}"
    return str(getattr(value, "__qualname__", type(value).__qualname__))
