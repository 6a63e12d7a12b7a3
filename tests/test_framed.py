"""A StyleGAN2 of another resolution: its images are cut to their centre and resized."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mibench.attacks import GMI, IFGMI, PPA, VMI, Framed, Mirror, StyleGAN2
from mibench.attacks.priors import framed
from mibench.attacks.priors.framed import FramedPrior
from mibench.attacks.priors.stylegan import StyleGANPrior
from mibench.networks.classifiers.face import resize
from mibench.networks.foreign.weights import Weights
from mibench.roles import Attack
from mibench.running.checks.base import TASK, target, tiny
from mibench.running.checks.stages import cell, inversion_stage, load
from mibench.seeding import generator, seeded
from mibench.store import Work
from mibench.types import ImageSet

SMALL = StyleGAN2(**StyleGAN2.small)
WHOLE, CROP, SIZE = 32, 24, 8


@pytest.fixture
def spec(tmp_path: Path) -> Framed:
    with seeded("framed"):
        state = SMALL.build((3, WHOLE, WHOLE), 4).generator.state_dict()
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "faces.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Framed(replace(SMALL, weights=Weights(file.name, digest)), WHOLE, CROP)


def loaded(spec: Framed, data: Path) -> FramedPrior:
    with seeded("other weights"):
        prior = spec.build((3, SIZE, SIZE), 4)
    spec.fetch(data)
    none = ImageSet(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(2).long())
    spec.train(prior, none, None, generator("test"), Work(data=data))
    return prior.eval()


def test_images_are_the_centre_of_what_the_generator_draws(spec: Framed, tmp_path: Path) -> None:
    prior = loaded(spec, tmp_path)
    z = torch.randn(3, prior.z_dim, generator=generator("z"))
    ws = prior.styles(z).detach().requires_grad_()
    x = prior.synthesise(ws)
    assert x.shape == (3, 3, SIZE, SIZE)
    image = prior.until(ws, prior.blocks).image
    assert image is not None
    assert image.shape == (3, 3, WHOLE, WHOLE)
    whole = (image / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(x, resize(whole[..., 4:28, 4:28], SIZE))
    halfway = prior.until(ws, 2)
    torch.testing.assert_close(prior.synthesise(ws, begun=halfway), x)
    (gradient,) = torch.autograd.grad(x.sum(), ws)
    assert gradient.abs().sum() > 0
    assert spec.planned_steps(100) == 0


def test_many_images_are_drawn_in_parts(
    spec: Framed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior = loaded(spec, tmp_path)
    ws = prior.styles(torch.randn(5, prior.z_dim, generator=generator("z"))).detach()
    sizes: list[int] = []
    draw = StyleGANPrior.synthesise

    def counted(self: StyleGANPrior, ws: torch.Tensor, **how: Any) -> torch.Tensor:
        sizes.append(len(ws))
        return draw(self, ws, **how)

    monkeypatch.setattr(StyleGANPrior, "synthesise", counted)
    results = []
    for room in (framed.ROOM, 2 * 3 * WHOLE**2):
        monkeypatch.setattr(framed, "ROOM", room)
        at = ws.clone().requires_grad_()
        x = prior.synthesise(at)
        results.append((x.detach(), *torch.autograd.grad(x.square().sum(), at)))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts)
    assert sizes == [5, 2, 2, 1, *sizes[4:]]
    assert sorted(sizes[4:]) == [1, 2, 2]  # once more, for the gradient


@pytest.mark.parametrize("cls", [PPA, IFGMI, Mirror, VMI])
def test_attacks_on_styles_take_it(cls: type[Attack], spec: Framed) -> None:
    attack = replace(tiny(cls), prior=spec)
    cell(attack=attack).check()
    done = inversion_stage(attack, target()).compute(load, Work())
    assert done["images"].shape[-3:] == TASK.shape


def test_it_has_no_critic(spec: Framed) -> None:
    for prior in (spec, spec.of):  # a file holds the generator's weights alone
        with pytest.raises(ValueError, match="gmi needs a prior with critic, and stylegan2-"):
            cell(attack=GMI(prior)).check()
    cell(attack=GMI(SMALL)).check()


def test_what_cannot_be_framed_is_refused(spec: Framed) -> None:
    with pytest.raises(ValueError, match="of at most that size, not 3x32x32"):
        spec.build((3, WHOLE, WHOLE), 4)
    with pytest.raises(ValueError, match="not 3x8x16"):
        spec.build((3, 8, 16), 4)
    with seeded("framed"):
        assert replace(spec, crop=0).build((3, WHOLE, WHOLE), 4).crop == WHOLE
    with pytest.raises(ValueError, match=r"Framed\.of has no weights"):
        Framed(SMALL, WHOLE, CROP)
    with pytest.raises(ValueError, match="crop"):
        replace(spec, crop=WHOLE + 1)
