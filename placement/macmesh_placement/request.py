"""What the planner is asked."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.checks import require_integer, require_number
from macmesh_placement.errors import LocalPlanRequestError
from macmesh_placement.ledger import Reserves, StageDemand
from macmesh_placement.links import Link, unknown_or_repeated
from macmesh_placement.profile import ModelProfile

Objective = Literal["latency", "throughput", "balanced"]

DEFAULT_PREFILL_CHUNK_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What to place where, and what counts.

    Attributes:
        profile: The model.
        nodes: The nodes that may take part; the planner may leave some out.
        context_tokens: Tokens of context that every slot holds; 0 takes the model's position limit.
        slots: Requests served at once; each has the cache budget of a whole context.
        prefill_chunk_tokens: Most prompt tokens of one prefill step.
        objective: ``"latency"``: least seconds per token of a single request (sum of stage times and hops).
            ``"throughput"``: least time of the slowest stage. ``"balanced"``: least seconds between two
            tokens of one request while `slots` requests are served, the larger of latency and slots x slowest
            stage.
        stage_count: Number of stages to use; 0 lets the planner choose.
        excluded_node_ids: Nodes to leave out.
        required_node_ids: Nodes that must take part.
        head_node_id: The node that must run the first stage; empty: any.
        tail_node_id: The node that must run the last stage; empty: any.
        links: Links between nodes where they are known; other pairs are joined by a link of
            `hop_latency_seconds` and `link_gb_per_s`.
        decode_context_tokens: Tokens in the cache while the predicted token is decoded; 0: the full context.
        prefill_share: Share of all tokens that are prompt tokens, 0 to below 1: times are seconds per token of
            that mixture, prompt tokens in steps of `prefill_chunk_tokens`. Default 0, decoding alone.
        allow_tensor_parallel: Splitting every layer over equal nodes is a candidate next to the pipeline.
        hop_latency_seconds: Time of one hop between stages beside its bytes. Default 0.3 ms.
        link_gb_per_s: Bandwidth of a link. Default 5 (Thunderbolt 5 in one direction, protocol deducted).
        tolerance: Plans within this share of the best are equals, among which the one that loads the fewest
            bytes wins.
        reserves: The terms of the ledger that no profile knows.
    """

    profile: ModelProfile
    nodes: tuple[NodeCapacity, ...]
    context_tokens: int = 0
    slots: int = 1
    prefill_chunk_tokens: int = DEFAULT_PREFILL_CHUNK_TOKENS
    objective: Objective = "balanced"
    stage_count: int = 0
    excluded_node_ids: frozenset[str] = frozenset()
    required_node_ids: frozenset[str] = frozenset()
    head_node_id: str = ""
    tail_node_id: str = ""
    links: tuple[Link, ...] = ()
    decode_context_tokens: int = 0
    prefill_share: float = 0.0
    allow_tensor_parallel: bool = False
    hop_latency_seconds: float = 0.0003
    link_gb_per_s: float = 5.0
    tolerance: float = 0.02
    reserves: Reserves = field(default_factory=Reserves)

    def __post_init__(self) -> None:
        self._check_numbers()
        seen: set[str] = set()
        for node in self.nodes:
            if node.node_id in seen:
                raise LocalPlanRequestError(f"node {node.node_id!r} is there twice")
            seen.add(node.node_id)
        if wrong := unknown_or_repeated(self.links, seen):
            raise LocalPlanRequestError(wrong)
        self._check_pins(seen)
        for node in self.nodes:
            if any(not 0 <= layer < self.profile.layer_count for layer in node.resident_layers):
                raise LocalPlanRequestError(
                    f"node {node.node_id!r} resident_layers names layers that the model lacks"
                )

    def _check_numbers(self) -> None:
        require_integer(self.context_tokens, "context_tokens", LocalPlanRequestError)
        require_integer(self.slots, "slots", LocalPlanRequestError, minimum=1)
        require_integer(self.prefill_chunk_tokens, "prefill_chunk_tokens", LocalPlanRequestError, minimum=1)
        require_integer(self.stage_count, "stage_count", LocalPlanRequestError)
        require_integer(self.decode_context_tokens, "decode_context_tokens", LocalPlanRequestError)
        for name in ("hop_latency_seconds", "link_gb_per_s", "tolerance", "prefill_share"):
            require_number(getattr(self, name), name, LocalPlanRequestError)
        if self.link_gb_per_s == 0:
            raise LocalPlanRequestError("link_gb_per_s must be above 0")
        if self.prefill_share >= 1:
            raise LocalPlanRequestError(f"prefill_share must be below 1, not {self.prefill_share}")
        context = self.resolved_context_tokens
        if context and self.decode_context_tokens > context:
            raise LocalPlanRequestError(
                f"decode_context_tokens {self.decode_context_tokens} is above the context of {context}"
            )
        if self.objective not in get_args(Objective):
            raise LocalPlanRequestError(
                f"objective must be one of {get_args(Objective)}, not {self.objective!r}"
            )

    def _check_pins(self, known: set[str]) -> None:
        named = {
            "excluded_node_ids": self.excluded_node_ids,
            "required_node_ids": self.required_node_ids,
            "head_node_id": frozenset({self.head_node_id} - {""}),
            "tail_node_id": frozenset({self.tail_node_id} - {""}),
        }
        for name, node_ids in named.items():
            if unknown := node_ids - known:
                raise LocalPlanRequestError(f"{name} names unknown nodes: {', '.join(sorted(unknown))}")
            both = node_ids & self.excluded_node_ids
            if name != "excluded_node_ids" and both:
                raise LocalPlanRequestError(
                    f"{name} and excluded_node_ids both name {', '.join(sorted(both))}"
                )
        pinned = self.pinned_node_ids
        if self.stage_count and len(pinned) > self.stage_count:
            raise LocalPlanRequestError(
                f"stage_count {self.stage_count} is less than the {len(pinned)} nodes that "
                f"required_node_ids, head_node_id and tail_node_id ask for: {', '.join(sorted(pinned))}"
            )
        if self.head_node_id and self.head_node_id == self.tail_node_id:
            if self.stage_count > 1:
                raise LocalPlanRequestError(
                    f"head_node_id and tail_node_id are both {self.head_node_id!r}, which means one stage, "
                    f"but stage_count is {self.stage_count}"
                )
            if len(pinned) > 1:
                raise LocalPlanRequestError(
                    f"head_node_id and tail_node_id are both {self.head_node_id!r}, which means one stage, "
                    f"but required_node_ids asks for {', '.join(sorted(pinned))}"
                )

    @property
    def pinned_node_ids(self) -> frozenset[str]:
        """The nodes that must hold a stage: the required ones, the head's and the tail's."""
        return self.required_node_ids | ({self.head_node_id, self.tail_node_id} - {""})

    def without_pins(self) -> "PlanRequest":
        """The same ask with no node required and no head or tail pinned; excluded nodes stay out."""
        return replace(self, required_node_ids=frozenset(), head_node_id="", tail_node_id="")

    @property
    def host_budgets_bytes(self) -> dict[str, int]:
        """For each machine that several nodes of the request are on: the bytes that they may use together.

        A fact of the machine, whoever takes part: the lowest `ram_bytes` that any of its nodes reports, those
        left out too, less what `Reserves.host_reserve_fraction` leaves to the system. So leaving a node out
        never adds RAM. A node that is alone on its machine is bounded by its `usable_bytes` only.
        """
        readings: dict[str, list[int]] = {}
        for node in self.nodes:
            readings.setdefault(node.host, []).append(node.ram_bytes)
        left = 1 - self.reserves.host_reserve_fraction
        return {host: int(min(found) * left) for host, found in readings.items() if len(found) > 1}

    @property
    def resolved_context_tokens(self) -> int:
        """The context asked for, or the model's position limit; 0 where neither is known."""
        return self.context_tokens or self.profile.position_limit or 0

    def demand(self, context_tokens: int | None = None) -> StageDemand:
        """How every stage will be used, at the asked context or another."""
        return StageDemand(
            context_tokens=self.resolved_context_tokens if context_tokens is None else context_tokens,
            slots=self.slots,
            prefill_chunk_tokens=self.prefill_chunk_tokens,
            reserves=self.reserves,
        )
