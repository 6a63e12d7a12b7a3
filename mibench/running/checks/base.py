"""What all checks share: a component made anew for each run, interruptions, and comparisons."""

import contextlib
import io
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from mibench.data.synthetic import Blobs
from mibench.machine import settings_kept
from mibench.networks import MLP
from mibench.override import bare, hint_of
from mibench.running.userfile import lacking, load_afresh, user_modules
from mibench.seeding import seeded
from mibench.spec import check_hashable
from mibench.store import Payload, Work, pack
from mibench.types import Classifier

NUMBERS: dict[Any, float] = {float: 0.1, int: 2}
"""Values of fields that have no default."""
TASK = Blobs(num_classes=4)
NETWORK = MLP()


class BrokenPromiseError(AssertionError):
    """A component does not do what its role promises; the sentence says what to change."""


class NotCheckedError(Exception):
    """A check says nothing about this component; the sentence says why."""


@dataclass(frozen=True)
class Check:
    """One promise of a role.

    Attributes:
        title: The promise, as a sentence about the component.
        run: Takes a trial and raises :class:`BrokenPromiseError` if the promise is not kept,
            :class:`NotCheckedError` if nothing can be said about it.
    """

    title: str
    run: Callable[[Any], None]


def tiny(cls: type, **extra: Any) -> Any:  # noqa: ANN401
    """Returns the component at its defaults, as small as it says in ``small``.

    Numbers without a default are 0.1 or 2.

    Raises:
        TypeError: If another field has no default, and ``small`` no value of it, or a field
            holds a list or a dict.
        ValueError: If a field's type is not known when the file runs.
    """
    given = dict(getattr(cls, "small", {})) | extra
    hints = {name: hint_of(cls, name) for name in bare(cls) if name not in given}
    values = {name: NUMBERS[hint] for name, hint in hints.items() if hint in NUMBERS} | given
    if lacking := [name for name in hints if name not in values]:
        raise TypeError(
            f"{cls.__name__}.{lacking[0]} has no default: write a value to check it with into "
            f'the class, small: ClassVar[dict[str, Any]] = {{"{lacking[0]}": ...}}'
        )
    component = cls(**values)
    check_hashable(component)
    return component


def target() -> Classifier:
    """Returns a small classifier of the task's images as an attack finds it."""
    with seeded("checks"):
        network = NETWORK.build(TASK.shape, TASK.num_classes)
    return network.eval().requires_grad_(requires_grad=False)


class StoppedError(BaseException):
    """Stands for a death that no handler survives."""


class CheckedWork(Work):
    """Counts its saves; dies just after a given one.

    Attributes:
        saves: How often a state was offered.
    """

    def __init__(self, folder: Path | None = None, dies: int = 0) -> None:
        super().__init__(folder, every=0.0 if dies else 1e9)
        self.saves, self._dies = 0, dies

    def save(self, state: Callable[[], Payload]) -> None:
        """Saves, or only counts where nobody is to die."""
        super().save(state)
        self.saves += 1
        if self.saves == self._dies:
            raise StoppedError


@dataclass(frozen=True)
class Run:
    """What one run of a component left.

    Attributes:
        payload: Its result.
        work: Its counters.
        target: What it was run against, if anything.
    """

    payload: Payload
    work: CheckedWork
    target: Any = None


class Trial:
    """A component and its runs; subclasses say how it is run.

    Attributes:
        cls: Its class.
        path: The user's file that defines it. The file is executed again for each run that
            stands for a process of its own, so that its modules remember nothing.
        culprits: Variables of the user's modules that changed during :attr:`whole`.
    """

    def __init__(self, cls: type, path: Path | None = None) -> None:
        self.cls, self.path = cls, path
        self.culprits: list[str] = []

    def fresh(self) -> Any:  # noqa: ANN401
        """Returns the component as another process would make it."""
        if self.path is None:
            return tiny(self.cls)
        with contextlib.redirect_stderr(io.StringIO()):  # what it notes was said the first time
            module = load_afresh(self.path)
        name = self.cls.__name__
        if not hasattr(module, name):
            raise TypeError(f"{self.path.name} has no {name}: leave each class its own name")
        return tiny(getattr(module, name))

    def compute(self, spec: Any, work: CheckedWork, seed: int, **how: Any) -> Run:  # noqa: ANN401
        """Runs the component once."""
        raise NotImplementedError

    def run(
        self, spec: Any = None, seed: int = 0, work: CheckedWork | None = None, **how: Any  # noqa: ANN401
    ) -> Run:  # fmt: skip
        """Runs the component, by default in a process of its own, and returns what is left.

        Raises:
            BrokenPromiseError: As in :meth:`guarded`.
        """
        with self.guarded():
            return self.compute(
                self.fresh() if spec is None else spec, work or CheckedWork(), seed, **how
            )

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Holds the component responsible for what happens inside.

        Raises:
            BrokenPromiseError: If it raises an error or ends the process, the sentence says
                where; or if it leaves torch's settings changed.
        """
        try:
            with settings_kept():
                yield
        except (BrokenPromiseError, NotCheckedError, KeyboardInterrupt, StoppedError):
            raise
        except BaseException as error:  # SystemExit, too: it would end the checks with status 0
            raise BrokenPromiseError(self.sentence(error)) from error

    def sentence(self, error: BaseException) -> str:
        """Returns what an error says, and in which line of the user's file it arose."""
        text = lacking(error) or " ".join(str(error).split())
        plain = type(error).__module__ != "builtins" or isinstance(error, ValueError | TypeError)
        if not (text and plain):
            text = f"{type(error).__name__}: {text}".removesuffix(": ")
        if isinstance(error, SystemExit):
            text += "; a component must not end the process"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if self.path is not None and Path(frame.filename).resolve() == self.path.resolve():
                return f"{text} ({self.path.name}, line {frame.lineno})"
        return text

    @cached_property
    def whole(self) -> Run:
        """The run of seed 0 that nothing interrupts."""
        spec = self.fresh()
        before = remembered(self.path)
        run = self.run(spec)
        after = remembered(self.path)
        self.culprits = sorted(k for k, v in after.items() if before.get(k, v) != v)
        return run

    @cached_property
    def twins(self) -> tuple[Run, Run]:
        """Two more runs of seed 0, one after the other in another process."""
        if self.path is None:
            return self.whole, self.run()
        spec = self.fresh()
        return self.run(spec), self.run(spec)

    @property
    def repeatable(self) -> bool:
        """Whether all runs of seed 0 are equal."""
        return not any(difference(self.whole.payload, twin.payload) for twin in self.twins)

    @cached_property
    def lost(self) -> tuple[int, str] | None:
        """After how many saves an interruption first changes the result, and which parts.

        Tried are the first, a middle and the last save.
        """
        saves = self.whole.work.saves
        for point in sorted({1, (saves + 1) // 2, saves}):
            if parts := difference(self.whole.payload, self.interrupted(point).payload):
                return point, parts
        return None

    def interrupted(self, saves: int, **how: Any) -> Run:  # noqa: ANN401
        """Returns the run that resumes one which died after ``saves`` saves."""
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(StoppedError):
                self.run(work=CheckedWork(Path(folder), saves), **how)
            return self.run(work=CheckedWork(Path(folder)), **how)

    def hint(self) -> str:
        """Returns a clause on what changed in the user's modules while the component ran."""
        return f" ({', '.join(self.culprits)} changed)" if self.culprits else ""


def remembered(path: Path | None) -> dict[str, object]:
    """Returns the module and class variables of a user's file, in a form that can be compared."""
    values: dict[str, object] = {}
    for module in user_modules(path).values() if path is not None else ():
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value.__module__ == module.__name__:
                inside = {f"{name}.{k}": v for k, v in vars(value).items()}
                values |= {k: _frozen(v) for k, v in inside.items() if _is_data(k, v)}
            elif _is_data(name, value):
                values[name] = _frozen(value)
    return values


def _is_data(name: str, value: object) -> bool:
    code = callable(value) and not isinstance(value, nn.Module)
    return not (name.rpartition(".")[2].startswith("__") or code or isinstance(value, ModuleType))


def _frozen(value: object) -> object:
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().tolist())
    try:
        return pickle.dumps(value)
    except Exception:
        return id(value)


def broken(sentence: str) -> NoReturn:
    """Says that a promise is not kept."""
    raise BrokenPromiseError(sentence)


def check_tensor(value: object, what: str) -> Tensor:
    """Returns what a component returns, if it is a dense tensor of finite numbers.

    Args:
        value: What it returns.
        what: What that is, in the plural, for the sentences.

    Raises:
        BrokenPromiseError: If it is not.
    """
    if not isinstance(value, Tensor):
        broken(f"{what} are of type {type(value).__name__}: return a tensor")
    if value.layout != torch.strided:
        broken(f"{what} are sparse: return them dense, by to_dense()")
    if not bool(value.isfinite().all()):
        broken(
            f"{what} hold NaN or infinity: look for a division by 0, a logarithm of 0 or steps "
            "that are too large"
        )
    return value


def difference(a: Payload, b: Payload) -> str:
    """Returns the names of the parts in which two results differ; "" if all bits are equal."""
    return ", ".join(
        name for name in {**a, **b} if name not in a or name not in b or not same(a[name], b[name])
    )


def same(a: object, b: object) -> bool:
    """Whether two nested values are equal to the bit."""
    (tensors, tree), (others, other) = pack(a), pack(b)
    return tree == other and all(_equal(t, others[name]) for name, t in tensors.items())


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


# Checks of all that is run ------------------------------------------------------------------


def check_seed(trial: Trial, result: str, draw: str, keep: str) -> None:
    """Checks that the seed, and nothing else, decides the result.

    Args:
        trial: What is checked.
        result: What a run gives, for the sentences.
        draw: What to draw from.
        keep: Where to keep what changes.
    """
    whole = trial.whole.payload
    first, second = trial.twins
    if difference(whole, first.payload):
        broken(
            f"two runs of the same seed give different {result}: it draws from a source of "
            f"randomness that the seed does not set; draw from {draw} alone"
        )
    if difference(whole, second.payload):
        broken(
            f"a second run in the same process gives other {result}: a module or a class "
            f"remembers the first one{trial.hint()}; {keep}, and draw from {draw} alone"
        )
    if not difference(whole, trial.run(seed=1).payload):
        broken(f"another seed gives the same {result}: draw from {draw}")


def check_resuming(trial: Trial, result: str, unsaved: str, keep: str) -> None:
    """Checks that a run that is interrupted ends in the same bits.

    Args:
        trial: What is checked.
        result: What a run gives, for the sentences.
        unsaved: What to say if it saves nothing though it takes steps.
        keep: Where to keep what changes.
    """
    saves = trial.whole.work.saves
    if not saves:
        if unsaved:
            broken(unsaved)
        raise NotCheckedError("it saves nothing, so it starts over when it is interrupted")
    if not trial.repeatable:
        raise NotCheckedError(f"two runs of the same seed give different {result} already")
    if trial.lost is not None:
        point, parts = trial.lost
        broken(
            f"interrupted after save {point} of {saves} and resumed in a new process, it ends "
            f"with other {parts}: something that changes while it runs is not saved"
            f"{trial.hint()}; {keep}"
        )
