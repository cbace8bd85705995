from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.discovery import Hints, LocalAdvertisementError
from macmesh_daemon.discovery.txt import MAX_TXT_BYTES, decode_txt, encode_txt

NODE = "abcdefghijklmnopqrstuvwxyz"
HINTS = Hints(
    protocol_version=1,
    cluster_prefix="0123abcd",
    ram_bytes=137438953472,
    usable_bytes=103079215104,
    bandwidth_gb_per_s=546.5,
    chip="Apple M4 Max",
    host_id="f" * 32,
    incarnation=17,
    state="up",
    pairing_open=True,
)


def raw(properties: dict[str, str]) -> dict[bytes, bytes | None]:
    return {key.encode(): value.encode() for key, value in properties.items()}


def test_a_node_reads_what_a_node_writes() -> None:
    properties = encode_txt(NODE, HINTS)
    assert set(properties) == {"v", "id", "cl", "ram", "usable", "bw", "chip", "host", "inc", "st", "p"}
    assert decode_txt(raw(properties), NODE) == HINTS


hints = st.builds(
    Hints,
    protocol_version=st.integers(1, 2**31),
    cluster_prefix=st.text("0123456789abcdef", min_size=8, max_size=8),
    ram_bytes=st.integers(0, 2**63 - 1),
    usable_bytes=st.integers(0, 2**63 - 1),
    bandwidth_gb_per_s=st.integers(0, 999_999).map(float),
    chip=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    host_id=st.text("0123456789abcdef", max_size=32),
    incarnation=st.integers(0, 2**63 - 1),
    state=st.sampled_from(["up", "leaving"]),
    pairing_open=st.booleans(),
)


@given(hints)
def test_every_advertisement_survives_the_way_and_fits(given_hints: Hints) -> None:
    properties = encode_txt(NODE, given_hints)
    assert sum(len(key) + len(value) + 2 for key, value in properties.items()) < MAX_TXT_BYTES
    assert decode_txt(raw(properties), NODE) == given_hints


keys = st.sampled_from(
    [b"v", b"id", b"cl", b"ram", b"usable", b"bw", b"chip", b"host", b"inc", b"st", b"p", b"?"]
)


@given(st.dictionaries(keys, st.none() | st.binary(max_size=300)), st.booleans())
def test_whatever_strangers_send_is_bounded(properties: dict[bytes, bytes | None], plausible: bool) -> None:
    if plausible:
        properties |= {b"v": b"1", b"id": NODE.encode(), b"cl": b"0123abcd"}
    found = decode_txt(properties, NODE)
    assert (found is not None) == plausible or properties.get(b"id") == NODE.encode()
    if found is not None:
        assert 0 <= found.ram_bytes < 1 << 63
        assert 0 <= found.usable_bytes < 1 << 63
        assert 0 <= found.incarnation < 1 << 63
        assert 0 <= found.bandwidth_gb_per_s < 1e6
        assert len(found.chip) <= 40
        assert found.chip.isascii()
        assert found.chip.isprintable() or not found.chip
        assert len(found.host_id) <= 64
        assert found.state in {"up", "leaving"}


@pytest.mark.parametrize(
    "change",
    [
        {"id": "b" * 26},
        {"id": NODE.upper()},
        {"cl": "0123"},
        {"cl": "0123ABCD"},
        {"v": "0"},
        {"v": "-1"},
        {"v": ""},
    ],
)
def test_a_record_that_contradicts_its_name_or_format_is_nobodys(change: dict[str, str]) -> None:
    assert decode_txt(raw(encode_txt(NODE, HINTS) | change), NODE) is None


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [("ram", "9" * 25, "ram_bytes"), ("usable", "1e9", "usable_bytes"), ("bw", "nan", "bandwidth_gb_per_s")],
)
def test_a_display_value_that_does_not_fit_is_left_out(key: str, value: str, field: str) -> None:
    found = decode_txt(raw(encode_txt(NODE, HINTS) | {key: value}), NODE)
    assert found == replace(HINTS, **{field: 0})  # type: ignore[arg-type]  # one of them


@pytest.mark.parametrize("wrong", [{"host_id": "x" * 500}, {"cluster_prefix": "nonsense"}, {"host_id": "G"}])
def test_what_peers_would_not_read_as_meant_is_not_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(LocalAdvertisementError):
        encode_txt(NODE, replace(HINTS, **wrong))
