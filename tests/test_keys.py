"""The keys of all table cells: a changed default shows up as a failing line.

``make keys`` rewrites the file after a change on purpose; say why in the changelog under
Results.
"""

import json
from dataclasses import replace
from pathlib import Path

from mibench.attacks import GMI, KEDMI
from mibench.benchmarks.tables import TABLES
from mibench.running.stages import graph, record_stage
from mibench.spec import fingerprint

FROZEN = Path(__file__).parent / "keys.json"


def current() -> dict[str, dict[str, str]]:
    return {
        name: {label: fingerprint(cell) for label, cell in table.rows.items()}
        for name, table in TABLES.items()
    }


def test_keys_are_frozen() -> None:
    assert current() == json.loads(FROZEN.read_text())


def test_rows_differ() -> None:
    for name, rows in current().items():
        assert len(set(rows.values())) == len(rows), name


def stages(attack: GMI | KEDMI, title: str) -> dict[str, str]:
    table = TABLES["smoke"]
    cell = replace(table.rows[f"{title} / No Def."], attack=attack)
    return {s.kind: s.key for s in graph([record_stage(cell, table.columns, "data")])}


def test_a_new_version_of_gmi_changes_its_inversion_and_nothing_of_kedmi() -> None:
    gmi = TABLES["smoke"].rows["GMI / No Def."].attack
    ked = TABLES["smoke"].rows["KED-MI / No Def."].attack
    assert isinstance(gmi, GMI)
    assert isinstance(ked, KEDMI)
    before = stages(gmi, "GMI"), stages(ked, "KED-MI")
    old, GMI.version = GMI.version, GMI.version + 1
    try:
        after = stages(gmi, "GMI"), stages(ked, "KED-MI")
    finally:
        GMI.version = old
    changed = {kind for kind in before[0] if before[0][kind] != after[0][kind]}
    assert changed == {"inversion", "evidence", "record"}
    assert before[1] == after[1]


def test_other_data_under_one_name_gives_other_keys_everywhere() -> None:
    table = TABLES["smoke"]
    cell = next(iter(table.rows.values()))
    a, b = ({s.key for s in graph([record_stage(cell, table.columns, d)])} for d in ("a", "b"))
    assert not a & b


def test_a_prior_that_does_not_see_the_target_is_shared_and_one_that_does_is_not() -> None:
    table = TABLES["smoke"]
    records = {k: record_stage(c, table.columns, "data") for k, c in table.rows.items()}
    for title, count in (("GMI", 1), ("KED-MI", 4)):
        mine = [r for k, r in records.items() if k.startswith(title)]
        assert len({r.evidence[0].inversion.prior.key for r in mine}) == count
        assert len({r.evidence[0].inversion.target.key for r in mine}) == 4
    assert len({r.evidence[0].evaluator.key for r in records.values()}) == 1
