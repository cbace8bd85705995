"""A generation whose node is lost goes on where it stopped: what is kept, and both clients against fake daemons."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import macmesh
from macmesh._addresses import AddressBook
from macmesh._recovery import ANSWER_SECONDS, MOST_TRIES, Recovery, is_loss
from macmesh._targets import parse_target
from macmesh.credentials import Credentials
from macmesh.errors import (
    LocalClosedError,
    LocalDaemonNotRunningError,
    LocalDeadlineError,
    MacmeshError,
    RemoteUnavailableError,
    remote_error,
)
from macmesh.reasons import Reason
from macmesh.testing import FakeDaemon, GenerateScript, ThreadedFakeDaemon
from macmesh.v1 import cluster_pb2, inference_pb2
from macmesh.wire_errors import wire_failure

LOST = remote_error("gone", code="UNAVAILABLE", reason=Reason.CONNECTION_FAILED)
FACTS = inference_pb2.RequestFacts(
    request_id="r1", seed=9, model_id="m", model_digest="d", prompt_token_ids=[4, 5]
)
PEM = b"-----BEGIN CERTIFICATE-----"


def response(index: int, **fields: object) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(index=index, **fields)  # type: ignore[arg-type]


def recovery(seconds: float = 10, ends_at: float = float("inf")) -> Recovery:
    made = Recovery(inference_pb2.GenerateRequest(text="x"), seconds=seconds, ends_at=ends_at)
    made.note(response(0, request=FACTS, text="é", token_ids=[7]))
    made.note(response(1, text="a"))
    made.note(response(2, token_ids=[8]))
    return made


def test_the_next_request_says_what_the_client_has() -> None:
    kept = recovery()
    assert kept.request.tell_prompt_tokens
    retry = kept.after(LOST, 0.0, nodes=1)
    assert retry is not None
    assert retry.pause_seconds == 0
    request = retry.request
    assert list(request.tokens.token_ids) == [4, 5]
    assert not request.HasField("text")
    assert (request.model_id, request.sampling.seed) == ("m", 9)
    assert request.resume == inference_pb2.Resume(
        request_id="r1", attempt=1, token_ids=[7, 8], text_bytes=3, next_index=3, model_digest="d"
    )
    again = kept.after(LOST, 1.0, nodes=1)
    assert again is not None
    assert again.request.resume.attempt == 2


def test_tries_are_bounded_in_time_and_number() -> None:
    kept, now, pauses = recovery(), 100.0, []
    while (retry := kept.after(LOST, now, nodes=2)) is not None:
        pauses.append(retry.pause_seconds)
        now += retry.pause_seconds
    assert pauses[:5] == [0, 0, 0.1, 0.2, 0.4]  # each node is tried once before the first pause
    assert max(pauses) == 2
    assert 108 < now <= 110
    kept, tries = recovery(seconds=1000), 0
    while kept.after(LOST, 0.0, nodes=2) is not None:
        kept.note(response(3, paused=inference_pb2.Paused(reason="NOT_READY")))  # an answer, and no token
        tries += 1
    assert tries == MOST_TRIES
    kept.note(response(4, token_ids=[9]))
    assert kept.after(LOST, 0.0, nodes=2) is not None
    assert recovery(ends_at=5.0).after(LOST, 5.0, nodes=1) is None
    assert recovery(seconds=0).after(LOST, 0.0, nodes=1) is None


def test_a_node_that_was_asked_has_to_answer_soon() -> None:
    kept = recovery(seconds=20)
    assert not kept.is_asking
    kept.after(LOST, 0.0, nodes=1)
    assert kept.is_asking
    assert kept.answer_seconds(0.0) == ANSWER_SECONDS
    assert kept.answer_seconds(15.0) == 5.0
    kept.note(response(3))
    assert not kept.is_asking


def test_what_was_never_begun_is_begun_elsewhere_or_told() -> None:
    kept = Recovery(inference_pb2.GenerateRequest(text="x"), seconds=10)
    assert kept.after(LOST, 0.0, nodes=1) is None
    retry = kept.after(LOST, 0.0, nodes=2)
    assert retry is not None
    assert retry.request is kept.request
    assert kept.after(LOST, 0.0, nodes=2) is None


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (LOST, True),
        (LocalDaemonNotRunningError("no socket"), True),
        (remote_error("x", code="CANCELLED", reason=Reason.CANCELLED), True),
        (remote_error("x", code="INTERNAL", reason=Reason.UNKNOWN), True),
        (remote_error("x", code="UNAVAILABLE", reason=Reason.SHUTTING_DOWN), True),
        (remote_error("x", code="INTERNAL", reason=Reason.INTERNAL), False),
        (remote_error("x", code="UNAVAILABLE", reason=Reason.WORKER_FAILED), False),
        (remote_error("x", code="UNKNOWN", reason=Reason.UNKNOWN), False),
        (LocalDeadlineError("late"), False),
        (LocalClosedError("closed"), False),
    ],
)
def test_what_counts_as_a_loss(error: MacmeshError, loss: bool) -> None:
    assert is_loss(error) is loss


def test_addresses_are_learned_from_the_cluster_and_taken_in_turn() -> None:
    credentials = Credentials(PEM, PEM, PEM, addresses=("10.0.0.1:1", "10.0.0.2:1"))
    book = AddressBook(parse_target(None, credentials))
    status = cluster_pb2.GetStatusResponse()
    for address, liveness in (("10.0.0.4:1", "dead"), ("10.0.0.3:1", "alive"), ("what", "alive")):
        node = status.nodes.add(liveness=liveness)
        node.member.addresses.append(address)
    book.learn(status)
    book.learn(status)
    assert len(book) == 4
    target, seen = parse_target(None, credentials), []
    for _ in range(5):
        target = book.after(target)
        seen.append(target.address.removeprefix("dns:///10.0.0."))
    assert seen == ["2:1", "3:1", "4:1", "1:1", "2:1"]
    assert [book.wants_news(now) for now in (0.0, 59.0, 60.0)] == [True, False, True]


def test_who_has_no_credentials_for_others_knows_no_others() -> None:
    status = cluster_pb2.GetStatusResponse()
    status.nodes.add(liveness="alive").member.addresses.append("10.0.0.3:1")
    one_node = Credentials(PEM, PEM, PEM, server_name="n1.node.macmesh", addresses=("10.0.0.1:1",))
    for target in (parse_target("/nowhere/s"), parse_target(None, one_node)):
        book = AddressBook(target)
        book.learn(status)
        assert (len(book), book.wants_news(0.0), book.after(target)) == (1, False, target)


# Against fake daemons.


@pytest.fixture
def client(threaded: ThreadedFakeDaemon) -> Iterator[macmesh.Client]:
    with macmesh.Client(threaded.target) as client:
        yield client


def resumes(daemon: ThreadedFakeDaemon | FakeDaemon) -> list[inference_pb2.Resume]:
    return [
        request.resume
        for _, request in daemon.calls
        if isinstance(request, inference_pb2.GenerateRequest) and request.HasField("resume")
    ]


def test_a_stream_that_breaks_goes_on_with_nothing_twice(
    threaded: ThreadedFakeDaemon, client: macmesh.Client
) -> None:
    threaded.script.generate = GenerateScript(lost_after=2)
    with client.generate("tell me") as generation:
        chunks = list(generation)
    assert "".join(c.text for c in chunks) == "Once upon a time."
    assert [t for c in chunks for t in c.token_ids] == [100, 101, 102, 103, 104]
    assert generation.facts.finish_reason is macmesh.FinishReason.STOP
    assert [(r.attempt, len(r.token_ids), r.text_bytes) for r in resumes(threaded)] == [(1, 2, 9), (2, 4, 16)]
    assert {r.request_id for r in resumes(threaded)} == {"r1"}
    assert client.complete("x").text == "Once upon a time."


async def test_the_async_stream_goes_on_too(fake: FakeDaemon) -> None:
    fake.script.generate = GenerateScript(lost_after=2)
    async with macmesh.AsyncClient(fake.target) as client:
        done = await client.complete(token_ids=[1, 2])
    assert (done.text, done.token_ids) == ("Once upon a time.", (100, 101, 102, 103, 104))
    [first, _] = [r for _, r in fake.calls if isinstance(r, inference_pb2.GenerateRequest)][-2:]
    assert list(first.tokens.token_ids) == [1, 2]
    assert not first.tell_prompt_tokens


def test_a_daemon_that_starts_again_takes_its_streams_up(socket_file: Path) -> None:
    with macmesh.Client(socket_file) as client:
        with ThreadedFakeDaemon(socket_file) as first:
            first.script.generate = GenerateScript(hold_after=2)
            generation = client.generate("x")
            texts = [next(generation).text, next(generation).text]
        with ThreadedFakeDaemon(socket_file):
            texts += [chunk.text for chunk in generation]
    assert "".join(texts) == "Once upon a time."


async def test_an_async_stream_is_taken_up_by_a_daemon_that_starts_again(socket_file: Path) -> None:
    async with macmesh.AsyncClient(socket_file) as client:
        async with FakeDaemon(socket_file) as first:
            first.script.generate = GenerateScript(hold_after=2)
            generation = client.generate("x")
            texts = [(await anext(generation)).text for _ in range(2)]
        async with FakeDaemon(socket_file):
            texts += [chunk.text async for chunk in generation]
    assert "".join(texts) == "Once upon a time."


def test_a_loss_that_lasts_is_told_in_time(socket_file: Path) -> None:
    with macmesh.Client(socket_file, timeouts=macmesh.Timeouts(generate_resume=0.5)) as client:
        with ThreadedFakeDaemon(socket_file) as daemon:
            daemon.script.generate = GenerateScript(hold_after=1)
            generation = client.generate("x")
            next(generation)
        began = time.monotonic()
        with pytest.raises(MacmeshError) as lost:
            next(generation)
        assert is_loss(lost.value)
        assert time.monotonic() - began < macmesh.Timeouts().generate_resume / 2


def test_a_stream_may_be_closed_while_it_looks_for_a_node(socket_file: Path) -> None:
    with macmesh.Client(socket_file) as client:
        with ThreadedFakeDaemon(socket_file) as daemon:
            daemon.script.generate = GenerateScript(hold_after=1)
            generation = client.generate("x")
            next(generation)
        threading.Timer(0.3, generation.close).start()
        with pytest.raises(LocalClosedError):
            next(generation)


async def test_an_async_stream_may_be_closed_while_it_looks_for_a_node(socket_file: Path) -> None:
    async with macmesh.AsyncClient(socket_file) as client:
        async with FakeDaemon(socket_file) as daemon:
            daemon.script.generate = GenerateScript(hold_after=1)
            generation = client.generate("x")
            await anext(generation)
        looking = asyncio.create_task(anext(generation), name="looking")
        await asyncio.wait({looking}, timeout=0.3)
        await generation.aclose()
        with pytest.raises(LocalClosedError):
            await looking


def test_a_refusal_is_no_loss(threaded: ThreadedFakeDaemon, client: macmesh.Client) -> None:
    threaded.script.generate = GenerateScript(
        fail_after=2, failure=wire_failure(Reason.WORKER_FAILED, "stage 1 ended")
    )
    with pytest.raises(RemoteUnavailableError, match="stage 1 ended"):
        client.complete("x")
    assert not resumes(threaded)


def test_a_node_that_is_silent_is_left_for_another_try(
    threaded: ThreadedFakeDaemon, client: macmesh.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("macmesh._streams.SILENCE_SECONDS", 1.0)
    threaded.script.generate = GenerateScript(hold_after=2)
    generation = client.generate("x")
    texts = [next(generation).text, next(generation).text]
    threaded.script.generate = GenerateScript()
    texts += [chunk.text for chunk in generation]
    assert "".join(texts) == "Once upon a time."
    assert threaded.cancelled.wait(60)
    assert [len(r.token_ids) for r in resumes(threaded)] == [2]
