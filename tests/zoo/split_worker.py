"""One stage as a long-lived process: takes one model after another; what crosses the cuts crosses a real group.

    python -m zoo.split_worker RANK

It tells where it listens, learns where the others do, and joins their group once. Then each line of stdin is a job,
answered by a line: at the tail what was generated, elsewhere nothing, or what went wrong.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from macmesh_daemon.engine.lean_imports import import_without_tokenizers

import_without_tokenizers()

import mlx.core as mx  # noqa: E402  after the placeholders

from macmesh_daemon.engine.caches import StageCaches  # noqa: E402  same
from macmesh_daemon.engine.handover import ArrayFacts, dtype_name  # noqa: E402  same
from macmesh_daemon.engine.stage import StageModel, load_stage  # noqa: E402  same
from macmesh_rdma.group import Group, open_group  # noqa: E402  same
from macmesh_rdma.group_lane import GroupLane  # noqa: E402  same
from macmesh_rdma.joining.endpoint import Endpoint  # noqa: E402  same
from macmesh_rdma.joining.listener import Listener  # noqa: E402  same
from macmesh_rdma.options import LinkOptions  # noqa: E402  same
from zoo.splits import Job, choice, require_foretold  # noqa: E402  same

RANKS = 3
TIMEOUT_SECONDS = 60.0
OPTIONS = LinkOptions(num_buffers=2, frame_bytes=4096, buffer_sizes=3, max_outstanding=32)
_FACTS_BYTES = 512
_TOKEN_BYTES = 4


class Worker:
    """The process's part in every job."""

    def __init__(self, group: Group) -> None:
        self._rank = group.rank
        self._native = group.native
        self._lane = GroupLane(group)
        self._loaded: tuple[tuple[str, int, int], StageModel] | None = None

    def run(self, job: Job) -> dict[str, Any]:
        """One job; what was generated, at the tail."""
        stage = self._stage(job)
        caches = stage.make_caches(len(job.prompt) + job.new_tokens)
        for chunk in job.chunks:
            self._step(stage, caches, list(chunk), len(chunk), wanted=False)
        tokens, digests, last = [], [], job.prompt[-1]
        for _ in range(job.new_tokens):
            logits = self._step(stage, caches, [last], 1, wanted=True)
            if logits is not None:
                last, seen = choice(logits)
                tokens.append(last)
                digests.append(seen)
                if not stage.is_head:
                    self._native.send_bytes(0, last.to_bytes(_TOKEN_BYTES, "little"))
            elif stage.is_head:
                came = bytearray(_TOKEN_BYTES)
                self._native.receive_bytes(job.stages - 1, came)
                last = int.from_bytes(came, "little")
        self._lane.flush(TIMEOUT_SECONDS)
        return {"tokens": tokens, "digests": digests} if stage.is_tail else {}

    def _stage(self, job: Job) -> StageModel:
        """Kept from one job to the next where it is the same."""
        first, end = job.bounds[self._rank], job.bounds[self._rank + 1]
        key = (job.folder, first, end)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            self._loaded = key, load_stage(Path(job.folder), first, end, job.bounds[-1])
        return self._loaded[1]

    def _step(
        self, stage: StageModel, caches: StageCaches, tokens: list[int], count: int, *, wanted: bool
    ) -> mx.array | None:
        """One step; the logits at the tail, where they are wanted."""
        payload = [mx.array([tokens], mx.int32)] if stage.is_head else self._receive(stage, count)
        require_foretold(stage, payload, count)
        outputs = stage.step(payload, caches)
        if stage.is_tail:
            stage.evaluate(outputs if wanted else [], caches)
            return outputs[0] if wanted else None
        stage.evaluate(outputs, caches)
        self._send(outputs)
        return None

    def _send(self, arrays: list[mx.array]) -> None:
        # The receiver mostly knows; where it does not, it needs this, and the sender does not know which it is.
        facts = json.dumps([(array.shape, dtype_name(array.dtype)) for array in arrays]).encode()
        self._lane.flush(TIMEOUT_SECONDS)
        self._native.send_bytes(self._rank + 1, facts.ljust(_FACTS_BYTES))
        for array in arrays:
            self._lane.send(array, TIMEOUT_SECONDS)

    def _receive(self, stage: StageModel, tokens: int) -> list[mx.array]:
        told = bytearray(_FACTS_BYTES)
        self._native.receive_bytes(self._rank - 1, told)
        facts = stage.payload_facts(1, tokens)
        if facts is None:
            facts = [ArrayFacts(tuple(shape), dtype) for shape, dtype in json.loads(told)]
        return [self._lane.receive(fact.shape, getattr(mx, fact.dtype), TIMEOUT_SECONDS) for fact in facts]


def main() -> None:
    """Joins, and works until stdin ends."""
    rank = int(sys.argv[1])
    mx.set_default_device(mx.cpu)
    mx.disable_compile()
    with Listener("127.0.0.1", host_id="here") as listener:
        _say(listener.endpoint.encode())
        with open_group(
            listener,
            rank,
            [Endpoint.decode(text) for text in json.loads(sys.stdin.readline())],
            key=b"the key of the splits",
            epoch=(1, 1, 1),
            name="splits",
            topology="pipeline",
            options=OPTIONS,
            provider="shm",
            timeout_seconds=TIMEOUT_SECONDS,
            connect_seconds=TIMEOUT_SECONDS,
            measure=False,
        ) as group:
            worker = Worker(group)
            with contextlib.suppress(BrokenPipeError):
                for line in sys.stdin:
                    _say(_answer(worker, Job.from_json(json.loads(line))))


def _answer(worker: Worker, job: Job) -> dict[str, Any]:
    try:
        return worker.run(job)
    except Exception as error:  # noqa: BLE001  told to the test
        return {"error": f"{type(error).__name__}: {error}"}


def _say(words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
