"""The progress page: what the writer says is what the reader sees, also from another process."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_rdma.errors import LocalSharedMemoryError
from macmesh_rdma.messages.progress_page import Activity, ProgressReader, ProgressWriter, Reading

CHILD = """
import sys
from macmesh_rdma.messages.progress_page import ProgressWriter
writer = ProgressWriter.adopt(int(sys.argv[1]))
writer.step(7)
writer.layer(3)
"""


@pytest.fixture
def reader() -> Iterator[ProgressReader]:
    made = ProgressReader()
    yield made
    made.close()


def writer_of(reader: ProgressReader) -> ProgressWriter:
    return ProgressWriter.adopt(os.dup(reader.descriptor))


def test_a_fresh_page_shows_a_thread_that_starts(reader: ProgressReader) -> None:
    assert reader.read() == Reading()


def test_every_change_is_seen(reader: ProgressReader) -> None:
    writer = writer_of(reader)
    seen = []
    for change in (
        writer.warm_up,
        lambda: writer.layer(0),
        writer.idle,
        lambda: writer.step(12),
        lambda: writer.layer(61),
        writer.waiting,
        writer.turn,
    ):
        change()
        seen.append(reader.read())
    assert [(one.activity, one.step, one.layer) for one in seen] == [
        (Activity.WARMING_UP, 0, None),
        (Activity.WARMING_UP, 0, 0),
        (Activity.IDLE, 0, None),
        (Activity.STEP, 12, None),
        (Activity.STEP, 12, 61),
        (Activity.WAITING, 12, None),
        (Activity.STEP, 12, None),
    ]
    assert len({one.sequence for one in seen}) == len(seen)


@given(st.integers(0, 2**64 - 1), st.integers(0, 4000))
def test_any_step_and_layer_come_through(step: int, layer: int) -> None:
    page = ProgressReader()
    try:
        writer = writer_of(page)
        writer.step(step)
        writer.layer(layer)
        assert (page.read().step, page.read().layer) == (step, layer)
    finally:
        page.close()


def test_an_activity_of_another_version_is_unknown(reader: ProgressReader) -> None:
    os.pwrite(reader.descriptor, (77 << 12).to_bytes(8, sys.byteorder), 0)
    assert reader.read().activity is Activity.UNKNOWN


def test_what_is_no_page_is_refused() -> None:
    pipe, other = os.pipe()
    os.close(other)
    with pytest.raises(LocalSharedMemoryError):
        ProgressWriter.adopt(pipe)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(pipe)


@pytest.mark.process
def test_another_process_writes_and_its_words_stay(reader: ProgressReader) -> None:
    command = [sys.executable, "-c", CHILD, str(reader.descriptor)]
    subprocess.run(command, pass_fds=(reader.descriptor,), check=True, timeout=120)
    reader.give_up_descriptor()
    assert reader.read() == Reading(sequence=2, activity=Activity.STEP, step=7, layer=3)
