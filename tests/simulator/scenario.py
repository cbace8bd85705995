"""Readable files of what is done to a cluster and what must come of it, each with its golden trace.

A file in ``scenarios/`` has one command a line (or several between semicolons); ``#`` starts a comment::

    nodes 3 [seed N] [down de] [portable c] [standalone N] [needs N] [patience N]     first of all; no plan fits
                                                            fewer nodes than it needs
    [at T] COMMAND            at this virtual second, or now
    run N                     let N seconds go by
    start [MODEL]             run until the cluster stands, and serves
    crash X | power off X | boot X | sleep X | freeze X | wake X | kill worker X | clone X
    cut ab-c                  only nodes of the same group reach each other; ab-bc is a bridge
    reset a-c | reject a-c    the calls of a to c are answered by a reset: the next one | all
    heal network | heal       the network | everything
    load MODEL [at X] | unload | evict X [by X] | drain X [force] [leave] [undo] | recover X | leave X
    request R at X tokens N       a client named R asks X for N tokens, one every 0.1 s or so, and goes on elsewhere
    plain request R at X tokens N one without a copy of its tokens, as those of HTTP
    cancel R | break R            it cancels | loses its connection
    crash X when Y sends MESSAGE | crash X when Y WORDS     in the moment before an effect of Y: a call named so,
                                                            or an announcement that begins so
    expect CONDITION [within N]

Conditions: ``coordinator X`` or ``none`` (who leads the highest term), ``ready``, ``agreed``, ``X follows Y``,
``X is VERDICT`` (as the coordinator judges it),
``worker of X`` (``same``, ``gone``, ``running`` or ``alone``: compared with what it was at the last ``remember``),
``members abc``, ``voters abc``, ``planned abc``, ``drained X``, ``denied X``, ``X says WORDS`` (has announced),
``rejected REASON``, ``generation X``
(is above that at the last ``remember``), ``R has N`` (tokens, at least), ``R was CONDITION``
(its client's end: finished, cancelled, broken, failed REASON), ``R waits REASON`` (was the last it was told),
``R ran N times`` (at the node that has it), ``R at X`` (is its API node now), each with ``not`` before it.
``golden/`` holds the decisions that must come out, to the millisecond: run with ``--update`` where a change of the
core is meant to change them.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from macmesh_daemon.cluster import effects as fx
from macmesh_daemon.cluster.quorum import weights
from macmesh_daemon.cluster.settings import ClusterSettings

from .node import SimNode
from .parts import facts_of, names_of, split, wanted_model
from .world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from .serving.clients import Client

FOLDER = Path(__file__).parent / "scenarios"
GOLDEN = Path(__file__).parent / "golden"


class ScenarioError(AssertionError):
    """A scenario is wrong, or what it expects did not come."""


class Scenario:
    """One file on its way through a world."""

    def __init__(self, text: str) -> None:
        lines = [line.split("#")[0] for line in text.splitlines()]
        self._commands = [c.strip() for line in lines for c in line.split(";") if c.strip()]
        self.world = self._build(self._commands.pop(0))
        self._remembered: dict[str, object] = {}
        self._clients: dict[str, Client] = {}
        self._generation = 0

    def run(self) -> list[str]:
        """Do everything; the readable trace.

        Raises:
            ScenarioError: An expectation did not hold.
        """
        for command in self._commands:
            self.world.tale.tell(self.world.now, "--", command)
            try:
                self._do(command)
            except AssertionError as error:
                story = "\n".join(self.world.tale.readable()[-40:])
                raise ScenarioError(f"{command}: {str(error).splitlines()[0]}\n{story}") from error
        self.world.check_nothing_is_left_open()
        if self._clients:
            self.world.run_until(lambda: self.world.serving.is_quiet, 10.0)
        return self.world.tale.readable()

    def _build(self, command: str) -> World:
        words = command.split()
        options = dict(zip(words[::2], words[1::2], strict=True))
        count = int(options.pop("nodes"))
        portable = options.pop("portable", "")
        seconds = float(options.pop("standalone", ClusterSettings().standalone_after_seconds))
        needs = int(options.pop("needs", "1"))
        patience = float(options.pop("patience", "120"))
        world = World(
            int(options.pop("seed", "1")),
            count,
            expect=int(options.pop("expect", count)),
            down=options.pop("down", ""),
            facts={name: facts_of(name, portable=name in portable) for name in names_of(count)},
            settings=ClusterSettings(standalone_after_seconds=seconds),
            story_lines=None,
            compute=lambda ask: (
                split(ask.wanted, [m.node_id for m in ask.members]) if len(ask.members) >= needs else None
            ),
        )
        world.serving.patience_seconds = patience
        world.serving.slowest_pace_seconds = 0.1
        if options:
            raise ScenarioError(f"unknown options {options} in: {command}")
        return world

    def _do(self, command: str) -> None:  # noqa: C901, PLR0912  one arm for each command
        words = command.split()
        if words[0] == "at":
            self.world.run(max(0.0, float(words[1]) - self.world.now))
            words = words[2:]
        world = self.world
        match words:
            case ["run", seconds]:
                world.run(float(seconds))
            case ["start"]:
                world.start()
            case ["start", model]:
                world.start(wanted_model(model))
            case ["crash", name, "when", other, *what]:
                self._trap(name, other, what)
            case ["cut", groups]:
                world.cut(*groups.split("-"))
            case ["reset", pair]:
                world.reset(*pair.split("-"))
            case ["reject", pair]:
                source, target = pair.split("-")
                world.network.rejected.add((source, target))
            case ["load", model]:
                world.load(wanted_model(model))
            case ["load", model, "at", name]:
                world.load(wanted_model(model), name)
            case ["evict", name, "by", other]:
                world.evict(name, other)
            case ["request", name, "at", node_id, "tokens", count]:
                self._submit(name, node_id, int(count), resumes=True)
            case ["plain", "request", name, "at", node_id, "tokens", count]:
                self._submit(name, node_id, int(count), resumes=False)
            case ["cancel", name]:
                world.serving.clients.leave(self._clients[name], silently=False)
            case ["break", name]:
                world.serving.clients.break_off(self._clients[name])
            case ["drain", name, *how]:
                world.drain(name, **dict.fromkeys(how, True))
            case ["expect", *condition, "within", seconds]:
                world.run_until(lambda: self._holds(condition), float(seconds))
            case ["expect", *condition]:
                if not self._holds(condition):
                    raise ScenarioError("does not hold")
            case ["remember"]:
                self._remembered = {name: node.worker for name, node in world.nodes.items()}
                self._generation = max(n.drive.state.generation for n in world.nodes.values())
            case _:
                self._deed(words)

    def _submit(self, name: str, node_id: str, count: int, *, resumes: bool) -> None:
        serving = self.world.serving
        self._clients[name] = serving.submit(
            self.world.nodes[node_id], tokens=count, resumes=resumes, name=name, stops=False
        )

    def _deed(self, words: list[str]) -> None:
        world = self.world
        deeds: dict[str, Callable[[str], object]] = {
            "crash": world.crash,
            "power off": lambda name: world.crash(name, power=True),
            "boot": world.boot,
            "sleep": world.sleep,
            "freeze": lambda name: world.sleep(name, frozen=True),
            "wake": lambda name: world.come_back(world.nodes[name]),
            "kill worker": world.kill_worker,
            "clone": world.clone,
            "evict": world.evict,
            "recover": world.recover,
            "leave": world.leave,
        }
        whole = " ".join(words)
        *deed, name = words
        if whole == "heal":
            world.heal()
        elif whole == "heal network":
            world.network.cut, world.network.rejected = set(), set()
            world.introduce_all()
        elif whole == "unload":
            world.load(None)
        elif " ".join(deed) in deeds and name in world.nodes:
            deeds[" ".join(deed)](name)
        else:
            raise ScenarioError("no such command")

    def _trap(self, name: str, other: str, what: list[str]) -> None:
        def is_it(node: SimNode, effect: fx.Effect) -> bool:
            if node.node_id != other:
                return False
            if what[0] == "sends":
                hit = isinstance(effect, fx.Send) and type(effect.message).__name__ == what[1]
            else:
                hit = isinstance(effect, fx.Announce) and effect.event.startswith(" ".join(what))
            if hit:
                self.world.crash(name)
            return hit

        self.world.traps.append(is_it)

    def _holds(self, condition: list[str]) -> bool:  # noqa: C901, PLR0911, PLR0912  one condition, one return
        world = self.world
        leader = world.coordinator()
        document = leader.up._context.state.document if leader is not None else None
        members = document.members if document is not None else ()
        match condition:
            case ["not", *rest]:
                return not self._holds(rest)
            case [name, *rest] if name in self._clients:
                return self._client_is(self._clients[name], rest)
            case ["coordinator", name]:
                return (leader.node_id if leader is not None else "none") == name
            case ["ready"]:
                coordinator = leader.up._coordinator if leader is not None else None
                return coordinator is not None and coordinator.serving_state == "ready"
            case ["agreed"]:
                return world.agreed()
            case [name, "follows", other]:
                return world.nodes[name].up._election.coordinator_id == other
            case [name, "is", verdict]:
                return leader is not None and leader.up.view.liveness[name] == verdict
            case ["worker", "of", name, what]:
                return self._worker_is(name, what)
            case ["members", names]:
                return sorted(m.node_id for m in members) == sorted(names)
            case ["voters", names]:
                return document is not None and sorted(weights(document)) == sorted(names)
            case ["drained", name]:
                return document is not None and document.by_node_id[name].draining
            case ["planned", names]:
                return document is not None and sorted(
                    document.plan.node_ids if document.plan else ()
                ) == sorted(names)
            case ["denied", name]:
                return document is not None and name in document.denied_node_ids
            case [name, "says", *said]:
                return any(n == name and a.event == " ".join(said) for _, n, a in world.announced)
            case ["rejected", reason]:
                outcomes = [o for n in world.nodes.values() for o in n.outcomes]
                return any(isinstance(o, fx.ChangeRejected) and o.reason == reason for o in outcomes)
            case ["generation", name]:
                return world.nodes[name].drive.state.generation > self._generation
        raise ScenarioError(f"no such condition: {' '.join(condition)}")

    def _client_is(self, client: "Client", condition: list[str]) -> bool:
        live = client.conn.live if client.conn is not None else None
        match condition:
            case ["has", count]:
                return len(client.tokens) >= int(count)
            case ["was", *end]:
                return client.end == " ".join(end)
            case ["waits", reason]:
                return live is not None and live.machine.state == "waiting" and client.pauses[-1:] == [reason]
            case ["ran", count, "times"]:
                return live is not None and live.runs == int(count)
            case ["at", node_id]:
                return client.node.node_id == node_id and bool(client.conn and client.conn.live)
        raise ScenarioError(f"no such condition of a client: {' '.join(condition)}")

    def _worker_is(self, name: str, what: str) -> bool:
        worker = self.world.nodes[name].worker
        match what:
            case "same":
                return worker is not None and worker is self._remembered[name]
            case "gone":
                return worker is None
            case "running":
                return worker is not None
            case "alone":
                return worker is not None and worker.epoch.is_local
        raise ScenarioError(f"a worker is same, gone, running or alone, not {what}")


def names() -> list[str]:
    """Every scenario."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def trace_of(name: str) -> str:
    """Run a scenario; its trace.

    Raises:
        ScenarioError: An expectation did not hold.
    """
    return "\n".join(Scenario((FOLDER / f"{name}.txt").read_text()).run()) + "\n"


def golden_of(name: str) -> str:
    """The trace that must come out; "" where there is none yet."""
    path = GOLDEN / f"{name}.txt"
    return path.read_text() if path.exists() else ""


def main() -> int:
    """Run scenarios; 0 where every one came out as its golden trace says."""
    parser = argparse.ArgumentParser(prog="python -m simulator.scenario")
    parser.add_argument("names", nargs="*", help="those to run; all where none is given")
    parser.add_argument("--update", action="store_true", help="write the golden traces")
    args = parser.parse_args()
    wrong = 0
    for name in args.names or names():
        try:
            trace = trace_of(name)
        except ScenarioError as error:
            wrong += 1
            print(f"{name}: {error}")
            continue
        if args.update:
            GOLDEN.mkdir(exist_ok=True)
            (GOLDEN / f"{name}.txt").write_text(trace)
        is_golden = trace == golden_of(name)
        wrong += not is_golden
        print(f"{name}: {'as before' if is_golden else 'another trace than before'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
