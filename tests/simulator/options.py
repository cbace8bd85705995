"""Everything about a run, drawn from one seed.

Swarm testing (Groce et al., "Swarm Testing", ISSTA 2012): each run has a random subset of the faults, since a
run with all of them at once hides what needs a quiet corner to grow.
"""

import dataclasses
import json
import random
from dataclasses import dataclass
from typing import Any, Self

from macmesh_daemon.cluster.settings import RebalancePolicy

from .parts import names_of, seeded

ACTIONS: dict[str, int] = {
    "crash": 3,
    "crash coordinator": 3,
    "power loss": 2,
    "boot all": 4,
    "fast reboot": 4,
    "reboot storm": 2,
    "partition": 3,
    "even split": 2,
    "isolate coordinator": 2,
    "one way": 3,
    "bridge": 2,
    "flap link": 2,
    "heal network": 5,
    "sleep one": 2,
    "sleep coordinator": 2,
    "sleep majority": 1,
    "sleep all": 1,
    "freeze": 3,
    "freeze coordinator": 2,
    "clock jump": 2,
    "slow": 2,
    "full drive": 2,
    "kill worker": 3,
    "load": 6,
    "unload": 2,
    "ask a follower": 1,
    "leave": 2,
    "evict": 1,
    "drain": 2,
    "recover": 2,
    "tear": 1,
}
"""What can be done to a cluster, with its weight where it is enabled at all."""

_RARE = ("evict", "recover", "tear")
_ALWAYS = ("boot all", "heal network", "load")


@dataclass(frozen=True)
class Options:
    """A run.

    Attributes:
        seed: Of all that happens.
        profile: "swarm", or "elections": reboots within elections over a network with heavy tails.
        nodes: How many.
        late: How many of them start only later.
        expect: `bootstrap_expect`.
        portable: Laptops among them.
        max_voters: As in the settings.
        standalone_after_seconds: As in the settings.
        rebalance: As in the settings.
        seconds: How long faults are injected.
        pause_seconds: Longest time between two of them.
        loss: Of a message, as a probability.
        duplicate: Of a message.
        tail: That a message is late.
        tail_seconds: How late at most.
        delay_seconds: How long a message takes at most otherwise.
        drift: How far a clock's rate may lie from 1.
        clock_offset_seconds: How far apart clocks may begin.
        crash_in_step: That a node crashes between or within two effects of a step.
        power_loss: That such a crash is a loss of power.
        nack: That a node refuses a PREPARE.
        worker_crash: That a worker ends while it loads.
        worker_hang: That it never loads.
        planner_refusal: That the planner finds no plan.
        reset: That a connection is reset for nothing.
        actions: What is done to the cluster, with weights.
        requests: How many clients ask for tokens while faults are injected.
        patience_seconds: Of their requests.
        busy: That a head lets a run wait, or has no room for it.
        pace_seconds: Longest time between two tokens.
        fickle: That a client cancels, dies or loses its connection.
        stale: That a head goes on for a while with a run that was given up, and that what it tells comes late.
        steady: Whether one model is wanted all the time, so that requests can go on through everything.
        plain: That a client has no copy of its tokens, as those of HTTP.
    """

    seed: int
    profile: str = "swarm"
    nodes: int = 3
    late: int = 0
    expect: int = 3
    portable: str = ""
    max_voters: int = 7
    standalone_after_seconds: float = 15.0
    rebalance: RebalancePolicy = "when_it_pays"
    seconds: float = 10.0
    pause_seconds: float = 1.5
    loss: float = 0.0
    duplicate: float = 0.0
    tail: float = 0.0
    tail_seconds: float = 3.0
    delay_seconds: float = 0.01
    drift: float = 0.0
    clock_offset_seconds: float = 0.0
    crash_in_step: float = 0.0
    power_loss: float = 0.0
    nack: float = 0.0
    worker_crash: float = 0.0
    worker_hang: float = 0.0
    planner_refusal: float = 0.0
    reset: float = 0.0
    actions: tuple[tuple[str, int], ...] = ()
    requests: int = 0
    patience_seconds: float = 120.0
    busy: float = 0.0
    pace_seconds: float = 0.05
    fickle: float = 0.0
    plain: float = 0.0
    stale: float = 0.0
    steady: bool = False

    def to_json(self) -> str:
        """All of it; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, base: Self | None = None) -> Self:
        """Read options; those left out are those of ``base``.

        Raises:
            ValueError: An option is unknown.
        """
        given = json.loads(text)
        unknown = set(given) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown options: {', '.join(sorted(unknown))}")
        if "actions" in given:
            given["actions"] = tuple((name, weight) for name, weight in given["actions"])
            unknown = {name for name, _ in given["actions"]} - set(ACTIONS)
            if unknown:
                raise ValueError(f"unknown actions: {', '.join(sorted(unknown))}")
        return dataclasses.replace(base, **given) if base is not None else cls(**given)


def draw(seed: int, profile: str = "") -> Options:
    """The options of a seed; of one profile where that is named."""
    rng = seeded("options", seed)
    profile = profile or rng.choice(["swarm", "swarm", "swarm", "swarm", "elections"])
    count = rng.choice([1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 8])
    late = rng.choice([0, 0, 0, 1, 2]) if count > 2 else 0
    swarm = Options(
        seed,
        profile,
        nodes=count,
        late=late,
        expect=rng.choice([1, count - late]),
        portable="".join(n for n in names_of(count) if rng.random() < rng.choice([0.0, 0.0, 0.3])),
        max_voters=rng.choice([7, 7, 3]),
        standalone_after_seconds=rng.choice([15.0, 2.5]),
        seconds=rng.uniform(4.0, 12.0),
        pause_seconds=rng.choice([0.3, 1.5, 3.0]),
        loss=_maybe(rng, 0.02, 0.2),
        duplicate=_maybe(rng, 0.1),
        tail=_maybe(rng, 0.02, 0.3, 0.5),
        tail_seconds=rng.choice([0.5, 3.0]),
        delay_seconds=rng.choice([0.001, 0.01, 0.1]),
        drift=_maybe(rng, 0.01, 0.1),
        clock_offset_seconds=_maybe(rng, 1000.0),
        crash_in_step=_maybe(rng, 0.0005, 0.005, 0.02),
        power_loss=_maybe(rng, 0.5, 1.0),
        nack=_maybe(rng, 0.2),
        worker_crash=_maybe(rng, 0.2),
        worker_hang=_maybe(rng, 0.1),
        planner_refusal=_maybe(rng, 0.2),
        actions=tuple(
            (n, w) for n, w in ACTIONS.items() if n in _ALWAYS or rng.random() < (0.2 if n in _RARE else 0.4)
        ),
        reset=_maybe(rng, 0.02, 0.2),
        rebalance=rng.choice(["when_it_pays", "always", "always", "never"]),
        **_requests(seed),
    )
    if profile == "elections":
        return dataclasses.replace(
            swarm,
            nodes=rng.choice([3, 4, 5]),
            late=0,
            expect=1,
            seconds=8.0,
            pause_seconds=0.4,
            tail=0.5,
            tail_seconds=rng.choice([0.5, 1.5, 3.0]),
            actions=(
                ("reboot storm", 6),
                ("fast reboot", 4),
                ("crash coordinator", 4),
                ("boot all", 3),
                ("load", 2),
            ),
        )
    return swarm


def _requests(seed: int) -> dict[str, Any]:
    """What clients do: drawn apart, so that a cluster without them lives through the same as ever."""
    rng = seeded("clients", seed)
    return {
        "requests": (count := rng.choice([0, 0, 1, 3, 6, 10])),
        "patience_seconds": rng.choice([2.0, 10.0, 40.0]),
        "busy": _maybe(rng, 0.1, 0.5),
        "pace_seconds": rng.choice([0.01, 0.1, 0.4]),
        "fickle": _maybe(rng, 0.3, 0.8),
        "plain": _maybe(rng, 0.3),
        "steady": rng.random() < 0.7 and count > 0,
        "stale": _maybe(rng, 0.5, 1.0),
    }


def _maybe(rng: random.Random, *values: float) -> float:
    """Nothing, every other time; else one of these."""
    return rng.choice([0.0] * len(values) + list(values))
