"""Requests on real nodes whose workers and nodes are lost: their streams go on."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal

import grpc
import pytest

from macmesh import AsyncClient, MacmeshError, Paused
from macmesh.reasons import Reason
from macmesh.types import epoch_text
from macmesh.v1 import inference_pb2, inference_pb2_grpc
from macmesh_daemon.demo.sizing import demo_reserves, usable_bytes_for
from macmesh_daemon.eventlog import Kind
from macmesh_daemon.eventlog.reader import read_logs
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.supervisor.testing import FakeWorker, fake_token
from support.clients import issue_client
from support.mesh import RESERVE_BYTES, Mesh, MeshNode, profile_demo_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from macmesh import GenerateChunk

MODEL = str(demo_model_folder())
PROMPT = [1, 2, 3]


class Tokens(asyncio.Event):
    """Lets so many tokens through and then none."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    async def wait(self) -> Literal[True]:
        if not self.left:
            await super().wait()
        self.left -= 1
        return True


def truth(count: int) -> list[int]:
    return [fake_token(PROMPT, i) for i in range(count)]


def stalls_after(node: MeshNode, count: int) -> None:
    """The node's first worker generates so many tokens; those after it generate all."""
    node.make_worker = lambda: FakeWorker(gate=None if node.workers else Tokens(count))


async def take(chunks: AsyncIterator[GenerateChunk], count: int) -> list[GenerateChunk]:
    """Chunks until so many tokens came."""
    taken: list[GenerateChunk] = []
    while sum(len(chunk.token_ids) for chunk in taken) < count:
        taken.append(await anext(chunks))
    return taken


async def test_a_stream_outlives_its_worker(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1) as mesh:
        [node] = mesh.nodes
        stalls_after(node, 5)
        await mesh.formed()
        async with node.client() as client:
            await client.load(MODEL, context_tokens=256)
            async with aclosing(client.generate(token_ids=PROMPT, max_tokens=20, ignore_eos=True)) as stream:
                chunks = await take(stream, 5)
                node.workers[0].die()
                chunks += [chunk async for chunk in stream]
        assert tokens_of(chunks) == truth(20)
        paused = [chunk.paused for chunk in chunks if chunk.paused is not None]
        assert paused[0].reason == Reason.WORKER_FAILED
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 20
        assert len(node.workers) == 2
        replay = next(
            c.submit.request for c in node.workers[1].commands if c.WhichOneof("command") == "submit"
        )
        assert list(replay.generated_token_ids) == truth(5)
        records = await asyncio.to_thread(read_logs, [node.config.data_dir])
        runs = [r for r in records if r.kind == Kind.RUN_ASKED]
        assert (runs[0].facts["first"], runs[-1].facts["first"]) == (0, 5)
        assert any(r.kind == Kind.RUN_LOST for r in records)


async def take_all(chunks: AsyncIterator[GenerateChunk]) -> list[GenerateChunk]:
    return [chunk async for chunk in chunks]


async def take_into(taken: list[GenerateChunk], chunks: AsyncIterator[GenerateChunk]) -> None:
    """All chunks, and those before an error."""
    async for chunk in chunks:
        taken.append(chunk)  # noqa: PERF401  a comprehension would lose what came before the error


def tokens_of(chunks: list[GenerateChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


async def test_requests_are_replayed_oldest_first_and_new_ones_wait_for_the_plan(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1) as mesh:
        [node] = mesh.nodes
        stalls_after(node, 0)
        await mesh.formed()
        async with node.client() as client, asyncio.TaskGroup() as group:
            await client.load(MODEL, context_tokens=256)
            tasks = []
            for first in (5, 6, 7):
                ask = client.complete(token_ids=[first], max_tokens=4, ignore_eos=True)
                tasks.append(group.create_task(ask))
                await mesh.until(node, lambda s: s.waiting_requests == len(tasks), "taken")
            node.workers[0].die()
            ask = client.complete(token_ids=[8], max_tokens=4, ignore_eos=True)
            tasks.append(group.create_task(ask))
        assert [task.result().token_ids for task in tasks] == [
            tuple(fake_token([first], i) for i in range(4)) for first in (5, 6, 7, 8)
        ]
        submitted = [
            c.submit.request.prompt_token_ids[0]
            for c in node.workers[-1].commands
            if c.WhichOneof("command") == "submit"
        ]
        assert submitted[:3] == [5, 6, 7]


async def test_patience_ends_with_what_is_missing(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1, request_patience_seconds=1.0) as mesh:
        [node] = mesh.nodes
        node.make_worker = lambda: FakeWorker(
            gate=Tokens(3), load_error="the disk is gone" if node.workers else ""
        )
        await mesh.formed()
        async with node.client() as client:
            await client.load(MODEL, context_tokens=256)
            stream = client.generate(token_ids=PROMPT, max_tokens=20, ignore_eos=True)
            chunks = await take(stream, 3)
            node.workers[0].die()
            with pytest.raises(MacmeshError, match="has waited 1 s") as ended:
                await take(stream, 1)
            assert tokens_of(chunks) == truth(3)
            assert ended.value.reason in {Reason.NOT_READY, Reason.DOES_NOT_FIT, Reason.EPOCH_CHANGED}
            # It came while a model is wanted: it waits as long, too.
            with pytest.raises(MacmeshError, match="has waited 1 s"):
                await client.complete(token_ids=PROMPT, max_tokens=2)
            await client.unload()
            with pytest.raises(MacmeshError) as nothing:
                await client.complete(token_ids=PROMPT, max_tokens=2)
            assert nothing.value.reason == Reason.NO_MODEL_LOADED


async def test_a_cluster_made_too_small_tells_those_who_wait_what_is_missing(tmp_path: Path) -> None:
    usable = usable_bytes_for(await profile_demo_model(), 3, 256, demo_reserves(RESERVE_BYTES))
    async with Mesh(tmp_path, 3, usable_bytes=usable, request_patience_seconds=2.0) as mesh:
        status = await mesh.formed()
        asked, victim = (n for n in mesh.nodes if n is not mesh.coordinator(status))
        async with asked.client() as client:
            loaded = await client.load(MODEL, context_tokens=256)
            await victim.crash()
            status = await mesh.until(asked, lambda s: s.serving_state == "refused", "too small")
            assert epoch_text(status.document.plan.epoch) == loaded.epoch, "the last plan still stands"
            missing = json.loads(status.refusal_json)["message"]
            chunks: list[GenerateChunk] = []
            with pytest.raises(MacmeshError, match="has waited 2 s") as ended:
                await take_into(chunks, client.generate(token_ids=PROMPT, max_tokens=4))
            assert chunks[-1].paused == Paused(Reason.DOES_NOT_FIT, missing)
            assert ended.value.reason == Reason.DOES_NOT_FIT
            assert missing in str(ended.value)


async def test_a_model_that_is_unloaded_ends_its_requests(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1) as mesh:
        [node] = mesh.nodes
        stalls_after(node, 2)
        await mesh.formed()
        async with node.client() as client:
            await client.load(MODEL, context_tokens=256)
            stream = client.generate(token_ids=PROMPT, max_tokens=20, ignore_eos=True)
            await take(stream, 2)
            await client.unload()
            with pytest.raises(MacmeshError) as ended:
                await take(stream, 1)
            assert ended.value.reason == Reason.NO_MODEL_LOADED


async def test_a_request_is_taken_up_at_another_node_where_its_client_lost_it(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 2) as mesh:
        await mesh.formed()
        first, second = mesh.nodes
        async with first.client() as client:
            await client.load(MODEL, context_tokens=256)
            await mesh.until(second, lambda s: s.serving_state == "ready", "told ready")
            ask = inference_pb2.GenerateRequest(
                tokens=inference_pb2.TokenPrompt(token_ids=PROMPT),
                max_tokens=40,
                ignore_eos=True,
                tell_prompt_tokens=True,
            )
            whole = await responses(first, ask)
            text = "".join(response.text for response in whole)
            stop = text[17:19]
            ask.stop.append(stop)
            with_stop = await responses(first, ask)
        facts = with_stop[0].request
        assert list(facts.prompt_token_ids) == PROMPT
        for cut in (1, 7, len(with_stop) - 1):
            had = with_stop[:cut]
            ask.sampling.seed = facts.seed
            ask.resume.CopyFrom(
                inference_pb2.Resume(
                    request_id=facts.request_id,
                    attempt=cut,
                    token_ids=[t for r in had for t in r.token_ids],
                    text_bytes=len("".join(r.text for r in had).encode()),
                    next_index=cut,
                    model_digest=facts.model_digest,
                )
            )
            answer, *rest = await responses(second, ask)
            assert answer.request.request_id == facts.request_id
            assert [r.index for r in (answer, *rest)] == list(range(cut, len(with_stop) + 1))
            for ours, theirs in zip(rest, with_stop[cut:], strict=True):
                assert (ours.text, list(ours.token_ids)) == (theirs.text, list(theirs.token_ids))
                assert ours.finish_reason == theirs.finish_reason
            assert rest[-1].usage.completion_tokens == with_stop[-1].usage.completion_tokens
        # A part of the last text did not arrive.
        ask.resume.text_bytes -= 1
        ask.resume.attempt += 1
        again = await responses(second, ask)
        assert again[0].text == "".join(response.text for response in had)[-1:]
        for wrong in ({"text_bytes": 999}, {"attempt": 0}, {"request_id": "../x"}, {"token_ids": [9999]}):
            bad = inference_pb2.GenerateRequest()
            bad.CopyFrom(ask)
            bad.resume.CopyFrom(inference_pb2.Resume(**{**fields_of(ask.resume), **wrong}))  # type: ignore[arg-type]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await responses(second, bad)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        ask.resume.model_digest = "another"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await responses(second, ask)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def fields_of(resume: inference_pb2.Resume) -> dict[str, object]:
    return {field.name: value for field, value in resume.ListFields()}


async def responses(
    node: MeshNode, ask: inference_pb2.GenerateRequest
) -> list[inference_pb2.GenerateResponse]:
    async with grpc.aio.insecure_channel(f"unix:{node.config.resolved_socket_path()}") as channel:
        stub: inference_pb2_grpc.InferenceServiceAsyncStub = inference_pb2_grpc.InferenceServiceStub(channel)
        return [response async for response in stub.Generate(ask, timeout=120)]


async def test_a_stream_outlives_the_node_of_its_head(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 3) as mesh:
        await mesh.formed()
        for node in mesh.nodes:
            stalls_after(node, 4)
        async with mesh.nodes[0].client() as client:
            loaded = await client.load(MODEL, context_tokens=256)
        assert loaded.deployment is not None
        head = next(n for n in mesh.nodes if n.node_id == loaded.deployment.stages[0].node_id)
        other = next(n for n in mesh.nodes if n is not head)
        for node in mesh.nodes:
            node.make_worker = FakeWorker
        await mesh.until(other, lambda s: s.serving_state == "ready", "told ready")
        async with other.client() as client:
            stream = client.generate(token_ids=PROMPT, max_tokens=12, ignore_eos=True)
            chunks = await take(stream, 4)
            await head.crash()
            chunks += await take_all(stream)
        assert tokens_of(chunks) == truth(12)
        epochs = [chunk.request.epoch for chunk in chunks if chunk.request is not None]
        assert epochs == [loaded.epoch]


async def test_the_client_goes_to_another_node_where_its_own_is_lost(tmp_path: Path) -> None:
    """The SDK knows one address, learns the others from the cluster, and loses that one."""
    async with Mesh(tmp_path, 2) as mesh:
        founder, other = mesh.nodes
        gates = {node.node_id: Tokens(6) for node in mesh.nodes}
        for node in mesh.nodes:
            node.make_worker = lambda node=node: FakeWorker(gate=gates[node.node_id])  # type: ignore[misc]
        await mesh.formed()
        async with founder.client() as client:
            loaded = await client.load(MODEL, context_tokens=256, stage_count=1)
        assert loaded.deployment is not None
        head = next(n for n in mesh.nodes if n.node_id == loaded.deployment.stages[0].node_id)
        api = other if head is founder else founder
        await mesh.until(api, lambda s: s.serving_state == "ready", "told ready")
        credentials = await issue_client(founder.config.resolved_socket_path(), "user", [api.address])
        async with AsyncClient(credentials=credentials) as client:
            await client.status()
            stream = client.generate(token_ids=PROMPT, max_tokens=15, ignore_eos=True)
            chunks = await take(stream, 6)
            await api.crash()
            gates[head.node_id].left = 100
            gates[head.node_id].set()
            chunks += await take_all(stream)
        assert tokens_of(chunks) == truth(15)
        submitted = [
            c.submit.request for c in head.workers[-1].commands if c.WhichOneof("command") == "submit"
        ]
        assert [len(run.generated_token_ids) for run in submitted] == [0, 6]
        records = await asyncio.to_thread(read_logs, [head.config.data_dir])
        [accepted] = [r for r in records if r.kind == Kind.ACCEPTED]
        assert (accepted.facts["resumed_from"], accepted.facts["attempt"]) == (6, 1)
