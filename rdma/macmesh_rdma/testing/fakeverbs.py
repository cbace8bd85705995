"""A fabric of RDMA devices that are not there: the fake verbs library, from Python.

The native part is a shared object with the symbols and structures of a verbs library. Processes that load it meet in
a named piece of shared memory; each is a host of the fabric, and cables join devices of two hosts::

    with FakeFabric([("a.fake0", "b.fake0")], latency_ns=10_000, bytes_per_second=8_000_000_000, slowdown=50) as fabric:
        start_worker(env=os.environ | fabric.environment("a"))
        start_worker(env=os.environ | fabric.environment("b"))
        fabric.cut(0)

Without settings it has a Mac's limits and rules (ten queue pairs and a hundred regions to a device, unreliable
connections only, receives of exactly as many 4 KiB frames as the send, Thunderbolt as its link layer) and no latency,
bound or fault. ``flavour="linux"`` is a reliable network card instead.

Time: a message arrives after ``bytes / bandwidth + latency``, one after the other in each direction of a cable. With
``slowdown=50`` the fabric's time goes fifty times slower than the machine's, so that the copies of a slow machine do
not count: measure with `FakeFabric.now_ns`. With ``manual_clock=True`` it goes only by `FakeFabric.advance`.
"""

import ctypes
import dataclasses
import importlib.util
import itertools
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from macmesh_rdma.errors import LocalOptionError, LocalVersionError

LIBRARY_VARIABLE: Final = "MACMESH_VERBS_LIBRARY"
SEGMENT_VARIABLE: Final = "MACMESH_FAKEVERBS"
HOST_VARIABLE: Final = "MACMESH_FAKEVERBS_HOST"
_ANSWER_BYTES: Final = 1 << 16

Cable = tuple[str, str]
"""Both ends of a cable, each ``host.device``."""


@dataclasses.dataclass(frozen=True, slots=True)
class SentCounters:
    """What became of the messages that one end of a cable sent."""

    messages: int = 0
    bytes: int = 0
    delivered: int = 0
    lost: int = 0
    no_receive: int = 0
    corrupted: int = 0
    torn: int = 0
    length_errors: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class FabricCounters:
    """What went over a fabric, and what its devices hold.

    Attributes:
        sent: Of each cable, what its first and what its second end sent.
        queue_pairs: In use, on all devices.
        regions: In use, on all devices.
    """

    sent: tuple[tuple[SentCounters, SentCounters], ...]
    queue_pairs: int
    regions: int


def library_path() -> Path:
    """Where the shared object is installed.

    Raises:
        LocalVersionError: It is not there.
    """
    # Next to the native modules, which an editable installation keeps apart from the sources.
    spec = importlib.util.find_spec("macmesh_rdma._ring")
    if spec is None or spec.origin is None:
        raise LocalVersionError("the native modules of macmesh-rdma are missing: install macmesh-rdma")
    path = Path(spec.origin).parent / "testing" / "libmacmesh_fakeverbs.so"
    if not path.exists():
        raise LocalVersionError(
            f"the fake verbs library is missing: there is no {path}; reinstall macmesh-rdma"
        )
    return path


def full_mesh(hosts: Sequence[str], cables_per_pair: int = 1) -> list[Cable]:
    """Cables from each host to each other one, every end in a device of its own (``fake0``, ``fake1``, ...)."""
    plugged: Counter[str] = Counter()

    def plug(host: str) -> str:
        plugged[host] += 1
        return f"{host}.fake{plugged[host] - 1}"

    return [
        (plug(first), plug(second))
        for first, second in itertools.combinations(hosts, 2)
        for _ in range(cables_per_pair)
    ]


class FakeFabric:
    """A fabric that exists until it is removed; a context manager that does so.

    Args:
        cables: What joins whom. Numbers of cables are indices into this.
        loose: Devices without a cable, as ``host.device``.
        flavour: ``apple`` or ``linux``: what the settings are that are not given.
        settings: By the names of ``native/fakeverbs/settings.h``: limits, latency, faults.

    Raises:
        LocalOptionError: There is no such setting, or it cannot have this value.
        LocalVersionError: The native part is missing.
    """

    def __init__(
        self, cables: Iterable[Cable], *, loose: Iterable[str] = (), flavour: str = "apple", **settings: float
    ) -> None:
        self.name = f"macmesh-fabric-{os.getpid()}-{secrets.token_hex(4)}"
        self.cables = list(cables)
        self._library = ctypes.CDLL(str(library_path()))
        plan = [f"flavour={flavour}", *_lines(settings)]
        if self.cables:
            plan.append("cables=" + ",".join(f"{first}-{second}" for first, second in self.cables))
        if plugs := list(loose):
            plan.append("loose=" + ",".join(plugs))
        self._call("create", "\n".join(plan))
        self._exists = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Takes the fabric's name away; processes that use it go on. Does nothing the second time."""
        if self._exists:
            self._exists = False
            self._call("remove")

    def environment(self, host: str | None) -> dict[str, str]:
        """The variables of a process that is a host of this fabric.

        Args:
            host: Its name in `cables`. None: it sees the devices of all hosts, named ``host_device``.
        """
        variables = {LIBRARY_VARIABLE: str(library_path()), SEGMENT_VARIABLE: self.name}
        return variables if host is None else {**variables, HOST_VARIABLE: host}

    def cut(self, cable: int) -> None:
        """Pulls a cable: the ports of both ends go down and what is on it is lost."""
        self._command(f"cut {cable}")

    def join(self, cable: int) -> None:
        """Plugs it in again."""
        self._command(f"join {cable}")

    def lose(self, cable: int, end: int, count: int) -> None:
        """Loses the next unreliable messages that one end of a cable sends."""
        self._command(f"lose {cable} {end} {count}")

    def change(self, **settings: float) -> None:
        """Changes settings from now on.

        Raises:
            LocalOptionError: There is no such setting, or it cannot have this value.
        """
        for line in _lines(settings):
            self._command(f"set {line}")

    def advance(self, nanoseconds: int) -> None:
        """Moves the manual clock."""
        self._command(f"advance {nanoseconds}")

    def now_ns(self) -> int:
        """The fabric's time, in nanoseconds since it was made."""
        return self._values("now")["now"]

    def counters(self) -> FabricCounters:
        """What went over the fabric so far."""
        values = self._values("counters")
        fields = [field.name for field in dataclasses.fields(SentCounters)]

        def sent(cable: int, end: int) -> SentCounters:
            return SentCounters(**{name: values[f"cable{cable}.end{end}.{name}"] for name in fields})

        return FabricCounters(
            sent=tuple((sent(cable, 0), sent(cable, 1)) for cable in range(len(self.cables))),
            queue_pairs=values["queue_pairs"],
            regions=values["regions"],
        )

    def _command(self, command: str) -> str:
        return self._call("command", command)

    def _values(self, command: str) -> Mapping[str, int]:
        pairs = (line.split("=") for line in self._command(command).splitlines())
        return {key: int(value) for key, value in pairs}

    def _call(self, function: str, *texts: str) -> str:
        answer = ctypes.create_string_buffer(_ANSWER_BYTES)
        encoded = [text.encode() for text in (self.name, *texts)]
        call = self._library[f"macmesh_fakeverbs_{function}"]
        if call(*encoded, answer, ctypes.c_size_t(_ANSWER_BYTES)) != 0:
            raise LocalOptionError(answer.value.decode())
        return answer.value.decode()


def _lines(settings: Mapping[str, float]) -> list[str]:
    return [f"{key}={int(value) if isinstance(value, bool) else value!r}" for key, value in settings.items()]
