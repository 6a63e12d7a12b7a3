"""Features of Inception-v3, as pytorch-fid computes them, from a file; never from the network."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.evaluation.lenses import Lens, Tools
from mibench.networks.foreign.checkpoints import read_checkpoint
from mibench.seeding import seeded
from mibench.types import Images

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
"""Name of the file that pytorch-fid publishes."""
PUBLISHED = Path(WEIGHTS).stem.rpartition("-")[2]
"""How the sha256 of the published file begins: its name ends so, by torch hub's convention."""


def inception_file(data: Path) -> Path:
    """Returns where the weights are, or would be."""
    return data / "weights" / WEIGHTS


def inception_digest(data: Path) -> str:
    """Returns the sha256 of the weights' file; "" if it is not there.

    Raises:
        ValueError: If it is not the published file, whose digest begins as its name says.
    """
    path = inception_file(data)
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(PUBLISHED):
        raise ValueError(
            f"{path} is not what pytorch-fid publishes: its sha256 begins with "
            f"{digest[: len(PUBLISHED)]}, not {PUBLISHED}; fetch it again or take it away"
        )
    return digest


def inception_features(
    x: Images, path: Path, digest: str, device: torch.device, batch: int = 50
) -> Float[Tensor, "n i"]:
    """Returns the 2048 numbers after the last pooling, of images resized to 299 pixels.

    Grey images are shown in three equal channels.

    Args:
        x: Pixels in [0, 1].
        path: The weights that pytorch-fid publishes.
        digest: Their sha256.
        device: Where to compute.
        batch: How many images at once.

    Raises:
        ValueError: If the file is another one than when its digest was taken.
    """
    from pytorch_fid import inception

    if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{path} changed while it was used; start again")
    state = read_checkpoint(path)
    # pytorch-fid fetches its weights while it builds the network, and takes no others.
    with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: state), seeded("-"):
        network = inception.InceptionV3().to(device).eval()
    features = []
    with torch.no_grad():
        for start in range(0, len(x), batch):
            colour = x[start : start + batch].to(device).expand(-1, 3, -1, -1)
            features.append(network(colour)[0].flatten(1).cpu())
    return torch.cat(features)


@dataclass(frozen=True)
class Inception(Lens):
    """Inception-v3's features, by the network and the weights of pytorch-fid."""

    name: ClassVar[str] = "inception"

    @property
    def absent(self) -> str:
        """Says where to put the weights."""
        return (
            f"FID in Inception's features needs the weights that pytorch-fid uses: put {WEIGHTS}, "
            "of https://github.com/mseitzer/pytorch-fid/releases, into the data folder's weights"
        )

    def features(self, x: Images, tools: Tools) -> Float[Tensor, "n i"]:
        """Returns the features by the weights in the data folder."""
        path = inception_file(tools.work.data)
        return inception_features(x, path, tools.inception, tools.work.device)


INCEPTION = Inception()
