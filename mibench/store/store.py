"""The store itself: finished stages under their keys, computed once and committed whole."""

import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as write_tensors

from mibench import precision
from mibench.machine import forget_peak, peak, settings_kept
from mibench.spec import canonical, field_values
from mibench.store.disk import json_bytes, make_folder, sync, write_all
from mibench.store.errors import StoreError, keeping, store_error, tell, writing
from mibench.store.files import (
    move_aside,
    read_payload,
    read_plain,
    read_stage,
    seal,
    told_meta,
)
from mibench.store.lease import LEASE_SECONDS, is_held, lease
from mibench.store.pack import Payload, pack
from mibench.store.stage import AbsentError, DamagedError, Stage
from mibench.store.work import Report, Work

MENDED = 10
"""How often a stage starts over at most, because a stage that it needs is damaged."""


def precisions_of(stage: Stage, meta: Mapping[str, Any]) -> set[str]:
    """Returns the precisions at which a stage, and what it rests on, were computed.

    Args:
        stage: The stage.
        meta: Its meta; one that names no precision is of a version that had float32 alone.
    """
    older = [precision.FLOAT32] if stage.has_precision else []
    return set(meta.get("precisions", older))


class Store:
    """Finished stages under ``root``, one folder each."""

    def __init__(self, root: Path, lease_seconds: float = LEASE_SECONDS) -> None:
        self.root = root
        self._lease_seconds = lease_seconds

    def path(self, stage: Stage) -> Path:
        """Returns where the finished stage is, or would be."""
        return self.root / stage.kind / stage.key

    def state(self, stage: Stage) -> str:
        """Returns "done", "partial" or "missing"; reads nothing."""
        if (self.path(stage) / "meta.json").exists():
            return "done"
        return "partial" if self._beside(stage, "partial").exists() else "missing"

    def states(self, stages: Iterable[Stage]) -> dict[str, str]:
        """Returns key → "done", "partial" or "missing", by one look at each kind's folder.

        A folder under its final name is whole, so its name is enough; a network file system
        takes as long for a look at one file as for a whole list of names.

        Raises:
            StoreError: If a folder that is there cannot be read.
        """
        names: dict[str, set[str]] = {}
        states = {}
        for stage in stages:
            if stage.kind not in names:
                folder = self.root / stage.kind
                try:
                    names[stage.kind] = {entry.name for entry in os.scandir(folder)}
                except (FileNotFoundError, NotADirectoryError):
                    names[stage.kind] = set()
                except OSError as error:
                    raise store_error("read", folder, error) from error
            if stage.key in names[stage.kind]:
                states[stage.key] = "done"
            else:
                begun = f"{stage.key}.partial" in names[stage.kind]
                states[stage.key] = "partial" if begun else "missing"
        return states

    def load(self, stage: Stage) -> Payload:
        """Returns a finished stage's payload; raises as :meth:`read` does."""
        return self.read(stage)[0]

    def read(self, stage: Stage) -> tuple[Payload, dict[str, Any]]:
        """Returns a finished stage's payload and its meta.

        Raises:
            AbsentError: If the stage is not done.
            DamagedError: If it is not what was written.
        """
        try:
            return read_payload(self.path(stage))
        except DamagedError:
            if (state := self.state(stage)) != "done":
                raise AbsentError(f"{stage.kind} {stage.key} is {state}", stage) from None
        try:  # once more: it may have been committed since, or made anew
            return read_payload(self.path(stage))
        except DamagedError as error:
            error.stage = stage
            raise

    def meta(self, stage: Stage) -> dict[str, Any]:
        """Returns what a finished stage was computed on, how, and in how many seconds.

        Raises:
            AbsentError: If the stage is not done.
            DamagedError: If its meta is missing or not what was written; it says what to do.
        """
        try:
            return told_meta(self.path(stage))
        except DamagedError as error:
            if (state := self.state(stage)) != "done":
                raise AbsentError(f"{stage.kind} {stage.key} is {state}", stage) from None
            error.stage = stage
            raise

    def runs(self, result: Stage, stages: Iterable[Stage]) -> list[dict[str, Any]]:
        """Returns the meta of each of the stages, which led to ``result``, that is there."""
        metas = []
        for stage in stages:
            with suppress(OSError, ValueError, AbsentError):
                metas.append(self.meta(stage))
        return metas

    def failed(self) -> frozenset[str]:
        """Returns the keys of the stages that failed the last time, by one look at the names."""
        try:
            return frozenset(path.stem for path in self.root.glob("*/*.failed"))
        except OSError as error:
            raise store_error("read", self.root, error) from error

    def failure(self, stage: Stage) -> str | None:
        """Returns why a stage that is not done failed the last time, if it did."""
        if self.state(stage) == "done":
            return None
        try:
            note = json.loads(read_plain(self._beside(stage, "failed")))
            return " ".join(str(note["error"]).split())[:500]
        except DamagedError:
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return "it failed, and the note on why cannot be read"

    def note_failure(self, stage: Stage, why: str) -> None:
        """Keeps why a stage failed, for :meth:`failure`; a full disk is no second failure."""
        path = self._beside(stage, "failed")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(json_bytes({"error": why, "time": round(time.time())}))

    def set_aside(self, stage: Stage, why: str) -> None:
        """Moves what lies under a stage's name out of the way, and says so.

        What another process has made anew in the meantime stays.
        """
        with suppress(AbsentError, DamagedError):
            self.load(stage)
            return
        with writing(self.root):
            moved = move_aside(self.path(stage))
        if moved is not None:
            tell(f"{why}: moved to {moved}, to be computed again")

    def set_aside_damaged(self, stages: Sequence[Stage]) -> None:
        """Sets aside the damaged ones of the finished stages that a run will read.

        Those are the ones that no other needs, and those that an unfinished one needs. What
        turns out damaged later is found when it is read.

        Args:
            stages: In an order where needs come first.
        """
        needed = {n.key for s in stages for n in s.needs}
        read: set[str] = set()
        for stage in reversed(stages):
            done = os.path.lexists(self.path(stage))  # a folder that is not whole, too
            if done and (stage.key in read or stage.key not in needed):
                try:
                    read_stage(self.path(stage))
                except DamagedError as error:
                    self.set_aside(stage, str(error))
                    done = False
            if not done:
                read |= {n.key for n in stage.needs}

    def complete(
        self,
        stage: Stage,
        device: str = "cpu",
        data: Path | None = None,
        report: Report | None = None,
    ) -> bool:
        """Computes and commits the stage unless it is done; its needs should be done.

        A need that turns out damaged, or gone, is computed again before the stage starts over.

        Returns:
            Whether anything was computed here.

        Raises:
            StoreError: If the store cannot be written.
        """

        def done() -> bool:
            return self.state(stage) == "done"

        with lease(self._beside(stage, "lease"), done, self._lease_seconds) as ours:
            if not ours or done():
                return False
            remarks: list[str] = []
            payload, meta = self._compute(stage, remarks, device, data, report)
            precisions = set() if stage.exact else {meta["precision"]}
            for need in stage.needs:
                with suppress(OSError, AbsentError, DamagedError):  # it may be gone by now
                    beneath = self.meta(need)
                    remarks += beneath.get("remarks", [])
                    precisions |= precisions_of(need, beneath)
            meta["precisions"] = sorted(precisions)
            if remarks:
                meta["remarks"] = list(dict.fromkeys(remarks))
            try:
                with writing(self.root):
                    self._commit(stage, payload, meta)
            except (TypeError, ValueError, RuntimeError) as error:
                why = "what it returned cannot be stored: dense tensors, numbers and texts can"
                error.add_note(why)
                self.note_failure(stage, f"{type(error).__name__}: {error}; {why}")
                raise
            shutil.rmtree(self._beside(stage, "partial"), ignore_errors=True)
            with suppress(OSError):
                self._beside(stage, "failed").unlink(missing_ok=True)
            return True

    def _compute(
        self,
        stage: Stage,
        remarks: list[str],
        device: str,
        data: Path | None,
        report: Report | None,
    ) -> tuple[Payload, dict[str, Any]]:
        """Returns the stage's payload and what its meta.json says of the computation.

        Remarks are appended, also those of attempts that needs cut short.
        """
        folder = self._beside(stage, "partial")
        with writing(self.root):
            make_folder(folder)
        own = precision.FLOAT32 if stage.exact else precision.current()
        for attempt in range(MENDED + 1):
            resumed = (folder / "state.bin").exists()
            work = Work(folder, device, data, report)
            forget_peak(work.device)
            try:
                with keeping(remarks), precision.at(own), settings_kept():
                    payload = stage.compute(self.load, work)
                break
            except (AbsentError, DamagedError) as error:
                need = error.stage
                if need is None or need.key == stage.key or attempt == MENDED:
                    self._fail(stage, error, work)
                    raise
                if isinstance(error, DamagedError):
                    self.set_aside(need, str(error))
            except BaseException as error:
                self._fail(stage, error, work)
                raise
            self.complete(need, device, data)
        return payload, {
            "seconds": round(work.seconds, 3),
            "resumed": resumed,
            "peak_memory_bytes": peak(work.device),
            "precision": own,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            **work.basis(),
            **({"earlier": work.earlier} if work.earlier else {}),
        }

    def _fail(self, stage: Stage, error: BaseException, work: Work) -> None:
        """Adds to an error how far the stage came; keeps why it failed."""
        if isinstance(error, StoreError):
            return
        failed = isinstance(error, Exception | SystemExit)
        who = "it" if failed else stage.describe()
        error.add_note(f"{who} stopped {work.whereabouts()}")
        if failed:
            first = str(error).strip().split("\n")[0]
            why = f"{type(error).__name__}: {first}; it stopped {work.whereabouts()}"
            self.note_failure(stage, why)

    def _commit(self, stage: Stage, payload: Payload, meta: dict[str, Any]) -> None:
        """Makes the stage visible; if somebody else was first, theirs stays."""
        tensors, tree = pack(payload)
        files = {
            "payload.safetensors": write_tensors(tensors),
            "payload.json": json_bytes(tree),
            "spec.json": json_bytes(canonical({"version": stage.version, **field_values(stage)})),
        }
        path = self.path(stage)
        aside = path.with_suffix(f".partial.{uuid.uuid4().hex[:8]}")
        try:
            aside.mkdir(parents=True)
            write_all(aside, files | {"meta.json": seal(stage, files, meta)})
            try:
                aside.rename(path)
            except OSError:
                if self.state(stage) == "done" or not os.path.lexists(path):
                    raise
                self.set_aside(stage, f"{path} is not whole")
                aside.rename(path)
        except OSError:
            shutil.rmtree(aside, ignore_errors=True)
            if self.state(stage) != "done":
                raise
        sync(path.parent)

    def _beside(self, stage: Stage, suffix: str) -> Path:
        """Returns the path beside the stage's folder that ends in ``suffix``."""
        return self.path(stage).with_suffix(f".{suffix}")

    def held(self, stage: Stage) -> bool:
        """Returns whether somebody computes the stage at this moment."""
        return is_held(self._beside(stage, "lease"), self._lease_seconds)
