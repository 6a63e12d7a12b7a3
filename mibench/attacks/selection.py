"""Which latents an attack starts from and which images count, by what the target says of them."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mibench.attacks.access import Query
from mibench.attacks.goal import Goal, Rows
from mibench.attacks.views import Plain, queries_per_image, single, viewed
from mibench.roles import View
from mibench.types import BATCH_PIXELS, Classifier, Images, Labels


@torch.no_grad()
def scores(
    target: Classifier,
    latents: Float[Tensor, "n ..."],
    images: Callable[[Tensor], Images],
    views: Sequence[View],
    rng: torch.Generator,
) -> Float[Tensor, "n k"]:
    """Returns the target's probabilities of images, the mean over views of each.

    Args:
        target: Counts an answer for each view and draw.
        latents: Of the images.
        images: Makes some of them.
        views: How the target looks at them; none: as they are.
        rng: What the views draw from.
    """
    values = images(latents[:1]).numel()
    parts = []
    for part in latents.split(max(1, BATCH_PIXELS // values)):  # type: ignore[no-untyped-call]
        x = images(part)
        total = torch.zeros(len(x), target.num_classes, dtype=x.dtype, device=x.device)
        for view in single(views or [Plain()]):
            look = viewed([view], x, [(len(x), rng)])[0]
            for _ in range(view.draws):
                total += target(look).softmax(1)
        parts.append(total / queries_per_image(views))
    return torch.cat(parts)


@torch.no_grad()
def answered(
    target: Query,
    latents: Float[Tensor, "n ..."],
    images: Callable[..., Images],
    labels: Labels | None = None,
) -> Tensor:
    """Returns what a target that hides its inside says of images, in parts that fit.

    Args:
        target: Is asked once about each.
        latents: Of the images.
        images: Makes some of them, from latents and classes.
        labels: The class that each is an image of; without them the latents alone are handed.
    """
    said = []
    places = torch.arange(len(latents))
    size = images(latents[:1], *(() if labels is None else (labels[:1],))).numel()
    for part in places.split(max(1, BATCH_PIXELS // size)):  # type: ignore[no-untyped-call]
        given = (latents[part],) if labels is None else (latents[part], labels[part])
        said.append(target(images(*given).clamp(0, 1)))
    return torch.cat(said)


def starts(
    target: Classifier,
    goal: Goal,
    draw: Callable[[int, torch.Generator], Float[Tensor, "n layers w"]],
    images: Callable[[Tensor], Images],
    pool: int,
    count: int,
    views: Sequence[View] = (),
) -> tuple[Float[Tensor, "s n w"], Float[Tensor, "p w"]]:
    """Returns the first style of those, of many, whose images the target is surest of.

    The classes of a block choose among the same styles; a class takes none twice.

    Args:
        target: Is asked about all, once for each view.
        goal: The classes.
        draw: Draws a number of styles from a block's stream, each with one vector per layer.
        images: Makes images of some.
        pool: How many are drawn for a block.
        count: How many each class takes.
        views: How the target looks at them.

    Returns:
        Those taken, (count, classes, w), the surest first; and of all that were drawn.
    """
    taken, drawn = [], []
    for labels, stream in goal:
        styles = draw(pool, stream)
        sure = scores(target, styles, images, views, stream)[:, labels]
        drawn.append(styles[:, 0].clone())  # not the other layers, many times as large
        taken.append(drawn[-1][sure.topk(count, 0).indices])
    return torch.cat(taken, 1), torch.cat(drawn)


def surest(
    target: Classifier,
    goal: Goal,
    latents: Float[Tensor, "s n ..."],
    images: Callable[[Tensor], Images],
    keep: int,
    views: Sequence[View] = (),
) -> Float[Tensor, "keep n ..."]:
    """Returns the latents of each class whose images the target is surest of, the surest first.

    Args:
        target: Is asked about all, once for each view.
        goal: The classes.
        latents: Candidates of each class.
        images: Makes images of some.
        keep: How many of each class.
        views: How the target looks at them.
    """
    kept, start = [], 0
    for labels, stream in goal:
        mine = latents[:, start : start + len(labels)]
        start += len(labels)
        said = scores(target, mine.flatten(0, 1), images, views, stream)
        sure = said.view(*mine.shape[:2], -1)[:, torch.arange(len(labels)), labels]
        index = sure.topk(keep, 0).indices
        kept.append(picked(mine, index))
    return torch.cat(kept, 1)


def picked(x: Float[Tensor, "s n ..."], index: Int[Tensor, "m n"]) -> Float[Tensor, "m n ..."]:
    """Returns, for each class, what stands at some places among its candidates."""
    return x[index, torch.arange(x.shape[1], device=x.device)]


Loss = Callable[[Tensor, Rows], Tensor]


def remembering(loss: Loss, moving: Float[Tensor, "s n ..."]) -> tuple[Loss, dict[str, Tensor]]:
    """Returns a loss that remembers where each row's was lowest.

    Args:
        loss: Takes latents and rows, as :func:`descend` calls it.
        moving: What descends, before the first step.

    Returns:
        The loss, and what to hand to ``descend`` as ``beside``: "best", the latents (s * n, ...)
        of the "lowest" losses, (s * n,).
    """
    best = moving.detach().flatten(0, 1).clone()
    lowest = torch.full((len(best),), float("inf"), dtype=best.dtype, device=best.device)
    begin = 0

    def noted(z: Tensor, rows: Rows) -> Tensor:
        nonlocal begin
        each = loss(z, rows)
        place = slice(begin, begin + len(z))
        begin = place.stop % len(best)
        better = each.detach() < lowest[place]
        lowest[place] = torch.where(better, each.detach(), lowest[place])
        best[place] = torch.where(better[:, None], z.detach(), best[place])
        return each

    return noted, {"lowest": lowest, "best": best}
