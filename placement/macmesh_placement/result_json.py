"""Reads the JSON form of what the planner answers, as `Placement.to_json` and `Refusal.to_json` write it."""

from typing import cast, get_args

from macmesh_placement.checks import Reader, kind_of, parse
from macmesh_placement.errors import LocalPlacementError
from macmesh_placement.ledger import Ledger
from macmesh_placement.result import (
    PLAN_FORMAT,
    Certificate,
    HostDeficit,
    NodeDeficit,
    Parallelism,
    Placement,
    Refusal,
    RefusalKind,
    StagePlacement,
    WhatIf,
)


def result_from_json(text: str) -> Placement | Refusal:
    """Reads the JSON text of a plan or a refusal, and re-adds every ledger.

    Raises:
        LocalPlacementError: The text is neither, or its sums are wrong.
    """
    reader = Reader(parse(text, "plan", LocalPlacementError), "plan", LocalPlacementError)
    found = reader.text("format")
    if found != PLAN_FORMAT:
        raise LocalPlacementError(f"plan.format must be {PLAN_FORMAT!r}, not {found!r}")
    return _placement(reader) if reader.flag("feasible") else _refusal(reader)


def _placement(reader: Reader) -> Placement:
    stages = []
    for index, item in enumerate(reader.array("stages")):
        where = f"plan.stages[{index}]"
        stage = Reader(item, where, LocalPlacementError)
        stages.append(
            StagePlacement(
                index=stage.integer("index"),
                node_id=stage.text("node_id"),
                first_layer=stage.integer("first_layer"),
                end_layer=stage.integer("end_layer"),
                predicted_seconds=stage.seconds("predicted_seconds"),
                bytes_to_load=stage.integer("bytes_to_load"),
                hop_seconds=stage.seconds("hop_seconds", default=0.0),
                ledger=Ledger.from_json(stage.get("ledger"), f"{where}.ledger"),
            )
        )
    parallelism = reader.text("parallelism", default="pipeline")
    if parallelism not in get_args(Parallelism):
        raise LocalPlacementError(
            f"plan.parallelism must be one of {get_args(Parallelism)}, not {parallelism!r}"
        )
    proof = Reader(reader.get("certificate"), "plan.certificate", LocalPlacementError)
    return Placement(
        model_id=reader.text("model_id"),
        digest=reader.text("digest"),
        layer_count=reader.integer("layer_count", minimum=1),
        context_tokens=reader.integer("context_tokens", minimum=1),
        slots=reader.integer("slots", minimum=1),
        prefill_chunk_tokens=reader.integer("prefill_chunk_tokens", minimum=1),
        objective=reader.text("objective"),
        stages=tuple(stages),
        predicted_decode_seconds=reader.seconds("predicted_decode_seconds"),
        predicted_slowest_stage_seconds=reader.seconds("predicted_slowest_stage_seconds"),
        bytes_to_load=reader.integer("bytes_to_load"),
        certificate=Certificate(
            exact=proof.flag("exact"),
            method=proof.text("method"),
            best_objective_seconds=proof.seconds("best_objective_seconds"),
            objective_seconds=proof.seconds("objective_seconds"),
            fewest_bytes_proved=proof.flag("fewest_bytes_proved"),
            notes=proof.texts("notes"),
        ),
        parallelism=cast("Parallelism", parallelism),
        kv_bits=reader.integer("kv_bits", default=0),
        predicted_prefill_seconds_per_token=reader.seconds(
            "predicted_prefill_seconds_per_token", default=0.0
        ),
    )


def _refusal(reader: Reader) -> Refusal:
    kind = reader.text("kind")
    if kind not in get_args(RefusalKind):
        raise LocalPlacementError(f"plan.kind must be one of {get_args(RefusalKind)}, not {kind_of(kind)}")
    return Refusal(
        kind=cast("RefusalKind", kind),
        message=reader.text("message"),
        context_tokens=reader.integer("context_tokens"),
        position_limit=reader.optional_integer("position_limit"),
        largest_context_tokens=reader.optional_integer("largest_context_tokens"),
        binding=reader.text("binding"),
        binding_constraints=reader.texts("binding_constraints", default=[]),
        bytes_to_add=reader.optional_integer("bytes_to_add"),
        deficits=tuple(_node_deficit(line) for line in reader.objects("deficits")),
        host_deficits=tuple(_host_deficit(line) for line in reader.objects("host_deficits", default=[])),
        what_ifs=tuple(_what_if(line) for line in reader.objects("what_ifs", default=[])),
        notes=reader.texts("notes", default=[]),
    )


def _node_deficit(line: Reader) -> NodeDeficit:
    numbers = {name: line.integer(name) for name in NodeDeficit.__dataclass_fields__ if name != "node_id"}
    return NodeDeficit(node_id=line.text("node_id"), **numbers)


def _host_deficit(line: Reader) -> HostDeficit:
    numbers = {name: line.integer(name) for name in HostDeficit.__dataclass_fields__ if name != "host_id"}
    return HostDeficit(host_id=line.text("host_id"), **numbers)


def _what_if(line: Reader) -> WhatIf:
    return WhatIf(
        change=line.text("change"),
        message=line.text("message"),
        feasible=line.flag("feasible"),
        largest_context_tokens=line.optional_integer("largest_context_tokens"),
    )
