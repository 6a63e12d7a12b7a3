"""What a run would do: how many steps each stage takes, before anything is computed."""

from pathlib import Path

from mibench.benchmarks.stages import ClassifierStage, InversionStage, PriorStage
from mibench.data import Sizes, Task
from mibench.store import Stage


def planned_steps(stage: Stage, sizes: Sizes | None) -> int | None:
    """Returns how many steps of optimisation a stage takes.

    Args:
        stage: Any stage.
        sizes: How many images its task has, if that is known.

    Returns:
        0 for a stage that optimises nothing; None if it cannot be told.
    """
    if isinstance(stage, InversionStage):
        return stage.attack.planned_steps(len(stage.blocks), stage.samples)
    if sizes is None:
        return None if isinstance(stage, ClassifierStage | PriorStage) else 0
    if isinstance(stage, ClassifierStage):
        images = getattr(sizes, stage.part)
        if stage.recipe.select == "validation":
            images -= round(stage.images.task.validation * images)
        return stage.recipe.planned_steps(images)
    return stage.spec.planned_steps(sizes.public) if isinstance(stage, PriorStage) else 0


def known_sizes(task: Task, data: Path) -> Sizes | None:
    """Returns how many images a task has: as its files say, else as is known of them."""
    try:
        return task.sizes(data)
    except (FileNotFoundError, ValueError):
        return task.official if task == type(task)() else None
