"""What a user's attack or defense must be, said in one sentence that names what to write."""

import re
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

from mibench.attacks import GMI, WGANGP
from mibench.benchmarks.cell import Cell
from mibench.benchmarks.tables import TABLES
from mibench.cli import main
from mibench.data import Corpus
from mibench.data.synthetic import Blobs
from mibench.defenses import NoDefense, Recipe
from mibench.networks import MLP
from mibench.roles import Attack, Defense, PriorSpec
from mibench.running.checks import tiny
from mibench.running.grid import record_stages
from mibench.running.stages import ClassifierStage, ImagesStage, InversionStage
from mibench.seeding import generator, seeded
from mibench.spec import canonical, check_class, check_role
from mibench.store import Work
from mibench.training.train import train_classifier
from mibench.types import Classifier, Reconstructions

CELL = TABLES["smoke"].rows["GMI / No Def."]


# Classes ------------------------------------------------------------------------------------


class Loss:
    """What makes a class a defense, without the role."""

    def loss_terms(self, network: Any, batch: Any) -> dict[str, Tensor]:
        return {"task": F.cross_entropy(network(batch.x), batch.y)}


class Plain(Loss, Defense):
    name = "mine"


class WithInit(Loss, Defense):
    name = "mine"

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha


@dataclass(frozen=True)
class Decorated(Loss, Defense):
    name = "mine"

    alpha: float

    def __init__(self, alpha: float) -> None:
        object.__setattr__(self, "alpha", alpha)


class BelowAnInit(Decorated):
    pass


@dataclass
class Thawed(Loss, Defense):
    name: ClassVar[str] = "mine"


@dataclass(frozen=True)
class Nameless(Loss, Defense):
    alpha: float = 0.1


class Undecorated(NoDefense):
    alpha: float = 0.1


class Bare(GMI):
    steps = 7


@dataclass(frozen=True)
class DecoratedAndBare(GMI):
    steps = 7


@dataclass(frozen=True)
class Whole(Loss, Defense):
    name: ClassVar[str] = "mine"

    alpha: float = 0.1

    def __post_init__(self) -> None:
        assert self.alpha > 0


class OnlyRenamed(Whole):
    name: ClassVar[str] = "yours"


@dataclass(frozen=True, slots=True)
class Slotted(Loss, Defense):
    name: ClassVar[str] = "mine"

    alpha: float = 0.1


@dataclass(frozen=True)
class Passing(Loss, Defense):
    name: ClassVar[str] = "mine"

    alpha: InitVar[float] = 0.1


def made(alpha: float, where: str) -> type:
    """Returns a class that takes a number of this function, or none."""
    if where == "method":

        @dataclass(frozen=True)
        class InMethod(Loss, Defense):
            name: ClassVar[str] = "mine"

            def harden(self, network: Classifier) -> Classifier:
                return super().harden(network) if alpha else network

        return InMethod
    if where == "default":

        @dataclass(frozen=True)
        class InDefault(Loss, Defense):
            name: ClassVar[str] = "mine"

            def measure(self, weight: float = alpha) -> float:
                return weight

        return type("Below", (InDefault,), {"__module__": __name__})
    if where == "value":

        @dataclass(frozen=True)
        class InValue(Loss, Defense):
            name: ClassVar[str] = "mine"
            weight: ClassVar[float] = alpha

        return InValue

    @dataclass(frozen=True)
    class Nowhere(Loss, Defense):
        name: ClassVar[str] = "mine"

        def harden(self, network: Classifier) -> Classifier:
            return super().harden(network)

    return Nowhere


TAKES = "takes alpha from the function that makes it, and no key would tell its value"
WRITE = "write @dataclass(frozen=True) above the class"


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (Plain, f"Plain is not a dataclass: {WRITE} and each hyper-parameter as a field"),
        (WithInit, f"WithInit has an __init__: delete it, {WRITE} and each hyper-parameter"),
        (Decorated, "Decorated has an __init__: delete it"),
        (BelowAnInit, "BelowAnInit has an __init__"),
        (Thawed, f"Thawed is a dataclass that is not frozen: {WRITE}"),
        (Nameless, 'Nameless has no name: write name: ClassVar[str] = "nameless" in it'),
        (Undecorated, "Undecorated is not a dataclass"),
        (Bare, "Bare.steps has a value and no type, .* write steps: TYPE = VALUE"),
        (DecoratedAndBare, "DecoratedAndBare.steps has a value and no type"),
        (Passing, "Passing.alpha is an InitVar, .* write a plain field, such as alpha: float"),
        (made(0.1, "method"), f"InMethod {TAKES}: make it a field"),
        (made(0.1, "default"), f"Below {TAKES}"),
        (made(0.1, "value"), f"InValue {TAKES}"),
    ],
)
def test_a_class_whose_values_would_be_in_no_key_is_told_what_to_write(
    cls: type, sentence: str
) -> None:
    pattern = ".*".join(map(re.escape, sentence.split(".*")))
    with pytest.raises(TypeError, match=pattern):
        check_class(cls)
    spec = cls(0.1) if cls in (WithInit, Decorated, BelowAnInit) else cls()
    with pytest.raises(TypeError, match=pattern):
        canonical(spec)


@pytest.mark.parametrize("cls", [Whole, OnlyRenamed, Slotted, Cell, made(0.1, "")])
def test_a_frozen_dataclass_and_what_only_renames_one_are_specs(cls: type) -> None:
    check_class(cls)


@dataclass(frozen=True)
class Short(Defense):
    name: ClassVar[str] = "short"

    def loss_terms(self, network: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {}


@dataclass(frozen=True)
class Stray(Loss):
    name: ClassVar[str] = "stray"


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (Whole, "a defense must be an object of a class that derives from mibench.Defense: "
                "write Whole(...)"),
        (Stray(), "a class that derives from mibench.Defense, got Stray"),
        (Plain(), "Plain is not a dataclass"),
        (Short(), "Short.loss_terms must take what it is called with: "
                  "write def loss_terms(self, network, batch)"),
    ],
)  # fmt: skip
def test_what_cannot_play_a_role_is_told_what_to_write(spec: object, sentence: str) -> None:
    with pytest.raises(TypeError, match=re.escape(sentence)):
        check_role(spec, Defense, "a defense")


@dataclass(frozen=True)
class Mine(Attack):
    name: ClassVar[str] = "mine"
    access: ClassVar[Any] = "labels"

    prior: PriorSpec = field(default_factory=WGANGP)

    def invert(self, *arguments: Any) -> Reconstructions:
        raise NotImplementedError


@dataclass(frozen=True)
class Priorless(Attack):
    name: ClassVar[str] = "priorless"

    def invert(self, *arguments: Any) -> Reconstructions:
        raise NotImplementedError


class LabelOnly(Mine):
    access: ClassVar[Any] = "label-only"


class Hopeful(Mine):
    max_queries = "10"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("attack", "error", "sentence"),
    [
        (Priorless(), TypeError, "Priorless has no prior: write prior: PriorSpec = field("),
        (LabelOnly(), ValueError, "LabelOnly.access must be one of none, labels, scores, "
                                  "white, got 'label-only'"),
        (Hopeful(), ValueError, "Hopeful.max_queries must be a whole number of answers"),
        (Mine(prior=3), TypeError, "Mine.prior must be an object of a class that derives from "  # type: ignore[arg-type]
                                   "mibench.PriorSpec, got int"),
    ],
)  # fmt: skip
def test_a_cell_refuses_an_attack_that_cannot_run(
    attack: Attack, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        replace(CELL, attack=attack).check()


def test_a_cell_refuses_a_defense_that_cannot_be_a_spec() -> None:
    with pytest.raises(TypeError, match="Plain is not a dataclass"):
        replace(CELL, defense=Plain()).check()
    replace(CELL, defense=Whole(), attack=Mine()).check()


@dataclass(frozen=True)
class Listed(NoDefense):
    name = "listed"

    layers: Any = field(default_factory=lambda: [1])


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([1], "Listed.layers holds a list, which can change: write a tuple"),
        ((1, {"a": 1}), "Listed.layers holds a dict, which can change: write a tuple of pairs"),
    ],
)
def test_a_field_that_can_change_is_named(value: object, sentence: str) -> None:
    """Stages are looked up by their specs, which lists and dicts would keep from being hashed."""
    with pytest.raises(TypeError, match=re.escape(sentence)):
        replace(CELL, defense=Listed(value)).check()
    replace(CELL, defense=Listed((1, (2,)))).check()


def test_a_check_names_a_field_that_can_change() -> None:
    with pytest.raises(TypeError, match=r"Listed\.layers holds a list"):
        tiny(Listed)


# What they return ---------------------------------------------------------------------------


def stage() -> InversionStage:
    table = TABLES["smoke"].only(["GMI / No Def."])
    (records,) = record_stages(table, 1, Path()).values()
    return records[0].evidence[0].inversion


def found(**change: object) -> Reconstructions:
    """Returns reconstructions with fields that no type checker would let pass."""
    shape = (10, 5, 1, 8, 8)
    values = {"images": torch.rand(shape, generator=generator("x")), "earlier": None}
    values["latents"] = torch.zeros(10, 5, 3)
    made: Reconstructions = object.__new__(Reconstructions)
    for name, value in (values | change).items():
        object.__setattr__(made, name, value)
    return made


X = torch.full((10, 5, 1, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (X, "invert of gmi must return mibench.Reconstructions(images, latents), got Tensor"),
        (None, "got NoneType"),
        (found(images=X.byte()), "images as a tensor of floats in [0, 1], got torch.uint8"),
        (found(images=X.numpy()), "images as a tensor of floats in [0, 1], got float32"),
        (found(images=X.tolist()), "images as a tensor of floats in [0, 1], got list"),
        (found(images=X.flatten(0, 1)), "images of shape (50, 1, 8, 8), not (10, 5, 1, 8, 8): "
                                        "samples, classes, channels, height, width"),
        (found(images=X * float("nan")), "a reconstruction of gmi is not finite"),
        (found(images=2 * X + 0.01), "images with pixels outside [0, 1]; clamp them"),
        (found(images=X - 0.51), "images with pixels outside [0, 1]"),
        (found(earlier=X), "earlier of shape (10, 5, 1, 8, 8), not (10, 10, 5, 1, 8, 8)"),
        (found(earlier=X[None] - 1), "earlier with pixels outside [0, 1]"),
        (found(latents=None), "latents as a tensor (samples, classes, ...) that begins with "
                              "(10, 5), got NoneType"),
        (found(latents=torch.zeros(50, 3)), "begins with (10, 5), got (50, 3)"),
    ],
)  # fmt: skip
def test_what_an_attack_must_not_return(returned: object, sentence: str) -> None:
    with pytest.raises((ValueError, FloatingPointError), match=re.escape(sentence)):
        stage()._check(returned)


@pytest.mark.parametrize("count", [-1, 3.5, "many", torch.tensor(3)])
@pytest.mark.parametrize("name", ["steps", "queries", "gradients"])
def test_what_an_attack_counts_is_a_whole_number(name: str, count: Any) -> None:
    work = Work()
    assert stage()._spent(work) == {"steps": 0, "queries": 0, "gradients": 0}
    setattr(work, name, count)
    with pytest.raises(ValueError, match=rf"gmi set work\.{name} to .*: it must be a"):
        stage()._spent(work)


@pytest.mark.parametrize(
    "returned",
    [found(), found(images=X.double()), found(earlier=X[None]), found(earlier=X[None][:0])],
)
def test_what_an_attack_may_return(returned: Reconstructions) -> None:
    stage()._check(returned)


def cross_entropy(network: Classifier, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(network(x), y)


@dataclass(frozen=True)
class Returning(Defense):
    name: ClassVar[str] = "mine"

    make: Callable[[Tensor], Any]

    def loss_terms(self, network: Classifier, batch: Any) -> Any:
        return self.make(cross_entropy(network, batch.x, batch.y))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda loss: loss, 'a dict of named terms, such as {"task": loss}, got Tensor'),
        (lambda _: None, "got NoneType"),
        (lambda _: {}, "got an empty one"),
        (lambda loss: {"task": loss.expand(4)}, "each term as a tensor of one number, such as a "
                                                "mean over the batch, got shape (4,) for 'task'"),
        (lambda loss: {"task": loss, "more": 0.5}, "got float for 'more'"),
        (lambda loss: {"task": loss.detach()}, "a term that depends on the network's weights"),
    ],
)  # fmt: skip
def test_what_loss_terms_must_not_return(make: Any, sentence: str) -> None:
    corpus: Corpus = Blobs().load(Path()).private
    with seeded("test"):
        network = MLP().build((1, 8, 8), corpus.num_classes)
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        train_classifier(network, Returning(make), Recipe(1), corpus, generator(), Work())
    assert str(refusal.value).startswith("loss_terms of mine must return ")


@dataclass(frozen=True)
class Forgetful(Loss, Defense):
    name: ClassVar[str] = "forgetful"

    def harden(self, network: Classifier) -> Any:
        network.last = nn.Identity()


def test_harden_must_return_the_network() -> None:
    task = Blobs()
    images = ImagesStage(task, task.digest(Path()))
    stage = ClassifierStage(images, "private", MLP(), Forgetful(), Recipe(1), 0)
    with pytest.raises(ValueError, match="harden of forgetful must return the network to train, "):
        stage.compute(lambda s: s.compute(lambda _: {}, Work()), Work())


# The command line ---------------------------------------------------------------------------

HEAD = """
from dataclasses import dataclass, field, replace
from typing import ClassVar
import torch
from mibench import Attack, Defense, PriorSpec, Table
from mibench.attacks import WGANGP
from mibench.benchmarks.tables import TABLES

cell = TABLES["smoke"].rows["GMI / No Def."]
"""
LABEL_ONLY = f"""{HEAD}
@dataclass(frozen=True)
class Mine(Attack):
    name: ClassVar[str] = "mine"
    access: ClassVar[str] = "labels"
    prior: PriorSpec = field(default_factory=WGANGP)

    def invert(self, target, prior, goal, work):
        return prior.generate(prior.sample(goal.samples, goal.streams[0]))

cell = replace(cell, attack=Mine(replace(cell.attack.prior, epochs=1)))
TABLE = Table("mine", "Mine.", {{"Mine / No Def.": cell}})
"""
WITH_INIT = f"""{HEAD}
DECORATOR
class Mine(Defense):
    name = "mine"

    def __init__(self, alpha):
        self.alpha = alpha

    def loss_terms(self, network, batch):
        return {{"task": torch.nn.functional.cross_entropy(network(batch.x), batch.y)}}

TABLE = Table("mine", "Mine.", {{"GMI / Mine": replace(cell, defense=Mine(0.1))}})
"""

WITHOUT_TERMS = """
from dataclasses import dataclass

from mibench import Defense


@dataclass(frozen=True)
class Mine(Defense):
    name = "mine"


MINE = Mine()
"""


@pytest.mark.parametrize(
    ("name", "text", "status", "sentence"),
    [
        ("mine_tensor", LABEL_ONLY, 1, "invert of mine must return mibench.Reconstructions"),
        ("mine_plain", WITH_INIT.replace("DECORATOR", ""), 2, "Mine has an __init__: delete it"),
        ("mine_init", WITH_INIT.replace("DECORATOR", "@dataclass(frozen=True)"), 2,
         "cannot assign to field 'alpha'; in place of an __init__ write each hyper-parameter as"),
        ("mine_null", "x = 1\0", 2, "mine_null.py: SyntaxError: source code string"),
        ("mine_lacks", WITHOUT_TERMS, 2, "line 12: the class Mine must define loss_terms"),
    ],
)  # fmt: skip
def test_the_command_line_says_so_in_one_line(
    name: str, text: str, status: int, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    small = ["--set", "recipe.epochs=1", "--set", "setting.evaluators.0.recipe.epochs=1"]
    places = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(
        main, ["run", str(path), *small, *places, "--executor", "serial", "--quiet"]
    )
    assert done.exit_code == status, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert sentence in line
    assert "Traceback" not in done.output
