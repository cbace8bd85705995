"""What is done to a cluster in a run: one function for each action of `options.ACTIONS`."""

from collections.abc import Callable

from macmesh_daemon.cluster import events as ev

from .network import Network
from .node import SimNode
from .options import Options
from .parts import wanted_model
from .simulation import Faults
from .world import World


def chaos(world: World, options: Options) -> None:
    """Hurt a world for as long as the options say."""
    rng = world.rng
    world.faults = Faults(
        crash_in_step=options.crash_in_step,
        power_loss=options.power_loss,
        nack=options.nack,
        worker_crash=options.worker_crash,
        worker_hang=options.worker_hang,
        planner_refusal=options.planner_refusal,
    )
    world.network = Network(
        options.loss,
        options.duplicate,
        options.tail,
        options.tail_seconds,
        options.delay_seconds,
        options.reset,
    )
    for node in world.nodes.values():
        node.clock.run_at(1.0 + rng.uniform(-options.drift, options.drift), world.now)
    if options.requests:
        _let_clients_come(world, options)
    actions = [(n, w) for n, w in options.actions if not (options.steady and n == "unload")]
    names = [name for name, _ in actions]
    weights = [weight for _, weight in actions]
    end = world.now + options.seconds
    while world.now < end:
        world.run(rng.uniform(0.02, options.pause_seconds))
        (name,) = rng.choices(names, weights)
        world.tale.tell(world.now, "--", name)
        DO[name](world, rng.choice(list(world.nodes.values())))


_FOUNDED_SECONDS = 1.0
"""So long a cluster takes to be founded; who comes before is refused at most."""


def _let_clients_come(world: World, options: Options) -> None:
    """Load a model, and let clients come at any time, each with a fate of its own."""
    serving = world.serving
    serving.patience_seconds = options.patience_seconds
    serving.busy = options.busy
    serving.stale = options.stale
    serving.one_model = options.steady
    serving.slowest_pace_seconds = options.pace_seconds
    rng = serving.rng
    _later(world, _FOUNDED_SECONDS, _load_first, world)
    for _ in range(options.requests):
        _later(world, rng.uniform(_FOUNDED_SECONDS, options.seconds), _submit, world, options)


def _load_first(world: World) -> None:
    leader = world.coordinator()
    if leader is not None:
        world.load(wanted_model("m"), leader)


def _submit(world: World, options: Options) -> None:
    serving, rng = world.serving, world.serving.rng
    tokens = rng.choice([1, 5, 20, 40])
    client = serving.submit(
        rng.choice(list(world.nodes.values())),
        tokens=tokens,
        resumes=rng.random() >= options.plain,
        text_stop=rng.randrange(1, tokens + 1) if rng.random() < 0.2 else 0,
    )
    if rng.random() < options.fickle:
        clients = serving.clients
        seconds = rng.uniform(0.0, 3.0)
        match rng.choice(["cancels", "dies", "is cut off"]):
            case "cancels":
                world.later(seconds, lambda: clients.leave(client, silently=False))
            case "dies":
                world.later(seconds, lambda: clients.leave(client, silently=True))
            case _:
                world.later(seconds, clients.break_off, client)


def _later(world: World, seconds: float, action: Callable[..., None], *args: object) -> None:
    """Do something after a while, unless everything has healed by then."""
    healed = world.healed

    def act() -> None:
        if world.healed == healed:
            action(*args)

    world.later(seconds, act)


def _crash(world: World, node: SimNode) -> None:
    world.crash(node, power=world.rng.random() < world.faults.power_loss)


def _crash_coordinator(world: World, node: SimNode) -> None:
    _crash(world, world.coordinator() or node)


def _power_loss(world: World, node: SimNode) -> None:
    world.crash(node, power=True)


def _boot_all(world: World, node: SimNode) -> None:  # noqa: ARG001  one signature for all
    for down in world.nodes.values():
        _boot(world, down)


def _boot(world: World, node: SimNode) -> None:
    node.drive.is_full = False
    if node.machine is None and not node.is_gone:
        world.boot(node)


def _fast_reboot(world: World, node: SimNode) -> None:
    _crash(world, node)
    _later(world, world.rng.uniform(0.005, 0.3), _boot, world, node)


def _reboot_storm(world: World, node: SimNode) -> None:  # noqa: ARG001  one signature for all
    for other in world.nodes.values():
        if world.rng.random() < 0.6:
            _later(world, world.rng.uniform(0.0, 1.5), _fast_reboot, world, other)


def _partition(world: World, node: SimNode) -> None:  # noqa: ARG001  one signature for all
    _split_at(world, world.rng.randrange(len(world.nodes) + 1))


def _even_split(world: World, node: SimNode) -> None:  # noqa: ARG001  one signature for all
    _split_at(world, len(world.nodes) // 2)


def _split_at(world: World, at: int) -> None:
    names = list(world.nodes)
    world.rng.shuffle(names)
    world.cut("".join(names[:at]), "".join(names[at:]))


def _isolate_coordinator(world: World, node: SimNode) -> None:
    lonely = (world.coordinator() or node).node_id
    world.cut(lonely, "".join(name for name in world.nodes if name != lonely))


def _one_way(world: World, node: SimNode) -> None:
    world.network.cut |= {
        (node.node_id, other) for other in world.nodes if other != node.node_id and world.rng.random() < 0.5
    }


def _bridge(world: World, node: SimNode) -> None:
    """A-B-C without A-C: two halves that only one node sees both of."""
    names = [name for name in world.nodes if name != node.node_id]
    at = world.rng.randrange(len(names) + 1)
    world.cut(
        "".join([node.node_id, *names[:at]]),
        "".join([node.node_id, *names[at:]]),
    )


def _flap_link(world: World, node: SimNode) -> None:
    other = world.rng.choice(list(world.nodes))
    if other != node.node_id:
        for i in range(world.rng.randrange(1, 6)):
            at = i * world.rng.uniform(0.3, 1.5)
            _later(world, at, lambda: world.network.cut_between(node.node_id, other))
            _later(
                world,
                at + world.rng.uniform(0.1, 1.2),
                lambda: world.network.mend_between(node.node_id, other),
            )


def _heal_network(world: World, node: SimNode) -> None:  # noqa: ARG001  one signature for all
    world.network.cut = set()
    world.introduce_all()


def _sleep(world: World, node: SimNode, *, frozen: bool = False) -> None:
    world.sleep(node, frozen=frozen)
    boots = node.boots
    told = world.rng.random() < 0.7
    longest = world.rng.choice([0.3, 1.5, 6.0])

    def wake() -> None:
        if node.boots == boots:
            world.come_back(node, told=told)

    _later(world, world.rng.uniform(0.1, longest), wake)


def _sleep_coordinator(world: World, node: SimNode) -> None:
    _sleep(world, world.coordinator() or node)


def _sleep_majority(world: World, node: SimNode) -> None:  # noqa: ARG001  one signature for all
    nodes = list(world.nodes.values())
    for sleeper in world.rng.sample(nodes, len(nodes) // 2 + 1):
        _sleep(world, sleeper)


def _sleep_all(world: World, node: SimNode) -> None:  # noqa: ARG001  one signature for all
    for sleeper in world.nodes.values():
        _sleep(world, sleeper)


def _freeze(world: World, node: SimNode) -> None:
    _sleep(world, node, frozen=True)


def _freeze_coordinator(world: World, node: SimNode) -> None:
    _sleep(world, world.coordinator() or node, frozen=True)


def _clock_jump(world: World, node: SimNode) -> None:
    # Forward as a sleep looks; back only a little: the clock that the core is promised never goes back.
    node.clock.jump(world.rng.choice([-0.5, 0.9, 5.0, 3600.0]))
    world.give(node, ev.Tick())


def _slow(world: World, node: SimNode) -> None:
    node.slowness = world.rng.choice([0.002, 0.02, 0.1])
    score = world.rng.choice([0, 1, 3])
    world.give(node, ev.LocalHealth(score))

    def recover() -> None:
        node.slowness = 0.0
        world.give(node, ev.LocalHealth(0))

    _later(world, world.rng.uniform(0.5, 4.0), recover)


def _full_drive(world: World, node: SimNode) -> None:
    node.drive.is_full = True

    def free() -> None:
        node.drive.is_full = False

    _later(world, world.rng.uniform(0.1, 3.0), free)


def _kill_worker(world: World, node: SimNode) -> None:
    world.kill_worker(node)


def _load(world: World, node: SimNode) -> None:
    leader = world.coordinator() or node
    name = world.rng.choice("mk")
    serving = world.serving
    # Of one model, another number of stages is another plan, and takes the place of one that works.
    wanted = wanted_model("m", serving.rng.randrange(3)) if serving.one_model else wanted_model(name)
    world.load(wanted, leader)


def _unload(world: World, node: SimNode) -> None:
    world.load(None, world.coordinator() or node)


def _ask_a_follower(world: World, node: SimNode) -> None:
    world.load(wanted_model("m"), node)


def _leave(world: World, node: SimNode) -> None:
    if world.rng.random() < 0.5:
        node = world.coordinator() or node
    world.leave(node)
    boots = node.boots

    def go_down() -> None:
        if node.boots == boots:
            world.crash(node)

    _later(world, world.rng.uniform(0.1, 1.0), go_down)


def _evict(world: World, node: SimNode) -> None:
    world.evict(node.node_id, world.coordinator() or node)


def _drain(world: World, node: SimNode) -> None:
    """Drain a node, or undo that, of a cluster that is led."""
    if world.coordinator() is not None:
        rng = world.rng
        world.drain(node.node_id, force=rng.random() < 0.3, leave=rng.random() < 0.2, undo=rng.random() < 0.3)


def _recover(world: World, node: SimNode) -> None:
    alone = [n for n in world.nodes.values() if n.machine and not n.machine._election.coordinator_id]
    world.recover(world.rng.choice(alone) if alone else node)


def _tear(world: World, node: SimNode) -> None:
    """Lose the state of a node that does not vote; it refuses to start, and is dead for good."""
    document = None if node.drive.is_torn else node.drive.state.document
    if document is None or any(other.drive.is_torn for other in world.nodes.values()):
        return
    if node.node_id not in {member.node_id for member in document.members if member.voter}:
        world.crash(node)
        node.drive.tear()


DO: dict[str, Callable[[World, SimNode], None]] = {
    "crash": _crash,
    "crash coordinator": _crash_coordinator,
    "power loss": _power_loss,
    "boot all": _boot_all,
    "fast reboot": _fast_reboot,
    "reboot storm": _reboot_storm,
    "partition": _partition,
    "even split": _even_split,
    "isolate coordinator": _isolate_coordinator,
    "one way": _one_way,
    "bridge": _bridge,
    "flap link": _flap_link,
    "heal network": _heal_network,
    "sleep one": _sleep,
    "sleep coordinator": _sleep_coordinator,
    "sleep majority": _sleep_majority,
    "sleep all": _sleep_all,
    "freeze": _freeze,
    "freeze coordinator": _freeze_coordinator,
    "clock jump": _clock_jump,
    "slow": _slow,
    "full drive": _full_drive,
    "kill worker": _kill_worker,
    "load": _load,
    "unload": _unload,
    "ask a follower": _ask_a_follower,
    "leave": _leave,
    "evict": _evict,
    "drain": _drain,
    "recover": _recover,
    "tear": _tear,
}
