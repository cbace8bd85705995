"""The bulletin board: every watcher sees what happens after it came, in order, and nobody is ever blocked."""

import asyncio

from macmesh_daemon.node.bulletin import WATCHER_BACKLOG, Bulletin, BulletinBoard


def _bulletin(number: int) -> Bulletin:
    return Bulletin(float(number), "plan committed", {"number": number})


async def test_watchers_see_what_comes_after_them_in_order() -> None:
    board = BulletinBoard()
    board.post(_bulletin(0))
    with board.watcher() as first, board.watcher() as second:
        board.post(_bulletin(1))
        board.post(_bulletin(2))

        for watcher in (first, second):
            assert [await watcher.next(0), await watcher.next(0)] == [_bulletin(1), _bulletin(2)]
            assert await watcher.next(0) is None


async def test_a_waiting_watcher_is_woken() -> None:
    board = BulletinBoard()
    with board.watcher() as watcher:
        asyncio.get_running_loop().call_soon(board.post, _bulletin(1))

        assert await watcher.next(30) == _bulletin(1)


async def test_a_watcher_that_falls_behind_is_told_how_much_it_lost() -> None:
    board = BulletinBoard()
    with board.watcher() as watcher:
        for number in range(WATCHER_BACKLOG + 3):
            board.post(_bulletin(number))
        told = await watcher.next(0)

        assert told is not None
        assert (told.event, told.facts["count"]) == ("events lost", 3)
        assert await watcher.next(0) == _bulletin(3)


def test_the_latest_are_kept_within_bounds() -> None:
    board = BulletinBoard(keep=2)
    for number in range(5):
        board.post(_bulletin(number))

    assert [b.facts["number"] for b in board.latest()] == [3, 4]


def test_facts_are_stable_json() -> None:
    assert Bulletin(0.0, "x", {"b": 1, "a": "\u00e9"}).facts_json() == '{"a":"\\u00e9","b":1}'
