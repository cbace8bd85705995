"""`daemonctl bench`: how fast the served model is, where the time goes, and whether the ledgers hold."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from macmesh_daemon.cli.parsers import add_command, amount, natural, positive

if TYPE_CHECKING:
    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl bench                                        512 tokens in, 128 out, cold and warm
daemonctl bench --prompt 4096 --concurrency 1..8       requests at once, from one to eight
daemonctl bench --sweep --plot speed.png               prefill and decode against the length of the prompt
daemonctl bench --sweep 1024,8192,65536 --repeats 1    at these lengths
daemonctl bench --climb                                one conversation up to the whole context, ledgers checked
daemonctl bench --arrival                              also: what a stream notices of a prompt of 4,000 tokens
daemonctl bench --prefix cold --baseline               the same prompts on mlx-lm alone, side by side
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "bench",
        summary="measure the model that is served",
        examples=_EXAMPLES,
        run=run,
    )
    parser.add_argument(
        "--prompt", type=positive, default=512, metavar="N", help="tokens of each prompt (default 512)"
    )
    parser.add_argument(
        "--tokens", type=positive, default=128, metavar="N", help="tokens of each answer (default 128)"
    )
    parser.add_argument(
        "--concurrency",
        type=counts,
        default=(1,),
        metavar="A,B..C",
        help="requests at once: numbers and ranges, such as 1,2,4 or 1..4 (default 1)",
    )
    parser.add_argument(
        "--prefix",
        choices=("both", "cold", "warm"),
        default="both",
        help="cold: every prompt is new; warm: it was read once before (default both)",
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, metavar="N", help="rounds of each case (default 3)"
    )
    parser.add_argument(
        "--warm-up",
        type=natural,
        default=2,
        metavar="N",
        help="requests before the first that is measured (default 2)",
    )
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="the prompts are drawn from it (default 0)"
    )
    parser.add_argument(
        "--vocabulary",
        type=positive,
        metavar="N",
        help="draw prompts from token ids below N (default: those of the model's tokenizer)",
    )
    parser.add_argument(
        "--sweep",
        type=counts,
        nargs="?",
        const=(),
        metavar="A,B,...",
        help="one request at a time at these prompt lengths instead (default: powers of two up to the context)",
    )
    parser.add_argument(
        "--climb",
        action="store_true",
        help="grow one conversation to the whole context instead, or after the lengths of --sweep, and stop where a"
        " stage's peak passes its ledger",
    )
    parser.add_argument(
        "--arrival",
        type=positive,
        nargs="?",
        const=4000,
        metavar="N",
        help="also run a stream and send a prompt of N tokens meanwhile (default 4000): the times between the"
        " stream's responses before and during it; needs two slots",
    )
    parser.add_argument(
        "--baseline",
        action="store_true",
        help="then run the cold prompts on mlx-lm as it is, on this machine: alone, and where all of several stages"
        " are on this machine also over MLX's ring; needs memory for the model beside what is served",
    )
    parser.add_argument(
        "--baseline-model",
        metavar="FOLDER",
        help="the model for --baseline (default: the folder of the model that is served)",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="also draw what was measured into this PNG (needs macmesh[plot])",
    )
    parser.add_argument(
        "--timeout",
        type=amount,
        default=3600.0,
        metavar="SECONDS",
        help="longest wait for a first token, and for each baseline (default 3600)",
    )


def counts(text: str) -> tuple[int, ...]:
    """An argument that is a list of numbers of at least 1, and of ranges with both ends."""
    found: list[int] = []
    for part in text.split(","):
        first, dots, last = part.partition("..")
        low = positive(first)
        high = positive(last) if dots else low
        if high < low:
            raise argparse.ArgumentTypeError(f"{part!r} counts down")
        found.extend(range(low, high + 1))
    return tuple(dict.fromkeys(found))


def run(args: argparse.Namespace) -> int:
    """Measure, and print what came out; FAILED where a ledger did not hold."""
    from macmesh_daemon.cli import bench  # noqa: PLC0415  --help does without

    return bench.run(args)
