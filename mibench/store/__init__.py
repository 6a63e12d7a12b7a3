"""An input-addressed store of finished stages, and the work that fills it.

A stage's key hashes everything that decides its result, so a finished stage is never
recomputed and an unfinished one is found again. Nothing appears under its final name until
it is whole: a stage is written aside, synced and renamed. Nothing in a store is unpickled.
What is read is checked first; what is not as it was written is moved aside and made anew.

    <root>/<kind>/<key>/            payload.safetensors payload.json spec.json meta.json
    <root>/<kind>/<key>.partial/    state.bin, what an interrupted stage had reached
    <root>/<kind>/<key>.lease       who works on it
    <root>/<kind>/<key>.failed      why it failed the last time
    <root>/quarantine/<kind>/       stages that were damaged
"""

from mibench.store.disk import put
from mibench.store.errors import StoreError, remark, tell
from mibench.store.files import (
    FILES,
    QUARANTINE,
    move_aside,
    read_payload,
    read_stage,
    seal,
    told_meta,
)
from mibench.store.pack import Payload, pack, unpack
from mibench.store.stage import AbsentError, DamagedError, Stage
from mibench.store.store import MENDED, Store, precisions_of
from mibench.store.work import Report, State, Work, check_finite, frozen, restore

__all__ = [
    "FILES", "MENDED", "QUARANTINE", "AbsentError", "DamagedError", "Payload", "Report", "Stage",
    "State", "Store", "StoreError", "Work", "check_finite", "frozen", "move_aside", "pack",
    "precisions_of", "put", "read_payload", "read_stage", "remark", "restore", "seal", "tell",
    "told_meta", "unpack",
]  # fmt: skip
