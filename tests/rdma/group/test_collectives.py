from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.group.arrays import MLX_DTYPES, Spec, bits, expected, input_of
from support.group.ranks import RankError, Ranks

pytestmark = pytest.mark.process

REDUCTIONS = ("all_sum", "all_max", "all_min")
LAYOUTS = ("plain", "transposed", "sliced", "reversed", "broadcast")


def check(ranks: Ranks, operation: str, spec: Spec) -> None:
    size = len(ranks.processes)
    results = ranks.call("collective", operation, spec)
    for rank, result in enumerate(results):
        assert not isinstance(result, RankError), result
        wanted = expected(operation, spec, size, rank)
        assert result[:2] == wanted[:2]
        assert result[2] == wanted[2], f"{operation} of {spec} on rank {rank}"


@pytest.mark.parametrize("dtype", MLX_DTYPES)
def test_every_type_in_every_collective(pair: Ranks, dtype: str) -> None:
    # Small, and above the size up to which everyone sends everything to everyone.
    for shape in ((3,), (2, 33_331)):
        for operation in (*REDUCTIONS, "all_gather"):
            check(pair, operation, Spec(dtype, shape, 5))
    check(pair, "sum_scatter", Spec(dtype, (4, 3), 6))


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float16", "float32", "complex64"])
def test_three_ranks_share_parts_that_do_not_divide(trio: Ranks, dtype: str) -> None:
    for count in (1, 2, 32_769, 100_001):
        check(trio, "all_sum", Spec(dtype, (count,), 7))
        check(trio, "all_gather", Spec(dtype, (count,), 8))
    check(trio, "sum_scatter", Spec(dtype, (9, 10_001), 9))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_are_sent_in_their_own_order(pair: Ranks, layout: str) -> None:
    for shape in ((4, 6), (40, 601)):
        spec = Spec("float32", shape, 11, layout)
        for operation in (*REDUCTIONS, "all_gather", "sum_scatter"):
            check(pair, operation, spec)


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,), (1, 1, 1)])
def test_arrays_of_no_dimension_or_no_element(pair: Ranks, shape: tuple[int, ...]) -> None:
    for operation in (*REDUCTIONS, "all_gather"):
        check(pair, operation, Spec("float32", shape, 12))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(
    dtype=st.sampled_from(sorted(MLX_DTYPES)),
    shape=st.lists(st.integers(0, 40), max_size=4)
    .map(tuple)
    .filter(lambda shape: math.prod(shape) <= 60_000),
    seed=st.integers(0, 2**32),
    layout=st.sampled_from(LAYOUTS[:-1]),
    operation=st.sampled_from([*REDUCTIONS, "all_gather", "sum_scatter"]),
)
def test_any_collective_of_any_array(
    trio: Ranks, dtype: str, shape: tuple[int, ...], seed: int, layout: str, operation: str
) -> None:
    if operation == "sum_scatter":
        shape = (3 * shape[0], *shape[1:]) if shape else (3,)
    check(trio, operation, Spec(dtype, shape, seed, layout))


@pytest.mark.parametrize("dtype", ["bool", "bfloat16", "float32", "int64"])
def test_everyone_sends_to_everyone(trio: Ranks, dtype: str) -> None:
    for shape in ((), (0,), (5, 7), (300, 333)):
        for layout in ("plain", "transposed"):
            spec = Spec(dtype, shape, 13, layout)
            for rank, received in enumerate(trio.call("everyone_to_everyone", spec)):
                assert not isinstance(received, RankError), received
                for peer, got in received.items():
                    assert got == bits(input_of(spec, peer * 10 + rank))


def test_several_links_carry_large_messages_in_parts(start: object) -> None:
    assert callable(start)
    with start(2, "tcp", links_per_lane=3) as ranks:
        for count in (10, 100_000, 1_000_003):
            spec = Spec("float32", (count,), 14)
            check(ranks, "all_sum", spec)
            received = ranks.call("everyone_to_everyone", spec)
            assert received[1][0] == bits(input_of(spec, 1))
            assert received[0][1] == bits(input_of(spec, 10))


def test_bytes_without_mlx(pair: Ranks) -> None:
    payload = bytes(range(256)) * 1001
    assert pair.call("exchange_bytes", payload) == [payload[::-1], payload]
    assert pair.call("exchange_bytes", b"") == [b"", b""]
