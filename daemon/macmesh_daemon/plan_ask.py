"""What a plan is asked for in people's words, and its answer: shared by the daemon's dry run and the CLI. Pure.

A node is named by its id, by one of its names, or by the beginning of its id where that is unambiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macmesh_placement import LocalPlanRequestError, PlanRequest, Reserves
from macmesh_placement.request import DEFAULT_PREFILL_CHUNK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from macmesh_placement import Link, ModelProfile, NodeCapacity, Objective, Placement, Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAsk:
    """A plan request before its model is profiled and its nodes are known.

    Attributes:
        context_tokens: As in `PlanRequest`, as are all that follow and are not explained.
        slots: Requests served at once.
        objective: What to be best at.
        stage_count: Stages to use; 0 lets the planner choose.
        excluded_nodes: Names of nodes to leave out.
        required_nodes: Names of nodes that must take part.
        head_node: Name of the node of the first stage; empty: any.
        tail_node: Name of the node of the last stage; empty: any.
        decode_context_tokens: Tokens in the cache at the predicted token; 0: the whole context.
        prefill_share: Share of prompt tokens, 0 to below 1.
        kv_bits: Bits of a quantised cache; 0 keeps the profile's.
        prefill_chunk_tokens: Most prompt tokens of a step.
        allow_tensor_parallel: Tensor parallelism is a candidate.
    """

    context_tokens: int = 0
    slots: int = 1
    objective: Objective = "balanced"
    stage_count: int = 0
    excluded_nodes: tuple[str, ...] = ()
    required_nodes: tuple[str, ...] = ()
    head_node: str = ""
    tail_node: str = ""
    decode_context_tokens: int = 0
    prefill_share: float = 0.0
    kv_bits: int = 0
    prefill_chunk_tokens: int = DEFAULT_PREFILL_CHUNK_TOKENS
    allow_tensor_parallel: bool = False

    def request(
        self,
        profile: ModelProfile,
        nodes: Sequence[NodeCapacity],
        *,
        links: Sequence[Link] = (),
        names: Mapping[str, Sequence[str]] | None = None,
        reserves: Reserves | None = None,
    ) -> PlanRequest:
        """The planner's request.

        Args:
            profile: The model, its cache in its own type.
            nodes: The nodes that may take part.
            links: Links between them, where known.
            names: Further names of nodes, by id; ids that are not among ``nodes`` are known but may not take
                part.
            reserves: The terms of the ledger that no profile knows; None takes the defaults.

        Raises:
            LocalPlanRequestError: A name that means no node, several, or one that may not take part, or
                values that contradict each other.
            LocalProfileError: The cache cannot be quantised.
        """
        known = {node_id: list(told) for node_id, told in (names or {}).items()}
        for node in nodes:
            known.setdefault(node.node_id, []).append(node.label)
        present = {node.node_id for node in nodes}

        def taking_part(name: str, what: str) -> str:
            node_id = resolve_node(name, known, what)
            if node_id not in present:
                raise LocalPlanRequestError(f"{what}: {name!r} is known, but may not take part now")
            return node_id

        excluded = {resolve_node(name, known, "exclude") for name in self.excluded_nodes}
        return PlanRequest(
            profile=profile.with_kv_bits(self.kv_bits) if self.kv_bits else profile,
            nodes=tuple(nodes),
            context_tokens=self.context_tokens,
            slots=self.slots,
            prefill_chunk_tokens=self.prefill_chunk_tokens,
            objective=self.objective,
            stage_count=self.stage_count,
            excluded_node_ids=frozenset(excluded & present),
            required_node_ids=frozenset(taking_part(name, "require") for name in self.required_nodes),
            head_node_id=taking_part(self.head_node, "head") if self.head_node else "",
            tail_node_id=taking_part(self.tail_node, "tail") if self.tail_node else "",
            decode_context_tokens=self.decode_context_tokens,
            prefill_share=self.prefill_share,
            allow_tensor_parallel=self.allow_tensor_parallel,
            links=tuple(links),
            reserves=reserves or Reserves(),
        )


def resolve_node(name: str, known: Mapping[str, Sequence[str]], what: str) -> str:
    """The id of the node that a person means.

    Args:
        name: What the person wrote.
        known: The names of each node, by id.
        what: What it is for, for the message.

    Raises:
        LocalPlanRequestError: No node has that name or an id that begins like it, or several do.
    """
    if name in known:
        return name
    found = [node_id for node_id, names in known.items() if name and name in names]
    found = found or [node_id for node_id in known if name and node_id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise LocalPlanRequestError(
            f"{what}: {name!r} means several nodes: {', '.join(sorted(found))}; name one by its id"
        )
    told = ", ".join(sorted({next((n for n in names if n), node_id) for node_id, names in known.items()}))
    raise LocalPlanRequestError(f"{what}: there is no node {name!r}; there are: {told or 'none'}")


def answer_json(request: PlanRequest, result: Placement | Refusal, *, explain: bool) -> dict[str, Any]:
    """The answer to a dry run as ``daemonctl plan --json`` has it; with the alternatives where asked."""
    answer = result.to_json()
    if explain:
        from macmesh_placement.explain import alternatives  # noqa: PLC0415  plans many times, and rarely wanted

        answer["alternatives"] = [option.to_json() for option in alternatives(request, result)]
    return answer
