from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from support.group.ranks import DEADLINE_SECONDS, RankError, Ranks

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("mine", "theirs", "named"),
    [
        ([(2, 3), "float32"], [(2, 3), "float16"], ["float32", "float16", "24 bytes", "12 bytes"]),
        ([(2, 3), "float32"], [(70_000,), "float32"], ["(70000,)", "24 bytes", "280000 bytes"]),
        ([(0,), "int8"], [(1,), "int8"], ["0 bytes", "1 bytes"]),
    ],
)
def test_a_mismatch_is_an_error_on_both_sides_that_names_both(
    start: Callable[..., Ranks], mine: list[Any], theirs: list[Any], named: list[str]
) -> None:
    with start(2, "tcp") as ranks:
        errors = ranks.call("mismatched", mine, theirs)
        for error in errors:
            assert isinstance(error, RankError)
            assert error.kind == "RuntimeError"
            for part in [*named, "expected", "rank 0", "rank 1", "epoch 1.2.3"]:
                assert part in error.text
        for code, text, _ in ranks.call("failure"):
            assert code == "mismatch"
            assert "expected" in text
        # From now on everything is refused, at once.
        for error in ranks.call("sum_of_ranks"):
            assert "the group has failed" in error.text
            assert error.seconds < DEADLINE_SECONDS / 2


def test_another_epoch_is_an_error_on_both_sides(start: Callable[..., Ranks]) -> None:
    with start(2, "shm", epochs=[(1, 2, 3), (1, 2, 4)]) as ranks:
        for error in ranks.call("sum_of_ranks"):
            assert "epoch 1.2.3" in error.text
            assert "epoch 1.2.4" in error.text


@pytest.mark.parametrize("provider", ["tcp", "shm"])
@pytest.mark.parametrize("function", ["wait_for", "sum_of_ranks"])
def test_a_killed_peer_is_an_error_at_once(start: Callable[..., Ranks], provider: str, function: str) -> None:
    with start(3, provider) as ranks:
        ranks.call("nothing")
        arguments = (2,) if function == "wait_for" else ()
        for rank in (0, 1):
            ranks.begin(rank, function, *arguments)
        killed_at = ranks.signal(2, signal.SIGKILL)
        for rank in (0, 1):
            error = ranks.finish(rank)
            assert isinstance(error, RankError)
            assert "rank 2" in error.text
            assert error.at - killed_at < DEADLINE_SECONDS / 2
        ranks.processes[2].wait(60)
        for result in ranks.call("failure")[:2]:
            assert (result[0], result[2]) == ("peer_lost", 2)


@pytest.mark.parametrize("provider", ["tcp", "shm"])
def test_a_stopped_peer_is_an_error_at_the_deadline(start: Callable[..., Ranks], provider: str) -> None:
    with start(2, provider, timeout_seconds=0.4) as ranks:
        ranks.call("nothing")
        ranks.signal(1, signal.SIGSTOP)
        ranks.begin(0, "sum_of_ranks")
        error = ranks.finish(0)
        assert isinstance(error, RankError)
        assert error.seconds >= 0.4
        assert "deadline" in error.text
        assert "rank 1" in error.text
        ranks.begin(0, "failure")
        assert ranks.finish(0)[::2] == ("timeout", 1)
        ranks.begin(0, "sum_of_ranks")
        assert "the group has failed" in ranks.finish(0).text
        # When it goes on it learns why the group has ended, at the latest when it needs more than was sent.
        ranks.signal(1, signal.SIGCONT)
        ranks.begin(1, "wait_for", 0)
        assert "rank 0 gave up" in ranks.finish(1).text
        ranks.processes[1].kill()


def test_a_late_peer_costs_no_cpu(pair: Ranks) -> None:
    assert pair.call("late", 0.5)[0] < 0.25


def test_closing_ends_an_operation_under_way(start: Callable[..., Ranks]) -> None:
    with start(2, "shm") as ranks:
        ranks.begin(0, "close_under_way")
        assert "closed on this rank" in ranks.finish(0)
        ranks.begin(1, "wait_for", 0)
        assert "rank 0 has closed the group" in ranks.finish(1).text


@pytest.mark.parametrize("busy", [False, True])
def test_an_interpreter_that_ends_with_an_open_group_says_farewell(
    start: Callable[..., Ranks], busy: bool
) -> None:
    with start(2, "tcp") as ranks:
        ranks.call("nothing")
        ranks.begin(0, "leave", busy)
        assert ranks.processes[0].wait(60) == 0
        ranks.begin(1, "wait_for", 0)
        assert "rank 0 has closed the group" in ranks.finish(1).text
