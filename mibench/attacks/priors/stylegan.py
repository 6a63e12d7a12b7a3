"""StyleGAN2-ADA, the prior of VMI, trained on public images.

Karras et al., *Analyzing and Improving the Image Quality of StyleGAN*, CVPR 2020,
https://arxiv.org/abs/1912.04958 (networks, R1 and path-length regularisation, style mixing);
Karras et al., *Training Generative Adversarial Networks with Limited Data*, NeurIPS 2020,
https://arxiv.org/abs/2006.06676 (adaptive augmentation).
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mibench.attacks.priors.styled import Begun, StyledPrior
from mibench.networks.foreign.weights import Weights, load_exactly, read_weights
from mibench.networks.generators.ada import augment
from mibench.networks.generators.stylegan2 import Discriminator, Generator
from mibench.roles import PriorSpec
from mibench.seeding import generator as fresh_generator
from mibench.spec import choose, require, require_betas
from mibench.store import Payload, State, Work, check_finite, frozen, restore
from mibench.types import Images, ImageSet, Labels, Offer, Prior, Scalar, Shape

INF = float("inf")
ROWS = 200
"""Rows of training statistics that a run keeps, at most."""
GRIDS = 10
"""Pictures of samples that a run keeps, at most."""
SAMPLES = 16
"""Samples in such a picture."""
MEANS = ("generator", "discriminator", "signs", "r1", "path length")
"""Statistics of which a row has the mean since the row before."""
PLAIN = ("step", "p", "rows", "pictures", "pictured")
"""What of a training is saved as it is; the rest is restored in place."""


class StyleGANPrior(StyledPrior):
    """The averaged generator and the discriminator; pixels are in [0, 1] on this side."""

    pooled = True

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        super().__init__()
        self.z_dim, self.w_dim = generator.z_dim, generator.w_dim
        self.num_ws, self.blocks = generator.num_ws, len(generator.synthesis)
        self.generator = generator
        self.discriminator = discriminator

    def styles(
        self, z: Float[Tensor, "n z"], psi: float = 1.0, cutoff: int = 0
    ) -> Float[Tensor, "n s d"]:
        """Returns the styles of latents, (n, num_ws, w_dim)."""
        ws: Tensor = self.generator.mapping(z, psi, cutoff)
        return ws

    def synthesise(
        self, ws: Float[Tensor, "n s d"], *, clamp: bool = True, begun: Begun | None = None
    ) -> Images:
        """Returns images with constant noise."""
        _, _, image = self.until(ws, self.blocks, begun)
        assert image is not None
        x: Images = image / 2 + 0.5
        return x.clamp(0, 1) if clamp else x

    def until(self, ws: Float[Tensor, "n s d"], blocks: int, begun: Begun | None = None) -> Begun:
        """Returns what so many blocks draw, the image on the scale [-1, 1]."""
        done, *state = begun or (0, None, None)
        part = slice(done, blocks)
        maps, image = self.generator.synthesis.run(ws, "const", None, part, *state)
        assert maps is not None
        return Begun(blocks, maps.float(), image)

    def realism(self, x: Images, y: Labels | None = None) -> Float[Tensor, " n"]:
        """Returns the discriminator's logits; they depend on the batch."""
        logits: Tensor = self.discriminator(x * 2 - 1)
        return logits


@dataclass(frozen=True)
class StyleGAN2(PriorSpec):
    """StyleGAN2-ADA; it never sees the target, so every target shares it.

    The defaults are VMI's, for 64x64 faces: 1,169 thousand images and then 2,298 more. A step
    updates the generator, then the discriminator. Each regularisation is an update of its own at
    every r1_every-th or path_every-th step, with a weight larger by that factor, 0 for none;
    learning and decay rates are lowered to make up for it (Appendix B of StyleGAN2).

    Attributes:
        z_dim: Size of z.
        w_dim: Size of w.
        mapping_layers: Dense layers from z to w.
        channel_base: Maps at resolution r: channel_base / r, at most channel_max.
        channel_max: Most maps.
        conv_clamp: Activations stay within ± this.
        num_fp16_res: How many of the highest resolutions compute with 16 bits on a GPU.
        mbstd_group: Images that the discriminator compares.
        kimg: Length: thousands of public images shown, with repetition.
        batch_size: Images per step.
        lr: Adam's learning rate, for both networks.
        betas: Adam's decay rates.
        eps: Adam's ε.
        r1_gamma: Weight γ of the penalty γ/2 E‖∇D‖² on public images.
        r1_every: Steps between two of its updates.
        path_weight: Weight of the path-length regularisation.
        path_every: Steps between two of its updates.
        path_decay: How fast the mean path length follows.
        path_shrink: It uses a batch smaller by this factor.
        mixing: Probability that later styles come from another z.
        ema_kimg: Half-life of the averaged generator, in thousands of images.
        ema_rampup: That half-life is at most this share of the images shown so far.
        pipeline: Augmentations: "bgc" (pixel blitting, geometry and colour) or "none".
        ada_target: The augmentation probability p rises while D's sign, averaged over public
            images, is above this, and falls while it is below.
        ada_every: Steps between two adjustments of p.
        ada_kimg: Thousands of images in which it can rise from 0 to 1.
        weights: The averaged generator's, from a file such as ``mibench import stylegan``
            writes; then nothing is trained, and all but the sizes is without effect.
        mirror: Whether to show each public image flipped for one time in two.
    """

    name: ClassVar[str] = "stylegan2-ada"
    small: ClassVar[Mapping[str, Any]] = {
        "z_dim": 8, "w_dim": 8, "channel_base": 64, "channel_max": 8, "kimg": 0.05,
        "batch_size": 8,
    }  # fmt: skip
    version: ClassVar[int] = 2

    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    channel_base: int = 16384
    channel_max: int = 512
    conv_clamp: float = 256.0
    num_fp16_res: int = 4
    mbstd_group: int = 4
    kimg: float = 3467.0
    batch_size: int = 64
    lr: float = 2.5e-3
    betas: tuple[float, float] = (0.0, 0.99)
    eps: float = 1e-8
    r1_gamma: float = 0.0128
    r1_every: int = 16
    path_weight: float = 2.0
    path_every: int = 4
    path_decay: float = 0.01
    path_shrink: int = 2
    mixing: float = 0.9
    ema_kimg: float = 20.0
    ema_rampup: float = 0.05
    pipeline: Literal["bgc", "none"] = "bgc"
    ada_target: float = 0.6
    ada_every: int = 4
    ada_kimg: float = 500.0
    mirror: bool = False
    weights: Weights | None = None

    def __post_init__(self) -> None:
        require(
            self, z_dim=(1, INF), w_dim=(1, INF), mapping_layers=(1, INF), channel_base=(8, INF),
            channel_max=(1, INF), conv_clamp=(1e-12, INF), num_fp16_res=(0, INF),
            mbstd_group=(1, INF), kimg=(1e-12, INF), batch_size=(2, INF), lr=(1e-12, INF),
            eps=(0, INF), r1_gamma=(0, INF), r1_every=(1, INF), path_weight=(0, INF),
            path_every=(1, INF), path_decay=(0, 1), path_shrink=(1, self.batch_size),
            mixing=(0, 1), ema_kimg=(0, INF), ema_rampup=(0, INF), ada_target=(0, 1),
            ada_every=(1, INF), ada_kimg=(1e-12, INF),
        )  # fmt: skip
        require_betas(self, self.betas)
        choose(self, pipeline=("bgc", "none"))

    @property
    def offers(self) -> tuple[Offer, ...]:  # type: ignore[override]
        """Styles, and a critic if one is trained: ``weights`` are the generator's alone."""
        return ("critic", "styles") if self.weights is None else ("styles",)

    def build(self, shape: Shape, num_classes: int) -> StyleGANPrior:
        """Returns untrained networks.

        Raises:
            ValueError: If the images are not square with 8, 16, 32, … pixels a side, or have
                neither one nor three channels.
        """
        channels, height, width = shape
        if height != width or channels not in (1, 3):
            size = f"{channels}x{height}x{width}"
            raise ValueError(f"StyleGAN2 draws square images of 1 or 3 channels, not {size}")
        sizes = (self.channel_base, self.channel_max, self.conv_clamp, self.num_fp16_res)
        return StyleGANPrior(
            Generator(self.z_dim, self.w_dim, height, channels, self.mapping_layers, *sizes),
            Discriminator(height, channels, *sizes, self.mbstd_group),
        )

    def planned_steps(self, images: int) -> int:
        """Returns the steps, whatever the number of images."""
        return 0 if self.weights else ceil(self.kimg * 1000 / self.batch_size)

    def fetch(self, root: Path) -> None:
        """Reads ``weights`` once."""
        if self.weights is not None:
            read_weights(self.weights, root)

    def train(
        self,
        prior: Prior,
        public: ImageSet,
        target: None,
        rng: torch.Generator,
        work: Work,
    ) -> None:
        """Trains the prior on ``public``.

        ``prior.history`` gets statistics, evenly spaced over the run: "kimg" and, as means since
        the row before, "generator", "discriminator", "r1", "path length" (0 where there is
        none), E[sign D] as "signs" and the augmentation probability "p"; and pictures "samples",
        (g, 16, c, h, w) bytes of the averaged generator at the same latents, with their
        "samples kimg".
        """
        assert isinstance(prior, StyleGANPrior)
        if self.weights is not None:
            state = read_weights(self.weights, work.data)
            load_exactly(prior.generator, state, f"the weights in {self.weights.file}")
            return
        run = _Run(self, prior, public, rng, work)
        if (saved := work.load()) is not None:
            run.restore(saved)
        steps = self.planned_steps(len(public))
        prior.train()
        for done in range(run.step + 1, steps + 1):
            run.advance()
            if done % ceil(steps / ROWS) == 0 or done == steps:
                run.note()
            if done % ceil(steps / GRIDS) == 0 or done == steps:
                run.picture()
            work.save(lambda: frozen(run.state()))
            work.progress(done, steps, f"p {run.p:.3f}" if self.pipeline != "none" else "")
        prior.history = {k: torch.tensor(v) for k, v in run.rows.items()}
        prior.history |= {
            "samples": torch.stack(run.pictures),
            "samples kimg": torch.tensor(run.pictured),
        }


class _Run:
    """One training, between its steps: all that changes, and how."""

    def __init__(
        self,
        spec: StyleGAN2,
        prior: StyleGANPrior,
        public: ImageSet,
        rng: torch.Generator,
        work: Work,
    ) -> None:
        self.spec = spec
        self.prior = prior
        self.public = public
        self.rng = rng
        self.device = work.device
        self.D = prior.discriminator
        self.G = copy.deepcopy(prior.generator)
        self.optimizers = (
            self._adam(self.G, spec.path_weight, spec.path_every),
            self._adam(self.D, spec.r1_gamma, spec.r1_every),
        )
        self.step = 0
        self.p = 0.0
        self.path = torch.zeros((), device=self.device)
        self.signs = torch.zeros((), device=self.device)
        self.sums = torch.zeros(len(MEANS), 2, device=self.device)
        self.rows: dict[str, list[float]] = {}
        self.pictures: list[Tensor] = []
        self.pictured: list[float] = []

    def _adam(self, network: nn.Module, weight: float, every: int) -> torch.optim.Optimizer:
        """Returns an optimiser that makes up for a second update at each ``every``-th step."""
        share = every / (every + 1) if weight else 1.0
        first, second = (beta**share for beta in self.spec.betas)
        return torch.optim.Adam(
            network.parameters(), self.spec.lr * share, (first, second), self.spec.eps
        )

    def state(self) -> State:
        """Returns all that changes, by name."""
        names = ("prior", "G", "rng", "path", "signs", "sums", *PLAIN)
        adam = dict(zip(("adam of G", "adam of D"), self.optimizers, strict=True))
        return {name: getattr(self, name) for name in names} | adam

    def restore(self, saved: Payload) -> None:
        """Continues where ``saved`` was taken."""
        state = self.state()
        restore(state, saved)
        for name in PLAIN:
            setattr(self, name, state[name])

    # What a step needs ----------------------------------------------------------------

    def latents(self, n: int) -> Float[Tensor, "n z"]:
        """Draws latents."""
        return self.prior.sample(n, self.rng).to(self.device)

    def styles(self, n: int) -> Float[Tensor, "n s d"]:
        """Draws styles, mixed of two z with some probability, and follows their mean."""
        ws: Tensor = self.G.mapping(self.latents(n))
        self.G.mapping.track(ws)
        if torch.rand((), generator=self.rng) < self.spec.mixing:
            cut = int(torch.randint(1, self.G.num_ws, (), generator=self.rng))
            other: Tensor = self.G.mapping(self.latents(n))
            ws = torch.cat([ws[:, :cut], other[:, cut:]], dim=1)
        return ws

    def draw(self, ws: Float[Tensor, "n s d"]) -> Float[Tensor, "n c h w"]:
        """Returns what the generator in training draws, with random noise."""
        x: Tensor = self.G.synthesis(ws, "random", self.rng)
        return x

    def real(self) -> Float[Tensor, "n c h w"]:
        """Draws public images, with replacement, on the scale [-1, 1]."""
        n = self.spec.batch_size
        index = torch.randint(len(self.public), (n,), generator=self.rng)
        x = self.public.pixels[index.to(self.public.pixels.device)].float() / 127.5 - 1
        if self.spec.mirror:
            flipped = (torch.rand(n, 1, 1, 1, generator=self.rng) < 0.5).to(x.device)
            x = torch.where(flipped, x.flip(3), x)
        return x

    def judge(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
        """Returns the discriminator's logits of the augmented images."""
        logits: Tensor = self.D(augment(x, self.p, self.rng))
        return logits

    def descend(self, loss: Scalar, which: int) -> None:
        """Takes one step of an optimiser; with 16 bits, infinite gradients become large ones."""
        optimizer = self.optimizers[which]
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        half = self.device.type == "cuda" and self.spec.num_fp16_res > 0
        for p, g in zip(weights, gradients, strict=True):
            p.grad = torch.nan_to_num(g, 0.0, 1e5, -1e5) if half else g
        optimizer.step()

    def count(self, name: str, value: Tensor) -> None:
        """Adds a statistic to its mean, without waiting for the device."""
        self.sums[MEANS.index(name)] += torch.stack([value.detach(), torch.ones_like(value)])

    # The step -------------------------------------------------------------------------

    def advance(self) -> None:
        """Updates the generator, the discriminator, the averages and p."""
        s, n = self.spec, self.spec.batch_size
        loss = F.softplus(-self.judge(self.draw(self.styles(n)))).mean()
        self.descend(loss, 0)
        self.count("generator", loss)
        if s.path_weight and self.step % s.path_every == 0:
            penalty = self.path_penalty(n // s.path_shrink)
            self.descend(s.path_every * s.path_weight * penalty, 0)

        with torch.no_grad():
            fake = self.draw(self.styles(n))
        real = self.real()
        logits = self.judge(real)
        loss = F.softplus(self.judge(fake)).mean() + F.softplus(-logits).mean()
        self.descend(loss, 1)
        self.count("discriminator", loss)
        signs = logits.detach().sign().mean()
        self.signs += signs
        self.count("signs", signs)
        if s.r1_gamma and self.step % s.r1_every == 0:
            penalty = r1_penalty(self.judge, real)
            self.descend(s.r1_every * s.r1_gamma / 2 * penalty, 1)
            self.count("r1", penalty)

        self.average()
        self.step += 1
        if s.pipeline != "none" and self.step % s.ada_every == 0:
            self.adjust()

    def adjust(self) -> None:
        """Moves p towards where the mean sign is on target; waits for the device."""
        s = self.spec
        excess = self.signs.item() / s.ada_every - s.ada_target
        rise = s.batch_size * s.ada_every / (s.ada_kimg * 1000)
        self.p = min(max(self.p + ((excess > 0) - (excess < 0)) * rise, 0.0), 1.0)
        self.signs.zero_()

    def path_penalty(self, n: int) -> Scalar:
        """Returns the path-length penalty of a batch, and follows the mean length.

        The squared difference of ‖Jᵀy‖, y ~ N(0, I) / side, to its running mean: Eq. 4 of
        StyleGAN2.
        """
        ws = self.styles(n)
        x = self.draw(ws)
        y = torch.randn(x.shape, generator=self.rng).to(x.device) / sqrt(x[0, 0].numel())
        (gradient,) = torch.autograd.grad((x * y).sum(), ws, create_graph=True)
        lengths = gradient.square().sum(2).mean(1).sqrt()
        self.path.lerp_(lengths.detach().mean(), self.spec.path_decay)
        self.count("path length", lengths.mean())
        return (lengths - self.path).square().mean()

    @torch.no_grad()
    def average(self) -> None:
        """Moves the averaged generator towards the trained one; buffers are copied."""
        shown = self.step * self.spec.batch_size
        half_life = min(self.spec.ema_kimg * 1000, shown * self.spec.ema_rampup)
        keep = 0.5 ** (self.spec.batch_size / half_life) if half_life > 0 else 0.0
        mine, theirs = self.prior.generator, self.G
        torch._foreach_lerp_(list(mine.parameters()), list(theirs.parameters()), 1 - keep)
        for own, other in zip(mine.buffers(), theirs.buffers(), strict=True):
            own.copy_(other)

    def note(self) -> None:
        """Appends a row of statistics.

        Raises:
            FloatingPointError: If a loss was not finite.
        """
        shown = self.step * self.spec.batch_size
        means = (self.sums[:, 0] / self.sums[:, 1].clamp(min=1)).cpu()
        check_finite(means, f"a loss before image {shown}")
        row = {"kimg": shown / 1000, "p": self.p} | dict(zip(MEANS, means.tolist(), strict=True))
        for name, value in row.items():
            self.rows.setdefault(name, []).append(value)
        self.sums.zero_()

    @torch.no_grad()
    def picture(self) -> None:
        """Keeps what the averaged generator makes of the same latents as ever."""
        z = self.prior.sample(SAMPLES, fresh_generator("samples")).to(self.device)
        x = self.prior.generate(z)
        self.pictures.append((x * 255).round().to(torch.uint8).cpu())
        self.pictured.append(self.step * self.spec.batch_size / 1000)


def r1_penalty(judge: Callable[[Tensor], Tensor], real: Float[Tensor, "n c h w"]) -> Scalar:
    """Returns the mean over the batch of ‖∇_x D(x)‖², Mescheder et al., ICML 2018.

    Args:
        judge: The discriminator, with its augmentations.
        real: Images; the gradient is taken where they enter the augmentations.
    """
    x = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(x).sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()
