"""Checks what a client asks for, and tokenises it. Pure but for the tokenizer."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh.reasons import Reason
from macmesh.v1 import inference_pb2, peer_pb2
from macmesh_daemon.models.tokenizer_errors import TokenizerError
from macmesh_daemon.node.assembly import TextAssembler
from macmesh_daemon.node.call_errors import CallError
from macmesh_daemon.requests import Ask

if TYPE_CHECKING:
    from macmesh_daemon.cluster.messages import ModelRef
    from macmesh_daemon.models.tokenizer import ModelTokenizer

#: What the worker takes at most (`macmesh_daemon.engine.sampling_parameters`), refused here before it travels.
MOST_PENALTY_CONTEXT_TOKENS = 4096
MOST_LOGIT_BIASES = 1024
#: A seed travels as an unsigned 64-bit number; 32 bits are plenty and easy to type again.
_SEED_BITS = 32
_LONGEST_ID = 64


@dataclass(slots=True)
class Intake:
    """A request that was taken.

    Attributes:
        ask: For its machine.
        template: What every run of it has in common.
        assembler: Has read the tokens that the client brought.
        brought: Those tokens.
        unsent_text: Text of them that the client lacks.
        is_over: They hold a stop text.
        next_index: Of the first response.
        attempt: Which try of the client to take it up; 0 for a new request.
    """

    ask: Ask
    template: peer_pb2.RunRequestRequest
    assembler: TextAssembler
    brought: tuple[int, ...] = ()
    unsent_text: str = ""
    is_over: bool = False
    next_index: int = 0
    attempt: int = 0


def take_in(
    request: inference_pb2.GenerateRequest,
    model: ModelRef,
    tokenizer: ModelTokenizer,
    context_tokens: int | None,
) -> Intake:
    """Check a request and make it ready to be run. Blocks as long as the tokenizer does.

    Args:
        request: What the client sent.
        model: Whose tokens they are.
        tokenizer: Of the model.
        context_tokens: What the plan guarantees; None where there is none yet.

    Raises:
        CallError: No state of the cluster would take it, or this one does not.
    """
    prompt = _prompt_ids(request, tokenizer)
    sampling = inference_pb2.SamplingParameters()
    sampling.CopyFrom(request.sampling)
    _check_sampling(sampling)
    if "" in request.stop:
        raise CallError(
            Reason.INVALID_ARGUMENT, "a stop text is empty: it would stop before anything", {"field": "stop"}
        )
    if context_tokens is not None:
        _check_room(len(prompt), request, context_tokens)
    stop_ids = frozenset() if request.ignore_eos else frozenset(tokenizer.eos_token_ids)
    assembler = TextAssembler(tokenizer, stops=tuple(request.stop), end_ids=stop_ids)
    is_resumed = request.HasField("resume")
    if is_resumed:
        _check_resume(request, sampling, model, tokenizer)
    elif not sampling.HasField("seed"):
        sampling.seed = secrets.randbits(_SEED_BITS)
    ask = Ask(
        request_id=request.resume.request_id if is_resumed else secrets.token_hex(12),
        prompt_token_ids=tuple(prompt),
        model_digest=model.digest,
        max_tokens=request.max_tokens,
        stop_token_ids=stop_ids,
    )
    template = peer_pb2.RunRequestRequest(
        prompt_token_ids=prompt,
        sampling=sampling,
        stop_token_ids=sorted(stop_ids),
        reuse_prefix=request.reuse_prefix if request.HasField("reuse_prefix") else None,
        keep=request.keep if request.HasField("keep") else None,
    )
    intake = Intake(ask, template, assembler)
    if is_resumed:
        _take_up(intake, request.resume)
    return intake


def _check_room(prompt: int, request: inference_pb2.GenerateRequest, context_tokens: int) -> None:
    room = context_tokens - prompt
    max_tokens = request.max_tokens or room
    if max_tokens > room or room <= 0:
        raise CallError(
            Reason.CONTEXT_LENGTH_EXCEEDED,
            f"the prompt has {prompt} tokens and up to {max(max_tokens, 1)} are to be generated, but the "
            f"model is served with a context of {context_tokens}: shorten the prompt or set max_tokens to at "
            f"most {max(room, 0)}",
            {"prompt_tokens": prompt, "max_tokens": max_tokens, "context_tokens": context_tokens},
        )


def _check_resume(
    request: inference_pb2.GenerateRequest,
    sampling: inference_pb2.SamplingParameters,
    model: ModelRef,
    tokenizer: ModelTokenizer,
) -> None:
    resume = request.resume
    wrong = ""
    if not resume.request_id or len(resume.request_id) > _LONGEST_ID or not resume.request_id.isalnum():
        wrong = "request_id is not one that was told"
    elif not resume.attempt:
        wrong = "attempt counts from 1"
    elif not sampling.HasField("seed"):
        wrong = "the seed that was told is missing"
    elif 0 < request.max_tokens < len(resume.token_ids):
        wrong = f"{len(resume.token_ids)} tokens were brought, of at most {request.max_tokens}"
    elif any(token >= tokenizer.vocab_size for token in resume.token_ids):
        wrong = f"a token is outside the vocabulary of {tokenizer.vocab_size}"
    if wrong:
        raise CallError(
            Reason.INVALID_ARGUMENT, f"the request cannot be taken up: {wrong}", {"field": "resume"}
        )
    if resume.model_digest != model.digest:
        raise CallError(
            Reason.NO_MODEL_LOADED,
            f"the request cannot be taken up: it was begun with another model than {model.model_id!r}, which "
            "the cluster serves now",
            {"model": model.model_id},
        )


def _take_up(intake: Intake, resume: inference_pb2.Resume) -> None:
    """Bring the text to where the client lost it.

    Raises:
        CallError: The client says that it has other text than these tokens give.
    """
    intake.brought = tuple(resume.token_ids)
    intake.next_index, intake.attempt = resume.next_index, resume.attempt
    text, intake.is_over = intake.assembler.replay(intake.brought)
    encoded = text.encode()
    unsent = encoded[resume.text_bytes :]
    wrong = ""
    if resume.text_bytes > len(encoded):
        wrong = f"its tokens give {len(encoded)} bytes of text, not {resume.text_bytes}"
    elif unsent[:1] and unsent[0] & 0xC0 == 0x80:  # noqa: PLR2004  how UTF-8 goes on within a character
        wrong = f"{resume.text_bytes} bytes of its text end within a character"
    if wrong:
        raise CallError(
            Reason.INVALID_ARGUMENT, f"the request cannot be taken up: {wrong}", {"field": "resume"}
        )
    intake.unsent_text = unsent.decode()


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
