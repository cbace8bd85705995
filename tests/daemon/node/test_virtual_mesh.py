"""The shell in virtual time: real drivers, stores and logs, fake workers, a network in memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.node.testing import Weather
from support.virtual_loop import VirtualDeadlockError, run_virtual
from support.virtual_mesh import VirtualMesh, wanted_model

if TYPE_CHECKING:
    from pathlib import Path

    from macmesh_daemon.cluster import effects as fx
    from support.virtual_mesh import VirtualNode


async def load(node: VirtualNode, stage_count: int) -> Epoch:
    """Have the model served; returns its epoch."""
    done: Epoch | fx.ChangeRejected = await node.change(
        lambda i: ev.LoadWanted(i, wanted_model("m", stage_count))
    )
    assert isinstance(done, Epoch), done
    return done


def test_a_loop_in_virtual_time_jumps_and_sees_a_deadlock() -> None:
    async def sleep_long() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert run_virtual(sleep_long()) == pytest.approx(3600)

    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(VirtualDeadlockError):
        run_virtual(wait_for_ever())


@pytest.mark.parametrize("count", [3, 5])
def test_a_coordinator_is_lost_and_the_plan_goes_on(count: int, tmp_path: Path) -> None:
    async def main() -> None:
        async with VirtualMesh(tmp_path, count) as mesh:
            coordinator = await mesh.led()
            await mesh.until(lambda: coordinator.member_count == count, "all are members")
            epoch = await load(coordinator, 2)
            await mesh.until(mesh.is_ready, "ready")
            await asyncio.sleep(20)
            await coordinator.crash()
            took = await mesh.until(lambda: mesh.leader() not in {None, coordinator}, "another coordinator")
            assert took < 2.5
            runs = {n.node_id for n in mesh.nodes if n.workers}
            if coordinator.node_id not in runs:
                assert all(n.view.active == epoch for n in mesh.up)
            await mesh.until(mesh.is_ready, "ready again")
            assert mesh.network.delivered > 20 * 4 * (count - 1)
            coordinator.start()
            await mesh.until(lambda: mesh.leader(mesh.nodes) is not None, "it is back")

    run_virtual(main())


def test_the_larger_side_of_a_partition_goes_on_and_the_smaller_changes_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with VirtualMesh(tmp_path, 5, standalone=False) as mesh:
            first = await mesh.led()
            await mesh.until(lambda: first.member_count == 5, "all are members")
            epoch = await load(first, 5)
            await mesh.until(mesh.is_ready, "ready")
            other = next(n for n in mesh.nodes if n is not first)
            small, large = [first, other], [n for n in mesh.nodes if n not in {first, other}]
            mesh.network.partition(tuple(n.node_id for n in small), tuple(n.node_id for n in large))
            second = await mesh.led(large)
            assert second in large
            await mesh.until(lambda: not any(n.view.has_quorum for n in small), "the smaller side knows")
            refused = await first.change(ev.UnloadWanted)
            assert not isinstance(refused, Epoch)
            assert refused.reason in {"NO_QUORUM", "NOT_COORDINATOR"}
            # Five stages were asked for and three nodes are left: nothing better is to be had.
            assert all(n.view.active == epoch for n in small)
            mesh.network.heal()
            third = await mesh.led(mesh.nodes)
            newer = await load(third, 3)
            assert newer > epoch
            await mesh.until(mesh.is_ready, "ready on both sides")
            assert {n.view.active for n in mesh.nodes if n.node_id in third.plan_nodes} == {newer}

    run_virtual(main())


def test_a_killed_member_is_noticed_at_once_and_a_cut_one_is_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with VirtualMesh(tmp_path, 3) as mesh:
            first = await mesh.led()
            await mesh.until(lambda: first.member_count == 3, "all are members")
            await mesh.until(lambda: set(first.view.liveness.values()) == {"alive"}, "all are alive")
            victim, other = (n for n in mesh.nodes if n is not first)
            mesh.network.partition((victim.node_id,), (first.node_id, other.node_id))
            cut = await mesh.until(lambda: first.view.liveness[victim.node_id] == "dead", "cut")
            assert cut > 2.7
            mesh.network.heal()
            await mesh.until(lambda: first.view.liveness[victim.node_id] == "alive", "healed")
            await victim.crash()
            suspect = await mesh.until(lambda: first.view.liveness[victim.node_id] == "suspect", "suspect")
            assert suspect < 0.05
            dead = await mesh.until(lambda: first.view.liveness[victim.node_id] == "dead", "dead")
            assert 0.4 < dead < 0.9
            victim.start()
            await mesh.until(lambda: first.view.liveness[victim.node_id] == "alive", "it is back")

    run_virtual(main())


def test_a_node_that_slept_gives_way_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with VirtualMesh(tmp_path, 3) as mesh:
            first = await mesh.led()
            others = [n for n in mesh.nodes if n is not first]
            first.clock.suspend(3600)
            await mesh.until(lambda: first.view.role != "coordinator", "it stepped down", within_seconds=0.5)
            await mesh.led(others)
            assert await mesh.led(mesh.nodes) in others

    run_virtual(main())


def test_bad_weather_breaks_no_invariant(tmp_path: Path) -> None:
    async def main() -> None:
        weather = Weather(latency_seconds=(0.0005, 0.05), loss=0.05, duplicates=0.1)
        async with VirtualMesh(tmp_path, 3, seed=5, weather=weather) as mesh:
            coordinator = await mesh.led()
            await load(coordinator, 2)
            for _ in range(3):
                await asyncio.sleep(5)
                victim = mesh.rng.choice(mesh.nodes)
                await victim.crash()
                await asyncio.sleep(5)
                victim.start()
            mesh.network.weather = Weather()
            await mesh.led(mesh.nodes)
            await mesh.until(mesh.is_ready, "ready", within_seconds=120)
            assert mesh.check().terms >= 1

    run_virtual(main())


def test_the_same_seed_takes_the_same_course(tmp_path: Path) -> None:
    async def main(folder: Path, seed: int) -> tuple[str, int]:
        weather = Weather(loss=0.02, duplicates=0.02)
        async with VirtualMesh(folder, 3, seed=seed, weather=weather) as mesh:
            coordinator = await mesh.led()
            await load(coordinator, 2)
            await mesh.until(mesh.is_ready, "ready")
            await coordinator.crash()
            await mesh.until(lambda: mesh.leader() not in {None, coordinator}, "another coordinator")
            coordinator.start()
            await asyncio.sleep(3)
        return mesh.trace(), mesh.network.delivered

    one = run_virtual(main(tmp_path / "one", 7))
    assert run_virtual(main(tmp_path / "two", 7)) == one
    assert run_virtual(main(tmp_path / "three", 8)) != one
