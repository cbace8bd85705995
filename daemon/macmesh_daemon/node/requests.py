"""The API node's side of a generation: tokenise, run on the head, keep the token log, deliver text."""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from macmesh.reasons import Reason
from macmesh.v1 import inference_pb2, peer_pb2
from macmesh_daemon.models import LocalModelError
from macmesh_daemon.models.tokenizer import ModelTokenizer
from macmesh_daemon.models.tokenizer_errors import LocalTokenizerError, TokenizerError
from macmesh_daemon.node.assembly import TextAssembler
from macmesh_daemon.node.call_errors import CallError, from_rpc_error
from macmesh_daemon.node.codec import to_proto
from macmesh_daemon.requests import TokenLog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from macmesh_daemon.cluster.messages import Deployment, Epoch, ModelRef
    from macmesh_daemon.node.recorder import RequestTrail
    from macmesh_daemon.node.runtime import Node

#: A seed travels as an unsigned 64-bit number; 32 bits are plenty and easy to type again.
#: What the worker takes at most (`macmesh_daemon.engine.sampling_parameters`), refused here before it travels.
MOST_PENALTY_CONTEXT_TOKENS = 4096
MOST_LOGIT_BIASES = 1024
_SEED_BITS = 32
#: Longest silence of a head, which gives a sign of life every five seconds.
HEAD_SILENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and by which node's worker requests are taken."""

    epoch: Epoch
    deployment: Deployment
    model: ModelRef
    head_node_id: str


class RequestDesk:
    """Takes generation requests of clients; each ends finished, cancelled or failed with a reason."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tokenizers: dict[str, ModelTokenizer] = {}
        self._logs: dict[str, TokenLog] = {}

    @property
    def active(self) -> int:
        """Requests that have a token already."""
        return sum(1 for log in self._logs.values() if log.token_ids)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot or for their prompt to be read."""
        return sum(1 for log in self._logs.values() if not log.token_ids)

    async def generate(
        self, request: inference_pb2.GenerateRequest
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Responses to a request, the last with its finish reason; leaving early cancels it.

        Raises:
            CallError: the request is wrong, nothing is served, or the plan was lost.
        """
        accepted_at = self._node.clock.now()
        try:
            served = self.served(request.model_id)
            tokenizer = await self.tokenizer(served.model)
            run, stop_ids = await asyncio.to_thread(_prepare, request, served, tokenizer)
        except CallError as error:
            self._node.recorder.refused(error.reason.value)
            raise
        log = TokenLog(
            request_id=run.request_id,
            prompt_token_ids=tuple(run.prompt_token_ids),
            accepted_at=accepted_at,
        )
        self._logs[log.request_id] = log
        trail = self._node.recorder.request(
            run.request_id, served.epoch, prompt_tokens=len(log.prompt_token_ids), max_tokens=run.max_tokens
        )
        try:
            assembler = TextAssembler(tokenizer, stops=tuple(request.stop), end_ids=stop_ids)
            async with aclosing(self._deliver(run, served, log, assembler, trail)) as responses:
                async for response in responses:
                    yield response
        except CallError as error:
            trail.failed(error.reason.value)
            raise
        except Exception as error:
            trail.failed(type(error).__name__)
            raise
        finally:
            trail.cancelled()
            del self._logs[log.request_id]

    async def _deliver(
        self,
        run: peer_pb2.RunRequestRequest,
        served: Served,
        log: TokenLog,
        assembler: TextAssembler,
        trail: RequestTrail,
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        index = 0
        facts = inference_pb2.RequestFacts(
            request_id=run.request_id, seed=run.sampling.seed, model_id=served.model.model_id, epoch=str(served.epoch)
        )
        async with aclosing(self._run(run, served)) as tokens:
            async for token in tokens:
                if token.HasField("waiting"):
                    yield inference_pb2.GenerateResponse(
                        index=index, request=facts if index == 0 else None, waiting=token.waiting
                    )
                    index += 1
                    continue
                piece = assembler.take(token) if self._record(log, token) else assembler.take_end(token)
                response = inference_pb2.GenerateResponse(
                    index=index,
                    text=piece.text,
                    token_ids=piece.token_ids,
                    logprobs=piece.logprobs,
                    finish_reason=piece.finish_reason,
                    request=facts if index == 0 else None,
                )
                if piece.finish_reason:
                    response.usage.CopyFrom(_usage(log))
                # On the record before it goes out: afterwards the client may be gone, and this with it.
                trail.delivered(token.index, len(piece.token_ids))
                if piece.finish_reason:
                    trail.finished(inference_pb2.FinishReason.Name(piece.finish_reason))
                if piece.worth_sending or index == 0:
                    yield response
                    index += 1
                if piece.finish_reason:
                    return
        raise CallError(Reason.WORKER_FAILED, "the head ended the request without saying why; try again")

    def _record(self, log: TokenLog, token: peer_pb2.RunRequestResponse) -> bool:
        return token.has_token and log.record(token.index, token.token_id, self._node.clock.now())

    async def _run(
        self, run: peer_pb2.RunRequestRequest, served: Served
    ) -> AsyncGenerator[peer_pb2.RunRequestResponse, None]:
        if served.head_node_id == self._node.node_id:
            async with aclosing(self._node.stage_host.run_request(run)) as tokens:
                async for token in tokens:
                    yield token
            return
        stub = self._node.peers.stub(served.head_node_id)
        if stub is None:
            raise CallError(
                Reason.PEER_UNREACHABLE, f"no address is known for the head node {served.head_node_id}"
            )
        call = stub.RunRequest(run)
        try:
            while True:
                async with asyncio.timeout(HEAD_SILENCE_SECONDS):
                    read: object = await call.read()
                if not isinstance(read, peer_pb2.RunRequestResponse):  # the end of the stream
                    return
                yield read
        except TimeoutError:
            raise CallError(
                Reason.PEER_UNREACHABLE,
                f"the head node {served.head_node_id} was silent for {HEAD_SILENCE_SECONDS:.0f} s",
            ) from None
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def served(self, model_id: str) -> Served:
        """What the plan serves; an empty `model_id` takes whatever it is.

        Raises:
            CallError: nothing is served, or another model.
        """
        plan = self._node.driver.view.plan
        if plan is None or plan.epoch is None or not plan.deployments:
            raise CallError(
                Reason.NO_MODEL_LOADED, "the cluster serves no model; load one with `daemonctl load MODEL`"
            )
        deployment = plan.deployments[0]
        model = deployment.model
        if model is None or not deployment.stages:
            raise CallError(Reason.INTERNAL, f"the plan {plan.epoch} names no model")
        if model_id and model_id not in {model.model_id, model.path}:
            raise CallError(
                Reason.NO_MODEL_LOADED,
                f"the cluster serves {model.model_id!r}, not {model_id!r}",
                {"model": model.model_id},
            )
        return Served(plan.epoch, deployment, model, deployment.stages[0].node_id)

    async def tokenizer(self, model: ModelRef) -> ModelTokenizer:
        """The model's tokenizer, read once.

        Raises:
            CallError: the model or its tokenizer cannot be read here.
        """
        tokenizer = self._tokenizers.get(model.digest)
        if tokenizer is None:
            try:
                path = await asyncio.to_thread(
                    self._node.planning.resolve_path, model.model_id, model.path, model.digest
                )
                tokenizer = await asyncio.to_thread(ModelTokenizer.from_folder, path)
            except LocalModelError as error:
                raise CallError(Reason.MODEL_NOT_FOUND, str(error), {"model": model.model_id}) from error
            except LocalTokenizerError as error:
                raise CallError(Reason.MODEL_BROKEN, str(error), {"model": model.model_id}) from error
            self._tokenizers[model.digest] = tokenizer
        return tokenizer


def _prepare(
    request: inference_pb2.GenerateRequest, served: Served, tokenizer: ModelTokenizer
) -> tuple[peer_pb2.RunRequestRequest, frozenset[int]]:
    prompt = _prompt_ids(request, tokenizer)
    context = served.deployment.context_tokens
    room = context - len(prompt)
    max_tokens = request.max_tokens or room
    if max_tokens > room or room <= 0:
        raise CallError(
            Reason.CONTEXT_LENGTH_EXCEEDED,
            f"the prompt has {len(prompt)} tokens and up to {max(max_tokens, 1)} are to be generated, but the "
            f"model is served with a context of {context}: shorten the prompt or set max_tokens to at most "
            f"{max(room, 0)}",
            {"prompt_tokens": len(prompt), "max_tokens": max_tokens, "context_tokens": context},
        )
    sampling = inference_pb2.SamplingParameters()
    sampling.CopyFrom(request.sampling)
    _check_sampling(sampling)
    if "" in request.stop:
        raise CallError(
            Reason.INVALID_ARGUMENT, "a stop text is empty: it would stop before anything", {"field": "stop"}
        )
    if not sampling.HasField("seed"):
        sampling.seed = secrets.randbits(_SEED_BITS)
    stop_ids = frozenset() if request.ignore_eos else frozenset(tokenizer.eos_token_ids)
    run = peer_pb2.RunRequestRequest(
        epoch=to_proto(served.epoch),
        request_id=secrets.token_hex(12),
        prompt_token_ids=prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        stop_token_ids=sorted(stop_ids),
        reuse_prefix=request.reuse_prefix if request.HasField("reuse_prefix") else None,
        keep=request.keep if request.HasField("keep") else None,
    )
    return run, stop_ids


def _prompt_ids(request: inference_pb2.GenerateRequest, tokenizer: ModelTokenizer) -> list[int]:
    try:
        match request.WhichOneof("prompt"):
            case "text":
                ids = tokenizer.encode(request.text)
            case "chat":
                messages = [{"role": m.role, "content": m.content} for m in request.chat.messages]
                ids = tokenizer.apply_chat_template(messages)
            case "tokens":
                ids = list(request.tokens.token_ids)
            case _:
                raise CallError(
                    Reason.INVALID_ARGUMENT,
                    "the request has no prompt: set text, chat or tokens",
                    {"field": "prompt"},
                )
    except TokenizerError as error:
        raise CallError(Reason.INVALID_ARGUMENT, str(error), {"field": "prompt"}) from error
    if not ids:
        raise CallError(
            Reason.INVALID_ARGUMENT, "the prompt is empty: it needs at least one token", {"field": "prompt"}
        )
    limit = tokenizer.vocab_size
    outside = [i for i in ids if not 0 <= i < limit]
    if outside:
        raise CallError(
            Reason.INVALID_ARGUMENT,
            f"token id {outside[0]} is outside the vocabulary of {limit}",
            {"field": "prompt"},
        )
    return ids


def _check_sampling(sampling: inference_pb2.SamplingParameters) -> None:
    bounds = {
        "temperature": (0.0, 100.0),
        "top_p": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "repetition_penalty": (0.0, 100.0),
        "repetition_context_tokens": (0, MOST_PENALTY_CONTEXT_TOKENS),
        "presence_penalty": (-100.0, 100.0),
        "frequency_penalty": (-100.0, 100.0),
    }
    for name, (low, high) in bounds.items():
        value = getattr(sampling, name)
        if not low <= value <= high:  # NaN fails too
            raise CallError(
                Reason.INVALID_ARGUMENT,
                f"{name} must lie between {low:g} and {high:g}, not {value:g}",
                {"field": f"sampling.{name}"},
            )
    tokens = [one.token_id for one in sampling.logit_bias]
    if len(set(tokens)) < len(tokens) or len(tokens) > MOST_LOGIT_BIASES:
        raise CallError(
            Reason.INVALID_ARGUMENT,
            f"logit_bias must name each token once, and at most {MOST_LOGIT_BIASES}",
            {"field": "sampling.logit_bias"},
        )
    if not all(math.isfinite(one.bias) for one in sampling.logit_bias):
        raise CallError(
            Reason.INVALID_ARGUMENT, "logit_bias must be finite numbers", {"field": "sampling.logit_bias"}
        )


def _usage(log: TokenLog) -> inference_pb2.Usage:
    return inference_pb2.Usage(
        prompt_tokens=len(log.prompt_token_ids),
        completion_tokens=len(log.token_ids),
        first_token_seconds=log.first_token_seconds,
        decode_seconds=log.decode_seconds,
    )
