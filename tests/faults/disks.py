"""Faults of the data folder: full, torn, copied. Each node's folder is a small file system of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from faults.cluster import MODEL, Node, announced, eventually, now, told
from faults.links import FAILOVER_SECONDS, pause, terms_led
from faults.network import sh
from faults.world import Group
from macmesh import MacmeshError
from macmesh_daemon.demo.nodes import free_ports

if TYPE_CHECKING:
    from pathlib import Path

    from faults.world import World

FOLDER_BYTES = 24 << 20
DEAD_SECONDS = 4.0
RESTART_SECONDS = 10.0
STATE_FILE = "cluster-state"


async def set_up(world: World) -> None:
    """Three nodes, each with its data folder on a file system that can be filled."""
    folders = {}
    for index in range(3):
        place = world.folder / f"t{index + 1}"
        place.mkdir()
        await sh(f"mount -t tmpfs -o size={FOLDER_BYTES},mode=0700 tmpfs {place}")
        world.mounts.append(place)
        folders[index] = place
    await world.cluster.prepare(3, folders=folders)
    await world.cluster.start()
    await world.cluster.formed()


def fill(folder: Path) -> Path:
    """Take all that is left of the file system; returns the file that does."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return path


async def _change(node: Node, context_tokens: int) -> None:
    """Ask for a change, which every node has to store; how it ends is not asked here."""
    async with node.client() as client:
        with contextlib.suppress(MacmeshError):
            await client.load(MODEL, context_tokens=context_tokens, timeout_seconds=20)


async def _ends_loudly(world: World, victim: Node, hurt: float) -> None:
    code = await victim.wait(20)
    world.measure("a state that cannot be stored -> the daemon has ended", now() - hurt, target=5.0)
    world.holds("with a code that tells of a failure", code == 1, code)
    world.holds(
        "and a line that says which file",
        any(STATE_FILE in line and "error" in line for line in victim.log_tail(40).splitlines()),
        victim.log_tail(40),
    )


async def _room_again(world: World, victim: Node, ballast: Path) -> None:
    ballast.unlink()
    began = now()
    await victim.up()
    leader = await world.cluster.formed()
    world.measure("room again, restart -> member again", now() - began, target=RESTART_SECONDS)
    await world.cluster.serving(leader, 60)


async def full_disk_of_member(world: World) -> None:
    """A member cannot store a change: it promises nothing and ends, the others go on."""
    leader = await world.cluster.formed()
    victim = next(n for n in world.cluster.nodes if n is not leader)
    ballast = fill(victim.folder)
    hurt = now()
    change = asyncio.create_task(_change(leader, 1024))
    await _ends_loudly(world, victim, hurt)
    dead = await told([leader], announced("member dead", node_id=victim.node_id), "dead", since=hurt)
    world.measure("-> dead", dead.mono - hurt, target=DEAD_SECONDS + 1.0)
    await change
    await world.cluster.serving(leader, 60)
    world.measure("-> the others serve what was asked for", now() - hurt)
    await _room_again(world, victim, ballast)


async def full_disk_of_coordinator(world: World) -> None:
    """The coordinator cannot store a change: it ends, another is elected, and the change can be made there."""
    victim = await world.cluster.formed()
    others = [n for n in world.cluster.nodes if n is not victim]
    ballast = fill(victim.folder)
    hurt = now()
    change = asyncio.create_task(_change(others[0], 512))
    await _ends_loudly(world, victim, hurt)
    elected = await told(others, announced("coordinator elected"), "a successor", since=hurt)
    world.measure("-> successor elected", elected.mono - hurt, target=FAILOVER_SECONDS + 1.0)
    await change
    await _change(others[0], 768)
    await world.cluster.serving(others[0], 60)
    await _room_again(world, victim, ballast)


async def torn_state_file(world: World) -> None:
    """Half of a node's state file is gone: the daemon refuses to start, says why, and the others go on."""
    leader = await world.cluster.formed()
    victim = next(n for n in world.cluster.nodes if n is not leader)
    await victim.kill()
    path = victim.folder / STATE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    hurt = now()
    await victim.start()
    code = await victim.wait(30)
    world.measure("start -> refused", now() - hurt, target=10.0)
    world.holds("with a code that tells of a failure", code == 1, code)
    world.holds("and a line that names the file", STATE_FILE in victim.log_tail(3), victim.log_tail(3))
    await pause(1.0)
    status = await leader.status()
    world.holds("the others keep their quorum", status is not None and status.has_quorum, status)
    world.holds("and their coordinator", not terms_led(world, hurt), terms_led(world, hurt))
    path.write_bytes(whole)  # the very state that it had: an older one would forget votes
    began = now()
    await victim.up()
    await world.cluster.formed()
    world.measure("file restored, restart -> member again", now() - began, target=RESTART_SECONDS)


def _copy(world: World, original: Node, name: str, launcher: tuple[str, ...] = ()) -> Node:
    """Copy a running node's data folder, with settings of its own for what only one can have."""
    folder = world.folder / name
    shutil.copytree(original.folder, folder, ignore=shutil.ignore_patterns("s", "*.lock"))
    [port] = free_ports(1)
    clone = Node(folder, original.node_id, f"127.0.0.1:{port}")
    clone._launcher = launcher
    text = original.config_path.read_text("utf-8")
    for key, value in (
        ("data_dir", f'"{folder}"'),
        ("socket_path", f'"{clone.socket_path}"'),
        ("listen_port", str(port)),
    ):
        text = "\n".join(f"{key} = {value}" if x.startswith(f"{key} =") else x for x in text.splitlines())
    clone.config_path.write_text(text + "\n", "utf-8")
    clone.log_path.unlink()
    return clone


async def clone(world: World) -> None:
    """A copy of a node's folder runs on the same machine: told as DUPLICATE_ID, and the first one stays."""
    leader = await world.cluster.formed()
    original = next(n for n in world.cluster.nodes if n is not leader)
    nonce = original.pid
    copy = _copy(world, original, "clone")
    try:
        hurt = now()
        await copy.up()

        async def noticed() -> bool | None:
            status = await leader.status()
            lines = status.health if status is not None else ()
            return True if any("DUPLICATE_ID" in h and original.node_id[:8] in h for h in lines) else None

        await eventually(noticed, "`status` tells of the duplicate", 30)
        world.measure("start of the copy -> `status` says DUPLICATE_ID", now() - hurt, target=RESTART_SECONDS)
        await pause(3.0)
        world.holds("the coordinator stays", not terms_led(world, hurt), terms_led(world, hurt))
        world.holds("the original runs on", original.pid == nonce)
    finally:
        await copy.kill()
    ended = now()
    await world.cluster.formed()

    world.measure("end of the copy -> all alive", now() - ended, target=5.0)


async def clone_elsewhere(world: World) -> None:
    """The same copy on a machine of another hardware id: it becomes a node of its own, of no cluster."""
    leader = await world.cluster.formed()
    original = next(n for n in world.cluster.nodes if n is not leader)
    other = world.folder / "machine-id"
    other.write_text("0123456789abcdef0123456789abcdef\n", "ascii")
    script = f'mount --bind {other} /etc/machine-id && exec "$@"'
    copy = _copy(world, original, "moved", ("unshare", "--mount", "sh", "-c", script, "sh"))
    hurt = now()
    try:
        await copy.start()

        async def apart() -> bool | None:
            status = await copy.status()
            if status is None:
                return None
            return True if status.serving_state == "unjoined" else None

        await eventually(apart, "the copy says that it belongs to no cluster", 30)
        world.measure(
            "start of the copy -> it says that it is of no cluster", now() - hurt, target=RESTART_SECONDS
        )
        await pause(1.0)
        # The log of its first moments was put aside with all else that was the original's.
        lines = "\n".join(path.read_text("utf-8") for path in copy.folder.rglob(copy.log_path.name))
        world.holds("its log tells of the new identity", "identity replaced" in lines, lines)
        status = await leader.status()
        assert status is not None
        duplicate = [h for h in status.health if "DUPLICATE_ID" in h]
        world.holds("nobody takes it for the original", not duplicate, duplicate)
    finally:
        await copy.kill()
        os.close(copy._ready_fd)
        copy._ready_fd = -1


GROUP = Group(
    "disks",
    set_up,
    {
        "full-disk-of-member": full_disk_of_member,
        "full-disk-of-coordinator": full_disk_of_coordinator,
        "torn-state-file": torn_state_file,
        "clone-elsewhere": clone_elsewhere,
        "clone": clone,
    },
)
