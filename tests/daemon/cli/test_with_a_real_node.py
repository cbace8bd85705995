"""The SDK's contract and `daemonctl` against a real node over its real socket."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

import client_contract
from support.mesh import Mesh
from tinymodels import write_tiny_model

pytestmark = pytest.mark.process

DAEMONCTL = str(Path(sys.executable).parent / "daemonctl")


async def daemonctl(*argv: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        DAEMONCTL, *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_node_that_serves_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with Mesh(tmp_path_factory.mktemp("m"), 1) as mesh:
        await mesh.formed()
        node = mesh.nodes[0]
        async with node.client() as client:
            await client_contract.check_idle_daemon(client)
        socket = ("--socket", str(node.config.resolved_socket_path()))
        code, out, err = await daemonctl("status", *socket)
        assert (code, err) == (0, "")
        assert out.startswith("# idle · no model is served")
        assert f"{node.node_id[:8]} " in out
        code, out, err = await daemonctl("generate", "x", "--json", *socket)
        assert code == 1
        assert json.loads(out)["error"]["reason"] == "NO_MODEL_LOADED"
        code, out, err = await daemonctl("load", "/nowhere/at-all", *socket)
        assert (code, out) == (1, "")
        assert "/nowhere/at-all" in err
        odd = write_tiny_model(tmp_path_factory.mktemp("odd"), "qwen3")
        code, out, err = await daemonctl("load", str(odd), "--kv-bits", "8", *socket)
        assert (code, out) == (1, "")
        assert "cannot be of 8 bits: layer 0 caches rows of 16 elements, which groups of 64" in err
