"""Which transport a plan gets, from facts about cables to the deployment."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from macmesh.reasons import Reason
from macmesh.v1 import cluster_pb2
from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import (
    DeviceList,
    DeviceMatrix,
    DeviceRow,
    Member,
    NodeFacts,
    WantedModel,
)
from macmesh_daemon.config import Config
from macmesh_daemon.node.lane_choice import (
    RdmaLinks,
    TransportChoice,
    choose_transport,
    rdma_links,
    rdma_of,
)
from macmesh_daemon.node.translation import capacities, reserves
from macmesh_daemon.weights.library import Library
from macmesh_daemon.weights.store import ModelStore
from macmesh_placement import Refusal
from macmesh_placement.links import LINK_DEFAULTS
from macmesh_rdma.jaccl.facts import CableEnd, RdmaFacts
from macmesh_rdma.jaccl.pool import jaccl_pool_bytes
from macmesh_rdma.options import LinkOptions
from macmesh_rdma.verbs.facts import PORT_ACTIVE, VerbsFacts, VerbsPort
from macmesh_rdma.verbs.fit import VerbsLimits, registered_bytes

from .test_planning import ProfiledPlanning, view

if TYPE_CHECKING:
    from macmesh_daemon.node.planning import Planning

GB = 10**9
LINKS = LinkOptions()
NO_FAILURES: dict[tuple[frozenset[str], str], str] = {}


def mac(name: str, cables: str, *, host: str = "", build: str = "25C56", refused: str = "") -> Member:
    """A Mac and the Macs that its cables lead to, each named by one letter; a second cable by a second letter."""
    ends = []
    for number, other in enumerate(cables):
        wire = cables[:number].count(other)
        ends.append(CableEnd(f"rdma_en{number + 2}", f"{name}-{other}-{wire}", (f"{other}-{name}-{wire}",)))
    rdma = RdmaFacts(build, "0.32.4", tuple(ends), 10, 100, refused)
    facts = NodeFacts(
        hostname=f"mac-{name}",
        host_id=host or name,
        chip="Apple M3 Ultra",
        ram_bytes=128 * GB,
        usable_bytes=96 * GB,
        bandwidth_gb_per_s=700,
        rdma_json=json.dumps(rdma.to_json()),
    )
    return Member(node_id=name, facts=facts)


TWO = [mac("a", "b"), mac("b", "a")]
THREE = [mac("a", "bc"), mac("b", "ac"), mac("c", "ab")]
RING = [mac("a", "bd"), mac("b", "ac"), mac("c", "bd"), mac("d", "ca")]


def test_a_mesh_and_a_ring_are_taken_with_their_devices() -> None:
    assert choose_transport("auto", TWO) == TransportChoice(
        "jaccl",
        "RDMA over Thunderbolt, a mesh with 1 cable(s) for each pair",
        DeviceMatrix(
            (
                DeviceRow((DeviceList(), DeviceList(("rdma_en2",)))),
                DeviceRow((DeviceList(("rdma_en2",)), DeviceList())),
            )
        ),
    )
    ring = choose_transport("jaccl", RING)
    assert isinstance(ring, TransportChoice)
    assert ring.matrix is not None
    assert ring.matrix.ring
    assert ring.to_json()["devices"] == [
        [[], ["rdma_en2"], [], ["rdma_en3"]],
        [["rdma_en2"], [], ["rdma_en3"], []],
        [[], ["rdma_en2"], [], ["rdma_en3"]],
        [["rdma_en3"], [], ["rdma_en2"], []],
    ]
    # The same Macs with stages in an order that no ring has.
    assert isinstance(choose_transport("jaccl", [RING[i] for i in (0, 2, 1, 3)]), Refusal)


@pytest.mark.parametrize(
    ("stages", "failure", "told"),
    [
        ([TWO[0], mac("b", "")], "", "mac-a/a and mac-b/b have no Thunderbolt cable between them"),
        ([TWO[0], mac("b", "a", build="25D1")], "", "same macOS build (mac-a/a: 25C56, mac-b/b: 25D1)"),
        ([TWO[0], mac("b", "a", refused="RDMA is not enabled")], "", "mac-b/b: RDMA is not enabled"),
        ([*THREE[:2], mac("d", "")], "", "mac-a/a and mac-d/d have no Thunderbolt cable"),
        (TWO, "it hung", "its self-test failed: it hung"),
        ([mac(str(i), "") for i in range(9)], "", "2 to 8 ranks, not 9"),
        ([TWO[0], mac("b", "a", host="a"), mac("c", "")], "", "mac-a/a and mac-b/b are on one machine"),
        ([TWO[0], Member("b", facts=NodeFacts(host_id="b"))], "", "not told of its RDMA devices yet"),
        ([TWO[0], Member("b", facts=NodeFacts(rdma_json="[]"))], "", "cannot be read"),
        ([TWO[0], Member("b", facts=NodeFacts(rdma_json="{"))], "", "cannot be read"),
    ],
)
def test_what_stands_in_the_way_is_the_reason_for_links_or_refuses(
    stages: list[Member], failure: str, told: str
) -> None:
    failures = {"jaccl": failure} if failure else {}
    links = choose_transport("auto", stages, failures)
    assert isinstance(links, TransportChoice)
    assert (links.transport, links.matrix) == ("auto", None)
    assert links.reason.startswith("not jaccl: ")
    assert told in links.reason
    refused = choose_transport("jaccl", stages, failures)
    assert isinstance(refused, Refusal)
    assert told in refused.message


def test_other_transports_are_taken_as_asked_for_or_refused() -> None:
    here = [mac("a", "", host="x"), mac("b", "", host="x")]
    assert choose_transport("auto", TWO[:1]) == TransportChoice("none")
    assert choose_transport("jaccl", TWO[:1]) == TransportChoice("none")
    assert choose_transport("tcp", TWO) == TransportChoice("tcp", "asked for")
    assert choose_transport("shm", here) == TransportChoice("shm", "asked for")
    assert choose_transport("auto", here) == TransportChoice("auto", "all stages are on one machine")
    refused = choose_transport("shm", TWO)
    assert isinstance(refused, Refusal)
    assert "mac-a/a, mac-b/b" in refused.message


def test_cables_become_links_and_a_charge() -> None:
    found = rdma_links("auto", [*THREE, mac("d", "")], NO_FAILURES, LINKS)
    assert [link.node_ids for link in found.links] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert {(link.kind, link.latency_seconds * 1000, link.gb_per_s) for link in found.links} == {
        ("rdma", *LINK_DEFAULTS["rdma"])
    }
    assert found.jaccl_bytes == jaccl_pool_bytes(3, 1)
    double = [mac("a", "bb"), mac("b", "aa")]
    assert rdma_links("jaccl", double, NO_FAILURES, LINKS).jaccl_bytes == jaccl_pool_bytes(2, 2)
    assert rdma_links("tcp", THREE, NO_FAILURES, LINKS) == rdma_links("auto", TWO[:1], NO_FAILURES, LINKS)
    failed = rdma_links("auto", THREE, {(frozenset("ab"), "jaccl"): "it hung"}, LINKS)
    assert [link.node_ids for link in failed.links] == [("a", "c"), ("b", "c")]


def test_the_pool_follows_the_backends_constants() -> None:
    # 2 buffers of each of 8 sizes from 4 KiB are 2,088,960 bytes.
    assert jaccl_pool_bytes(2, 1) == 6 * 2_088_960 + 2 * 524_288
    assert jaccl_pool_bytes(8, 4) == 96 * 2_088_960 + 2 * 524_288


@pytest.mark.parametrize("text", ["null", "7", '{"ends": 3}', "\x00", '{"ends": [], "refused": 1}'])
def test_facts_of_any_form_are_at_worst_a_refusal(text: str) -> None:
    assert rdma_of(Member("x", facts=NodeFacts(rdma_json=text))).refused


class Bench:
    """A planning that answers into a list."""

    def __init__(self, tmp_path: Path, transport: str) -> None:
        unused: Any = None
        self.told: list[ev.Event] = []
        self.planning: Planning = ProfiledPlanning(
            config=Config(data_dir=tmp_path, transport=transport),  # type: ignore[arg-type]
            node_id="a",
            facts=unused,
            peers=unused,
            library=Library(ModelStore(tmp_path / "weights"), tuple, tmp_path),
            hub=unused,
            obstacle=unused,
            provide=unused,
            notify=self.told.append,
        )

    async def compute(self, members: list[Member], *failures: fx.TransportFailure) -> ev.Event:
        wanted = WantedModel(context_tokens=8192, slots=1, objective="balanced")
        await self.planning.compute(fx.ComputePlan(1, wanted, tuple(members), None, failures))
        return self.told.pop()


async def test_a_plan_over_several_macs_is_made_with_jaccl_and_charged_for_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "auto")
    made = await bench.compute(THREE)
    assert isinstance(made, ev.PlanComputed)
    assert made.deployment is not None
    size = len(made.deployment.stages)
    assert size > 1
    assert made.deployment.transport == "jaccl"
    assert made.deployment.device_matrix is not None
    assert len(made.deployment.device_matrix.rows) == size
    for stage in made.deployment.stages:
        assert stage.ledger is not None
        charged = {entry.name: entry.size_bytes for entry in stage.ledger.entries}
        assert charged["transport_pool"] == jaccl_pool_bytes(3, 1)

    failed = [
        fx.TransportFailure(frozenset(pair), "rank 1 sent nothing", "jaccl") for pair in ("ab", "ac", "bc")
    ]
    assert made.deployment.stages[0].node_id in failed[0].node_ids
    elsewhere = await bench.compute(THREE, failed[0])
    assert isinstance(elsewhere, ev.PlanComputed)
    assert elsewhere.deployment is not None
    assert {stage.node_id for stage in elsewhere.deployment.stages} == {"a", "c"}
    assert elsewhere.deployment.transport == "jaccl"

    nowhere = await bench.compute(THREE, *failed)
    assert isinstance(nowhere, ev.PlanComputed)
    assert nowhere.deployment is not None
    assert nowhere.deployment.transport == "auto"
    assert "its self-test failed: mac-" in nowhere.deployment.transport_reason
    assert nowhere.deployment.device_matrix is None


async def test_the_planner_goes_where_the_cables_are(tmp_path: Path) -> None:
    """Of three equal Macs of which two suffice, the two with a cable."""
    roomy = [
        dataclasses.replace(m, facts=dataclasses.replace(m.facts, usable_bytes=120 * GB))  # type: ignore[type-var]
        for m in (mac("a", "c"), mac("b", ""), mac("c", "a"))
    ]
    made = await Bench(tmp_path, "auto").compute(roomy)
    assert isinstance(made, ev.PlanComputed)
    assert made.deployment is not None
    assert {stage.node_id for stage in made.deployment.stages} == {"a", "c"}
    assert made.deployment.transport == "jaccl"


async def test_jaccl_demanded_without_cables_refuses_the_plan_and_the_dry_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "jaccl")
    apart = [mac("a", ""), mac("b", ""), mac("c", "")]
    refused = await bench.compute(apart)
    assert isinstance(refused, ev.PlanRefused)
    assert refused.reason == Reason.TRANSPORT_UNAVAILABLE
    assert "have no Thunderbolt cable between them" in refused.refusal_json

    document = view().document
    assert document is not None
    seen = dataclasses.replace(
        view(),
        document=dataclasses.replace(document, members=tuple(apart)),
        liveness={m.node_id: "alive" for m in apart},
    )
    request = cluster_pb2.PlanModelRequest(model_id="m", context_tokens=8192)
    feasible, text = await bench.planning.dry_run(request, seen)
    assert not feasible
    assert json.loads(text)["kind"] == "transport"
    links_feasible, links = await Bench(tmp_path, "auto").planning.dry_run(request, seen)
    assert links_feasible
    told = json.loads(links)["transport"]
    assert told["transport"] == "auto"
    assert "no Thunderbolt cable" in told["reason"]


LIMITS = VerbsLimits(10, 100, 4095, 4095, 65535, 16773120, 1 << 40, 4096)


def with_verbs(member: Member, *, refused: str = "", quarantined: tuple[tuple[str, str], ...] = ()) -> Member:
    """The same Mac with a verbs library that lists its devices."""
    assert member.facts is not None
    rdma = rdma_of(member)
    ports = tuple(VerbsPort(end.device, 1, PORT_ACTIVE, 1, "::ffff:169.254.1.2") for end in rdma.ends)
    rdma = dataclasses.replace(rdma, verbs=VerbsFacts(ports, LIMITS, quarantined, refused))
    facts = dataclasses.replace(member.facts, rdma_json=json.dumps(rdma.to_json()))
    return dataclasses.replace(member, facts=facts)


def box(name: str, *networks: str, refused: str = "") -> Member:
    """A node that is no Mac, with a device in each network."""
    ports = tuple(
        VerbsPort(f"fake{number}", 1, PORT_ACTIVE, 1, f"::ffff:10.99.{network}.{ord(name)}")
        for number, network in enumerate(networks)
    )
    rdma = RdmaFacts(refused="macOS only", verbs=VerbsFacts(ports, LIMITS, (), refused))
    facts = NodeFacts(hostname=f"box-{name}", host_id="one", rdma_json=json.dumps(rdma.to_json()))
    return Member(node_id=name, facts=facts)


VERBS_TWO = [with_verbs(member) for member in TWO]


def test_links_of_our_own_go_before_jaccl_and_are_compared_with_tcp() -> None:
    chosen = choose_transport("auto", VERBS_TWO)
    assert isinstance(chosen, TransportChoice)
    assert (chosen.transport, chosen.compared) == ("verbs", True)
    assert chosen.reason == "links of our own over RDMA devices, 1 cable(s) for each pair"
    assert chosen.to_json()["devices"] == [[[], ["rdma_en2"]], [["rdma_en2"], []]]
    demanded = choose_transport("verbs", VERBS_TWO)
    assert isinstance(demanded, TransportChoice)
    assert not demanded.compared
    assert isinstance(choose_transport("jaccl", VERBS_TWO), TransportChoice)


@pytest.mark.parametrize(
    ("one", "failures", "told"),
    [
        (VERBS_TWO[0], {"verbs": "rank 1 sent nothing"}, "failed between these nodes: mac-b/b sent nothing"),
        (with_verbs(TWO[0], quarantined=(("b", "it hung"),)), {}, "in quarantine at mac-a/a: it hung"),
        (with_verbs(TWO[0], refused="needs reboot"), {}, "mac-a/a: needs reboot"),
        (TWO[0], {}, "mac-a/a has not told of a verbs library"),
    ],
)
def test_what_stands_in_the_way_of_them_leaves_jaccl_and_refuses_where_they_were_demanded(
    one: Member, failures: dict[str, str], told: str
) -> None:
    stages = [one, VERBS_TWO[1]]
    chosen = choose_transport("auto", stages, failures)
    assert isinstance(chosen, TransportChoice)
    assert chosen.transport == "jaccl"
    assert "; not verbs: " in chosen.reason
    assert told in chosen.reason
    refused = choose_transport("verbs", stages, failures)
    assert isinstance(refused, Refusal)
    assert told in refused.message
    # Where both have failed, TCP is left, and both reasons are told.
    neither = choose_transport("auto", stages, failures | {"jaccl": "it hung"})
    assert isinstance(neither, TransportChoice)
    assert neither.transport == "auto"
    assert "not jaccl: its self-test failed: it hung; not verbs: " in neither.reason


def test_neighbours_need_a_cable_and_where_all_sum_up_everybody_does() -> None:
    line = [box("a", "0"), box("b", "0", "1"), box("c", "1", "2"), box("d", "2", "0")]
    chosen = choose_transport("verbs", line)
    assert isinstance(chosen, TransportChoice)
    assert chosen.to_json()["devices"] == [
        [[], ["fake0"], [], ["fake0"]],
        [["fake0"], [], ["fake1"], []],
        [[], ["fake0"], [], ["fake1"]],
        [["fake1"], [], ["fake0"], []],
    ]
    refused = choose_transport("verbs", line, all_pairs=True)
    assert isinstance(refused, Refusal)
    assert "box-a/a and box-c/c have no RDMA devices with addresses of one network" in refused.message
    # Nobody knows what these devices are cabled to: `auto` leaves them alone, also between machines.
    assert choose_transport("auto", line[:2]) == TransportChoice("auto", "all stages are on one machine")


def test_their_cables_become_links_and_a_charge() -> None:
    double = [with_verbs(mac("a", "bb")), with_verbs(mac("b", "aa"))]
    found = rdma_links("auto", double, NO_FAILURES, LINKS)
    registered = registered_bytes(LINKS, LIMITS, 2)
    assert (found.verbs_bytes, found.jaccl_bytes) == (registered, jaccl_pool_bytes(2, 2))
    own = rdma_links("verbs", double, NO_FAILURES, LINKS)
    assert (own.verbs_bytes, own.jaccl_bytes, len(own.links)) == (registered, 0, 1)
    failed = {(frozenset("ab"), "verbs"): "it hung"}
    assert rdma_links("auto", double, failed, LINKS).verbs_bytes == 0
    assert rdma_links("verbs", double, failed, LINKS) == RdmaLinks()

    nodes = capacities(double)
    assert reserves(5, LINKS, nodes, rdma=own).transport_pool_bytes == 2 * registered
    assert reserves(5, LINKS, nodes, rdma=found).transport_pool_bytes == max(
        2 * registered, found.jaccl_bytes
    )


async def test_a_plan_says_which_devices_and_whether_to_compare(tmp_path: Path) -> None:
    made = await Bench(tmp_path, "auto").compute([with_verbs(member) for member in THREE])
    assert isinstance(made, ev.PlanComputed)
    assert made.deployment is not None
    assert made.deployment.transport == "verbs"
    assert made.deployment.transport_compared
    assert made.deployment.device_matrix is not None
    pairs = [fx.TransportFailure(frozenset(pair), "it hung", "verbs") for pair in ("ab", "ac", "bc")]
    again = await Bench(tmp_path, "auto").compute([with_verbs(member) for member in THREE], *pairs)
    assert isinstance(again, ev.PlanComputed)
    assert again.deployment is not None
    assert again.deployment.transport == "jaccl"
