"""Feeds a node's event log from what the core, the workers and the requests do."""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING, Any

from macmesh_daemon.cluster import messages as msg
from macmesh_daemon.eventlog import Kind
from macmesh_daemon.node.codec import to_proto

if TYPE_CHECKING:
    from collections.abc import Mapping

    from macmesh_daemon.cluster.state import PersistentState
    from macmesh_daemon.cluster.view import ClusterView
    from macmesh_daemon.eventlog.writer import EventLog

_HASH_CHARS = 16


class Recorder:
    """Turns states, views and messages into records. Every method is for the event loop's thread."""

    def __init__(self, log: EventLog, state: PersistentState, *, boot_nonce: int) -> None:
        self._log = log
        self._state = state
        self._leads: msg.Ballot | None = None
        self._committed: msg.Version = msg.NO_VERSION
        log.record(
            Kind.STARTED,
            boot_nonce=boot_nonce,
            ballot=list(state.ballot),
            voted_for=state.voted_for,
            promised=_epoch(state.promised),
            active=_epoch(state.active),
            stored=list(state.document_version),
            committed=list(state.commit_version),
            local_seq=state.local_seq,
        )

    def ended(self) -> None:
        """The node has stopped in order; nothing may be recorded after it."""
        self._log.record(Kind.ENDED)

    def elected(self, view: ClusterView) -> None:
        """Note who leads. To be called after a step and before its effects are carried out."""
        ballot = (view.generation, view.term) if view.role == "coordinator" else None
        if ballot == self._leads:
            return
        if self._leads is not None:
            self._log.record(Kind.LED, ballot=list(self._leads))
        self._leads = ballot
        if ballot is not None:
            # What was durable when the last vote came; what it stores as coordinator comes after.
            self._log.record(Kind.LEADS, ballot=list(ballot), stored=list(self._state.document_version))

    def persisted(self, state: PersistentState) -> None:
        """Note what changed in the durable state; to be called once it is durable."""
        before, self._state = self._state, state
        if (state.ballot, state.voted_for) != (before.ballot, before.voted_for):
            self._log.record(Kind.BALLOT, ballot=list(state.ballot), voted_for=state.voted_for)
        if state.promised != before.promised:
            self._log.record(Kind.PROMISED, epoch=_epoch(state.promised), plan=plan_hash(state.promised_plan))
        if state.document_version != before.document_version:
            self._log.record(Kind.STORED, **_document(state.document))
        if state.active != before.active:
            self._log.record(Kind.ACTIVE, epoch=_epoch(state.active), plan=plan_hash(state.active_plan))
        if state.local_seq != before.local_seq:
            self._log.record(Kind.LOCAL, local_seq=state.local_seq)

    def settled(self, view: ClusterView) -> None:
        """Note a document that is committed by now; to be called after a step's effects."""
        document = view.document
        if document is None or document.version == self._committed:
            return
        self._committed = document.version
        self._log.record(
            Kind.COMMITTED,
            **_document(document),
            members=[member.node_id for member in document.members],
            denied=list(document.denied_node_ids),
        )

    def answered(self, message: msg.Response, peer: str) -> None:
        """Note the answer to a PREPARE or a COMMIT."""
        match message:
            case msg.PrepareResponse():
                kind, ok = Kind.PREPARE_ANSWERED, message.promised
            case msg.CommitResponse():
                kind, ok = Kind.COMMIT_ANSWERED, message.committed
            case _:
                return
        self._log.record(kind, epoch=_epoch(message.epoch), ok=ok, reason=message.reason, peer=peer)

    def announced(self, event: str, facts: Mapping[str, Any]) -> None:
        """Note a decision of the core."""
        self._log.record(Kind.ANNOUNCED, event=event, facts=dict(facts))

    def worker_started(self, epoch: msg.Epoch, stage: int) -> None:
        """A worker's process is about to be started."""
        self._log.record(Kind.WORKER_STARTED, epoch=_epoch(epoch), stage=stage)

    def worker_runs(
        self, epoch: msg.Epoch, stage: int, pid: int | None, process: str = "new", reason: str = ""
    ) -> None:
        """Its process lives, and has been given its stage.

        Args:
            epoch: Its epoch.
            stage: Its stage.
            pid: Its process.
            process: "new", "kept" (from the epoch before) or "replaced".
            reason: Why it was replaced.
        """
        self._log.record(
            Kind.WORKER_RUNS, epoch=_epoch(epoch), stage=stage, pid=pid, process=process, reason=reason
        )

    def worker_rests(self, epoch: msg.Epoch, pid: int | None) -> None:
        """Its epoch has ended, and its process lives on."""
        self._log.record(Kind.WORKER_RESTS, epoch=_epoch(epoch), pid=pid)

    def worker_dismissed(self, epoch: msg.Epoch, pid: int | None, reason: str) -> None:
        """The process that rested is gone."""
        self._log.record(Kind.WORKER_DISMISSED, epoch=_epoch(epoch), pid=pid, reason=reason)

    def worker_reported(self, report: msg.WorkerReport) -> None:
        """It became ready, or failed; its other states are no news here."""
        facts = {"epoch": _epoch(report.epoch), "stage": report.stage_index}
        if report.state is msg.WorkerState.READY:
            read_bytes = report.loaded_bytes - report.kept_bytes
            self._log.record(
                Kind.WORKER_READY, **facts, kept_bytes=report.kept_bytes, read_bytes=max(0, read_bytes)
            )
        elif report.state is msg.WorkerState.FAILED:
            self._log.record(Kind.WORKER_FAILED, **facts, error=report.error)

    def worker_stopped(self, epoch: msg.Epoch) -> None:
        """Its process is gone."""
        self._log.record(Kind.WORKER_STOPPED, epoch=_epoch(epoch))

    def run_started(self, run: str, epoch: msg.Epoch, *, first: int) -> None:
        """The head hands a run of a request, named by both, to its worker; `first` is its first token's index."""
        request, _, _ = run.partition("/")
        self._log.record(Kind.RUN_STARTED, request=request, run=run, epoch=_epoch(epoch), first=first)

    def run_ended(self, run: str, how: str) -> None:
        """The head has no more to do for it."""
        request, _, _ = run.partition("/")
        self._log.record(Kind.RUN_ENDED, request=request, run=run, how=how)

    def refused(self, reason: str) -> None:
        """The API node did not take a request."""
        self._log.record(Kind.REFUSED, reason=reason)

    def request(
        self,
        request_id: str,
        epoch: msg.Epoch | None,
        *,
        prompt_tokens: int,
        max_tokens: int,
        resumed_from: int = 0,
        attempt: int = 0,
    ) -> RequestTrail:
        """The API node takes a request; tell the trail what becomes of it.

        Args:
            request_id: Unique in the cluster, but for a request that is taken up.
            epoch: Of the plan that is ready; None where none is.
            prompt_tokens: Tokens of the prompt.
            max_tokens: Most tokens to generate; 0 for up to the context.
            resumed_from: Tokens that the client brought.
            attempt: Which of its tries to take the request up; 0 for a new request.
        """
        self._log.record(
            Kind.ACCEPTED,
            request=request_id,
            epoch=_epoch(epoch),
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            resumed_from=resumed_from,
            attempt=attempt,
        )
        return RequestTrail(self._log, request_id, tokens=resumed_from)


class RequestTrail:
    """What becomes of one request. Deliveries in a row become one record at the end, or every `EVERY` tokens."""

    EVERY = 64

    def __init__(self, log: EventLog, request_id: str, *, tokens: int = 0) -> None:
        self._log = log
        self._request_id = request_id
        self._first = 0
        self._count = 0
        self._tokens = tokens
        self._ended = False

    def delivered(self, index: int, count: int) -> None:
        """Tokens ``index`` up to but not including ``index + count`` are handed to the client."""
        if not count:
            return
        if self._count and index != self._first + self._count:
            self._tell()
        if not self._count:
            self._first = index
        self._count += count
        self._tokens += count
        if self._count >= self.EVERY:
            self._tell()

    def run_asked(self, number: int, epoch: msg.Epoch, *, head_node_id: str, first: int) -> None:
        """The head of a plan is asked to run it from the token with index `first` on."""
        self._tell()
        self._log.record(
            Kind.RUN_ASKED,
            request=self._request_id,
            run=number,
            epoch=_epoch(epoch),
            head=head_node_id,
            first=first,
        )

    def run_lost(self, number: int, epoch: msg.Epoch, reason: str) -> None:
        """A run was given up; nothing that it tells from now on is believed."""
        self._tell()
        self._log.record(
            Kind.RUN_LOST, request=self._request_id, run=number, epoch=_epoch(epoch), reason=reason
        )

    def finished(self, reason: str) -> None:
        """The client is told the last token, and why it is the last.

        Args:
            reason: Name of the `FinishReason`, as ``FINISH_REASON_STOP``.
        """
        word = reason.removeprefix("FINISH_REASON_").lower()
        if word == "cancelled":
            self._end(Kind.CANCELLED)
        else:
            self._end(Kind.FINISHED, reason=word)

    def failed(self, reason: str) -> None:
        """The client was told an error."""
        self._end(Kind.FAILED, reason=reason)

    def cancelled(self) -> None:
        """The client left, or asked for the end. Does nothing where the request has ended."""
        self._end(Kind.CANCELLED)

    def _end(self, kind: Kind, **facts: Any) -> None:
        if self._ended:
            return
        self._ended = True
        self._tell()
        self._log.record(kind, request=self._request_id, **facts, tokens=self._tokens)

    def _tell(self) -> None:
        if self._count:
            self._log.record(Kind.DELIVERED, request=self._request_id, index=self._first, count=self._count)
        self._count = 0


def plan_hash(plan: msg.Plan | None) -> str:
    """A short hash of a plan's whole content; "" for none. Equal on every node."""
    return "" if plan is None else _hash(plan)


@functools.lru_cache(maxsize=32)
def _hash(value: msg.Plan | msg.ClusterDocument) -> str:
    content = to_proto(value).SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()[:_HASH_CHARS]


def _document(document: msg.ClusterDocument | None) -> dict[str, Any]:
    if document is None:
        return {"version": [0, 0, 0], "document": "", "epoch": None, "plan": ""}
    plan = document.plan
    return {
        "version": list(document.version),
        "document": _hash(document),
        "epoch": _epoch(plan.epoch) if plan else None,
        "plan": plan_hash(plan),
    }


def _epoch(epoch: msg.Epoch | None) -> list[int] | None:
    return None if epoch is None else [epoch.generation, epoch.term, epoch.seq]
