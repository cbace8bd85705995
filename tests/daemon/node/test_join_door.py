"""Joining over real sockets: who gets in, who does not, and who never hears the secret."""

from __future__ import annotations

import asyncio
import json
import ssl
import stat
import time
from typing import TYPE_CHECKING

import pytest

from macmesh.v1 import join_pb2
from macmesh_daemon.identity import (
    LocalClusterExistsError,
    RemoteJoinRefusedError,
    RemoteUnreachableError,
    RemoteUntrustedError,
    init_cluster,
    load_credentials,
    load_or_create_identity,
    make_certificate_request,
)
from macmesh_daemon.identity.tokens import JoinToken
from macmesh_daemon.node.issuer import Issuer
from macmesh_daemon.node.join_client import join_cluster
from macmesh_daemon.node.join_door import DoorLimits
from support.doors import HOST, Thief, open_cluster

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_machine_joins_with_its_own_key(tmp_path: Path) -> None:
    async with open_cluster(tmp_path / "founder") as cluster:
        token = await cluster.token()
        machine = tmp_path / "machine"
        node_id = load_or_create_identity(machine).node_id
        joined = await join_cluster(machine, token, [f"{HOST}:1", cluster.address])
        assert joined.credentials == load_credentials(machine)
        assert joined.credentials.node_id == node_id
        assert joined.credentials.cluster_hash == token.cluster_hash
        assert not joined.credentials.founder
        assert not (machine / "ca.key").exists()
        # It finds the cluster without multicast.
        peers = json.loads((machine / "peers.json").read_text())["peers"]
        assert peers == [{"node_id": cluster.credentials.current.node_id, "addresses": ["127.0.0.1:27450"]}]
        assert (await cluster.issuer.tokens()).records[0].admitted == (node_id,)


async def test_the_door_is_open_only_while_a_token_lives(tmp_path: Path) -> None:
    async with open_cluster(tmp_path / "founder") as cluster:
        assert cluster.door.port == 0
        token = await cluster.token()
        address = cluster.address
        await cluster.issuer.revoke_token(token.token_id)
        async with asyncio.timeout(60):
            await cluster.shut.wait()
        assert cluster.door.port == 0
        with pytest.raises(RemoteUnreachableError):
            await join_cluster(tmp_path / "machine", token, [address])
        assert cluster.ports == [int(address.rpartition(":")[2]), 0]


async def test_tokens_that_are_no_good(tmp_path: Path) -> None:
    async with open_cluster(tmp_path / "founder") as cluster:
        await cluster.token()  # keeps the door open
        used, revoked = await cluster.token(), await cluster.token()
        expired = await cluster.token(ttl_seconds=1)
        await join_cluster(tmp_path / "first", used, [cluster.address])
        await cluster.issuer.revoke_token(revoked.token_id)
        cluster.now += 2
        guessed = JoinToken(used.cluster_hash, used.issuer_node_id, used.token_id, "a" * 32)
        for token, reason in (
            (used, "TOKEN_SPENT"),
            (revoked, "TOKEN_SPENT"),
            (expired, "TOKEN_SPENT"),
            (guessed, "TOKEN_REFUSED"),
        ):
            with pytest.raises(RemoteJoinRefusedError) as caught:
                await join_cluster(tmp_path / "machine", token, [cluster.address])
            assert caught.value.reason == reason
        assert not (tmp_path / "machine" / "cluster.json").exists()


async def test_a_machine_whose_answer_was_lost_may_ask_again(tmp_path: Path) -> None:
    async with open_cluster(tmp_path / "founder") as cluster:
        await cluster.token()
        token = await cluster.token()
        first = await join_cluster(tmp_path / "machine", token, [cluster.address])
        assert not first.renewed
        again = await join_cluster(tmp_path / "machine", token, [cluster.address])
        assert again.renewed
        assert again.credentials.node_id == first.credentials.node_id
        assert again.credentials.cert_pem != first.credentials.cert_pem


async def test_guessing_is_slowed_down_before_the_guess_is_looked_at(tmp_path: Path) -> None:
    async with open_cluster(tmp_path / "founder") as cluster:
        token = await cluster.token()
        guessed = JoinToken(token.cluster_hash, token.issuer_node_id, token.token_id, "a" * 32)
        reasons = []
        for _ in range(6):
            with pytest.raises(RemoteJoinRefusedError) as caught:
                await join_cluster(tmp_path / "machine", guessed, [cluster.address])
            reasons.append(caught.value.reason)
        assert reasons == ["TOKEN_REFUSED"] * 5 + ["TOO_MANY_TRIES"]
        assert 0 < caught.value.retry_after_seconds <= 60
        # The right token from the same address has to wait, too.
        with pytest.raises(RemoteJoinRefusedError, match="too many"):
            await join_cluster(tmp_path / "machine", token, [cluster.address])


async def test_an_evicted_machine_does_not_come_back_under_its_old_key(tmp_path: Path) -> None:
    async with open_cluster(tmp_path / "founder") as cluster:
        token = await cluster.token()
        cluster.denied.add(load_or_create_identity(tmp_path / "machine").node_id)
        with pytest.raises(RemoteJoinRefusedError, match="evicted") as caught:
            await join_cluster(tmp_path / "machine", token, [cluster.address])
        assert caught.value.reason == "EVICTED"
        assert (await cluster.issuer.tokens()).records[0].admitted == ()


async def test_a_man_in_the_middle_with_another_ca_sees_no_secret(tmp_path: Path) -> None:
    theirs = init_cluster(tmp_path / "theirs")
    thief = Thief(tmp_path / "theirs" / "node.crt", tmp_path / "theirs" / "node.key", theirs.ca_pem)
    async with open_cluster(tmp_path / "founder") as cluster, thief.listening() as address:
        token = await cluster.token()
        with pytest.raises(RemoteUntrustedError, match="secret was not sent"):
            await join_cluster(tmp_path / "machine", token, [address])
        assert token.secret.encode() not in thief.heard
        assert not (tmp_path / "machine" / "cluster.json").exists()
        # Where both answer, the right one is found.
        await join_cluster(tmp_path / "machine", token, [address, cluster.address])
    assert thief.heard
    assert token.secret.encode() not in thief.heard


async def test_a_man_in_the_middle_who_shows_our_ca_certificate_sees_no_secret(tmp_path: Path) -> None:
    init_cluster(tmp_path / "theirs")
    async with open_cluster(tmp_path / "founder") as cluster:
        token = await cluster.token()
        ca_pem = cluster.credentials.current.ca_pem  # anybody can have it: it is public
        thief = Thief(tmp_path / "theirs" / "node.crt", tmp_path / "theirs" / "node.key", ca_pem)
        async with thief.listening() as address:
            with pytest.raises(RemoteUntrustedError, match="secret was not sent"):
                await join_cluster(tmp_path / "machine", token, [address])
        assert thief.heard
        assert token.secret.encode() not in thief.heard


async def test_another_member_that_plays_the_door_sees_no_secret(tmp_path: Path) -> None:
    async with open_cluster(tmp_path / "founder") as cluster:
        token = await cluster.token()
        member = await join_cluster(tmp_path / "member", token, [cluster.address])
        other = await cluster.token()
        thief = Thief(member.credentials.cert_path, member.credentials.key_path, member.credentials.ca_pem)
        async with thief.listening() as address:
            with pytest.raises(RemoteUntrustedError, match="secret was not sent"):
                await join_cluster(tmp_path / "machine", other, [address])
        assert other.secret.encode() not in thief.heard


async def test_a_member_of_another_cluster_does_not_change_sides(tmp_path: Path) -> None:
    async with open_cluster(tmp_path / "founder") as cluster:
        token = await cluster.token()
        init_cluster(tmp_path / "other")
        before = (tmp_path / "other" / "node.crt").read_bytes()
        with pytest.raises(LocalClusterExistsError, match="belongs to cluster"):
            await join_cluster(tmp_path / "other", token, [cluster.address])
        assert (tmp_path / "other" / "node.crt").read_bytes() == before


async def test_secrets_rest_as_hashes_in_private_files(tmp_path: Path) -> None:
    async with open_cluster(tmp_path / "founder") as cluster:
        token = await cluster.token()
        path = tmp_path / "founder" / "tokens.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert all(
            token.secret.encode() not in file.read_bytes()
            for file in (tmp_path / "founder").iterdir()
            if file.is_file()
        )
        # Another start of the daemon knows the token still.
        again = Issuer(
            tmp_path / "founder", node_id="x", wall_seconds=lambda: cluster.now, is_denied=lambda _: False
        )
        key_pem = load_or_create_identity(tmp_path / "machine").key_pem
        assert await again.admit(token.token_id, token.secret, make_certificate_request(key_pem))


async def test_junk_at_the_door_costs_nothing_but_its_connection(tmp_path: Path) -> None:
    async with open_cluster(tmp_path / "founder") as cluster:
        token = await cluster.token()
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        for junk in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff\xff\xff\xff",
            b"\x00\x00\x00\x03abc",
            b"\x00\x00\x00\x00",
        ):
            reader, writer = await asyncio.open_connection(HOST, cluster.door.port, ssl=anyone)
            writer.write(junk)
            async with asyncio.timeout(60):
                answer = await reader.read()
            writer.close()
            if answer:
                assert join_pb2.JoinResponse.FromString(answer[4:]).refused.reason == "BAD_REQUEST"
        _, plain = await asyncio.open_connection(HOST, cluster.door.port)
        plain.write(b"not TLS at all")
        await plain.drain()
        plain.close()
        await join_cluster(tmp_path / "machine", token, [cluster.address])


async def test_a_flood_of_handshakes_is_turned_away_at_the_rate_of_the_door(tmp_path: Path) -> None:
    limits = DoorLimits(handshakes_per_second=20, handshakes_per_address_per_second=5)
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    shaken = 0

    async def shake(port: int) -> None:
        nonlocal shaken
        try:
            async with asyncio.timeout(60):
                _, writer = await asyncio.open_connection(HOST, port, ssl=anyone)
        except (OSError, TimeoutError):
            return
        shaken += 1
        writer.transport.abort()

    async with open_cluster(tmp_path / "founder", limits) as cluster:
        await cluster.token()
        began = time.monotonic()
        await asyncio.gather(*(shake(cluster.door.port) for _ in range(60)))
        took = time.monotonic() - began
        assert shaken <= 10 + 5 * took + 1
        assert cluster.door.turned_away >= 60 - shaken - 16
