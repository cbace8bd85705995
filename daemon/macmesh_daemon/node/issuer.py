"""What a node that holds the CA key hands out: join tokens, certificates of nodes and of clients.

Two files in the data folder, mode 0600: ``tokens.json`` (hashes of secrets only) and ``clients.json``. Both are
written before what they record leaves the node.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from macmesh_daemon.files import write_durably
from macmesh_daemon.identity import (
    LocalCredentialsError,
    RemoteJoinRefusedError,
    RemoteUntrustedError,
    holds_ca_key,
    issue_node_certificate,
    key_of_request,
    load_cluster_credentials,
    node_id_of,
)
from macmesh_daemon.identity.clients import ClientRecord, issue_client_certificate
from macmesh_daemon.identity.tokens import TokenBook

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from macmesh_daemon.identity import ClusterCredentials, JoinToken
    from macmesh_daemon.identity.tokens import TokenRecord

_TOKENS = "tokens.json"
_CLIENTS = "clients.json"
_FORMAT_VERSION = 1


class Issuer:
    """Signs for the cluster, one thing at a time.

    Args:
        data_dir: The node's folder. The CA key is read at each use, so that an import takes effect at once.
        node_id: This node.
        wall_seconds: Seconds since 1970.
        is_denied: Whether the cluster shut an id out.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        node_id: str,
        wall_seconds: Callable[[], float],
        is_denied: Callable[[str], bool],
    ) -> None:
        self._folder = data_dir
        self._node_id = node_id
        self._wall_seconds = wall_seconds
        self._is_denied = is_denied
        self._turn = asyncio.Lock()
        self._book: TokenBook | None = None
        #: Set whenever the tokens change.
        self.changed = asyncio.Event()

    async def can_sign(self) -> bool:
        """Whether the CA key is here."""
        return await asyncio.to_thread(holds_ca_key, self._folder)

    async def issue_token(self, *, ttl_seconds: int, uses: int) -> tuple[JoinToken, TokenRecord]:
        """Make a join token.

        Raises:
            LocalNoClusterError: the CA key is not here.
            LocalTokenError: impossible bounds, or too many tokens.
            OSError: it cannot be stored.
        """
        async with self._turn:
            ca = await self._ca()
            book, token, record = (await self._tokens()).issue(
                cluster_hash=ca.cluster_hash,
                issuer_node_id=self._node_id,
                ttl_seconds=ttl_seconds,
                uses=uses,
                now=self._wall_seconds(),
            )
            await self._keep(book)
        return token, record

    async def tokens(self) -> TokenBook:
        """The tokens of this node."""
        async with self._turn:
            return await self._tokens()

    async def revoke_token(self, token_id: str) -> bool:
        """Make a token useless; False where there is none of that id.

        Raises:
            OSError: that cannot be stored.
        """
        async with self._turn:
            book = (await self._tokens()).revoke(token_id)
            if book is None:
                return False
            await self._keep(book)
        return True

    async def admit(self, token_id: str, secret: str, request_der: bytes) -> tuple[str, bytes]:
        """Certify the machine that brings a good token; returns its node id and certificate (PEM).

        A machine that lost the answer may ask again with the same token.

        Raises:
            RemoteJoinRefusedError: the token is not good, or the machine was evicted.
            RemoteUntrustedError: the certificate request is not one.
            LocalIdentityError: this node cannot sign.
            OSError: the use of the token cannot be stored; it is not used then.
        """
        key = await asyncio.to_thread(key_of_request, request_der)
        node_id = node_id_of(key)
        async with self._turn:
            ca = await self._ca()
            book = await self._tokens()
            outcome = book.redeem(token_id, secret, node_id=node_id, now=self._wall_seconds())
            if outcome.book is None:
                raise RemoteJoinRefusedError(outcome.reason, outcome.message)
            if self._is_denied(node_id):
                raise RemoteJoinRefusedError(
                    "EVICTED",
                    f"node {node_id[:8]} was evicted from this cluster: to come back it needs a new identity "
                    "(an empty data_dir)",
                )
            if outcome.book is not book:
                await self._keep(outcome.book)
            return node_id, await asyncio.to_thread(issue_node_certificate, ca, key, now=self._now())

    async def renew(self, node_id: str, request_der: bytes) -> bytes:
        """Certify a node's key anew; PEM.

        Raises:
            LocalNoClusterError: the CA key is not here.
            RemoteUntrustedError: the request is not one, or for another key than the caller's.
        """
        key = await asyncio.to_thread(key_of_request, request_der)
        if node_id_of(key) != node_id:
            raise RemoteUntrustedError("the certificate request is for another key than the caller's")
        ca = await self._ca()
        return await asyncio.to_thread(issue_node_certificate, ca, key, now=self._now())

    async def issue_client(
        self, *, name: str, role: str, days: int, request_der: bytes
    ) -> tuple[bytes, bytes, ClientRecord]:
        """Certify a client's key; its certificate, the CA (PEM both) and the record of it.

        Raises:
            LocalNoClusterError: the CA key is not here.
            LocalClientError: name, role or days are not acceptable.
            RemoteUntrustedError: the request is not one.
            OSError: it cannot be recorded.
        """
        key = await asyncio.to_thread(key_of_request, request_der)
        async with self._turn:
            ca = await self._ca()
            certificate, record = await asyncio.to_thread(
                issue_client_certificate, ca, key, name=name, role=role, days=days, now=self._now()
            )
            clients = (*await self._clients(), record)
            await asyncio.to_thread(
                self._write, _CLIENTS, {"clients": [client.to_json() for client in clients]}
            )
        return certificate, ca.ca_pem, record

    async def clients(self) -> tuple[ClientRecord, ...]:
        """The clients whose certificates have not ended, the oldest first."""
        async with self._turn:
            return await self._clients()

    async def _ca(self) -> ClusterCredentials:
        return await asyncio.to_thread(load_cluster_credentials, self._folder)

    async def _tokens(self) -> TokenBook:
        if self._book is None:
            value = await asyncio.to_thread(self._read, _TOKENS)
            self._book = _parsed(self._folder / _TOKENS, TokenBook.from_json, value.get("tokens", []))
        return self._book

    async def _keep(self, book: TokenBook) -> None:
        await asyncio.to_thread(self._write, _TOKENS, {"tokens": book.to_json()})
        self._book = book
        self.changed.set()

    async def _clients(self) -> tuple[ClientRecord, ...]:
        value = await asyncio.to_thread(self._read, _CLIENTS)
        now = self._wall_seconds()
        read = _parsed(
            self._folder / _CLIENTS,
            lambda items: tuple(ClientRecord.from_json(item) for item in items),
            value.get("clients", []),
        )
        return tuple(client for client in read if now < client.expires_at)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._wall_seconds(), UTC)

    def _read(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        try:
            value = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise LocalCredentialsError(f"{path} cannot be read: {error}") from error
        if not isinstance(value, dict) or value.get("version") != _FORMAT_VERSION:
            raise LocalCredentialsError(f"{path} is not of format version {_FORMAT_VERSION}")
        return value

    def _write(self, name: str, value: dict[str, Any]) -> None:
        text = json.dumps({"version": _FORMAT_VERSION, **value}, indent=1)
        write_durably(self._folder / name, f"{text}\n".encode(), mode=0o600)


def _parsed(path: Path, parse: Callable[[Any], Any], value: Any) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise LocalCredentialsError(f"{path} is damaged: {error}") from error
