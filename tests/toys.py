"""The small networks that the golden numbers of attacks were computed with, in float64."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mibench.attacks.priors.styled import Begun, StyledPrior
from mibench.roles import View
from mibench.seeding import seeded
from mibench.types import Classifier, Images


def wave(shape: Sequence[int], a: float, b: float) -> Tensor:
    """Returns sin(a i + b) over the flat places i, float64."""
    return torch.sin(a * torch.arange(prod(shape), dtype=torch.float64) + b).view(*shape)


def tensor(row: Sequence[Any]) -> Tensor:
    """Returns what a row of a file says: [[role,] shape, [rule,] offset, amplitude, a, b]."""
    shape = next(item for item in row if isinstance(item, list))
    offset, amplitude, a, b = row[-4:]
    filling: Tensor = wave(shape, a, b)
    if "off+amp*|wave|" in row:
        filling = filling.abs()
    if "wave divided by its Euclidean norm" in row:
        filling = filling / filling.norm()
    result: Tensor = offset + amplitude * filling
    return result


class Toy(Classifier):
    """f = tanh(A x + c), logits = B f + d, of images on the scale that it was given.

    Args:
        rows: Of A, c, B and d.
        signed: Whether it reads [-1, 1]; images come in [0, 1].
    """

    def __init__(self, rows: Sequence[Sequence[Any]], *, signed: bool = False) -> None:
        super().__init__()
        A, c, B, d = (tensor(row) for row in rows)
        with seeded("shapes only"):
            self.first, self.last = nn.Linear(*A.T.shape), nn.Linear(*B.T.shape)
        self.neck = nn.Identity()
        self.num_classes, self.signed = len(B), signed
        state = {"first.weight": A, "first.bias": c, "last.weight": B, "last.bias": d}
        self.double().load_state_dict(state)
        self.eval().requires_grad_(requires_grad=False)

    def latents(self, x: Images) -> tuple[Tensor, ...]:
        x = 2 * x - 1 if self.signed else x
        return (self.first(x.flatten(1)).tanh(),)


class Styled(StyledPrior):
    """image = 1.3 tanh(Σ_l L_l S w_l); w = tanh(M z), the first layers drawn to a mean style.

    Args:
        L: A row for the factor of each layer.
        S: A row for the pixels of each entry of w.
        M: A row for the mapping.
        w_avg: A row for the mean style.
        crop: Middle pixels that are left, of 12; they are resized to 8.
        z: A row for the latents that are drawn.

    Attributes:
        given: First styles that images were made of, call by call.
    """

    pooled, blocks = False, 1

    def __init__(
        self, L: Any, S: Any, M: Any = None, w_avg: Any = None, crop: int = 0, z: Any = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.L, self.S = tensor(L), tensor(S)
        self.M, self.w_avg = M and tensor(M), w_avg and tensor(w_avg)
        self.z, self.crop = z, crop
        self.num_ws, self.w_dim, self.z_dim = len(self.L), self.S.shape[1], 6
        self.given: list[Tensor] = []

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return tensor(self.z)

    def styles(self, z: Tensor, psi: float = 1.0, cutoff: int = 0) -> Tensor:
        assert isinstance(self.M, Tensor)
        w = (z @ self.M.T).tanh()
        ws = w[:, None].repeat(1, self.num_ws, 1)
        ws[:, : cutoff or None] = self.w_avg + psi * (ws[:, : cutoff or None] - self.w_avg)
        return ws

    def synthesise(self, ws: Tensor, *, clamp: bool = True, begun: Begun | None = None) -> Images:
        self.given.append(ws[:, 0].detach().clone())
        flat = 1.3 * (torch.einsum("l,nlw->nw", self.L, ws) @ self.S.T).tanh()
        side = 12 if self.crop else 8
        x = flat.view(-1, 3, side, side) / 2 + 0.5
        x = x.clamp(0, 1) if clamp else x
        if not self.crop:
            return x
        edge = (12 - self.crop) // 2
        x = x[:, :, edge : edge + self.crop, edge : edge + self.crop]
        return F.interpolate(x, (8, 8), mode="bilinear", antialias=True, align_corners=False)

    def until(self, ws: Tensor, blocks: int, begun: Begun | None = None) -> Begun:
        raise NotImplementedError


@dataclass(frozen=True)
class InTurn(View):
    """The image, its mirror image, and rolled down by one row, one after the other."""

    name: ClassVar[str] = "in-turn"
    calls: ClassVar[list[int]] = [0]

    looks: int = 1
    draws: int = 1

    def __call__(self, x: Images, rng: torch.Generator) -> Images:
        self.calls[0] += 1
        return (x, x.flip(3), x.roll(1, 2))[(self.calls[0] - 1) % 3]
