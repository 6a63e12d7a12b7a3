"""In which order a classifier sees its training images; drawn on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor


def shuffled(
    labels: Tensor, batch_size: int, instances: int, rng: torch.Generator
) -> list[Tensor]:
    """Returns one shuffled pass in batches; the last, smaller one is dropped.

    ``instances`` is not used. Fewer images than ``batch_size`` make one batch.
    """
    order = torch.randperm(len(labels), generator=rng)
    size = min(batch_size, len(labels))
    return [order[i : i + size] for i in range(0, len(labels) - size + 1, size)]


def balanced(
    labels: Tensor, batch_size: int, instances: int, rng: torch.Generator
) -> list[Tensor]:
    """Returns batches of ``batch_size / instances`` classes with ``instances`` images each.

    Each class's images are shuffled and dealt in groups; what is left of a class is dropped,
    and the pass ends when too few classes have a group left. The sampler of the paper's
    CelebA targets, 16 classes with 4 images each.

    Raises:
        ValueError: If ``instances`` does not divide ``batch_size``, there are too few classes,
            or one of them has fewer images and would never be trained.
    """
    if batch_size % instances:
        raise ValueError(f"batches of {batch_size} cannot hold groups of {instances} images")
    wanted = batch_size // instances
    labels = labels.cpu()
    groups: dict[int, list[Tensor]] = {}
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=rng)]
        whole = len(members) - len(members) % instances
        if not whole:
            raise ValueError(
                f"a balanced batch has {instances} images of a class, and class {label} has "
                f"{len(members)} to train on, so it would never be seen; lower recipe.instances"
            )
        groups[label] = [members[i : i + instances] for i in range(0, whole, instances)]
    if len(groups) < wanted:
        raise ValueError(
            f"a balanced batch needs {wanted} classes with {instances} images, found "
            f"{len(groups)}; lower recipe.batch_size or recipe.instances"
        )
    batches = []
    while len(groups) >= wanted:
        left = list(groups)
        drawn = [left[i] for i in torch.randperm(len(left), generator=rng)[:wanted].tolist()]
        batches.append(torch.cat([groups[label].pop() for label in drawn]))
        groups = {label: rest for label, rest in groups.items() if rest}
    return batches


def poisson(labels: Tensor, batch_size: int, instances: int, rng: torch.Generator) -> list[Tensor]:
    """Returns as many batches as :func:`shuffled`; each image is in each by a draw of its own.

    Its chance is ``batch_size`` over the number of images, so sizes vary and a batch may be
    empty: the sampling that differential privacy is accounted for. ``instances`` is not used.
    """
    share = min(1.0, batch_size / len(labels))
    draws = (
        torch.rand(len(labels), generator=rng, dtype=torch.float64)
        for _ in range(max(1, len(labels) // batch_size))
    )
    return [(draw < share).nonzero()[:, 0] for draw in draws]


SAMPLERS: dict[str, Callable[[Tensor, int, int, torch.Generator], list[Tensor]]] = {
    "shuffle": shuffled,
    "balanced": balanced,
    "poisson": poisson,
}
