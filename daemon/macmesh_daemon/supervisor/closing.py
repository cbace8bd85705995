"""What is still open at a worker, so that the end of its epoch can be told completely."""

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.supervisor.interface import FINAL_STATES

LOST_REASON = "WORKER_FAILED"


class OpenBusiness:
    """Follows commands and events of one epoch of a worker and knows what its end leaves open. Pure."""

    def __init__(self) -> None:
        self._epoch = types_pb2.Epoch()
        self._stage_index = 0
        self._sync = ("", "")
        self._requests: dict[str, None] = {}
        self._stopping = False
        self._told: peer_pb2.WorkerReport | None = None

    @property
    def stopping(self) -> bool:
        """Whether an orderly end was asked for."""
        return self._stopping

    @property
    def epoch(self) -> types_pb2.Epoch:
        """The worker's epoch."""
        return self._epoch

    @property
    def rests(self) -> bool:
        """Whether the worker has said that the epoch has ended and its process lives on."""
        return self._told is not None and self._told.resting

    @property
    def stage_index(self) -> int:
        """The worker's stage."""
        return self._stage_index

    def note_start(self, start: lane_pb2.StartStage) -> None:
        """The worker was given its stage."""
        self._epoch.CopyFrom(start.epoch)
        self._stage_index = start.stage_index
        self._sync = (start.sync_mode, start.sync_reason)

    def note_command(self, command: lane_pb2.WorkerCommand) -> None:
        """A command was sent."""
        kind = command.WhichOneof("command")
        if kind == "submit":
            self._requests[command.submit.request.request_id] = None
        elif kind == "stop":
            self._stopping = True

    def note_stop(self) -> None:
        """An orderly end was asked for, by whatever means."""
        self._stopping = True

    def passes(self, event: lane_pb2.WorkerEvent) -> bool:
        """Takes note of an event of the worker; False where it is not to be told as it is.

        A final report is held back: `close` tells it after the process has gone, or where it `rests`. What is of
        another epoch is dropped.
        """
        kind = event.WhichOneof("event")
        if kind == "report" and event.report.epoch != self._epoch:
            return False
        if kind == "failed":
            self._requests.pop(event.failed.request_id, None)
        elif (
            kind == "progress"
            and event.progress.response.finish_reason != inference_pb2.FINISH_REASON_UNSPECIFIED
        ):
            self._requests.pop(event.progress.request_id, None)
        elif kind == "report" and event.report.state in FINAL_STATES:
            self._told = event.report
            return False
        return True

    def close(self, how: str, *, hung: bool = False) -> list[lane_pb2.WorkerEvent]:
        """The events that end the worker's story.

        Args:
            how: how the process ended, for people; used where the worker gave no reason itself. Empty where it lives on
                or was never there.
            hung: it was killed because its inference loop did not turn any more.
        """
        sync_mode, sync_reason = self._sync
        report = peer_pb2.WorkerReport(
            epoch=self._epoch,
            stage_index=self._stage_index,
            sync_mode=sync_mode,
            sync_reason=sync_reason,
            hung=hung,
        )
        if self._stopping:
            report.state = peer_pb2.WORKER_STATE_STOPPED
        else:
            report.state = peer_pb2.WORKER_STATE_FAILED
            report.error = (self._told.error if self._told else "") or how
            report.peer_lost = self._told is not None and self._told.peer_lost
            report.transport_failure = self._told.transport_failure if self._told else ""
        report.resting = self.rests and not how
        reason = report.error or "the worker was stopped"
        failures = [
            lane_pb2.WorkerEvent(
                failed=lane_pb2.RequestFailed(request_id=request_id, reason=LOST_REASON, message=reason)
            )
            for request_id in self._requests
        ]
        self._requests.clear()
        return [*failures, lane_pb2.WorkerEvent(report=report)]
