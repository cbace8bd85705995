"""One run from beginning to judgement, and many of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh_daemon.cluster.messages import ClusterDocument
from macmesh_daemon.cluster.settings import ClusterSettings

from .chaos import chaos
from .checker import InvariantBrokenError
from .options import Options
from .parts import facts_of, names_of, seeded, wanted_model
from .simulation import LivelockError
from .world import World

if TYPE_CHECKING:
    from .node import SimNode

AGREE_SECONDS = 30.0
"""After everything has healed, one coordinator leads all within this."""
READY_SECONDS = 60.0
"""... and a model that is wanted is ready within this."""
REQUEST_SECONDS = 30.0
"""... every request then has its end within this and its patience."""
FAILOVER_SECONDS = 20.0
"""A coordinator that is killed then has a successor within this."""


class RunFailedError(AssertionError):
    """A run broke an invariant or did not come to life again; says everything needed to replay it."""


@dataclass(frozen=True)
class Outcome:
    """What a run was like.

    Attributes:
        events: Deliveries, timers and deeds.
        steps: Of the nodes' machines, each checked.
        virtual_seconds: Simulated.
        heal_seconds: From the end of the faults until all agreed.
        failover_seconds: From a coordinator's end until a majority knew the next; None where there was no quorum.
        terms: Elections won.
        requests: That were accepted; taken up at another node; runs that followed a lost one.
        ends: Of requests, by name.
    """

    seed: int
    nodes: int
    events: int
    steps: int
    virtual_seconds: float
    heal_seconds: float
    failover_seconds: float | None
    terms: int
    requests: tuple[int, int, int] = (0, 0, 0)
    ends: tuple[tuple[str, int], ...] = ()


def build(options: Options, *, story_lines: int | None = 400) -> World:
    """The world of a run, before anything has happened."""
    names = names_of(options.nodes)
    offsets = seeded("clocks", options.seed)
    return World(
        options.seed,
        options.nodes,
        expect=options.expect,
        facts={name: facts_of(name, portable=True) for name in options.portable if name in names},
        down="".join(names[options.nodes - options.late :]) if options.late else "",
        settings=ClusterSettings(
            max_voters=options.max_voters,
            standalone_after_seconds=options.standalone_after_seconds,
            rebalance=options.rebalance,
        ),
        clock_offsets={name: offsets.uniform(0.0, options.clock_offset_seconds) for name in names},
        story_lines=story_lines,
    )


def run(options: Options, *, world: World | None = None) -> Outcome:
    """Live through a run.

    Raises:
        RunFailedError: An invariant broke, or liveness did not come back.
    """
    world = world or build(options)
    try:
        chaos(world, options)
        world.tale.tell(world.now, "--", "everything heals")
        world.heal()
        _replace_lost_quorum(world)
        healed = _until_agreed(world)
        _undo_drains(world)
        _until_ready(world, options)
        if options.requests:
            _serve(world)
        world.check_nothing_is_left_open()
        # One that was evicted and went on by force may have slept until now, and lead its own cluster a moment later.
        while _stop_evicted(world):
            _until_agreed(world)
        failover = _fail_over(world)
    except Exception as error:  # a core that raises has failed, too
        raise RunFailedError(
            f"seed {options.seed}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}\n"
            f"replay: PYTHONPATH=tests python -m simulator --seed {options.seed} --trace "
            f"--options '{options.to_json()}'\n{world.story}"
        ) from error
    checker = world.serving.checker
    return Outcome(
        options.seed,
        options.nodes,
        world.events,
        world.steps,
        world.now,
        healed,
        failover,
        len(world.checker.coordinators),
        (checker.accepted, checker.resumed, checker.replayed),
        tuple(sorted(checker.ends.items())),
    )


def _until_ready(world: World, options: Options) -> None:
    """Load a model and wait for it; where a node alone agrees with itself and another cluster comes, do as above."""
    wanted = wanted_model("m" if options.steady else "final")
    while True:
        if options.steady:
            _end_hung_workers(world)  # the plan may be the same, which waits for them longer than this run
        try:
            world.insist(wanted, READY_SECONDS)
            world.run_until(world.ready, READY_SECONDS)
            world.run_until(world.all_alive, AGREE_SECONDS)
        except (InvariantBrokenError, LivelockError):
            raise
        except AssertionError:
            world.tale.tell(world.now, "--", "not ready: are there two clusters?")
            if not _stop_evicted(world):
                raise
            _until_agreed(world)
        else:
            return


def _end_hung_workers(world: World) -> None:
    for node in world.nodes.values():
        if node.worker is not None and node.worker.hangs:
            world.kill_worker(node)


def _serve(world: World) -> None:
    """Let clients ask a healthy cluster, perhaps under a worker's end; then every request that ever was has its end."""
    serving, rng = world.serving, world.serving.rng
    clients = [serving.submit(rng.choice(world.expected()), tokens=rng.choice([1, 8, 20])) for _ in range(2)]
    is_hurt = rng.random() < 0.3
    if is_hurt:
        world.run(rng.uniform(0.01, 0.5))
        world.kill_worker(rng.choice(world.expected()))
    limit = REQUEST_SECONDS + serving.patience_seconds
    world.run_until(lambda: serving.is_quiet, limit)
    for client in clients:
        if client.end not in {"finished", "failed RESOURCE_EXHAUSTED"} and not is_hurt:
            raise AssertionError(f"the request of a healthy cluster's client ended {client.end}")
    world.run_until(world.ready, READY_SECONDS)
    world.run_until(world.all_alive, AGREE_SECONDS)


def _replace_lost_quorum(world: World) -> None:
    """Do as an operator does where those that lost their state were needed: recover by force from the newest."""
    torn = {node.node_id for node in world.nodes.values() if node.drive.is_torn}
    alive = [node for node in world.nodes.values() if node.node_id not in torn and not node.is_gone]
    newest = max(alive, key=lambda node: node.drive.state.document_version, default=None)
    document = newest.drive.state.document if newest is not None else None
    if not torn or newest is None or document is None:
        return
    if not outweighs_half(document, {node.node_id for node in alive}):
        world.recover(newest)


def _until_agreed(world: World) -> float:
    """Let the nodes agree; where two operators have parted the cluster for good, do as a third does."""
    while True:
        try:
            return world.run_until(world.agreed, AGREE_SECONDS)
        except (InvariantBrokenError, LivelockError):
            raise
        except AssertionError:
            world.tale.tell(world.now, "--", "no agreement: are there two clusters?")
            if not _stop_evicted(world):
                raise


def _undo_drains(world: World) -> None:
    """Let every drained node serve again, as an operator would: asking until it is so."""
    end = world.now + AGREE_SECONDS
    while drained := _drained(world):
        if world.now > end:
            raise AssertionError(f"the drains of {drained} could not be undone")
        for node_id in drained:
            world.drain(node_id, undo=True)
        world.run(1.0)


def _drained(world: World) -> list[str]:
    leader = world.coordinator()
    document = leader.up.view.document if leader is not None else None
    return [m.node_id for m in document.members if m.draining] if document is not None else []


def _stop_evicted(world: World) -> bool:
    """Stop nodes that went on by force although the other cluster had evicted them: two clusters, by design.

    Nobody on one side knew of the other. Neither undoes what its people asked for, and each refuses the other.
    The sides are of different generations, or nobody has forced anything and they have to agree. Who is in
    neither of them, such as a node that was evicted before it ever came, parts nobody and counts for nothing.

    Returns:
        Whether there were any; they are gone for good then.
    """
    sides: dict[int, list[SimNode]] = {}
    for node in world.nodes.values():
        document = node.machine._context.state.document if node.machine is not None else None
        if document is not None and document.member(node.node_id) is not None:
            sides.setdefault(document.generation, []).append(node)
    for generation in sorted(sides, reverse=True):
        others = [node.up._replica.committed for g, side in sides.items() if g != generation for node in side]
        evicted = [
            node
            for node in sides[generation]
            if 2 * sum(d is not None and node.node_id in d.denied_node_ids for d in others) > len(others)
        ]
        for node in evicted:
            world.crash(node)
            node.is_gone = True
        if evicted:
            return True
    return False


def _fail_over(world: World) -> float | None:
    """Kill the coordinator of a healthy cluster; the seconds until a majority of all knows the next."""
    leader = world.coordinator()
    assert leader is not None
    document = leader.up._context.state.document
    assert document is not None
    world.tale.tell(world.now, "--", "the coordinator is killed")
    world.crash(leader)
    if not outweighs_half(document, {n.node_id for n in world.nodes.values() if n.machine is not None}):
        world.run(2.0)
        if any(not _is_of_another_cluster(node, document) for node in world.nodes.values() if leads(node)):
            raise AssertionError("a coordinator without a quorum")
        return None
    return world.run_until(lambda: bool(world.known_by_majority()), FAILOVER_SECONDS)


def leads(node: "SimNode") -> bool:
    """Whether a node is coordinator."""
    return node.machine is not None and node.machine._coordinator is not None


def _is_of_another_cluster(node: "SimNode", document: ClusterDocument) -> bool:
    """Whether a node that this cluster has evicted leads one of another generation: people have parted them."""
    generation = node.up._context.state.generation
    return node.node_id in document.denied_node_ids and generation != document.generation


def outweighs_half(document: ClusterDocument, node_ids: set[str]) -> bool:
    """Whether these nodes hold more than half of a document's votes; counted apart from the core."""
    votes = {member.node_id: 1 for member in document.members if member.voter}
    policy = document.policy
    if policy is not None and policy.tie_breaker_node_id in votes:
        votes[policy.tie_breaker_node_id] += policy.tie_breaker_votes
    return 2 * sum(n for node_id, n in votes.items() if node_id in node_ids) > sum(votes.values())
