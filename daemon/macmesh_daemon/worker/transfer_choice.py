"""How the decode steps of a plan go from stage to stage: decided by all stages from the same facts. Imports no mlx."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Literal, Protocol

from macmesh_daemon.worker.checks import TRANSFERS
from macmesh_daemon.worker.errors import LocalStartError, RemoteNeighbourError

Backend = Literal["metal", "cuda", "cpu"]
Kind = Literal["host", "group", "cuda"]
"""Moved by the host; in the graph, over our links; in the graph, by kernels through memory that two GPUs share."""


@dataclasses.dataclass(frozen=True)
class Offer:
    """What one stage can do."""

    stage: int
    asked: str
    """"auto", "host" or "graph", as its plan says."""
    backend: str
    host_id: str
    """Its machine."""
    payload_bytes: int = 0
    """Most bytes that come in with a decode step; 0 where they are not known beforehand."""
    refusal: str = ""
    """Why it cannot take part in transfers in the graph; empty where it can."""

    def encode(self) -> bytes:
        """As it goes to the other stages."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Offer":
        """Reads one.

        Raises:
            RemoteNeighbourError: it is none.
        """
        try:
            told = json.loads(data)
            offer = cls(**told)
        except (ValueError, TypeError) as error:
            raise RemoteNeighbourError(
                f"another stage told nothing sensible of its transfers: {error}"
            ) from error
        for field in dataclasses.fields(cls):
            if type(getattr(offer, field.name)) is not (int if field.name in _COUNTS else str):
                raise RemoteNeighbourError(f"another stage told a wrong {field.name} of its transfers")
        return offer


_COUNTS = frozenset({"stage", "payload_bytes"})


@dataclasses.dataclass(frozen=True)
class TransferChoice:
    """What is used, and why."""

    kind: Kind
    reason: str

    @property
    def name(self) -> str:
        """As it is asked for and told."""
        return "host" if self.kind == "host" else "graph"


def choose_transfers(offers: Sequence[Offer]) -> TransferChoice:
    """What all stages use; the same on each of them.

    Args:
        offers: of all stages, head first.

    Raises:
        LocalStartError: transfers in the graph were asked for and cannot be; or the stages were asked for different
            ones.
    """
    asked = {offer.asked or "auto" for offer in offers}
    if len(asked) > 1:
        told = ", ".join(f"stage {offer.stage}: {offer.asked or 'auto'}" for offer in offers)
        raise LocalStartError(
            f"the stages were started with different transfers ({told}); all must have the same"
        )
    (wanted,) = asked
    if wanted not in TRANSFERS:
        raise LocalStartError(f"transfers is {wanted!r}; this version has {', '.join(TRANSFERS)}")
    if wanted == "host":
        return TransferChoice("host", "asked for")
    kind, problem = _graph_kind(offers)
    if wanted == "graph":
        if problem:
            raise LocalStartError(
                f"transfers in the graph cannot be: {problem}; load with transfers auto or host"
            )
        return TransferChoice(kind, "asked for")
    if problem:
        return TransferChoice("host", f"not in the graph: {problem}")
    if all(offer.backend == "cpu" for offer in offers):
        return TransferChoice("host", "a CPU gains nothing by steps that are queued ahead")
    return TransferChoice(kind, "steps are queued one ahead")


def _graph_kind(offers: Sequence[Offer]) -> tuple[Kind, str]:
    """Which graph transfers fit, and why none does."""
    for offer in offers:
        if offer.refusal:
            return "host", f"stage {offer.stage}: {offer.refusal}"
        if not offer.payload_bytes:
            return "host", f"stage {offer.stage}: what comes in is not known beforehand"
    if all(offer.backend != "cuda" for offer in offers):
        return "group", ""
    if any(offer.backend != "cuda" for offer in offers):
        return "host", "some stages compute on CUDA, others do not"
    if len({offer.host_id for offer in offers}) > 1:
        return "host", "on CUDA all stages must be on one machine"
    return "cuda", ""


class Messages(Protocol):
    """What the stages tell each other their offers with."""

    def send_message(self, peer: int, data: bytes, timeout_seconds: float) -> None:
        """Sends bytes."""

    def receive_message(self, peer: int, timeout_seconds: float | None) -> bytes:
        """The next bytes."""


def exchange_offers(lane: Messages, own: Offer, stages: int, timeout_seconds: float) -> list[Offer]:
    """The offers of all stages, head first: each goes once round.

    Raises:
        RemoteNeighbourError: what came is no offer, or not of the stage that it should be of.
        TransportError: a neighbour is lost or silent.
    """
    offers = {own.stage: own}
    passed_on = own
    following, before = (own.stage + 1) % stages, (own.stage - 1) % stages
    for distance in range(1, stages):
        lane.send_message(following, passed_on.encode(), timeout_seconds)
        passed_on = Offer.decode(lane.receive_message(before, timeout_seconds))
        if passed_on.stage != (own.stage - distance) % stages:
            raise RemoteNeighbourError(f"the transfers of stage {passed_on.stage} came out of turn")
        offers[passed_on.stage] = passed_on
    return [offers[stage] for stage in range(stages)]
