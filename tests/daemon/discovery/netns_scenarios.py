"""Scenarios on networks of their own, run by the tests as process 1 of fresh namespaces.

Prints one JSON object. All processes and networks vanish with it.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.avahi import BUS_ADDRESS, write_files

NODE = Path(__file__).with_name("discovery_node.py")
A, B = "a" * 26, "b" * 26


def sh(command: str) -> None:
    subprocess.run(command.split(), check=True, timeout=60)


class Process:
    """A process whose lines are collected as they come."""

    def __init__(self, command: list[str], namespace: str | None = None) -> None:
        prefix = ["ip", "netns", "exec", namespace] if namespace else []
        self._process = subprocess.Popen([*prefix, *command], stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str] = queue.Queue()
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))

    def wait_for(self, wanted: Callable[[str], bool], seconds: float) -> str | None:
        """Return the first line that is wanted, None where none came in time."""
        deadline = time.monotonic() + seconds
        for line in self.lines:
            if wanted(line):
                return line
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                break
            self.lines.append(line)
            if wanted(line):
                return line
        return None


def node(node_id: str, *options: str, namespace: str | None = None) -> Process:
    return Process([sys.executable, str(NODE), node_id, "27450", *options], namespace)


def await_start(*nodes: Process) -> None:
    for process in nodes:
        if process.wait_for(lambda line: "started" in line, 100) is None:
            raise RuntimeError("a node did not start")


def finds(process: Process, node_id: str, seconds: float) -> bool:
    return process.wait_for(lambda line: "found" in line and node_id in line, seconds) is not None


def avahi() -> dict[str, Any]:
    """Avahi, started here with a bus of its own, must see a node and its TXT record."""
    sh("ip link add e0 type veth peer name e1")
    for command in ("ip addr add 10.77.0.1/24 dev e0", "ip link set e0 up", "ip link set e1 up"):
        sh(command)
    sh("ip route add 224.0.0.0/4 dev e0")
    for file, over in write_files():
        sh(f"mount --bind {file} {over}")
    os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = BUS_ADDRESS
    bus = Process(["dbus-daemon", "--config-file=/run/dbus.conf", "--nofork", "--print-address=1"])
    if bus.wait_for(lambda line: "/run/test-bus" in line, 60) is None:
        raise RuntimeError("dbus-daemon did not start")
    Process(["avahi-daemon", "--no-drop-root", "--no-chroot", "--no-rlimits", "-f", "/run/avahi.conf"])
    node(A, "--interface", "e0", "--beat", "2")
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        # It ends at once while avahi-daemon is not yet on the bus; otherwise it prints what appears.
        browser = Process(["avahi-browse", "--parsable", "--resolve", "_macmesh._tcp"])
        line = browser.wait_for(lambda line: line.startswith("=;e0;"), 10)
        if line is not None:
            return {"resolved": line}
    return {"resolved": None}


def bridged(bridge: str, left: str, right: str, *, ipv4: bool = True) -> None:
    """Make two namespaces; the right one's cable is not plugged in."""
    addresses = ("addr add 10.77.0.{}/24 dev e0",) if ipv4 else ()
    routes = ("route add 224.0.0.0/4 dev e0",) if ipv4 else ()
    sh(f"ip link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0")
    sh(f"ip link set {bridge} up")
    for number, name in enumerate((left, right), start=1):
        sh(f"ip netns add {name}")
        sh(f"ip link add e0 netns {name} type veth peer name p-{name}")
        sh(f"ip link set p-{name} up")
        for command in (*addresses, "link set lo up", "link set e0 up", *routes):
            sh(f"ip -n {name} {command.format(number)}")
    sh(f"ip link set p-{left} master {bridge}")


def late_joiner() -> dict[str, Any]:
    """A node that started cut off is found once the network heals; without the repairs it is not."""
    bridged("br0", "m1", "m2")
    bridged("br1", "m3", "m4")
    repaired = [node(A, "--beat", "0.5", namespace="m1"), node(B, "--beat", "0.5", namespace="m2")]
    plain = [node(A, "--beat", "1000", namespace="m3"), node(B, "--beat", "1000", namespace="m4")]
    await_start(*repaired, *plain)
    started = time.monotonic()
    # A browser asks 0, 1, 5 and 14 s after it began: cut off until after the third, looked at before
    # the fourth.
    cut_off = not finds(repaired[0], B, 5.4) and not finds(repaired[1], A, 0.01)
    for port, bridge in (("p-m2", "br0"), ("p-m4", "br1")):
        sh(f"ip link set {port} master {bridge}")
    # Before the fourth, too.
    both = finds(repaired[0], B, 8) and finds(repaired[1], A, 8)
    time.sleep(max(0.0, started + 8.4 - time.monotonic()))
    unrepaired = finds(plain[0], B, 0.1) or finds(plain[1], A, 0.1)
    in_time = time.monotonic() - started < 13
    return {
        "cut_off": cut_off,
        "found": both,
        "found_without_repair": unrepaired if in_time else None,
    }


def families() -> dict[str, Any]:
    """Where there is only IPv6, nodes find each other by it, and move to IPv4 when that appears."""
    bridged("br0", "m1", "m2", ipv4=False)
    sh("ip link set p-m2 master br0")
    nodes = [node(A, "--beat", "1", namespace="m1"), node(B, "--beat", "1", namespace="m2")]
    ipv6 = nodes[0].wait_for(lambda line: "found" in line and "[fe80::" in line, 60)
    for number, name in enumerate(("m1", "m2"), start=1):
        sh(f"ip -n {name} addr add 10.77.0.{number}/24 dev e0")
        sh(f"ip -n {name} route add 224.0.0.0/4 dev e0")
    ipv4 = nodes[0].wait_for(lambda line: "found" in line and "10.77.0.2" in line, 60)
    return {"ipv6": ipv6, "ipv4": ipv4}


if __name__ == "__main__":
    sh("mount -t tmpfs tmpfs /run")
    Path("/run/netns").mkdir()
    sh("ip link set lo up")
    result = {"avahi": avahi, "late-joiner": late_joiner, "families": families}[sys.argv[1]]()
    print(json.dumps(result), flush=True)  # noqa: T201  the tests read it
    os._exit(0)  # everything else in the namespace ends with this process
