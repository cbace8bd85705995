"""``python -m simulator.thousand``: a large cluster for a minute of virtual time, and how long that takes."""

import argparse
import gc
import time

from .world import World

_LIMIT_SECONDS = 30.0


def main() -> None:
    """Found, admit and lead a thousand nodes; kill the coordinator half-way."""
    parser = argparse.ArgumentParser(prog="python -m simulator.thousand", description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    gc.disable()  # nothing here is garbage in a circle, and to look for it takes a second
    begin = time.perf_counter()
    world = World("thousand", args.nodes, expect=1, star=True, story_lines=0)
    world.run(args.seconds / 2)
    members = _members(world)
    leader = world.coordinator()
    assert leader is not None
    world.crash(leader)
    failover = _until_known(world)
    world.run(args.seconds - world.now)
    wall = time.perf_counter() - begin
    print(
        f"{args.nodes} nodes, {world.now:.0f} virtual seconds in {wall:.1f} s: {world.events:,} events, "
        f"{world.events / wall:,.0f} events/s; {members} members, failover {failover:.2f} s, "
        f"then {_members(world)} members"
    )


def _until_known(world: World) -> float:
    """Seconds until most nodes follow the next coordinator, to a hundredth: to ask after every step is dear."""
    begin = world.now
    while not world.known_by_majority():
        assert world.now - begin < _LIMIT_SECONDS
        world.run(0.01)
    return world.now - begin


def _members(world: World) -> int:
    leader = world.coordinator()
    document = leader.up._context.state.document if leader is not None else None
    return len(document.members) if document is not None else 0


if __name__ == "__main__":
    main()
