"""Pure translation between the SDK's arguments and values and the wire messages."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any, Final, TypedDict

from macmesh.errors import LocalArgumentError, RemoteInternalError
from macmesh.reasons import Reason
from macmesh.types import (
    ClusterEvent,
    ClusterStatus,
    Completion,
    FinishReason,
    GenerateChunk,
    LoadProgress,
    Paused,
    PlanResult,
    RequestFacts,
    Usage,
    Waiting,
    epoch_text,
)
from macmesh.v1 import cluster_pb2, inference_pb2

OBJECTIVES: Final = ("latency", "throughput", "balanced")
ROLES: Final = ("system", "user", "assistant")

_FINISH: Final = {
    inference_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    inference_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    inference_pb2.FINISH_REASON_CANCELLED: FinishReason.CANCELLED,
}


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of ``generate`` and ``complete``; all are optional.

    Exactly one of the prompt, `messages` and `token_ids` is given.
    """

    #: A conversation, oldest first: ``{"role": "user", "content": "..."}``; goes into the chat template.
    messages: Sequence[Mapping[str, str]] | None
    #: A prompt already tokenised.
    token_ids: Sequence[int] | None
    #: The model; empty takes the one that is served.
    model: str
    #: Most tokens to generate; 0 (default) means up to the context.
    max_tokens: int
    #: 0 (default) takes the most probable token.
    temperature: float
    #: Nucleus sampling; 0 (default) takes all tokens.
    top_p: float
    #: Only the k most probable tokens; 0 (default) takes all.
    top_k: int
    #: Only tokens of at least this share of the top probability; 0 (default) takes all.
    min_p: float
    #: Seed of the request's random numbers; None (default) lets the node draw one, told in `RequestFacts`.
    seed: int | None
    #: Texts that end the generation and are not part of it.
    stop: Sequence[str]
    #: Generate on past the model's own end-of-sequence tokens.
    ignore_eos: bool
    #: What was computed for an earlier prompt with the same beginning may be taken up (default).
    reuse_prefix: bool
    #: What is computed for this request may stay for a later one (default).
    keep: bool


class PlanOptions(TypedDict, total=False):
    """Keyword arguments of ``plan`` beside the demand; all are optional.

    A node is named by its host name, its name in the cluster or the beginning of its id.
    """

    #: Nodes to leave out.
    excluded_nodes: Sequence[str]
    #: Nodes that must take part.
    required_nodes: Sequence[str]
    #: The node that must run the first stage; empty (default): any.
    head_node: str
    #: The node that must run the last stage; empty (default): any.
    tail_node: str
    #: Tokens in the cache while the predicted token is decoded; 0 (default) takes the whole context.
    decode_context_tokens: int
    #: Share of prompt tokens among all tokens, 0 (default, decoding alone) to below 1.
    prefill_share: float
    #: Bits of a quantised cache, 4 or 8; 0 (default) keeps the model's own type.
    kv_bits: int
    #: Most prompt tokens of one prefill step; 0 (default) takes the node's setting.
    prefill_chunk_tokens: int
    #: Splitting every layer over equal nodes is a candidate too.
    allow_tensor_parallel: bool
    #: Also answer with the plans that lost, and why, as ``alternatives``.
    explain: bool


def generate_request(
    prompt: str | None = None,
    *,
    messages: Sequence[Mapping[str, str]] | None = None,
    token_ids: Sequence[int] | None = None,
    model: str = "",
    max_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 0.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int | None = None,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    reuse_prefix: bool = True,
    keep: bool = True,
) -> inference_pb2.GenerateRequest:
    """Build the request.

    Raises:
        LocalArgumentError: Not exactly one kind of prompt, or a value that no daemon would take.
    """
    if sum(x is not None for x in (prompt, messages, token_ids)) != 1:
        raise LocalArgumentError("give exactly one of prompt, messages and token_ids")
    if isinstance(stop, str):
        raise LocalArgumentError("stop is a list of texts, not one text")
    if temperature < 0 or not 0 <= top_p <= 1 or not 0 <= min_p <= 1:
        raise LocalArgumentError("temperature must be at least 0, top_p and min_p between 0 and 1")
    if seed is not None and not 0 <= seed < 2**64:
        raise LocalArgumentError("seed must lie in 0 .. 2**64 - 1")
    if any(text == "" for text in stop):
        raise LocalArgumentError("a stop text must not be empty")
    request = inference_pb2.GenerateRequest(
        model_id=model,
        sampling=inference_pb2.SamplingParameters(
            temperature=temperature, top_p=top_p, top_k=_count("top_k", top_k), min_p=min_p, seed=seed
        ),
        max_tokens=_count("max_tokens", max_tokens),
        stop=stop,
        ignore_eos=ignore_eos,
        # Absent is yes: only the exception travels.
        reuse_prefix=None if reuse_prefix else False,
        keep=None if keep else False,
    )
    if prompt is not None:
        request.text = prompt
    elif messages is not None:
        request.chat.messages.extend(_chat_messages(messages))
    else:
        request.tokens.token_ids.extend(_count("token_ids", i) for i in token_ids or ())
    return request


def _chat_messages(messages: Sequence[Mapping[str, str]]) -> Iterable[inference_pb2.ChatMessage]:
    if not messages:
        raise LocalArgumentError("messages is empty: a conversation needs at least one message")
    for message in messages:
        if set(message) != {"role", "content"} or message["role"] not in ROLES:
            raise LocalArgumentError(
                f"a message is {{'role': one of {', '.join(ROLES)}, 'content': text}}, not {dict(message)!r}"
            )
        yield inference_pb2.ChatMessage(role=message["role"], content=message["content"])


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not 0 <= value < 2**32:
        raise LocalArgumentError(f"{name} must lie in 0 .. 2**32 - 1, not {value!r}")
    return value


def _demand(model: str, context_tokens: int, slots: int, objective: str, stage_count: int) -> dict[str, Any]:
    if not model:
        raise LocalArgumentError("model is empty: give a folder or a name below a model folder")
    if objective and objective not in OBJECTIVES:
        raise LocalArgumentError(f"objective must be one of {', '.join(OBJECTIVES)}, not {objective!r}")
    return {
        "model_id": model,
        "context_tokens": _count("context_tokens", context_tokens),
        "slots": _count("slots", slots),
        "objective": objective,
        "stage_count": _count("stage_count", stage_count),
    }


def plan_request(
    model: str,
    context_tokens: int,
    slots: int,
    objective: str,
    stage_count: int,
    *,
    excluded_nodes: Sequence[str] = (),
    required_nodes: Sequence[str] = (),
    head_node: str = "",
    tail_node: str = "",
    decode_context_tokens: int = 0,
    prefill_share: float = 0.0,
    kv_bits: int = 0,
    prefill_chunk_tokens: int = 0,
    allow_tensor_parallel: bool = False,
    explain: bool = False,
) -> cluster_pb2.PlanModelRequest:
    """Build the request.

    Raises:
        LocalArgumentError: A value that no daemon would take.
    """
    for name, nodes in (("excluded_nodes", excluded_nodes), ("required_nodes", required_nodes)):
        if isinstance(nodes, str):
            raise LocalArgumentError(f"{name} is a list of nodes, not one text")
        if "" in nodes:
            raise LocalArgumentError(f"{name} holds an empty name")
    if not 0 <= prefill_share < 1:
        raise LocalArgumentError(f"prefill_share must be at least 0 and below 1, not {prefill_share}")
    return cluster_pb2.PlanModelRequest(
        **_demand(model, context_tokens, slots, objective, stage_count),
        excluded_nodes=excluded_nodes,
        required_nodes=required_nodes,
        head_node=head_node,
        tail_node=tail_node,
        decode_context_tokens=_count("decode_context_tokens", decode_context_tokens),
        prefill_share=prefill_share,
        kv_bits=_count("kv_bits", kv_bits),
        prefill_chunk_tokens=_count("prefill_chunk_tokens", prefill_chunk_tokens),
        allow_tensor_parallel=allow_tensor_parallel,
        explain=explain,
    )


def load_request(
    model: str,
    context_tokens: int,
    slots: int,
    objective: str,
    stage_count: int,
    *,
    kv_bits: int = 0,
    allow_tensor_parallel: bool = False,
    transfers: str = "",
) -> cluster_pb2.LoadModelRequest:
    """Build the request; raises LocalArgumentError."""
    return cluster_pb2.LoadModelRequest(
        **_demand(model, context_tokens, slots, objective, stage_count),
        kv_bits=_count("kv_bits", kv_bits),
        allow_tensor_parallel=allow_tensor_parallel,
        transfers=transfers,
    )


def plan_result(response: cluster_pb2.PlanModelResponse) -> PlanResult:
    """Read the answer; raises RemoteInternalError where it is not JSON."""
    return PlanResult(response.feasible, _object(response.result_json))


def load_progress(response: cluster_pb2.LoadModelResponse) -> LoadProgress:
    """Read a step of a load."""
    return LoadProgress(
        phase=response.phase,
        epoch=epoch_text(response.epoch) if response.HasField("epoch") else "",
        loaded_bytes=sum(w.loaded_bytes for w in response.workers),
        total_bytes=sum(w.total_bytes for w in response.workers),
        workers=tuple(response.workers),
        deployment=response.deployment if response.HasField("deployment") else None,
    )


def update(response: cluster_pb2.WatchClusterResponse) -> ClusterStatus | ClusterEvent | None:
    """Read an update; None for a kind that this SDK does not know yet."""
    match response.WhichOneof("update"):
        case "status":
            return response.status
        case "event":
            event = response.event
            return ClusterEvent(
                event.time.ToDatetime(tzinfo=UTC), event.event, _object(event.facts_json or "{}")
            )
        case _:
            return None


def chunk(response: inference_pb2.GenerateResponse) -> GenerateChunk | None:
    """Read a piece of a generation; None for a mere sign of life."""
    if not (
        response.text
        or response.token_ids
        or response.finish_reason
        or response.HasField("request")
        or response.HasField("waiting")
        or response.HasField("paused")
    ):
        return None
    usage = response.usage
    request = response.request
    return GenerateChunk(
        text=response.text,
        token_ids=tuple(response.token_ids),
        logprobs=tuple(response.logprobs),
        finish_reason=_FINISH.get(response.finish_reason),
        usage=Usage(
            usage.prompt_tokens, usage.completion_tokens, usage.first_token_seconds, usage.decode_seconds
        )
        if response.HasField("usage")
        else None,
        request=RequestFacts(request.request_id, request.seed, request.model_id, request.epoch)
        if response.HasField("request")
        else None,
        waiting=_waiting(response.waiting) if response.HasField("waiting") else None,
        paused=Paused(response.paused.reason, response.paused.message)
        if response.HasField("paused")
        else None,
    )


def _waiting(message: inference_pb2.Waiting) -> Waiting:
    return Waiting(
        message.position, message.estimate_seconds if message.HasField("estimate_seconds") else None
    )


def completion(chunks: Sequence[GenerateChunk]) -> Completion:
    """Join the pieces of a whole generation.

    Raises:
        RemoteInternalError: The stream ended without saying how.
    """
    last = chunks[-1] if chunks else None
    if last is None or last.finish_reason is None or last.usage is None or chunks[0].request is None:
        raise RemoteInternalError(
            "the daemon ended the generation without a finish reason", code="INTERNAL", reason=Reason.INTERNAL
        )
    return Completion(
        text="".join(c.text for c in chunks),
        token_ids=tuple(i for c in chunks for i in c.token_ids),
        logprobs=tuple(p for c in chunks for p in c.logprobs),
        finish_reason=last.finish_reason,
        usage=last.usage,
        request=chunks[0].request,
    )


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise RemoteInternalError(
            "the daemon sent facts that are not a JSON object", code="INTERNAL", reason=Reason.INTERNAL
        )
    return value
