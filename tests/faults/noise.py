"""Puts invented nodes on the network by multicast DNS: ``python -m faults.noise CLUSTER NAMES SECONDS [ADDRESS]``.

The names are of the right form, their cluster is the given one, and the address is one at which nobody answers.
Prints a line when it begins.
"""

from __future__ import annotations

import random
import socket
import sys
import time

from zeroconf import (  # type: ignore[attr-defined]  # it has them, but lists them in no __all__
    DNSAddress,
    DNSOutgoing,
    DNSPointer,
    DNSService,
    DNSText,
)

_TYPE = "_macmesh._tcp.local."
_GROUP, _PORT = "224.0.0.251", 5353
_RESPONSE = 0x8400  # a response, authoritative
_IN, _UNIQUE, _TTL = 1, 0x8001, 4500
_A, _PTR, _TXT, _SRV = 1, 12, 16, 33
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def announcement(node_id: str, cluster: str, address: str) -> bytes:
    """One packet that announces a node."""
    name, host = f"{node_id}.{_TYPE}", f"{node_id}.local."
    values = ("v=1", f"id={node_id}", f"cl={cluster}", "ram=1", "usable=1", "bw=1.0", "inc=1", "st=up", "p=0")
    text = b"".join(bytes([len(value)]) + value.encode() for value in values)
    packet = DNSOutgoing(_RESPONSE)
    packet.add_answer_at_time(DNSPointer(_TYPE, _PTR, _IN, _TTL, name), 0)
    packet.add_answer_at_time(DNSService(name, _SRV, _UNIQUE, _TTL, 0, 0, 27450, host), 0)
    packet.add_answer_at_time(DNSText(name, _TXT, _UNIQUE, _TTL, text), 0)
    packet.add_answer_at_time(DNSAddress(host, _A, _UNIQUE, _TTL, socket.inet_aton(address)), 0)
    return bytes(packet.packets()[0])


def main() -> None:
    """Announce them all, evenly over the time."""
    cluster, names, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    address = sys.argv[4] if len(sys.argv) > 4 else ""
    rng = random.Random(names)  # noqa: S311  names of the same run are the same
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    out.bind(("", _PORT))
    sys.stdout.write("announcing\n")
    sys.stdout.flush()
    began = time.monotonic()
    for number in range(names):
        node_id = "".join(rng.choices(_ALPHABET, k=26))
        where = address or f"10.77.0.{100 + number % 100}"
        out.sendto(announcement(node_id, cluster, where), (_GROUP, _PORT))
        time.sleep(max(0.0, began + seconds * (number + 1) / names - time.monotonic()))


if __name__ == "__main__":
    main()
