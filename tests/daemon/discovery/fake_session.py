"""An mDNS session without sockets, whose faults tests can choose."""

from collections.abc import Sequence

from macmesh_daemon.discovery import Advertisement, InterfaceAddress, InterfaceChoice
from macmesh_daemon.discovery.session import ResolvedService, SeenCallback
from macmesh_daemon.discovery.txt import encode_txt


class FakeMulticast:
    """What the fake sessions of one test share: the services there are, the interfaces, the faults."""

    def __init__(self) -> None:
        self.services: dict[str, ResolvedService] = {}
        self.choice = InterfaceChoice((InterfaceAddress("en0", "10.0.0.1", 4),))
        self.sessions: list[FakeSession] = []
        #: Raised by the next calls of the named methods.
        self.faults: dict[str, Exception] = {}
        self.hears = True

    def open_session(self) -> "FakeSession":
        session = FakeSession(self)
        self.sessions.append(session)
        return session

    async def read_interfaces(self, _wanted: Sequence[str]) -> InterfaceChoice:
        self.fail("read_interfaces")
        return self.choice

    def fail(self, method: str) -> None:
        if method in self.faults:
            raise self.faults[method]

    def put(self, advertisement: Advertisement, addresses: tuple[str, ...] = ("10.0.0.2",)) -> None:
        """Let a node announce itself, unheard by those who do not ask."""
        properties = encode_txt(advertisement.node_id, advertisement.hints)
        self.services[advertisement.node_id] = ResolvedService(
            addresses,
            advertisement.port,
            {key.encode(): value.encode() for key, value in properties.items()},
            sum(len(key) + len(value) + 2 for key, value in properties.items()),
        )


class FakeSession:
    """Keeps the interface of ``MdnsSession``; ``calls`` says what was asked of it."""

    def __init__(self, network: FakeMulticast) -> None:
        self.calls: list[str] = []
        self.announced: list[Advertisement] = []
        self.seen: SeenCallback | None = None
        self._network = network

    async def open(self, choice: InterfaceChoice, advertisement: Advertisement, seen: SeenCallback) -> None:
        self._call("open")
        self.calls[-1] = f"open {','.join(choice.texts)}"
        self.seen = seen
        self.announced.append(advertisement)
        self.browse()

    async def rebind(self, choice: InterfaceChoice) -> None:
        self._call("rebind")
        self.calls[-1] = f"rebind {','.join(choice.texts)}"

    async def announce(self, advertisement: Advertisement) -> None:
        self._call("announce")
        self.announced.append(advertisement)

    def browse(self) -> None:
        self._call("browse")
        for name in self._network.services:
            assert self.seen is not None
            self.seen(name, False)  # noqa: FBT003  the callback's own form

    def heard_itself(self) -> bool:
        return self._network.hears

    async def resolve(self, instance: str) -> ResolvedService | None:
        self._network.fail("resolve")
        return self._network.services.get(instance)

    async def close(self) -> None:
        self.seen = None
        self._call("close")

    def _call(self, method: str) -> None:
        self.calls.append(method)
        self._network.fail(method)
