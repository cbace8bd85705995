"""`daemonctl verify`: does a split model give the tokens of single-process mlx-lm?"""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import settings
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, talk
from macmesh_daemon.cli.parsers import add_command, add_kv_bits, amount, model_argument, positive

if TYPE_CHECKING:
    from pathlib import Path

    from macmesh_daemon.cli.parsers import Subparsers
    from macmesh_daemon.supervisor.verify import Generation, VerifyReport

_EXAMPLES = """
daemonctl verify ~/models/Qwen3-0.6B --stages 3              three workers on this machine against mlx-lm alone
daemonctl verify ~/models/Qwen3-0.6B --cuts 4,20             stages that begin at layers 0, 4 and 20
daemonctl verify ~/models/Qwen3-0.6B --kv-bits 8             both sides with quantised caches
daemonctl verify ~/models/tiny --token-ids 1,2,3 --json      a model without a tokenizer
"""
_PROMPT = "A node is"


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 4,20") from None
    if any(number < 0 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} has a number below 0")
    return numbers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "verify",
        summary="check that a split model gives the tokens of single-process mlx-lm",
        examples=_EXAMPLES,
        run=run,
        daemon=False,
    )
    parser.add_argument("model", metavar="MODEL", help="a model folder, or a name below a models folder")
    parser.add_argument(
        "--stages", type=positive, metavar="N", help="worker processes (default 2, or as --cuts says)"
    )
    parser.add_argument(
        "--cuts",
        type=_numbers,
        metavar="A,B,...",
        help="first layers of all stages but the head (default: even)",
    )
    parser.add_argument(
        "--tokens", type=positive, default=48, metavar="N", help="tokens to compare (default 48)"
    )
    add_kv_bits(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", default=_PROMPT, metavar="TEXT", help=f"what to continue (default {_PROMPT!r})"
    )
    prompt.add_argument("--token-ids", type=_numbers, metavar="A,B,...", help="the prompt as token ids")
    parser.add_argument(
        "--timeout", type=amount, default=600.0, metavar="SECONDS", help="for each side (default 600)"
    )


def run(args: argparse.Namespace) -> int:
    """Run both sides, one after the other, and compare; FAILED where the tokens differ."""
    stages = len(args.cuts) + 1 if args.cuts is not None else args.stages or 2
    if args.stages is not None and args.stages != stages:
        raise CommandError(
            f"--cuts makes {stages} stages and --stages says {args.stages}",
            reason="INVALID_ARGUMENT",
            exit_code=exit_codes.USAGE,
        )
    report = asyncio.run(_verify(args, stages))
    if args.json:
        print_json(args, report.to_json())
    else:
        print_data(_text(report))
    return exit_codes.OK if report.identical else exit_codes.FAILED


async def _verify(args: argparse.Namespace, stages: int) -> VerifyReport:
    from macmesh_daemon.models import ModelError, resolve  # noqa: PLC0415  --help does without
    from macmesh_daemon.supervisor.errors import SupervisorError  # noqa: PLC0415  as above
    from macmesh_daemon.supervisor.verify import verify  # noqa: PLC0415  as above

    try:
        folder = await asyncio.to_thread(resolve, model_argument(args.model), settings().models_folders)
        prompt = args.token_ids
        if prompt is None:
            prompt = await asyncio.to_thread(_encode, folder.path, args.prompt)
        caches = f", caches of {args.kv_bits} bits" if args.kv_bits else ""
        talk(f"{folder.path}: {stages} workers, then mlx-lm alone; {len(prompt)} tokens of prompt{caches}")
        return await verify(
            folder.path,
            prompt,
            args.tokens,
            stages=stages,
            cuts=args.cuts,
            kv_bits=args.kv_bits,
            deadline_seconds=args.timeout,
        )
    except ModelError as error:
        raise CommandError(str(error), reason=error.reason) from error
    except SupervisorError as error:
        raise CommandError(f"cannot compare: {error}", reason="VERIFY_FAILED") from error


def _encode(folder: Path, text: str) -> list[int]:
    from macmesh_daemon.models.tokenizer import ModelTokenizer  # noqa: PLC0415  loads tokenizers
    from macmesh_daemon.models.tokenizer_errors import TokenizerError  # noqa: PLC0415  as above

    try:
        return list(ModelTokenizer.from_folder(folder).encode(text))
    except TokenizerError as error:
        raise CommandError(
            f"{error}; give the prompt as --token-ids to do without a tokenizer", reason="MODEL_BROKEN"
        ) from error


def _text(report: VerifyReport) -> str:
    lines = [
        f"stage {index}: layers {first}-{end - 1}" for index, (first, end) in enumerate(report.stage_layers)
    ]
    lines.append(f"pipeline: {_speed(report.pipeline)}")
    lines.append(f"mlx-lm:   {_speed(report.reference)}")
    verdict = "yes"
    if not report.identical:
        at = report.first_difference or 0
        ours, theirs = (_at(g.token_ids, at) for g in (report.pipeline, report.reference))
        verdict = f"no (token {at}: {ours}, mlx-lm has {theirs})"
    lines.append(f"identical to single-process mlx-lm: {verdict}")
    return "\n".join(lines)


def _at(token_ids: tuple[int, ...], position: int) -> str:
    return str(token_ids[position]) if position < len(token_ids) else "none"


def _speed(generation: Generation) -> str:
    return (
        f"{len(generation.token_ids)} tokens, ready after {generation.load_seconds:.1f} s,"
        f" first token after {generation.first_token_seconds:.2f} s,"
        f" then {generation.decode_tokens_per_second:.1f} tokens/s"
    )
