"""The TXT record of a node: writing our own, reading those of strangers."""

import re
from collections.abc import Mapping
from dataclasses import replace

from macmesh_daemon.discovery.base import Hints, LocalAdvertisementError
from macmesh_daemon.identity import is_node_id

PROTOCOL_VERSION = 1
#: Ours stay below this, so that an announcement fits one packet.
MAX_TXT_BYTES = 400
#: Others' longer ones are ignored.
MAX_FOREIGN_TXT_BYTES = 1024
_MAX_CHIP_LENGTH = 40
_MAX_PORT = 65535
_CLUSTER = re.compile(r"[0-9a-f]{8}")
_HOST = re.compile(r"[0-9a-f]{0,64}")
_COUNT = re.compile(r"[0-9]{1,19}")
_RATE = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")
_MAX_COUNT = (1 << 63) - 1
_STATES = frozenset({"up", "leaving"})


def encode_txt(node_id: str, hints: Hints) -> dict[str, str]:
    """Return the TXT keys and values that advertise a node.

    The chip's name is cut to 40 printable ASCII characters and the bandwidth rounded to a tenth.

    Raises:
        LocalAdvertisementError: Peers would not read a value as it is meant, or all together pass 400 bytes.
    """
    properties = {
        "v": str(hints.protocol_version),
        "id": node_id,
        "cl": hints.cluster_prefix,
        "ram": str(hints.ram_bytes),
        "usable": str(hints.usable_bytes),
        "bw": f"{hints.bandwidth_gb_per_s:.1f}",
        "chip": _clean_chip(hints.chip),
        "host": hints.host_id,
        "inc": str(hints.incarnation),
        "st": hints.state,
        "p": "1" if hints.pairing_open else "0",
    }
    if hints.join_port:
        properties["jp"] = str(hints.join_port)
    size = sum(len(key) + len(value.encode()) + 2 for key, value in properties.items())
    if size > MAX_TXT_BYTES:
        raise LocalAdvertisementError(f"the TXT record takes {size} bytes, more than {MAX_TXT_BYTES}")
    encoded: dict[bytes, bytes | None] = {key.encode(): value.encode() for key, value in properties.items()}
    meant = replace(
        hints,
        chip=properties["chip"],
        bandwidth_gb_per_s=round(hints.bandwidth_gb_per_s, 1),
    )
    if decode_txt(encoded, node_id) != meant:
        raise LocalAdvertisementError(f"peers would not read this TXT record as it is meant: {properties}")
    return properties


def decode_txt(properties: Mapping[bytes, bytes | None], node_id: str) -> Hints | None:
    """Read a stranger's TXT record; None where it is not a macmesh node's or contradicts its own name.

    Anything may be in it: every value is bounded and checked, and a display value that does not fit is
    dropped.

    Args:
        properties: Keys and values as received.
        node_id: The service instance's name, which the record must repeat.
    """
    version = _count(properties.get(b"v"))
    cluster = _text(properties.get(b"cl"))
    if not version or not _CLUSTER.fullmatch(cluster):
        return None
    if not is_node_id(node_id) or _text(properties.get(b"id")) != node_id:
        return None
    state = _text(properties.get(b"st"))
    host = _text(properties.get(b"host"))
    rate = _text(properties.get(b"bw"))
    return Hints(
        protocol_version=version,
        cluster_prefix=cluster,
        ram_bytes=_count(properties.get(b"ram")),
        usable_bytes=_count(properties.get(b"usable")),
        bandwidth_gb_per_s=float(rate) if _RATE.fullmatch(rate) else 0.0,
        chip=_clean_chip(_text(properties.get(b"chip"))),
        host_id=host if _HOST.fullmatch(host) else "",
        incarnation=_count(properties.get(b"inc")),
        state=state if state in _STATES else "up",
        pairing_open=properties.get(b"p") == b"1",
        join_port=_port(properties.get(b"jp")),
    )


def _clean_chip(text: str) -> str:
    # It ends up in terminals and logs: printable ASCII only.
    return "".join(c for c in text if c.isascii() and c.isprintable())[:_MAX_CHIP_LENGTH]


def _text(value: bytes | None) -> str:
    if value is None:
        return ""
    return value.decode("ascii", "replace")


def _port(value: bytes | None) -> int:
    number = _count(value)
    return number if number <= _MAX_PORT else 0


def _count(value: bytes | None) -> int:
    text = _text(value)
    return int(text) if _COUNT.fullmatch(text) and int(text) <= _MAX_COUNT else 0
