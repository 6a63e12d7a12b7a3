"""Trained weights from files: found, checked against a digest, and loaded whole or not at all."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mibench.networks.foreign.checkpoints import read_checkpoint

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".bin")
SHIPPED = Path(__file__).parents[1] / "weights"
"""What comes with the package."""
TORCHVISION = "https://download.pytorch.org/models"


@dataclass(frozen=True)
class Weights:
    """Weights from a file, ``<data>/weights/<file>`` or one of the package, pinned by its digest.

    Attributes:
        file: The file's name, one of .safetensors, .pt, .pth, .tar and .bin.
        sha256: The file's digest, or its first digits: at least 8, hexadecimal, lower case.
    """

    file: str
    sha256: str

    def __post_init__(self) -> None:
        if re.search(r"[/\\]", self.file) or not self.file.endswith(SUFFIXES):
            known = ", ".join(SUFFIXES)
            raise ValueError(
                f"Weights.file must be a name, without folders, that ends in one of {known}; "
                f"got {self.file!r}"
            )
        if not re.fullmatch(r"[0-9a-f]{8,64}", self.sha256):
            raise ValueError(
                "Weights.sha256 must be 8 to 64 hexadecimal digits in lower case, "
                f"got {self.sha256!r}"
            )


IMAGENET = {
    "vgg16_bn": Weights("vgg16_bn-6c64b313.pth", "6c64b313"),
    "vgg19_bn": Weights("vgg19_bn-c79401a0.pth", "c79401a0"),
}
"""Torchvision's official files; their names carry the digests."""


def read_weights(weights: Weights, root: Path) -> dict[str, Tensor]:
    """Returns the state dict in a file, without the wrappers that training scripts put on it.

    Nothing pickled is executed; see :func:`~mibench.networks.foreign.checkpoints.read_checkpoint`.

    Args:
        weights: Which file.
        root: The data folder.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If its digest is another one, or it holds anything but tensors.
    """
    path = root / "weights" / weights.file
    if path.is_file():
        return _read(path, weights.sha256)
    if (shipped := SHIPPED / weights.file).is_file():
        return _read(shipped, weights.sha256, path)
    raise FileNotFoundError(f"{path} is missing: put the file with sha256 {weights.sha256}… there")


def imagenet(name: Literal["vgg16_bn", "vgg19_bn"], root: Path) -> dict[str, Tensor]:
    """Returns torchvision's ImageNet weights of a network.

    They come from ``<root>/weights``, else from torch hub's cache, else from torchvision's
    server, which fills the cache.

    Raises:
        ValueError: If they cannot be had.
    """
    official = IMAGENET[name]
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    for folder in (root / "weights", cache):
        if (path := folder / official.file).is_file():
            return _read(path, official.sha256)
    url = f"{TORCHVISION}/{official.file}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(cache / official.file), hash_prefix=official.sha256, progress=False
        )
    except (OSError, HTTPException, RuntimeError) as error:
        raise ValueError(
            f"the ImageNet weights cannot be had ({error}): put {url} into {root / 'weights'}, "
            "or set setting.network.pretrained=false"
        ) from error
    return _read(cache / official.file, official.sha256)


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Loads ``state`` into ``module`` if every name and shape agrees.

    Batch normalisation's count of batches may be missing, as in files of torch before 0.4.1.

    Args:
        module: What to fill.
        state: Its weights, by name.
        what: The subject of the complaint, such as "the weights in backbone.pth".

    Raises:
        ValueError: If they do not agree; the module is left as it was.
    """
    own = module.state_dict()
    check_exactly(state, own, what, type(module).__name__)
    module.load_state_dict({**own, **state})


def check_exactly(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str, who: str
) -> None:
    """Raises ValueError unless ``state`` has the names, shapes and types of ``own``.

    A count of batches may be missing. ``what`` do not fit ``who``, says the complaint.
    """
    wrong = {
        "missing": [k for k in own if k not in state and not k.endswith("num_batches_tracked")],
        "unexpected": [k for k in state if k not in own],
        "of another shape": [
            f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ],
        "of whole numbers": [
            f"{k} {state[k].dtype}"
            for k in own
            if k in state and own[k].is_floating_point() and not state[k].is_floating_point()
        ],
    }
    if any(wrong.values()):
        lists = "; ".join(f"{kind}: {_some(names)}" for kind, names in wrong.items() if names)
        raise ValueError(f"{what} do not fit {who}: {lists}")


def _some(names: list[str]) -> str:
    """Returns the first ten names and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def _read(path: Path, sha256: str, own: Path | None = None) -> dict[str, Tensor]:
    """Reads a file; ``own`` is where another one may be put, which is ``path`` by default."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(sha256):
        where = f"at {own}" if own else "there"
        raise ValueError(
            f"{path} has sha256 {digest}, not {sha256}…: put the right file {where}, or, if this "
            f"is the one you mean, use --set setting.….weights.sha256={digest}"
        )
    return read_checkpoint(path)
