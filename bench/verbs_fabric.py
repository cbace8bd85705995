"""What the settings of a link over RDMA devices are worth, on a modelled cable.

python bench/verbs_fabric.py [--gigabytes-per-second 8] [--latency-us 10] [--slowdowns 50 1] [--rounds 15]

Two processes with a link over the fake verbs library, whose cable takes `latency + bytes / bandwidth` for a message,
one after the other in each direction. Compared are 8 buffers of 6 sizes from 64 KiB with the numbers that MLX's own
backend has compiled in, 2 of 8 sizes from 4 KiB, both carried by our provider; then numbers of buffers from 1 to 64.

The copies through shared memory cost more than such a cable. So the model's time goes `slowdown` times slower than
the machine's: at 50 what remains is the model and the protocol, at 1 the machine. Times are the model's:
`one_way_us` is the median, `least_us` the least, which other work on the machine disturbs less; of three streams the
best is given. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import socket
import subprocess
import sys
from statistics import median
from typing import Any, Final

SIZES: Final = {"6 KiB": 6 * 1024, "64 KiB": 64 * 1024, "12 MiB": 12 << 20}
TIMEOUT_SECONDS: Final = 120.0
FLOODS: Final = 3


@dataclasses.dataclass(frozen=True)
class Knobs:
    """Of one link."""

    num_buffers: int
    frame_bytes: int
    buffer_sizes: int
    max_outstanding: int


SEEDS: Final = Knobs(8, 65536, 6, 256)
STOCK: Final = Knobs(2, 4096, 8, 32)
CURVE: Final = (1, 2, 4, 8, 64)


@dataclasses.dataclass(frozen=True)
class Case:
    """One pair of processes."""

    knobs: Knobs
    gigabytes_per_second: float
    latency_us: float
    slowdown: int
    rounds: int


def limit_us(case: Case, size_bytes: int) -> float:
    """What the model says one message takes at least."""
    return case.latency_us + size_bytes / (case.gigabytes_per_second * 1e3)


def one_side(case: Case, control: int, *, leads: bool) -> dict[str, Any]:
    """In a process of its own."""
    import mlx.core  # noqa: F401, PLC0415  before the native module; this process alone needs them

    from macmesh_rdma import _group  # noqa: PLC0415  same

    options = _group.LinkOptions(**dataclasses.asdict(case.knobs), spin_us=100.0)
    cable = _group.VerbsCable(device="fake0", port=1, gid_index=1)
    # The one link of its cable has all of the device's queue pairs. The times of the protocol are the model's too.
    settings = _group.VerbsOptions(links_per_device=1, retransmit_ms=5.0 * case.slowdown)
    link = _group.verbs_link(control, [cable], options, settings, TIMEOUT_SECONDS)
    out: dict[str, Any] = {}
    for name, size in SIZES.items():
        rounds = case.rounds if size < 1 << 20 else max(3, case.rounds // 3)
        ways = (_group.link_ping, _group.link_flood) if leads else (_group.link_echo, _group.link_drain)
        ways[0](link, size, 2, TIMEOUT_SECONDS)
        trips = ways[0](link, size, rounds, TIMEOUT_SECONDS)
        floods = [ways[1](link, size, rounds, TIMEOUT_SECONDS) for _ in range(FLOODS)]
        if trips is None:
            continue
        model = 1e6 / case.slowdown
        least = min(trips) / 2 * model
        # The answer to the flood comes a latency after the last message.
        stream = (min(took for took in floods if took) * model - case.latency_us) / rounds
        out[name] = {
            "one_way_us": round(median(trips) / 2 * model, 1),
            "least_us": round(least, 1),
            "limit_us": round(limit_us(case, size), 1),
            "of_limit": round(limit_us(case, size) / least, 3),
            "stream_gb_per_s": round(size / stream / 1e3, 3),
            "stream_of_bandwidth": round(size / stream / 1e3 / case.gigabytes_per_second, 3),
        }
    facts = _group.verbs_link_facts(link)
    out["pool_bytes"] = link.pool_bytes
    out |= {key: facts[key] for key in ("regions", "queue_pairs", "notes", "retransmitted", "lost")}
    return out


def run_case(case: Case) -> dict[str, Any]:
    """Both processes on a fabric of their own."""
    from macmesh_rdma.testing.fakeverbs import FakeFabric  # noqa: PLC0415  not needed in the sides

    fabric = FakeFabric(
        [("a.fake0", "b.fake0")],
        latency_ns=int(case.latency_us * 1000),
        bytes_per_second=int(case.gigabytes_per_second * 1e9),
        slowdown=case.slowdown,
        pool_bytes=256 << 20,
    )
    left, right = socket.socketpair()
    with fabric, left, right:
        sides = [
            subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    "--side",
                    host,
                    "--control",
                    str(end.fileno()),
                    "--case",
                    _encode(case),
                ],
                stdout=subprocess.PIPE,
                env=os.environ | fabric.environment(host),
                pass_fds=[end.fileno()],
            )
            for host, end in (("a", left), ("b", right))
        ]
        left.close()
        right.close()
        try:
            answers = [side.communicate(timeout=TIMEOUT_SECONDS)[0] for side in sides]
        finally:
            for side in sides:
                side.kill()
                side.wait()
        if any(side.returncode for side in sides):
            raise RuntimeError("a side of the bench failed; what it said stands above")
        found: dict[str, Any] = json.loads(answers[0])
        found["dropped_for_want_of_a_receive"] = sum(end.no_receive for end in fabric.counters().sent[0])
        return found


def _encode(case: Case) -> str:
    return json.dumps(dataclasses.asdict(case))


def _decode(text: str) -> Case:
    given = json.loads(text)
    return Case(**(given | {"knobs": Knobs(**given["knobs"])}))


def main() -> None:
    """The table and the curve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes-per-second", type=float, default=8.0)
    parser.add_argument("--latency-us", type=float, default=10.0)
    parser.add_argument("--slowdowns", type=int, nargs="+", default=[50, 1])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--control", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        found = one_side(_decode(given.case), given.control, leads=given.side == "a")
        print(json.dumps(found))
        return

    def measured(knobs: Knobs, slowdown: int) -> dict[str, Any]:
        return run_case(Case(knobs, given.gigabytes_per_second, given.latency_us, slowdown, given.rounds))

    report: dict[str, Any] = {
        "gigabytes_per_second": given.gigabytes_per_second,
        "latency_us": given.latency_us,
        "slowdowns": {},
    }
    for slowdown in given.slowdowns:
        report["slowdowns"][slowdown] = {
            "8 x 64 KiB x 6, 256": measured(SEEDS, slowdown),
            "2 x 4 KiB x 8, 32": measured(STOCK, slowdown),
            "num_buffers": {
                count: measured(dataclasses.replace(SEEDS, num_buffers=count), slowdown) for count in CURVE
            },
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
