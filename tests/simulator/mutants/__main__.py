"""``python -m simulator.mutants``: every break of the catalogue must be caught; prints who caught it."""

import argparse
import resource
import sys
import time

from .catalogue import CATALOGUE
from .runner import try_all


def main() -> int:
    """Try them; 0 where none survived."""
    parser = argparse.ArgumentParser(prog="python -m simulator.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="those whose name contains this")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--simulate-seconds", type=float, default=3.0, help="for the simulator, each")
    parser.add_argument("--limit-seconds", type=float, default=180.0, help="for all, each")
    parser.add_argument("--both", action="store_true", help="simulate, whatever the tests have caught")
    args = parser.parse_args()
    begin = time.perf_counter()
    survivors = 0
    chosen = [mutant for mutant in CATALOGUE if args.only in mutant.name]
    print(f"{'mutant':<55} {'s':>5}  caught by")
    for verdict in try_all(
        chosen,
        jobs=args.jobs,
        simulate_seconds=args.simulate_seconds,
        limit_seconds=args.limit_seconds,
        both=args.both,
    ):
        survivors += not verdict.is_caught
        by = " | ".join(filter(None, [verdict.seed, verdict.test])) or "NOBODY"
        print(f"{verdict.mutant.name:<55} {verdict.seconds:5.1f}  {by[:150]}", flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{len(chosen)} mutants, {survivors} survived, {time.perf_counter() - begin:.0f} s, "
        f"{used.ru_utime + used.ru_stime:.0f} s of CPU"
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
