"""A rank of a tensor-parallel plan: every rank runs every step, and the sums join them. Imports mlx.

All ranks must ask for the same collectives in the same order, and none of them has a name that could be checked. Their
order is that in which MLX walks through a graph, so a decode step is queued in two pieces: the layers, whose graph is
the same on every rank, and then the choice, which only the head makes. Its ids reach the others by a sum to which they
add nothing. So all ranks go on with the same ids, whatever the last bits of their logits are, and the next step can be
queued before the host of any rank has seen them.
"""

import contextlib
from collections.abc import Iterator

import mlx.core as mx

from macmesh_daemon.engine.caches import Caches
from macmesh_daemon.engine.steps import Operation, Step
from macmesh_daemon.worker.beside import Waiting
from macmesh_daemon.worker.collectives import Collectives
from macmesh_daemon.worker.local_runner import LocalRunner
from macmesh_daemon.worker.runner import House, Stage


class TensorRunner(LocalRunner):
    """One rank; as `LocalRunner`, it is one decode step ahead on the device.

    Args:
        stage: this rank's part of every layer; it has joined the group.
        house: its caches.
        collectives: to the other ranks.
        waiting: entered while it may wait for another rank.
    """

    def __init__(
        self,
        stage: Stage,
        house: House,
        collectives: Collectives,
        *,
        waiting: Waiting = contextlib.nullcontext,
    ) -> None:
        super().__init__(stage, house)
        self._collectives = collectives
        self._waiting = waiting
        self._is_head = collectives.group.rank() == 0

    def _prefill(self, step: Step) -> None:
        with self._with_others(f"step {step.number}, a part of a prompt"):
            super()._prefill(step)

    def _queue(self, step: Step, logits: mx.array, caches: Caches) -> tuple[mx.array, mx.array]:
        times = self.times
        with self._with_others(f"queueing step {step.number}"):
            mx.async_eval(logits, caches.counters())  # type: ignore[no-untyped-call]  # the stub gives no types
            times.lap(times.encode)
            if self._is_head:
                own, logprobs = self._choose(step, logits)
            else:
                own, logprobs = mx.zeros(len(step.rows), mx.uint32), mx.zeros(len(step.rows))
            ids = mx.distributed.all_sum(own.astype(mx.uint32), group=self._collectives.group)
            # A sum that fails leaves anything behind, and the step that is queued next looks rows up by it before
            # the host learns of the failure.
            ids = mx.minimum(ids, mx.array(logits.shape[-1] - 1, mx.uint32))
            times.lap(times.sample)
            mx.async_eval(ids, logprobs)  # type: ignore[no-untyped-call]  # same
            times.lap(times.encode)
        return ids, logprobs

    def _wait_for(self, chosen: tuple[mx.array, mx.array]) -> None:
        with self._with_others("waiting for a step"):
            super()._wait_for(chosen)

    def _apply(self, operation: Operation) -> None:
        # Where a batch is composed anew, steps that are still on the device end first.
        with self._collectives.guarded("changing caches"):
            super()._apply(operation)

    @contextlib.contextmanager
    def _with_others(self, what: str) -> Iterator[None]:
        with self._waiting(), self._collectives.guarded(what):
            yield
