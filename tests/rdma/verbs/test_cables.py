"""Which RDMA devices of two nodes belong together, from what each tells."""

import dataclasses
import json
from typing import Any

import pytest

from macmesh_rdma.jaccl.facts import CableEnd, RdmaFacts
from macmesh_rdma.verbs.cables import verbs_cables
from macmesh_rdma.verbs.facts import PORT_ACTIVE, VerbsFacts, VerbsPort, facts_of
from macmesh_rdma.verbs.fit import VerbsLimits


def port(device: str, gid: str, state: str = PORT_ACTIVE, index: int = 1) -> VerbsPort:
    return VerbsPort(device, 1, state, index if gid else -1, gid)


def node(*ports: VerbsPort, refused: str = "", **other: Any) -> RdmaFacts:
    return RdmaFacts(refused="no macOS", verbs=VerbsFacts(ports, refused=refused), **other)


def cables(here: RdmaFacts, there: RdmaFacts, *, known_only: bool = False) -> object:
    return verbs_cables(here, there, a=0, b=1, known_only=known_only)


ONE = node(port("fake0", "::ffff:10.99.0.1"), port("fake1", "::ffff:10.99.2.1"))
TWO = node(port("fake0", "::ffff:10.99.1.1"), port("fake1", "::ffff:10.99.0.2"))


def test_ports_of_one_network_belong_together() -> None:
    assert cables(ONE, TWO) == (("fake0", "fake1"),)
    assert cables(TWO, ONE) == (("fake1", "fake0"),)
    # InfiniBand has one prefix for all: the n-th goes with the n-th.
    switched = node(port("ib0", "fe80::1"), port("ib1", "fe80::2"))
    assert cables(switched, node(port("ib0", "fe80::3"), port("ib1", "fe80::4"))) == (
        ("ib0", "ib0"),
        ("ib1", "ib1"),
    )


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (RdmaFacts(), "rank 1 has not told of a verbs library"),
        (node(refused="librdma.dylib is missing"), "rank 1: librdma.dylib is missing"),
        (
            node(port("fake0", "::ffff:10.99.0.2", "PORT_DOWN")),
            "fake0 is in state PORT_DOWN, not PORT_ACTIVE",
        ),
        (node(port("fake0", "")), "rank 1: port 1 of fake0 has no GID"),
        (node(port("fake0", "::ffff:10.1.1.1")), "no RDMA devices with addresses of one network"),
        (
            dataclasses.replace(TWO, macos_build="25C56", refused=""),
            "same macOS build, not no macOS and 25C56",
        ),
    ],
)
def test_without_a_pair_of_ports_the_reason_is_told(there: RdmaFacts, told: str) -> None:
    found = cables(ONE, there)
    assert isinstance(found, str)
    assert told in found


def test_what_nobody_knows_to_be_cabled_is_tried_only_where_it_is_asked_for() -> None:
    assert "ask for verbs" in str(cables(ONE, TWO, known_only=True))


def mac(name: str, other: str, *ports: VerbsPort, refused: str = "", build: str = "25C56") -> RdmaFacts:
    ends = (CableEnd("rdma_en2", f"{name}-{other}", (f"{other}-{name}",), refused),)
    return RdmaFacts(build, "0.32.4", ends, verbs=VerbsFacts(ports))


GOOD = port("rdma_en2", "::ffff:169.254.1.2")


def test_on_macs_the_cables_are_those_of_thunderbolt() -> None:
    assert cables(mac("a", "b", GOOD), mac("b", "a", GOOD), known_only=True) == (("rdma_en2", "rdma_en2"),)
    assert "no Thunderbolt cable" in str(cables(mac("a", "b", GOOD), mac("c", "d", GOOD)))
    assert "it is slow" in str(cables(mac("a", "b", GOOD), mac("b", "a", GOOD, refused="it is slow")))
    assert "25C56 and 25D1" in str(cables(mac("a", "b", GOOD), mac("b", "a", GOOD, build="25D1")))
    down = port("rdma_en2", "::ffff:169.254.1.2", "PORT_DOWN")
    assert "have a cable, but port 1 of rdma_en2 is in state PORT_DOWN" in str(
        cables(mac("a", "b", GOOD), mac("b", "a", down))
    )
    assert "the verbs library lists no rdma_en2" in str(
        cables(mac("a", "b", GOOD), mac("b", "a", port("x", "fe80::1")))
    )
    off = dataclasses.replace(mac("b", "a", GOOD), refused="RDMA is not enabled")
    assert "rank 1: RDMA is not enabled" in str(cables(mac("a", "b", GOOD), off))


LIMITS = VerbsLimits(10, 100, 4095, 4095, 65535, 16773120, 1 << 40, 4096)


def listed(
    name: str, gids: list[tuple[int, str]], state: str = PORT_ACTIVE, pairs: int = 10
) -> dict[str, Any]:
    return {
        "name": name,
        "guid": 1,
        "failure": "",
        "limits": dataclasses.asdict(dataclasses.replace(LIMITS, max_queue_pairs=pairs)),
        "ports": [{"number": 1, "state": state, "mtu": 5, "gids": gids}],
    }


def test_the_address_for_ipv4_is_taken_with_its_index_else_the_first() -> None:
    found = facts_of(
        [
            listed("b", [(0, "fe80::1"), (3, "::ffff:169.254.7.1")], pairs=3),
            listed("a", [(2, "fe80::9")]),
            listed("c", []),
        ]
    )
    assert [(p.device, p.gid_index, p.gid) for p in found.ports] == [
        ("a", 2, "fe80::9"),
        ("b", 3, "::ffff:169.254.7.1"),
        ("c", -1, ""),
    ]
    assert found.limits == dataclasses.replace(LIMITS, max_queue_pairs=3)
    assert "lists no RDMA device" in facts_of([]).refused


def test_a_device_that_cannot_be_opened_tells_why() -> None:
    broken = listed("a", []) | {"failure": "opening it: errno 16", "ports": [], "limits": {}}
    found = facts_of([broken, listed("b", [(1, "fe80::1")]), listed("c", []) | {"ports": []}])
    assert [p.refused for p in found.ports] == [
        "a cannot be used: opening it: errno 16",
        "",
        "c cannot be used: it has no port",
    ]
    assert found.limits == LIMITS


def test_facts_travel_as_json_also_to_and_from_those_that_do_not_know_them() -> None:
    told = dataclasses.replace(ONE.verbs, limits=LIMITS, quarantined=(("n1", "it hung"),))
    facts = dataclasses.replace(ONE, verbs=told)
    assert RdmaFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert facts.verbs.quarantine_of("n1") == "it hung"
    assert facts.verbs.quarantine_of("n2") == ""
    old = {key: value for key, value in facts.to_json().items() if key != "verbs"}
    assert not RdmaFacts.from_json(old).verbs.is_told
    with pytest.raises(ValueError, match="no facts of a verbs library"):
        RdmaFacts.from_json(facts.to_json() | {"verbs": {"ports": 3}})
