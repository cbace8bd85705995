"""Carries out the steps of one stage. Imports mlx.

`StageRunner` has what all stages do: the order of the steps, their operations, how each slot samples. What is computed
when, and how it gets to the next stage, is in `local_runner` (one stage) and `piped_runner` (several).
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import mlx.core as mx

from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.row_sampling import choose_rows
from macmesh_daemon.engine.sampling import extended_history
from macmesh_daemon.engine.steps import Close, Compose, Open, Operation, Row, Sampled, Step, StepDone
from macmesh_daemon.worker.step_times import StepTimes

if TYPE_CHECKING:
    from macmesh_daemon.engine.sampling_parameters import Sampling

Source = TypeVar("Source")
CLEAR_CACHE_STEPS = 256
"""mlx-lm gives MLX's free buffers back as often."""


class Facts(Protocol):
    """Shape and type of an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """Name of its MLX type, such as "bfloat16"."""


class Stage(Protocol):
    """What a runner needs of a `StageModel`."""

    layer_done: Callable[[int], None]
    """Is told each layer that has been run, in steps that run layer by layer."""

    @property
    def is_head(self) -> bool:
        """Takes token ids."""

    @property
    def is_tail(self) -> bool:
        """Gives logits."""

    @property
    def architecture(self) -> str:
        """Name of the mlx-lm module that implements the model."""

    @property
    def vocab_size(self) -> int:
        """Token ids lie below it."""

    @property
    def kinds(self) -> frozenset[str]:
        """What decides which kernels its steps need."""

    @property
    def openings(self) -> list[mx.array]:
        """What some layers put out in the decode step that was described last."""

    def make_caches(self, reserve_tokens: int, *, kv_bits: int = 0) -> Any:
        """New caches for a request of at most so many tokens; of so many bits, or of the model's own type."""

    def step(self, inputs: list[mx.array], caches: Any) -> list[mx.array]:
        """Describes a step."""

    def evaluate(self, results: list[mx.array], caches: Any) -> None:
        """Runs what was described: the results that are wanted, and the caches."""

    def payload_facts(self, rows: int, tokens: int) -> Sequence[Facts] | None:
        """What comes in; None where it cannot be known."""


class Snapshot(Protocol):
    """The caches before a step was described."""

    def restore(self) -> None:
        """Takes the step back."""


class House(Protocol):
    """What a runner needs of a `CacheHouse`."""

    def apply(self, operation: Operation) -> None:
        """Carries out one operation."""

    def caches_for(self, step: Step) -> Any:
        """The caches of a step; checks that it fits."""

    def snapshot(self, step: Step) -> Snapshot:
        """To take the description of this step back."""


class StageRunner(abc.ABC):
    """One stage at work. To be used from the thread that loaded the model.

    Args:
        stage: the model's part.
        house: its caches.
    """

    def __init__(self, stage: Stage, house: House) -> None:
        self.stage = stage
        """The model's part."""
        self.house = house
        """Its caches."""
        self.times = StepTimes()
        """What the time went into."""
        self.steps = 0
        """Steps begun so far."""
        self.prompt_ahead: Callable[[], int | None] = lambda: None
        """Gives the number of the step whose input comes next, where it is known and a part of a prompt."""
        self.failed: Callable[[Exception], None] = lambda _error: None
        """Is told what fails beside the inference thread, which may wait for work just then. From any thread."""
        self._samplings: dict[int, Sampling] = {}
        # The last tokens of requests whose logit processors look at them; on the device, at the tail.
        self._histories: dict[int, mx.array] = {}
        self._reserve_tokens: dict[int, int] = {}

    @property
    def unfinished(self) -> int:
        """Steps begun whose end `finish` gives."""
        return 0

    @abc.abstractmethod
    def begin(self, step: Step) -> None:
        """Carries a step out, or queues it on the device.

        Raises:
            RemoteScheduleError: the step does not fit the state of this stage.
            TransportError: a neighbour is lost.
        """

    def finish(self) -> StepDone:
        """The end of the oldest unfinished step; waits for it.

        Raises:
            LookupError: none is unfinished.
        """
        raise LookupError("no step is unfinished")

    def take_result(self, done: StepDone) -> bool:  # noqa: ARG002  only a head of several stages needs it
        """At a head that is not the tail: what the tail told of a step.

        Returns:
            Whether `finish` gives this result in its turn, after those of earlier steps.

        Raises:
            RemoteScheduleError: it does not fit the steps that were begun.
        """
        return False

    def holds_back(self, step: Step) -> bool:  # noqa: ARG002  only a head that queues ahead needs it
        """At the head: whether another step has to end before this one may be given out."""
        return False

    def prepare(self) -> bool:
        """Uses idle time for one piece of work that may save time later; False where there is none."""
        return False

    def close(self) -> None:  # noqa: B027  most have no threads
        """Ends what goes on beside the inference thread, once the transfers are aborted."""

    def tell_failure(self, error: Exception) -> None:
        """Something failed beside the inference thread. From any thread."""
        self.failed(error)

    @staticmethod
    def memory_bytes() -> tuple[int, int]:
        """Bytes that MLX holds, and the most that it held. From any thread."""
        return mx.get_active_memory(), mx.get_peak_memory()

    def _enter(self, step: Step) -> None:
        """What every step begins with."""
        if step.number != self.steps + 1:
            raise RemoteScheduleError(f"step {step.number} came after step {self.steps}")
        self.steps = step.number
        if step.operations:
            for operation in step.operations:
                self._apply(operation)
            if any(not isinstance(operation, Open) for operation in step.operations):
                mx.clear_cache()
            self.times.lap(self.times.operations)

    def _apply(self, operation: Operation) -> None:
        self.house.apply(operation)
        match operation:
            case Open():
                sampling = self._samplings[operation.slot] = operation.sampling
                if self.stage.is_tail and sampling.history_tokens:
                    history = operation.history[-sampling.history_tokens :]
                    self._histories[operation.slot] = mx.array(history, mx.uint32)
                self._reserve_tokens[operation.slot] = operation.reserve_tokens
            case Close():
                self._samplings.pop(operation.slot, None)
                self._histories.pop(operation.slot, None)
                self._reserve_tokens.pop(operation.slot, None)

    def _choose(self, step: Step, logits: mx.array) -> tuple[mx.array, mx.array]:
        """Describes what the tail samples after a step: token ids and logarithms, of shape (rows,)."""
        samplings = [self._samplings[row.slot] for row in step.rows]
        ids, logprobs = choose_rows(
            logits[:, -1, :],
            samplings,
            [row.sample_index for row in step.rows],
            [self._histories.get(row.slot) for row in step.rows],
        )
        for index, (row, sampling) in enumerate(zip(step.rows, samplings, strict=True)):
            if row.slot in self._histories:
                history, token = self._histories[row.slot], ids[index : index + 1]
                self._histories[row.slot] = extended_history(history, token, sampling)
        return ids, logprobs

    def _clear(self, step: Step) -> None:
        """Gives MLX's free buffers back as often as mlx-lm does: after each part of a prompt, else now and then."""
        if step.kind == "prefill" or step.number % CLEAR_CACHE_STEPS == 0:
            mx.clear_cache()


def sampled_of(ids: mx.array, logprobs: mx.array) -> tuple[Sampled, ...]:
    """What was sampled, as plain data; waits for it."""
    tokens = cast("list[int]", ids.tolist())
    return tuple(map(Sampled, tokens, cast("list[float]", logprobs.tolist())))


def key_of(step: Step) -> tuple[str, int]:
    """The batch of a decode step, or the slot that is alone."""
    return ("slot", step.rows[0].slot) if step.batch is None else ("batch", step.batch)


def common_source(rows: Sequence[Row], sources: "Mapping[int, tuple[Source, int]]") -> "Source | None":
    """The one step that sampled what all rows go on with, each at its own place in it; None where there is none.

    Args:
        rows: of a decode step.
        sources: for each slot the step that sampled its last token, and its row there.
    """
    found = [sources.get(row.slot) for row in rows]
    first = found[0]
    if first is None or any(row.token is not None for row in rows):
        return None
    are_same = all(
        source is not None and source[0] is first[0] and source[1] == index
        for index, source in enumerate(found)
    )
    return first[0] if are_same else None


def is_concerned(operation: Operation, last: Step) -> bool:
    """Whether the operation changes rows of a decode step."""
    slots = {row.slot for row in last.rows}
    match operation:
        case Close() | Open():
            return operation.slot in slots
        case Compose():
            return operation.batch == last.batch or not slots.isdisjoint(operation.slots)
        case _:
            return False
