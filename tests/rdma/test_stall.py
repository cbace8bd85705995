import threading

from macmesh_rdma.stall import StallWatch


def test_stall_watch_tells_what_took_too_long_and_only_that() -> None:
    told: list[str] = []
    stalled = threading.Event()

    def on_stall(what: str) -> None:
        told.append(what)
        stalled.set()

    watch = StallWatch(on_stall)
    try:
        for _ in range(100):
            with watch.limit(60, "something quick"):
                pass
        with watch.limit(0.01, "the late one"):
            assert stalled.wait(60)
    finally:
        watch.close()
    assert told == ["the late one took longer than 0.01 s"]
