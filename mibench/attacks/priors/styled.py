"""What attacks on styles need of a prior."""

from abc import abstractmethod
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from mibench.networks.generators.stylegan2.layers import Maps
from mibench.types import Images, Labels, Prior


class Begun(NamedTuple):
    """An image of which the first blocks are drawn.

    Attributes:
        blocks: How many.
        maps: What they hand to the next block.
        image: What they add to the image; None to leave it out.
    """

    blocks: int
    maps: Maps
    image: Maps | None


class StyledPrior(Prior):
    """A prior that makes images of styles: one w for each layer, and blocks of layers.

    Attributes:
        num_ws: How many styles an image has.
        w_dim: The size of each.
        blocks: How many blocks draw an image, from coarse to fine.
    """

    num_ws: int
    w_dim: int
    blocks: int

    @abstractmethod
    def styles(
        self, z: Float[Tensor, "n z"], psi: float = 1.0, cutoff: int = 0
    ) -> Float[Tensor, "n s d"]:
        """Returns the styles of latents, (n, num_ws, w_dim).

        Args:
            z: Latents.
            psi: Share of the way from the mean style to their own; 1 is no truncation.
            cutoff: The number of styles that are truncated, from the coarsest on; 0 for all.
        """

    @abstractmethod
    def synthesise(
        self, ws: Float[Tensor, "n s d"], *, clamp: bool = True, begun: Begun | None = None
    ) -> Images:
        """Returns images with constant noise.

        Args:
            ws: Styles, (n, num_ws, w_dim).
            clamp: Whether to keep pixels within [0, 1]. That is what an attack is judged by, and
                no gradient then pulls at a pixel that is as black or white as it can be; without
                it every pixel has one.
            begun: What the first blocks have drawn; they are not computed then.
        """

    @abstractmethod
    def until(self, ws: Float[Tensor, "n s d"], blocks: int, begun: Begun | None = None) -> Begun:
        """Returns what so many blocks draw.

        Args:
            ws: Styles, (n, num_ws, w_dim).
            blocks: How many.
            begun: What fewer blocks have drawn, if that is known.
        """

    def generate(self, z: Float[Tensor, "n z"], y: Labels | None = None) -> Images:
        """Returns images in [0, 1]."""
        return self.synthesise(self.styles(z))
