"""Whether a record file is whole and agrees with itself.

* Its sha256 is that of its content: a file cut short or edited by hand is found.
* Each stage's key is the hash of its identity, up from the digest of the raw data, and the cell
  says the same as those identities: scores cannot be passed off as those of another spec.
* Its scores follow from its values.

Who edits values and scores alike and then computes the hashes anew makes a file that agrees
with itself. No hash can tell that; only running the cell again can.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mibench.evaluation import METRICS, Evidence, Metric, summarise
from mibench.reporting.records import UNPACKED, Record, digest, opened, schema
from mibench.spec import MOST_SEEDS, fingerprint

COLUMNS = {"attack_acc": "acc", "attack_acc5": "acc5"}
"""Column → field of a protocol that may name another metric to fill it; others are as named."""
LARGEST = 64 * 2**20
"""Bytes of a record, unpacked, that is read at all."""
TOLERANCE = 1e-6
"""By how much a score may differ from what its values give, relative to it."""
PARTS = {
    "classifier": {"network": "setting.network", "recipe": "recipe", "defense": "defense"},
    "prior": {"spec": "attack.prior", "seed": "seeds.prior"},
    "inversion": {
        "attack": "attack", "classes": "trials.classes", "samples": "trials.samples",
        "block": "trials.block", "seed": "seeds.attack",
    },
    "evidence": {
        "real": "protocol.real", "real_part": "protocol.real_part",
        "select": "protocol.select",
    },
    "images": {"task": "setting.task"},
    "release": {"defense": "defense"},
}  # fmt: skip
"""Kind → field of its identity → where the cell says the same."""


@dataclass(frozen=True)
class Verdict:
    """What a check of one file found.

    Attributes:
        path: The file.
        record: What it says, if that can be trusted to agree with itself.
        problem: What is wrong with it; empty if nothing is.
        recomputed: How many of its scores were computed again from its values.
    """

    path: Path
    record: Record | None
    problem: str
    recomputed: int = 0


def check(path: Path) -> Verdict:
    """Reads a record file and checks it against its schema, its hashes and its values.

    A file that cannot be read is one with a problem.
    """
    try:
        record = _read(path)
        _check_schema(record)
        if digest(record) != record["sha256"]:
            raise ValueError("its content differs from its sha256: edited or damaged")
        _check_stages(record)
        return Verdict(path, record, "", _check_scores(record["payload"]))
    except OSError as error:
        return Verdict(path, None, f"it cannot be read: {error.strerror or error}")
    except ArithmeticError as error:
        return Verdict(path, None, f"its numbers are beyond what can be computed with ({error})")
    except (ValueError, RecursionError) as error:
        sentence = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        return Verdict(path, None, " ".join(sentence.split()))
    except (AttributeError, TypeError, LookupError) as error:  # the schema leaves a cell open
        return Verdict(path, None, f"it is no record of mibench ({type(error).__name__}: {error})")


def first_told(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Returns the verdicts, and of files that tell different things of one key the first alone.

    The others are refused, with the first one's path: it may be a run on another machine.
    """
    known: dict[str, Verdict] = {}
    judged = []
    for verdict in verdicts:
        if verdict.record is not None:
            first = known.setdefault(verdict.record["key"], verdict)
            if first.record is not None and first.record["payload"] != verdict.record["payload"]:
                problem = f"it tells other things of its cell than {first.path}, which was taken"
                judged.append(Verdict(verdict.path, None, problem))
                continue
        judged.append(verdict)
    return judged


def _read(path: Path) -> Record:
    try:
        with opened(path) as file:
            data = file.read(LARGEST + 1)
    except UNPACKED as error:
        raise ValueError("it cannot be unpacked: cut short or damaged") from error
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST // 2**20} MiB")
    try:
        record = json.loads(data.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError("it is not text") from error
    except json.JSONDecodeError as error:
        where = f"from line {error.lineno} on"
        raise ValueError(f"it is no JSON {where}: cut short or damaged") from error
    if not isinstance(record, dict):
        raise ValueError("it is no record, which is a JSON object")
    return record


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuses an object that says one thing twice: readers would disagree on what it says."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("an object in it names one thing twice")
    return content


def _check_schema(record: Record) -> None:
    from jsonschema.exceptions import best_match

    error = best_match(_validator()(schema("record")).iter_errors(record))
    if error is not None:
        where = ".".join(map(str, error.absolute_path)) or "it"
        raise ValueError(f"{where}: {error.message[:200]}")


@cache
def _validator() -> Any:  # noqa: ANN401 - jsonschema has no types
    """Returns a validator that looks at lists of numbers as a whole: records are mostly such."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    one_by_one = Draft202012Validator.VALIDATORS["items"]
    number, place = {"$ref": "#/$defs/number"}, schema("record")["$defs"]["places"]["items"]

    def items(validator: Any, items: Any, value: Any, whole: Any) -> Iterator[Any]:  # noqa: ANN401
        kinds = set(map(type, value)) if isinstance(value, list) else {object}
        if items == number and kinds <= {float, int, type(None)}:
            return
        if (
            items == place
            and kinds == {int}
            and not (min(value) < place["minimum"] or max(value) > place["maximum"])
        ):
            return
        yield from one_by_one(validator, items, value, whole)

    return extend(Draft202012Validator, {"items": items})  # type: ignore[no-untyped-call]


def _check_stages(record: Record) -> None:
    """Checks every key against its identity, references, and that the cell says the same."""
    known: dict[str, dict[str, Any]] = {}
    for stage in record["stages"]:
        key, identity = stage["key"], stage["identity"]
        name = f"{identity['kind']}/{key}"
        if fingerprint(identity) != key:
            raise ValueError(f"{name} is not the key of its identity")
        if missing := [r for r in _references(identity) if r not in known]:
            raise ValueError(f"{name} rests on {missing[0]}, which it does not tell of")
        known[name] = identity
    *below, last = known
    payload, cell = record["payload"], record["payload"]["cell"]
    if last != f"record/{record['key']}":
        raise ValueError(f"its key is {record['key']}, but the last stage is {last}")
    if known[last].get("cell") != cell:
        raise ValueError("its cell is not the one its key stands for")
    seed = cell["seeds"]["target"]
    if type(seed) is not int or not 0 <= seed < MOST_SEEDS:
        raise ValueError(f"its seed is {seed}, and a table's are 0 to {MOST_SEEDS - 1}")
    if sorted(payload["stages"]) != sorted(below):
        raise ValueError("its payload names other stages")
    trained = cell
    if any(identity["kind"] == "release" for identity in known.values()):
        trained = {**cell, "defense": cell["defense"].get("inner")}
    for name, identity in known.items():
        if identity.get("part") != "evaluation":
            _check_part(name, identity, trained if identity["kind"] == "classifier" else cell)
    if strangers := record["runs"].keys() - known.keys():
        raise ValueError(f"it tells of a run of {min(strangers)}, on which it does not rest")
    wanted = [name for name, _ in known[last]["metrics"]]
    if sorted(payload["scores"]) != sorted(wanted) or sorted(payload["values"]) != sorted(wanted):
        raise ValueError("its scores are not those of its metrics")


def _check_part(name: str, identity: Mapping[str, Any], cell: Mapping[str, Any]) -> None:
    """Checks that a stage is one of the cell's, or of the control attack that the cell names."""
    cells = [cell]
    if cell.get("control") is not None:
        protocol = {**cell["protocol"], "select": "last"}
        cells.append({**cell, "attack": cell["control"], "protocol": protocol})
    strange = [
        [
            (f, p)
            for f, p in PARTS.get(identity["kind"], {}).items()
            if identity.get(f) != _at(c, p)
        ]
        for c in cells
    ]
    if all(strange):
        field, path = strange[0][0]
        raise ValueError(f"{name}.{field} is not the cell's {path}")


def _references(value: object) -> Iterator[str]:
    """Yields the stages that an identity names, as "kind/key"."""
    if isinstance(value, dict):
        if value.keys() == {"is", "key"}:
            yield f"{value['is']}/{value['key']}"
        else:
            for inner in value.values():
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _at(value: Any, path: str) -> Any:  # noqa: ANN401 - plain data
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _check_scores(payload: Mapping[str, Any]) -> int:
    """Checks scores against the values they are means of; returns how many could be."""
    cell = payload["cell"]
    spread = cell["protocol"].get("spread")
    if spread not in ("block", "pass", "identity"):
        raise ValueError(f"it spreads over {spread!r}, which is unknown")
    layouts = [_layout(e["identity"], e["block"], e["pass"]) for e in payload["index"]]
    _check_counted(payload, len(layouts))
    checked = 0
    for name, score in payload["scores"].items():
        column = COLUMNS.get(name, name)
        metric = METRICS.get(cell["protocol"].get(column, name))
        values = payload["values"][name]
        if score["mean"] is None or metric is None:  # undefined, or of another version
            continue
        trials = layouts or [_layout()] * (metric.per == "target")
        if len(values) != len(trials):
            raise ValueError(f"{name} has values of {len(values)} attacks, not of the cell's")
        given = [_given(name, metric, v, e) for v, e in zip(values, trials, strict=True)]
        again = summarise(_stored(metric, given), trials, spread)
        for field in ("mean", "std", "n"):
            stated, made = score[field], getattr(again, field)
            if not _same(stated, made):
                raise ValueError(f"its {name} says {field} {stated}, its values give {made}")
        checked += 1
    return checked


def _check_counted(payload: Mapping[str, Any], counted: int) -> None:
    """Checks that no repeat of the attack is left out but by the protocol's least FID."""
    protocol, repeats = payload["cell"]["protocol"], payload["cell"]["trials"]["repeats"]
    least = protocol.get("least_fid", 0)
    if type(least) not in (int, float) or not 0 <= least < math.inf:
        raise ValueError(f"its least FID is {least!r}, which is none")
    if counted > repeats or (counted < repeats and not least):
        raise ValueError(f"its index is of {counted} attacks, not of the cell's")
    values = payload["values"].get("fid", [])
    if any(isinstance(v, int | float) and v < least for v in values):
        raise ValueError(f"an attack counts whose FID is below the least, {least:g}")


def _stored(metric: Metric, values: Iterable[Tensor | float]) -> Metric:
    """Returns a metric that finds, one after the other, the values given."""
    left = iter(values)

    def compute(_: Evidence) -> Tensor | float:
        return next(left)

    return replace(metric, compute=compute)


def _given(name: str, metric: Metric, value: Any, e: Evidence) -> Tensor | float:  # noqa: ANN401
    """Returns one repeat's value as the metric computed it.

    Raises:
        ValueError: If it is not a number per image, per identity or of the whole, as it should.
    """
    expected = {"image": len(e.labels), "identity": len(set(e.labels.tolist()))}.get(metric.per)
    count = len(value) if isinstance(value, list) else None
    if count != expected:
        raise ValueError(f"{name} has {count or 'one'} values of an attack, not {expected or 1}")
    if value is None or (isinstance(value, list) and None in value):
        raise ValueError(f"{name} has a mean, but lacks a value")
    if isinstance(value, list):
        return torch.tensor(value, dtype=torch.float64)
    return float(value)


def _same(stated: float | None, made: float | None) -> bool:
    if stated is None or made is None:
        return stated == made
    return math.isclose(stated, made, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _layout(
    labels: Sequence[int] = (), block: Sequence[int] = (), passes: Sequence[int] = ()
) -> Evidence:
    """Returns which image is of which class, block and pass, in evidence otherwise empty."""
    places = [torch.tensor(v, dtype=torch.long) for v in (labels, block, passes)]
    if len({v.shape for v in places}) != 1 or places[0].ndim != 1:
        raise ValueError("its index is not of the same images throughout")
    blank, nothing = torch.zeros(len(places[0]), 1), torch.zeros(0, 1)
    none = torch.zeros(0, dtype=torch.long)
    return Evidence(
        labels=places[0], block=places[1], passes=places[2], logits=blank, features={},
        real_labels=none, test_logits=nothing, test_labels=none,
    )  # fmt: skip
