"""Random requests, cancels and results against a model of the stages' caches."""

import collections

from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_daemon.engine.requests import Cancelled, Effect, Generated, Refused, Release, Request, Step
from macmesh_daemon.engine.scheduler import Limits, Scheduler

LIMITS = st.builds(
    Limits,
    context_tokens=st.integers(5, 60),
    slots=st.integers(1, 3),
    stages=st.integers(1, 4),
    prefill_chunk_tokens=st.integers(1, 8),
    waiting=st.integers(0, 3),
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 30), st.integers(0, 12)),
        st.tuples(st.just("cancel"), st.integers(0, 12), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
        st.tuples(st.just("result"), st.integers(0, 9), st.just(0)),
    ),
    max_size=120,
)


class Pipeline:
    """What the stages hold, and what the clients have been told."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits)
        self.requests: dict[str, Request] = {}
        self.caches: dict[int, tuple[str, int]] = {}
        self.on_their_way: collections.deque[Step] = collections.deque()
        self.tokens: dict[str, list[int]] = collections.defaultdict(list)
        self.ended: dict[str, str] = {}

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Release(slot, request_id):
                    # A request that never ran a step has no cache yet.
                    held, _ = self.caches.pop(slot, (request_id, 0))
                    assert held == request_id
                case Generated(request_id, index, token, _, finish):
                    assert request_id not in self.ended
                    assert index == len(self.tokens[request_id])
                    self.tokens[request_id].append(token)
                    if finish is not None:
                        self.ended[request_id] = finish.value
                case Cancelled(request_id):
                    assert request_id not in self.ended
                    self.ended[request_id] = "cancelled"
                case Refused(request_id):
                    assert request_id not in self.ended
                    self.ended[request_id] = "refused"

    def submit(self, prompt: int, max_tokens: int) -> None:
        name = f"r{len(self.requests)}"
        stop = frozenset({3}) if max_tokens % 2 else frozenset()
        self.requests[name] = Request(name, tuple(range(100, 100 + prompt)), max_tokens, stop_tokens=stop)
        self.take(self.scheduler.submit(self.requests[name]))

    def step(self) -> bool:
        step = self.scheduler.next_step(0.0)
        if step is None:
            return False
        request = self.requests[step.request_id]
        assert step.request_id not in self.ended
        assert 0 <= step.slot < self.limits.slots
        held, length = self.caches.get(step.slot, ("", 0))
        if step.first:
            assert held == ""
        else:
            assert held == step.request_id
        assert step.offset == length
        length += len(step.tokens)
        assert length <= step.reserve_tokens <= self.limits.context_tokens
        assert len(step.tokens) <= max(self.limits.prefill_chunk_tokens, 1)
        known = [*request.prompt, *self.tokens[step.request_id]]
        assert list(step.tokens) == known[step.offset : length]
        assert step.sample == (length >= len(request.prompt))
        assert step.sample_index == len(self.tokens[step.request_id])
        if step.sample:
            assert length == len(known)
        self.caches[step.slot] = (step.request_id, length)
        self.on_their_way.append(step)
        assert len(self.on_their_way) <= self.limits.stages
        return True

    def result(self, token: int) -> bool:
        if not self.on_their_way:
            return False
        step = self.on_their_way.popleft()
        self.take(self.scheduler.done(step.number, token if step.sample else None, -0.5))
        return True

    def check(self) -> None:
        holders = [request_id for request_id, _ in self.caches.values()]
        assert len(set(holders)) == len(holders)


@settings(max_examples=300, deadline=None)
@given(LIMITS, ACTIONS)
def test_every_request_ends_once_and_every_stage_can_follow(
    limits: Limits, actions: list[tuple[str, int, int]]
) -> None:
    pipeline = Pipeline(limits)
    for kind, first, second in actions:
        match kind:
            case "submit":
                pipeline.submit(first, second)
            case "cancel":
                pipeline.take(pipeline.scheduler.cancel(f"r{first}"))
            case "step":
                pipeline.step()
            case "result":
                pipeline.result(first)
        pipeline.check()
    # Nothing waits for anything but results: the rest runs to its end.
    while pipeline.step() or pipeline.result(7):
        pipeline.check()
    assert pipeline.scheduler.idle
    assert pipeline.caches == {}
    assert set(pipeline.ended) == set(pipeline.requests)
    for name, request in pipeline.requests.items():
        count = len(pipeline.tokens[name])
        if pipeline.ended[name] == "length":
            assert count == (request.max_tokens or limits.context_tokens - len(request.prompt))
        elif pipeline.ended[name] == "refused":
            assert count == 0


@given(st.integers(1, 80), st.integers(1, 20))
def test_prompts_are_cut_as_the_reference_cuts_them(prompt: int, chunk: int) -> None:
    pipeline = Pipeline(Limits(context_tokens=200, slots=1, stages=1, prefill_chunk_tokens=chunk))
    pipeline.requests["a"] = Request("a", tuple(range(100, 100 + prompt)), 1)
    pipeline.scheduler.submit(pipeline.requests["a"])
    cuts = []
    while pipeline.step():
        cuts.append(len(pipeline.on_their_way[-1].tokens))
        pipeline.result(7)
    expected, left = [], prompt - 1
    while left > 0:
        expected.append(min(chunk, left))
        left -= expected[-1]
    assert cuts == [*expected, 1]
