"""Message ports between real processes: death, stop, close, and that nothing stays behind."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from macmesh_rdma.errors import LocalPortError, LocalSharedMemoryError, RemotePeerLostError
from macmesh_rdma.messages.local_connection import LocalConnection, adopt_port
from macmesh_rdma.messages.port import HIGH_WATER_BYTES, MessagePort
from macmesh_rdma.shared_memory import create_shared_memory

ROLE_MAIN = Path(__file__).parent / "port_role_main.py"
DEADLINE_SECONDS = 120.0
STUCK_BYTES = HIGH_WATER_BYTES + 1024 * 1024

process = pytest.mark.process


@pytest.fixture(params=["ring", "socket"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def other_side(kind: str, role: str) -> AsyncIterator[tuple[MessagePort, asyncio.subprocess.Process]]:
    with LocalConnection(rings=kind == "ring") as connection:
        port = connection.open_port()
        child = await asyncio.create_subprocess_exec(
            sys.executable, str(ROLE_MAIN), role, *connection.arguments, pass_fds=connection.descriptors
        )
    try:
        assert port.kind == kind
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield port, child
    finally:
        port.close()
        if child.returncode is None:
            child.kill()
        await child.wait()


@process
async def test_tiny_messages_keep_their_order_both_ways_at_once(kind: str) -> None:
    # The fallback makes a system call for each.
    total = 100_000 if kind == "ring" else 20_000
    async with other_side(kind, "count") as (port, child):

        async def send() -> None:
            for number in range(total):
                port.send(number.to_bytes(4, "big"))
                if number % 512 == 0:
                    await port.drain()

        port.send(str(total).encode())
        with blockbuster_ctx():
            async with asyncio.TaskGroup() as group:
                group.create_task(send())
                for number in range(total):
                    assert await port.receive() == number.to_bytes(4, "big")
            assert await port.receive() == b"in order"
            assert await port.receive() is None
        assert await child.wait() == 0


@process
async def test_a_process_killed_in_the_middle_of_a_message_is_lost(kind: str) -> None:
    async with other_side(kind, "die") as (port, child):
        # Not received before it is dead: what it sent whole must still be there.
        assert await child.wait() == -signal.SIGKILL
        assert [await port.receive() for _ in range(3)] == [b"one", b"", b"three"]
        for _ in range(2):
            with pytest.raises(RemotePeerLostError, match="has gone"):
                await port.receive()
        with pytest.raises(RemotePeerLostError):
            port.send(b"x")
        with pytest.raises(RemotePeerLostError):
            await port.flush()


@process
async def test_a_process_that_closes_is_told_from_one_that_dies(kind: str) -> None:
    async with other_side(kind, "leave") as (port, child):
        assert [await port.receive() for _ in range(4)] == [b"one", b"", bytes(100_000), None]
        assert await child.wait() == 0
    async with other_side(kind, "echo") as (port, child):
        port.send(b"are you there")
        assert await port.receive() == b"are you there"
        port.close()
        assert await child.wait() == 0


@process
async def test_a_stopped_process_makes_the_sender_wait_and_loses_nothing(kind: str) -> None:
    async with other_side(kind, "echo") as (port, child):
        port.send(b"up")
        assert await port.receive() == b"up"
        child.send_signal(signal.SIGSTOP)
        sent: list[bytes] = []
        while port.pending_bytes <= STUCK_BYTES:
            sent.append(len(sent).to_bytes(4, "big") * 250)
            port.send(sent[-1])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await port.drain()
        child.send_signal(signal.SIGCONT)
        draining = asyncio.create_task(port.drain())
        assert [await port.receive() for _ in sent] == sent
        await draining


@process
async def test_a_prompt_of_a_megabyte_comes_back(kind: str) -> None:
    async with other_side(kind, "echo") as (port, _):
        prompt = os.urandom(1_000_000)
        with blockbuster_ctx():
            port.send(prompt)
            assert await port.receive() == prompt


@process
async def test_a_dead_parent_is_noticed_while_a_thread_hangs(kind: str) -> None:
    script = textwrap.dedent(
        """
        import asyncio, os, signal, subprocess, sys
        from macmesh_rdma.messages.local_connection import LocalConnection

        async def main():
            with LocalConnection(rings=sys.argv[2] == "ring") as connection:
                port = connection.open_port()
                subprocess.Popen(
                    [sys.executable, sys.argv[1], "outlive", *connection.arguments], pass_fds=connection.descriptors
                )
            assert await port.receive() == b"hanging"
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
        """
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(ROLE_MAIN), kind, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE_SECONDS):
        output, _ = await parent.communicate()
    assert parent.returncode == -signal.SIGKILL
    # The pipe ends only when the child, which inherited it, has ended too.
    assert output == b"lost\n"


def held() -> tuple[int, int]:
    """Descriptors and mapped rings."""
    gc.collect()
    maps = Path("/proc/self/maps")
    mapped = maps.read_text().count("/macmesh-") if maps.exists() else 0
    return len(list(Path("/dev/fd").iterdir())), mapped


async def test_nothing_stays_behind(kind: str, names: Any) -> None:
    others = held()[1]
    for round_number in range(50):
        with LocalConnection(rings=kind == "ring") as connection:
            first = connection.open_port()
            fd, *rings = connection.descriptors
            second = adopt_port(os.dup(fd), ",".join(str(os.dup(ring)) for ring in rings))
        first.send(b"x")
        assert await second.receive() == b"x"
        if round_number == 1 and sys.platform == "linux":
            assert held()[1] - others == (4 if kind == "ring" else 0)
        second.close()
        first.close()
        if round_number == 0:
            del first, second
            before = held()
    del first, second
    assert held() == before
    assert before[1] == others
    assert len(names.made) == (100 if kind == "ring" else 0)
    assert not names.left()


async def test_descriptors_of_something_else_are_refused(tmp_path: Path) -> None:
    plain = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    with pytest.raises(LocalPortError, match="no socket of a parent"):
        adopt_port(plain)
    os.close(plain)
    with LocalConnection() as connection:
        fd, first, _ = connection.descriptors
        for rings in (str(first), "a,b"):
            with pytest.raises(LocalPortError, match="--ring-fds"):
                adopt_port(os.dup(fd), rings)
        connection.open_port().close()
        with pytest.raises(LocalPortError, match="before"):
            connection.open_port()


def test_shared_memory_is_zero_and_private_to_who_holds_it() -> None:
    memory = create_shared_memory(5000)
    try:
        assert os.fstat(memory).st_size == 5000
        assert os.pread(memory, 5000, 0) == bytes(5000)
        assert not os.get_inheritable(memory)
    finally:
        os.close(memory)


def run_limited(script: str, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@process
def test_too_little_memory_or_too_few_descriptors_mean_the_socket() -> None:
    done = run_limited(
        """
        import asyncio, resource
        from macmesh_rdma.messages.local_connection import LocalConnection

        def tell(**limits):
            for name, value in limits.items():
                hard = resource.getrlimit(getattr(resource, name))[1]
                resource.setrlimit(getattr(resource, name), (value, hard))
            with LocalConnection() as connection:
                port = connection.open_port()
                print(port.kind, connection.why_no_ring)
                port.close()

        async def main():
            tell()
            open_files = len(__import__("os").listdir("/dev/fd")) - 1
            tell(RLIMIT_NOFILE=open_files + 3)
            tell(RLIMIT_NOFILE=200, RLIMIT_FSIZE=4096)

        asyncio.run(main())
        """
    )
    assert done.returncode == 0, done.stderr
    ring, descriptors, too_large = done.stdout.splitlines()
    assert ring == "ring "
    assert descriptors.startswith("socket cannot get ")
    assert "Too many open files" in descriptors
    assert too_large.startswith("socket cannot get")


@process
def test_a_full_dev_shm_is_an_error_and_no_crash() -> None:
    # In a mount namespace of its own, where the system lets us make one.
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = "mount -t tmpfs -o size=256k none /dev/shm"
    try:
        possible = (
            subprocess.run([*unshare, mount], capture_output=True, timeout=10, check=False).returncode == 0
        )
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("no mount namespaces here")
    script = """
        import asyncio
        from macmesh_rdma.messages.local_connection import LocalConnection

        async def main():
            with LocalConnection() as connection:
                port = connection.open_port()
                print(port.kind, connection.why_no_ring)
                port.close()

        asyncio.run(main())
    """
    done = run_limited(script, *unshare, f'{mount} && exec "$@"', "sh")
    assert done.stdout.startswith("socket cannot get "), done.stderr
    assert "is /dev/shm full" in done.stdout


def test_a_python_without_shared_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("macmesh_rdma.shared_memory._posixshmem", None)
    with pytest.raises(LocalSharedMemoryError, match="built without"):
        create_shared_memory(1)
