"""``python -m simulator``: run one seed or many."""

import argparse
import sys

from .many import run_many
from .options import Options, draw
from .run import RunFailedError, build, run
from .world import World


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 where everything held."""
    parser = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one and print its options")
    parser.add_argument("--trace", action="store_true", help="with --seed: print the readable story")
    parser.add_argument("--full", action="store_true", help="with --trace: every event and effect")
    parser.add_argument("--options", metavar="JSON", help="with --seed: options in place of those drawn")
    parser.add_argument("--seeds", type=int, default=200, help="how many to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--profile", default="", help="swarm or elections; drawn where not given")
    parser.add_argument("--max-failures", type=int, default=3, help="stop after so many")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="stop after so long")
    args = parser.parse_args(arguments)
    if args.seed is not None:
        return _one(args)
    seeds = range(args.first, args.first + args.seeds)
    summary = run_many(
        seeds,
        jobs=args.jobs,
        profile=args.profile,
        max_failures=args.max_failures,
        limit_seconds=args.limit_seconds,
    )
    for failure in summary.failures:
        print(failure)
    for line in summary.lines():
        print(line)
    return 1 if summary.failures else 0


def _one(args: argparse.Namespace) -> int:
    options = draw(args.seed, args.profile)
    if args.options:
        options = Options.from_json(args.options, options)
    print(options.to_json())
    world = build(options, story_lines=None if args.trace else 400)
    try:
        outcome = run(options, world=world)
    except RunFailedError as error:
        _print_trace(world, args)
        print(error if not args.trace else str(error).split("\n", 2)[0])
        return 1
    _print_trace(world, args)
    print(outcome)
    return 0


def _print_trace(world: World, args: argparse.Namespace) -> None:
    if args.trace:
        print(world.story if args.full else "\n".join(world.tale.readable()))


if __name__ == "__main__":
    sys.exit(main())
