"""Between the wire's messages and the head's plain data."""

import dataclasses

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2
from macmesh_daemon.engine.limits import SchedulerStats
from macmesh_daemon.engine.requests import Cancelled, Finish, Generated, Refused, Request, Waiting
from macmesh_daemon.engine.sampling_parameters import Sampling

TellableEffect = Generated | Cancelled | Refused | Waiting
"""What of a schedule's effects the daemon is told."""

FINISH_REASONS = {
    Finish.STOP: inference_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
    Finish.CANCELLED: inference_pb2.FINISH_REASON_CANCELLED,
}


def request_from_wire(message: peer_pb2.RunRequestRequest) -> Request:
    """The request as the scheduler knows it: what earlier runs generated is read as the end of the prompt."""
    replayed = len(message.generated_token_ids)
    return Request(
        request_id=message.request_id,
        prompt=(*message.prompt_token_ids, *message.generated_token_ids),
        max_tokens=message.max_tokens - replayed if message.max_tokens else 0,
        sampling=sampling_from_wire(message.sampling),
        stop_tokens=frozenset(message.stop_token_ids),
        reuse_prefix=message.reuse_prefix if message.HasField("reuse_prefix") else True,
        keep=message.keep if message.HasField("keep") else True,
        replayed_tokens=replayed,
    )


def stats_to_wire(stats: SchedulerStats) -> peer_pb2.SchedulerStats:
    """What the schedule counted."""
    return peer_pb2.SchedulerStats(**dataclasses.asdict(stats))


def sampling_from_wire(message: inference_pb2.SamplingParameters) -> Sampling:
    """How to sample."""
    return Sampling(
        temperature=message.temperature,
        top_p=message.top_p,
        top_k=message.top_k,
        min_p=message.min_p,
        seed=message.seed,
        repetition_penalty=message.repetition_penalty,
        repetition_context_tokens=message.repetition_context_tokens,
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        logit_bias=tuple((one.token_id, one.bias) for one in message.logit_bias),
    )


def sampling_to_wire(sampling: Sampling) -> inference_pb2.SamplingParameters:
    """How to sample, for the tail."""
    return inference_pb2.SamplingParameters(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        repetition_penalty=sampling.repetition_penalty,
        repetition_context_tokens=sampling.repetition_context_tokens,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=[
            inference_pb2.LogitBias(token_id=token, bias=bias) for token, bias in sampling.logit_bias
        ],
    )


def event_to_wire(effect: TellableEffect) -> lane_pb2.WorkerEvent:
    """What the daemon is told."""
    match effect:
        case Generated(request_id, index, token, logprob, finish):
            response = peer_pb2.RunRequestResponse(
                index=index, token_id=token, logprob=logprob, has_token=True
            )
            if finish is not None:
                response.finish_reason = FINISH_REASONS[finish]
        case Cancelled(request_id):
            response = peer_pb2.RunRequestResponse(finish_reason=FINISH_REASONS[Finish.CANCELLED])
        case Refused(request_id, reason, message):
            failed = lane_pb2.RequestFailed(request_id=request_id, reason=reason, message=message)
            return lane_pb2.WorkerEvent(failed=failed)
        case Waiting(request_id, position, estimate_seconds):
            waiting = lane_pb2.RequestWaiting(
                request_id=request_id, position=position, estimate_seconds=estimate_seconds
            )
            return lane_pb2.WorkerEvent(waiting=waiting)
    return lane_pb2.WorkerEvent(progress=lane_pb2.RequestProgress(request_id=request_id, response=response))
