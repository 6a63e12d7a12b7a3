"""Algorithm 1: train a classifier under a defense."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mibench.data import Corpus
from mibench.precision import laid_out
from mibench.roles import Batch, Defense
from mibench.seeding import generator
from mibench.spec import choose, require
from mibench.store import Payload, State, Work, check_finite, frozen, remark, restore
from mibench.ties import in_top
from mibench.training.augment import AUGMENTATIONS
from mibench.training.samplers import SAMPLERS
from mibench.types import Classifier, Images, ImageSet, predict

INF = float("inf")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Passes over the training set (T_max); 0 for a network that comes trained.
        batch_size: Images per step (m); an epoch's last, smaller batch is dropped.
        optimizer: "adam" or "sgd".
        lr: Learning rate (α).
        momentum: Of SGD.
        nesterov: Whether SGD's momentum is Nesterov's.
        weight_decay: Added to the gradient, times the weight.
        milestones: Epochs after which the learning rate is multiplied by ``gamma``.
        gamma: That factor.
        sampler: "shuffle"; "balanced": each batch has ``instances`` images of each of
            ``batch_size / instances`` classes; or "poisson": each image is in each batch by a
            draw of its own, so that sizes vary around ``batch_size`` and may be 0.
        instances: That many.
        augment: Random changes to each training batch, names in AUGMENTATIONS.
        select: Which epoch's weights are kept: the "last"; the best on a part of the train
            images held out for "validation" (the latest of equals); or the best on the
            "test" images (the first of equals), as released, which is optimistic. Only
            "validation" holds out.
    """

    epochs: int
    batch_size: int = 64
    optimizer: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    sampler: Literal["shuffle", "balanced", "poisson"] = "shuffle"
    instances: int = 4
    augment: tuple[str, ...] = ()
    select: Literal["last", "validation", "test"] = "validation"

    def __post_init__(self) -> None:
        require(
            self, epochs=(0, INF), batch_size=(2, INF), lr=(1e-12, INF), momentum=(0, 1),
            weight_decay=(0, INF), milestones=(1, INF), gamma=(0, INF), instances=(1, INF),
        )  # fmt: skip
        choose(self, augment=AUGMENTATIONS, select=("last", "validation", "test"))
        choose(self, optimizer=("adam", "sgd"), sampler=SAMPLERS)
        if self.optimizer == "adam" and (self.momentum or self.nesterov):
            raise ValueError("Recipe.momentum and nesterov belong to sgd; adam has its own")
        if self.nesterov and not self.momentum:
            raise ValueError("Recipe.nesterov needs a momentum above 0")

    def planned_steps(self, images: int) -> int:
        """Returns the steps on so many train images, those held out not counted.

        The balanced sampler leaves some images out, so it takes fewer.
        """
        return self.epochs * max(1, images // self.batch_size)

    def optimize(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        """Returns the optimiser of the network's trainable weights."""
        weights = [p for p in network.parameters() if p.requires_grad]
        if self.optimizer == "adam":
            return torch.optim.Adam(weights, self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            weights,
            self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


def train_classifier(
    network: Classifier,
    defense: Defense,
    recipe: Recipe,
    corpus: Corpus,
    rng: torch.Generator,
    work: Work,
    own: torch.Generator | None = None,
    outliers: tuple[ImageSet, torch.Generator] | None = None,
) -> Payload:
    """Runs Algorithm 1 and returns the weights it keeps.

    Args:
        network: What is trained.
        defense: How it is defended.
        recipe: How it is trained.
        corpus: Images to train on, and to select by.
        rng: Draws batches and augmentations.
        work: Where state is saved and progress is reported.
        own: The defense's and its helper's source of randomness; it orders no batch.
        outliers: Images that are neither private nor public, with what draws and augments
            them, for a defense that wants them.

    Returns:
        "state": the state dict of the selected epoch. "epoch": which it was, from 1, or 0 if
        there is none: the network is as it was.
        "history": per epoch the mean of each loss term over the steps that had it and, where
        epochs are selected, the accuracy they are selected by, in percent. A run that was
        interrupted and started again returns the same bits as one that was not.

    Raises:
        FloatingPointError: If the loss stops being finite.
        ValueError: If no epoch that may be selected is one of which weights may be kept.
    """
    network.to(work.device)
    laid_out(network)
    if not recipe.epochs:
        return _kept({"state": network.state_dict(), "epoch": 0}, [])
    check_maturity(defense, recipe)
    train, judge = _select_data(recipe, corpus)
    train = train.to(work.device)
    own = own or generator("defense")
    helper = defense.assist(network, recipe, corpus, own)
    optimizer = recipe.optimize(network)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, list(recipe.milestones), recipe.gamma
    )
    history: list[dict[str, float]] = []
    best: Payload = {"accuracy": -1.0, "epoch": 0, "state": {}}
    moving: State = {
        "network": network, "optimizer": optimizer, "scheduler": scheduler, "rng": rng, "own": own,
    }  # fmt: skip
    if helper is not None:
        moving |= {"helper": helper, "helper's rng": helper.rng}
        moving |= {f"helper's {name}": o for name, o in helper.optimizers.items()}
    if outliers is not None:
        moving["outliers' rng"] = outliers[1]
    if (saved := work.load()) is not None:
        restore(moving, saved["moving"])
        history, best = saved["history"], saved["best"]
    network.train()
    sampler = SAMPLERS[recipe.sampler]

    def everything() -> Payload:
        return {"moving": frozen(moving), "history": history, "best": best}

    for epoch in range(len(history), recipe.epochs):
        if helper is not None:
            helper.epoch_begins(epoch)
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        batches = sampler(train.labels, recipe.batch_size, recipe.instances, rng)
        for index in batches:
            taken = train.take(index.to(work.device))
            x = _augmented(taken, recipe, rng)
            others = _drawn(outliers, len(x), recipe, work.device)
            batch = Batch(
                x, taken.labels, epoch, recipe.epochs, recipe.batch_size, own, helper, others
            )
            for name, term in defense.step(network, batch, optimizer).items():
                sums[name] = sums.get(name, 0) + term.detach()
                counts[name] = counts.get(name, 0) + 1
        scheduler.step()
        if sums:  # else every batch was empty
            check_finite(torch.stack(list(sums.values())), f"the loss in epoch {epoch + 1}")
        history.append({name: float(total) / counts[name] for name, total in sums.items()})
        accuracy = _accuracy(network, judge, epoch) if judge is not None else 0.0
        if judge is not None:
            history[-1]["accuracy"] = accuracy
        first = accuracy > best["accuracy"]
        chosen = judge is None or first
        chosen = chosen or (recipe.select != "test" and accuracy == best["accuracy"])
        if chosen and defense.mature(epoch, recipe.epochs):
            state = {k: v.clone() for k, v in network.state_dict().items()}
            best = {"accuracy": accuracy, "epoch": epoch + 1, "state": state}
        work.save(everything)
        work.progress(epoch + 1, recipe.epochs)
    return _kept(best, history)


def _augmented(taken: ImageSet, recipe: Recipe, rng: torch.Generator) -> Images:
    """Returns images in [0, 1], changed at random as the recipe says."""
    x = taken.images
    for name in recipe.augment if len(x) else ():
        x = AUGMENTATIONS[name](x, rng)
    return x


def _drawn(
    outliers: tuple[ImageSet, torch.Generator] | None,
    count: int,
    recipe: Recipe,
    device: torch.device,
) -> Images | None:
    """Returns ``count`` outliers, drawn with replacement, if there are any."""
    if outliers is None:
        return None
    images, rng = outliers
    index = torch.randint(len(images), (count,), generator=rng)
    return _augmented(images.take(index).to(device), recipe, rng)


def check_maturity(defense: Defense, recipe: Recipe) -> None:
    """Refuses a training after which there would be no weights to keep.

    Raises:
        ValueError: If no epoch that the recipe may select is one that the defense lets be kept.
    """
    if not recipe.epochs:  # nothing is trained: the network's own weights are kept
        return
    first = recipe.epochs - 1 if recipe.select == "last" else 0
    epochs = range(first, recipe.epochs)
    if epochs and not any(defense.mature(epoch, recipe.epochs) for epoch in epochs):
        raise ValueError(
            f"{defense.name} lets the weights of no epoch be kept that the recipe may select: "
            f"raise recipe.epochs ({recipe.epochs}), or let the defense's schedule begin earlier"
        )


def _kept(best: Payload, history: list[dict[str, float]]) -> Payload:
    """Returns what was trained; raises FloatingPointError if a weight is not finite."""
    for name, weight in best["state"].items():
        check_finite(weight, f"the weight {name} kept of epoch {best['epoch']}")
    return {"state": best["state"], "epoch": best["epoch"], "history": history}


def _select_data(recipe: Recipe, corpus: Corpus) -> tuple[ImageSet, ImageSet | None]:
    """Returns what to train on and to select by; remarks on classes that the latter lacks."""
    if recipe.select != "validation":
        return corpus.train, corpus.test if recipe.select == "test" else None
    if not corpus.validation.any():
        raise ValueError(
            "the task holds out no validation images to select by: raise its validation share "
            "or set recipe.select=last"
        )
    held_out = corpus.train.take(corpus.validation)
    without = corpus.num_classes - len(set(held_out.labels.tolist()))
    if without:
        remark(
            f"Images held out to select weights by: {len(held_out)}; classes of which none is: "
            f"{without} of {corpus.num_classes}. A larger setting.task.validation, or "
            "recipe.select=last, would avoid that."
        )
    return corpus.train.take(~corpus.validation), held_out


def _accuracy(network: Classifier, data: ImageSet, epoch: int) -> float:
    logits, _ = predict(network, data, generator("selection", epoch))
    return 100 * in_top(logits, data.labels).mean().item()
