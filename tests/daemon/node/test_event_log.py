"""What a real node leaves on record when it stops in the middle of a request."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal

import pytest

from macmesh import MacmeshError, Timeouts
from macmesh_daemon.eventlog import Kind
from macmesh_daemon.eventlog.reader import read_logs
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.supervisor.testing import FakeWorker
from support.mesh import Mesh, check_logs

if TYPE_CHECKING:
    from pathlib import Path


class OneByOne(asyncio.Event):
    """Lets one through each time it is set."""

    async def wait(self) -> Literal[True]:
        await super().wait()
        self.clear()
        return True


async def test_a_request_in_flight_ends_on_record_when_its_node_stops(tmp_path: Path) -> None:
    async with Mesh(tmp_path, 1) as mesh:
        [node] = mesh.nodes
        gate = OneByOne()
        node.make_worker = lambda: FakeWorker(gate=gate)
        await mesh.formed()
        async with node.client(Timeouts(generate_resume=0)) as client:
            await client.load(str(demo_model_folder()), context_tokens=256)
            async with aclosing(
                client.generate(token_ids=[1, 2, 3], max_tokens=50, ignore_eos=True)
            ) as stream:
                gate.set()
                await anext(stream)
                stopping = asyncio.create_task(node.end())
                with pytest.raises(MacmeshError):
                    async for _ in stream:
                        pass
                await stopping
        verdict = await asyncio.to_thread(check_logs, [node.config.data_dir])
        assert verdict.requests == 1
        ends = {Kind.FINISHED, Kind.CANCELLED, Kind.FAILED}
        records = await asyncio.to_thread(read_logs, [node.config.data_dir])
        [end] = [record for record in records if record.kind in ends]
        assert end.kind in {Kind.CANCELLED, Kind.FAILED}
        assert records[-1].kind == Kind.ENDED
