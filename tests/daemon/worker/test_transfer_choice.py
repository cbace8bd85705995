"""Which way the decode steps of a plan take."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bringing_up import in_threads
from macmesh_daemon.engine.handover import ArrayFacts
from macmesh_daemon.supervisor.local_plan import local_plan
from macmesh_daemon.worker.checks import check_start
from macmesh_daemon.worker.errors import LocalStartError, RemoteNeighbourError
from macmesh_daemon.worker.tensor_lane import METAL_WAIT_SECONDS, offer_of, receive_seconds
from macmesh_daemon.worker.transfer_choice import (
    Offer,
    TransferChoice,
    choose_transfers,
    exchange_offers,
)
from macmesh_rdma.testing.memory_host_lane import memory_host_lanes


def offers(asked: str = "auto", *backends: str, **more: object) -> list[Offer]:
    told: dict[str, object] = {"host_id": "one", "payload_bytes": 64, **more}
    return [
        Offer(stage=stage, asked=asked, backend=backend, **told)  # type: ignore[arg-type]
        for stage, backend in enumerate(backends)
    ]


@pytest.mark.parametrize(
    ("backends", "kind", "reason"),
    [
        (("metal", "metal"), "group", "one ahead"),
        (("cuda", "cuda", "cuda"), "cuda", "one ahead"),
        (("cpu", "cpu"), "host", "a CPU gains nothing"),
        (("metal", "cpu"), "group", "one ahead"),
        (("cuda", "cpu"), "host", "others do not"),
    ],
)
def test_the_stages_choose_by_what_they_compute_on(backends: tuple[str, ...], kind: str, reason: str) -> None:
    choice = choose_transfers(offers("auto", *backends))
    assert choice.kind == kind
    assert reason in choice.reason
    assert choose_transfers(offers("host", *backends)) == TransferChoice("host", "asked for")


def test_the_graph_can_be_asked_for_where_it_is_not_chosen() -> None:
    choice = choose_transfers(offers("graph", "cpu", "cpu"))
    assert (choice.kind, choice.name, choice.reason) == ("group", "graph", "asked for")


@pytest.mark.parametrize(
    ("changed", "backend", "problem"),
    [
        ({"payload_bytes": 0}, "metal", "stage 1: what comes in is not known beforehand"),
        ({"refusal": "it has no runtime"}, "cuda", "stage 1: it has no runtime"),
        ({"host_id": "two"}, "cuda", "all stages must be on one machine"),
    ],
)
def test_what_cannot_be_is_refused_where_it_was_asked_for(
    changed: dict[str, object], backend: str, problem: str
) -> None:
    for asked in ("auto", "graph"):
        first, second = offers(asked, backend, backend)
        made = [first, Offer(**{**json.loads(second.encode()), **changed})]
        if asked == "auto":
            choice = choose_transfers(made)
            assert choice.name == "host"
            assert problem in choice.reason
        else:
            with pytest.raises(LocalStartError, match=problem):
                choose_transfers(made)


def test_stages_that_were_asked_for_different_ones_are_refused() -> None:
    mixed = [offers("graph", "cpu")[0], offers("host", "cpu", "cpu")[1]]
    with pytest.raises(LocalStartError, match="stage 0: graph, stage 1: host"):
        choose_transfers(mixed)
    with pytest.raises(LocalStartError, match="this version has auto, host, graph"):
        choose_transfers(offers("quick", "cpu", "cpu"))


@pytest.mark.parametrize("stages", [2, 3, 5])
def test_every_stage_learns_of_all_offers(stages: int) -> None:
    lanes = memory_host_lanes(stages)
    own = [Offer(stage, "auto", "cpu", f"host {stage}", stage) for stage in range(stages)]
    came = in_threads(
        [
            functools.partial(exchange_offers, lanes[stage], own[stage], stages, 20.0)
            for stage in range(stages)
        ]
    )
    assert came == [own] * stages


@given(st.binary(max_size=12) | st.sampled_from([b'{"stage": 1}', b"[1]", b'{"stage": 1, "x": 2}', b"null"]))
def test_what_is_no_offer_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteNeighbourError):
        Offer.decode(data)


def test_an_offer_survives_the_way_and_wrong_types_do_not() -> None:
    offer = Offer(1, "auto", "metal", "host", 12, "no")
    assert Offer.decode(offer.encode()) == offer
    told = json.loads(offer.encode())
    for name, wrong in (("stage", "1"), ("payload_bytes", True), ("backend", 3)):
        with pytest.raises(RemoteNeighbourError, match=name):
            Offer.decode(json.dumps({**told, name: wrong}).encode())


def test_an_offer_out_of_turn_is_refused() -> None:
    lanes = memory_host_lanes(2)
    lanes[1].send_message(0, Offer(0, "auto", "cpu", "x").encode(), 5)
    with pytest.raises(RemoteNeighbourError, match="out of turn"):
        exchange_offers(lanes[0], Offer(0, "auto", "cpu", "x"), 2, 5)


class FakeStage:
    """Knows what comes in, or does not."""

    def __init__(self, facts: list[ArrayFacts] | None, *, is_head: bool = False) -> None:
        self.is_head = is_head
        self._facts = facts

    def payload_facts(self, rows: int, tokens: int) -> list[ArrayFacts] | None:
        assert (rows, tokens) == (8, 1)
        return self._facts


@pytest.mark.parametrize(
    ("stage", "payload_bytes"),
    [
        (FakeStage([ArrayFacts((8, 1), "int32")], is_head=True), 64),
        (FakeStage([ArrayFacts((8, 1, 5), "bfloat16"), ArrayFacts((8, 3), "float32")]), 80 + 96),
        (FakeStage(None), 0),
    ],
)
def test_an_offer_says_how_large_the_largest_payload_is(stage: Any, payload_bytes: int) -> None:
    [start] = local_plan([Path("model")], [], layer_count=2, context_tokens=10, transfers="graph")
    offer = offer_of(start, stage, "metal")
    assert offer == Offer(0, "graph", "metal", "this machine", payload_bytes)


def test_a_gpu_of_metal_waits_less_than_macos_allows() -> None:
    assert receive_seconds(30.0, "metal") == METAL_WAIT_SECONDS < 5
    assert receive_seconds(2.0, "metal") == 2.0
    assert receive_seconds(30.0, "cpu") == receive_seconds(30.0, "cuda") == 30.0


@pytest.mark.parametrize(
    ("transfers", "transport", "problem"),
    [("quick", "auto", "transfers is 'quick'"), ("graph", "jaccl", "need links of our own, not jaccl")],
)
def test_a_start_that_cannot_be_is_refused(transfers: str, transport: str, problem: str) -> None:
    start, _ = local_plan([Path("a"), Path("b")], [1], layer_count=2, context_tokens=10, transfers=transfers)
    start.deployment.transport = transport
    with pytest.raises(LocalStartError, match=problem):
        check_start(start)
