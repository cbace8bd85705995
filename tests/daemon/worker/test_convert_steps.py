"""Steps and results cross the control lane unchanged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh.v1 import lane_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.sampling_parameters import Sampling
from macmesh_daemon.engine.steps import Close, Compose, Forget, Open, Reuse, Row, Sampled, Step, StepDone
from macmesh_daemon.worker.convert_steps import done_from_wire, done_to_wire, step_from_wire, step_to_wire

numbers = st.integers(0, 2**40)
tokens = st.integers(0, 2**32 - 1)
texts = st.text(max_size=12)
floats = st.floats(0, 10, width=32)
samplings = st.builds(
    Sampling,
    floats,
    floats,
    st.integers(0, 2**31),
    floats,
    st.integers(0, 2**64 - 1),
    floats,
    st.integers(0, 2**31),
    floats,
    floats,
    st.lists(st.tuples(tokens, floats), max_size=3).map(tuple),
)
operations = st.one_of(
    st.builds(
        Open,
        numbers,
        texts,
        numbers,
        samplings,
        st.lists(tokens, max_size=5).map(tuple),
        st.none() | st.builds(Reuse, numbers, numbers),
    ),
    st.builds(Compose, numbers, st.lists(numbers, max_size=4).map(tuple), numbers),
    st.builds(Close, numbers, texts, st.none() | numbers, numbers, numbers),
    st.builds(Forget, numbers),
)
rows = st.builds(Row, numbers, texts, numbers, st.none() | tokens, numbers)
any_operations = st.lists(operations, max_size=4).map(tuple)
steps = st.one_of(
    st.builds(
        Step,
        numbers,
        st.just("prefill"),
        any_operations,
        st.tuples(rows),
        st.lists(tokens, min_size=1, max_size=9).map(tuple),
    ),
    st.builds(
        Step,
        numbers,
        st.just("decode"),
        any_operations,
        st.lists(rows, min_size=1, max_size=4).map(tuple),
        st.just(()),
        st.none() | numbers,
    ),
    st.builds(Step, numbers, st.just("operations"), any_operations),
)
results = st.builds(
    StepDone,
    numbers,
    st.lists(st.builds(Sampled, tokens, st.floats(-1000, 0, width=32)), max_size=4).map(tuple),
    st.floats(0, 1e6),
)


@given(steps)
def test_steps_arrive_as_they_were(step: Step) -> None:
    assert step_from_wire(lane_pb2.Step.FromString(step_to_wire(step).SerializeToString())) == step


@given(results)
def test_results_arrive_as_they_were(done: StepDone) -> None:
    assert done_from_wire(lane_pb2.StepDone.FromString(done_to_wire(done).SerializeToString())) == done


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (lane_pb2.Step(number=1), "no kind"),
        (lane_pb2.Step(number=1, kind=9, rows=[lane_pb2.StepRow()]), "no kind"),  # type: ignore[arg-type]
        (lane_pb2.Step(number=1, kind=lane_pb2.STEP_KIND_DECODE), "decode step of 0 rows"),
        (lane_pb2.Step(kind=lane_pb2.STEP_KIND_PREFILL, rows=[lane_pb2.StepRow()]), "0 tokens"),
        (lane_pb2.Step(kind=lane_pb2.STEP_KIND_OPERATIONS, tokens=[1]), "1 tokens"),
        (
            lane_pb2.Step(kind=lane_pb2.STEP_KIND_OPERATIONS, operations=[lane_pb2.StepOperation()]),
            "operation that",
        ),
    ],
    ids=["nothing", "unknown", "no rows", "no tokens", "tokens of nothing", "unknown operation"],
)
def test_steps_that_make_no_sense_are_refused(message: lane_pb2.Step, reason: str) -> None:
    with pytest.raises(RemoteScheduleError, match=reason):
        step_from_wire(message)
