"""mDNS on real sockets: on the loopback interface, and on networks of the test's own."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macmesh_daemon.discovery import Advertisement, Candidate, Hints, MdnsDiscovery

HERE = Path(__file__).parent
A, B = "a" * 26, "b" * 26
LOOPBACK = ("127.0.0.1",)


def advertisement(node_id: str, port: int, cluster: str) -> Advertisement:
    return Advertisement(node_id, port, Hints(protocol_version=1, cluster_prefix=cluster, ram_bytes=1 << 36))


async def test_two_nodes_on_the_loopback_interface_find_each_other() -> None:
    found: dict[str, asyncio.Queue[Candidate]] = {A: asyncio.Queue(), B: asyncio.Queue()}
    nodes = {
        name: MdnsDiscovery(advertisement(name, port, "10000001"), interfaces=LOOPBACK)
        for name, port in ((A, 4001), (B, 4002))
    }
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        tasks = [group.create_task(nodes[name].run(found[name].put_nowait)) for name in (A, B)]
        seen_by_a, seen_by_b = await found[A].get(), await found[B].get()
        for task in tasks:
            task.cancel()
    assert (seen_by_a.node_id, seen_by_a.addresses, seen_by_a.source) == (B, ("127.0.0.1:4002",), "mdns")
    assert (seen_by_b.node_id, seen_by_b.addresses) == (A, ("127.0.0.1:4001",))
    assert seen_by_a.hints == advertisement(B, 4002, "10000001").hints
    assert nodes[A].health() == nodes[B].health() == ()


async def test_a_changed_announcement_reaches_the_peer() -> None:
    found: asyncio.Queue[Candidate] = asyncio.Queue()
    first = MdnsDiscovery(advertisement(A, 4001, "10000002"), interfaces=LOOPBACK)
    second = MdnsDiscovery(advertisement(B, 4002, "10000002"), interfaces=LOOPBACK)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(first.run(found.put_nowait)),
            group.create_task(second.run(lambda _candidate: None)),
        ]
        await found.get()
        second.advertise(advertisement(B, 4999, "10000002"))
        while (await found.get()).addresses != ("127.0.0.1:4999",):
            pass
        for task in tasks:
            task.cancel()


@pytest.mark.process
def test_two_processes_find_each_other_and_stop_when_told() -> None:
    command = [sys.executable, str(HERE / "discovery_node.py")]
    options = ["--interface", "127.0.0.1", "--cluster", "10000003"]
    processes = [
        subprocess.Popen([*command, name, port, *options], stdout=subprocess.PIPE, text=True)
        for name, port in ((A, "4001"), (B, "4002"))
    ]
    try:
        for process, other in zip(processes, (B, A), strict=True):
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "found":
                    assert event["node_id"] == other
                    break
            else:
                pytest.fail("the process ended before it found the other")
        for process in processes:
            process.terminate()
            assert process.wait(60) == 0
            assert process.stdout is not None
            assert json.loads(process.stdout.readlines()[-1]) == {"event": "stopped", "health": []}
    finally:
        for process in processes:
            process.kill()
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()


def namespaces() -> list[str]:
    """Return the command that runs another in fresh namespaces; skip where that is not permitted."""
    for program in ("unshare", "ip"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program} (Debian: util-linux, iproute2)")
    base = ["unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    reason = ""
    for command in (base, [*base, "--user", "--map-root-user"]):
        check = "mount -t tmpfs tmpfs /run && ip link add e0 type veth peer name e1"
        tried = subprocess.run([*command, "sh", "-c", check], capture_output=True, check=False, timeout=120)
        if tried.returncode == 0:
            return command
        reason = tried.stderr.decode("utf-8", "replace").strip()
    return pytest.skip(f"not permitted to make network namespaces: {reason}")


class Scenarios:
    """The scenarios, each in namespaces of its own; started together, since they mostly wait."""

    def __init__(self, command: list[str]) -> None:
        self.processes = {
            name: subprocess.Popen(
                [*command, sys.executable, str(HERE / "netns_scenarios.py"), name],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ
                | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "PYTHONPATH": str(HERE.parents[1])},
            )
            for name in ("avahi", "late-joiner", "families")
            if name != "avahi" or not missing_for_avahi()
        }

    def result(self, name: str) -> dict[str, Any]:
        output, errors = self.processes[name].communicate(timeout=120)
        assert self.processes[name].returncode == 0, errors
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        return result

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def scenarios() -> Iterator[Scenarios]:
    started = Scenarios(namespaces())
    yield started
    started.end()


def missing_for_avahi() -> list[str]:
    path = f"{os.environ['PATH']}:/usr/sbin"
    programs = ("avahi-daemon", "avahi-browse", "dbus-daemon")
    return [program for program in programs if shutil.which(program, path=path) is None]


@pytest.mark.process
def test_avahi_sees_the_service_and_its_txt_record(scenarios: Scenarios) -> None:
    if missing := missing_for_avahi():
        pytest.skip(f"needs {', '.join(missing)} (Debian: avahi-daemon, avahi-utils, dbus-daemon)")
    line = scenarios.result("avahi")["resolved"]
    assert line is not None
    fields = line.split(";", 9)
    assert fields[3:6] == [A, "_macmesh._tcp", "local"]
    assert fields[6:9] == [f"{A}.local", "10.77.0.1", "27450"]
    txt = dict(item.split("=", 1) for item in fields[9].strip('"').split('" "'))
    assert txt == {
        "v": "1",
        "id": A,
        "cl": "0123abcd",
        "ram": str(128 << 30),
        "usable": str(96 << 30),
        "bw": "546.0",
        "chip": "Apple M4 Max",
        "host": "f" * 32,
        "inc": "3",
        "st": "up",
        "p": "0",
    }


@pytest.mark.process
def test_nodes_use_ipv6_where_there_is_no_ipv4_and_move_to_ipv4_when_it_appears(
    scenarios: Scenarios,
) -> None:
    result = scenarios.result("families")
    assert result["ipv6"] is not None
    (address,) = json.loads(result["ipv6"])["addresses"]
    assert re.fullmatch(r"\[fe80::[0-9a-f:]+%\w+\]:27450", address)
    assert result["ipv4"] is not None
    assert json.loads(result["ipv4"])["addresses"][0] == "10.77.0.2:27450"


@pytest.mark.process
def test_a_node_that_started_cut_off_is_found_once_the_network_heals(scenarios: Scenarios) -> None:
    result = scenarios.result("late-joiner")
    assert result["cut_off"]
    assert result["found"]
    # The control: this is what the library does by itself. None where this machine was too slow to tell.
    assert result["found_without_repair"] in {False, None}
