"""Candidates by multicast DNS, with the repairs that a long-running node needs."""

import asyncio
import contextlib
import ipaddress
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

from macmesh_daemon.clock import Clock, SystemClock, sleep_or_event
from macmesh_daemon.discovery.base import Candidate, CandidateCallback, Discovery, Source, join_address
from macmesh_daemon.discovery.book import MAX_CANDIDATES, CandidateBook
from macmesh_daemon.discovery.interfaces import InterfaceChoice, current_interfaces
from macmesh_daemon.discovery.schedule import Action, BeatSchedule
from macmesh_daemon.discovery.session import Advertisement, MdnsSession, ResolvedService, ZeroconfSession
from macmesh_daemon.discovery.txt import MAX_FOREIGN_TXT_BYTES, decode_txt, encode_txt
from macmesh_daemon.identity import is_node_id
from macmesh_daemon.logs import get_logger

POLL_SECONDS = 2.0
#: A session that has not heard itself for this long is opened anew: sockets that were made while an address
#: was still tentative (duplicate address detection takes a second or two) stay deaf for good. Doubles up to
#: the maximum, for where multicast is blocked a new session is as deaf.
DEAF_SECONDS = 3.0
MAX_DEAF_SECONDS = 60.0
_RESOLVERS = 4
_OPEN_DEADLINE_SECONDS = 10.0
_ACTION_DEADLINE_SECONDS = 5.0
_CLOSE_DEADLINE_SECONDS = 1.5
_MAX_ADDRESSES = 8
_MAX_PORT = 65535

_log = get_logger(part="discovery")


class _ReopenError(Exception):
    """The session must be opened anew; nothing is wrong."""


class MdnsDiscovery(Discovery):
    """Announces this node and reports others of its cluster.

    Trouble (no interface, port 5353 taken, sends that fail) becomes a health line and is tried again every
    two seconds, for ever; it never ends ``run``.
    """

    source: ClassVar[Source] = "mdns"

    def __init__(
        self,
        advertisement: Advertisement,
        *,
        interfaces: Sequence[str] = (),
        announce_interval_seconds: float = 15.0,
        lonely_interval_seconds: float = 5.0,
        only_own_cluster: bool = True,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        open_session: Callable[[], MdnsSession] = ZeroconfSession,
        read_interfaces: Callable[[Sequence[str]], Awaitable[InterfaceChoice]] = current_interfaces,
    ) -> None:
        """Check the advertisement; nothing is sent before ``run``.

        Args:
            advertisement: What to announce. Its cluster prefix is the filter for others.
            interfaces: Names or addresses to use; see ``choose_interfaces``.
            announce_interval_seconds: Time between announcements, varied by 20 %.
            lonely_interval_seconds: The same while no peer is known.
            only_own_cluster: Report nodes of this cluster only.
            clock: For the beat.
            rng: For the variation of the beat.
            open_session: Makes the sockets; replaced in tests.
            read_interfaces: Asks the system for its addresses; replaced in tests.

        Raises:
            LocalAdvertisementError: The advertisement does not fit a TXT record.
        """
        encode_txt(advertisement.node_id, advertisement.hints)
        self._advertisement = advertisement
        self._wanted = tuple(interfaces)
        self._only_own_cluster = only_own_cluster
        self._clock: Clock = clock or SystemClock()
        self._open_session = open_session
        self._read_interfaces = read_interfaces
        self._schedule = BeatSchedule(
            announce_interval_seconds,
            lonely_interval_seconds,
            POLL_SECONDS,
            rng or random.Random(),  # noqa: S311  spreads packets, guards nothing
        )
        self._book = CandidateBook()
        self._wake = asyncio.Event()
        self._misses_peers = False
        self._problems: dict[str, str] = {}
        self._deaf_since: float | None = None
        self._deaf_patience_seconds = DEAF_SECONDS
        self._pending: asyncio.Queue[str] = asyncio.Queue(MAX_CANDIDATES)
        self._queued: set[str] = set()

    def advertise(self, advertisement: Advertisement) -> None:
        """Announce something else from now on, at once.

        Raises:
            LocalAdvertisementError: It does not fit a TXT record; what was announced before stays.
        """
        encode_txt(advertisement.node_id, advertisement.hints)
        self._advertisement = advertisement
        self.refresh()

    def set_lonely(self, lonely: bool) -> None:
        """Say whether the node misses peers or a coordinator: it then announces as if it were alone."""
        if lonely and not self._misses_peers:
            self.refresh()
        self._misses_peers = lonely

    def refresh(self) -> None:
        """See ``Discovery.refresh``."""
        self._wake.set()

    def health(self) -> tuple[str, ...]:
        """See ``Discovery.health``."""
        return tuple(self._problems.values())

    async def run(self, found: CandidateCallback) -> None:
        """See ``Discovery.run``."""
        while True:
            reopen = False
            try:
                await self._run_session(found)
            except* _ReopenError:
                reopen = True
            except* Exception as group:  # noqa: BLE001  whatever mDNS does, the daemon goes on without it
                self._set_problem("session", f"mDNS does not work: {_describe(group)}; trying again")
            if not reopen:
                await sleep_or_event(self._clock, POLL_SECONDS, self._wake)

    async def _run_session(self, found: CandidateCallback) -> None:
        choice = await self._read_interfaces(self._wanted)
        if not choice.addresses:
            where = ", ".join(self._wanted) or "any usable network interface"
            self._set_problem("interfaces", f"mDNS: there is no address on {where}; looking again")
            return
        self._clear_problem("interfaces")
        session = self._open_session()
        try:
            async with asyncio.timeout(_OPEN_DEADLINE_SECONDS):
                await session.open(choice, self._advertisement, self._seen)
            self._schedule.started(self._clock.now(), choice)
            _log.info("mdns announced", addresses=choice.texts, port=self._advertisement.port)
            async with asyncio.TaskGroup() as group:
                for number in range(_RESOLVERS):
                    group.create_task(self._resolve_all(session, found), name=f"mdns-resolve-{number}")
                group.create_task(self._beat(session, choice), name="mdns-beat")
        finally:
            await self._close(session)

    async def _beat(self, session: MdnsSession, opened_with: InterfaceChoice) -> None:
        while True:
            delay = self._schedule.next_tick_in(self._clock.now())
            refresh = await sleep_or_event(self._clock, delay, self._wake)
            self._check_heard(session)
            choice = await self._read_interfaces(self._wanted)
            if not choice.addresses or choice.is_ipv6 != opened_with.is_ipv6:
                _log.info("mdns interfaces changed", addresses=choice.texts)
                raise _ReopenError
            lonely = self._misses_peers or len(self._book) == 0
            actions = self._schedule.tick(
                self._clock.now(), interfaces=choice, lonely=lonely, refresh=refresh
            )
            async with asyncio.timeout(_ACTION_DEADLINE_SECONDS):
                if Action.REBIND in actions:
                    _log.info("mdns interfaces changed", addresses=choice.texts)
                    await session.rebind(choice)
                if Action.ANNOUNCE in actions:
                    await session.announce(self._advertisement)
                if Action.BROWSE in actions:
                    session.browse()
            if actions:
                # Not as soon as it is open: what opens and then fails has not recovered.
                self._clear_problem("session")

    def _check_heard(self, session: MdnsSession) -> None:
        # At least one tick has passed since the announcement was sent, whose echo takes microseconds.
        now = self._clock.now()
        if session.heard_itself():
            self._clear_problem("echo")
            self._deaf_since, self._deaf_patience_seconds = None, DEAF_SECONDS
            return
        self._set_problem(
            "echo",
            "mDNS: this node does not hear its own announcement, so others may not either: "
            "is multicast blocked, or the Local Network permission missing?",
        )
        if self._deaf_since is None:
            self._deaf_since = now
        elif now - self._deaf_since >= self._deaf_patience_seconds:
            self._deaf_since = None
            self._deaf_patience_seconds = min(2 * self._deaf_patience_seconds, MAX_DEAF_SECONDS)
            raise _ReopenError

    def _seen(self, instance: str, gone: bool) -> None:
        if not is_node_id(instance) or instance == self._advertisement.node_id:
            return
        if gone:
            self._book.drop(instance)
            return
        if instance in self._queued:
            return
        if self._pending.full():
            # A flood of names: the oldest unanswered one gives way. Real nodes announce again.
            self._queued.discard(self._pending.get_nowait())
        self._queued.add(instance)
        self._pending.put_nowait(instance)

    async def _resolve_all(self, session: MdnsSession, found: CandidateCallback) -> None:
        while True:
            instance = await self._pending.get()
            self._queued.discard(instance)
            try:
                async with asyncio.timeout(_ACTION_DEADLINE_SECONDS):
                    service = await session.resolve(instance)
            except Exception as error:  # noqa: BLE001  one stranger's records must not end the session
                _log.debug("mdns service not resolved", error=type(error).__name__)
                continue
            candidate = self._judge(instance, service) if service is not None else None
            if candidate is None:
                continue
            if instance not in self._book:
                _log.info("candidate found", peer=instance, source=self.source, addresses=candidate.addresses)
            self._book.put(candidate)
            found(candidate)

    def _judge(self, instance: str, service: ResolvedService) -> Candidate | None:
        """Turn what a stranger announced into a candidate, or None where it is not one for us."""
        if service.txt_bytes > MAX_FOREIGN_TXT_BYTES or not 0 < service.port <= _MAX_PORT:
            return None
        hints = decode_txt(service.properties, instance)
        if hints is None:
            return None
        if self._only_own_cluster and hints.cluster_prefix != self._advertisement.hints.cluster_prefix:
            return None
        if hints.state == "leaving":
            self._book.drop(instance)
            return None
        addresses = tuple(
            join_address(address, service.port) for address in service.addresses if _can_be_dialled(address)
        )
        if not addresses:
            return None
        return Candidate(instance, addresses[:_MAX_ADDRESSES], self.source, hints)

    async def _close(self, session: MdnsSession) -> None:
        with contextlib.suppress(Exception):  # whatever fails here, the session is not used again
            async with asyncio.timeout(_CLOSE_DEADLINE_SECONDS):
                await session.close()

    def _set_problem(self, key: str, text: str) -> None:
        if self._problems.get(key) != text:
            _log.warning("mdns degraded", problem=text)
        self._problems[key] = text

    def _clear_problem(self, key: str) -> None:
        if self._problems.pop(key, None) is not None:
            _log.info("mdns recovered", problem=key)


def _can_be_dialled(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.is_unspecified or address.is_multicast:
        return False
    scoped = isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None
    # A link-local IPv6 address without its interface leads nowhere.
    return address.version == 4 or not address.is_link_local or scoped  # noqa: PLR2004  the IP version


def _describe(group: BaseExceptionGroup[Exception]) -> str:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return f"{type(first).__name__}: {first}" if str(first) else type(first).__name__
