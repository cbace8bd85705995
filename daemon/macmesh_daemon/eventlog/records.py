"""One record of the event log, and the form that it has in a file.

A line is one JSON object. Keys that every record has: ``v`` (schema version), ``node`` (id), ``inc`` (the node's
incarnation, counted up at each start), ``seq`` (from 1 within the incarnation, without gaps), ``wall`` (Unix
seconds, for people), ``mono`` (seconds of the node's clock that counts sleep; comparable within one start of the
machine) and ``kind``. All other keys are the kind's facts. Epochs, versions of the document and ballots are
lists of numbers: ``[generation, term, seq]``, ``[generation, term]``.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Rises when a key changes its meaning or goes, not when a kind or a key is added.
SCHEMA_VERSION = 1

#: What every record has; no fact may be called so.
OWN_KEYS = frozenset({"v", "node", "inc", "seq", "wall", "mono", "kind"})


class Kind(enum.StrEnum):
    """What a record tells. A reader passes over kinds that it does not know."""

    #: The daemon began: boot_nonce, ballot, voted_for, promised, active, stored, committed, local_seq (as read).
    STARTED = "started"
    #: The daemon ended in order: every record of this incarnation is in the log, and nothing runs any more.
    ENDED = "ended"
    #: Records were dropped, as the log could not be written fast enough or at all: count.
    LOST = "lost"
    #: Durable: ballot, voted_for.
    BALLOT = "ballot"
    #: Durable: epoch, plan (hash).
    PROMISED = "promised"
    #: Durable: epoch, plan (hash).
    ACTIVE = "active"
    #: Durable: version, document (hash), epoch and plan (hash) of the plan in it.
    STORED = "stored"
    #: Durable: local_seq of the last plan that the node made for itself only.
    LOCAL = "local"
    #: A quorum has stored it, as this node knows: version, document (hash), epoch, plan (hash), members, denied.
    COMMITTED = "committed"
    #: This node coordinates from now on: ballot, stored (version of its document when it was elected).
    LEADS = "leads"
    #: It does so no more: ballot.
    LED = "led"
    #: Answer to a PREPARE: epoch, ok, reason, peer.
    PREPARE_ANSWERED = "prepare answered"
    #: Answer to a COMMIT: epoch, ok, reason, peer.
    COMMIT_ANSWERED = "commit answered"
    #: A worker is about to be given a stage: epoch, stage.
    WORKER_STARTED = "worker started"
    #: Its process lives: epoch, stage, pid, process (new, kept from the epoch before, replaced), reason (why replaced).
    WORKER_RUNS = "worker runs"
    #: Every stage is connected: epoch, stage, kept_bytes (of weights that it held), read_bytes (of the others).
    WORKER_READY = "worker ready"
    #: It failed: epoch, stage, error.
    WORKER_FAILED = "worker failed"
    #: Its process is gone: epoch.
    WORKER_STOPPED = "worker stopped"
    #: Its epoch has ended, and its process lives on and does nothing: epoch, pid.
    WORKER_RESTS = "worker rests"
    #: The process that rested is gone, and no epoch took it up: epoch (its last), pid, reason.
    WORKER_DISMISSED = "worker dismissed"
    #: The head took a run of a request: request, run (its name), epoch, first (index of its first token).
    RUN_STARTED = "run started"
    #: The head has no more to do for it: request, run, how (finished, cancelled, failed).
    RUN_ENDED = "run ended"
    #: The API node took a request: request, epoch (None while no plan is ready), prompt_tokens, max_tokens (0: up to
    #: the context). A request that was taken up: resumed_from (tokens that the client brought) and attempt (from 1).
    ACCEPTED = "request accepted"
    #: The API node asked a head for a run: request, run (its number), epoch, head, first (index of its first token).
    RUN_ASKED = "run asked"
    #: The API node gave it up, and will ask for another: request, run, epoch, reason.
    RUN_LOST = "run lost"
    #: It was not taken: reason.
    REFUSED = "request refused"
    #: Tokens went to the client: request, index (of the first), count.
    DELIVERED = "delivered"
    #: request, reason (stop, length, ...), tokens.
    FINISHED = "request finished"
    #: request, tokens.
    CANCELLED = "request cancelled"
    #: request, reason, tokens.
    FAILED = "request failed"
    #: A decision of the core, as told to people: event, facts.
    ANNOUNCED = "announced"


@dataclass(frozen=True, slots=True)
class Record:
    """One record.

    Attributes:
        node: Id of the node.
        incarnation: Which start of the node.
        seq: Position within the incarnation, from 1.
        wall: Unix seconds.
        mono: Seconds of the node's own clock.
        kind: A `Kind`, or a word of a newer version.
        facts: The rest.
    """

    node: str
    incarnation: int
    seq: int
    wall: float
    mono: float
    kind: str
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """How messages name the record: node, incarnation and position."""
        return f"{self.node[:8]}/{self.incarnation}#{self.seq}"

    def to_line(self) -> str:
        """The record as one line of JSON, without the newline."""
        head = {
            "v": SCHEMA_VERSION,
            "node": self.node,
            "inc": self.incarnation,
            "seq": self.seq,
            "wall": round(self.wall, 6),
            "mono": round(self.mono, 6),
            "kind": str(self.kind),
        }
        return json.dumps({**head, **self.facts}, separators=(",", ":"), default=str)

    @classmethod
    def from_line(cls, line: str) -> Record:
        """Read a line.

        Raises:
            ValueError: It is no record, or one of another schema.
        """
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")  # noqa: TRY004  one error for whatever is no record
        if value.get("v") != SCHEMA_VERSION:
            raise ValueError(
                f"schema version {value.get('v')!r}, this is a reader of version {SCHEMA_VERSION}"
            )
        missing = OWN_KEYS - value.keys()
        if missing:
            raise ValueError(f"without {', '.join(sorted(missing))}")
        return cls(
            node=str(value["node"]),
            incarnation=int(value["inc"]),
            seq=int(value["seq"]),
            wall=float(value["wall"]),
            mono=float(value["mono"]),
            kind=str(value["kind"]),
            facts={key: fact for key, fact in value.items() if key not in OWN_KEYS},
        )
