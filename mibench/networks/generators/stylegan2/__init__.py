"""StyleGAN2's generator and discriminator, in plain PyTorch.

Karras et al., *Analyzing and Improving the Image Quality of StyleGAN*, CVPR 2020,
https://arxiv.org/abs/1912.04958, in the configuration of *Training Generative Adversarial
Networks with Limited Data*, NeurIPS 2020, https://arxiv.org/abs/2006.06676. Parameters and
buffers carry the names and shapes of the networks released with the latter, so that their
state dicts load. Images are in [-1, 1] here, not clamped.
"""

from mibench.networks.generators.stylegan2.discriminator import Discriminator
from mibench.networks.generators.stylegan2.generator import Generator

__all__ = ["Discriminator", "Generator"]
