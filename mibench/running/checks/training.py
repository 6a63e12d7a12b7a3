"""What a defense and a prior promise."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mibench.defenses import Recipe
from mibench.roles import Batch, Defense, PriorSpec
from mibench.running.checks.base import (
    NETWORK,
    TASK,
    BrokenPromiseError,
    Check,
    CheckedWork,
    NotCheckedError,
    Run,
    Trial,
    broken,
    check_resuming,
    check_seed,
    check_tensor,
    target,
)
from mibench.running.checks.stages import IMAGES, Tally, cell, load, prior_stage
from mibench.running.stages import ClassifierStage
from mibench.seeding import generator, seeded
from mibench.spec import check_role
from mibench.types import Classifier, Prior

EPOCHS = (3, 10, 30, 100)
"""How long a defense trains: as long as its schedule needs to let weights be kept."""
DRAW_DEFENSE = "batch.rng, the helper's rng or, in layers, torch's global generator"
KEEP_DEFENSE = (
    "keep networks in the Helper that assist returns, optimisers in its optimizers, draws in its "
    "rng, and numbers as its buffers"
)
DRAW_PRIOR = "rng"
KEEP_PRIOR = "give work.save all that a step changes, and put it back from work.load"


class DefenseTrial(Trial):
    """A training of a small network under a defense."""

    def compute(self, spec: Any, work: CheckedWork, seed: int, **how: Any) -> Run:  # noqa: ANN401
        """Trains."""
        recipe = Recipe(epochs=needed_epochs(spec), batch_size=32)
        stage = ClassifierStage(IMAGES, "private", spec.checked_on or NETWORK, spec, recipe, seed)
        return Run(stage.compute(load, work), work)


def needed_epochs(defense: Defense) -> int:
    """Returns how many epochs a schedule needs that lets weights be kept."""
    mature = [e for e in EPOCHS if any(defense.mature(i, e) for i in range(e))]
    return (*mature, EPOCHS[-1])[0]


def hardened(defense: Defense) -> Classifier:
    """Returns the network that the defense trains, fresh."""
    with seeded(0, "init", "private"):
        network = (defense.checked_on or NETWORK).build(TASK.shape, TASK.num_classes)
        return defense.harden(network)


def check_trains(trial: DefenseTrial) -> None:
    """Checks that the defense fits a cell, trains a network, and that network classifies."""
    try:
        check_role(defense := trial.fresh(), Defense, "a defense")
        small = cell(defense=defense, epochs=needed_epochs(defense))
        on = replace(small.setting, network=defense.checked_on or NETWORK)
        replace(small, setting=on).check()
    except (TypeError, ValueError) as error:
        raise BrokenPromiseError(trial.sentence(error)) from error
    trial.whole  # noqa: B018 - its errors say what is wrong
    images = IMAGES.splits(load).private.train.images[:3]
    with torch.no_grad(), seeded("checks"):
        shape = tuple(hardened(defense).eval()(images).shape)
    if shape != (3, TASK.num_classes):
        broken(
            f"the network that harden returns gives logits of shape {shape} for 3 images of "
            f"{TASK.num_classes} classes: keep its last layer's number of classes"
        )


def check_step(trial: DefenseTrial) -> None:
    """Checks that the terms of a step are finite, and that it keeps the network's mode."""
    defense = trial.fresh()
    network = hardened(defense)
    corpus = IMAGES.splits(load).private
    data = corpus.train.take(torch.arange(16))
    outliers = TASK.outliers(Path()).images[:16] if defense.wants_outliers else None
    recipe = Recipe(epochs=needed_epochs(defense))
    epochs = recipe.epochs
    with seeded("checks"):
        helper = defense.assist(network, recipe, corpus, generator("checks"))
        network.train()
        optimizer = recipe.optimize(network)
        for epoch in (0, epochs - 1):
            if helper is not None:
                helper.epoch_begins(epoch)
            rng = generator("checks", epoch)
            batch = Batch(data.images, data.labels, epoch, epochs, 16, rng, helper, outliers)
            defense.step(network, batch, optimizer)
            terms = defense.step(network, batch, optimizer)
            for name, term in terms.items():
                if not bool(term.isfinite().all()):
                    broken(f"the loss term {name!r} is not finite in epoch {epoch + 1}")
            if not all(module.training for module in network.modules()):
                broken(
                    "its step leaves the network, or a part of it, in eval mode: end it with "
                    "network.train()"
                )


def check_weights(trial: DefenseTrial) -> None:
    """Checks that training moves every weight that is not frozen."""
    network = hardened(trial.fresh())
    trained = {name for name, w in network.named_parameters() if w.requires_grad}
    if not trained:
        broken("harden freezes every weight: leave some trainable")
    before, after = network.state_dict(), trial.whole.payload["state"]
    if still := sorted(k for k in trained if torch.equal(before[k], after[k])):
        broken(
            f"no gradient reaches {', '.join(still)}: let loss_terms depend on it, or freeze it "
            "in harden by requires_grad_(False)"
        )


def check_defense_seed(trial: DefenseTrial) -> None:
    """Checks that the seed alone decides the weights."""
    check_seed(trial, "weights", DRAW_DEFENSE, KEEP_DEFENSE)


def check_defense_resumes(trial: DefenseTrial) -> None:
    """Checks that an interrupted training ends in the same weights and history."""
    check_resuming(trial, "weights", "", KEEP_DEFENSE)


DEFENSE = (
    Check("it trains a network, which classifies", check_trains),
    Check("its terms are finite, and a step keeps the network's mode", check_step),
    Check("a gradient reaches every trainable weight", check_weights),
    Check("the same seed gives the same weights, another seed others", check_defense_seed),
    Check("interrupted and resumed, it ends in the same bits", check_defense_resumes),
)


class PriorTrial(Trial):
    """A training of a prior on few public images."""

    def compute(self, spec: Any, work: CheckedWork, seed: int, **how: Any) -> Run:  # noqa: ANN401
        """Trains."""
        tally = Tally(target())
        return Run(prior_stage(spec, tally, seed).compute(load, work), work, tally)


def check_prior(trial: PriorTrial) -> None:
    """Checks that the prior trains, draws images of the task in [0, 1] and judges them."""
    spec = trial.fresh()
    check_role(spec, PriorSpec, "a prior")
    with seeded("checks"):
        prior = spec.build(TASK.shape, TASK.num_classes)
    if not isinstance(prior, Prior):
        broken(f"build returns a {type(prior).__name__}: return a mibench.Prior")
    before = {k: v.clone() for k, v in prior.state_dict().items()}
    after = trial.whole.payload["state"]
    trains = spec.planned_steps(len(IMAGES.splits(load).public)) != 0
    if before and trains and all(torch.equal(v, after[k]) for k, v in before.items()):
        broken("train leaves every weight as it was: move the weights of the prior it is given")
    prior.load_state_dict(after)
    prior.eval().requires_grad_(requires_grad=False)
    y = torch.arange(6) % TASK.num_classes
    z = check_tensor(prior.sample(6, generator("checks")), "the latents that sample returns")
    if z.ndim < 2 or len(z) != 6:
        broken(f"sample returns shape {tuple(z.shape)} for 6 latents: return (n, ...)")
    x = check_tensor(prior.generate(z, y), "the images that generate returns")
    if x.shape != (6, *TASK.shape):
        broken(
            f"generate returns shape {tuple(x.shape)} for 6 latents and images of {TASK.shape}: "
            "return (n, channels, height, width)"
        )
    if not 0 <= float(x.min()) <= float(x.max()) <= 1:
        broken("generate returns pixels outside [0, 1]: end it with a sigmoid or clamp(0, 1)")
    if bool(prior.surrogates) != ("surrogates" in spec.offers):
        broken('its surrogates and its offers disagree: name "surrogates" in offers if it has any')
    if "critic" not in spec.offers:
        return
    realism = check_tensor(prior.realism(x, y), "the numbers that realism returns")
    if (shape := tuple(realism.shape)) != (6,):
        broken(f"realism returns shape {shape} for 6 images: return one number each, shape (n,)")


def check_prior_seed(trial: PriorTrial) -> None:
    """Checks that the seed alone decides the weights."""
    if not trial.whole.payload["state"]:
        raise NotCheckedError("it has no weights")
    check_seed(trial, "weights", DRAW_PRIOR, KEEP_PRIOR)


def check_prior_resumes(trial: PriorTrial) -> None:
    """Checks that an interrupted training ends in the same weights."""
    check_resuming(trial, "weights", "", KEEP_PRIOR)


def check_prior_target(trial: PriorTrial) -> None:
    """Checks that the target that the prior sees is left as it was."""
    if not trial.whole.target.answers:
        raise NotCheckedError("it asks the target nothing")
    if damage := trial.whole.target.damage():
        broken(damage)


PRIOR = (
    Check("it trains, draws images of the task in [0, 1] and judges them", check_prior),
    Check("the same seed gives the same weights, another seed others", check_prior_seed),
    Check("interrupted and resumed, it ends in the same bits", check_prior_resumes),
    Check("it leaves the target as it was", check_prior_target),
)
