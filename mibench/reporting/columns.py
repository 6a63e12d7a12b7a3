"""Columns that a table was not run with, scored from the evidence that is in the store."""

from collections.abc import Iterable
from typing import Any

from mibench.running.stages import RecordStage
from mibench.store import Payload, Stage, Store, Work, precisions_of


class Scored(Store):
    """A store that also has each record that its finished stages can give; it writes nothing."""

    def state(self, stage: Stage) -> str:
        """Returns "done" also of a record that can be made."""
        return self.states([stage])[stage.key]

    def states(self, stages: Iterable[Stage]) -> dict[str, str]:
        """Returns key → state, as :meth:`state` does."""
        stages = list(stages)
        states = super().states(stages)
        absent = [s for s in stages if isinstance(s, RecordStage) and states[s.key] != "done"]
        needs = super().states(need for record in absent for need in record.needs)
        return states | {
            record.key: "done"
            for record in absent
            if all(needs[need.key] == "done" for need in record.needs)
        }

    def read(self, stage: Stage) -> tuple[Payload, dict[str, Any]]:
        """Returns what is in the store, or a record made of it.

        Raises:
            AbsentError: If it is not there, nor what it would be made of.
            DamagedError: If that is not what was written.
        """
        if not isinstance(stage, RecordStage) or super().state(stage) == "done":
            return super().read(stage)
        payload = stage.compute(self.load, Work())
        beneath = {need: self.meta(need) for need in stage.needs}
        precisions = {p for need, meta in beneath.items() for p in precisions_of(need, meta)}
        remarks = dict.fromkeys(r for meta in beneath.values() for r in meta.get("remarks", ()))
        return payload, {"precisions": sorted(precisions), "remarks": list(remarks)}
