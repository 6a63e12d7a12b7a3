"""Structural similarity, Wang et al., IEEE TIP 2004, as scikit-image computes it."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mibench.evaluation.evidence import Evidence, gathered
from mibench.evaluation.metric import metric
from mibench.types import Images


def structural_similarity(a: Images, b: Images) -> Float[Tensor, " n"]:
    """Returns the structural similarity of a[i] and b[i], from -1 to 1 for the same image.

    Uniform windows of seven pixels, or the largest odd number that fits a smaller image; pixels
    in [0, 1]; the mean over channels.
    """
    import skimage.metrics

    ssim: Callable[..., float] = skimage.metrics.structural_similarity

    window = min(7, *(size - 1 + size % 2 for size in a.shape[2:]))
    pairs = zip(a.double().numpy(), b.double().numpy(), strict=True)
    values = [ssim(x, y, win_size=window, data_range=1.0, channel_axis=0) for x, y in pairs]
    return torch.tensor(values, dtype=torch.float64)


@metric("SSIM", "image", "lower", range=(-1.0, 1.0))
def ssim(e: Evidence) -> Float[Tensor, " n"]:
    """Structural similarity to the nearest real image of the attacked class, in pixels.

    Nearest in the evaluator's features, as for knn_distance.
    """
    return gathered(e.ssim, "a class has no real image to be similar to")
