"""Checks links over RDMA devices between two machines, in about ten minutes; what it finds can be sent back.

On one machine, with an address of it that the other one reaches, and the device of each cable::

    python -m macmesh_rdma.testing.verbs_check first --host 192.168.1.5 --devices rdma_en3

It prints the command for the other machine. Both write a JSON file: what the system tells of its devices, then for
each step whether it went well, how long it took and what was measured. ``--pull`` adds a step at the end in which a
cable is to be pulled. Without ``first`` or ``second`` only the devices of this machine are told.
"""

import argparse
import asyncio
import base64
import dataclasses
import functools
import json
import platform
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from macmesh_rdma.errors import LocalOptionError, TransportError
from macmesh_rdma.jaccl.facts import HARDWARE_PORTS, IBV_DEVINFO, PROFILER, RDMA_CTL, run_command
from macmesh_rdma.joining.endpoint import Endpoint
from macmesh_rdma.joining.listener import Listener
from macmesh_rdma.native import load_group
from macmesh_rdma.options import LinkOptions
from macmesh_rdma.verbs.settings import VerbsSettings

load_group()  # refuses an MLX that it was not built for, before anything else touches it

from macmesh_rdma.group import Group, open_group  # noqa: E402  after the check
from macmesh_rdma.joining.plan import ProviderChoice  # noqa: E402  same
from macmesh_rdma.verbs.opening import list_devices, verbs_counts  # noqa: E402  same
from macmesh_rdma.verbs.trial import pattern  # noqa: E402  same

FORMAT = "macmesh-verbs-check/1"
SYSTEM_BUILD = ("/usr/bin/sw_vers", "-buildVersion")
COMMANDS = (SYSTEM_BUILD, RDMA_CTL, IBV_DEVINFO, HARDWARE_PORTS, PROFILER)
SIZES_BYTES = (6 << 10, 64 << 10, 12 << 20)
OPTIONS = {
    "as MLX's jaccl": LinkOptions(num_buffers=2, frame_bytes=4096, buffer_sizes=8, max_outstanding=32),
    "default": LinkOptions(),
    "throughput": LinkOptions.preset("throughput"),
}
CONNECT_SECONDS = 60.0
STEP_SECONDS = 20.0
PULL_SECONDS = 90.0
SENT_BYTES = 16 << 20
"""About so much is sent for each size."""


@dataclasses.dataclass(frozen=True)
class Invitation:
    """What the second machine needs to know.

    Attributes:
        endpoint: Of the first one.
        key: Of both.
        rounds: How often the links are set up again.
        pull: Whether a cable is to be pulled at the end.
        quick: Small buffers and messages alone.
    """

    endpoint: str
    key: str
    rounds: int
    pull: bool
    quick: bool = False

    def encode(self) -> str:
        """As one word."""
        return base64.urlsafe_b64encode(json.dumps(dataclasses.asdict(self)).encode()).decode()

    @classmethod
    def decode(cls, text: str) -> "Invitation":
        """Reads what `encode` wrote.

        Raises:
            LocalOptionError: it is something else.
        """
        try:
            value = json.loads(base64.urlsafe_b64decode(text.encode()))
            return cls(
                endpoint=str(value["endpoint"]),
                key=str(value["key"]),
                rounds=int(value["rounds"]),
                pull=bool(value["pull"]),
                quick=bool(value["quick"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise LocalOptionError(f"{text[:20]!r} is no invitation of the first machine") from error


class Check:
    """One machine's part.

    Args:
        rank: 0 is the first machine.
        listener: ours.
        invitation: of the first machine.
        settings: the devices towards the other machine.
        say: tells a person.
    """

    def __init__(
        self,
        rank: int,
        listener: Listener,
        invitation: Invitation,
        settings: VerbsSettings,
        say: Callable[[str], None],
    ) -> None:
        self._rank = rank
        self._listener = listener
        self._invitation = invitation
        self._settings = settings
        self._say = say
        self._number = 0
        self.steps: list[dict[str, Any]] = []

    def run(self) -> bool:
        """All steps; whether each went well."""
        quick = self._invitation.quick
        names, sizes = (list(OPTIONS)[:1], SIZES_BYTES[:1]) if quick else (list(OPTIONS), SIZES_BYTES)
        again = OPTIONS[names[0] if quick else "default"]
        self._step("tcp", lambda: self._measured("tcp", again, sizes))
        for name in names:
            self._step(f"verbs, {name}", functools.partial(self._measured, "verbs", OPTIONS[name], sizes))
        for number in range(self._invitation.rounds):
            self._step(f"verbs, set up again {number + 1}", lambda: self._measured("verbs", again, ()))
        if self._invitation.pull:
            self._step("verbs, a cable is pulled", self._pulled)
        return all(step["ok"] for step in self.steps)

    def _step(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        self._number += 1
        began = time.monotonic()
        step: dict[str, Any] = {"name": name, "ok": True}
        try:
            step |= work()
        except (TransportError, RuntimeError, OSError) as error:
            step |= {"ok": False, "error": f"{type(error).__name__}: {error}"}
        step["seconds"] = round(time.monotonic() - began, 3)
        self.steps.append(step)
        self._say(f"{'ok    ' if step['ok'] else 'FAILED'} {name}: {_told(step)}")

    def _open(
        self, provider: ProviderChoice, options: LinkOptions, *, timeout_seconds: float = STEP_SECONDS
    ) -> Group:
        first = Endpoint.decode(self._invitation.endpoint)
        return open_group(
            self._listener,
            self._rank,
            # The second dials the first, who need not know where that is.
            [first, self._listener.endpoint],
            key=bytes.fromhex(self._invitation.key),
            epoch=(1, 1, self._number),
            name="check",
            topology="pipeline",
            options=options,
            provider=provider,
            timeout_seconds=timeout_seconds,
            connect_seconds=CONNECT_SECONDS,
            verbs=self._settings if provider == "verbs" else None,
        )

    def _measured(
        self, provider: ProviderChoice, options: LinkOptions, sizes: Sequence[int]
    ) -> dict[str, Any]:
        with self._open(provider, options) as group:
            (link,) = group.links
            rows = [self._row(group, size_bytes) for size_bytes in sizes]
            return {
                "provider": link.provider,
                "pool_bytes": link.pool_bytes,
                "latency_us": link.latency_us,
                "gb_per_s": link.gb_per_s,
                "rows": rows,
            }

    def _row(self, group: Group, size_bytes: int) -> dict[str, Any]:
        """Half a round trip, and the speed of messages in one direction, both checked byte for byte."""
        other = 1 - self._rank
        ours, theirs = pattern(self._rank, size_bytes), pattern(other, size_bytes)
        into = bytearray(size_bytes)
        seconds = []
        for _ in range(max(4, min(200, SENT_BYTES // size_bytes))):
            began = time.perf_counter()
            if self._rank == 0:
                group.native.send_bytes(other, ours)
            group.native.receive_bytes(other, into)
            if self._rank == 1:
                group.native.send_bytes(other, ours)
            seconds.append(time.perf_counter() - began)
            if into != theirs:
                raise TransportError(f"{size_bytes} bytes arrived changed", peer=other)
        return {"size_bytes": size_bytes, "half_trip_us": round(statistics.median(seconds) / 2 * 1e6, 2)}

    def _pulled(self) -> dict[str, Any]:
        options = OPTIONS["default"]
        with self._open("verbs", options, timeout_seconds=STEP_SECONDS) as group:
            self._say(
                f"now pull the cable of {self._settings.devices[1 - self._rank]}; the check waits {PULL_SECONDS:g} s"
            )
            deadline = time.monotonic() + PULL_SECONDS
            last = time.monotonic()
            try:
                for _ in self._until(deadline):
                    self._row(group, SIZES_BYTES[1])
                    last = time.monotonic()
            except RuntimeError as error:
                return {"told": str(error), "noticed_after_seconds": round(time.monotonic() - last, 3)}
        raise TransportError("nothing was noticed of a pulled cable")

    @staticmethod
    def _until(deadline: float) -> Iterator[None]:
        while time.monotonic() < deadline:
            yield


async def system_facts(library: str, *, commands: Sequence[Sequence[str]] = COMMANDS) -> dict[str, Any]:
    """What this machine tells of itself; what cannot be found out says why."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "mlx": metadata.version("mlx"),
        "macmesh_rdma": metadata.version("macmesh-rdma"),
    }
    for command in commands:
        try:
            found[" ".join(command)] = await run_command(command)
        except (OSError, TimeoutError) as error:
            found[" ".join(command)] = f"failed: {error or 'no answer in time'}"
    try:
        found["devices"] = list_devices(library)
    except TransportError as error:
        found["devices"] = f"failed: {error}"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check; 0 where all went well."""
    args = _parser().parse_args(arguments)
    facts = asyncio.run(system_facts(args.library))
    told: dict[str, Any] = {"format": FORMAT, "facts": facts}
    ok = True
    try:
        if args.role:
            check = _joined(args, str(facts[" ".join(SYSTEM_BUILD)]).strip())
            told |= {"rank": int(args.role == "second"), "steps": check.steps}
            ok = all(step["ok"] for step in check.steps)
        told["counts"] = dataclasses.asdict(verbs_counts())
    except TransportError as error:
        sys.stderr.write(f"verbs_check: {error}\n")
        return 2
    path = Path(args.output or f"verbs-check-{args.role or 'devices'}.json")
    path.write_text(json.dumps(told, indent=2), "utf-8")
    if not args.role:
        sys.stdout.write(json.dumps(facts["devices"], indent=2) + "\n")
    sys.stdout.write(f"written to {path}\n")
    return 0 if ok else 1


def _joined(args: argparse.Namespace, build: str) -> Check:
    build = "" if build.startswith("failed") else build
    rank = int(args.role == "second")
    settings = VerbsSettings({1 - rank: tuple(args.devices.split(","))}, args.library, build)
    with Listener(args.host) as listener:
        if rank == 0:
            key = secrets.token_hex(32)
            invitation = Invitation(listener.endpoint.encode(), key, args.rounds, args.pull, args.quick)
            _say(
                "on the other machine, with an address of it and its device(s):\n"
                "  python -m macmesh_rdma.testing.verbs_check second --host ADDRESS --devices DEVICE "
                f"--invitation {invitation.encode()}"
            )
        else:
            invitation = Invitation.decode(args.invitation)
        check = Check(rank, listener, invitation, settings, _say)
        check.run()
    return check


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m macmesh_rdma.testing.verbs_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "role", nargs="?", choices=("first", "second"), default="", help="of the two machines"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address of this machine")
    parser.add_argument(
        "--devices", default="", metavar="NAMES", help="of each cable to the other one, comma between"
    )
    parser.add_argument("--invitation", default="", metavar="WORD", help="what the first machine printed")
    parser.add_argument("--library", default="", metavar="FILE", help="verbs library instead of the system's")
    parser.add_argument(
        "--rounds", type=int, default=4, metavar="N", help="set the links up so often again (default 4)"
    )
    parser.add_argument("--quick", action="store_true", help="small buffers and messages alone")
    parser.add_argument("--pull", action="store_true", help="a cable is pulled at the end")
    parser.add_argument(
        "--output", default="", metavar="FILE", help="what to write (default verbs-check-ROLE.json)"
    )
    return parser


def _told(step: dict[str, Any]) -> str:
    if not step["ok"]:
        return str(step["error"])
    if "told" in step:
        return f"noticed after {step['noticed_after_seconds']} s: {step['told']}"
    rows = ", ".join(f"{row['size_bytes']} B {row['half_trip_us']:.1f} us" for row in step["rows"])
    return f"{step['latency_us']:.1f} us, {step['gb_per_s']:.2f} GB/s; {rows}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
