"""This node's one worker: at most one epoch is served, and the next begins only when the last has ended."""

from typing import TYPE_CHECKING

from .effects import ReleaseWorker, StartWorker, StopWorker
from .keeping import why_not_kept
from .messages import CommitResponse, Deployment, Epoch, Plan, WorkerReport, WorkerState

if TYPE_CHECKING:
    from .context import Context


class WorkerSlot:
    """Makes epochs active: end the old one in the worker, wait until it has ended, persist, start the new one.

    A local epoch (see `Epoch`) takes the same way, but is never promised nor active: those are the cluster's.

    The process may outlive its epoch, with its layers, where the next plan can use them (`keeping`), and does so by
    itself where it has only lost another stage. A plan without this node lets it go.

    Invariant: a `StartWorker` is emitted only while no worker process of this daemon serves an epoch.
    """

    def __init__(self, context: "Context") -> None:
        self._context = context
        self._running: Epoch | None = None
        self._deployment: Deployment | None = None
        self._stopping = False
        self._may_rest = False
        self._next_plan: Plan | None = None
        self._waiting: list[int] = []
        #: The last report of the worker that was started last; None where this daemon started none.
        self.report: WorkerReport | None = None

    @property
    def running(self) -> Epoch | None:
        """Epoch that a worker process may serve."""
        return self._running

    @property
    def is_changing(self) -> bool:
        """Whether an epoch is being ended, or another is to start when it has."""
        return self._stopping or self._next_plan is not None

    def is_activating(self, epoch: Epoch) -> bool:
        """Whether ``epoch`` becomes active as soon as the old one has ended."""
        return self._next_plan is not None and self._next_plan.epoch == epoch

    def activate(self, plan: Plan, request_id: int | None) -> None:
        """Make a plan's epoch active. A COMMIT's ``request_id`` is answered when it is or cannot be."""
        if self._next_plan is not None and self._next_plan.epoch != plan.epoch:
            self._answer_waiting(self._next_plan.epoch, "superseded by a newer epoch")
        self._next_plan = plan
        if request_id is not None:
            self._waiting.append(request_id)
        if self._running is None:
            self._finish()
        elif not self._stopping:
            mine = plan.stage_of(self._context.node_id)
            self._stop(self._running, after=mine[0] if mine is not None else None)

    def end_local(self, *, keep: bool = False) -> None:
        """End the plan that this node made for itself only, wherever it is.

        Args:
            keep: The cluster's next plan can probably use what the worker holds.
        """
        planned = self._next_plan.epoch if self._next_plan is not None else None
        if planned is not None and planned.is_local:
            self._next_plan = None
        if self._running is not None and self._running.is_local and not self._stopping:
            self._stop(self._running, after=self._deployment if keep else None)

    def on_report(self, report: WorkerReport) -> None:
        """Keep what the worker says; words of a worker that is being replaced no longer count."""
        if report.epoch is not None and report.epoch == self._running and not self._stopping:
            self.report = report

    def on_stopped(self, epoch: Epoch) -> None:
        """Nothing serves ``epoch`` any more."""
        if epoch != self._running:
            return
        self._may_rest |= self.report is not None and self.report.resting
        self._running = None
        self._stopping = False
        if self.report is not None and self.report.state is not WorkerState.FAILED:
            self.report = WorkerReport(epoch, self.report.stage_index, WorkerState.STOPPED)
        if self._next_plan is not None:
            self._finish()

    def _stop(self, epoch: Epoch, *, after: Deployment | None) -> None:
        before = self._deployment
        keep = before is not None and after is not None and not why_not_kept(before, after)
        self._stopping = True
        self._may_rest = keep
        self._context.emit(StopWorker(epoch, self._context.settings.worker_stop_seconds, keep))

    def _finish(self) -> None:
        plan, self._next_plan = self._next_plan, None
        state = self._context.state
        if plan is None or plan.epoch is None:
            return
        mine = plan.stage_of(self._context.node_id)
        if not plan.epoch.is_local:
            if mine is not None and plan.epoch != state.promised:
                self._answer_waiting(plan.epoch, f"epoch {state.promised} is promised by now")
                return
            if state.promised is None or state.promised < plan.epoch:
                self._context.persist(promised=plan.epoch, promised_plan=plan)
            self._context.persist(active=plan.epoch, active_plan=plan)
            self._context.announce("epoch active", epoch=str(plan.epoch), stages=len(plan.node_ids))
        self.report = None
        if mine is not None:
            deployment, stage = mine
            self._running, self._deployment, self._may_rest = plan.epoch, deployment, False
            self.report = WorkerReport(plan.epoch, stage.index, WorkerState.STARTING)
            self._context.emit(StartWorker(plan.epoch, deployment, stage.index))
        elif self._may_rest:
            self._may_rest = False
            self._context.emit(ReleaseWorker())
        self._answer_waiting(plan.epoch, "")

    def _answer_waiting(self, epoch: Epoch | None, reason: str) -> None:
        generation, term = self._context.state.ballot
        for request_id in self._waiting:
            self._context.reply(request_id, CommitResponse(epoch, not reason, reason, term, generation))
        self._waiting = []
