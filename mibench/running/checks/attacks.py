"""What an attack promises."""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

from mibench.attacks import WhiteBox
from mibench.attacks.access import NO_LIMIT, LimitError
from mibench.attacks.losses import LogitMatching, MaxMargin
from mibench.attacks.views import Crop, Flip, Noise, Plain, Shift
from mibench.roles import PriorSpec, View
from mibench.running.checks.base import (
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
    difference,
    target,
    tiny,
)
from mibench.running.checks.stages import TRIALS, Tally, cell, inversion_stage, load

RESULT = "images"
DRAW = "goal.draws, goal.noise, goal.uniform or the streams of goal"
KEEP = (
    "put all that a round changes (tensors, optimisers, generators, counters) into the dict that "
    'rounds is given, a number as an entry such as state["count"] += 1'
)
ASK = "ask the target that invert is handed, and no network inside it"
VIEWS: Mapping[str, Any] = {
    "identity": LogitMatching(),
    "views": (Shift(pixels=2), Crop(), Noise(draws=2)),
}
"""All that makes a white-box attack adaptive and draws at random."""


class AttackTrial(Trial):
    """An attack on an untrained target, 3 images of each of 4 classes in 2 blocks."""

    def fresh(self) -> Any:  # noqa: ANN401
        """Returns the attack with a small prior."""
        attack = super().fresh()
        if isinstance(getattr(attack, "prior", None), PriorSpec):
            attack = replace(attack, prior=tiny(type(attack.prior)))
        return attack

    def compute(
        self, spec: Any, work: CheckedWork, seed: int, limit: int = NO_LIMIT, **change: Any  # noqa: ANN401
    ) -> Run:  # fmt: skip
        """Runs the attack.

        Args:
            spec: The attack.
            work: Its counters and saved state.
            seed: Of its streams.
            limit: Answers that the target gives.
            change: Other values of fields.
        """
        tally = Tally(target())
        attack = replace(spec, **change) if change else spec
        stage = inversion_stage(attack, tally, seed, limit)
        return Run(stage.compute(load, work), work, tally)

    @cached_property
    def adaptive(self) -> Run:
        """A white-box attack that looks through views that draw at random."""
        return self.run(**VIEWS)

    @property
    def has_views(self) -> bool:
        """Whether it is a white-box attack with the fields that make one adaptive."""
        return issubclass(self.cls, WhiteBox)

    @property
    def needed(self) -> int:
        """How many answers it has of the target where nothing limits them."""
        return answers(self.whole)

    @cached_property
    def limited(self) -> dict[float, Run]:
        """Runs on a target that gives a share of the answers needed, by that share.

        Those that the attack refuses to begin, since its steps do not fit, are left out.
        """
        runs = {}
        for share in (0.5, 0.9, 1.0):
            limit = int(share * self.needed)
            try:
                runs[share] = self.run(limit=limit)
            except BrokenPromiseError as error:
                if share == 1 or not isinstance(error.__cause__, ValueError):
                    raise
                refuse_overspending(error, limit)
        return runs


def answers(run: Run) -> int:
    """Returns how many answers a run had of its target, those about public images left out."""
    shared: int = run.payload["budget"].get("shared", 0)
    given: int = sum(run.target.answers)
    return given - shared


def refuse_overspending(error: BrokenPromiseError, limit: int) -> None:
    """Says so, if the error is the target's own, that the attack asked it too much."""
    if isinstance(error.__cause__, LimitError):
        broken(
            f"it asks for more than the {limit} answers of its budget, and the target refuses: "
            "take the number of steps that paid_steps(target, steps, images) returns, or end by "
            "target.remaining"
        )


def check_images(trial: AttackTrial) -> None:
    """Checks that the attack fits a cell, runs, and returns images of the task in [0, 1]."""
    try:
        cell(trial.fresh()).check()
    except (TypeError, ValueError) as error:
        raise BrokenPromiseError(trial.sentence(error)) from error
    check_tensor(trial.whole.payload["latents"], "the latents that it returns")
    shape = trial.whole.payload["images"].shape[:2]
    assert shape == (TRIALS.samples, TRIALS.classes)


def check_same_seed(trial: AttackTrial) -> None:
    """Checks that the seed alone decides the images."""
    check_seed(trial, RESULT, DRAW, KEEP)


def check_resumes(trial: AttackTrial) -> None:
    """Checks that an interrupted attack ends in the same images, latents and counts."""
    steps = trial.whole.work.steps or trial.fresh().planned_steps(2, TRIALS.samples)
    unsaved = f"it takes {steps} steps and saves none: run them by rounds or by descend"
    check_resuming(trial, RESULT, unsaved if steps else "", KEEP)
    if not trial.has_views:
        return
    middle = (trial.adaptive.work.saves + 1) // 2
    if parts := difference(trial.adaptive.payload, trial.interrupted(middle, **VIEWS).payload):
        broken(
            f"with views, interrupted and resumed, it ends with other {parts}: take the loss by "
            "self.wrong(target, x, rows), whose draws are saved"
        )


def check_counts(trial: AttackTrial) -> None:
    """Checks that what the target counts is what was asked of it."""
    for run in (trial.whole, trial.adaptive) if trial.has_views else (trial.whole,):
        for what in ("answers", "gradients"):
            really = sum(getattr(run.target, what))
            counted = run.work.queries if what == "answers" else run.work.gradients
            if really != counted:
                broken(f"it has {really} {what} of the target, and {counted} are counted: {ASK}")


def check_budget(trial: AttackTrial) -> None:
    """Checks that a limit of answers is kept to, and only where it binds."""
    if not trial.needed:
        raise NotCheckedError("it asks the target nothing")
    check_own_limit(trial)
    for share, run in _limited(trial).items():
        limit = int(share * trial.needed)
        if (spent := answers(run)) > limit:
            broken(f"it has {spent} answers where its budget is {limit}: {ASK}")
        parts = difference(run.payload, trial.whole.payload) if share == 1 else ""
        if parts and trial.repeatable:
            broken(
                f"with the {limit} answers that it needs, it ends with other {parts} than without "
                "a limit: let the number of steps be what target.remaining pays for, up to its own"
            )


def _limited(trial: AttackTrial) -> dict[float, Run]:
    try:
        return trial.limited
    except BrokenPromiseError as error:
        refuse_overspending(error, trial.needed)
        raise


def check_own_limit(trial: AttackTrial) -> None:
    """Checks that the attack keeps to its own ``max_queries``, with views where it has them."""
    if "max_queries" not in {f.name for f in fields(trial.cls)}:
        return
    change: dict[str, Any] = {"views": (Plain(draws=2), Flip())} if trial.has_views else {}
    needed = answers(trial.run(**change)) if change else trial.needed
    each = int(0.6 * needed) // TRIALS.classes
    try:
        run = trial.run(max_queries=each, **change) if each else trial.whole
    except BrokenPromiseError as error:
        refuse_overspending(error, each * TRIALS.classes)
        if not isinstance(error.__cause__, ValueError):
            raise
    else:
        if each and (spent := answers(run)) > each * TRIALS.classes:
            broken(f"it has {spent} answers where its budget is {each * TRIALS.classes}: {ASK}")


def check_resumes_within_budget(trial: AttackTrial) -> None:
    """Checks that an attack with a limit resumes to the same images and counts."""
    limit = int(0.7 * trial.needed)
    if not trial.needed or not trial.whole.work.saves:
        raise NotCheckedError("it asks the target nothing, or saves nothing")
    if not trial.repeatable or trial.lost:
        raise NotCheckedError("it does not end in the same bits without a limit either")
    try:
        whole = trial.run(limit=limit)
    except BrokenPromiseError as error:
        raise NotCheckedError("it does not run within the limit") from error
    parts = difference(whole.payload, trial.interrupted(2, limit=limit).payload)
    if parts:
        broken(
            f"with a limit of answers, interrupted and resumed, it ends with other {parts}: take "
            "what the answers pay for before the loop, by paid_steps or target.remaining"
        )


def check_target(trial: AttackTrial) -> None:
    """Checks that the target's weights, gradients and mode are left as they were."""
    if damage := trial.whole.target.damage():
        broken(damage)


def check_adapts(trial: AttackTrial) -> None:
    """Checks that a white-box attack uses its fields ``identity`` and ``views``."""
    default: tuple[View, ...] = trial.fresh().views
    if default:
        broken("it has views by default: write views: tuple[View, ...] = ()")
    matching = trial.run(identity=LogitMatching())
    pairs = {
        "identity": [(trial.run(identity=MaxMargin()), matching)],
        "views": [(trial.adaptive, matching)],
    }
    for name, runs in pairs.items():
        if any(not difference(a.payload, {**b.payload, "budget": a.payload["budget"]})
               for a, b in runs):  # fmt: skip
            broken(
                f"another value of its field {name} gives the same images: take the loss by "
                "self.wrong(target, x, rows)"
            )


ATTACK = (
    Check("it runs and returns images of the task in [0, 1]", check_images),
    Check("the same seed gives the same images, another seed others", check_same_seed),
    Check("interrupted and resumed, it ends in the same bits", check_resumes),
    Check("each answer and gradient of the target is counted", check_counts),
    Check("it keeps to its budget, to the answer", check_budget),
    Check("interrupted within a budget, it ends in the same bits", check_resumes_within_budget),
    Check("it leaves the target as it was", check_target),
)
ADAPTIVE = Check("its fields identity and views decide what it finds", check_adapts)
