import ctypes
import subprocess
import sys

import pytest

from macmesh_rdma.errors import LocalOptionError
from macmesh_rdma.testing.fakeverbs import FakeFabric, SentCounters, full_mesh, library_path

_LIST = """
import ctypes, os
library = ctypes.CDLL(os.environ["MACMESH_VERBS_LIBRARY"])
library.ibv_get_device_list.restype = ctypes.POINTER(ctypes.c_void_p)
library.ibv_get_device_name.restype = ctypes.c_char_p
library.ibv_get_device_name.argtypes = [ctypes.c_void_p]
count = ctypes.c_int()
devices = library.ibv_get_device_list(ctypes.byref(count))
print(*(library.ibv_get_device_name(devices[i]).decode() for i in range(count.value)))
"""


def test_the_library_exports_what_a_verbs_library_does() -> None:
    library = ctypes.CDLL(str(library_path()))
    for name in ("ibv_get_device_list", "ibv_open_device", "ibv_create_qp", "ibv_create_comp_channel"):
        assert library[name] is not None


@pytest.mark.process
def test_a_process_sees_the_devices_of_its_host() -> None:
    with FakeFabric(full_mesh(["a", "b", "c"]), loose=["b.fake7"]) as fabric:
        run = subprocess.run(
            [sys.executable, "-S", "-c", _LIST],
            env=fabric.environment("b"),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert run.stdout.split() == ["fake0", "fake1", "fake7"]


def test_a_full_mesh_plugs_every_end_into_a_device_of_its_own() -> None:
    assert full_mesh(["a", "b", "c"]) == [
        ("a.fake0", "b.fake0"),
        ("a.fake1", "c.fake0"),
        ("b.fake1", "c.fake1"),
    ]
    doubled = full_mesh(["a", "b", "c"], 2)
    assert len({end for cable in doubled for end in cable}) == 12


def test_nothing_has_gone_over_a_new_fabric() -> None:
    with FakeFabric([("a.fake0", "b.fake0")], flavour="linux") as fabric:
        counters = fabric.counters()
        assert counters.sent == ((SentCounters(), SentCounters()),)
        assert (counters.queue_pairs, counters.regions) == (0, 0)


def test_the_manual_clock_goes_only_when_it_is_told_to() -> None:
    with FakeFabric([("a.fake0", "b.fake0")], manual_clock=True) as fabric:
        assert fabric.now_ns() == 0
        fabric.advance(1500)
        fabric.advance(500)
        assert fabric.now_ns() == 2000


def test_wrong_settings_and_commands_are_refused() -> None:
    with pytest.raises(LocalOptionError, match="los"):
        FakeFabric([], los=0.5)
    with pytest.raises(LocalOptionError, match="share from 0 to 1"):
        FakeFabric([], loss=2)
    with FakeFabric([("a.fake0", "b.fake0")]) as fabric:
        fabric.change(loss=0.25, equal_frames=False, latency_ns=10)
        with pytest.raises(LocalOptionError, match="no setting"):
            fabric.change(speed=1)
        with pytest.raises(LocalOptionError, match="a cable below 1"):
            fabric.cut(1)
        with pytest.raises(LocalOptionError, match="not a manual one"):
            fabric.advance(1)


def test_a_removed_fabric_is_gone() -> None:
    fabric = FakeFabric([("a.fake0", "b.fake0")])
    fabric.remove()
    fabric.remove()
    with pytest.raises(LocalOptionError, match="opening the segment"):
        fabric.now_ns()
