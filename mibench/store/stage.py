"""Units of resumable work, and what is wrong with one that cannot be read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from mibench import seeding
from mibench.spec import field_values, fingerprint
from mibench.store.pack import Payload
from mibench.store.work import Work


@dataclass(frozen=True)
class Stage(ABC):
    """One unit of resumable work; a frozen dataclass of specs and of the stages it needs."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    exact: ClassVar[bool] = False
    """Whether it computes in float32 whatever the precision of the run."""

    @cached_property
    def key(self) -> str:
        """The stage's name, known before anything has run."""
        return fingerprint(self.identity)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the stage's result; its key is the fingerprint of this."""
        versions = {"version": self.version, "streams": seeding.VERSION}
        return {"kind": self.kind, **versions, **field_values(self)}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the key out, so that another process finds it from what it sees itself."""
        return {k: v for k, v in vars(self).items() if k not in ("key", "needs")}

    def __canonical__(self) -> dict[str, str]:
        """Returns what stands for this stage in the keys of those that need it."""
        return {"is": self.kind, "key": self.key}

    @cached_property
    def needs(self) -> tuple["Stage", ...]:
        """The stages among the fields, whose payloads ``compute`` may load."""

        def stages(v: object) -> Iterator[Stage]:
            if isinstance(v, Stage):
                yield v
            elif isinstance(v, tuple):
                for x in v:
                    yield from stages(x)

        return tuple({s.key: s for s in stages(tuple(field_values(self).values()))}.values())

    @property
    def has_precision(self) -> bool:
        """Whether its result depends on the precision of a run: its own, or that of a need."""
        return not self.exact or any(need.has_precision for need in self.needs)

    def describe(self) -> str:
        """Returns a short name for progress lines."""
        return self.kind

    @abstractmethod
    def compute(self, load: Callable[["Stage"], Payload], work: Work) -> Payload:
        """Returns the payload: nested dicts of tensors and JSON scalars."""


class DamagedError(ValueError):
    """A finished stage is not what was written under its name."""

    stage: Stage | None = None
    """Which, where that is known."""

    @property
    def told(self) -> str:
        """What is damaged and, unless it says so itself, what to do about it."""
        text = str(self)
        if self.stage is None or "--repair" in text:
            return text
        return (
            f"{text}: `mibench store check --repair`, with the same --store, moves the stage aside"
        )


class AbsentError(KeyError):
    """A stage that is needed is not in the store."""

    def __init__(self, sentence: str, stage: Stage | None = None) -> None:
        super().__init__(sentence)
        self.stage = stage

    @property
    def told(self) -> str:
        """What is absent, and what to do about it."""
        return f"{self.args[0]}: `mibench run TABLE`, with the same options, computes it anew"
