"""One measurement: who defends what, against whom, judged how."""

from dataclasses import dataclass, field, replace
from typing import get_args

from mibench.data import Task
from mibench.defenses import Recipe
from mibench.evaluation import Protocol
from mibench.roles import Attack, Defense, NetworkSpec, PriorSpec
from mibench.spec import check_hashable, check_role, require
from mibench.training.train import check_maturity
from mibench.types import Access

INF = float("inf")


@dataclass(frozen=True)
class Evaluator:
    """An evaluation classifier: an architecture and how it is trained."""

    network: NetworkSpec
    recipe: Recipe


@dataclass(frozen=True)
class Setting:
    """Section 5.1: a task, the network its owner trains, the networks that evaluate.

    Attributes:
        task: The data.
        network: Target architecture.
        evaluators: Evaluation classifiers, trained on the task's evaluation corpus; the
            first one gives the table's numbers, all of them the metrics of an ensemble.
        evaluator_seed: The first one's seed, the same for all cells; each further one's is
            greater by one.
    """

    task: Task
    network: NetworkSpec
    evaluators: tuple[Evaluator, ...]
    evaluator_seed: int = 0


@dataclass(frozen=True)
class Trials:
    """Whom to attack and how often.

    Attributes:
        classes: Number of classes attacked, from class 0 on.
        samples: Reconstructions per class; pass i is the i-th sample of every class.
        block: Classes whose losses are averaged together.
        repeats: How often the whole attack is repeated.
    """

    classes: int
    samples: int
    block: int = 60
    repeats: int = 1

    def __post_init__(self) -> None:
        require(self, classes=(1, INF), samples=(1, INF), block=(1, INF), repeats=(1, 10_000))


@dataclass(frozen=True)
class Seeds:
    """Three seeds, so that the effect of each can be measured."""

    target: int = 0
    prior: int = 0
    attack: int = 0


@dataclass(frozen=True)
class Cell:
    """Everything that decides one number of a table, and nothing that does not.

    Attributes:
        setting: The data, the target's architecture, the evaluators.
        recipe: How the target is trained.
        defense: How it is defended.
        attack: Who attacks it.
        trials: Whom, how often.
        protocol: How reconstructions become numbers.
        seeds: Of target, prior and attack.
        control: An attack that finds nothing, run on the same target as often: what the
            evaluator accepts of it is the rate of false positives of the corrected Attack Acc.
    """

    setting: Setting
    recipe: Recipe
    defense: Defense
    attack: Attack
    trials: Trials
    protocol: Protocol = field(default_factory=Protocol)
    seeds: Seeds = field(default_factory=Seeds)
    control: Attack | None = None

    @property
    def unequal_blocks(self) -> bool:
        """Whether the protocol averages blocks of unequal size: no mean over identities then."""
        over = self.trials
        several = self.protocol.spread == "block" and over.classes > over.block
        return several and over.classes % over.block > 0

    def check(self) -> None:
        """Checks what no part of the cell can check alone.

        Raises:
            TypeError: If the defense, the attack or its prior cannot be a spec, or one has a
                field that holds a list or a dict.
            ValueError: If more classes are attacked than are private, or the attack's access
                or limit is none, or a black-box attack has a prior that is trained on the
                whole target, or the attack's queries do not pay for a step, or a recipe of no
                epochs leaves a network untrained, or the defense refuses the cell.
        """
        check_role(self.defense, Defense, "a cell's defense")
        check_role(self.attack, Attack, "a cell's attack")
        who = type(self.attack).__qualname__
        if not hasattr(self.attack, "prior"):
            raise TypeError(
                f"{who} has no prior: write prior: PriorSpec = field(default_factory=WGANGP) in it"
            )
        check_role(self.attack.prior, PriorSpec, f"{who}.prior")
        check_hashable(self)
        if self.attack.access not in get_args(Access):
            known = ", ".join(get_args(Access))
            raise ValueError(f"{who}.access must be one of {known}, got {self.attack.access!r}")
        limit: object = self.attack.max_queries
        if not isinstance(limit, int) or limit < 0:
            raise ValueError(
                f"{who}.max_queries must be a whole number of answers for each class, 0 for no "
                f"limit, got {limit!r}"
            )
        self.attack.planned_steps(1, self.trials.samples)
        judges = [(e.network, e.recipe) for e in self.setting.evaluators]
        for network, recipe in [(self.setting.network, self.recipe), *judges]:
            if not (recipe.epochs or network.trained):
                raise ValueError(
                    f"a recipe of 0 epochs leaves {network.name} untrained: let it take an "
                    "epoch, or take a network that comes trained (see mibench import target)"
                )
        if sentence := self.defense.refuse(self):
            raise ValueError(sentence)
        check_maturity(self.defense, self.recipe)
        if self.trials.classes > self.setting.task.num_classes:
            raise ValueError(
                f"{self.trials.classes} classes are attacked but {self.setting.task.name} has "
                f"{self.setting.task.num_classes} private ones"
            )
        self._check_prior()
        if self.protocol.select == "evaluator" and not getattr(self.attack, "snapshots", 0):
            raise ValueError(
                f"protocol.select=evaluator selects among an attack's snapshots, but "
                f"{self.attack.name} keeps none; set attack.snapshots, where it has that"
            )
        if self.control is not None:
            protocol = replace(self.protocol, select="last")
            replace(self, attack=self.control, control=None, protocol=protocol).check()

    def _check_prior(self) -> None:
        """Refuses a prior that the attack cannot work with; what asks nothing takes any."""
        attack, prior = self.attack, self.attack.prior
        order = get_args(Access)
        if attack.access != "none" and order.index(prior.access) > order.index(attack.access):
            handed = "the whole target" if prior.access == "white" else f"its {prior.access}"
            raise ValueError(
                f"{attack.name} sees only the target's {attack.access}, but its prior "
                f"{prior.name} is trained on {handed}; give it another prior"
            )
        if missing := [offer for offer in attack.wants if offer not in prior.offers]:
            raise ValueError(
                f"{attack.name} needs a prior with {' and '.join(missing)}, and {prior.name} has "
                "none; give it another prior"
            )

    def at(self, seed: int) -> "Cell":
        """Returns the same cell with all three seeds set to ``seed``."""
        return replace(self, seeds=Seeds(seed, seed, seed))
