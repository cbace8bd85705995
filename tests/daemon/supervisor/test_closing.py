"""What passes of what a worker tells, epoch by epoch."""

from typing import Any

import pytest

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.supervisor.closing import OpenBusiness

OLD, NEW = (types_pb2.Epoch(generation=1, term=2, seq=seq) for seq in (3, 4))


def business(epoch: types_pb2.Epoch) -> OpenBusiness:
    made = OpenBusiness()
    made.note_start(lane_pb2.StartStage(epoch=epoch, stage_index=1))
    return made


def report(
    epoch: types_pb2.Epoch, state: peer_pb2.WorkerState.ValueType, **facts: Any
) -> lane_pb2.WorkerEvent:
    return lane_pb2.WorkerEvent(report=peer_pb2.WorkerReport(epoch=epoch, state=state, **facts))


@pytest.mark.parametrize("state", [peer_pb2.WORKER_STATE_READY, peer_pb2.WORKER_STATE_FAILED])
def test_words_of_another_epoch_are_dropped(state: peer_pb2.WorkerState.ValueType) -> None:
    made = business(NEW)
    assert not made.passes(report(OLD, state, resting=True, peer_lost=True))
    assert not made.rests
    (last,) = made.close("it was killed")
    assert (last.report.epoch, last.report.error, last.report.peer_lost) == (NEW, "it was killed", False)


def test_an_epoch_that_ends_at_rest_closes_its_requests_and_says_so() -> None:
    made = business(NEW)
    for name in ("a", "b"):
        request = peer_pb2.RunRequestRequest(request_id=name)
        made.note_command(lane_pb2.WorkerCommand(submit=lane_pb2.SubmitRequest(request=request)))
    done = peer_pb2.RunRequestResponse(finish_reason=inference_pb2.FINISH_REASON_STOP)
    assert made.passes(lane_pb2.WorkerEvent(progress=lane_pb2.RequestProgress(request_id="a", response=done)))
    assert not made.passes(report(NEW, peer_pb2.WORKER_STATE_FAILED, resting=True, peer_lost=True))
    assert made.rests
    failed, last = made.close("")
    assert failed.failed.request_id == "b"
    assert (last.report.resting, last.report.peer_lost, last.report.stage_index) == (True, True, 1)


def test_a_process_that_dies_before_it_rests_does_not_rest() -> None:
    made = business(NEW)
    made.note_stop()
    (last,) = made.close("it was killed")
    assert (last.report.state, last.report.resting) == (peer_pb2.WORKER_STATE_STOPPED, False)
