"""The answer to a dry run, read back from its JSON: the same for the daemon's and for one made here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macmesh_daemon.cli import units
from macmesh_placement import LocalPlacementError, Placement, result_from_json
from macmesh_placement.checks import Reader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from macmesh_placement import Refusal


@dataclass(frozen=True, slots=True)
class Alternative:
    """A plan that lost, or a change to the ask that fits no better; and why."""

    label: str
    reason: str
    result: Placement | Refusal | None


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A change to a refused ask, and whether it fits then."""

    message: str
    feasible: bool


@dataclass(frozen=True, slots=True)
class HostDeficit:
    """What a machine that several nodes share lacks in RAM."""

    host_id: str
    needed_bytes: int
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A dry run's answer.

    Attributes:
        body: The JSON object, as it came.
        result: The plan or the refusal in it; its ledgers were added up again.
        names: Node id to a name for people, of all nodes that could take part.
        alternatives: What lost; empty where it was not asked for.
        what_ifs: Of a refusal: changes that help.
        host_deficits: Of a refusal: RAM that shared machines lack.
        also_binding: Of a refusal: what would make the ask fit too, if it were lifted.
        notes: Of a refusal: what was searched within limits.
        kv_bits: Bits of a quantised cache; 0: as the model has it.
        parallelism: ``"pipeline"`` or ``"tensor"``.
        hop_seconds: Of a plan: the hop behind each stage, where the answer tells it.
        transport: Of a plan of several stages: what carries the arrays, and why.
    """

    body: Mapping[str, Any]
    result: Placement | Refusal
    names: Mapping[str, str]
    alternatives: tuple[Alternative, ...] = ()
    what_ifs: tuple[WhatIf, ...] = ()
    host_deficits: tuple[HostDeficit, ...] = ()
    also_binding: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kv_bits: int = 0
    parallelism: str = "pipeline"
    hop_seconds: tuple[float, ...] = ()
    transport: str = ""


def read_answer(body: Mapping[str, Any], names: Mapping[str, str]) -> Answer:
    """Reads the JSON object of a dry run and re-adds every ledger in it.

    Raises:
        LocalPlacementError: It is not one, or its sums are wrong; the message names the field.
    """
    reader = Reader(body, "plan", LocalPlacementError)
    stages = reader.array("stages", default=[]) if reader.flag("feasible") else []
    result = _result(body)
    binding = "" if isinstance(result, Placement) else result.binding
    return Answer(
        body=body,
        result=result,
        names=names,
        alternatives=tuple(
            _alternative(item, f"plan.alternatives[{index}]")
            for index, item in enumerate(reader.array("alternatives", default=[]))
        ),
        what_ifs=tuple(
            _what_if(item, f"plan.what_ifs[{index}]")
            for index, item in enumerate(reader.array("what_ifs", default=[]))
        ),
        host_deficits=tuple(
            _host_deficit(item, f"plan.host_deficits[{index}]")
            for index, item in enumerate(reader.array("host_deficits", default=[]))
        ),
        also_binding=tuple(name for name in _texts(reader, "binding_constraints") if name != binding),
        notes=_texts(reader, "notes"),
        kv_bits=reader.integer("kv_bits", default=0),
        parallelism=reader.text("parallelism", default="pipeline"),
        hop_seconds=tuple(
            Reader(stage, f"plan.stages[{index}]", LocalPlacementError).number("hop_seconds")
            for index, stage in enumerate(stages)
            if "hop_seconds" in stage
        ),
        transport=_transport(reader.fields["transport"]) if "transport" in reader.fields else "",
    )


def _transport(value: object) -> str:
    reader = Reader(value, "plan.transport", LocalPlacementError)
    return units.transport(reader.text("transport"), reader.text("reason"))


def _alternative(value: object, where: str) -> Alternative:
    reader = Reader(value, where, LocalPlacementError)
    found = reader.fields.get("placement") or reader.fields.get("refusal")
    return Alternative(
        label=reader.text("label"), reason=reader.text("reason"), result=_result(found) if found else None
    )


def _what_if(value: object, where: str) -> WhatIf:
    reader = Reader(value, where, LocalPlacementError)
    return WhatIf(message=reader.text("message"), feasible=reader.flag("feasible"))


def _host_deficit(value: object, where: str) -> HostDeficit:
    reader = Reader(value, where, LocalPlacementError)
    return HostDeficit(
        host_id=reader.text("host_id"),
        needed_bytes=reader.integer("needed_bytes"),
        budget_bytes=reader.integer("budget_bytes"),
    )


def _texts(reader: Reader, name: str) -> tuple[str, ...]:
    values = reader.array(name, default=[])
    if not all(isinstance(value, str) for value in values):
        raise LocalPlacementError(f"{reader.where}.{name} must be an array of strings")
    return tuple(values)


def _result(value: object) -> Placement | Refusal:
    return result_from_json(json.dumps(value))
