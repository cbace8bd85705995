"""The commands for tokens, joining, eviction and clients, against a real node."""

import asyncio
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from macmesh import AsyncClient, MacmeshError
from macmesh.reasons import Reason
from macmesh_daemon.cli.daemonctl import main
from macmesh_daemon.identity import init_cluster, load_credentials, provision_node
from support.mesh import Mesh

from .conftest import Run

Command = Callable[..., Any]


async def call(*argv: str) -> int:
    """Run a command beside the node, which needs this thread."""
    return await asyncio.to_thread(main, list(argv))


async def test_from_a_token_to_a_member_to_an_outcast(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed() -> dict[str, Any]:
        value: dict[str, Any] = json.loads(capsys.readouterr().out)
        return value

    async with Mesh(tmp_path, 1, join_quiet_seconds=0.1) as mesh:
        await mesh.formed()
        monkeypatch.setenv("MACMESH_SOCKET", str(mesh.nodes[0].config.resolved_socket_path()))
        assert await call("cluster", "token", "--ttl", "5m", "--json") == 0
        token = printed()
        assert await call("cluster", "token", "list", "--json") == 0
        listed = printed()["tokens"]
        assert [(t["token_id"], t["state"], t["uses"]) for t in listed] == [(token["token_id"], "live", 1)]
        assert token["token"].rpartition(".")[2] not in json.dumps(listed)

        new = tmp_path / "new"
        joining = (
            "cluster",
            "join",
            token["token"],
            "--address",
            token["addresses"][0],
            "--data-dir",
            str(new),
        )
        assert await call(*joining, "--json") == 0
        joined = printed()
        assert joined["node_id"] == load_credentials(new).node_id
        assert not joined["renewed"]
        assert await call("cluster", "token", "list") == 0
        assert "spent   1/1" in capsys.readouterr().out
        assert await call("cluster", "token", "revoke", token["token_id"]) == 0
        capsys.readouterr()
        other = tmp_path / "other"
        assert await call(*joining[:-1], str(other), "--timeout", "0", "--json") in {1, 75}
        assert not (other / "cluster.json").exists()
        capsys.readouterr()

        # The machine has never been seen yet, so it is no member; the cluster can shut out only whom it knows.
        assert await call("cluster", "members", "--json") == 0
        assert [m["node_id"] for m in printed()["members"]] == [mesh.nodes[0].node_id]
        assert await call("cluster", "evict", joined["node_id"][:8], "--json") == 1
        assert printed()["error"]["reason"] == "NOT_FOUND"


async def test_credentials_for_a_program_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Mesh(tmp_path, 1) as mesh:
        await mesh.formed()
        monkeypatch.setenv("MACMESH_SOCKET", str(mesh.nodes[0].config.resolved_socket_path()))
        path = tmp_path / "laptop.json"
        issue = ("client", "issue", "laptop", "--role", "observer", "--days", "7", "--output", str(path))
        assert await call(*issue) == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await call(*issue) == 1
        assert "already" in capsys.readouterr().err
        async with AsyncClient(credentials=path) as client:
            assert (await client.status()).has_quorum
            assert await call("client", "list") == 0
            assert "laptop" in capsys.readouterr().out
            assert await call("client", "revoke", "nobody") == 1
            assert await call("client", "revoke", "laptop") == 0
            with pytest.raises(MacmeshError) as refused:
                await client.status()
            assert refused.value.reason == Reason.EVICTED
        capsys.readouterr()
        assert await call("client", "list") == 0
        assert "revoked" in capsys.readouterr().out


def test_the_ca_moves_from_node_to_node(run: Run, tmp_path: Path) -> None:
    ca = init_cluster(tmp_path / "a")
    provision_node(tmp_path / "b", ca)
    (tmp_path / "secret").write_text("correct horse battery\n")
    shared = ("--passphrase-file", str(tmp_path / "secret"), "--data-dir")
    copy = tmp_path / "cluster.ca"
    assert run("cluster", "ca", "export", str(copy), *shared, str(tmp_path / "b")).code == 1
    assert run("cluster", "ca", "export", str(copy), *shared, str(tmp_path / "a")).code == 0
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert run("cluster", "ca", "import", str(copy), *shared, str(tmp_path / "b")).code == 0
    assert (tmp_path / "b" / "ca.key").read_bytes() == (tmp_path / "a" / "ca.key").read_bytes()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("join", "mm1.x"), "no join token"),
        (("join", "mm1.x", "--json"), "no join token"),
        (("token", "--ttl", "1y"), "is no time"),
        (("token", "revoke"), "takes the id"),
        (("token", "list", "abc"), "takes the id"),
    ],
)
def test_wrong_usage(run: Run, argv: tuple[str, ...], said: str, tmp_path: Path) -> None:
    extra = ("--data-dir", str(tmp_path)) if argv[0] == "join" else ()
    outcome = run("cluster", *argv, *extra)
    assert outcome.code == 2
    assert said in outcome.err


def test_a_token_for_an_address_where_nobody_answers(run: Run, tmp_path: Path) -> None:
    token = f"mm1.{'ab' * 32}.{'a' * 26}.{'b' * 10}.{'c' * 32}"
    outcome = run(
        "cluster", "join", token, "--address", "127.0.0.1:1", "--data-dir", str(tmp_path), "--timeout", "0"
    )
    assert outcome.code == 75
    assert "c" * 32 not in outcome.err + outcome.out


async def test_one_of_three_goes_on_by_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Mesh(tmp_path, 3) as mesh:
        await mesh.formed()
        survivor, *lost = mesh.nodes
        monkeypatch.setenv("MACMESH_SOCKET", str(survivor.config.resolved_socket_path()))
        assert await call("cluster", "recover") == 2
        assert "--force-quorum" in capsys.readouterr().err
        # The cluster is well: nothing is to recover.
        assert await call("cluster", "recover", "--force-quorum", "--json") == 1
        assert json.loads(capsys.readouterr().out)["error"]["reason"] == "INVALID_ARGUMENT"
        for node in lost:
            await node.crash()
        await mesh.until(survivor, lambda s: not s.has_quorum, "without a quorum")
        assert await call("cluster", "recover", "--force-quorum", "--json") == 0
        generation = json.loads(capsys.readouterr().out)["generation"]
        assert generation > 1
        alone = await mesh.until(survivor, lambda s: s.has_quorum, "with a quorum of its own")
        assert alone.coordinator_node_id == survivor.node_id
        # Those that come back rejoin under the new generation.
        await lost[0].start()
        await mesh.until(
            lost[0],
            lambda s: s.has_quorum and s.coordinator_node_id == survivor.node_id,
            "back in the new generation",
        )
