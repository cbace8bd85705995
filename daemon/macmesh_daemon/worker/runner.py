"""Runs the steps of one stage: takes what comes from the stage before, computes, hands it on."""

from collections.abc import Callable
from typing import cast

import mlx.core as mx
from mlx_lm.utils import maybe_set_recommended_wired_limit

from macmesh.v1 import lane_pb2, types_pb2
from macmesh_daemon.engine.caches import StageCaches
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.sampling import choose
from macmesh_daemon.engine.stage import StageModel
from macmesh_daemon.worker.convert import sampling_from_wire
from macmesh_placement import Reserves
from macmesh_rdma.lane import TensorLane

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
CLEAR_CACHE_STEPS = 256
"""mlx-lm gives MLX's free buffers back as often."""


class StageRunner:
    """One stage at work. To be used from the thread that loaded the model.

    Args:
        stage: the model's part.
        lane: to the stages beside it; None where there is one stage only.
        slots: requests that may hold caches at once.
        send_header: hands a header to the next stage, before its activations go down the lane.
        step_deadline_seconds: longest wait for another stage.
    """

    def __init__(
        self,
        stage: StageModel,
        lane: TensorLane | None,
        *,
        slots: int,
        send_header: Callable[[lane_pb2.StepHeader], None],
        step_deadline_seconds: float,
    ) -> None:
        self._stage = stage
        self._lane = lane
        self._slots = slots
        self._send_header = send_header
        self._deadline_seconds = step_deadline_seconds
        self._caches: dict[int, tuple[str, StageCaches]] = {}
        self._last_step = 0

    def run(self, header: lane_pb2.StepHeader, tokens: tuple[int, ...] | None = None) -> lane_pb2.StepResult:
        """Runs one step.

        Args:
            header: the step.
            tokens: at the head the token ids; elsewhere None, the input comes down the lane.

        Returns:
            At the tail what was sampled; elsewhere a result without a token.

        Raises:
            RemoteScheduleError: the step does not fit the state of this stage.
            macmesh_rdma.errors.TransportError: a neighbour is lost.
        """
        caches = self._caches_for(header)
        inputs = self._receive(header) if tokens is None else mx.array([tokens], mx.int32)
        outputs = self._stage.step([inputs], caches)
        if len(outputs) > 1:
            raise RemoteScheduleError(f"{self._stage.architecture} hands on more than this lane carries")
        (output,) = outputs
        del inputs, outputs
        result = lane_pb2.StepResult(step=header.step, request_id=header.request_id)
        if not self._stage.is_tail:
            self._stage.evaluate([output], caches)
            self._hand_on(header, output)
        elif header.sample:
            self._sample(header, output, caches, result)
        else:
            # The logits of a prompt's chunk are never computed.
            self._stage.evaluate([], caches)
        if not header.sample or header.step % CLEAR_CACHE_STEPS == 0:
            mx.clear_cache()
        return result

    def release(self, slot: int, request_id: str) -> None:
        """Frees a slot's caches. A request that never ran a step has none."""
        held = self._caches.get(slot)
        if held is not None and held[0] == request_id:
            del self._caches[slot]
            mx.clear_cache()

    def memory_bytes(self) -> tuple[int, int]:
        """Bytes that MLX holds, and the most that it held."""
        return mx.get_active_memory(), mx.get_peak_memory()

    def _caches_for(self, header: lane_pb2.StepHeader) -> StageCaches:
        if header.step != self._last_step + 1:
            raise RemoteScheduleError(f"step {header.step} came after step {self._last_step}")
        self._last_step = header.step
        held = self._caches.get(header.slot)
        if header.first:
            if held is not None or header.slot >= self._slots or header.reserve_tokens == 0:
                raise RemoteScheduleError(
                    f"step {header.step} starts {header.request_id} in slot {header.slot}, which is not free"
                )
            held = (header.request_id, self._stage.make_caches(header.reserve_tokens))
            self._caches[header.slot] = held
        if held is None or held[0] != header.request_id or held[1].length != header.offset:
            state = "empty" if held is None else f"at token {held[1].length} of {held[0]}"
            raise RemoteScheduleError(
                f"step {header.step} goes on at token {header.offset} of {header.request_id} in slot "
                f"{header.slot}, which is {state}"
            )
        return held[1]

    def _receive(self, header: lane_pb2.StepHeader) -> mx.array:
        shape, dtype = tuple(header.shape), DTYPES.get(header.dtype)
        if self._lane is None or dtype is None or len(shape) < 2 or shape[1] != header.token_count:  # noqa: PLR2004  batch and tokens
            raise RemoteScheduleError(
                f"step {header.step} announces {header.dtype} activations of shape {shape} for "
                f"{header.token_count} tokens"
            )
        return self._lane.receive(shape, dtype, self._deadline_seconds)

    def _hand_on(self, header: lane_pb2.StepHeader, hidden: mx.array) -> None:
        if self._lane is None:
            raise RemoteScheduleError("this stage has no lane to the next one")
        onward = lane_pb2.StepHeader()
        onward.CopyFrom(header)
        onward.ClearField("shape")
        onward.shape.extend(hidden.shape)
        onward.dtype = str(hidden.dtype).rpartition(".")[2]
        # The header goes first and the activations are computed already: the next stage receives without
        # waiting.
        self._send_header(onward)
        self._lane.send(hidden, self._deadline_seconds)

    def _sample(
        self,
        header: lane_pb2.StepHeader,
        logits: mx.array,
        caches: StageCaches,
        result: lane_pb2.StepResult,
    ) -> None:
        sampling = sampling_from_wire(header.sampling)
        token, logprob = choose(logits[:, -1, :], sampling, header.sample_index)
        mx.eval(token, logprob, *caches.owned_arrays())
        result.token_id = cast("int", token.item())
        result.logprob = cast("float", logprob.item())
        result.has_token = True


def set_memory_limits(ledger: types_pb2.Ledger) -> None:
    """Holds MLX to what the ledger charges.

    Metal may wire what it recommends, as in mlx-lm's own generation; elsewhere there is no such limit. Freed
    buffers are kept up to the size that the ledger has as allocator slack, on every backend. MLX waits for the
    GPU before it allocates beyond what the ledger charges for arrays; a ledger without lines sets no limit.
    """
    maybe_set_recommended_wired_limit()
    kept_bytes = Reserves().buffer_cache_bytes
    mx.set_cache_limit(kept_bytes)
    charged = {entry.name: entry.size_bytes for entry in ledger.entries}
    arrays_bytes = sum(size for name, size in charged.items() if name not in _NOT_ARRAYS)
    if arrays_bytes > kept_bytes:
        mx.set_memory_limit(arrays_bytes - min(kept_bytes, charged.get("allocator_slack", 0)))


#: Lines of the ledger that are no arrays of MLX.
_NOT_ARRAYS = frozenset({"transport_pool", "runtime_reserve"})
