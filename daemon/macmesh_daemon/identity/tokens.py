"""Join tokens: what one carries, and the book of a node that issued some.

A token is ``mm1.<cluster hash>.<issuing node>.<id>.<secret>``. The first two parts let the joining machine
recognise the cluster and the one node that may see the secret; the last two are what that node checks. The
book keeps only the hash of the secret: 160 random bits need no slow hash.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, replace
from typing import Any, Literal

from macmesh_daemon.identity.errors import LocalTokenError

SECRET_BYTES = 20
DEFAULT_TTL_SECONDS = 3600
MAX_TTL_SECONDS = 7 * 86400
MAX_USES = 64
#: Tokens that live at once.
MAX_LIVE_TOKENS = 64
#: How long a token that ended is still listed.
KEPT_SECONDS = 86400.0

_TOKEN = re.compile(r"mm1\.([0-9a-f]{64})\.([a-z2-7]{26})\.([a-z2-7]{10})\.([a-z2-7]{32})")

TokenState = Literal["live", "spent", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token as the joining machine holds it."""

    #: SHA-256 of the cluster's CA certificate, 64 hex digits.
    cluster_hash: str
    #: The only node to which the secret may be told.
    issuer_node_id: str
    token_id: str
    secret: str

    def __str__(self) -> str:
        return f"mm1.{self.cluster_hash}.{self.issuer_node_id}.{self.token_id}.{self.secret}"

    def __repr__(self) -> str:
        return f"JoinToken(token_id={self.token_id!r})"

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Read what a person pasted.

        Raises:
            LocalTokenError: It is no token; the message does not repeat it.
        """
        match = _TOKEN.fullmatch(text.strip())
        if match is None:
            raise LocalTokenError(
                "this is no join token: it begins with mm1. and has four more parts; "
                "copy the whole line that `daemonctl cluster token` printed"
            )
        return cls(*match.groups())


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token as its issuer keeps it. Times are seconds since 1970."""

    token_id: str
    #: SHA-256 of the secret, hex.
    secret_hash: str
    created_at: float
    expires_at: float
    uses: int = 1
    #: Nodes that were admitted; one of them may come again, when its answer was lost.
    admitted: tuple[str, ...] = ()
    revoked: bool = False

    def state(self, now: float) -> TokenState:
        """Whether it still admits somebody new, and why not."""
        if self.revoked:
            return "revoked"
        # A clock that was set back behind the token's birth proves nothing about its age.
        if not self.created_at - _CLOCK_SLACK_SECONDS <= now < self.expires_at:
            return "expired"
        return "spent" if len(self.admitted) >= self.uses else "live"


_CLOCK_SLACK_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Redemption:
    """What came of an attempt: a book to store where somebody was admitted, else why not."""

    book: TokenBook | None
    #: ``TOKEN_REFUSED`` (unknown or wrong: which one is not told) or ``TOKEN_SPENT``; empty where admitted.
    reason: str = ""
    message: str = ""


_REFUSED = Redemption(None, "TOKEN_REFUSED", "this node knows no such token")


@dataclass(frozen=True, slots=True)
class TokenBook:
    """The tokens of one issuer. A value: every change gives a new book."""

    records: tuple[TokenRecord, ...] = ()

    def issue(
        self, *, cluster_hash: str, issuer_node_id: str, ttl_seconds: int, uses: int, now: float
    ) -> tuple[TokenBook, JoinToken, TokenRecord]:
        """Add a token, and forget those that ended long ago.

        Raises:
            LocalTokenError: ``ttl_seconds`` or ``uses`` is out of bounds, or too many tokens live.
        """
        if not 1 <= ttl_seconds <= MAX_TTL_SECONDS:
            raise LocalTokenError(f"a token lives from 1 s to {MAX_TTL_SECONDS} s, not {ttl_seconds} s")
        if not 1 <= uses <= MAX_USES:
            raise LocalTokenError(f"a token admits from 1 to {MAX_USES} machines, not {uses}")
        kept = tuple(r for r in self.records if now < r.expires_at + KEPT_SECONDS)
        if sum(r.state(now) == "live" for r in kept) >= MAX_LIVE_TOKENS:
            raise LocalTokenError(f"{MAX_LIVE_TOKENS} tokens live already: revoke some")
        token = JoinToken(
            cluster_hash=cluster_hash,
            issuer_node_id=issuer_node_id,
            token_id=base64.b32encode(secrets.token_bytes(7)).decode("ascii").lower()[:10],
            secret=base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode("ascii").lower(),
        )
        record = TokenRecord(
            token_id=token.token_id,
            secret_hash=hash_of_secret(token.secret),
            created_at=now,
            expires_at=now + ttl_seconds,
            uses=uses,
        )
        return TokenBook((*kept, record)), token, record

    def redeem(self, token_id: str, secret: str, *, node_id: str, now: float) -> Redemption:
        """Let a node in by a token, or say why not.

        Only who knows the secret learns that a token exists. The comparison takes the same time for an
        unknown token as for a wrong secret.
        """
        record = self.find(token_id)
        expected = record.secret_hash if record is not None else _NOBODYS_HASH
        right = hmac.compare_digest(expected, hash_of_secret(secret))
        if record is None or not right:
            return _REFUSED
        state = record.state(now)
        if state == "live" or (state == "spent" and node_id in record.admitted):
            if node_id in record.admitted:
                return Redemption(self)
            changed = replace(record, admitted=(*record.admitted, node_id))
            return Redemption(self._with(changed))
        said = {"spent": "was used up", "expired": "has expired", "revoked": "was revoked"}[state]
        return Redemption(
            None, "TOKEN_SPENT", f"this token {said}: make another with `daemonctl cluster token`"
        )

    def revoke(self, token_id: str) -> TokenBook | None:
        """The book with that token revoked; None where there is no such token."""
        record = self.find(token_id)
        return None if record is None else self._with(replace(record, revoked=True))

    def find(self, token_id: str) -> TokenRecord | None:
        """The record of a token."""
        return next((r for r in self.records if r.token_id == token_id), None)

    def live_until(self, now: float) -> float | None:
        """When the last live token ends; None where none lives."""
        return max((r.expires_at for r in self.records if r.state(now) == "live"), default=None)

    def to_json(self) -> list[dict[str, Any]]:
        """The book as plain data."""
        return [
            {
                "token_id": r.token_id,
                "secret_hash": r.secret_hash,
                "created_at": r.created_at,
                "expires_at": r.expires_at,
                "uses": r.uses,
                "admitted": list(r.admitted),
                "revoked": r.revoked,
            }
            for r in self.records
        ]

    @classmethod
    def from_json(cls, value: Any) -> TokenBook:
        """Read what `to_json` gave.

        Raises:
            ValueError: It is something else.
        """
        try:
            return cls(
                tuple(
                    TokenRecord(
                        token_id=str(item["token_id"]),
                        secret_hash=str(item["secret_hash"]),
                        created_at=float(item["created_at"]),
                        expires_at=float(item["expires_at"]),
                        uses=int(item["uses"]),
                        admitted=tuple(str(node) for node in item["admitted"]),
                        revoked=bool(item["revoked"]),
                    )
                    for item in value
                )
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a book of tokens: {error!r}") from error

    def _with(self, changed: TokenRecord) -> TokenBook:
        return TokenBook(tuple(changed if r.token_id == changed.token_id else r for r in self.records))


def hash_of_secret(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(f"macmesh join token {secret}".encode()).hexdigest()


_NOBODYS_HASH = hash_of_secret("")
