"""The demo's daemons: real processes with separate data folders."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from macmesh import AsyncClient
from macmesh_daemon.demo.errors import RemoteDemoNodeError
from macmesh_daemon.demo.sizing import demo_link_settings
from macmesh_daemon.identity import init_cluster, load_credentials, provision_node

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

#: A daemon told to stop gets this long before it is killed.
STOP_DEADLINE_SECONDS = 12.0
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What the demo sets for every daemon; the rest is the shipped default."""

    usable_bytes: int
    runtime_reserve_bytes: int
    bootstrap_expect: int
    mdns: bool
    probe_cache_dir: Path
    extra: Mapping[str, object] = field(default_factory=dict)
    environments: Sequence[Mapping[str, str]] = ()


def toml_of(values: Mapping[str, object]) -> str:
    """A flat TOML document; JSON's text for strings, numbers, booleans and lists is TOML's too."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind((_LOOPBACK, 0))
        return [listener.getsockname()[1] for listener in sockets]


class DemoNode:
    """One daemon process."""

    def __init__(
        self,
        folder: Path,
        node_id: str,
        *,
        launcher: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Name the daemon.

        Args:
            folder: All that is its own.
            node_id: Of its certificate.
            launcher: A command that execs what follows it, such as ``ip netns exec``.
            environment: What its environment has beside this process's.
        """
        self.folder = folder
        self._launcher = launcher
        self._environment = dict(environment or {})
        self.node_id = node_id
        self.config_path = folder / "macmesh.toml"
        self.log_path = folder / "macmeshd.log"
        self.socket_path = folder / "macmeshd.sock"
        self._process: asyncio.subprocess.Process | None = None
        self._ready_fd = -1

    async def start(self) -> None:
        """Exec the daemon; its log goes to a file in its folder."""
        self._ready_fd, write_fd = os.pipe()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MACMESH_")}
        environment |= self._environment
        try:
            with self.log_path.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *self._launcher,
                    sys.executable,
                    "-m",
                    "macmesh_daemon.cli.macmeshd",
                    "--config",
                    str(self.config_path),
                    "--ready-fd",
                    str(write_fd),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    pass_fds=(write_fd,),
                    start_new_session=True,
                )
        finally:
            os.close(write_fd)

    async def ready(self, deadline_seconds: float) -> None:
        """Return once the daemon answers on its socket.

        Raises:
            RemoteDemoNodeError: it ended, or was not ready in time.
        """
        fd, self._ready_fd = self._ready_fd, -1
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", buffering=0)
        )
        try:
            async with asyncio.timeout(deadline_seconds):
                line = await reader.readline()
        except TimeoutError:
            raise RemoteDemoNodeError(
                f"daemon {self.node_id[:8]} was not ready within {deadline_seconds:.0f} s:\n{self.log_tail()}"
            ) from None
        finally:
            transport.close()
        if not line:
            await self.wait(STOP_DEADLINE_SECONDS)
            self.check()

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def check(self) -> None:
        """Raise where the daemon has ended.

        Raises:
            RemoteDemoNodeError: with the end of its log.
        """
        process = self._process
        if process is not None and process.returncode is not None:
            raise RemoteDemoNodeError(
                f"daemon {self.node_id[:8]} ended with code {process.returncode}; the end of {self.log_path}:\n"
                f"{self.log_tail()}"
            )

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_path.read_text("utf-8", "replace").splitlines()[-lines:])
        return ""

    def signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal, where it runs."""
        if self.pid is not None and self._process is not None:
            self._process.send_signal(number)

    def client(self) -> AsyncClient:
        """A client of this daemon over its Unix socket."""
        return AsyncClient(f"unix://{self.socket_path}")

    async def wait(self, deadline_seconds: float) -> int | None:
        """Its exit code; None where it still runs after the deadline."""
        if self._process is None:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                return await self._process.wait()
        return None

    async def stop(self) -> None:
        """End the daemon in order; kill it where it does not."""
        if self._ready_fd >= 0:
            os.close(self._ready_fd)
            self._ready_fd = -1
        self.signal(signal.SIGTERM)
        if await self.wait(STOP_DEADLINE_SECONDS) is None and self._process is not None:
            self.signal(signal.SIGKILL)
            await self._process.wait()


class DemoCluster:
    """Some daemons of one fresh cluster; an async context manager that leaves nothing running."""

    def __init__(
        self,
        folder: Path,
        count: int,
        settings: NodeSettings,
        *,
        launchers: Sequence[tuple[str, ...]] = (),
    ) -> None:
        """Name the daemons; `launchers` are those of the nodes in their order, see `DemoNode`."""
        self.folder = folder
        self._count = count
        self._launchers = launchers
        self.settings = settings
        self.nodes: list[DemoNode] = []

    def prepare(self) -> None:
        """Make the folders, the cluster's CA, every node's certificate and configuration. Blocks."""
        folders = [self.folder / f"node{index + 1}" for index in range(self._count)]
        ca = init_cluster(folders[0])
        ports = [0] * self._count if self.settings.mdns else free_ports(self._count)
        for index, folder in enumerate(folders):
            # The first folder was certified when it founded the cluster.
            node_id = provision_node(folder, ca) if index else load_credentials(folder).node_id
            seeds = [f"{_LOOPBACK}:{port}" for i, port in enumerate(ports) if i != index]
            values: dict[str, object] = {
                "data_dir": str(folder),
                "socket_path": str(folder / "macmeshd.sock"),
                "listen_host": _LOOPBACK,
                "listen_port": ports[index],
                "mdns": self.settings.mdns,
                "mdns_interfaces": [_LOOPBACK],
                "usable_bytes": self.settings.usable_bytes,
                "runtime_reserve_bytes": self.settings.runtime_reserve_bytes,
                "bootstrap_expect": self.settings.bootstrap_expect,
                "probe_cache_dir": str(self.settings.probe_cache_dir),
                "log_format": "json",
                **demo_link_settings(),
                **({} if self.settings.mdns else {"seeds": seeds}),
                **self.settings.extra,
            }
            launcher = self._launchers[index] if self._launchers else ()
            environment = self.settings.environments[index] if self.settings.environments else None
            node = DemoNode(folder, node_id, launcher=launcher, environment=environment)
            node.config_path.write_text(toml_of(values), "utf-8")
            self.nodes.append(node)

    async def start(self) -> None:
        """Start every daemon."""
        for node in self.nodes:
            await node.start()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.prepare)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            for node in self.nodes:
                tasks.create_task(node.stop(), name=f"stop {node.node_id[:8]}")
