"""How much KED-MI loses when its public images do not resemble the private ones."""

from dataclasses import replace
from typing import get_args

from mibench.benchmarks.tables.avatars import (
    DEFENSES,
    KED,
    NOTES,
    PROTOCOL,
    SETTING,
    TASK,
    TWENTY,
)
from mibench.benchmarks.tables.base import Table, versus
from mibench.data.avatars import Shift

AVATARS_SHIFT = Table(
    name="avatars-shift",
    caption="KED-MI on drawn portraits whose public persons are drawn from another distribution.",
    rows={
        label: cell
        for shift in get_args(Shift)
        for label, cell in versus(
            replace(SETTING, task=replace(TASK, shift=shift)),
            KED,
            TWENTY,
            PROTOCOL,
            {name: DEFENSES[name] for name in ("No Def.", "BiDO-HSIC")},
            f"KED-MI, {shift}",
        ).items()
    },
    notes=(
        "Public persons: none, as the private ones; plain, without beards and glasses; tones, "
        "with darker skin and lighter hair; backgrounds, before bright colours; all of these. "
        "Private persons and their images are the same in all rows.",
        *NOTES[1:],
    ),
)
