"""What the planner answers: a placement with its certificate, or a refusal that helps.

Both have a JSON form, ``"format": "macmesh-plan/1"``; ``feasible`` tells them apart. It is read in
`macmesh_placement.result_json`.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from macmesh_placement.ledger import Ledger

PLAN_FORMAT = "macmesh-plan/1"

Parallelism = Literal["pipeline", "tensor"]

RefusalKind = Literal[
    "does_not_fit",
    "above_position_limit",
    "needs_context",
    "unsupported_architecture",
    "no_nodes",
    "stage_count",
    "pins",
    "transport",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlacement:
    """One stage: a contiguous range of layers on one node.

    Attributes:
        index: Position in the pipeline, from 0.
        node_id: The node that runs it.
        first_layer: First layer, inclusive.
        end_layer: End of the range, exclusive.
        ledger: What it needs.
        predicted_seconds: Seconds of one token of the request's mixture, by the cost model, hops aside.
        bytes_to_load: Parameters that the node does not hold now.
        hop_seconds: Seconds of one token on its way to the next stage; from the last stage, back to the
            first. Tensor parallelism: the reductions, once, on the first.
    """

    index: int
    node_id: str
    first_layer: int
    end_layer: int
    ledger: Ledger
    predicted_seconds: float
    bytes_to_load: int
    hop_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The stage as a JSON object."""
        return {
            "index": self.index,
            "node_id": self.node_id,
            "first_layer": self.first_layer,
            "end_layer": self.end_layer,
            "predicted_seconds": self.predicted_seconds,
            "bytes_to_load": self.bytes_to_load,
            "hop_seconds": self.hop_seconds,
            "ledger": self.ledger.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What the planner vouches for.

    Attributes:
        exact: No plan has a better objective.
        method: How the search went, for people.
        best_objective_seconds: The best objective of any plan found.
        objective_seconds: The objective of this plan; within the tolerance of the best.
        fewest_bytes_proved: No plan within the tolerance loads fewer bytes.
        notes: What was assumed, for people.
    """

    exact: bool
    method: str
    best_objective_seconds: float
    objective_seconds: float
    fewest_bytes_proved: bool
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The certificate as a JSON object."""
        return {
            "exact": self.exact,
            "method": self.method,
            "best_objective_seconds": self.best_objective_seconds,
            "objective_seconds": self.objective_seconds,
            "fewest_bytes_proved": self.fewest_bytes_proved,
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A plan that fits, with its certificate.

    Attributes:
        predicted_decode_seconds: Seconds between two decoded tokens of one request.
        predicted_slowest_stage_seconds: Seconds of one token of the request's mixture in its slowest stage.
        predicted_prefill_seconds_per_token: Seconds per prompt token of one request, stages one after another.
        parallelism: ``"pipeline"``: a stage is a range of layers. ``"tensor"``: every stage holds its part of
            all layers.
        kv_bits: Bits of a quantised cache; 0: as the model has it.
    """

    model_id: str
    digest: str
    layer_count: int
    context_tokens: int
    slots: int
    prefill_chunk_tokens: int
    objective: str
    stages: tuple[StagePlacement, ...]
    predicted_decode_seconds: float
    predicted_slowest_stage_seconds: float
    bytes_to_load: int
    certificate: Certificate
    parallelism: Parallelism = "pipeline"
    kv_bits: int = 0
    predicted_prefill_seconds_per_token: float = 0.0

    feasible = True

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        return {
            "format": PLAN_FORMAT,
            "feasible": True,
            "model_id": self.model_id,
            "digest": self.digest,
            "layer_count": self.layer_count,
            "context_tokens": self.context_tokens,
            "slots": self.slots,
            "prefill_chunk_tokens": self.prefill_chunk_tokens,
            "objective": self.objective,
            "stages": [stage.to_json() for stage in self.stages],
            "predicted_decode_seconds": self.predicted_decode_seconds,
            "predicted_slowest_stage_seconds": self.predicted_slowest_stage_seconds,
            "bytes_to_load": self.bytes_to_load,
            "parallelism": self.parallelism,
            "kv_bits": self.kv_bits,
            "predicted_prefill_seconds_per_token": self.predicted_prefill_seconds_per_token,
            "certificate": self.certificate.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDeficit:
    """How much one node lacks for the stage that it would have to take."""

    node_id: str
    first_layer: int
    end_layer: int
    needed_bytes: int
    usable_bytes: int
    deficit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDeficit:
    """How much RAM a machine lacks that several nodes share, beyond what a setting could give them.

    Attributes:
        host_id: The machine.
        needed_bytes: What the stages on it need together.
        budget_bytes: What its nodes may use together: its RAM without the share left to the system.
        deficit_bytes: The difference.
    """

    host_id: str
    needed_bytes: int
    budget_bytes: int
    deficit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """One change to the ask, planned anew.

    Attributes:
        change: Stable name of the change, such as ``"slots=2"`` or ``"kv_bits=8"``.
        message: For people, one sentence.
        feasible: The ask fits with that change.
        largest_context_tokens: Where it does not: the largest context that fits with the change, which is
            larger than without it. None where the ask fits.
    """

    change: str
    message: str
    feasible: bool
    largest_context_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why there is no plan, and what would make one.

    Attributes:
        kind: Stable reason. ``"transport"`` is never the planner's: whoever runs its plans may refuse them so.
        message: For people: what is wrong and what to do.
        context_tokens: The context asked for; 0 where none was.
        position_limit: The model's position limit, if it has one.
        largest_context_tokens: Largest context that fits on these nodes; 0 where none does, None where not
            searched.
        binding: The single constraint that decides, as `macmesh_placement.binding` defines it: ``"pins"``,
            ``"stage_count"``, ``"host_ram"``, ``"granularity"``, a line of the ledger, or ``"memory"`` where
            no single one does; empty where nothing was too small.
        binding_constraints: Every constraint that, lifted alone, makes the ask fit.
        bytes_to_add: Fewest bytes of usable memory that would have to be added, over all nodes.
        deficits: Where they would have to be added.
        host_deficits: RAM that shared machines lack besides.
        what_ifs: Changes to the ask that make it fit, or make a larger context fit.
        notes: What was searched within limits, for people.
    """

    kind: RefusalKind
    message: str
    context_tokens: int = 0
    position_limit: int | None = None
    largest_context_tokens: int | None = None
    binding: str = ""
    binding_constraints: tuple[str, ...] = ()
    bytes_to_add: int | None = None
    deficits: tuple[NodeDeficit, ...] = ()
    host_deficits: tuple[HostDeficit, ...] = ()
    what_ifs: tuple[WhatIf, ...] = ()
    notes: tuple[str, ...] = ()

    feasible = False

    def to_json(self) -> dict[str, Any]:
        """The refusal as a JSON object."""
        return {
            "format": PLAN_FORMAT,
            "feasible": False,
            "kind": self.kind,
            "message": self.message,
            "context_tokens": self.context_tokens,
            "position_limit": self.position_limit,
            "largest_context_tokens": self.largest_context_tokens,
            "binding": self.binding,
            "binding_constraints": list(self.binding_constraints),
            "bytes_to_add": self.bytes_to_add,
            "deficits": [asdict(deficit) for deficit in self.deficits],
            "host_deficits": [asdict(deficit) for deficit in self.host_deficits],
            "what_ifs": [asdict(what_if) for what_if in self.what_ifs],
            "notes": list(self.notes),
        }
