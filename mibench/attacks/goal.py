"""What an attack is to reconstruct: classes, how many images of each, and where they draw from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mibench.attacks.batches import Part, parts
from mibench.store import Payload
from mibench.types import BATCH_PIXELS, Images, ImageSet, Prior, Reconstructions, Shape


@dataclass(frozen=True)
class Rows:
    """Images that a loss is computed of: copy after copy, and in each block after block.

    Attributes:
        labels: The class of each image, shape (n,).
        weights: One over the length of the image's block: a loss is a mean over a block. In a part
            of a block they are those of the whole.
        sizes: Lengths of the blocks, copy after copy; images are judged among those of their own
            block.
        streams: The source of randomness of each of them, on the CPU.
    """

    labels: Int[Tensor, " n"]
    weights: Float[Tensor, " n"]
    sizes: tuple[int, ...]
    streams: tuple[torch.Generator, ...]

    @property
    def groups(self) -> list[tuple[int, torch.Generator]]:
        """Length and source of randomness of each block."""
        return list(zip(self.sizes, self.streams, strict=True))

    def parts(self, values: int) -> list[tuple[slice, "Rows"]]:
        """Returns the rows in as few parts of whole blocks as the device has room for.

        Args:
            values: Of an image: its channels times its pixels.

        Returns:
            The positions of each part's rows, and the part.
        """
        return [(p.rows, self._at(p)) for p in parts(self.sizes, values, self.labels.device)]

    def _at(self, part: Part) -> "Rows":
        return Rows(
            self.labels[part.rows], self.weights[part.rows],
            self.sizes[part.groups], self.streams[part.groups],
        )  # fmt: skip


CPU = torch.device("cpu")
ROOM = 32 * BATCH_PIXELS
"""Values of images that are generated at once: more than tables generate, as the last bits depend
on the parts."""


@dataclass(frozen=True)
class Goal:
    """What an attack is to reconstruct.

    Tensors of every image have two leading dimensions, (samples, classes, ...), classes in
    block order. Blocks do not influence each other, but for the noise that a stochastic target
    draws.

    Attributes:
        blocks: Classes to invert. Losses are means over a block, so the step size is coupled
            to its length.
        samples: Reconstructions per class.
        streams: One source of randomness per block, on the CPU.
        shape: Of an image, (c, h, w).
        device: Where to compute.
        public: The task's public images, on the CPU, if the attack is ``public``.
        planned: Steps that the whole inversion is expected to take, for progress; 0 if unknown.
        marks: Numbers of answers for each class, rising; where an attack has spent that number,
            what it has is kept as a moment.
        moments: Those kept so far, each with its "images", (samples, classes, c, h, w), the
            answers "asked" for until then and how many marks are "passed".
        wholes: Of how many classes each block was before it was divided; none if none was.
    """

    blocks: Sequence[Int[Tensor, " _"]]
    samples: int
    streams: Sequence[torch.Generator]
    shape: Shape
    device: torch.device = CPU
    public: ImageSet | None = field(default=None, compare=False, repr=False)
    planned: int = 0
    marks: tuple[int, ...] = ()
    moments: list[Payload] = field(default_factory=list, compare=False, repr=False)
    wholes: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the blocks."""
        return tuple(len(block) for block in self.blocks)

    @cached_property
    def labels(self) -> Int[Tensor, " n"]:
        """All classes, block after block, shape (classes,), on the device."""
        return torch.cat(list(self.blocks)).to(self.device)

    def __iter__(self) -> Iterator[tuple[Tensor, torch.Generator]]:
        """Returns each block's classes, on the device, with its source of randomness."""
        return iter(
            [(b.to(self.device), s) for b, s in zip(self.blocks, self.streams, strict=True)]
        )

    def rows(self, copies: int) -> Rows:
        """Returns ``copies`` images of every class as rows, copy after copy."""
        sizes = self.sizes * copies
        wholes = (self.wholes or self.sizes) * copies
        weights = torch.cat(
            [torch.full((n,), 1 / whole) for n, whole in zip(sizes, wholes, strict=True)]
        )
        return Rows(
            self.labels.repeat(copies), weights.to(self.device), sizes,
            tuple(self.streams) * copies,
        )  # fmt: skip

    def draws(self, prior: Prior) -> Float[Tensor, "s n z"]:
        """Returns a latent of the prior for each reconstruction, each block's from its stream."""
        drawn = [prior.sample(self.samples * len(b), s) for b, s in self]
        latents = [z.view(self.samples, n, -1) for z, n in zip(drawn, self.sizes, strict=True)]
        return torch.cat(latents, 1).to(self.device)

    def noise(self, copies: int, *shape: int) -> Float[Tensor, "s n *shape"]:
        """Returns standard normal draws (copies, classes, ...), each block from its stream."""
        return self._drawn(torch.randn, copies, *shape)

    def uniform(self, copies: int, *shape: int) -> Float[Tensor, "s n *shape"]:
        """Returns draws from [0, 1), (copies, classes, ...), each block from its stream."""
        return self._drawn(torch.rand, copies, *shape)

    def _drawn(self, draw: Callable[..., Tensor], copies: int, *shape: int) -> Tensor:
        drawn = [draw(copies, len(b), *shape, generator=s) for b, s in self]
        return torch.cat(drawn, 1).to(self.device)

    def realism(self, prior: Prior, x: Images, rows: Rows) -> Float[Tensor, " n"]:
        """Returns the prior's score of each image, judged among its own block."""
        return prior.realism_by_group(x, rows.sizes, rows.labels)

    @torch.no_grad()
    def images(self, prior: Prior, z: Float[Tensor, "s n *z"]) -> Float[Tensor, "s n c h w"]:
        """Returns the images of latents (samples, classes, ...), in [0, 1]."""
        size = max(1, ROOM // torch.Size(self.shape).numel())
        pairs = zip(
            torch.split(z.flatten(0, 1), size), torch.split(self.labels.repeat(len(z)), size),
            strict=True,
        )  # fmt: skip
        x = torch.cat([prior.generate(*pair).clamp(0, 1) for pair in pairs])
        return x.view(*z.shape[:2], *x.shape[1:])

    def reconstructions(self, prior: Prior, z: Float[Tensor, "s n *z"]) -> Reconstructions:
        """Returns what the prior generates from latents (samples, classes, ...)."""
        return Reconstructions(self.images(prior, z), z.detach())
