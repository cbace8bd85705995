"""What a node remembers of its RDMA devices: quarantined peers, and how often links were set up."""

from pathlib import Path

from macmesh.v1 import lane_pb2
from macmesh_daemon.node.verbs_keeper import QUARANTINE_FILE_NAME, VerbsKeeper
from macmesh_rdma.quarantine_file import remove_entry
from macmesh_rdma.verbs.devices import LINUX_DEVICES
from macmesh_rdma.verbs.facts import PORT_ACTIVE, VerbsFacts, VerbsPort

FOUND = VerbsFacts((VerbsPort("fake0", 1, PORT_ACTIVE, 1, "::ffff:10.99.0.1"),))
PLAN = ("node-of-stage-0", "node-of-stage-1")


class Asked:
    """A verbs library that counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0
        self.found = FOUND

    async def __call__(self, library: str) -> VerbsFacts:
        assert library == "/lib"
        self.times += 1
        return self.found


def keeper(folder: Path, boot: str = "b", bound: int = 3, asked: Asked | None = None) -> VerbsKeeper:
    async def boot_id() -> str:
        return boot

    return VerbsKeeper(
        folder,
        library="/lib",
        setups_per_boot=bound,
        system_tells=True,
        ask=asked or Asked(),
        read_boot_id=boot_id,
        unix_now=lambda: 7.0,
    )


async def test_the_library_is_asked_again_only_where_the_system_tells_something_new(tmp_path: Path) -> None:
    asked = Asked()
    kept = keeper(tmp_path, asked=asked)
    assert await kept.facts("one cable") == FOUND
    assert await kept.facts("one cable") == FOUND
    assert asked.times == 1
    await kept.facts("two cables")
    assert asked.times == 2
    asked.found = VerbsFacts(refused="it took too long")
    await kept.facts("three cables")
    asked.found = FOUND
    assert await kept.facts("three cables") == FOUND
    assert asked.times == 4
    elsewhere = VerbsKeeper(tmp_path, library="/lib", system_tells=False, ask=asked)
    for _ in range(2):
        await elsewhere.facts("nothing")
    assert asked.times == 6


async def test_a_fault_puts_the_peer_into_quarantine_until_it_is_lifted(tmp_path: Path) -> None:
    kept, changes = keeper(tmp_path), list[int]()
    kept.on_change = lambda: changes.append(1)
    fault = lane_pb2.RdmaFault(peer_stage=1, reason="a pattern arrived changed")
    await kept.note(lane_pb2.RdmaUse(faults=[fault]), PLAN)
    assert changes
    assert "node-of- are in quarantine: a pattern arrived changed" in kept.health()[0]
    again = keeper(tmp_path)  # the daemon was started anew
    assert (await again.facts()).quarantine_of(PLAN[1]) == "a pattern arrived changed"
    assert again.health() == kept.health()
    remove_entry(tmp_path / QUARANTINE_FILE_NAME, PLAN[1])
    assert (await again.facts()).quarantined == ()
    assert again.health() == ()


async def test_a_fault_of_a_stage_that_is_in_no_plan_is_passed_over(tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    await kept.note(lane_pb2.RdmaUse(faults=[lane_pb2.RdmaFault(peer_stage=9, reason="x")]), PLAN)
    assert (await kept.facts()).quarantined == ()


async def test_beyond_the_bound_the_machine_needs_a_reboot(tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    for _ in range(2):
        await kept.note(lane_pb2.RdmaUse(setups=1), PLAN)
        await kept.note(lane_pb2.RdmaUse(queue_pairs_made=5, queue_pairs_freed=4), PLAN)
    assert (await kept.facts()).refused == ""
    assert kept.health() == ()
    changes: list[int] = []
    kept.on_change = lambda: changes.append(1)
    await kept.note(lane_pb2.RdmaUse(setups=1), PLAN)
    assert changes
    (line,) = kept.health()
    assert line.startswith("needs reboot: links over RDMA devices were set up 3 times")
    assert "10 queue pairs, of which 8 were freed" in line
    assert (await keeper(tmp_path).facts()).refused == line
    # After the restart of the machine all is well.
    assert (await keeper(tmp_path, boot="another").facts()).refused == ""


async def test_a_start_of_the_machine_without_a_name_is_counted_for_one_daemon(tmp_path: Path) -> None:
    await keeper(tmp_path, boot="unknown", bound=1).note(lane_pb2.RdmaUse(setups=1), PLAN)
    assert (await keeper(tmp_path, boot="unknown", bound=1).facts()).refused == ""


async def test_a_file_that_cannot_be_read_refuses_all(tmp_path: Path) -> None:
    (tmp_path / QUARANTINE_FILE_NAME).write_text("[]")
    assert "cannot be read" in (await keeper(tmp_path).facts()).refused


async def test_a_machine_without_devices_tells_nothing(tmp_path: Path) -> None:
    asked = Asked()
    kept = VerbsKeeper(tmp_path, ask=asked)
    if not LINUX_DEVICES.is_dir():
        assert not (await kept.facts()).is_told
        assert asked.times == 0
