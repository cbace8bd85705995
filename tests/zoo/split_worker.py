"""One stage as a long-lived process: takes one model after another; what crosses the cuts crosses a real group.

    python -m zoo.split_worker RANK

It tells where it listens, learns where the others do, and joins their group once. Then each line of stdin is a job,
answered by a line: at the tail what was generated, elsewhere nothing, or what went wrong.
"""

import contextlib
import copy
import json
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from macmesh_daemon.engine.lean_imports import import_without_tokenizers

import_without_tokenizers()

import mlx.core as mx  # noqa: E402  after the placeholders

from macmesh_daemon.engine.caches import Caches, StageCaches  # noqa: E402  same
from macmesh_daemon.engine.handover import ArrayFacts, dtype_name  # noqa: E402  same
from macmesh_daemon.engine.stage import StageModel, load_stage  # noqa: E402  same
from macmesh_rdma.group import Group, open_group  # noqa: E402  same
from macmesh_rdma.group_lane import GroupLane  # noqa: E402  same
from macmesh_rdma.joining.endpoint import Endpoint  # noqa: E402  same
from macmesh_rdma.joining.listener import Listener  # noqa: E402  same
from macmesh_rdma.options import LinkOptions  # noqa: E402  same
from zoo.batchtable import Runner, course  # noqa: E402  same
from zoo.splits import (  # noqa: E402  same
    CHUNK_TOKENS,
    NEW_TOKENS,
    PROMPT,
    Generated,
    Job,
    choice,
    require_foretold,
)

RANKS = 3
TIMEOUT_SECONDS = 120.0
OPTIONS = LinkOptions(num_buffers=2, frame_bytes=4096, buffer_sizes=3, max_outstanding=32)
_FACTS_BYTES = 512


class OnStage(Runner):
    """Runs requests as one stage of several: the head is given the tokens, the tail chooses the next ones."""

    def __init__(self, stage: StageModel, group: Group, lane: GroupLane, stages: int) -> None:
        self._stage = stage
        self._rank = group.rank
        self._native = group.native
        self._lane = lane
        self._tail_rank = stages - 1
        self.digests: list[str] = []
        """Of the log probabilities of the first row, at the tail, for each step whose tokens were wanted."""

    def caches(self, reserve_tokens: int) -> StageCaches:
        """See `Runner.caches`."""
        return self._stage.make_caches(reserve_tokens)

    def step(self, tokens: Sequence[Sequence[int]], caches: Caches, *, wanted: bool = True) -> list[int]:
        """See `Runner.step`; between head and tail nobody knows the tokens, and zeros stand for them."""
        stage, rows, count = self._stage, len(tokens), len(tokens[0])
        given = [mx.array([list(row) for row in tokens], mx.int32)]
        payload = given if stage.is_head else self._receive(rows, count)
        require_foretold(stage, payload, rows, count)
        outputs = stage.step(payload, caches)
        if not stage.is_tail:
            stage.evaluate(outputs, caches)
            self._send(outputs)
            return self._told(rows) if stage.is_head and wanted else [0] * rows
        stage.evaluate(outputs if wanted else [], caches)
        return self._chosen(outputs[0], rows) if wanted else []

    def _chosen(self, logits: mx.array, rows: int) -> list[int]:
        pairs = [choice(logits[row : row + 1]) for row in range(rows)]
        self.digests.append(pairs[0][1])
        chosen = [token for token, _ in pairs]
        if not self._stage.is_head:
            self._native.send_bytes(0, struct.pack(f"<{rows}i", *chosen))
        return chosen

    def _told(self, rows: int) -> list[int]:
        came = bytearray(struct.calcsize(f"<{rows}i"))
        self._native.receive_bytes(self._tail_rank, came)
        return list(struct.unpack(f"<{rows}i", came))

    def _send(self, arrays: list[mx.array]) -> None:
        # The receiver mostly knows; where it does not, it needs this, and the sender does not know which it is.
        facts = json.dumps([(array.shape, dtype_name(array.dtype)) for array in arrays]).encode()
        self._lane.flush(TIMEOUT_SECONDS)
        self._native.send_bytes(self._rank + 1, facts.ljust(_FACTS_BYTES))
        for array in arrays:
            self._lane.send(array, TIMEOUT_SECONDS)

    def _receive(self, rows: int, tokens: int) -> list[mx.array]:
        told = bytearray(_FACTS_BYTES)
        self._native.receive_bytes(self._rank - 1, told)
        facts = self._stage.payload_facts(rows, tokens)
        if facts is None:
            facts = [ArrayFacts(tuple(shape), dtype) for shape, dtype in json.loads(told)]
        return [self._lane.receive(fact.shape, getattr(mx, fact.dtype), TIMEOUT_SECONDS) for fact in facts]


class Worker:
    """The process's part in every job."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._lane = GroupLane(group)
        self._loaded: tuple[tuple[str, int, int], StageModel] | None = None

    def run(self, job: Job) -> dict[str, Any]:
        """One job: a request alone, and where that is wanted batches; what was generated, as the tail knows it."""
        stage = self._stage(job)
        runner = OnStage(stage, self._group, self._lane, job.stages)
        caches = runner.caches(len(PROMPT) + NEW_TOKENS)
        runner.prefill(PROMPT, caches, CHUNK_TOKENS)
        prefilled = copy.deepcopy(caches)
        tokens = runner.decode(caches, PROMPT[-1:], NEW_TOKENS)[0]
        alone = Generated(tokens, list(runner.digests))
        together = None
        if job.course:
            together = asdict(course(runner, job.name, batches=job.course == "batches", prefilled=prefilled))
        self._lane.flush(TIMEOUT_SECONDS)
        return {"alone": asdict(alone), "together": together} if stage.is_tail else {}

    def _stage(self, job: Job) -> StageModel:
        """Kept from one job to the next where it is the same."""
        rank = self._group.rank
        first, end = job.bounds[rank], job.bounds[rank + 1]
        key = (job.folder, first, end)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            self._loaded = key, load_stage(Path(job.folder), first, end, job.bounds[-1])
        return self._loaded[1]


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
