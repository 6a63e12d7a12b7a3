"""Stores of made-up stages, for tests of what is read from one: nothing in them was trained."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mibench.benchmarks.tables import TABLES, Table
from mibench.running.grid import record_stages
from mibench.running.stages import (
    ClassifierStage,
    EvidenceStage,
    ImagesStage,
    InversionStage,
    PriorStage,
    RecordStage,
    graph,
)
from mibench.seeding import generator
from mibench.store import Payload, Stage, Store, Work

META = {
    "seconds": 1.5, "resumed": False, "device": "cpu made", "threads": 1, "queries": 0,
    "versions": {"python": "3", "torch": "2"},
}  # fmt: skip
FEATURES = 12
SMOKE = TABLES["smoke"]


def smoke(*labels: str) -> Table:
    """Returns rows of the smoke table, small."""
    rows = {k: SMOKE.rows[k] for k in labels or ("GMI / No Def.", "GMI / MID", "VMI / No Def.")}
    return replace(SMOKE, rows=rows)


def renamed(table: Table, **labels: str) -> Table:
    """Returns the table with its rows, in order, under other labels."""
    return replace(table, rows=dict(zip(labels.values(), table.rows.values(), strict=True)))


def fill(
    table: Table, store: Store, *, seeds: int = 1, data: Path | None = None
) -> dict[str, list[RecordStage]]:
    """Commits a made-up payload of every stage, records computed from them; returns records."""
    records = record_stages(table, seeds, data)
    commit((r for rs in records.values() for r in rs), store)
    return records


def commit(records: Iterable[Stage], store: Store) -> None:
    for stage in graph(records):
        if store.state(stage) != "done":
            store._commit(stage, payload(stage, store), dict(META))


def payload(stage: Stage, store: Store) -> Payload:
    rng = generator("made", stage.key)
    if isinstance(stage, ImagesStage):
        return images(stage, rng)
    if isinstance(stage, ClassifierStage):
        history = [
            {"task": 2.0 / e, "d(X,Z)": 0.1 * e, "accuracy": 100 - 40.0 / e} for e in range(1, 6)
        ]
        return {
            "state": {},
            "epoch": 5,
            "history": history,
            "num_classes": stage.images.task.num_classes,
            "accuracy": 95.0,
        }
    if isinstance(stage, PriorStage):
        kimg = torch.linspace(0, 3, 7)
        return {"state": {}, "history": {"kimg": kimg, "generator": kimg.sin()}, "queries": 9}
    if isinstance(stage, InversionStage):
        shape = (stage.samples, stage.classes, *stage.target.images.task.shape)
        return {
            "images": smooth(shape, rng).half(),
            "earlier": None,
            "latents": torch.zeros(1),
            "budget": {"steps": 3, "queries": 50, "gradients": 30},
        }
    if isinstance(stage, EvidenceStage):
        return evidence(stage, rng, store)
    assert isinstance(stage, RecordStage)
    return stage.compute(store.load, Work())


def smooth(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Returns images that compress about as photographs do."""
    *front, h, w = shape
    coarse = torch.rand(math.prod(front), 1, 8, 8, generator=rng)
    fine = F.interpolate(coarse, size=(h, w), mode="bilinear")
    return (fine + 0.03 * torch.randn(fine.shape, generator=rng)).clamp(0, 1).view(shape)


def images(stage: ImagesStage, rng: torch.Generator) -> Payload:
    if stage.digest:
        return stage.compute(store_less, Work())
    n = stage.task.num_classes

    def part(each: int) -> dict[str, Tensor]:
        labels = torch.arange(n).repeat_interleave(each)
        pixels = (255 * smooth((len(labels), *stage.task.shape), rng)).to(torch.uint8)
        return {"pixels": pixels, "labels": labels}

    train = part(4)
    corpus = {
        "train": train,
        "validation": torch.zeros(4 * n, dtype=torch.bool),
        "test": part(1),
        "num_classes": n,
    }
    public = {"pixels": train["pixels"][:2], "labels": torch.tensor([n, n])}
    return {"private": corpus, "evaluation": corpus, "public": public}


def store_less(stage: Stage) -> Payload:
    raise AssertionError(stage)


def evidence(stage: EvidenceStage, rng: torch.Generator, store: Store) -> Payload:
    run = stage.inversion
    private = stage.images.splits(store.load).private
    owned = stage.compared(private)
    n = run.classes * run.samples
    labels = torch.arange(run.classes).repeat(run.samples)
    logits = torch.randn(n, private.num_classes + 5, generator=rng)
    logits[torch.arange(n), labels] += 1.5
    tests = torch.randn(len(private.test), private.num_classes, generator=rng)
    tests[torch.arange(len(tests)), private.test.labels] += 3
    made: dict[str, Any] = {
        "labels": labels,
        "block": torch.cat([torch.full((len(b),), i) for i, b in enumerate(run.blocks)]).repeat(
            run.samples
        ),
        "passes": torch.arange(run.samples).repeat_interleave(run.classes),
        "logits": logits,
        "features": torch.randn(n, FEATURES, generator=rng),
        "real": torch.randn(len(owned), FEATURES, generator=rng),
        "real_labels": owned.labels,
        "test_logits": tests,
        "test_labels": private.test.labels,
    }
    return made
