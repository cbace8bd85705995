"""`daemonctl generate`: text from the model that is served."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.connect import connect
from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import print_data, print_json, talk
from macmesh_daemon.cli.parsers import add_command, amount, natural, share

if TYPE_CHECKING:
    import argparse

    from macmesh import GenerateChunk, GenerateOptions, Generation, Paused, Waiting
    from macmesh_daemon.cli.parsers import Subparsers

_EXAMPLES = """
daemonctl generate "Once upon a time" --max-tokens 100             continue a text
daemonctl generate --chat "Why is the sky blue?"                   answer a message
cat essay.txt | daemonctl generate --chat - --temperature 0.7      the prompt from stdin
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "generate",
        summary="continue a text or answer a message",
        examples=_EXAMPLES,
        run=run,
    )
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from stdin")
    parser.add_argument("--chat", action="store_true", help="PROMPT is a message: use the chat template")
    parser.add_argument(
        "--max-tokens", type=natural, default=0, metavar="N", help="most tokens (default: up to the context)"
    )
    parser.add_argument(
        "--temperature", type=amount, default=0.0, metavar="T", help="0 (default) takes the likeliest token"
    )
    parser.add_argument("--top-p", type=share, default=0.0, metavar="P", help="nucleus sampling")
    parser.add_argument("--top-k", type=natural, default=0, metavar="K", help="only the K likeliest tokens")
    parser.add_argument(
        "--min-p", type=share, default=0.0, metavar="P", help="only tokens of this share of the likeliest"
    )
    parser.add_argument(
        "--seed", type=natural, metavar="N", help="seed of the random numbers (default: drawn)"
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="go on past the model's own end")
    parser.add_argument(
        "--no-reuse", action="store_true", help="read the whole prompt, even where its beginning is known"
    )
    parser.add_argument(
        "--no-keep", action="store_true", help="keep nothing of this request to answer a later one sooner"
    )
    parser.add_argument(
        "--tokens", action="store_true", help="print token ids, one per line, instead of text"
    )
    parser.add_argument(
        "--timeout", type=amount, metavar="SECONDS", help="longest time for the whole (default: none)"
    )


def run(args: argparse.Namespace) -> int:
    """Stream the text; Ctrl-C cancels the request."""
    prompt = _prompt(args.prompt)
    options: GenerateOptions = {
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k,
        "min_p": args.min_p,
        "seed": args.seed,
        "stop": args.stop,
        "ignore_eos": args.ignore_eos,
        "reuse_prefix": not args.no_reuse,
        "keep": not args.no_keep,
    }
    if args.chat:
        options["messages"] = [{"role": "user", "content": prompt}]
    timeout = math.inf if args.timeout is None else args.timeout
    with (
        connect(args) as client,
        client.generate(None if args.chat else prompt, timeout_seconds=timeout, **options) as generation,
    ):
        chunks = _stream(args, generation)
    _finish(args, generation, chunks)
    return exit_codes.OK


def _prompt(text: str) -> str:
    if text != "-":
        return text
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise CommandError(f"stdin is not UTF-8 text: {error}", exit_code=exit_codes.USAGE) from error


def _stream(args: argparse.Namespace, generation: Generation) -> list[GenerateChunk]:
    """Print what comes as it comes; with ``--json`` nothing yet."""
    chunks = []
    open_line = False
    paused: Paused | None = None
    try:
        for chunk in generation:
            chunks.append(chunk)
            if chunk.waiting is not None:
                talk(_waiting_line(chunk.waiting))
                continue
            if chunk.paused is not None:
                if chunk.paused != paused:  # it is told again every few seconds
                    talk(f"paused: {chunk.paused.message}")
                paused = chunk.paused
                continue
            if args.json:
                continue
            if args.tokens:
                for token_id in chunk.token_ids:
                    print_data(str(token_id))
            elif chunk.text:
                print_data(chunk.text, end="")
                open_line = not chunk.text.endswith("\n")
    finally:
        if open_line and sys.exc_info()[0] is not BrokenPipeError:
            print_data("")
    return chunks


def _waiting_line(waiting: Waiting) -> str:
    when = "" if waiting.estimate_seconds is None else f", about {waiting.estimate_seconds:.0f} s"
    return f"waiting: position {waiting.position}{when}"


def _finish(args: argparse.Namespace, generation: Generation, chunks: list[GenerateChunk]) -> None:
    facts = generation.facts
    if args.json:
        print_json(
            args,
            {
                "text": "".join(c.text for c in chunks),
                "token_ids": [i for c in chunks for i in c.token_ids],
                "finish_reason": str(facts.finish_reason),
                "usage": asdict(facts.usage) if facts.usage else None,
                "request": asdict(facts.request) if facts.request else None,
            },
        )
    elif facts.usage is not None:
        usage = facts.usage
        talk(
            f"{usage.completion_tokens} tokens ({facts.finish_reason}),"
            f" first after {usage.first_token_seconds:.2f} s, then {usage.decode_tokens_per_second:.1f} tokens/s"
        )
