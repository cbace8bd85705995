"""Seeded trouble for a simulated cluster."""

from daemon.cluster.sim import World
from daemon.cluster.sim_parts import Faults, wanted_model


def chaos(world: World, seconds: float) -> None:
    """Loss, duplicates, delays, crashes, partitions and changes of mind, for a while."""
    rng = world.rng
    world.faults = Faults(
        loss=rng.choice([0.0, 0.02, 0.2]),
        duplicate=rng.choice([0.0, 0.1]),
        slow=rng.choice([0.0, 0.02, 0.3]),
        crash_in_step=rng.choice([0.0, 0.0005, 0.003]),
        nack=rng.choice([0.0, 0.2]),
        worker_crash=rng.choice([0.0, 0.2]),
    )
    end = world.now + seconds
    while world.now < end:
        world.run(rng.uniform(0.05, 1.5))
        node = rng.choice(list(world.nodes.values()))
        match rng.randrange(10):
            case 0:
                world.crash(node)
            case 1 | 2:
                for down in [n for n in world.nodes.values() if n.machine is None]:
                    world.boot(down)
            case 3:
                names = list(world.nodes)
                rng.shuffle(names)
                at = rng.randrange(len(names) + 1)
                world.cut("".join(names[:at]), "".join(names[at:]))
            case 4:
                world.faults.cut = set()
            case 5:
                world.faults.cut |= {(node.node_id, other) for other in world.nodes if rng.random() < 0.5}
            case 6 | 7 | 8:
                leader = world.coordinator()
                if leader is not None:
                    world.load(rng.choice([None, wanted_model("m"), wanted_model("k")]), leader)
            case _:
                world.kill_worker(node)
