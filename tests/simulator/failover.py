"""``python -m simulator.failover``: how long a cluster is without a coordinator when that is killed."""

import argparse

from .many import distribution
from .world import World

SIZES = (2, 3, 5, 8, 32)
_LIMIT_SECONDS = 30.0


def failover_seconds(seed: int, nodes: int) -> float:
    """Seconds from the end of a coordinator until most of the others follow the next.

    With two nodes the one that dies is not the tie-breaker: the other could not go on alone, by design.
    """
    world = World(f"failover {seed}", nodes, star=nodes > 8)
    world.start()
    while nodes == 2 and (leader := world.coordinator()) is not None and leader.node_id == "a":
        for name in "ab":
            world.crash(name)
            world.boot(name)
        world.run_until(world.agreed, _LIMIT_SECONDS)
    world.run(3 + world.rng.random())
    leader = world.coordinator()
    assert leader is not None
    world.crash(leader)
    return world.run_until(lambda: bool(world.known_by_majority()), _LIMIT_SECONDS)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m simulator.failover", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="for each size; an eighth for 32 nodes")
    args = parser.parse_args()
    for nodes in SIZES:
        seeds = args.seeds if nodes <= 8 else args.seeds // 8
        print(f"{nodes:>3} nodes: " + distribution([failover_seconds(seed, nodes) for seed in range(seeds)]))


if __name__ == "__main__":
    main()
